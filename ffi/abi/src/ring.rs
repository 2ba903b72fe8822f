//! Rings of fixed entries with one writer and one reader, over memory that another process may
//! scribble on. The protocol is told in `include/gpulet/abi.h`.
//!
//! Each acquire load names its release partner by a letter:
//! * **T**: `tail`, stored by [`Producer::commit`], loaded by the consumer: entries are complete.
//! * **H**: `head`, stored by [`Consumer::release`], loaded by the producer: entries are free.
//! * **S**: the two full fences around `sleeping`, in [`Producer::commit`] and
//!   [`Consumer::prepare_sleep`]: of a producer that publishes and a consumer that goes to sleep at
//!   the same time, at least one sees the other.
//!
//! Entries are moved word by word with relaxed atomics, so that a hostile peer that writes an entry
//! while it is copied gets a torn entry, never undefined behaviour. Both ends trust only their own
//! copy of their own cursor; the other's cursor is checked against the capacity each time.

use std::marker::PhantomData;

use bytemuck::Pod;

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// What may travel in a ring: plain data, eight-byte aligned, in whole words.
pub trait Entry: Pod {
    /// Eight-byte words of one entry; does not compile for a type that is not made of such.
    const WORDS: usize = {
        assert!(align_of::<Self>() == 8 && size_of::<Self>().is_multiple_of(8));
        size_of::<Self>() / 8
    };
}

/// Where a ring lives. Implemented by a mapped region, and by plain vectors in tests.
pub trait RingMemory {
    /// Entries ever written.
    fn tail(&self) -> &AtomicU32;
    /// Entries ever read.
    fn head(&self) -> &AtomicU32;
    /// Whether the consumer is, or is about to be, asleep.
    fn sleeping(&self) -> &AtomicU32;
    /// Entries the ring holds: a power of two, constant.
    fn capacity(&self) -> u32;
    /// The payload word at `index`, below `capacity * WORDS`.
    fn word(&self, index: usize) -> &AtomicU64;
}

/// The other end's cursor is further away than the ring is long: it wrote what the ABI forbids.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring cursor of the other side is out of range")]
pub struct CursorOutOfRange;

/// Why an entry was not staged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PushError {
    /// Nothing was read since the ring was filled.
    #[error("the ring is full")]
    Full,
    /// See [`CursorOutOfRange`].
    #[error(transparent)]
    OutOfRange(#[from] CursorOutOfRange),
}

/// The writing end. Entries are staged by [`push`](Self::push) and become visible together by
/// [`commit`](Self::commit).
#[derive(Debug)]
pub struct Producer<M, E> {
    memory: M,
    capacity: u32,
    /// Next entry to stage; `committed` up to here after a commit.
    tail: u32,
    committed: u32,
    /// The consumer's cursor as last seen, so that a line is fetched only when the ring looks full.
    head_seen: u32,
    entry: PhantomData<E>,
}

impl<M: RingMemory, E: Entry> Producer<M, E> {
    /// The writing end of a fresh ring (all cursors zero). There must be one only.
    pub fn new(memory: M) -> Self {
        let capacity = memory.capacity();
        assert!(capacity.is_power_of_two(), "the geometry was checked before");
        Producer { memory, capacity, tail: 0, committed: 0, head_seen: 0, entry: PhantomData }
    }

    /// Entries that can be staged now.
    ///
    /// # Errors
    /// [`CursorOutOfRange`] if the consumer's cursor is impossible.
    #[inline]
    pub fn free(&mut self) -> Result<u32, CursorOutOfRange> {
        // Acquire: pairs with H, so that the consumer's reads of old entries are over.
        let head = self.memory.head().load(Ordering::Acquire);
        let unread = self.tail.wrapping_sub(head);
        if unread > self.capacity {
            return Err(CursorOutOfRange);
        }
        // Only a good one is kept: what is computed from it later must not wrap.
        self.head_seen = head;
        Ok(self.capacity - unread)
    }

    /// Whether `count` entries can be staged; looks at the consumer's cursor only when the last look
    /// does not suffice.
    ///
    /// # Errors
    /// [`CursorOutOfRange`] if the consumer's cursor is impossible.
    #[inline]
    pub fn has_room(&mut self, count: u32) -> Result<bool, CursorOutOfRange> {
        let known = self.capacity - self.tail.wrapping_sub(self.head_seen);
        Ok(known >= count || self.free()? >= count)
    }

    /// Stages one entry; the consumer sees it after [`commit`](Self::commit).
    ///
    /// # Errors
    /// [`PushError::Full`], or [`PushError::OutOfRange`] if the consumer's cursor is impossible.
    #[inline]
    pub fn push(&mut self, entry: &E) -> Result<(), PushError> {
        let looks_full = self.tail.wrapping_sub(self.head_seen) >= self.capacity;
        if looks_full && self.free()? == 0 {
            return Err(PushError::Full);
        }
        let first = (self.tail & (self.capacity - 1)) as usize * E::WORDS;
        let words: &[u64] = bytemuck::cast_slice(std::slice::from_ref(entry));
        for (offset, word) in words.iter().enumerate() {
            self.memory.word(first + offset).store(*word, Ordering::Relaxed);
        }
        self.tail = self.tail.wrapping_add(1);
        Ok(())
    }

