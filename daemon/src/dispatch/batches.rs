//! From a model's queue to an executor and back.

use bytemuck::Zeroable;
use gpulet_abi::status::Status;
use gpulet_plan::policy::{Decision, Head, decide, pick};
use tracing::warn;

use super::Dispatcher;
use crate::executor::State;
use crate::models::{Counters, InstanceState};
use crate::request::{RequestId, Stage, Timing};
use crate::wire::{BatchCommand, BatchReport, BatchRequest, RegionGeometry, ToExecutor};

/// Executors that may die on a request before it is given up.
const LOSSES_MAX: u32 = 2;

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
            Some(profile) => match decide(&hosted.queue, &hosted.limits, false, now_ns, profile) {
                Decision::Expire { count } => count,
                _ => 0,
            },
            // Every executor is being restarted, and nobody knows how long a batch will take.
            None => hosted.queue.front().map_or(0, |head| u32::from(head.deadline_ns <= now_ns)),
        };
        for _ in 0..count {
            let Some(hosted) = self.models.get_mut(model) else { break };
            let Some(entry) = hosted.queue.pop_front() else { break };
            self.queued_count -= 1;
            let budget_ns = hosted.limits.budget_ns(now_ns, entry.deadline_ns);
            for instance in &mut hosted.instances {
                if let Some(profile) = instance.profile_mut() {
                    profile.note_refused(entry.rows, budget_ns);
                }
            }
            self.finish(entry.payload, Status::DeadlineExpired, now_ns);
        }
        count as usize
    }

    /// Gives every free executor the batch that must start earliest.
    pub(super) fn close_batches(&mut self, now_ns: u64) -> usize {
        let mut closed = 0;
        for executor in 0..self.executors.len() {
            if self.executors.get(executor).is_some_and(|executor| executor.is_free()) {
                closed += usize::from(self.close_batch(executor, now_ns));
            }
        }
        closed
    }

    fn close_batch(&mut self, executor: u32, now_ns: u64) -> bool {
        let heads = self.models.iter().filter_map(|hosted| {
            let (deadline_ns, rows) = hosted.queue.demands().next()?;
            let profile = hosted.profile(executor)?;
            let guard_ns = hosted.limits.guard_ns;
            let model = hosted.id as usize;
            Some(Head { model, deadline_ns, rows, guard_ns, profile })
        });
        let Some(model) = pick(heads) else { return false };
        let model = model as u32;
        let Some(hosted) = self.models.get(model) else { return false };
        let Some(profile) = hosted.profile(executor) else { return false };
        match decide(&hosted.queue, &hosted.limits, true, now_ns, profile) {
            Decision::Close { count, rows, latest_start_ns } => {
                let expected_ns = now_ns.saturating_add(profile.latency_ns(rows));
                self.send_batch(executor, model, count, (now_ns, latest_start_ns, expected_ns));
                true
            }
            // What this executor is too slow for, a faster one may still make.
            _ => false,
        }
    }

    fn send_batch(
        &mut self,
        index: u32,
        model: u32,
        count: u32,
        (now_ns, latest_start_ns, expected_ns): (u64, u64, u64),
    ) {
        let Some(hosted) = self.models.get_mut(model) else { return };
        let Some(executor) = self.executors.get_mut(index) else { return };
        self.next_batch += 1;
        let mut command = BatchCommand {
            batch: self.next_batch,
            latest_start_ns,
            expected_end_ns: expected_ns,
            instance: model,
            ..BatchCommand::zeroed()
        };
        for _ in 0..count {
            let Some(entry) = hosted.queue.pop_front() else { break };
            self.queued_count -= 1;
            let RequestId { session, slot } = entry.payload;
            let Some(session) = self.sessions.get_mut(session) else { continue };
            if !session.mapped.contains(index) {
                session.mapped.insert(index);
                let geometry = RegionGeometry::from(&session.geometry);
                let map = ToExecutor::Map { region: session.region_number, geometry };
                executor.tell(&map, &[session.region_fd()]);
            }
            let region = session.region_number;
            let Some(request) = session.request_mut(slot) else { continue };
            request.stage = Stage::Running;
            command.requests[command.request_count as usize] =
                BatchRequest { region, slot, rows: request.rows, reserved: 0 };
            command.request_count += 1;
            command.rows += request.rows;
            executor.batch.entries.push(entry);
        }
        executor.batch.id = command.batch;
        executor.batch.model = model;
        executor.batch.rows = command.rows;
        executor.batch.sent_ns = now_ns;
        executor.batch.expected_ns = expected_ns;
        hosted.running_count += 1;
        executor.run(&command);
    }

    /// Takes what executors report.
    pub(super) fn take_reports(&mut self, now_ns: u64) -> usize {
        let mut work = 0;
        for index in 0..self.executors.len() {
            while let Some(report) = self.executors.get_mut(index).and_then(|it| it.report()) {
                self.finish_batch(index, &report, now_ns);
                work += 1;
            }
        }
        work
    }

    fn finish_batch(&mut self, index: u32, report: &BatchReport, now_ns: u64) {
        let Some(executor) = self.executors.get_mut(index) else { return };
        if executor.batch.entries.is_empty() || executor.batch.id != report.batch {
            warn!(
                gpulet = executor.gpulet.name,
                batch = report.batch,
                "report of an unknown batch"
            );
            executor.kill();
            return;
        }
        executor.batch_count += 1;
        let batch = &mut executor.batch;
        let exec_ns = now_ns.saturating_sub(batch.sent_ns);
        let Some(hosted) = self.models.get_mut(batch.model) else { return };
        hosted.running_count -= 1;
        hosted.counters.batch_count += 1;
        let Counters { input_bytes_copied, output_bytes_copied, .. } = &mut hosted.counters;
        *input_bytes_copied = input_bytes_copied.saturating_add(report.input_bytes_copied);
        *output_bytes_copied = output_bytes_copied.saturating_add(report.output_bytes_copied);
        let mut ran = false;
        for (position, entry) in batch.entries.drain(..).enumerate() {
            let number = i32::from(report.statuses[position]);
            let status = Status::from_number(number).unwrap_or(Status::Internal);
            ran |= status == Status::Ok;
            let RequestId { session, slot } = entry.payload;
            let Some(session) = self.sessions.get_mut(session) else { continue };
            let over = session.is_over();
            let Some(request) = session.request_mut(slot) else { continue };
            if status == Status::DeadlineExpired && !over && !hosted.retired {
                // The executor came too late for the first of the batch, and handed all back.
                if let Ok(ticket) = hosted.queue.requeue(entry) {
                    request.stage = Stage::Queued(ticket);
                    self.queued_count += 1;
                    continue;
                }
            }
            hosted.counters.count(status);
            let queue_ns = batch.sent_ns.saturating_sub(request.taken_ns);
            hosted.counters.record(queue_ns + exec_ns);
            let timing = Timing { queue_ns, exec_ns, batch_rows: batch.rows, epoch: 0 };
            session.finish(slot, status, timing, now_ns);
        }
        let rows = batch.rows;
        if ran && let Some(profile) = hosted.instance_mut(index).and_then(|it| it.profile_mut()) {
            profile.observe(rows, exec_ns);
        }
    }

    /// An executor's process is gone: what it reported counts, what it did not report runs again
    /// elsewhere, once.
    pub fn recover(&mut self, index: u32, now_ns: u64) {
        for session in self.sessions.iter_mut() {
            session.mapped.remove(index);
        }
        for hosted in self.models.iter_mut() {
            if let Some(instance) = hosted.instance_mut(index).filter(|it| it.profile().is_some()) {
                instance.state = InstanceState::Loading;
            }
        }
        let Some(executor) = self.executors.get_mut(index) else { return };
        let model = executor.batch.model;
        let mut entries = std::mem::take(&mut executor.batch.entries);
        let Some(hosted) = self.models.get_mut(model) else { return };
        if !entries.is_empty() {
            hosted.running_count -= 1;
        }
        for entry in entries.drain(..) {
            let id = entry.payload;
            let Some(session) = self.sessions.get_mut(id.session) else { continue };
            let over = session.is_over();
            let Some(request) = session.request_mut(id.slot) else { continue };
            request.losses += 1;
            let lost = over || request.losses >= LOSSES_MAX;
            let Some(hosted) = self.models.get_mut(model).filter(|it| !lost && !it.retired) else {
                self.finish(id, Status::ExecutorLost, now_ns);
                continue;
            };
            match hosted.queue.requeue(entry) {
                Ok(ticket) => {
                    request.stage = Stage::Queued(ticket);
                    self.queued_count += 1;
                }
                Err(_) => self.finish(id, Status::QueueFull, now_ns),
            }
        }
        // The emptied vector goes back, so that the next batch needs no allocation.
        if let Some(executor) = self.executors.get_mut(index) {
            executor.batch.entries = entries;
        }
        self.publish();
    }

    /// Kills executors whose batch takes longer than any batch should.
    pub fn kill_hung(&mut self, now_ns: u64, hang_ns: u64) {
        for (_, executor) in self.executors.iter_mut() {
            let batch = &executor.batch;
            if executor.state != State::Running || batch.entries.is_empty() {
                continue;
            }
            let expected_ns = batch.expected_ns.saturating_sub(batch.sent_ns);
            let allowed_ns = hang_ns.max(expected_ns.saturating_mul(10));
            if now_ns.saturating_sub(batch.sent_ns) > allowed_ns {
                warn!(gpulet = executor.gpulet.name, allowed_ns, "the executor hangs");
                executor.kill();
            }
        }
    }
}
