//! The hostile client: it writes whatever it likes wherever it likes in what the daemon has mapped.

use arbitrary::{Result, Unstructured};
use gpulet_abi::layout::{
    COMPLETION_CONTROL_OFFSET, SUBMISSION_CONTROL_OFFSET, SUBMIT_CANCEL, SUBMIT_INFER, Submission,
};
use gpulet_abi::region::{Geometry, Mapping};
use gpulet_abi::status::Status;
use gpulet_abi::sync::{AtomicU32, Ordering};
use gpulet_daemon::dispatch::Dispatcher;
use gpulet_daemon::session::Session;

const HEAD_OFFSET: usize = 128;
const ENDED_OFFSET: usize = std::mem::offset_of!(gpulet_abi::layout::RegionHeader, ended);
const ENTRY_WORDS: usize = size_of::<Submission>() / 8;

pub(super) struct Hostile {
    pub index: u32,
    id: u64,
    geometry: Geometry,
    memory: Mapping,
    /// Where a client of good faith would write its next entry.
    tail: u32,
    /// The last one that was written properly.
    last: Submission,
    /// Entries that the daemon has read: what it last stored, whatever stands there now.
    read: u32,
}

impl Hostile {
    pub fn new(dispatcher: &mut Dispatcher, geometry: Geometry) -> Hostile {
        let (index, descriptors) =
            dispatcher.sessions.create((1001, 2), geometry).expect("memory and descriptors");
        let bytes = geometry.region_bytes;
        let memory =
            Mapping::attach(descriptors.region, bytes, bytes).expect("sealed, and of that size");
        let id = dispatcher.sessions.get(index).expect("just created").id;
        let last = bytemuck::Zeroable::zeroed();
        Hostile { index, id, geometry, memory, tail: 0, last, read: 0 }
    }

    /// Its session, until it is forgotten.
    pub fn session<'a>(&self, dispatcher: &'a Dispatcher) -> Option<&'a Session> {
        dispatcher.sessions.get(self.index).filter(|session| session.id == self.id)
    }

    /// What the region says of the session's end.
    pub fn ended(&self) -> Status {
        let number = self.memory.atomic_u32(ENDED_OFFSET).load(Ordering::Relaxed) as i32;
        Status::from_number(number).unwrap_or(Status::Internal)
    }

    /// Submissions that mostly look right, in neighbouring slots.
    pub fn submit(&mut self, input: &mut Unstructured<'_>, now_ns: u64) -> Result<()> {
        let count = input.int_in_range(1..=self.geometry.slot_count)?;
        // One beyond the arena, too.
        let first = input.int_in_range(0..=self.geometry.slot_count)?;
        let entry = Submission {
            kind: match input.int_in_range(0..=15u8)? {
                0 => input.arbitrary()?,
                1 => SUBMIT_CANCEL,
                _ => SUBMIT_INFER,
            },
            model: input.int_in_range(0..=9)?,
            slot: first,
            generation: input.int_in_range(0..=3)?,
            rows: match input.int_in_range(0..=15u8)? {
                14 => 0,
                15 => input.arbitrary()?,
                rows => 1 + u32::from(rows),
            },
            reserved0: 0,
            deadline_ns: match input.int_in_range(0..=7u8)? {
                0 => input.arbitrary()?,
                1 | 2 => 0,
                3 => u64::MAX,
                _ => now_ns.saturating_add(1 << input.int_in_range(0..=40u8)?),
            },
            user_data: input.arbitrary::<u8>()?.into(),
            reserved1: [u64::from(input.ratio(1, 64)?), 0, 0],
        };
        for offset in 0..count {
            let slot = if count == 1 { first } else { (first + offset) % self.geometry.slot_count };
            self.push(&Submission { slot, ..entry });
        }
        Ok(())
    }

    /// Takes back the last submission, or almost it.
    pub fn cancel(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let generation = self.last.generation ^ u32::from(input.ratio(1, 8)?);
        self.push(&Submission { kind: SUBMIT_CANCEL, generation, ..self.last });
        Ok(())
    }

    fn push(&mut self, entry: &Submission) {
        self.last = *entry;
        let index = self.tail & (self.geometry.submission_capacity - 1);
        let start = self.geometry.submission_offset as usize + index as usize * ENTRY_WORDS * 8;
        let words: [u64; ENTRY_WORDS] = bytemuck::cast(*entry);
        for (position, word) in words.into_iter().enumerate() {
            self.memory.atomic_u64(start + position * 8).store(word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        self.store_tail(self.tail);
    }

    /// Any word of the header, the cursors and the rings.
    pub fn poke(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let rings = self.geometry.submission_offset..self.geometry.arena_offset;
        let word = if input.arbitrary()? {
            input.int_in_range(0..=127u64)?
        } else {
            input.int_in_range(rings.start / 8..=rings.end / 8 - 1)?
        };
        let value =
            if input.arbitrary()? { input.arbitrary()? } else { input.int_in_range(0..=9)? };
        self.memory.atomic_u64(word as usize * 8).store(value, Ordering::Relaxed);
        Ok(())
    }

    /// A cursor that was never earned.
    pub fn move_tail(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let by = i32::from(input.arbitrary::<i8>()?);
        self.tail = self.tail.wrapping_add_signed(by << input.int_in_range(0..=24u8)?);
        self.store_tail(self.tail);
        Ok(())
    }

    /// The same for answers.
    pub fn move_head(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        let by = i32::from(input.arbitrary::<i8>()?) << input.int_in_range(0..=24u8)?;
        let head = self.memory.atomic_u32(COMPLETION_CONTROL_OFFSET + HEAD_OFFSET);
        head.store(head.load(Ordering::Relaxed).wrapping_add_signed(by), Ordering::Relaxed);
        Ok(())
    }

    /// Puts the daemon's own cursor back, which it never reads, so that [`check_read`] can.
    ///
    /// [`check_read`]: Self::check_read
    pub fn restore_read(&self) {
        self.daemon_head().store(self.read, Ordering::Relaxed);
    }

    /// A turn cannot read more entries than the ring has.
    pub fn check_read(&mut self) {
        let read = self.daemon_head().load(Ordering::Relaxed);
        let count = read.wrapping_sub(self.read);
        assert!(count <= self.geometry.submission_capacity, "{count} entries out of nowhere");
        self.read = read;
    }

    fn daemon_head(&self) -> &AtomicU32 {
        self.memory.atomic_u32(SUBMISSION_CONTROL_OFFSET + HEAD_OFFSET)
    }

    /// Takes all answers, as it should.
    pub fn reap(&mut self) {
        let tail = self.memory.atomic_u32(COMPLETION_CONTROL_OFFSET).load(Ordering::Acquire);
        let head = self.memory.atomic_u32(COMPLETION_CONTROL_OFFSET + HEAD_OFFSET);
        head.store(tail, Ordering::Release);
    }

    fn store_tail(&self, tail: u32) {
        self.memory.atomic_u32(SUBMISSION_CONTROL_OFFSET).store(tail, Ordering::Release);
    }
}
