//! The CUDA driver as far as executors need it: contexts, streams and events, each freed when it is
//! dropped.
//!
//! Everything is asynchronous but where it says so. All of a process's work on a device is in one
//! address space, that of the device's primary context, which libtorch uses too.

use std::ffi::{CStr, c_void};
use std::ptr::{self, NonNull};

use cudarc::driver::sys::{self, CUresult};

use super::pieces::pieces;

/// A call into the driver failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {name}")]
pub struct CudaError {
    /// What was tried.
    pub what: &'static str,
    /// CUDA's name of the error, such as `CUDA_ERROR_OUT_OF_MEMORY`.
    pub name: String,
}

impl CudaError {
    pub(super) fn of_kernel(error: gpulet_kernels::cuda::Error) -> CudaError {
        CudaError { what: "kernel", name: error.to_string() }
    }

    pub(super) fn other_address() -> CudaError {
        let name = "the device has another address for it than the host".to_owned();
        CudaError { what: "registered memory", name }
    }

    pub(super) fn no_kernels() -> CudaError {
        CudaError { what: "kernel", name: "there is no compiler for it (NVRTC)".to_owned() }
    }
}

/// Turns a result code into a result.
pub(super) fn check(code: CUresult, what: &'static str) -> Result<(), CudaError> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut name = ptr::null();
    // SAFETY: `name` is a valid out-parameter; what it is set to is a constant of the driver.
    let known = unsafe { sys::cuGetErrorName(code, &mut name) } == CUresult::CUDA_SUCCESS;
    let name = if known && !name.is_null() {
        // SAFETY: the driver's names are NUL-terminated and live for ever.
        unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
    } else {
        format!("error {}", code as u32)
    };
    Err(CudaError { what, name })
}

/// A device of this process, with its primary context.
#[derive(Debug)]
pub struct Device {
    pub(super) handle: sys::CUdevice,
    context: sys::CUcontext,
    /// Multiprocessors that this process may use: under MPS those of its percentage.
    pub sm_count: u32,
    /// Compute capability, such as `(9, 0)`.
    pub capability: (u32, u32),
}

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver's library is not there.
    #[error("no CUDA driver: libcuda.so is not installed or cannot be loaded")]
    NoDriver,
    /// The driver refused.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

impl Device {
    /// Opens device `ordinal` of those that this process sees, and makes its primary context
    /// current on this thread. The context lives as long as the process.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub fn open(ordinal: i32) -> Result<Device, DeviceError> {
        // SAFETY: opens a library and closes it again; the driver's initialisers may run anywhere.
        if !unsafe { sys::is_culib_present() } {
            return Err(DeviceError::NoDriver);
        }
        let (mut handle, mut context) = (0, ptr::null_mut());
        // SAFETY: the out-parameters are valid.
        unsafe {
            check(sys::cuInit(0), "cuInit")?;
            check(sys::cuDeviceGet(&mut handle, ordinal), "cuDeviceGet")?;
            check(sys::cuDevicePrimaryCtxRetain(&mut context, handle), "cuDevicePrimaryCtxRetain")?;
        }
        let mut device = Device { handle, context, sm_count: 0, capability: (0, 0) };
        device.bind()?;
        use sys::CUdevice_attribute_enum as Attribute;
        device.sm_count = device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        device.capability = (
            device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            device.attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        );
        Ok(device)
    }

    /// Makes the primary context current on this thread, as every thread needs that calls the
    /// driver.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn bind(&self) -> Result<(), CudaError> {
        // SAFETY: the context is retained for the life of the process.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "cuCtxSetCurrent")
    }

    /// Free and total memory of the device, in bytes.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn memory(&self) -> Result<(u64, u64), CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the out-parameters are valid.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "cuMemGetInfo")?;
        Ok((free as u64, total as u64))
    }

    /// Bytes of the L2 cache.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn l2_bytes(&self) -> Result<u64, CudaError> {
        let which = sys::CUdevice_attribute_enum::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE;
        self.attribute(which).map(u64::from)
    }

    fn attribute(&self, which: sys::CUdevice_attribute) -> Result<u32, CudaError> {
        let mut value = 0;
        // SAFETY: the out-parameter is valid.
        let code = unsafe { sys::cuDeviceGetAttribute(&mut value, which, self.handle) };
        check(code, "cuDeviceGetAttribute")?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}

