//! The kernels, loaded: one method each.

use std::ffi::{CStr, c_void};
use std::ptr;

use cudarc::driver::sys::{self, CUkernel, CUlibrary, CUstream};

use super::cubin::Cubin;
use super::driver::{Error, check, driver};
use super::params::{self, BLOCKS_PER_SM, CHUNK_BYTES, PARTS_MAX, PROBE_THREADS, THREADS};
use super::sm_set::SmSet;
use crate::{Cast, ImageSpec};

/// A kernel of this crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// See [`Kernels::gather`].
    Gather,
    /// See [`Kernels::scatter`].
    Scatter,
    /// See [`Kernels::gather_image`].
    GatherImage,
    /// See [`Kernels::bools`].
    Bools,
    /// See [`Kernels::fill`].
    Fill,
    /// See [`Kernels::probe`].
    Probe,
    /// See [`Kernels::pressure_l2`].
    PressureL2,
    /// See [`Kernels::pressure_dram`].
    PressureDram,
    /// See [`Kernels::busy`].
    Busy,
    /// See [`Kernels::fault`].
    Fault,
    /// See [`Kernels::hang`].
    Hang,
}

impl Kernel {
    /// Every kernel, in the order of its variants.
    pub const ALL: [Kernel; 11] = [
        Kernel::Gather,
        Kernel::Scatter,
        Kernel::GatherImage,
        Kernel::Bools,
        Kernel::Fill,
        Kernel::Probe,
        Kernel::PressureL2,
        Kernel::PressureDram,
        Kernel::Busy,
        Kernel::Fault,
        Kernel::Hang,
    ];

    /// Its name in the machine code, and in a profiler.
    pub const fn name(self) -> &'static CStr {
        match self {
            Kernel::Gather => c"gather",
            Kernel::Scatter => c"scatter",
            Kernel::GatherImage => c"gather_image",
            Kernel::Bools => c"bools",
            Kernel::Fill => c"fill",
            Kernel::Probe => c"probe",
            Kernel::PressureL2 => c"pressure_l2",
            Kernel::PressureDram => c"pressure_dram",
            Kernel::Busy => c"busy",
            Kernel::Fault => c"fault",
            Kernel::Hang => c"hang",
        }
    }

    pub(super) fn text(self) -> &'static str {
        self.name().to_str().unwrap_or_default()
    }
}

/// Where work is put.
#[derive(Clone, Copy, Debug)]
pub struct Stream {
    /// A stream of any context on the device that the kernels were compiled for, green ones
    /// included.
    pub raw: CUstream,
    /// How many multiprocessors it has, or how many of them may be used: no grid is larger than
    /// what so many hold at once.
    pub sm_count: u32,
}

/// A stretch of memory that the device can access: its own, or mapped host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DevicePart {
    /// Where it starts, as the device sees it.
    pub address: u64,
    /// Its length in bytes.
    pub bytes: u64,
}

/// What memory is filled with, over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// One byte.
    U8(u8),
    /// Two bytes, the lower first.
    U16(u16),
    /// Four bytes, the lowest first.
    U32(u32),
}

impl Pattern {
    pub(super) fn bytes(self) -> u64 {
        match self {
            Pattern::U8(_) => 1,
            Pattern::U16(_) => 2,
            Pattern::U32(_) => 4,
        }
    }

    /// As four bytes.
    pub(super) fn word(self) -> u32 {
        match self {
            Pattern::U8(value) => u32::from(value) * 0x0101_0101,
            Pattern::U16(value) => u32::from(value) * 0x0001_0001,
            Pattern::U32(value) => value,
        }
    }
}

/// How to press on a memory.
#[derive(Clone, Copy, Debug)]
pub struct Pressure {
    /// What is read, over and over; of device memory, aligned to 16, at least 64 KiB, of which
    /// whole 64 KiB are used. Well inside the L2 cache, or several times its size.
    pub working_set: DevicePart,
    /// A u32 in mapped host memory: the kernel ends once it is not 0.
    pub stop: u64,
    /// Room for a u64 a block, in device or mapped host memory: the bytes each block has read,
    /// brought up to date about every millisecond.
    pub done: u64,
    /// How many blocks read, 256 threads each: at most eight for each multiprocessor of the stream.
    pub blocks: u32,
    /// How long each block pauses after each 64 KiB, 0 to 1,000,000 ns; 0 is the hardest.
    pub pause_ns: u32,
}

