//! The shim alone on a GPU: this process, the same captured graph, copies from and to pinned memory.

use gpulet_client::ModelSpec;
use gpulet_daemon::backend::buffer::BatchBuffer;
use gpulet_daemon::backend::{Backend, Instance, View};
use gpulet_daemon::cuda::gpu::Options;
use gpulet_daemon::cuda::local::Local;
use gpulet_daemon::limits::{Limits, SLOT_BYTES_HARD_MAX};
use gpulet_daemon::model;
use gpulet_kernels::{Part, gather_image};

use super::{Arguments, Contender, round_of};
use crate::daemon::Daemon;
use crate::error::Error;
use crate::input::fill;
use crate::place::{Place, name_of};
use crate::stats::Round;

fn part(bytes: &mut [u8]) -> Part {
    Part { data: std::ptr::NonNull::from(&mut *bytes).cast(), bytes: bytes.len() }
}

/// A model of this process with its memory.
pub struct GpuAlone {
    instance: Box<dyn Instance>,
    // After the instance, which has pinned it.
    buffer: BatchBuffer,
    rows: u32,
}

impl GpuAlone {
    /// Loads the model on a share that is held like the daemon's, by the same MPS.
    ///
    /// # Errors
    /// What CUDA or libtorch says.
    pub fn load(
        arguments: &Arguments,
        spec: &ModelSpec,
        place: &Place,
        daemon: &Daemon,
    ) -> Result<GpuAlone, Error> {
        let kernels = std::env::temp_dir().join("gpulet-bench-kernels");
        let mut options = Options { kernel_cache: Some(kernels), ..Options::default() };
        let held = arguments.mechanism;
        if held.splits() {
            options.shares_pct = vec![arguments.share];
        }
        if held.under_mps() {
            let percentage = if held.splits() { 100 } else { arguments.share }.to_string();
            // SAFETY: this process has one thread, and has not used CUDA yet.
            unsafe {
                std::env::set_var("CUDA_MPS_PIPE_DIRECTORY", daemon.mps_pipes(0));
                std::env::set_var("CUDA_MPS_ACTIVE_THREAD_PERCENTAGE", percentage);
            }
        }
        let failed = |why: String| Error::failed("the shim alone", why);
        let local = Local::open(&options).map_err(|why| failed(why.to_string()))?;
        let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
        let folder = place.models().join(name_of(&arguments.model)?);
        let model = model::load(&folder, &limits).map_err(|why| failed(why.to_string()))?;
        let mut instance = local.load_file(&model).map_err(|why| failed(why.to_string()))?;
        let mut buffer = BatchBuffer::new(&model).map_err(|why| failed(why.to_string()))?;
        // SAFETY: the buffer is dropped after the instance.
        unsafe { instance.pin(buffer.whole()) };
        let rows = arguments.rows;
        for index in 0..spec.input_count as usize {
            let tensor = &model.inputs[index];
            let mut given = vec![0; (tensor.row_bytes * u64::from(rows)) as usize];
            fill(&mut given, spec.inputs[index].dtype(), index as u64);
            let taken = buffer.input_mut(index, rows);
            match tensor.pictures() {
                // Once, beforehand: what is alone need not do it for each request.
                Some(pictures) => {
                    let pictures = pictures.map_err(|why| failed(why.to_string()))?;
                    // SAFETY: two slices of this function.
                    unsafe { gather_image(&[part(&mut given)], part(taken), &pictures) };
                }
                None => taken.copy_from_slice(&given),
            }
        }
        Ok(GpuAlone { instance, buffer, rows })
    }

    fn run(&mut self) -> Result<(), Error> {
        let tensors = self.buffer.tensors(self.rows);
        let run = self.instance.run(self.rows, tensors.inputs(), tensors.outputs());
        run.map(drop).map_err(|why| Error::failed("the shim alone", why))
    }
}

impl Contender for GpuAlone {
    fn outputs(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        self.run()?;
        let tensors = self.buffer.tensors(self.rows);
        let bytes = |view: &View<'_>| {
            // SAFETY: memory of the buffer, which is borrowed, and no run is under way.
            unsafe { std::slice::from_raw_parts(view.data().as_ptr(), view.bytes()) }.to_vec()
        };
        Ok(tensors.outputs().iter().map(bytes).collect())
    }

    fn round(&mut self, count: u32) -> Result<Round, Error> {
        round_of(count, || self.run())
    }
}
