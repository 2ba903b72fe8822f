//! From a gpulet back to the client, or to the queue.

use gpulet_abi::status::Status;
use tracing::warn;

use super::Dispatcher;
use crate::executor::State;
use crate::gpulet::GpuletId;
use crate::models::{Counters, InstanceState};
use crate::request::{RequestId, Stage, Suspicion, Timing};
use crate::wire::BatchReport;

impl Dispatcher {
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

    pub(super) fn finish_batch(&mut self, index: u32, report: &BatchReport, now_ns: u64) {
        let Some(executor) = self.executors.get_mut(index) else { return };
        let from = GpuletId { executor: index, index: report.gpulet };
        let gpulet = executor.gpulets.get_mut(from.index as usize);
        let Some((batch, ran_ns)) = gpulet.and_then(|it| it.end(report.batch, now_ns)) else {
            let (batch, gpulet) = (report.batch, report.gpulet);
            warn!(executor = executor.name(), gpulet, batch, "report of an unknown batch");
            executor.kill();
            return;
        };
        let exec_ns = now_ns.saturating_sub(batch.sent_ns);
        let Some(hosted) = self.models.get_mut(batch.model) else { return };
        hosted.running_count -= 1;
        hosted.running_requests -= batch.entries.len() as u32;
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
        if let Some(executor) = self.executors.get_mut(index) {
            executor.served |= ran;
        }
        if ran && let Some(profile) = hosted.instance_mut(from).and_then(|it| it.profile_mut()) {
            profile.observe(rows, ran_ns);
        }
    }

    /// An executor's process is gone: what it reported counts, what it did not report runs again, once
    /// and alone.
    pub fn recover(&mut self, index: u32, now_ns: u64) {
        for session in self.sessions.iter_mut() {
            session.mapped.remove(index);
        }
        for hosted in self.models.iter_mut() {
            for instance in hosted.instances_in(index) {
                if matches!(instance.state, InstanceState::Ready(_) | InstanceState::Loading) {
                    instance.state = InstanceState::Waiting;
                }
            }
        }
        let Some(executor) = self.executors.get(index) else { return };
        let lost = if executor.lost_device { Suspicion::Device } else { Suspicion::Process };
        for gpulet in 0..executor.gpulets.len() as u32 {
            self.recover_batches(GpuletId { executor: index, index: gpulet }, lost, now_ns);
        }
        self.publish();
    }

    fn recover_batches(&mut self, from: GpuletId, lost: Suspicion, now_ns: u64) {
        let Some(gpulet) = self.executors.gpulet_mut(from) else { return };
        for batch in gpulet.batches() {
            if let Some(hosted) = self.models.get_mut(batch.model) {
                hosted.running_count -= 1;
                hosted.running_requests -= batch.entries.len() as u32;
            }
        }
        while let Some((model, entry)) = self.executors.gpulet_mut(from).and_then(|it| it.lose()) {
            let id = entry.payload;
            let Some(session) = self.sessions.get_mut(id.session) else { continue };
            let over = session.is_over();
            let Some(request) = session.request_mut(id.slot) else { continue };
            // If it was suspected of this before, it ran alone, and is to blame.
            let guilty = request.suspicion >= lost;
            request.suspicion = lost;
            let given_up = over || guilty;
            let Some(hosted) = self.models.get_mut(model).filter(|it| !given_up && !it.retired)
            else {
                self.finish(id, Status::ExecutorLost, now_ns);
                continue;
            };
            match hosted.queue.requeue(entry) {
                Ok(ticket) => {
                    request.stage = Stage::Queued(ticket);
                    self.queued_count += 1;
                    self.suspects = true;
                }
                Err(_) => self.finish(id, Status::QueueFull, now_ns),
            }
        }
    }

    /// Executors with a batch that takes longer than any batch should.
    pub fn hung(&self, now_ns: u64, hang_ns: u64) -> Vec<u32> {
        let mut all = Vec::new();
        for (index, executor) in self.executors.iter() {
            if executor.state != State::Running || executor.doomed_ns.is_some() {
                continue;
            }
            let hung = executor.gpulets.iter().find_map(|gpulet| {
                let batch = gpulet.batches().next()?;
                let expected_ns = batch.expected_ns.saturating_sub(batch.sent_ns);
                let allowed_ns = hang_ns.max(expected_ns.saturating_mul(10));
                let hangs = now_ns.saturating_sub(batch.sent_ns) > allowed_ns;
                hangs.then(|| (gpulet.config.name.clone(), allowed_ns))
            });
            if let Some((gpulet, allowed_ns)) = hung {
                warn!(executor = executor.name(), gpulet, allowed_ns, "the executor hangs");
                all.push(index);
            }
        }
        all
    }
}
