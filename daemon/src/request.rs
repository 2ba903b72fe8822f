//! A request as the dispatcher sees it, from its validation to its completion.

use bytemuck::Zeroable;
use gpulet_abi::layout::{COMPLETION_LATE, Completion, Submission};
use gpulet_abi::status::Status;
use gpulet_plan::queue::Ticket;

/// Which request: at most one is in flight in a slot, so session and slot name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId {
    /// Index in [`crate::session::Sessions`].
    pub session: u32,
    /// Slot in that session's arena.
    pub slot: u32,
}

/// Where a request is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// In its model's queue.
    Queued(Ticket),
    /// In a batch that an executor has.
    Running,
}

/// What may be the fault of a request: what it has to itself when it runs again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Suspicion {
    /// Nothing.
    #[default]
    None,
    /// The end of its executor.
    Process,
    /// The fault of a device.
    Device,
}

/// A submission that was copied out of the ring and found good.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Id of the model, an index in [`crate::models::Models`].
    pub model: u32,
    /// Of the slot, echoed.
    pub generation: u32,
    /// At least one, at most the model's `max_batch`.
    pub rows: u32,
    /// What went down while it ran there.
    pub suspicion: Suspicion,
    /// Echoed.
    pub user_data: u64,
    /// Absolute; never zero.
    pub deadline_ns: u64,
    /// When the dispatcher took it.
    pub taken_ns: u64,
    /// Where it is.
    pub stage: Stage,
}

/// How a request ended, beyond its status.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing {
    /// From being taken to its batch being sent.
    pub queue_ns: u64,
    /// From there to the batch's end.
    pub exec_ns: u64,
    /// Rows of the batch; 0 if it never ran.
    pub batch_rows: u32,
    /// Of the plan it ran under.
    pub epoch: u32,
}

/// The completion of a submission that is answered at once.
pub fn answer_now(entry: &Submission, status: Status, now_ns: u64) -> Completion {
    Completion {
        status: status as i32,
        slot: entry.slot,
        generation: entry.generation,
        rows: entry.rows,
        model: entry.model,
        user_data: entry.user_data,
        finished_ns: now_ns,
        ..Zeroable::zeroed()
    }
}

impl Request {
    /// The completion of this request.
    pub fn answer(&self, slot: u32, status: Status, timing: Timing, now_ns: u64) -> Completion {
        let late = status == Status::Ok && now_ns > self.deadline_ns;
        Completion {
            status: status as i32,
            flags: if late { COMPLETION_LATE } else { 0 },
            slot,
            generation: self.generation,
            rows: self.rows,
            model: self.model,
            user_data: self.user_data,
            queue_ns: timing.queue_ns,
            exec_ns: timing.exec_ns,
            finished_ns: now_ns,
            batch_rows: timing.batch_rows,
            epoch: timing.epoch,
        }
    }
}
