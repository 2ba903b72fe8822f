//! `gpuletd`: sessions, dispatch and executors.

pub mod model;
pub mod wire;
