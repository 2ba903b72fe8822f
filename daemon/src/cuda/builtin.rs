//! Built-in models on a GPU: an echo, and two that break it, to try recovery on.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use gpulet_kernels::cuda;
use gpulet_plan::profile::ProfilePoint;

use super::driver::{CudaError, Stream};
use super::gpu::{Division, Gpu};
use super::lane::{Lane, Layouts, Set, Size};
use super::memory::Pinned;
use super::weights::{Forward, Weights};
use crate::backend::LoadError;
use crate::backend::buffer::RowBytes;
use crate::model::{Builtin, Model};

/// What a batch of any size is said to take.
const LATENCY_NS: u64 = 100_000;

/// What a built-in model is on any gpulet.
pub(super) fn weights(gpu: &Arc<Gpu>, model: &Model, which: Builtin) -> Result<Weights, LoadError> {
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
    Ok(Weights {
        model: model.clone(),
        maths: "built in".to_owned(),
        error: 0.0,
        row_bytes: RowBytes::of(model)?,
        inputs: Vec::new(),
        outputs: Vec::new(),
        pictures: model.inputs.iter().map(|_| None).collect(),
        forward,
        released: AtomicBool::new(false),
        gpu: Arc::clone(gpu),
    })
}

/// A built-in model on one gpulet.
pub(super) fn lane(
    weights: &Arc<Weights>,
    division: &Arc<Division>,
    layouts: Layouts,
) -> Result<Lane, CudaError> {
    let rows = weights.model.max_batch;
    Ok(Lane {
        sizes: vec![Size { rows, graphs: None }],
        piece: None,
        sets: [Set::new(layouts)?, Set::new(layouts)?],
        points: vec![ProfilePoint { rows, p50_ns: LATENCY_NS, p99_ns: LATENCY_NS }],
        eager: None,
        stream: None,
        weights: Arc::clone(weights),
        division: Arc::clone(division),
    })
}

/// Queues what a built-in model does.
pub(super) fn run(
    weights: &Weights,
    set: &Set,
    rows: u32,
    stream: &Stream,
) -> Result<(), CudaError> {
    let on = cuda::Stream { raw: stream.raw().cast(), sm_count: 1 };
    let kernels = weights.gpu.kernels.as_deref();
    match (&weights.forward, kernels) {
        (Forward::Echo, _) => {
            let layout = &set.layouts.device;
            let pairs = layout.inputs().iter().zip(layout.outputs()).zip(&weights.model.outputs);
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
