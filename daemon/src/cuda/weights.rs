//! A model's weights on a GPU, which all gpulets share, and what is known of the model on any of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpulet_kernels::ImageSpec;
use gpulet_torch::cuda::Placed;

use super::gpu::Gpu;
use super::memory::Pinned;
use crate::backend::buffer::RowBytes;
use crate::backend::torch::Spec;
use crate::model::Model;

/// A model's weights on a device, and what is known of it on any gpulet.
pub struct Weights {
    /// What it is.
    pub model: Model,
    /// How it computes, for people.
    pub(super) maths: String,
    /// What its precision costs against fp32, as [`Model::error_max`] is stated.
    pub error: f64,
    pub(super) row_bytes: RowBytes,
    pub(super) inputs: Vec<Spec>,
    pub(super) outputs: Vec<Spec>,
    /// For each input that clients give as pictures what becomes of them.
    pub(super) pictures: Vec<Option<ImageSpec>>,
    pub(super) forward: Forward,
    /// It was unloaded: what is being made for it is not needed.
    pub(super) released: AtomicBool,
    pub(super) gpu: Arc<Gpu>,
}

/// What computes where there is no graph.
pub(super) enum Forward {
    /// A TorchScript module.
    Module(Placed),
    /// Each output is the input of the same index.
    Echo,
    /// A write where no memory is.
    Fault,
    /// A kernel that runs until this word is not 0, which it never is.
    Hang(Pinned),
}

impl Weights {
    /// Whether it was unloaded.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }
}
