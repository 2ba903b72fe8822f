//! A model on a GPU: its weights once, and on every gpulet of every division what it takes to run it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use gpulet_kernels::ImageSpec;
use gpulet_plan::profile::ProfilePoint;
use gpulet_torch::cuda::Placed;

use super::gpu::Gpu;
use super::lane::Lane;
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

/// A model that can run on every gpulet.
pub struct Loaded {
    /// What it is everywhere.
    pub weights: Arc<Weights>,
    /// By the number of the division; its lanes in the order of the gpulets.
    pub(super) lanes: Vec<(u64, Vec<Lane>)>,
    /// Whether all of it is there that it runs with at last.
    pub(super) whole: bool,
    /// Device memory that it takes.
    pub memory_bytes: u64,
    /// What the load took.
    pub times: Times,
}

/// What the steps of a load took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// All of it.
    pub load_ns: u64,
    /// Reading the archive, and bringing its weights to the device.
    pub place_ns: u64,
    /// The first forwards at every batch size on every gpulet, in which algorithms are chosen.
    pub warm_up_ns: u64,
    /// Captures of all of these.
    pub capture_ns: u64,
}

impl Loaded {
    /// The lanes of the division that was there first.
    pub(super) fn first_lanes(&self) -> &[Lane] {
        self.lanes.first().map_or(&[], |(_, lanes)| lanes)
    }

    /// Whether every batch size is a graph on every gpulet.
    pub(super) fn is_captured(&self) -> bool {
        let lanes = self.first_lanes().iter();
        lanes.flat_map(|lane| &lane.sizes).all(|size| size.graphs.is_some())
    }

    /// How it runs, for people.
    pub fn form(&self) -> String {
        self.weights.form(self.first_lanes())
    }
}

impl Weights {
    /// Whether it was unloaded.
    pub(super) fn is_released(&self) -> bool {
        self.released.load(Ordering::Relaxed)
    }

    /// How it runs on these gpulets, for people.
    pub(super) fn form(&self, lanes: &[Lane]) -> String {
        let maths = &self.maths;
        if !matches!(self.forward, Forward::Module(_)) {
            return maths.clone();
        }
        match lanes.iter().find_map(|lane| lane.eager.as_ref()) {
            None => format!("{maths}, CUDA graphs"),
            Some(reason) => format!("{maths}, eager: {reason}"),
        }
    }
}

/// What batches take on each of these gpulets.
pub(super) fn points_of<'a>(lanes: impl IntoIterator<Item = &'a Lane>) -> Vec<Vec<ProfilePoint>> {
    lanes.into_iter().map(|lane| lane.points.clone()).collect()
}
