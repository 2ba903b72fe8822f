//! The CUDA driver: whether it is there, and what its refusals mean.

use std::ffi::CStr;
use std::ptr;

use cudarc::driver::sys::{self, CUresult};

/// What the CUDA driver refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no driver on this machine.
    #[error("no CUDA driver: libcuda.so.1 cannot be opened. Install the NVIDIA driver")]
    NoDriver,
    /// A call failed.
    #[error("{call} of {of}: {name} ({})", *.code as u32)]
    Call {
        /// The function of the driver.
        call: &'static str,
        /// What was asked of it.
        of: &'static str,
        /// CUDA's name of the error.
        name: &'static str,
        /// CUDA's number of the error.
        code: CUresult,
    },
}

/// Asks whether there is a CUDA driver on this machine. To be asked first: without one, any call of
/// the driver's functions panics.
pub fn driver() -> Result<(), Error> {
    // SAFETY: opening libcuda runs its initialisers, which are made to be run at any time.
    if unsafe { sys::is_culib_present() } { Ok(()) } else { Err(Error::NoDriver) }
}

/// Turns the result of a function of the driver, which was asked for `of`, into ours.
pub fn check(result: CUresult, call: &'static str, of: &'static str) -> Result<(), Error> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    // SAFETY: the driver is there, as it gave a result, and writes a pointer to a constant of its
    // own, which is never unloaded, or null for a number that it does not know.
    let name = unsafe {
        let _ = sys::cuGetErrorName(result, &mut name);
        if name.is_null() { c"an unknown error" } else { CStr::from_ptr(name) }
    };
    let name = name.to_str().unwrap_or("an unreadable error");
    Err(Error::Call { call, of, name, code: result })
}
