//! How tensors move between slots and the device: by the DMA engines, one copy a request, or by a
//! kernel that reads and writes mapped host memory itself, one launch a batch.
//!
//! A DMA copy of a large tensor runs at the speed of the bus and takes no multiprocessor; many small
//! ones are slower than one kernel. Where the border is depends on machine and share, so it is
//! measured when a gpulet is made.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use gpulet_kernels::Cast;
use gpulet_kernels::cuda::{self, DevicePart, Kernels};
use gpulet_kernels::{ImageSpec, Part};
use gpulet_plan::policy::BATCH_REQUESTS_MAX;

use super::driver::{CudaError, Event, Stream};
use super::gpu::Gpu;
use super::memory::{DeviceMemory, Pinned};

const REQUESTS_MAX: usize = BATCH_REQUESTS_MAX as usize;
/// Sizes of a part that are tried, smallest first.
const TRIED_BYTES: [usize; 5] = [1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10];
/// Parts of the batch that is tried for "several".
const SEVERAL: usize = 8;
const RUNS: usize = 9;

/// The tensors of a batch on the host: memory that the device can reach under both addresses.
#[derive(Clone, Copy)]
pub(super) struct HostPart {
    pub host: NonNull<u8>,
    pub device: u64,
    pub bytes: usize,
}

/// One tensor of a batch on the host, in the order of its requests.
pub(super) struct HostParts {
    parts: [HostPart; REQUESTS_MAX],
    count: usize,
}

impl HostParts {
    pub(super) fn new() -> HostParts {
        let none = HostPart { host: NonNull::dangling(), device: 0, bytes: 0 };
        HostParts { parts: [none; REQUESTS_MAX], count: 0 }
    }

    /// Adds a part.
    ///
    /// # Panics
    /// If there are as many as a batch can have requests.
    pub(super) fn push(&mut self, part: HostPart) {
        self.parts[self.count] = part;
        self.count += 1;
    }

    fn parts(&self) -> &[HostPart] {
        &self.parts[..self.count]
    }

    fn mapped(&self) -> ([DevicePart; REQUESTS_MAX], usize) {
        let mut mapped = [DevicePart { address: 0, bytes: 0 }; REQUESTS_MAX];
        for (mapped, part) in mapped.iter_mut().zip(self.parts()) {
            *mapped = DevicePart { address: part.device, bytes: part.bytes as u64 };
        }
        (mapped, self.count)
    }

    fn bytes(&self) -> u64 {
        self.parts().iter().map(|part| part.bytes as u64).sum()
    }
}

/// How one gpulet moves tensors.
#[derive(Clone)]
pub(super) struct Moves {
    kernels: Option<Arc<Kernels>>,
    sm_count: u32,
    /// Up to so many bytes a part a kernel is faster: of one part, and of several.
    alone_max: usize,
    several_max: usize,
}

impl Moves {
    /// Measures which way is faster, on a stream of the gpulet.
    pub(super) fn measure(gpu: &Gpu, stream: &Stream, sm_count: u32) -> Result<Moves, CudaError> {
        let kernels = gpu.kernels.clone();
        let mut moves = Moves { kernels, sm_count, alone_max: 0, several_max: 0 };
        if moves.kernels.is_none() {
            return Ok(moves);
        }
        let largest = TRIED_BYTES[TRIED_BYTES.len() - 1] * SEVERAL;
        let (device, host) = (DeviceMemory::new(largest)?, Pinned::new(largest)?);
        let begun = Event::timed()?;
        let ended = Event::timed()?;
        let border = |count: usize| -> Result<usize, CudaError> {
            let mut border = 0;
            for bytes in TRIED_BYTES {
                let mut parts = HostParts::new();
                for index in 0..count {
                    // SAFETY: inside of the pinned memory.
                    let host = unsafe { host.data().add(index * bytes) };
                    parts.push(HostPart { host, device: host.as_ptr() as u64, bytes });
                }
                let time = |by_kernel: bool| -> Result<u64, CudaError> {
                    let mut taken = [0; RUNS];
                    for taken in &mut taken {
                        let start = Instant::now();
                        begun.record(stream)?;
                        // SAFETY: memory of this function, which waits.
                        unsafe { moves.inward_by(by_kernel, stream, &parts, device.address()) }?;
                        ended.record(stream)?;
                        while !ended.is_done()? {
                            std::hint::spin_loop();
                        }
                        *taken = nanoseconds(start.elapsed());
                    }
                    taken.sort_unstable();
                    Ok(taken[RUNS / 2])
                };
                if time(true)? >= time(false)? {
                    break;
                }
                border = bytes;
            }
            Ok(border)
        };
        let (alone_max, several_max) = (border(1)?, border(SEVERAL)?);
        (moves.alone_max, moves.several_max) = (alone_max, several_max);
        tracing::info!(alone_max, several_max, "bytes up to which a kernel moves tensors");
        Ok(moves)
    }

