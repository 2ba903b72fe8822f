//! Sealed memfds and their mappings: the only mmap of the project.
//!
//! A region's creator seals it against shrinking and growing, so no access to a mapping can ever
//! fault; whoever maps one from a descriptor checks those seals first. Nothing here hands out a
//! reference to plain shared memory: words are atomics, payload is a raw pointer.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::Arc;

use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{MemfdFlags, SealFlags};

use crate::layout::{
    COMPLETION_CONTROL_OFFSET, Completion, RegionHeader, SLOTS_MAX, SUBMISSION_CONTROL_OFFSET,
    Submission,
};
use crate::ring::{Consumer, Entry, Producer, RingMemory};
use crate::status::Status;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{tensor, version};

const PAGE_BYTES: u64 = 4096;
const HEADER_WORDS: usize = size_of::<RegionHeader>() / 8;
const ENDED_OFFSET: usize = std::mem::offset_of!(RegionHeader, ended);
const TAIL_OFFSET: usize = 0;
const HEAD_OFFSET: usize = 128;
const SLEEPING_OFFSET: usize = 256;

/// Why a descriptor is no region that can be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused.
    #[error("region: {0}")]
    Io(#[from] io::Error),
    /// The file could still change its size under a mapping.
    #[error("region: the memfd is not sealed against shrinking and growing")]
    NotSealed,
    /// The file is smaller than it is said to be.
    #[error("region: the memfd has {actual_bytes} bytes, not {expected_bytes}")]
    WrongSize {
        /// What the other side said.
        expected_bytes: u64,
        /// What the file has.
        actual_bytes: u64,
    },
    /// Magic or version does not fit.
    #[error("region: {0}")]
    Incompatible(Status),
    /// The header contradicts itself.
    #[error("region: the header's {0}")]
    BadGeometry(&'static str),
}

/// A mapped, sealed memfd.
#[derive(Debug)]
pub struct Mapping {
    map: MmapRaw,
}

impl Mapping {
    /// Creates a zeroed memfd of `bytes` bytes, seals its size and maps the first `mapped_bytes`.
    ///
    /// # Errors
    /// Whatever the kernel says, such as too many descriptors or no memory.
    pub fn create(name: &str, bytes: u64, mapped_bytes: u64) -> io::Result<(Mapping, OwnedFd)> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = rustix::fs::memfd_create(name, flags)?;
        rustix::fs::ftruncate(&fd, bytes)?;
        rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let file = File::from(fd);
        let mapping = Mapping::map(&file, mapped_bytes)?;
        Ok((mapping, file.into()))
    }

    /// Maps the first `mapped_bytes` of a memfd that another process created, after checking that
    /// it is sealed and has `bytes` bytes.
    ///
    /// # Errors
    /// [`RegionError::NotSealed`], [`RegionError::WrongSize`], or what the kernel says.
    pub fn attach(fd: OwnedFd, bytes: u64, mapped_bytes: u64) -> Result<Mapping, RegionError> {
        let seals = rustix::fs::fcntl_get_seals(&fd).map_err(io::Error::from)?;
        if !seals.contains(SealFlags::SHRINK | SealFlags::GROW) {
            return Err(RegionError::NotSealed);
        }
        let actual_bytes = rustix::fs::fstat(fd.as_fd()).map_err(io::Error::from)?.st_size as u64;
        if actual_bytes != bytes || mapped_bytes > bytes {
            return Err(RegionError::WrongSize { expected_bytes: bytes, actual_bytes });
        }
        Ok(Mapping::map(&File::from(fd), mapped_bytes)?)
    }

    fn map(file: &File, bytes: u64) -> io::Result<Mapping> {
        let bytes = usize::try_from(bytes).map_err(|_| io::ErrorKind::InvalidInput)?;
        Ok(Mapping { map: MmapOptions::new().len(bytes).map_raw(file)? })
    }

    /// Bytes that are mapped.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    /// The raw memory at `offset`, `bytes` long. Another process may write it at any time.
    ///
    /// # Panics
    /// If it is not inside the mapping: offsets are computed and checked before.
    pub fn payload(&self, offset: usize, bytes: usize) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.map.len()), "payload outside of the mapping");
        // SAFETY: mmap never returns null for a mapping of at least one byte, and `offset` was just
        // found to be inside it.
        unsafe { NonNull::new_unchecked(self.map.as_mut_ptr().add(offset)) }
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// If it is not aligned or not inside the mapping.
    pub fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        assert!(offset.is_multiple_of(4), "unaligned word");
        // SAFETY: inside the mapping by `payload`, aligned by the assert (mappings start on a page),
        // alive as long as `self`, and every process accesses these words atomically.
        unsafe { AtomicU32::from_ptr(self.payload(offset, 4).as_ptr().cast()) }
    }

    /// The word at byte `offset`.
    ///
    /// # Panics
    /// If it is not aligned or not inside the mapping.
    pub fn atomic_u64(&self, offset: usize) -> &AtomicU64 {
        assert!(offset.is_multiple_of(8), "unaligned word");
        // SAFETY: as in `atomic_u32`.
        unsafe { AtomicU64::from_ptr(self.payload(offset, 8).as_ptr().cast()) }
    }
}

