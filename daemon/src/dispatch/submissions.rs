//! From a session's ring to a model's queue.

use gpulet_abi::layout::{SUBMIT_CANCEL, Submission};
use gpulet_abi::status::Status;
use gpulet_plan::policy::{Admission, admit};

use super::Dispatcher;
use super::lending::lent_ns;
use crate::executor::Executors;
use crate::gpulet::Gpulet;
use crate::models::{Hosted, Models, Readiness, Role};
use crate::request::{Request, RequestId, Stage, Suspicion, answer_now};
use crate::session::Session;

impl Dispatcher {
    /// Takes up to `entries_per_turn_max` submissions from every session.
    pub(super) fn take_submissions(&mut self, now_ns: u64) -> usize {
        let mut work = 0;
        self.stalled = false;
        for position in 0..self.sessions.live().len() {
            let index = self.sessions.live()[position];
            match self.take_from(index, now_ns) {
                Ok(taken) => work += taken,
                Err(rule) => self.violations.push((index, rule)),
            }
        }
        work
    }

    fn take_from(&mut self, index: u32, now_ns: u64) -> Result<usize, &'static str> {
        let Some(session) = self.sessions.get_mut(index) else { return Ok(0) };
        if session.is_over() {
            return Ok(0);
        }
        let waiting = session.submissions.refresh();
        let waiting = waiting.map_err(|_| "the submission ring's tail is out of range")?;
        let count = waiting.min(self.entries_per_turn_max) as usize;
        let mut taken = 0;
        while taken < count {
            let Some(session) = self.sessions.get_mut(index) else { break };
            if !session.can_take_one()? {
                self.stalled = true;
                break;
            }
            let popped = session.submissions.pop();
            let Some(entry) = popped.map_err(|_| "the submission ring's tail is out of range")?
            else {
                break;
            };
            if let Some(rule) = entry.broken_rule(session.geometry.slot_count) {
                return Err(rule);
            }
            taken += 1;
            if entry.kind == SUBMIT_CANCEL {
                self.cancel(index, &entry, now_ns);
            } else if session.request(entry.slot).is_some() {
                return Err("submission.slot is in flight already");
            } else {
                self.accept(index, &entry, now_ns);
            }
        }
        Ok(taken)
    }

    /// Drops a queued request. One that is unknown was answered already, one that runs will be.
    fn cancel(&mut self, index: u32, entry: &Submission, now_ns: u64) {
        let Some(request) =
            self.sessions.get(index).and_then(|session| session.request(entry.slot))
        else {
            return;
        };
        let (Stage::Queued(ticket), true) = (request.stage, request.generation == entry.generation)
        else {
            return;
        };
        let model = request.model;
        if let Some(hosted) = self.models.get_mut(model)
            && hosted.queue.remove(ticket).is_some()
        {
            self.queued_count -= 1;
        }
        self.finish(RequestId { session: index, slot: entry.slot }, Status::Cancelled, now_ns);
    }

    /// Queues a request, or answers it at once.
    #[inline]
    fn accept(&mut self, index: u32, entry: &Submission, now_ns: u64) {
        let Some(session) = self.sessions.get_mut(index) else { return };
        session.submitted_count += 1;
        let Some(hosted) = self.models.get(entry.model) else {
            let known = self.models.was_ever(entry.model);
            let status = if known { Status::ModelRetired } else { Status::NoSuchModel };
            session.post(&answer_now(entry, status, now_ns));
            return;
        };
        let deadline_ns = match entry.deadline_ns {
            0 => now_ns.saturating_add(hosted.model.slo_ns),
            deadline_ns => deadline_ns,
        };
        let verdict = if self.draining {
            Err(Status::Draining)
        } else {
            check(hosted, session, entry).and_then(|()| {
                fits_deadline(hosted, (&self.models, &self.executors), entry, deadline_ns, now_ns)
            })
        };
        let Some(hosted) = self.models.get_mut(entry.model) else { return };
        match verdict {
            Ok(Course::Queue) => {
                let id = RequestId { session: index, slot: entry.slot };
                let Ok(ticket) = hosted.queue.push(deadline_ns, entry.rows, id) else {
                    answer(hosted, session, entry, Status::QueueFull, now_ns);
                    return;
                };
                self.queued_count += 1;
                hosted.pace.note(now_ns);
                session.begin(
                    entry.slot,
                    Request {
                        model: entry.model,
                        generation: entry.generation,
                        rows: entry.rows,
                        suspicion: Suspicion::None,
                        user_data: entry.user_data,
                        deadline_ns,
                        taken_ns: now_ns,
                        stage: Stage::Queued(ticket),
                    },
                );
            }
            Ok(Course::Answer) => answer(hosted, session, entry, Status::Ok, now_ns),
            Err(status) => {
                if status == Status::DeadlineHopeless {
                    hosted.note_refused(entry.rows, deadline_ns, now_ns);
                }
                answer(hosted, session, entry, status, now_ns);
            }
        }
    }
}

