//! Built-in models on a GPU: an echo, and two that break it, to try recovery on.

use std::sync::Arc;

use gpulet_kernels::cuda;
use gpulet_plan::profile::ProfilePoint;

use super::driver::{CudaError, Pinned, Stream};
use super::gpu::Gpu;
use super::load::layouts;
use super::loaded::{Forward, Lane, Loaded, Set, Size, Times};
use crate::backend::LoadError;
use crate::backend::buffer::RowBytes;
use crate::execute::foresight::Foresight;
use crate::model::{Builtin, Model};

/// What a batch of any size is said to take.
const LATENCY_NS: u64 = 100_000;

/// Makes a built-in model ready on every gpulet.
pub(super) fn load(gpu: &Arc<Gpu>, model: &Model, which: Builtin) -> Result<Loaded, LoadError> {
    let failed = |error: CudaError| LoadError::model(model, error);
    let forward = match which {
        Builtin::Null => {
            return Err(LoadError::model(model, "builtin:null is answered without an executor"));
        }
        Builtin::Echo => Forward::Echo,
        Builtin::Fault => Forward::Fault,
        Builtin::Hang => Forward::Hang(Pinned::new(size_of::<u32>()).map_err(failed)?),
    };
    if gpu.kernels.is_none() && which != Builtin::Echo {
        return Err(LoadError::model(model, "needs kernels, and NVRTC is missing"));
    }
    let layouts = layouts(model, model.max_batch)?;
    let rows = model.max_batch;
    let mut lanes = Vec::new();
    for _ in &gpu.cuts {
        lanes.push(Lane {
            sizes: vec![Size { rows, graphs: None, foresight: Foresight::new(LATENCY_NS) }],
            sets: [Set::new(layouts).map_err(failed)?, Set::new(layouts).map_err(failed)?],
            points: vec![ProfilePoint { rows, p50_ns: LATENCY_NS, p99_ns: LATENCY_NS }],
            capture: None,
        });
    }
    Ok(Loaded {
        model: model.clone(),
        form: "built in".to_owned(),
        memory_bytes: 0,
        error: 0.0,
        times: Times::default(),
        row_bytes: RowBytes::of(model)?,
        inputs: Vec::new(),
        outputs: Vec::new(),
        pictures: model.inputs.iter().map(|_| None).collect(),
        lanes,
        forward,
        gpu: Arc::clone(gpu),
    })
}

/// Queues what a built-in model does.
pub(super) fn run(loaded: &Loaded, set: &Set, rows: u32, stream: &Stream) -> Result<(), CudaError> {
    let on = cuda::Stream { raw: stream.raw().cast(), sm_count: 1 };
    let kernels = loaded.gpu.kernels.as_deref();
    match (&loaded.forward, kernels) {
        (Forward::Echo, _) => {
            let layout = &set.layouts.device;
            let pairs = layout.inputs().iter().zip(layout.outputs()).zip(&loaded.model.outputs);
            for ((input, output), tensor) in pairs {
                let bytes = (tensor.row_bytes * u64::from(rows)) as usize;
                let base = set.device.address();
                // SAFETY: both places lie in the set, which is this batch's alone.
                unsafe { stream.copy_over(base + input.offset, base + output.offset, bytes) }?;
            }
            Ok(())
        }
        (Forward::Fault, Some(kernels)) => {
            // SAFETY: whoever serves this model asked for it.
            unsafe { kernels.fault(on) }.map_err(CudaError::of_kernel)
        }
        (Forward::Hang(word), Some(kernels)) => {
            // SAFETY: the word lives as long as the model.
            let hung = unsafe { kernels.hang(on, word.data().as_ptr() as u64) };
            hung.map_err(CudaError::of_kernel)
        }
        _ => Err(CudaError::no_kernels()),
    }
}
