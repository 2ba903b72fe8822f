//! The first work of each kind makes libraries load and make up tables, for half a second and more.
//! No model needs to wait for that: it is done with a few numbers when an executor starts.

use std::sync::Arc;

use gpulet_torch::cuda::{DeviceTensor, Precision};
use gpulet_torch::{Dtype, Module, RANK_MAX};

use super::gpu::{Divisions, Gpu};
use super::memory::DeviceMemory;

/// A convolution, and a product of matrices.
const SOURCE: &str = "
def forward(self, x: Tensor):
    y = torch.relu(torch.conv2d(x, x, padding=1))
    return torch.linear(y.flatten(1), y.flatten(1))
";
/// Pictures, channels, height and width.
const DIMS: [usize; 4] = [8, 8, 8, 8];

/// Does it, for models in that precision.
///
/// # Errors
/// What went wrong, for people.
pub(super) fn prime(gpu: &Arc<Gpu>, divisions: &Divisions, dtype: Dtype) -> Result<(), String> {
    let text = |error: gpulet_torch::Error| error.to_string();
    gpu.device.bind().map_err(|error| error.to_string())?;
    let module = Module::define(&gpu.torch, SOURCE, &[], &[]).map_err(text)?;
    let all = divisions.all();
    let cut = all.first().and_then(|division| division.cuts.first()).ok_or("no gpulet")?;
    let stream = cut.torch_stream(&gpu.cuda).map_err(|error| error.to_string())?;
    let bytes = DIMS.iter().product::<usize>() * size_of::<f32>();
    let [from, to] = [(); 2].map(|()| DeviceMemory::new(bytes));
    let (from, to) =
        (from.map_err(|error| error.to_string())?, to.map_err(|error| error.to_string())?);
    let tensor = |memory: &DeviceMemory, shape: &[usize]| {
        let mut dims = [0; RANK_MAX];
        dims[..shape.len()].copy_from_slice(shape);
        let address = memory.address();
        DeviceTensor { address, dtype: Dtype::F32, dims, rank: shape.len() }
    };
    let (input, output) = (tensor(&from, &DIMS), tensor(&to, &[DIMS[0], DIMS[0]]));
    let halves = dtype == Dtype::F16;
    let precision = Precision { dtype, tf32: false, channels_last: halves };
    let placed = gpu.cuda.place(&module, precision).map_err(text)?;
    // SAFETY: the stream is live, and the memory is this function's, which waits.
    let run = unsafe { placed.run(stream.raw(), &[input], &[output]) };
    let waited = stream.wait();
    run.map_err(text)?;
    waited.map_err(|error| error.to_string())?;
    drop(placed);
    drop(stream);
    gpu.cuda.trim().map_err(text)
}
