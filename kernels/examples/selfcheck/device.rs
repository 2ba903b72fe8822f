//! A GPU and its memory, as little as the checks need.

use std::ffi::CStr;
use std::ptr::{self, NonNull};

use cudarc::driver::sys::{self, CUresult};
use gpulet_kernels::Part;
use gpulet_kernels::cuda::{Arch, DevicePart, Error, Stream, check, driver};

/// Registered memory starts at a page.
const PAGE_BYTES: usize = 4096;

/// The first GPU, with its primary context and a stream.
pub struct Gpu {
    pub name: String,
    pub arch: Arch,
    pub sm_count: u32,
    pub l2_bytes: u64,
    pub stream: Stream,
}

impl Gpu {
    pub fn open() -> Result<Gpu, String> {
        Gpu::try_open().map_err(|error| error.to_string())
    }

    fn try_open() -> Result<Gpu, Error> {
        driver()?;
        let (mut device, mut context, mut raw) = (0, ptr::null_mut(), ptr::null_mut());
        let mut name = [0; 128];
        // SAFETY: each writes where it is told, and as much; what comes out goes in again.
        unsafe {
            check(sys::cuInit(0), "cuInit", "the driver")?;
            check(sys::cuDeviceGet(&mut device, 0), "cuDeviceGet", "the first GPU")?;
            let length = name.len() as i32;
            check(
                sys::cuDeviceGetName(name.as_mut_ptr(), length, device),
                "cuDeviceGetName",
                "it",
            )?;
            let result = sys::cuDevicePrimaryCtxRetain(&mut context, device);
            check(result, "cuDevicePrimaryCtxRetain", "the first GPU")?;
            check(sys::cuCtxSetCurrent(context), "cuCtxSetCurrent", "its context")?;
            let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check(sys::cuStreamCreate(&mut raw, flags), "cuStreamCreate", "its context")?;
        }
        use sys::CUdevice_attribute_enum as Attribute;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes one number.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) };
            check(result, "cuDeviceGetAttribute", "the first GPU").map(|()| value as u32)
        };
        let sm_count = attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let l2_bytes = attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?.into();
        // SAFETY: the driver ended it.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let stream = Stream { raw, sm_count };
        Ok(Gpu { name, arch: Arch::of(device)?, sm_count, l2_bytes, stream })
    }

    /// Waits for all that was put on the stream.
    pub fn wait(&self) -> Result<(), Error> {
        // SAFETY: our stream.
        check(unsafe { sys::cuStreamSynchronize(self.stream.raw) }, "cuStreamSynchronize", "it")
    }

    /// Whether all that was put on the stream has ended.
    pub fn is_idle(&self) -> Result<bool, Error> {
        // SAFETY: our stream.
        match unsafe { sys::cuStreamQuery(self.stream.raw) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => check(other, "cuStreamQuery", "it").map(|()| true),
        }
    }
}

/// Device memory.
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
}

impl DeviceMemory {
    pub fn new(bytes: usize) -> DeviceMemory {
        let mut address = 0;
        // SAFETY: writes an address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        check(result, "cuMemAlloc", "a buffer").unwrap();
        DeviceMemory { address, bytes }
    }

    /// With these bytes in it.
    pub fn of(bytes: &[u8]) -> DeviceMemory {
        let memory = DeviceMemory::new(bytes.len());
        // SAFETY: as many bytes as both have.
        let result =
            unsafe { sys::cuMemcpyHtoD_v2(memory.address, bytes.as_ptr().cast(), bytes.len()) };
        check(result, "cuMemcpyHtoD", "a buffer").unwrap();
        memory
    }

    /// The `bytes` bytes at `offset`.
    pub fn part(&self, offset: usize, bytes: usize) -> DevicePart {
        assert!(offset + bytes <= self.bytes);
        DevicePart { address: self.address + offset as u64, bytes: bytes as u64 }
    }

    pub fn all(&self) -> DevicePart {
        self.part(0, self.bytes)
    }

    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0u8; self.bytes];
        // SAFETY: as many bytes as both have.
        let result =
            unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), self.address, bytes.len()) };
        check(result, "cuMemcpyDtoH", "a buffer").unwrap();
        bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: ours, freed once; waits for whatever uses it.
        let _ = unsafe { sys::cuMemFree_v2(self.address) };
    }
}

/// Host memory that the device reads and writes, as slots are.
pub struct HostMemory {
    memory: Vec<u8>,
    start: usize,
    bytes: usize,
    address: u64,
}

impl HostMemory {
    pub fn new(bytes: usize) -> HostMemory {
        let room = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let mut memory = vec![0u8; room + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES);
        let host = memory[start..].as_mut_ptr().cast();
        let mut address = 0;
        // SAFETY: whole pages of ours, taken back before they are freed.
        let result =
            unsafe { sys::cuMemHostRegister_v2(host, room, sys::CU_MEMHOSTREGISTER_DEVICEMAP) };
        check(result, "cuMemHostRegister", "a buffer").unwrap();
        // SAFETY: registered just now.
        let result = unsafe { sys::cuMemHostGetDevicePointer_v2(&mut address, host, 0) };
        check(result, "cuMemHostGetDevicePointer", "a buffer").unwrap();
        HostMemory { memory, start, bytes, address }
    }

    /// With these bytes in it.
    pub fn of(bytes: &[u8]) -> HostMemory {
        let mut memory = HostMemory::new(bytes.len());
        memory.bytes_mut().copy_from_slice(bytes);
        memory
    }

    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.bytes]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.bytes]
    }

    /// The `bytes` bytes at `offset`, as the device sees them.
    pub fn part(&self, offset: usize, bytes: usize) -> DevicePart {
        assert!(offset + bytes <= self.bytes);
        DevicePart { address: self.address + offset as u64, bytes: bytes as u64 }
    }

    /// A word of 32 bits that device and host share.
    pub fn word(&self) -> &std::sync::atomic::AtomicU32 {
        let word = self.bytes().as_ptr().cast_mut().cast();
        // SAFETY: aligned to a page, 4 bytes long, and lives as long as the buffer.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(word) }
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        // SAFETY: ours, taken back once; waits for whatever uses it.
        let _ = unsafe { sys::cuMemHostUnregister(self.bytes_mut().as_mut_ptr().cast()) };
    }
}

/// The `bytes` bytes at `offset` of `memory`, as a twin takes them.
pub fn host_part(memory: &mut [u8], offset: usize, bytes: usize) -> Part {
    let memory = &mut memory[offset..offset + bytes];
    Part { data: NonNull::from(&mut *memory).cast(), bytes: memory.len() }
}