/// An address that no memory is ever at.
const NOWHERE: u64 = 16;
/// The longest that the hardware sleeps.
const PAUSE_NS_MAX: u32 = 1_000_000;

/// The kernels, loaded. They belong to no context: a launch runs in that of its stream.
///
/// No method waits, and none allocates on the heap. All launch asynchronously; an error may be that
/// of an earlier launch. Dropped only after all that was launched has ended.
#[derive(Debug)]
pub struct Kernels {
    library: CUlibrary,
    pub(super) kernels: [CUkernel; Kernel::ALL.len()],
}

// SAFETY: handles of the driver, which may be used from any thread and from several at once.
unsafe impl Send for Kernels {}
// SAFETY: as above.
unsafe impl Sync for Kernels {}

impl Kernels {
    /// Loads them, into the context that is current on the calling thread at once, into any other
    /// at the first launch there.
    pub fn load(cubin: &Cubin) -> Result<Kernels, Error> {
        driver()?;
        let (none, no_values) = (ptr::null_mut(), ptr::null_mut());
        let code = cubin.code().as_ptr().cast();
        let mut library = ptr::null_mut();
        // SAFETY: an ELF file whole, as it came from NVRTC; no options, as both counts say.
        let result = unsafe {
            let (no_options, values) = (ptr::null_mut(), ptr::null_mut());
            sys::cuLibraryLoadData(&mut library, code, none, no_values, 0, no_options, values, 0)
        };
        check(result, "cuLibraryLoadData", "our machine code")?;
        let mut loaded = Kernels { library, kernels: [ptr::null_mut(); Kernel::ALL.len()] };
        for kernel in Kernel::ALL {
            let (handle, name) = (&mut loaded.kernels[kernel as usize], kernel.name());
            // SAFETY: a library that was just loaded, and an ended string.
            let result = unsafe { sys::cuLibraryGetKernel(handle, library, name.as_ptr()) };
            check(result, "cuLibraryGetKernel", kernel.text())?;
        }
        loaded.prepare()?;
        Ok(loaded)
    }

    /// Loads them into the context that is current on the calling thread, so that no first launch
    /// there has to.
    pub fn prepare(&self) -> Result<(), Error> {
        for kernel in Kernel::ALL {
            let mut function = ptr::null_mut();
            let handle = self.kernels[kernel as usize];
            // SAFETY: a kernel of a loaded library; refused if no context is current.
            let result = unsafe { sys::cuKernelGetFunction(&mut function, handle) };
            check(result, "cuKernelGetFunction", kernel.text())?;
        }
        Ok(())
    }

    /// Copies `parts` one after another to the start of `into`, casting each element, and returns
    /// how many bytes of `into` that is. The twin of [`crate::gather_cast`].
    ///
    /// # Panics
    /// If they do not fit, or a part is no whole number of elements.
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can read every part and write
    /// `into`, `into` overlaps no part, and nothing else on the device touches it. What others write
    /// to the parts meanwhile only makes their bytes uncertain.
    pub unsafe fn gather(
        &self,
        on: Stream,
        parts: &[DevicePart],
        into: DevicePart,
        cast: Cast,
    ) -> Result<u64, Error> {
        let mut filled = 0;
        for parts in parts.chunks(PARTS_MAX) {
            let it = params::Move::new(parts, cast.bytes_before(), into.address + filled, cast);
            filled += it.parts.elements() * cast.bytes_after() as u64;
            assert!(filled <= into.bytes, "the parts do not fit");
            // SAFETY: what is read and written is inside the parts and `into`, by the assert.
            unsafe { self.tiles(Kernel::Gather, on, it.parts.tiles(), &it)? };
        }
        Ok(filled)
    }

    /// Copies the start of `from` to `parts`, one after another, casting each element, and returns
    /// how many bytes of `from` that is. The twin of [`crate::scatter_cast`].
    ///
    /// # Panics
    /// If the parts are longer than `from`, or one is no whole number of elements.
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can read `from` and write every
    /// part, `from` overlaps no part and no part another, and nothing else on the device writes
    /// them.
    pub unsafe fn scatter(
        &self,
        on: Stream,
        from: DevicePart,
        parts: &[DevicePart],
        cast: Cast,
    ) -> Result<u64, Error> {
        let mut taken = 0;
        for parts in parts.chunks(PARTS_MAX) {
            let it = params::Move::new(parts, cast.bytes_after(), from.address + taken, cast);
            taken += it.parts.elements() * cast.bytes_before() as u64;
            assert!(taken <= from.bytes, "the parts are too long");
            // SAFETY: what is read and written is inside `from` and the parts, by the assert.
            unsafe { self.tiles(Kernel::Scatter, on, it.parts.tiles(), &it)? };
        }
        Ok(taken)
    }