    /// Forgets what was staged since the last commit.
    pub fn abort(&mut self) {
        self.tail = self.committed;
    }

    /// Publishes everything staged. Returns whether the consumer sleeps and must be signalled.
    #[inline]
    #[must_use = "a sleeping consumer must be signalled"]
    pub fn commit(&mut self) -> bool {
        if self.tail == self.committed {
            return false;
        }
        self.committed = self.tail;
        // Release T: the words stored above are visible to whoever acquires this tail.
        self.memory.tail().store(self.tail, Ordering::Release);
        // Fence S: either the consumer's re-check sees this tail, or we see its flag.
        fence(Ordering::SeqCst);
        let sleeping = self.memory.sleeping();
        let asleep = sleeping.load(Ordering::Relaxed) != 0;
        if asleep {
            sleeping.store(0, Ordering::Relaxed);
        }
        asleep
    }

    /// Tells that something will be published soon. Returns whether the consumer sleeps and must be
    /// signalled.
    #[must_use = "a sleeping consumer must be signalled"]
    pub fn announce(&self) -> bool {
        let sleeping = self.memory.sleeping();
        // No fence: a consumer that is missed here is signalled by the commit.
        let asleep = sleeping.load(Ordering::Relaxed) != 0;
        if asleep {
            sleeping.store(0, Ordering::Relaxed);
        }
        asleep
    }

    /// The memory this ring lives in.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}

/// The reading end. Entries are copied out by [`pop`](Self::pop) and given back together by
/// [`release`](Self::release).
#[derive(Debug)]
pub struct Consumer<M, E> {
    memory: M,
    capacity: u32,
    head: u32,
    released: u32,
    /// The producer's cursor as last seen.
    tail_seen: u32,
    entry: PhantomData<E>,
}

impl<M: RingMemory, E: Entry> Consumer<M, E> {
    /// The reading end of a fresh ring (all cursors zero). There must be one only.
    pub fn new(memory: M) -> Self {
        let capacity = memory.capacity();
        assert!(capacity.is_power_of_two(), "the geometry was checked before");
        Consumer { memory, capacity, head: 0, released: 0, tail_seen: 0, entry: PhantomData }
    }

    /// Looks for new entries; returns how many are unread.
    ///
    /// # Errors
    /// [`CursorOutOfRange`] if the producer's cursor is impossible.
    #[inline]
    pub fn refresh(&mut self) -> Result<u32, CursorOutOfRange> {
        // Acquire: pairs with T, so that the words of the entries are there.
        let tail = self.memory.tail().load(Ordering::Acquire);
        // The producer may count on what was released, not on what was only popped.
        if tail.wrapping_sub(self.released) > self.capacity {
            return Err(CursorOutOfRange);
        }
        // Only a good one is kept: `pop` reads entries up to it without another look.
        self.tail_seen = tail;
        Ok(tail.wrapping_sub(self.head))
    }

    /// Copies the next entry out.
    ///
    /// # Errors
    /// [`CursorOutOfRange`] if the producer's cursor is impossible.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<E>, CursorOutOfRange> {
        if self.head == self.tail_seen && self.refresh()? == 0 {
            return Ok(None);
        }
        let first = (self.head & (self.capacity - 1)) as usize * E::WORDS;
        let mut entry = E::zeroed();
        let words: &mut [u64] = bytemuck::cast_slice_mut(std::slice::from_mut(&mut entry));
        for (offset, word) in words.iter_mut().enumerate() {
            *word = self.memory.word(first + offset).load(Ordering::Relaxed);
        }
        self.head = self.head.wrapping_add(1);
        Ok(Some(entry))
    }

    /// Gives everything popped back to the producer.
    #[inline]
    pub fn release(&mut self) {
        if self.head != self.released {
            self.released = self.head;
            // Release H: our loads of the entries' words come before this head.
            self.memory.head().store(self.head, Ordering::Release);
        }
    }

    /// Announces sleep, then looks once more. Returns whether it is safe to sleep; if entries came
    /// in between, the announcement is taken back and `false` is returned.
    ///
    /// # Errors
    /// [`CursorOutOfRange`] if the producer's cursor is impossible.
    pub fn prepare_sleep(&mut self) -> Result<bool, CursorOutOfRange> {
        self.memory.sleeping().store(1, Ordering::Relaxed);
        // Fence S: either we see the producer's tail now, or it sees our flag.
        fence(Ordering::SeqCst);
        let quiet = self.refresh()? == 0;
        if !quiet {
            self.awake();
        }
        Ok(quiet)
    }

    /// Takes the announcement of sleep back: signals are not needed any more.
    pub fn awake(&self) {
        self.memory.sleeping().store(0, Ordering::Relaxed);
    }

    /// The memory this ring lives in.
    pub fn memory(&self) -> &M {
        &self.memory
    }
}
