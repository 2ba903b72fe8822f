//! The dispatcher: takes submissions, keeps the queues, hands out batches, posts completions.
//!
//! It is called in bounded turns by [`crate::server`], touches nothing but memory and doorbells, and
//! allocates nothing on the way of a request. It never looks at payload: only rings are mapped here.

mod batches;
mod lending;
mod quarantine;
mod reports;
#[cfg(test)]
mod stalls;
mod submissions;

use gpulet_abi::status::Status;
use gpulet_plan::policy::{BATCH_REQUESTS_MAX, Decision, decide};
use gpulet_plan::profile::LatencyProfile;
use gpulet_plan::queue::Entry;
use tracing::info;

use crate::executor::Executors;
use crate::models::{Instance, Models};
use crate::request::{RequestId, Timing};
use crate::session::Sessions;

/// Requests of a model that gpulets can have at a time. So many can come back to its queue from
/// executors that were lost, beyond the queue's limit.
pub const REQUEUE_MAX: u32 = 64 * BATCH_REQUESTS_MAX;

/// So long a batch that was slow is held against its size, where none near that size ran since.
const FADE_NS: u64 = 250_000_000;

/// Everything a request passes through.
#[derive(Debug)]
pub struct Dispatcher {
    /// Who asks.
    pub sessions: Sessions,
    /// What they ask for.
    pub models: Models,
    /// Who answers.
    pub executors: Executors,
    /// Takes nothing new: submissions are answered with [`Status::Draining`].
    pub draining: bool,
    /// Submissions taken from one session a turn.
    pub entries_per_turn_max: u32,
    /// Gpulets wait for another row where that pays.
    pub defer: bool,
    /// Sessions whose client broke a rule since the last turn, and which rule.
    pub violations: Vec<(u32, &'static str)>,
    /// The last turn took reports.
    pub answered: bool,
    /// Requests in queues.
    queued_count: u32,
    /// Completions could not be posted for lack of room: look again soon, no bell will ring.
    stalled: bool,
    next_batch: u64,
    /// When the first wait for another row ends; `u64::MAX` if no gpulet waits.
    due_ns: u64,
    /// When slow batches fade next.
    fade_ns: u64,
    /// A request in flight may be suspected of something.
    suspects: bool,
    /// The requests of the batch that is being closed; empty otherwise.
    closing: Vec<Entry<RequestId>>,
}

impl Dispatcher {
    /// A dispatcher without sessions, models or executors.
    pub fn new(executors: Executors, entries_per_turn_max: u32) -> Dispatcher {
        Dispatcher {
            sessions: Sessions::default(),
            models: Models::default(),
            executors,
            draining: false,
            entries_per_turn_max,
            defer: false,
            violations: Vec::with_capacity(64),
            answered: false,
            queued_count: 0,
            stalled: false,
            next_batch: 0,
            due_ns: u64::MAX,
            fade_ns: 0,
            suspects: false,
            closing: Vec::with_capacity(BATCH_REQUESTS_MAX as usize),
        }
    }

    /// One bounded turn. Returns how many submissions, reports and batches it handled.
    pub fn turn(&mut self, now_ns: u64) -> usize {
        if now_ns >= self.fade_ns {
            self.fade(now_ns);
        }
        let mut work = self.take_submissions(now_ns);
        let reports = self.take_reports(now_ns);
        self.answered = reports > 0;
        work += reports;
        if self.queued_count > 0 {
            work += self.expire(now_ns);
            work += self.close_batches(now_ns);
        }
        if work > 0 {
            self.publish();
        }
        work
    }

    fn fade(&mut self, now_ns: u64) {
        self.fade_ns = now_ns.saturating_add(FADE_NS);
        let instances = self.models.iter_mut().flat_map(|hosted| &mut hosted.instances);
        instances.filter_map(Instance::profile_mut).for_each(LatencyProfile::fade);
    }

    /// Shows every client what was posted for it.
    pub fn publish(&mut self) {
        for session in self.sessions.iter_mut() {
            session.publish();
        }
    }