/// A stream that waits for no other.
#[derive(Debug)]
pub struct Stream(pub(super) NonNull<sys::CUstream_st>);

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Stream {}
// SAFETY: and by several at once.
unsafe impl Sync for Stream {}

impl Stream {
    /// A stream of the primary context, which must be current.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new() -> Result<Stream, CudaError> {
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        let mut raw = ptr::null_mut();
        // SAFETY: the out-parameter is valid.
        check(unsafe { sys::cuStreamCreate(&mut raw, flags) }, "cuStreamCreate")?;
        Stream::adopt(raw, "cuStreamCreate")
    }

    pub(super) fn adopt(raw: sys::CUstream, what: &'static str) -> Result<Stream, CudaError> {
        let missing = CudaError { what, name: "gave no stream".to_owned() };
        NonNull::new(raw).map(Stream).ok_or(missing)
    }

    /// The `CUstream`, for libtorch and for kernels.
    pub fn raw(&self) -> *mut c_void {
        self.0.as_ptr().cast()
    }

    /// Waits on the host until all its work is done.
    ///
    /// # Errors
    /// [`CudaError`], also of work that was queued before.
    pub fn wait(&self) -> Result<(), CudaError> {
        // SAFETY: the stream is live.
        check(unsafe { sys::cuStreamSynchronize(self.0.as_ptr()) }, "cuStreamSynchronize")
    }

    /// Whether all its work is done. Does not wait.
    ///
    /// # Errors
    /// [`CudaError`] of that work, or of any other in the context.
    pub fn is_idle(&self) -> Result<bool, CudaError> {
        // SAFETY: the stream is live.
        match unsafe { sys::cuStreamQuery(self.0.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code, "stream").map(|()| true),
        }
    }

    /// The context that it is of, which may be a green one.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(super) fn context(&self) -> Result<sys::CUcontext, CudaError> {
        let (mut context, mut green) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the stream is live; the out-parameters are valid.
        let code = unsafe { sys::cuStreamGetCtx_v2(self.0.as_ptr(), &mut context, &mut green) };
        check(code, "cuStreamGetCtx")?;
        if !green.is_null() {
            // SAFETY: the green context lives at least as long as its stream.
            let code = unsafe { sys::cuCtxFromGreenCtx(&mut context, green) };
            check(code, "cuCtxFromGreenCtx")?;
        }
        Ok(context)
    }

    /// Later work waits for `event`.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn after(&self, event: &Event) -> Result<(), CudaError> {
        // SAFETY: both are live.
        let code = unsafe { sys::cuStreamWaitEvent(self.0.as_ptr(), event.0.as_ptr(), 0) };
        check(code, "cuStreamWaitEvent")
    }

    /// Copies host memory to the device.
    ///
    /// # Safety
    /// `from` is readable and `to` is device memory, for `bytes` bytes, until the copy is done;
    /// `from` is pinned or registered.
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn copy_in(
        &self,
        from: NonNull<u8>,
        to: u64,
        bytes: usize,
    ) -> Result<(), CudaError> {
        for piece in pieces(from.as_ptr() as usize, bytes) {
            let to = to + piece.start as u64;
            // SAFETY: the caller's; the piece is part of what is copied.
            let code = unsafe {
                let from = from.add(piece.start).as_ptr().cast();
                sys::cuMemcpyHtoDAsync_v2(to, from, piece.len(), self.0.as_ptr())
            };
            check(code, "cuMemcpyHtoDAsync")?;
        }
        Ok(())
    }

    /// Copies device memory to the host.
    ///
    /// # Safety
    /// As [`copy_in`](Self::copy_in), the other way round.
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn copy_out(
        &self,
        from: u64,
        to: NonNull<u8>,
        bytes: usize,
    ) -> Result<(), CudaError> {
        for piece in pieces(to.as_ptr() as usize, bytes) {
            let from = from + piece.start as u64;
            // SAFETY: the caller's; the piece is part of what is copied.
            let code = unsafe {
                let to = to.add(piece.start).as_ptr().cast();
                sys::cuMemcpyDtoHAsync_v2(to, from, piece.len(), self.0.as_ptr())
            };
            check(code, "cuMemcpyDtoHAsync")?;
        }
        Ok(())
    }

    /// Copies device memory to device memory.
    ///
    /// # Safety
    /// Both are device memory for `bytes` bytes until the copy is done, and lie apart.
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn copy_over(&self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        let code = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, self.0.as_ptr()) };
        check(code, "cuMemcpyDtoDAsync")
    }

    /// Copies `from` to the device, and waits until it is there.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(super) fn copy_in_now(&self, from: &[u8], to: u64) -> Result<(), CudaError> {
        // SAFETY: `from` is borrowed until the wait is over; device addresses out of range are an
        // error of the driver.
        unsafe { self.copy_in(NonNull::from(from).cast(), to, from.len()) }?;
        self.wait()
    }

    /// Copies device memory to `to`, and waits until it is there.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(super) fn copy_out_now(&self, from: u64, to: &mut [u8]) -> Result<(), CudaError> {
        // SAFETY: as in `copy_in_now`.
        unsafe { self.copy_out(from, NonNull::from(&mut *to).cast(), to.len()) }?;
        self.wait()
    }

    /// Launches a captured graph.
    ///
    /// # Safety
    /// `exec` is a live `CUgraphExec` whose memory nothing else touches until it is done.
    ///
    /// # Errors
    /// [`CudaError`].
    pub unsafe fn launch(&self, exec: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        check(unsafe { sys::cuGraphLaunch(exec.cast(), self.0.as_ptr()) }, "cuGraphLaunch")
    }

    /// Brings a captured graph to the device, which its first launch does otherwise.
    ///
    /// # Safety
    /// `exec` is a live `CUgraphExec`.
    ///
    /// # Errors
    /// [`CudaError`].
    pub(super) unsafe fn upload(&self, exec: *mut c_void) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        check(unsafe { sys::cuGraphUpload(exec.cast(), self.0.as_ptr()) }, "cuGraphUpload")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once; work that is queued still ends.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.0.as_ptr()) };
    }
}

