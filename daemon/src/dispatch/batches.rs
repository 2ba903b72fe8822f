//! From a model's queue to a gpulet.

use bytemuck::Zeroable;
use gpulet_abi::status::Status;
use gpulet_plan::policy::{self, Decision, Head, decide, defer, pick};
use gpulet_plan::profile::LatencyProfile;

use super::Dispatcher;
use crate::executor::{Executor, ExecutorSet};
use crate::gpulet::{Gpulet, GpuletId};
use crate::models::{Hosted, Role};
use crate::request::{RequestId, Stage, Suspicion};
use crate::wire::{BatchCommand, BatchRequest};

/// What was decided of a batch.
pub(super) struct Closing {
    /// Requests at the front of the queue that are left to faster gpulets.
    skip: u32,
    /// Requests behind them.
    count: u32,
    /// Their rows.
    rows: u32,
    latest_start_ns: u64,
    /// What it takes at the least and at the most, once it runs.
    takes_ns: (u64, u64),
    /// Of its one request, if it has one.
    suspicion: Suspicion,
}

/// What to do for a model whose turn it is.
pub(super) enum Next {
    /// Answer so many at the front of its queue that they expired.
    GiveUp(u32),
    Close(Closing),
    /// Leave it until then, as another row may join the batch.
    Wait(u64),
}

impl Dispatcher {
    /// Answers queued requests that cannot make their deadlines any more.
    pub(super) fn expire(&mut self, now_ns: u64) -> usize {
        let mut expired = 0;
        for position in 0..self.models.live().len() {
            let model = self.models.live()[position];
            loop {
                let count = self.expire_some(model, now_ns);
                expired += count;
                if count == 0 {
                    break;
                }
            }
        }
        expired
    }

    fn expire_some(&mut self, model: u32, now_ns: u64) -> usize {
        let Some(hosted) = self.models.get_mut(model) else { return 0 };
        let count = match hosted.fastest() {
            Some(profile) => match decide(&hosted.queue, &hosted.limits, None, now_ns, profile) {
                Decision::Expire { count } => count,
                _ => 0,
            },
            // Every executor is being restarted, and nobody knows how long a batch will take.
            None => hosted.queue.front().map_or(0, |head| u32::from(head.deadline_ns <= now_ns)),
        };
        self.expire_front(model, count, now_ns);
        count as usize
    }

    /// Answers the first requests of a queue that they expired.
    fn expire_front(&mut self, model: u32, count: u32, now_ns: u64) {
        for _ in 0..count {
            let Some(hosted) = self.models.get_mut(model) else { break };
            let Some(entry) = hosted.queue.pop_front() else { break };
            self.queued_count -= 1;
            hosted.note_refused(entry.rows, entry.deadline_ns, now_ns);
            self.finish(entry.payload, Status::DeadlineExpired, now_ns);
        }
    }

    /// Gives every gpulet that is free the batch that must start earliest: first those that are idle,
    /// as they start it at once. Guests get what then still is idle.
    pub(super) fn close_batches(&mut self, now_ns: u64) -> usize {
        let held = self.held();
        self.due_ns = u64::MAX;
        let work = self.close_where(true, held, now_ns) + self.close_where(false, held, now_ns);
        work + self.lend(held, now_ns)
    }

    fn close_where(&mut self, idle: bool, held: ExecutorSet, now_ns: u64) -> usize {
        let mut work = 0;
        for executor in 0..self.executors.len() {
            let Some(host) = self.executors.get(executor).filter(|it| it.takes_batches()) else {
                continue;
            };
            for index in 0..host.gpulets.len() as u32 {
                let gpulet = GpuletId { executor, index };
                let Some(here) = self.executors.gpulet(gpulet) else { break };
                if here.is_idle() == idle
                    && let Some(start_ns) = here.start_ns(now_ns)
                {
                    work += self.close_batch(gpulet, held, start_ns, now_ns);
                }
            }
        }
        work
    }

    /// Sends a gpulet its next batch, if there is one. Returns how many requests it gave up for it,
    /// and the batch.
    fn close_batch(
        &mut self,
        gpulet: GpuletId,
        held: ExecutorSet,
        start_ns: u64,
        now_ns: u64,
    ) -> usize {
        let mut work = 0;
        loop {
            match self.next_turn(gpulet, held, start_ns) {
                Some((model, Next::GiveUp(count))) => {
                    self.expire_front(model, count, now_ns);
                    work += count as usize;
                }
                Some((model, Next::Close(closing))) => {
                    work += 1;
                    // Whoever is idle too and done with it sooner takes it, unless another model's
                    // batch must start there first.
                    let sooner = self.sooner(gpulet, model, &closing);
                    let theirs =
                        sooner.and_then(|it| Some((it, self.next_turn(it, held, now_ns)?)));
                    match theirs.filter(|(_, (first, _))| *first == model) {
                        Some((sooner, (_, Next::Close(closing)))) => {
                            self.send_batch(sooner, model, &closing, now_ns);
                            continue;
                        }
                        Some((_, (_, Next::Wait(until_ns)))) => {
                            self.due_ns = self.due_ns.min(until_ns);
                        }
                        _ => self.send_batch(gpulet, model, &closing, now_ns),
                    }
                    return work;
                }
                Some((_, Next::Wait(until_ns))) => {
                    self.due_ns = self.due_ns.min(until_ns);
                    return work;
                }
                None => return work,
            }
        }
    }

