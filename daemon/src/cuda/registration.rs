//! Somebody else's memory, registered with the driver so that the device copies from and to it.
//!
//! Who registers memory keeps every other thread of the process from launching until all of its pages
//! are there and pinned: 141 ms for 256 MiB that nobody has touched, 13 ms where the pages are there,
//! on an H100's host. So the pages are made first, which waits for nobody, and registered piece by
//! piece, with pauses: then nobody is kept for half a millisecond.

use std::ptr::NonNull;
use std::thread;
use std::time::Instant;

use cudarc::driver::sys;
use rustix::mm::{Advice, madvise};

use super::driver::{CudaError, check};
use super::pieces::pieces;

/// Memory that is registered for as long as this lives.
#[derive(Debug)]
pub struct Registration {
    data: NonNull<u8>,
    /// So many bytes from there on, whole pieces, the last one aside.
    bytes: usize,
}

// SAFETY: the driver's bookkeeping of memory, bound to no thread.
unsafe impl Send for Registration {}

impl Registration {
    /// Registers `bytes` bytes at `data`. Takes about a millisecond a MiB, most of it asleep
    /// or in the kernel.
    ///
    /// # Safety
    /// The memory stays mapped for as long as the registration lives.
    ///
    /// # Errors
    /// [`CudaError`]; also on machines where the device sees registered memory under another address.
    pub unsafe fn new(data: NonNull<u8>, bytes: usize) -> Result<Registration, CudaError> {
        let mut registration = Registration { data, bytes: 0 };
        for piece in pieces(data.as_ptr() as usize, bytes) {
            // SAFETY: inside of the memory.
            let start = unsafe { data.add(piece.start) };
            // Only a matter of time: where the pages cannot be made, registering them says why.
            // SAFETY: makes pages of a mapping, and leaves what is in them.
            let _ =
                unsafe { madvise(start.as_ptr().cast(), piece.len(), Advice::LinuxPopulateWrite) };
            let begun = Instant::now();
            // SAFETY: the caller's.
            unsafe { register(start, piece.len()) }?;
            registration.bytes = piece.end;
            thread::sleep(begun.elapsed());
        }
        Ok(registration)
    }

    /// Where the device sees the first byte.
    pub fn device_address(&self) -> u64 {
        self.data.as_ptr() as u64
    }
}

/// Registers a piece, which the device then sees where the host does.
unsafe fn register(data: NonNull<u8>, bytes: usize) -> Result<(), CudaError> {
    let host = data.as_ptr().cast();
    let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
    // SAFETY: the caller's.
    check(unsafe { sys::cuMemHostRegister_v2(host, bytes, flags) }, "cuMemHostRegister")?;
    let mut device = 0;
    // SAFETY: registered with a device mapping just now; the out-parameter is valid.
    let code = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut device, host, 0) };
    let seen = check(code, "cuMemHostGetDevicePointer");
    if seen.is_ok() && device == host as u64 {
        return Ok(());
    }
    // SAFETY: registered above, and used by nobody.
    let _ = unsafe { sys::cuMemHostUnregister(host) };
    seen.and(Err(CudaError::other_address()))
}

impl Drop for Registration {
    fn drop(&mut self) {
        for piece in pieces(self.data.as_ptr() as usize, self.bytes) {
            let begun = Instant::now();
            // SAFETY: a piece that was registered by us, and is taken back once.
            let _ = unsafe { sys::cuMemHostUnregister(self.data.add(piece.start).as_ptr().cast()) };
            thread::sleep(begun.elapsed());
        }
    }
}