/// A point in a stream, to be waited for or asked about.
#[derive(Debug)]
pub struct Event(NonNull<sys::CUevent_st>);

// SAFETY: handles of the driver may be used by any thread.
unsafe impl Send for Event {}

impl Event {
    /// An event of the current context that only orders.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new() -> Result<Event, CudaError> {
        Event::with(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)
    }

    /// An event of the current context that notes the time.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn timed() -> Result<Event, CudaError> {
        Event::with(sys::CUevent_flags::CU_EVENT_DEFAULT)
    }

    /// From this to `end` on the device's clock, to about a microsecond. Both are timed and done.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn ns_until(&self, end: &Event) -> Result<u64, CudaError> {
        let mut ms = 0f32;
        // SAFETY: both are live; the out-parameter is valid.
        let code = unsafe { sys::cuEventElapsedTime_v2(&mut ms, self.0.as_ptr(), end.0.as_ptr()) };
        check(code, "cuEventElapsedTime")?;
        Ok((f64::from(ms) * 1e6) as u64)
    }

    fn with(flags: sys::CUevent_flags) -> Result<Event, CudaError> {
        let flags = flags as u32;
        let mut raw = ptr::null_mut();
        // SAFETY: the out-parameter is valid.
        check(unsafe { sys::cuEventCreate(&mut raw, flags) }, "cuEventCreate")?;
        let missing = CudaError { what: "cuEventCreate", name: "gave no event".to_owned() };
        NonNull::new(raw).map(Event).ok_or(missing)
    }

    /// Sets it to what is queued in `stream` now.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn record(&self, stream: &Stream) -> Result<(), CudaError> {
        // SAFETY: both are live.
        let code = unsafe { sys::cuEventRecord(self.0.as_ptr(), stream.0.as_ptr()) };
        check(code, "cuEventRecord")
    }

    /// Whether all that it was set to is done. Does not wait.
    ///
    /// # Errors
    /// [`CudaError`] of that work, or of any other in the context.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        // SAFETY: the event is live.
        match unsafe { sys::cuEventQuery(self.0.as_ptr()) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            code => check(code, "batch").map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by us and destroyed once.
        let _ = unsafe { sys::cuEventDestroy_v2(self.0.as_ptr()) };
    }
}
