//! Memory of the device, and of the host where the device reaches it; freed when it is dropped.
//!
//! Some of it comes and goes while batches run, and what the driver frees in the plain way waits until
//! the whole device is idle, and keeps others from launching meanwhile. So device memory is mapped and
//! unmapped, which waits for nobody, and pinned host memory is kept for the next who wants as much.

use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUresult};

use super::driver::{CudaError, check};

/// Pinned memory that is kept in all; what is beyond is freed at once.
const SPARE_BYTES_MAX: usize = 512 << 20;

/// Device memory, zeroed when it is allocated. Work that uses it is done before it is dropped.
#[derive(Debug)]
pub struct DeviceMemory {
    address: u64,
    bytes: usize,
    /// What is mapped there, and so many bytes of it; `None` where the device cannot map.
    mapped: Option<(sys::CUmemGenericAllocationHandle, usize)>,
}

impl DeviceMemory {
    /// Allocates `bytes` bytes, at least one.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(bytes: usize) -> Result<DeviceMemory, CudaError> {
        let bytes = bytes.max(1);
        let memory = match DeviceMemory::map(bytes)? {
            Some(memory) => memory,
            None => {
                let mut address = 0;
                // SAFETY: the out-parameter is valid.
                check(unsafe { sys::cuMemAlloc_v2(&mut address, bytes) }, "cuMemAlloc")?;
                DeviceMemory { address, bytes, mapped: None }
            }
        };
        // SAFETY: allocated for so many bytes.
        check(unsafe { sys::cuMemsetD8_v2(memory.address, 0, bytes) }, "cuMemsetD8")?;
        // On a busy device that is not done yet, and no other stream waits for it.
        // SAFETY: null is the stream that it was queued in.
        check(unsafe { sys::cuStreamSynchronize(ptr::null_mut()) }, "cuStreamSynchronize")?;
        Ok(memory)
    }

    /// Maps memory of the current context's device; `None` where that cannot be.
    fn map(bytes: usize) -> Result<Option<DeviceMemory>, CudaError> {
        let mut device = 0;
        // SAFETY: the out-parameter is valid.
        check(unsafe { sys::cuCtxGetDevice(&mut device) }, "cuCtxGetDevice")?;
        // SAFETY: zeroes are a value of these descriptions, and mean the default.
        let (mut wanted, mut access): (sys::CUmemAllocationProp, sys::CUmemAccessDesc) =
            unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
        wanted.type_ = sys::CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED;
        wanted.location.type_ = sys::CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE;
        wanted.location.id = device;
        access.location = wanted.location;
        access.flags = sys::CUmemAccess_flags::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
        let least = sys::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
        let (mut granule, mut handle) = (0, 0);
        // SAFETY: the out-parameter and the description are valid.
        let code = unsafe { sys::cuMemGetAllocationGranularity(&mut granule, &wanted, least) };
        if code == CUresult::CUDA_ERROR_NOT_SUPPORTED {
            return Ok(None);
        }
        check(code, "cuMemGetAllocationGranularity")?;
        let whole = bytes.next_multiple_of(granule.max(1));
        // SAFETY: the out-parameter and the description are valid.
        match unsafe { sys::cuMemCreate(&mut handle, whole, &wanted, 0) } {
            CUresult::CUDA_ERROR_NOT_SUPPORTED => return Ok(None),
            code => check(code, "cuMemCreate")?,
        }
        let mut memory = DeviceMemory { address: 0, bytes, mapped: Some((handle, whole)) };
        // SAFETY: a fresh stretch of addresses, and as much memory as it is long.
        unsafe {
            let address = &mut memory.address;
            check(sys::cuMemAddressReserve(address, whole, 0, 0, 0), "cuMemAddressReserve")?;
            check(sys::cuMemMap(memory.address, whole, 0, handle, 0), "cuMemMap")?;
            check(sys::cuMemSetAccess(memory.address, whole, &access, 1), "cuMemSetAccess")?;
        }
        Ok(Some(memory))
    }

    /// The device address of its first byte.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        // SAFETY: allocated or mapped by us, and given back once; what is not there yet after an error
        // is an error of the driver.
        let _ = unsafe {
            match self.mapped {
                None => sys::cuMemFree_v2(self.address),
                Some((handle, whole)) => {
                    if self.address != 0 {
                        let _ = sys::cuMemUnmap(self.address, whole);
                        let _ = sys::cuMemAddressFree(self.address, whole);
                    }
                    sys::cuMemRelease(handle)
                }
            }
        };
    }
}

/// Host memory that the device can copy from and to without the driver's help. Work that uses it is
/// done before it is dropped.
#[derive(Debug)]
pub struct Pinned {
    block: Block,
    bytes: usize,
}

/// Pinned memory, somebody's or spare.
#[derive(Clone, Copy, Debug)]
struct Block {
    data: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory, owned by whoever has the value.
unsafe impl Send for Block {}
// SAFETY: it tells where it is, and touches nothing there.
unsafe impl Sync for Block {}

static SPARE: Mutex<Vec<Block>> = Mutex::new(Vec::new());

impl Pinned {
    /// Allocates `bytes` bytes, at least one, zeroed.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(bytes: usize) -> Result<Pinned, CudaError> {
        let bytes = bytes.max(1);
        let spare = take_fitting(&mut SPARE.lock().unwrap_or_else(PoisonError::into_inner), bytes);
        let block = match spare {
            Some(block) => block,
            None => Block::new(bytes)?,
        };
        // SAFETY: at least so many bytes, and nobody else's.
        unsafe { block.data.write_bytes(0, bytes) };
        Ok(Pinned { block, bytes })
    }

    /// Its first byte.
    pub fn data(&self) -> NonNull<u8> {
        self.block.data
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        let kept: usize = spare.iter().map(|block| block.bytes).sum();
        if kept + self.block.bytes <= SPARE_BYTES_MAX {
            spare.push(self.block);
            return;
        }
        drop(spare);
        // SAFETY: allocated by us, and in nobody's hands any more.
        let _ = unsafe { sys::cuMemFreeHost(self.block.data.as_ptr().cast()) };
    }
}

impl Block {
    fn new(bytes: usize) -> Result<Block, CudaError> {
        let mut data: *mut c_void = ptr::null_mut();
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the out-parameter is valid.
        check(unsafe { sys::cuMemHostAlloc(&mut data, bytes, flags) }, "cuMemHostAlloc")?;
        let missing = CudaError { what: "cuMemHostAlloc", name: "gave no memory".into() };
        Ok(Block { data: NonNull::new(data.cast::<u8>()).ok_or(missing)?, bytes })
    }
}

/// The smallest block of so many bytes, if it is not much larger.
fn take_fitting(spare: &mut Vec<Block>, bytes: usize) -> Option<Block> {
    let fits = |block: &Block| block.bytes >= bytes && block.bytes / 2 <= bytes;
    let all = spare.iter().enumerate().filter(|(_, block)| fits(block));
    let (index, _) = all.min_by_key(|(_, block)| block.bytes)?;
    Some(spare.swap_remove(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spare_memory_goes_to_who_wants_about_as_much() {
        let block = |bytes| Block { data: NonNull::dangling(), bytes };
        let mut spare = vec![block(64), block(16), block(20)];
        let mut taken = |bytes| take_fitting(&mut spare, bytes).map(|block| block.bytes);
        assert_eq!(taken(65), None);
        assert_eq!(taken(17), Some(20));
        assert_eq!(taken(17), None, "64 bytes are too many for it");
        assert_eq!(taken(32), Some(64));
        assert_eq!((taken(16), taken(16)), (Some(16), None));
    }
}