    /// Announces sleep to every client and executor. Whether nobody had something for us; if so,
    /// it is safe to sleep until a doorbell rings or [`wake_ns`](Self::wake_ns).
    pub fn prepare_sleep(&mut self) -> bool {
        let mut quiet = !self.stalled;
        for session in self.sessions.iter_mut() {
            // A cursor out of range is found, and dealt with, by the next turn.
            quiet &= session.is_over() || session.submissions.prepare_sleep().unwrap_or(false);
        }
        for (_, executor) in self.executors.iter_mut() {
            quiet &= executor.prepare_sleep();
        }
        if !quiet {
            self.awake();
        }
        quiet
    }

    /// Takes the announcement back.
    pub fn awake(&mut self) {
        for session in self.sessions.iter_mut() {
            session.submissions.awake();
        }
        for (_, executor) in self.executors.iter_mut() {
            executor.awake();
        }
    }

    /// When a queued request must be looked at again although nothing happened: it expires, or a
    /// gpulet is sent its next batch, or has waited for another row. `None` if none is queued.
    pub fn wake_ns(&self, now_ns: u64) -> Option<u64> {
        if self.queued_count == 0 {
            return None;
        }
        let wait = |hosted: &crate::models::Hosted| {
            let Some(profile) = hosted.fastest() else {
                return hosted.queue.front().map(|entry| entry.deadline_ns);
            };
            match decide(&hosted.queue, &hosted.limits, None, now_ns, profile) {
                Decision::Wait { until_ns } => Some(until_ns),
                Decision::Idle => None,
                _ => Some(now_ns),
            }
        };
        let expiries = self.models.iter().filter_map(wait);
        let takers = self.executors.iter().filter(|(_, executor)| executor.takes_batches());
        let gpulets = takers.flat_map(|(_, executor)| &executor.gpulets);
        let free_again = gpulets.filter_map(|gpulet| gpulet.free_again_ns(now_ns));
        expiries.chain(free_again).chain([self.due_ns]).min()
    }

    /// Requests in queues or in executors.
    pub fn in_flight(&self) -> u32 {
        self.sessions.iter().map(crate::session::Session::in_flight).sum()
    }

    /// Ends a session: its queued requests are dropped, those that run finish without an answer,
    /// and it is forgotten when the last has.
    pub fn end_session(&mut self, index: u32, status: Status) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        if session.is_over() {
            return;
        }
        session.end(status);
        let queued = session.queued();
        for (slot, model, ticket) in queued {
            if let Some(hosted) = self.models.get_mut(model)
                && hosted.queue.remove(ticket).is_some()
            {
                self.queued_count -= 1;
            }
            session.finish(slot, Status::Cancelled, Timing::default(), 0);
        }
    }

    /// Sessions that are over and have nothing in flight, forgotten now; executors unmap them.
    /// Returns the index of each.
    pub fn forget_sessions(&mut self) -> Vec<u32> {
        let ended = |index: &u32| {
            let session = self.sessions.get(*index);
            session.is_some_and(|session| session.is_over() && session.in_flight() == 0)
        };
        let over: Vec<u32> = self.sessions.live().iter().copied().filter(ended).collect();
        for index in &over {
            let Some(session) = self.sessions.remove(*index) else { continue };
            let unmap = crate::wire::ToExecutor::Unmap { region: session.region_number };
            for (number, executor) in self.executors.iter_mut() {
                if session.mapped.contains(number) {
                    executor.tell(&unmap, &[]);
                }
            }
            info!(
                session = session.id,
                submitted = session.submitted_count,
                completed = session.completed_count,
                "session over"
            );
        }
        over
    }

    /// Answers everything queued for a model, as when it is retired.
    pub fn flush_queue(&mut self, model: u32, status: Status, now_ns: u64) {
        while let Some(entry) =
            self.models.get_mut(model).and_then(|hosted| hosted.queue.pop_front())
        {
            self.queued_count -= 1;
            self.finish(entry.payload, status, now_ns);
        }
    }

    /// Ends a request that never ran, or not to its end.
    fn finish(&mut self, id: RequestId, status: Status, now_ns: u64) {
        let Some(session) = self.sessions.get_mut(id.session) else { return };
        let Some(request) = session.request(id.slot) else { return };
        let queue_ns = now_ns.saturating_sub(request.taken_ns);
        let model = request.model;
        session.finish(id.slot, status, Timing { queue_ns, ..Timing::default() }, now_ns);
        if let Some(hosted) = self.models.get_mut(model) {
            hosted.counters.count(status);
        }
    }
}
