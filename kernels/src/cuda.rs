//! The kernels on a GPU: compiled for it at start, loaded, launched.
//!
//! [`Cubin::compile`] turns the sources in `cuda/` into machine code, by NVRTC, and keeps it on
//! disk; [`Kernels::load`] loads it; the methods of [`Kernels`] launch, on a stream the caller has,
//! memory the caller has. Nothing here makes contexts, streams or memory.
//!
//! Neither libcuda nor libnvrtc is linked: a machine without them builds and runs all of this, and
//! is told what is missing when it asks for a GPU.

mod cache;
mod cubin;
mod driver;
mod kernels;
mod nvrtc;
mod params;
mod sm_set;
mod steps;

pub use cubin::{Arch, Cubin, Origin};
pub use driver::{Error, check, driver};
pub use kernels::{DevicePart, Kernel, Kernels, Pattern, Pressure, Stream};
pub use nvrtc::{CompileError, Version};
pub use params::PARTS_MAX;
pub use sm_set::SmSet;
pub use steps::After;
