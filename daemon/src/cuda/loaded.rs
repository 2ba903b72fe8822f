//! A model on a GPU: its weights once, and on every gpulet of every division what it takes to run it.

use std::sync::Arc;

use gpulet_plan::profile::ProfilePoint;

use super::lane::Lane;
use super::weights::{Forward, Weights};

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
        form_of(&self.weights, self.first_lanes())
    }
}

/// How a model runs on these gpulets, for people.
pub(super) fn form_of(weights: &Weights, lanes: &[Lane]) -> String {
    let maths = &weights.maths;
    if !matches!(weights.forward, Forward::Module(_)) {
        return maths.clone();
    }
    match lanes.iter().find_map(|lane| lane.eager.as_ref()) {
        None => format!("{maths}, CUDA graphs"),
        Some(reason) => format!("{maths}, eager: {reason}"),
    }
}

/// What batches take on each of these gpulets.
pub(super) fn points_of<'a>(lanes: impl IntoIterator<Item = &'a Lane>) -> Vec<Vec<ProfilePoint>> {
    lanes.into_iter().map(|lane| lane.points.clone()).collect()
}
