//! From a model's queue to an executor.

use super::{Engine, Event};
use crate::interference::Running;
use crate::policy::{Decision, Head, decide, defer, pick};
use crate::sim::Ran;
use crate::sim::fleet::{Executor, execution_ns};

impl Engine<'_> {
    /// The model whose turn it is on an executor, and what to do for it: to wait, if that pays.
    pub(super) fn next(&self, at: usize, now_ns: u64) -> Option<(usize, Decision)> {
        let executor = &self.executors[at];
        let limits = &self.limits;
        let heads = executor.hosted.iter().filter_map(|(model, profile)| {
            let (deadline_ns, rows) = self.queues[*model].demands().next()?;
            Some(Head { model: *model, deadline_ns, rows, limits, profile })
        });
        let mut heads_again = heads.clone();
        let model = pick(now_ns, heads)?;
        let profile = executor.profile(model)?;
        let hosts = Some(self.hosts[model].len() as u32);
        let queue = &self.queues[model];
        let decision = decide(queue, limits, hosts, now_ns, profile);
        if let Decision::Close { rows, .. } = decision
            && self.settings.defer
            && heads_again.nth(1).is_none()
            && let Some(until_ns) = defer(queue, limits, &self.paces[model], now_ns, rows, profile)
        {
            return Some((model, Decision::Wait { until_ns }));
        }
        Some((model, decision))
    }

    pub(super) fn close(&mut self, at: usize, now_ns: u64) {
        if !self.executors[at].is_free(now_ns) {
            return;
        }
        loop {
            match self.next(at, now_ns) {
                Some((model, Decision::Close { count, rows, .. })) => {
                    // Whoever is idle too and done with it sooner takes it, unless another model's
                    // batch must start there first.
                    let sooner = self.sooner(at, model, rows, now_ns);
                    let theirs = sooner.and_then(|it| Some((it, self.next(it, now_ns)?)));
                    match theirs.filter(|(_, (first, _))| *first == model) {
                        Some((sooner, (_, Decision::Close { count, rows, .. }))) => {
                            self.send(sooner, model, (count, rows), now_ns);
                            continue;
                        }
                        Some((sooner, (_, Decision::Wait { until_ns }))) => {
                            self.wait(sooner, until_ns);
                        }
                        _ => self.send(at, model, (count, rows), now_ns),
                    }
                    return;
                }
                Some((model, Decision::Expire { count })) => {
                    for _ in 0..count {
                        let Some(entry) = self.queues[model].pop_front() else { break };
                        self.give_up(model, entry.payload);
                    }
                }
                Some((_, Decision::Wait { until_ns })) => return self.wait(at, until_ns),
                _ => return,
            }
        }
    }

    /// Looks at an executor again at the end of a wait.
    fn wait(&mut self, at: usize, until_ns: u64) {
        let executor = &mut self.executors[at];
        if executor.due_ns != until_ns {
            executor.due_ns = until_ns;
            self.push(until_ns, Event::Due { executor: at });
        }
    }

    /// The executor that is idle as this one is, and has done the batch soonest, if it is not this one.
    fn sooner(&self, at: usize, model: usize, rows: u32, now_ns: u64) -> Option<usize> {
        let takes_ns = |at: usize| Some(self.executors[at].profile(model)?.latency_ns(rows));
        let here_ns = takes_ns(at)?;
        let idle = self.hosts[model].iter().filter(|&&it| self.executors[it].is_free(now_ns));
        let idle = idle.filter_map(|&it| Some((takes_ns(it)?, it)));
        idle.filter(|it| it.0 < here_ns).min().map(|it| it.1)
    }

    /// Has an idle executor run the first requests of a queue, so many with so many rows.
    pub(super) fn send(&mut self, at: usize, model: usize, (count, rows): (u32, u32), now_ns: u64) {
        let executor = &self.executors[at];
        let Some(profile) = executor.profile(model).or_else(|| executor.guest(model)) else {
            return;
        };
        let expected_ns = now_ns + profile.latency_ns(rows);
        let share_pct = self.problem.devices[executor.kind].shares_pct[executor.share];
        let running = Running { model, batch: rows, share_pct };
        let takes_ns = execution_ns(
            self.problem,
            &self.executors,
            &self.neighbours[executor.device as usize],
            at,
            running,
            self.settings.noise,
            &mut self.rng,
        );
        self.watch(at, running, takes_ns);
        for _ in 0..count {
            self.on_board[at].extend(self.queues[model].pop_front().map(|entry| entry.payload));
        }
        let executor = &mut self.executors[at];
        executor.running = Some(running);
        executor.busy_until_ns = expected_ns;
        executor.batches += 1;
        let batch = executor.batches;
        self.outcome.models[model].batches += 1;
        self.busy(now_ns, takes_ns, f64::from(share_pct) / 100.0);
        self.push(now_ns + takes_ns, Event::Done { executor: at, batch });
    }

    /// Shows a batch to whoever watches.
    fn watch(&mut self, at: usize, running: Running, takes_ns: u64) {
        let Some(watcher) = &mut self.watcher else { return };
        let Executor { kind, share, device, .. } = self.executors[at];
        let others = self.neighbours[device as usize].iter().filter(|&&other| other != at);
        let beside: Vec<Running> =
            others.filter_map(|&other| self.executors[other].running).collect();
        let batching_ms = self.problem.models[running.model].costs.batching_ms(running.batch);
        let alone_ms = self.problem.solo_ms(kind, running.model, share, running.batch);
        let factor = (takes_ns as f64 / 1e6 - batching_ms) / alone_ms;
        watcher(&Ran { kind, running, beside: &beside, factor });
    }

    /// Books the time of a batch in the seconds that it touches.
    fn busy(&mut self, from_ns: u64, takes_ns: u64, share: f64) {
        let (mut at_ns, end_ns) = (from_ns, from_ns + takes_ns);
        while at_ns < end_ns {
            let next_ns = (at_ns / 1_000_000_000 + 1) * 1_000_000_000;
            let until_ns = next_ns.min(end_ns);
            if let Some(second) = self.second(at_ns) {
                second.busy += share * (until_ns - at_ns) as f64 / 1e9;
            }
            at_ns = until_ns;
        }
    }
}