    /// Casts all of `from` to the start of `into`, and returns how many bytes of `into` that is.
    /// The twin of [`crate::cast()`].
    ///
    /// # Panics
    /// If it does not fit, or is no whole number of elements.
    ///
    /// # Safety
    /// As of [`Kernels::gather`], of one part.
    pub unsafe fn cast(
        &self,
        on: Stream,
        from: DevicePart,
        into: DevicePart,
        cast: Cast,
    ) -> Result<u64, Error> {
        // SAFETY: the same contract.
        unsafe { self.gather(on, &[from], into, cast) }
    }

    /// Puts the numbers of the pictures in `parts` to the start of `into`, one picture after
    /// another, and returns how many bytes that is. A part is any number of pictures. The twin of
    /// [`crate::gather_image`].
    ///
    /// # Panics
    /// If they do not fit, a part is no whole number of pictures, or `into` is not aligned to its
    /// numbers.
    ///
    /// # Safety
    /// As of [`Kernels::gather`].
    pub unsafe fn gather_image(
        &self,
        on: Stream,
        parts: &[DevicePart],
        into: DevicePart,
        spec: &ImageSpec,
    ) -> Result<u64, Error> {
        assert!(into.address.is_multiple_of(spec.to().bytes() as u64), "a batch of broken numbers");
        let mut filled = 0;
        for parts in parts.chunks(PARTS_MAX) {
            let it = params::Pictures::new(parts, into.address + filled, spec);
            filled += it.parts.elements() * spec.batch_bytes() as u64;
            assert!(filled <= into.bytes, "the parts do not fit");
            // SAFETY: what is read and written is inside the parts and `into`, by the assert.
            unsafe { self.tiles(Kernel::GatherImage, on, it.parts.tiles(), &it)? };
        }
        Ok(filled)
    }

    /// Makes every byte that is not 0 a 1. The twin of [`crate::normalise_bools`].
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can read and write `part`, and
    /// nothing else touches it.
    pub unsafe fn bools(&self, on: Stream, part: DevicePart) -> Result<(), Error> {
        let it = params::Bools { address: part.address, bytes: part.bytes };
        // SAFETY: by the contract.
        unsafe { self.tiles(Kernel::Bools, on, it.tiles(), &it) }
    }

    /// Fills `part` with a pattern, the last one cut where the part ends.
    ///
    /// # Panics
    /// If the part is not aligned to the pattern.
    ///
    /// # Safety
    /// As of [`Kernels::bools`].
    pub unsafe fn fill(&self, on: Stream, part: DevicePart, pattern: Pattern) -> Result<(), Error> {
        let it = params::Fill::new(part, pattern);
        // SAFETY: by the contract.
        unsafe { self.tiles(Kernel::Fill, on, it.tiles(), &it) }
    }

    /// Notes on which multiprocessors blocks of this stream run: adds them to the [`SmSet`] at
    /// `bitmap`. Two blocks for each of `on.sm_count`, which each stay for `stay_ns`: with the
    /// count of the whole device and 50,000 ns every one that the stream can use is seen, unless
    /// another kernel fills it for so long.
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can write [`SmSet::BYTES`] at
    /// `bitmap`, which is aligned to 4. They were zeroed before.
    pub unsafe fn probe(&self, on: Stream, bitmap: u64, stay_ns: u32) -> Result<(), Error> {
        let it = params::Probe { bitmap, words: SmSet::BYTES as u32 / 4, stay_ns };
        // SAFETY: by the contract.
        unsafe { self.launch(Kernel::Probe, on, 2 * on.sm_count, PROBE_THREADS, &it) }
    }

    /// Reads a working set that fits the L2 cache until it is told to stop.
    ///
    /// # Panics
    /// If the working set is not aligned or is too small, or the pause is too long.
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can read the working set and the
    /// stop word, and write the counts.
    pub unsafe fn pressure_l2(&self, on: Stream, pressure: &Pressure) -> Result<(), Error> {
        // SAFETY: the same contract.
        unsafe { self.press(Kernel::PressureL2, on, pressure) }
    }

    /// Reads a working set that no cache holds until it is told to stop.
    ///
    /// # Panics
    /// As [`Kernels::pressure_l2`].
    ///
    /// # Safety
    /// As of [`Kernels::pressure_l2`].
    pub unsafe fn pressure_dram(&self, on: Stream, pressure: &Pressure) -> Result<(), Error> {
        // SAFETY: the same contract.
        unsafe { self.press(Kernel::PressureDram, on, pressure) }
    }

