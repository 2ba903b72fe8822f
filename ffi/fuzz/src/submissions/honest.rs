//! The honest client: whatever the other one does, its requests are answered.

use std::collections::HashMap;

use gpulet_abi::arena::{SlotHandle, SlotPool};
use gpulet_abi::layout::{Completion, SUBMIT_INFER, Submission};
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_daemon::dispatch::Dispatcher;

use super::world::Ids;

pub(super) struct Honest {
    pub index: u32,
    slots: SlotPool,
    submissions: Producer<MappedRing, Submission>,
    completions: Consumer<MappedRing, Completion>,
    /// What was submitted and not answered, by its number.
    asked: HashMap<u64, SlotHandle>,
    /// The number of the null request that the next turn must answer.
    null: Option<u64>,
    next: u64,
    /// Submissions that the daemon cannot have read yet.
    unread_count: u32,
}

impl Honest {
    /// Also the most submissions that can lie unread.
    pub const SLOT_COUNT: u32 = 4;

    pub fn new(dispatcher: &mut Dispatcher) -> Honest {
        let geometry = Geometry::new(4096, Self::SLOT_COUNT).expect("small, and not zero");
        let (index, descriptors) =
            dispatcher.sessions.create((1000, 1), geometry).expect("memory and descriptors");
        let region = Region::attach(descriptors.region, geometry.region_bytes)
            .expect("the daemon's own header");
        Honest {
            index,
            slots: SlotPool::new(Self::SLOT_COUNT),
            submissions: region.submission_producer(),
            completions: region.completion_consumer(),
            asked: HashMap::new(),
            null: None,
            next: 0,
            unread_count: 0,
        }
    }

    /// Submits a request that the very next turn must answer, if a slot is free and that turn will
    /// come as far as this request.
    pub fn ask_null(&mut self, model: u32, entries_per_turn_max: u32) {
        if self.unread_count < entries_per_turn_max {
            self.null = self.put(model, 0, 1);
        }
    }

    /// Submits a request that an executor would run.
    pub fn submit(&mut self, ids: &Ids, now_ns: u64, rows: u32) {
        let deadline_ns =
            if rows.is_multiple_of(2) { 0 } else { now_ns.saturating_add(40_000_000) };
        self.put(ids.warm, deadline_ns, rows);
    }

    fn put(&mut self, model: u32, deadline_ns: u64, rows: u32) -> Option<u64> {
        let handle = self.slots.claim()?;
        self.next += 1;
        let entry = Submission {
            kind: SUBMIT_INFER,
            model,
            slot: handle.index,
            generation: handle.generation,
            rows,
            deadline_ns,
            user_data: self.next,
            ..bytemuck::Zeroable::zeroed()
        };
        self.submissions.push(&entry).expect("the ring has room for every slot");
        let _ = self.submissions.commit();
        self.unread_count += 1;
        self.asked.insert(self.next, handle);
        Some(self.next)
    }

    /// Takes every answer there is after a turn; that of the null request must be among them.
    pub fn take_answers(&mut self, draining: bool, entries_per_turn_max: u32) {
        self.unread_count = self.unread_count.saturating_sub(entries_per_turn_max);
        let null = self.null.take();
        let mut null_status = None;
        while let Some(answer) = self.next_answer() {
            if null == Some(answer.user_data) {
                null_status = Some(answer.status);
            }
        }
        let expected = if draining { Status::Draining } else { Status::Ok };
        assert_eq!(null_status, null.map(|_| expected as i32), "null is answered at once");
    }

    fn next_answer(&mut self) -> Option<Completion> {
        let answer = self.completions.pop().expect("the daemon's cursor is in range")?;
        self.completions.release();
        let handle = self.asked.remove(&answer.user_data).expect("answered twice, or never asked");
        assert_eq!((answer.slot, answer.generation), (handle.index, handle.generation));
        assert!(Status::from_number(answer.status).is_some());
        self.slots.release(handle).expect("claimed when it was asked");
        Some(answer)
    }

    pub fn outstanding(&self) -> usize {
        self.asked.len()
    }
}
