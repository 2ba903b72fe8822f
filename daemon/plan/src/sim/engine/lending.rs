//! Idle executors lent to guests, as the daemon lends its gpulets.

use super::Engine;
use super::batches::Part;
use crate::policy::{Admission, Borrowed, Home, admit, borrow, lent_ns};
use crate::sim::fleet::Executor;

impl Engine<'_> {
    /// Whether an executor that a model may borrow is idle, and makes a deadline while it is lent.
    pub(super) fn may_be_lent(&self, model: usize, deadline_ns: u64, now_ns: u64) -> bool {
        self.lenders[model].iter().any(|&at| {
            let executor = &self.executors[at];
            executor.is_free(now_ns)
                && executor.guest(model).is_some_and(|profile| {
                    let admission = admit(now_ns, deadline_ns, 1, &self.limits, profile, &[]);
                    let is_lent = profile.latency_ns(1) <= self.lent_ns(executor);
                    is_lent && admission == Admission::Admit
                })
        })
    }

    /// Lends an executor that is idle to the guest whose batch must start first.
    pub(super) fn lend(&mut self, at: usize, now_ns: u64) {
        let executor = &self.executors[at];
        // Not while it waits for another row of its own.
        let is_lent = !executor.guests.is_empty() && executor.is_free(now_ns);
        if !is_lent || self.next(at, now_ns).is_some() {
            return;
        }
        let lent_ns = self.lent_ns(executor);
        let batches = executor.guests.iter().filter_map(|(model, profile)| {
            let queue = &self.queues[*model];
            let home = self.home(*model);
            Some((*model, borrow(queue, &self.limits, home, now_ns, lent_ns, profile)?))
        });
        if let Some((model, batch)) = batches.min_by_key(|it| it.1.latest_start_ns) {
            let Borrowed { count, rows, .. } = batch;
            self.send(at, model, Part { skip: 0, count, rows }, now_ns);
        }
    }

    /// The longest that a guest may have an executor.
    fn lent_ns(&self, executor: &Executor) -> u64 {
        let own = executor.hosted.iter().map(|(model, profile)| {
            let slo_ns = (self.problem.models[*model].slo_ms * 1e6) as u64;
            lent_ns(slo_ns, &self.limits, profile)
        });
        own.min().unwrap_or(u64::MAX)
    }

    fn home(&self, model: usize) -> Option<Home<'_>> {
        let executors = self.hosts[model].len() as u32;
        let homes = self.hosts[model].iter().filter_map(|&at| {
            let executor = &self.executors[at];
            let free_ns = executor.busy_until_ns.max(executor.ready_ns);
            Some(Home { executors, free_ns, profile: executor.profile(model)? })
        });
        homes.min_by_key(|home| home.free_ns)
    }
}