/// A ring inside a mapping.
#[derive(Clone, Debug)]
pub struct MappedRing {
    words: NonNull<AtomicU64>,
    word_count: usize,
    control: NonNull<u8>,
    capacity: u32,
    /// Keeps the memory behind the pointers mapped.
    _mapping: Arc<Mapping>,
}

// SAFETY: the pointers lead to atomics in a mapping that this value keeps alive.
unsafe impl Send for MappedRing {}

impl MappedRing {
    /// The ring of entries `E` whose [`crate::layout::RingControl`] is at `control_offset` and whose
    /// entries start at `entries_offset`, both in bytes.
    ///
    /// # Panics
    /// If any of it is outside the mapping or unaligned: geometry is checked before.
    pub fn new<E: Entry>(
        mapping: &Arc<Mapping>,
        control_offset: usize,
        entries_offset: usize,
        capacity: u32,
    ) -> Self {
        assert!(control_offset.is_multiple_of(128) && entries_offset.is_multiple_of(64));
        let word_count = capacity as usize * E::WORDS;
        MappedRing {
            words: mapping.payload(entries_offset, word_count * 8).cast(),
            word_count,
            control: mapping.payload(control_offset, size_of::<crate::layout::RingControl>()),
            capacity,
            _mapping: Arc::clone(mapping),
        }
    }

    #[inline]
    fn cursor(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `new` checked that the whole control block is mapped and aligned; the mapping
        // lives as long as `self`; every process accesses the cursors atomically.
        unsafe { AtomicU32::from_ptr(self.control.as_ptr().add(offset).cast()) }
    }
}

impl RingMemory for MappedRing {
    #[inline]
    fn tail(&self) -> &AtomicU32 {
        self.cursor(TAIL_OFFSET)
    }
    #[inline]
    fn head(&self) -> &AtomicU32 {
        self.cursor(HEAD_OFFSET)
    }
    #[inline]
    fn sleeping(&self) -> &AtomicU32 {
        self.cursor(SLEEPING_OFFSET)
    }
    #[inline]
    fn capacity(&self) -> u32 {
        self.capacity
    }
    #[inline]
    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < self.word_count, "ring word out of range");
        // SAFETY: `new` checked that `word_count` words are mapped and aligned, the assert that this
        // is one of them; accessed atomically by every process.
        unsafe { self.words.add(index).as_ref() }
    }
}

/// Where everything in a session's region lies. Only checked ones exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes of one slot, a multiple of [`crate::layout::TENSOR_ALIGN`].
    pub slot_bytes: u64,
    /// Slots in the arena.
    pub slot_count: u32,
    /// Entries of the submission ring: room for a request and a cancellation of every slot.
    pub submission_capacity: u32,
    /// Entries of the completion ring: room for an answer to every slot.
    pub completion_capacity: u32,
    /// Bytes from the start of the region to the submission entries.
    pub submission_offset: u64,
    /// Bytes from the start of the region to the completion entries.
    pub completion_offset: u64,
    /// Bytes from the start of the region to the slots; rings and header end before it.
    pub arena_offset: u64,
    /// Bytes of the region, a multiple of the page size.
    pub region_bytes: u64,
}

