//! Device kernels of gpulet and their CPU twins.
//!
//! A batch is put together from the slots of several requests ([`gather`]) and its results are
//! taken apart into them again ([`scatter`]). On the CPU that is one pass of plain copies; on a GPU
//! it is a kernel ([`cuda`]) that reads and writes the slots over PCIe. Either may convert numbers
//! on their way ([`Cast`]), or make normalised numbers of raw pictures ([`ImageSpec`]). What a
//! kernel puts out and what its CPU twin puts out is the same, bit for bit.
//!
//! Slots are memory that another process may write at any time. What a copy of such memory holds is
//! then open, byte by byte; that is the whole damage, as every value of a byte is a value, and as
//! nothing in here decides anything by what it copies.

mod cast;
pub mod cuda;
mod host;
mod image;

pub use cast::{Cast, Float};
pub use host::{Part, cast, gather, gather_cast, normalise_bools, scatter, scatter_cast};
pub use image::{CHANNELS_MAX, ImageError, ImageSpec, Layout, gather_image};