    /// The same, on a gpulet of so many multiprocessors.
    pub(super) fn on_share(self, sm_count: u32) -> Moves {
        Moves { sm_count, ..self }
    }

    fn by_kernel(&self, parts: &HostParts) -> bool {
        let border = if parts.count > 1 { self.several_max } else { self.alone_max };
        parts.bytes() <= (border * parts.count) as u64
    }

    /// Queues the parts to device memory, one after another.
    ///
    /// # Safety
    /// The parts are pinned or registered, and like the device memory valid until the work is done.
    pub(super) unsafe fn inward(
        &self,
        stream: &Stream,
        parts: &HostParts,
        into: u64,
    ) -> Result<(), CudaError> {
        // SAFETY: the caller's.
        unsafe { self.inward_by(self.by_kernel(parts), stream, parts, into) }
    }

    unsafe fn inward_by(
        &self,
        by_kernel: bool,
        stream: &Stream,
        parts: &HostParts,
        into: u64,
    ) -> Result<(), CudaError> {
        if let Some(kernels) = self.kernels.as_ref().filter(|_| by_kernel) {
            let (mapped, count) = parts.mapped();
            let into = DevicePart { address: into, bytes: parts.bytes() };
            // SAFETY: the caller's; the parts lie apart from device memory.
            let moved =
                unsafe { kernels.gather(self.on(stream), &mapped[..count], into, Cast::None) };
            return moved.map(drop).map_err(CudaError::of_kernel);
        }
        let mut into = into;
        for part in parts.parts() {
            // SAFETY: the caller's.
            unsafe { stream.copy_in(part.host, into, part.bytes) }?;
            into += part.bytes as u64;
        }
        Ok(())
    }

    /// Queues pictures to device memory, as what the model takes.
    ///
    /// # Safety
    /// As [`inward`](Self::inward).
    pub(super) unsafe fn pictures(
        &self,
        stream: &Stream,
        parts: &HostParts,
        into: u64,
        spec: &ImageSpec,
    ) -> Result<(), CudaError> {
        let Some(kernels) = &self.kernels else { return Err(CudaError::no_kernels()) };
        let (mapped, count) = parts.mapped();
        let pictures = parts.bytes() / spec.picture_bytes() as u64;
        let into = DevicePart { address: into, bytes: pictures * spec.batch_bytes() as u64 };
        // SAFETY: the caller's.
        let moved = unsafe { kernels.gather_image(self.on(stream), &mapped[..count], into, spec) };
        moved.map(drop).map_err(CudaError::of_kernel)
    }

    /// Queues device memory to the parts, one after another.
    ///
    /// # Safety
    /// As [`inward`](Self::inward).
    pub(super) unsafe fn outward(
        &self,
        stream: &Stream,
        from: u64,
        parts: &HostParts,
    ) -> Result<(), CudaError> {
        if let Some(kernels) = self.kernels.as_ref().filter(|_| self.by_kernel(parts)) {
            let (mapped, count) = parts.mapped();
            let from = DevicePart { address: from, bytes: parts.bytes() };
            // SAFETY: the caller's.
            let moved =
                unsafe { kernels.scatter(self.on(stream), from, &mapped[..count], Cast::None) };
            return moved.map(drop).map_err(CudaError::of_kernel);
        }
        let mut from = from;
        for part in parts.parts() {
            // SAFETY: the caller's.
            unsafe { stream.copy_out(from, part.host, part.bytes) }?;
            from += part.bytes as u64;
        }
        Ok(())
    }

    fn on(&self, stream: &Stream) -> cuda::Stream {
        cuda::Stream { raw: stream.raw().cast(), sm_count: self.sm_count }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Memory of the host under one address.
pub(super) fn part_of(part: &HostPart) -> Part {
    Part { data: part.host, bytes: part.bytes }
}