impl Geometry {
    /// Lays out a region for `slot_count` slots of at least `slot_bytes`; `None` for zero slots, more
    /// than [`SLOTS_MAX`], or on overflow.
    pub fn new(slot_bytes: u64, slot_count: u32) -> Option<Geometry> {
        if slot_count == 0 || slot_count > SLOTS_MAX {
            return None;
        }
        let slot_bytes = tensor::align(slot_bytes.max(1))?;
        let completion_capacity = slot_count.next_power_of_two();
        let submission_capacity = 2 * completion_capacity;
        let submission_offset = PAGE_BYTES;
        let ring = |capacity: u32, entry: usize| u64::from(capacity) * entry as u64;
        let completion_offset =
            submission_offset + page(ring(submission_capacity, size_of::<Submission>()))?;
        let arena_offset =
            completion_offset + page(ring(completion_capacity, size_of::<Completion>()))?;
        let arena_bytes = slot_bytes.checked_mul(u64::from(slot_count))?;
        let region_bytes = page(arena_offset.checked_add(arena_bytes)?)?;
        Some(Geometry {
            slot_bytes,
            slot_count,
            submission_capacity,
            completion_capacity,
            submission_offset,
            completion_offset,
            arena_offset,
            region_bytes,
        })
    }

    /// Checks a header that another process wrote, for a client that is about to rely on it.
    ///
    /// # Errors
    /// [`RegionError::Incompatible`] or [`RegionError::BadGeometry`].
    pub fn of_header(header: &RegionHeader) -> Result<Geometry, RegionError> {
        version::compatible(header.magic, header.version).map_err(RegionError::Incompatible)?;
        let geometry = Geometry::new(header.slot_bytes, header.slot_count)
            .ok_or(RegionError::BadGeometry("slot_bytes and slot_count are out of range"))?;
        let same = geometry.header() == Self::fields(header);
        if same { Ok(geometry) } else { Err(RegionError::BadGeometry("offsets do not add up")) }
    }

    fn header(&self) -> [u64; 8] {
        [
            self.region_bytes,
            self.submission_offset,
            self.completion_offset,
            self.arena_offset,
            self.slot_bytes,
            u64::from(self.slot_count),
            u64::from(self.submission_capacity),
            u64::from(self.completion_capacity),
        ]
    }

    fn fields(header: &RegionHeader) -> [u64; 8] {
        [
            header.region_bytes,
            header.submission_offset,
            header.completion_offset,
            header.arena_offset,
            header.slot_bytes,
            u64::from(header.slot_count),
            u64::from(header.submission_capacity),
            u64::from(header.completion_capacity),
        ]
    }

    /// Bytes from the start of the region to slot `index`.
    ///
    /// # Panics
    /// If there is no such slot: indices are validated when they are copied out of a ring.
    pub fn slot_offset(&self, index: u32) -> u64 {
        assert!(index < self.slot_count, "slot outside of the arena");
        self.arena_offset + u64::from(index) * self.slot_bytes
    }
}

fn page(bytes: u64) -> Option<u64> {
    Some(bytes.checked_add(PAGE_BYTES - 1)? & !(PAGE_BYTES - 1))
}

/// How much of a region a process maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Header and rings: all that the daemon ever looks at.
    Rings,
    /// The arena too: clients and executors.
    Whole,
}

/// A session's region.
#[derive(Clone, Debug)]
pub struct Region {
    mapping: Arc<Mapping>,
    geometry: Geometry,
}