    /// The gpulet that is idle as this one is, and has done the batch soonest, if it is not this one.
    fn sooner(&self, gpulet: GpuletId, model: u32, closing: &Closing) -> Option<GpuletId> {
        let is_idle = |id: GpuletId| {
            self.executors.get(id.executor).is_some_and(Executor::takes_batches)
                && self.executors.gpulet(id).is_some_and(Gpulet::is_idle)
        };
        if !is_idle(gpulet) {
            return None;
        }
        let hosted = self.models.get(model)?;
        let takes_ns = |profile: &LatencyProfile| profile.latency_ns(closing.rows);
        let here_ns = closing.takes_ns.1;
        let idle = hosted.homes().filter(|&(id, it)| takes_ns(it) < here_ns && is_idle(id));
        idle.min_by_key(|(_, profile)| takes_ns(profile)).map(|(id, _)| id)
    }

    /// The model whose turn it is on a gpulet from `start_ns` on, and what to do for it.
    pub(super) fn next_turn(
        &self,
        gpulet: GpuletId,
        held: ExecutorSet,
        start_ns: u64,
    ) -> Option<(u32, Next)> {
        let heads = self.models.iter().filter_map(|hosted| {
            let profile = hosted.profile(gpulet, Role::Home)?;
            let Hosted { queue, limits, .. } = hosted;
            let head = Head::of(hosted.id as usize, queue, limits, start_ns, profile)?;
            let may = hosted.has_requeue_room()
                && self.may_share(held, gpulet.executor, self.front_suspicion(hosted))
                && !self.must_wait(hosted, gpulet.executor);
            // Who is first is what suspicions are about.
            (may && (head.skip == 0 || !self.suspects)).then_some(head)
        });
        let head = pick(heads)?;
        let (model, profile) = (head.model as u32, head.profile);
        let hosted = self.models.get(model)?;
        match head.decide(&hosted.queue, hosted.homes().count() as u32, start_ns) {
            Decision::Close { count, rows, latest_start_ns } => {
                let closing = self.closing(hosted, profile, count, rows, latest_start_ns);
                let closing = Closing { skip: head.skip, ..closing };
                if let Some(until_ns) = self.deferred(gpulet, hosted, &closing, start_ns, profile) {
                    return Some((model, Next::Wait(until_ns)));
                }
                Some((model, Next::Close(closing)))
            }
            Decision::Expire { count } => Some((model, Next::GiveUp(count))),
            Decision::Wait { .. } | Decision::Idle => None,
        }
    }

    /// Until when a batch should wait for another row, which no gpulet does that has other models'
    /// requests.
    fn deferred(
        &self,
        gpulet: GpuletId,
        hosted: &Hosted,
        closing: &Closing,
        start_ns: u64,
        profile: &LatencyProfile,
    ) -> Option<u64> {
        let none_comes = self.draining || hosted.retired;
        if !self.defer || none_comes || closing.suspicion != Suspicion::None {
            return None;
        }
        let mut others = self.models.iter().filter(|it| it.id != hosted.id && !it.queue.is_empty());
        if others.any(|it| it.profile(gpulet, Role::Home).is_some()) {
            return None;
        }
        let Hosted { queue, limits, pace, .. } = hosted;
        defer(queue, limits, pace, start_ns, closing.rows, profile)
    }

    /// A batch that was decided, less what must not run with others.
    pub(super) fn closing(
        &self,
        hosted: &Hosted,
        profile: &LatencyProfile,
        count: u32,
        mut rows: u32,
        mut latest_start_ns: u64,
    ) -> Closing {
        let fewer = self.unsuspected(hosted, count);
        if fewer < count {
            rows = hosted.queue.demands().take(fewer as usize).map(|(_, rows)| rows).sum();
            let deadline_ns =
                hosted.queue.demands().next().map_or(0, |(deadline_ns, _)| deadline_ns);
            latest_start_ns =
                policy::latest_start_ns(deadline_ns, rows, hosted.limits.guard_ns, profile);
        }
        Closing {
            skip: 0,
            count: fewer,
            rows,
            latest_start_ns,
            takes_ns: (profile.soonest_ns(rows), profile.latency_ns(rows)),
            suspicion: self.front_suspicion(hosted),
        }
    }

    pub(super) fn send_batch(&mut self, to: GpuletId, model: u32, closing: &Closing, now_ns: u64) {
        let Some(hosted) = self.models.get_mut(model) else { return };
        let Some(executor) = self.executors.get_mut(to.executor) else { return };
        let (soonest_ns, latest_ns) = closing.takes_ns;
        self.next_batch += 1;
        let mut command = BatchCommand {
            batch: self.next_batch,
            latest_start_ns: closing.latest_start_ns,
            gpulet: to.index,
            instance: model,
            ..BatchCommand::zeroed()
        };
        // Its control messages need the executor whole, so the batch is noted afterwards.
        for _ in 0..closing.count {
            let Some(entry) = hosted.queue.take(closing.skip as usize) else { break };
            self.queued_count -= 1;
            let RequestId { session, slot } = entry.payload;
            let Some(session) = self.sessions.get_mut(session) else { continue };
            session.introduce(to.executor, executor);
            let region = session.region_number;
            let Some(request) = session.request_mut(slot) else { continue };
            request.stage = Stage::Running;
            command.requests[command.request_count as usize] =
                BatchRequest { region, slot, rows: request.rows, reserved: 0 };
            command.request_count += 1;
            command.rows += request.rows;
            self.closing.push(entry);
        }
        let Some(gpulet) = executor.gpulets.get_mut(to.index as usize) else { return };
        let batch = gpulet.begin(now_ns, soonest_ns, latest_ns);
        batch.id = command.batch;
        batch.model = model;
        batch.rows = command.rows;
        batch.suspicion = closing.suspicion;
        batch.entries.append(&mut self.closing);
        command.expected_end_ns = batch.soonest_ns;
        hosted.running_count += 1;
        hosted.running_requests += command.request_count;
        executor.run(&command);
    }
}