    /// Computes and touches no memory: `blocks` blocks, each of `rounds` rounds, which take the
    /// longer the fewer multiprocessors there are. On a whole H100 4,224 blocks of 4,096 rounds
    /// take about half a millisecond.
    ///
    /// # Safety
    /// `on` is a stream.
    pub unsafe fn busy(&self, on: Stream, blocks: u32, rounds: u32) -> Result<(), Error> {
        let it = params::Busy { sink: NOWHERE, rounds, zero: 0 };
        // SAFETY: by the contract; the sink is never written.
        unsafe { self.launch(Kernel::Busy, on, blocks, THREADS, &it) }
    }

    /// Writes where no memory is. The next call on this context finds
    /// `CUDA_ERROR_ILLEGAL_ADDRESS`, as may those of others on the same GPU under MPS.
    ///
    /// # Safety
    /// `on` is a stream, and everybody on this GPU is prepared for it.
    pub unsafe fn fault(&self, on: Stream) -> Result<(), Error> {
        // SAFETY: that the write goes wrong is what it is for; no memory is hit.
        unsafe { self.launch(Kernel::Fault, on, 1, 1, &params::Drill { address: NOWHERE }) }
    }

    /// Runs until the u32 at `word` is not 0.
    ///
    /// # Safety
    /// `on` is a stream. Until the kernel has ended, the device can read `word`, which is aligned
    /// to 4 and in mapped host memory, so that somebody can write it.
    pub unsafe fn hang(&self, on: Stream, word: u64) -> Result<(), Error> {
        // SAFETY: by the contract.
        unsafe { self.launch(Kernel::Hang, on, 1, 1, &params::Drill { address: word }) }
    }

    /// # Safety
    /// As of [`Kernels::pressure_l2`].
    unsafe fn press(&self, kernel: Kernel, on: Stream, it: &Pressure) -> Result<(), Error> {
        let chunks = it.working_set.bytes / CHUNK_BYTES;
        assert!(it.working_set.address.is_multiple_of(16), "the working set is not aligned");
        assert!((1..=u64::from(u32::MAX)).contains(&chunks), "the working set is too small");
        assert!(it.pause_ns <= PAUSE_NS_MAX, "the pause is too long");
        let params = params::Press {
            address: it.working_set.address,
            stop: it.stop,
            done: it.done,
            chunks: chunks as u32,
            pause_ns: it.pause_ns,
            zero: 0,
            reserved: 0,
        };
        // SAFETY: by the contract; only whole chunks are read.
        unsafe { self.launch(kernel, on, it.blocks, THREADS, &params) }
    }

    /// Launches as many blocks as there are tiles or as the stream's multiprocessors hold.
    ///
    /// # Safety
    /// As of [`Kernels::launch`].
    unsafe fn tiles<P>(
        &self,
        kernel: Kernel,
        on: Stream,
        tiles: u32,
        params: &P,
    ) -> Result<(), Error> {
        let room = on.sm_count.max(1).saturating_mul(BLOCKS_PER_SM);
        // SAFETY: the same contract.
        unsafe { self.launch(kernel, on, tiles.min(room), THREADS, params) }
    }

    /// # Safety
    /// `params` are what this kernel takes, and what they say stays true until it has ended.
    unsafe fn launch<P>(
        &self,
        kernel: Kernel,
        on: Stream,
        blocks: u32,
        threads: u32,
        params: &P,
    ) -> Result<(), Error> {
        if blocks == 0 {
            return Ok(());
        }
        let function = self.kernels[kernel as usize].cast();
        let mut params = [ptr::from_ref(params).cast::<c_void>().cast_mut()];
        let (params, extra) = (params.as_mut_ptr(), ptr::null_mut());
        // SAFETY: a loaded kernel, which the driver takes for a function; it copies the one
        // structure that every kernel has for its parameter. The rest is by the contract.
        let result = unsafe {
            sys::cuLaunchKernel(function, blocks, 1, 1, threads, 1, 1, 0, on.raw, params, extra)
        };
        check(result, "cuLaunchKernel", kernel.text())
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        // SAFETY: a library that is loaded, and whose work has ended by the contract of launches.
        // A context that has failed already makes this fail too, and nothing is left to do then.
        let _ = unsafe { sys::cuLibraryUnload(self.library) };
    }
}