impl Region {
    /// Creates a region, maps its rings and publishes its header, the version last.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create(geometry: Geometry) -> io::Result<(Region, OwnedFd)> {
        let (mapping, fd) =
            Mapping::create("gpulet-region", geometry.region_bytes, geometry.arena_offset)?;
        let header = RegionHeader {
            magic: version::MAGIC,
            features: version::FEATURES,
            region_bytes: geometry.region_bytes,
            submission_offset: geometry.submission_offset,
            completion_offset: geometry.completion_offset,
            arena_offset: geometry.arena_offset,
            slot_bytes: geometry.slot_bytes,
            slot_count: geometry.slot_count,
            submission_capacity: geometry.submission_capacity,
            completion_capacity: geometry.completion_capacity,
            ..bytemuck::Zeroable::zeroed()
        };
        let words: [u64; HEADER_WORDS] = bytemuck::cast(header);
        for (index, word) in words.into_iter().enumerate() {
            mapping.atomic_u64(index * 8).store(word, Ordering::Relaxed);
        }
        // Release: pairs with the acquire in `attach`; whoever sees a version sees the rest.
        mapping.atomic_u32(0).store(version::VERSION, Ordering::Release);
        Ok((Region { mapping: Arc::new(mapping), geometry }, fd))
    }

    /// Maps a region that another process created and said to have `region_bytes`, reading and
    /// checking its header.
    ///
    /// # Errors
    /// Every [`RegionError`].
    pub fn attach(fd: OwnedFd, region_bytes: u64) -> Result<Region, RegionError> {
        if region_bytes < PAGE_BYTES {
            return Err(RegionError::BadGeometry("region_bytes is below a page"));
        }
        let mapping = Mapping::attach(fd, region_bytes, region_bytes)?;
        // Acquire: pairs with the release in `create`.
        let version = mapping.atomic_u32(0).load(Ordering::Acquire);
        let mut words = [0u64; HEADER_WORDS];
        for (index, word) in words.iter_mut().enumerate() {
            *word = mapping.atomic_u64(index * 8).load(Ordering::Relaxed);
        }
        let mut header: RegionHeader = bytemuck::cast(words);
        header.version = version;
        let geometry = Geometry::of_header(&header)?;
        if geometry.region_bytes != region_bytes {
            return Err(RegionError::BadGeometry("region_bytes differs from the welcome"));
        }
        Ok(Region { mapping: Arc::new(mapping), geometry })
    }

    /// Maps a region whose geometry is known from a trusted side, never looking at its header, which
    /// the client may have written over since.
    ///
    /// # Errors
    /// [`RegionError::NotSealed`], [`RegionError::WrongSize`], or what the kernel says.
    pub fn attach_known(
        fd: OwnedFd,
        geometry: Geometry,
        part: Part,
    ) -> Result<Region, RegionError> {
        let mapped_bytes = match part {
            Part::Rings => geometry.arena_offset,
            Part::Whole => geometry.region_bytes,
        };
        let mapping = Mapping::attach(fd, geometry.region_bytes, mapped_bytes)?;
        Ok(Region { mapping: Arc::new(mapping), geometry })
    }

    /// Where everything lies.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The start of slot `index`, [`Geometry::slot_bytes`] long.
    ///
    /// # Panics
    /// If there is no such slot, or only the rings are mapped.
    pub fn slot(&self, index: u32) -> NonNull<u8> {
        let (offset, bytes) = (self.geometry.slot_offset(index), self.geometry.slot_bytes);
        self.mapping.payload(offset as usize, bytes as usize)
    }

    /// Tells the client, in the region, that its session is over.
    pub fn end(&self, status: Status) {
        // Relaxed: a lone word that nothing else hangs on.
        self.mapping.atomic_u32(ENDED_OFFSET).store(status as i32 as u32, Ordering::Relaxed);
    }

    /// What [`end`](Self::end) stored, [`Status::Ok`] before; an unknown number reads as
    /// [`Status::Internal`].
    pub fn ended(&self) -> Status {
        let number = self.mapping.atomic_u32(ENDED_OFFSET).load(Ordering::Relaxed) as i32;
        Status::from_number(number).unwrap_or(Status::Internal)
    }

    /// The client's end of the submission ring. One only.
    pub fn submission_producer(&self) -> Producer<MappedRing, Submission> {
        Producer::new(self.submission_ring())
    }

    /// The daemon's end of the submission ring. One only.
    pub fn submission_consumer(&self) -> Consumer<MappedRing, Submission> {
        Consumer::new(self.submission_ring())
    }

    /// The daemon's end of the completion ring. One only.
    pub fn completion_producer(&self) -> Producer<MappedRing, Completion> {
        Producer::new(self.completion_ring())
    }

    /// The client's end of the completion ring. One only.
    pub fn completion_consumer(&self) -> Consumer<MappedRing, Completion> {
        Consumer::new(self.completion_ring())
    }

    fn submission_ring(&self) -> MappedRing {
        let Geometry { submission_offset, submission_capacity, .. } = self.geometry;
        MappedRing::new::<Submission>(
            &self.mapping,
            SUBMISSION_CONTROL_OFFSET,
            submission_offset as usize,
            submission_capacity,
        )
    }

    fn completion_ring(&self) -> MappedRing {
        let Geometry { completion_offset, completion_capacity, .. } = self.geometry;
        MappedRing::new::<Completion>(
            &self.mapping,
            COMPLETION_CONTROL_OFFSET,
            completion_offset as usize,
            completion_capacity,
        )
    }
}
