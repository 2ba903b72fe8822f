//! The client's slots. A slot is claimed, filled, submitted, completed and released; its generation
//! counts its uses, so that a handle of an earlier use is recognised.
//!
//! Only the client allocates slots: the daemon merely remembers which are in flight.

use crate::status::Status;

/// Where a slot is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotState {
    /// Nobody's.
    Free,
    /// The program's, being filled.
    Claimed,
    /// The daemon's.
    Submitted,
    /// The program's again, holding results.
    Completed,
}

/// One use of one slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotHandle {
    /// Which slot of the arena.
    pub index: u32,
    /// Which use of it.
    pub generation: u32,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    state: SlotState,
    generation: u32,
}

/// All slots of a session. Allocates only when it is made.
#[derive(Debug)]
pub struct SlotPool {
    slots: Vec<Slot>,
    /// Last released, first claimed: its memory is still in the caches.
    free: Vec<u32>,
}

impl SlotPool {
    /// `slot_count` free slots; the first claim gets slot 0.
    pub fn new(slot_count: u32) -> SlotPool {
        let slots = vec![Slot { state: SlotState::Free, generation: 1 }; slot_count as usize];
        SlotPool { slots, free: (0..slot_count).rev().collect() }
    }

    /// Slots that can be claimed now.
    pub fn free_count(&self) -> usize {
        self.free.len()
    }

    /// Takes a free slot; `None` if there is none.
    pub fn claim(&mut self) -> Option<SlotHandle> {
        let index = self.free.pop()?;
        let slot = &mut self.slots[index as usize];
        slot.state = SlotState::Claimed;
        Some(SlotHandle { index, generation: slot.generation })
    }

    /// Where the use of a slot that `handle` names is in its life.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for no such slot, [`Status::Stale`] for an earlier use.
    pub fn state(&self, handle: SlotHandle) -> Result<SlotState, Status> {
        let slot = self.slots.get(handle.index as usize).ok_or(Status::InvalidArgument)?;
        let current = slot.generation == handle.generation && slot.state != SlotState::Free;
        if current { Ok(slot.state) } else { Err(Status::Stale) }
    }

    /// Moves a slot from one state to the next.
    ///
    /// # Errors
    /// Those of [`state`](Self::state), and [`Status::WrongState`] if it is not in `from`.
    pub fn advance(
        &mut self,
        handle: SlotHandle,
        from: SlotState,
        to: SlotState,
    ) -> Result<(), Status> {
        if self.state(handle)? != from {
            return Err(Status::WrongState);
        }
        self.slots[handle.index as usize].state = to;
        Ok(())
    }

    /// Gives a claimed or completed slot back.
    ///
    /// # Errors
    /// Those of [`state`](Self::state), and [`Status::WrongState`] while the daemon has it.
    pub fn release(&mut self, handle: SlotHandle) -> Result<(), Status> {
        if self.state(handle)? == SlotState::Submitted {
            return Err(Status::WrongState);
        }
        let slot = &mut self.slots[handle.index as usize];
        // Zero is never a generation, so a zeroed handle is always stale.
        slot.generation = slot.generation.wrapping_add(1).max(1);
        slot.state = SlotState::Free;
        self.free.push(handle.index);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_released_handle_is_stale() {
        let mut pool = SlotPool::new(1);
        let first = pool.claim().unwrap();
        assert_eq!(pool.claim(), None);
        pool.release(first).unwrap();
        assert_eq!(pool.release(first), Err(Status::Stale));
        let second = pool.claim().unwrap();
        assert_eq!(second.index, first.index);
        assert_eq!(pool.state(first), Err(Status::Stale));
        assert_eq!(
            pool.advance(second, SlotState::Submitted, SlotState::Completed),
            Err(Status::WrongState)
        );
        let zeroed = SlotHandle { index: 0, generation: 0 };
        assert_eq!(pool.state(zeroed), Err(Status::Stale));
        let outside = SlotHandle { index: 1, generation: 1 };
        assert_eq!(pool.state(outside), Err(Status::InvalidArgument));
    }

    proptest! {
        #[test]
        fn no_slot_is_ever_claimed_twice(steps in prop::collection::vec((0u8..4, 0usize..8), 1..200)) {
            let mut pool = SlotPool::new(4);
            let mut held: Vec<SlotHandle> = Vec::new();
            for (step, pick) in steps {
                if step == 0 {
                    if let Some(handle) = pool.claim() {
                        prop_assert!(held.iter().all(|other| other.index != handle.index));
                        held.push(handle);
                    } else {
                        prop_assert_eq!(held.len(), 4);
                    }
                } else if !held.is_empty() {
                    let handle = held[pick % held.len()];
                    match step {
                        1 => drop(pool.advance(handle, SlotState::Claimed, SlotState::Submitted)),
                        2 => drop(pool.advance(handle, SlotState::Submitted, SlotState::Completed)),
                        _ => {
                            if pool.release(handle).is_ok() {
                                held.retain(|other| *other != handle);
                            }
                        }
                    }
                }
                prop_assert_eq!(pool.free_count() + held.len(), 4);
            }
        }
    }
}
