//! A kernel on a gpulet that presses on a memory all gpulets share, and what it achieves.

use std::ptr;

use gpulet_kernels::cuda::{self, DevicePart, Kernels};
use serde::{Deserialize, Serialize};

use crate::cuda::driver::{CudaError, Stream};
use crate::cuda::gpu::Cut;
use crate::cuda::memory::{DeviceMemory, Pinned};

/// Which memory is pressed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Memory {
    /// The cache.
    L2,
    /// What is behind it.
    Dram,
}

/// How.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pressure {
    /// On what.
    pub memory: Memory,
    /// Of the 8 blocks that a multiprocessor holds.
    pub blocks_per_sm: u32,
    /// Each block's pause after each 64 KiB.
    pub pause_ns: u32,
}

/// Bytes to read over and over: a quarter of the cache, or eight times it.
pub(super) fn working_set_bytes(memory: Memory, l2_bytes: u64) -> u64 {
    match memory {
        Memory::L2 => l2_bytes / 4,
        Memory::Dram => l2_bytes * 8,
    }
}

/// A kernel on a gpulet, which presses from its launch until this is dropped.
pub(super) struct Pressing {
    stream: Stream,
    sm_count: u32,
    stop: Pinned,
    done: Pinned,
    blocks: u32,
}

impl Pressing {
    /// Allocates what it needs on a gpulet.
    pub(super) fn new(cut: &Cut, pressure: &Pressure) -> Result<Pressing, CudaError> {
        let blocks = pressure.blocks_per_sm * cut.sm_count;
        Ok(Pressing {
            stream: cut.stream()?,
            sm_count: cut.sm_count,
            stop: Pinned::new(size_of::<u32>())?,
            done: Pinned::new(size_of::<u64>() * blocks as usize)?,
            blocks,
        })
    }

    /// Starts the kernel. While it runs nothing may wait for the whole device, as allocations do.
    ///
    /// # Safety
    /// The working set outlives this.
    pub(super) unsafe fn launch(
        &self,
        kernels: &Kernels,
        pressure: &Pressure,
        working_set: &DeviceMemory,
    ) -> Result<(), CudaError> {
        let on = cuda::Stream { raw: self.stream.raw().cast(), sm_count: self.sm_count };
        let (address, bytes) = (working_set.address(), working_set.bytes() as u64);
        let it = cuda::Pressure {
            working_set: DevicePart { address, bytes },
            // Pinned memory has one address for host and device.
            stop: self.stop.data().as_ptr() as u64,
            done: self.done.data().as_ptr() as u64,
            blocks: self.blocks,
            pause_ns: pressure.pause_ns,
        };
        // SAFETY: the kernel ends before the words are gone, and by the contract before the working
        // set is.
        let launched = unsafe {
            match pressure.memory {
                Memory::L2 => kernels.pressure_l2(on, &it),
                Memory::Dram => kernels.pressure_dram(on, &it),
            }
        };
        launched.map_err(CudaError::of_kernel)
    }

    /// What it has read so far, a millisecond ago.
    pub(super) fn bytes(&self) -> u64 {
        let counts = self.done.data().cast::<u64>();
        let count = self.done.bytes() / size_of::<u64>();
        // SAFETY: inside the memory; each count is an aligned word that the device writes whole.
        (0..count).map(|index| unsafe { ptr::read_volatile(counts.as_ptr().add(index)) }).sum()
    }
}

impl Drop for Pressing {
    fn drop(&mut self) {
        // SAFETY: an aligned word of ours, which the device only reads.
        unsafe { ptr::write_volatile(self.stop.data().cast::<u32>().as_ptr(), 1) };
        // After an error there is no kernel any more that could use the memory.
        let _ = self.stream.wait();
    }
}
