//! From a model's queue to an executor.

use super::{Engine, Event};
use crate::interference::Running;
use crate::policy::{Decision, Head, defer, pick};
use crate::sim::Ran;
use crate::sim::fleet::{Executor, execution_ns};

/// Requests of a queue that make a batch.
pub(super) struct Part {
    /// Requests before them.
    pub skip: u32,
    pub count: u32,
    pub rows: u32,
}

impl Engine<'_> {
    /// The request whose turn it is on an executor, and what to do for its model: wait, if that pays.
    pub(super) fn next(&self, at: usize, now_ns: u64) -> Option<(Head<'_>, Decision)> {
        let limits = &self.limits;
        let heads = self.executors[at].hosted.iter().filter_map(|(model, profile)| {
            Head::of(*model, &self.queues[*model], limits, now_ns, profile)
        });
        let head = pick(heads)?;
        let (queue, pace) = (&self.queues[head.model], &self.paces[head.model]);
        let mut others = self.executors[at].hosted.iter().filter(|it| it.0 != head.model);
        let others_wait = others.any(|(model, _)| !self.queues[*model].is_empty());
        let hosts = self.hosts[head.model].len() as u32;
        let decision = head.decide(queue, hosts, now_ns);
        if let Decision::Close { rows, .. } = decision
            && self.settings.defer
            && !others_wait
            && let Some(until_ns) = defer(queue, limits, pace, now_ns, rows, head.profile)
        {
            return Some((head, Decision::Wait { until_ns }));
        }
        Some((head, decision))
    }

    pub(super) fn close(&mut self, at: usize, now_ns: u64) {
        if !self.executors[at].is_free(now_ns) {
            return;
        }
        loop {
            let Some((head, decision)) = self.next(at, now_ns) else { return };
            let (model, skip) = (head.model, head.skip);
            match decision {
                Decision::Close { count, rows, .. } => {
                    // Whoever is idle too and done with it sooner takes it, unless another model's
                    // batch must start there first.
                    let sooner = self.sooner(at, model, rows, now_ns);
                    let theirs = sooner.and_then(|it| Some((it, self.next(it, now_ns)?)));
                    match theirs.filter(|(_, (head, _))| head.model == model) {
                        Some((sooner, (head, Decision::Close { count, rows, .. }))) => {
                            let part = Part { skip: head.skip, count, rows };
                            self.send(sooner, model, part, now_ns);
                            continue;
                        }
                        Some((sooner, (_, Decision::Wait { until_ns }))) => {
                            self.wait(sooner, until_ns);
                        }
                        _ => self.send(at, model, Part { skip, count, rows }, now_ns),
                    }
                    return;
                }
                Decision::Expire { count } => {
                    for _ in 0..count {
                        let Some(entry) = self.queues[model].pop_front() else { break };
                        self.give_up(model, entry.payload);
                    }
                }
                Decision::Wait { until_ns } => return self.wait(at, until_ns),
                Decision::Idle => return,
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

    /// Has an idle executor run a part of a queue.
    pub(super) fn send(&mut self, at: usize, model: usize, part: Part, now_ns: u64) {
        let Part { skip, count, rows } = part;
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
            let entry = self.queues[model].take(skip as usize);
            self.on_board[at].extend(entry.map(|entry| entry.payload));
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