/// What is done with a good request.
enum Course {
    /// It waits for an executor.
    Queue,
    /// It is answered here and now.
    Answer,
}

fn answer(
    hosted: &mut Hosted,
    session: &mut Session,
    entry: &Submission,
    status: Status,
    now: u64,
) {
    hosted.counters.count(status);
    session.post(&answer_now(entry, status, now));
}

/// Whether the model can be asked this at all.
fn check(hosted: &Hosted, session: &Session, entry: &Submission) -> Result<(), Status> {
    if hosted.retired {
        return Err(Status::ModelRetired);
    }
    match hosted.slot_bytes(entry.rows) {
        Some(bytes) if bytes <= session.geometry.slot_bytes => Ok(()),
        Some(_) => Err(Status::SlotTooSmall),
        None => Err(Status::TooManyRows),
    }
}

/// Whether an instance of the model can still make the deadline.
fn fits_deadline(
    hosted: &Hosted,
    (models, executors): (&Models, &Executors),
    entry: &Submission,
    deadline_ns: u64,
    now_ns: u64,
) -> Result<Course, Status> {
    if hosted.is_null() {
        let late = deadline_ns < now_ns;
        return if late { Err(Status::DeadlineHopeless) } else { Ok(Course::Answer) };
    }
    if hosted.queue.len() >= hosted.queue_max as usize {
        return Err(Status::QueueFull);
    }
    let instances =
        |role: Role| hosted.instances.iter().filter(move |instance| instance.role == role);
    let mut hopeless = false;
    for instance in instances(Role::Home).chain(instances(Role::Guest)) {
        let Some(profile) = instance.profile() else { continue };
        let gpulet = executors.gpulet(instance.gpulet);
        if instance.role == Role::Guest {
            // There it runs at once, in the time that it is lent, or not at all.
            let idle = gpulet.is_some_and(Gpulet::is_idle);
            if !idle || profile.latency_ns(entry.rows) > lent_ns(models, instance.gpulet) {
                continue;
            }
        }
        let busy = gpulet.map_or(0, Gpulet::busy_until_ns);
        match admit(now_ns, deadline_ns, entry.rows, &hosted.limits, profile, &[busy]) {
            Admission::Admit => return Ok(Course::Queue),
            Admission::RejectHopeless { .. } => hopeless = true,
        }
    }
    if hopeless {
        return Err(Status::DeadlineHopeless);
    }
    match hosted.readiness() {
        // Its executors are being restarted: it waits for them as long as its deadline lets it.
        Readiness::Ready | Readiness::Loading if hosted.ever_ready => Ok(Course::Queue),
        Readiness::Ready | Readiness::Loading => Err(Status::ModelLoading),
        Readiness::Failed(_) => Err(Status::ModelFailed),
    }
}
