//! The event loop.

mod batches;
mod lending;

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use fastrand::Rng;

use super::fleet::{Executor, executors};
use super::{Outcome, Planner, Second, Settings, Source, Stream, Tally, Watcher};
use crate::plan::Plan;
use crate::policy::{Admission, BatchLimits, Decision, Pace, admit, decide};
use crate::problem::Problem;
use crate::queue::DeadlineQueue;

/// What happens, in this order where it happens at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Done { executor: usize, batch: u64 },
    Ready,
    Expiry { model: usize },
    Due { executor: usize },
    Arrival { source: usize },
    Renewal,
}

/// A request of a source under way.
#[derive(Debug, Clone)]
struct Journey {
    source: usize,
    arrived_ns: u64,
    /// One bit a stage.
    done: u64,
    lost: bool,
}

/// A stage of a journey: what waits in queues.
#[derive(Debug, Clone, Copy)]
struct Ride {
    journey: u32,
    stage: u32,
    queued_ns: u64,
}

pub(super) struct Engine<'a> {
    problem: &'a Problem,
    sources: &'a [Source],
    settings: &'a Settings,
    plan: Plan,
    limits: BatchLimits,
    queues: Vec<DeadlineQueue<Ride>>,
    /// How requests come, by model.
    paces: Vec<Pace>,
    executors: Vec<Executor>,
    /// Executors by the models at home there, by the models that may borrow them, and by device.
    hosts: Vec<Vec<usize>>,
    lenders: Vec<Vec<usize>>,
    neighbours: Vec<Vec<usize>>,
    on_board: Vec<Vec<Ride>>,
    streams: Vec<Stream>,
    journeys: Vec<Journey>,
    unused: Vec<u32>,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    counted: Vec<u64>,
    /// When each model is looked at for hopeless requests next.
    next_expiry_ns: Vec<u64>,
    end_ns: u64,
    rng: Rng,
    outcome: Outcome,
    watcher: Option<Watcher<'a>>,
}

impl<'a> Engine<'a> {
    pub fn new(
        problem: &'a Problem,
        plan: &Plan,
        sources: &'a [Source],
        settings: &'a Settings,
    ) -> Self {
        let tally = |name: &String| Tally { name: name.clone(), ..Tally::default() };
        let apps = sources.iter().any(|source| source.stages.len() > 1);
        let seconds = settings.seconds.ceil() as usize;
        let models = problem.models.len();
        let mut engine = Self {
            problem,
            sources,
            settings,
            plan: plan.clone(),
            limits: BatchLimits {
                max_batch: problem.settings.batch_max,
                guard_ns: (settings.guard_ms * 1e6) as u64,
            },
            queues: (0..models).map(|_| DeadlineQueue::new(settings.queue_max)).collect(),
            paces: vec![Pace::default(); models],
            executors: executors(problem, plan, settings, 0),
            hosts: Vec::new(),
            lenders: Vec::new(),
            neighbours: Vec::new(),
            on_board: Vec::new(),
            streams: Vec::new(),
            journeys: Vec::new(),
            unused: Vec::new(),
            events: BinaryHeap::new(),
            counted: vec![0; models],
            next_expiry_ns: vec![u64::MAX; models],
            end_ns: (settings.seconds * 1e9) as u64,
            rng: Rng::with_seed(settings.seed),
            outcome: Outcome {
                seconds: settings.seconds,
                models: problem.models.iter().map(|model| tally(&model.name)).collect(),
                apps: if apps {
                    sources.iter().map(|it| tally(&it.name)).collect()
                } else {
                    vec![]
                },
                time_line: vec![Second::default(); seconds],
                plans: 0,
            },
            watcher: None,
        };
        engine.index();
        for (at, source) in sources.iter().enumerate() {
            let seed = settings.seed.wrapping_mul(0x9e37_79b9).wrapping_add(at as u64);
            engine.streams.push(source.arrivals.stream(seed));
            engine.expect(at);
        }
        if let Some(renewal) = settings.renewal {
            engine.push((renewal.period_s * 1e9) as u64, Event::Renewal);
        }
        engine
    }

    pub fn watched(mut self, watcher: Watcher<'a>) -> Self {
        self.watcher = Some(watcher);
        self
    }

    /// Runs to the end, and on until nothing is under way.
    pub fn run(mut self, planner: Option<Planner<'_>>) -> Outcome {
        while let Some(Reverse((now_ns, event))) = self.events.pop() {
            match event {
                Event::Done { executor, batch } => self.complete(executor, batch, now_ns),
                Event::Ready | Event::Due { .. } => {}
                Event::Expiry { model } => self.next_expiry_ns[model] = u64::MAX,
                Event::Arrival { source } => self.arrive(source, now_ns),
                Event::Renewal => self.renew(planner, now_ns),
            }
            self.turn(event, now_ns);
        }
        let devices = self.plan.devices.len() as u32;
        self.outcome.time_line.iter_mut().for_each(|second| {
            second.devices = if second.devices == 0 { devices } else { second.devices };
        });
        let Outcome { models, apps, .. } = &mut self.outcome;
        models.iter_mut().chain(apps).for_each(Tally::finish);
        self.outcome
    }

    fn push(&mut self, at_ns: u64, event: Event) {
        self.events.push(Reverse((at_ns, event)));
    }

    fn expect(&mut self, source: usize) {
        let at_s = self.streams[source].next_s();
        if at_s < self.settings.seconds {
            self.push((at_s * 1e9) as u64, Event::Arrival { source });
        }
    }

    fn index(&mut self) {
        self.hosts = vec![Vec::new(); self.problem.models.len()];
        self.lenders = self.hosts.clone();
        let devices = self.executors.iter().map(|it| it.device as usize + 1).max().unwrap_or(0);
        self.neighbours = vec![Vec::new(); devices];
        for (at, executor) in self.executors.iter().enumerate() {
            if executor.running.is_some() || !executor.retired {
                self.neighbours[executor.device as usize].push(at);
            }
            for (model, _) in executor.hosted.iter().filter(|_| !executor.retired) {
                self.hosts[*model].push(at);
            }
            for (model, _) in executor.guests.iter().filter(|_| !executor.retired) {
                self.lenders[*model].push(at);
            }
        }
        self.on_board.resize(self.executors.len(), Vec::new());
    }

    fn second(&mut self, now_ns: u64) -> Option<&mut Second> {
        self.outcome.time_line.get_mut((now_ns / 1_000_000_000) as usize)
    }

    fn arrive(&mut self, source: usize, now_ns: u64) {
        self.expect(source);
        let journey = Journey { source, arrived_ns: now_ns, done: 0, lost: false };
        let number = match self.unused.pop() {
            Some(number) => {
                self.journeys[number as usize] = journey;
                number
            }
            None => {
                self.journeys.push(journey);
                self.journeys.len() as u32 - 1
            }
        };
        if let Some(second) = self.second(now_ns) {
            second.arrived += 1;
        }
        if let Some(app) = self.outcome.apps.get_mut(source) {
            app.arrived += 1;
        }
        for (stage, it) in self.sources[source].stages.iter().enumerate() {
            if it.after.is_empty() {
                self.enqueue(number, stage, now_ns);
            }
        }
    }

    /// A stage's part of what is left of the SLO: as its model's SLO is to the longest way on.
    fn deadline_ns(&self, number: u32, stage: usize, now_ns: u64) -> u64 {
        let journey = &self.journeys[number as usize];
        let source = &self.sources[journey.source];
        let end_ns = journey.arrived_ns + (source.slo_ms * 1e6) as u64;
        let own = self.problem.models[source.stages[stage].model].slo_ms;
        let way = own + self.way_on_ms(source, stage);
        now_ns + (end_ns.saturating_sub(now_ns) as f64 * own / way) as u64
    }

    fn way_on_ms(&self, source: &Source, stage: usize) -> f64 {
        let fed = source.stages.iter().enumerate().filter(|(_, it)| it.after.contains(&stage));
        fed.map(|(at, it)| self.problem.models[it.model].slo_ms + self.way_on_ms(source, at))
            .fold(0.0, f64::max)
    }

    fn enqueue(&mut self, journey: u32, stage: usize, now_ns: u64) {
        let source = self.journeys[journey as usize].source;
        let model = self.sources[source].stages[stage].model;
        self.outcome.models[model].arrived += 1;
        self.counted[model] += 1;
        self.paces[model].note(now_ns);
        let deadline_ns = self.deadline_ns(journey, stage, now_ns);
        let admitted = self.hosts[model].iter().any(|&at| {
            let executor = &self.executors[at];
            let busy = [executor.busy_until_ns.max(executor.ready_ns)];
            executor.profile(model).is_some_and(|profile| {
                admit(now_ns, deadline_ns, 1, &self.limits, profile, &busy) == Admission::Admit
            })
        }) || self.may_be_lent(model, deadline_ns, now_ns);
        let ride = Ride { journey, stage: stage as u32, queued_ns: now_ns };
        if !admitted {
            self.outcome.models[model].refused += 1;
            self.lose(ride, |tally| tally.refused += 1);
        } else if self.queues[model].push(deadline_ns, 1, ride).is_err() {
            self.outcome.models[model].overflowed += 1;
            self.lose(ride, |tally| tally.overflowed += 1);
        }
    }

    /// Counts a journey out; its place is used again when no other stage of it can come.
    fn lose(&mut self, ride: Ride, count: impl Fn(&mut Tally)) {
        let journey = &mut self.journeys[ride.journey as usize];
        let source = journey.source;
        if !journey.lost {
            journey.lost = true;
            if let Some(app) = self.outcome.apps.get_mut(source) {
                count(app);
            }
        }
        if self.sources[source].stages.len() == 1 {
            self.unused.push(ride.journey);
        }
    }

    /// Lets free executors close batches, and requests expire, wherever `event` may have made a
    /// difference.
    fn turn(&mut self, event: Event, now_ns: u64) {
        match event {
            Event::Done { executor, .. } if self.sources.iter().all(|it| it.stages.len() == 1) => {
                let hosted: Vec<usize> =
                    self.executors[executor].hosted.iter().map(|it| it.0).collect();
                hosted.iter().for_each(|&model| self.expire(model, now_ns));
                self.close(executor, now_ns);
                self.lend(executor, now_ns);
            }
            Event::Arrival { source } if self.sources[source].stages.len() == 1 => {
                let model = self.sources[source].stages[0].model;
                self.serve(model, now_ns);
            }
            Event::Expiry { model } => self.serve(model, now_ns),
            Event::Due { executor } => {
                self.close(executor, now_ns);
                self.lend(executor, now_ns);
            }
            _ => (0..self.queues.len()).for_each(|model| self.serve(model, now_ns)),
        }
    }

    fn serve(&mut self, model: usize, now_ns: u64) {
        self.expire(model, now_ns);
        for host in 0..self.hosts[model].len() {
            if self.queues[model].is_empty() {
                break;
            }
            let executor = self.hosts[model][host];
            if self.executors[executor].is_free(now_ns) {
                self.close(executor, now_ns);
            }
        }
        for lender in 0..self.lenders[model].len() {
            self.lend(self.lenders[model][lender], now_ns);
        }
    }

    /// Takes out what not even the fastest executor can make.
    fn expire(&mut self, model: usize, now_ns: u64) {
        let profiles = self.hosts[model].iter().filter_map(|&at| self.executors[at].profile(model));
        let Some(fastest) = profiles.min_by_key(|profile| profile.latency_ns(1)) else { return };
        let mut lost = Vec::new();
        loop {
            match decide(&self.queues[model], &self.limits, None, now_ns, fastest) {
                Decision::Expire { count } => {
                    let taken = (0..count).filter_map(|_| self.queues[model].pop_front());
                    lost.extend(taken);
                }
                Decision::Wait { until_ns } => {
                    if until_ns < self.next_expiry_ns[model] {
                        self.next_expiry_ns[model] = until_ns;
                        self.push(until_ns, Event::Expiry { model });
                    }
                    break;
                }
                _ => break,
            }
        }
        lost.into_iter().for_each(|entry| self.give_up(model, entry.payload));
    }

    fn give_up(&mut self, model: usize, ride: Ride) {
        self.outcome.models[model].expired += 1;
        self.lose(ride, |tally| tally.expired += 1);
    }

    fn complete(&mut self, at: usize, batch: u64, now_ns: u64) {
        let executor = &mut self.executors[at];
        debug_assert_eq!(executor.batches, batch, "one batch at a time");
        let Some(running) = executor.running.take() else { return };
        executor.busy_until_ns = now_ns;
        let rides = std::mem::take(&mut self.on_board[at]);
        for ride in &rides {
            self.finish(*ride, running.model, now_ns);
        }
        self.on_board[at] = rides;
        self.on_board[at].clear();
    }

    fn finish(&mut self, ride: Ride, model: usize, now_ns: u64) {
        let journey = &mut self.journeys[ride.journey as usize];
        let source = &self.sources[journey.source];
        journey.done |= 1 << ride.stage;
        let (done, lost, arrived_ns, at) =
            (journey.done, journey.lost, journey.arrived_ns, journey.source);
        let plain = source.stages.len() == 1;
        let slo_ms = if plain { source.slo_ms } else { self.problem.models[model].slo_ms };
        let count = |tally: &mut Tally, from_ns: u64, slo_ms: f64| {
            let latency_ns = now_ns - from_ns;
            tally.latencies.add(latency_ns);
            let in_time = latency_ns as f64 <= slo_ms * 1e6;
            *(if in_time { &mut tally.in_time } else { &mut tally.late }) += 1;
            in_time
        };
        let mut in_time = count(&mut self.outcome.models[model], ride.queued_ns, slo_ms);
        let whole = done == (1_u64 << source.stages.len()) - 1;
        if !plain && whole && !lost {
            in_time = count(&mut self.outcome.apps[at], arrived_ns, source.slo_ms);
        }
        if whole {
            if in_time
                && !lost
                && let Some(second) = self.second(now_ns)
            {
                second.in_time += 1;
            }
            self.unused.push(ride.journey);
        } else if !lost {
            for (next, stage) in source.stages.iter().enumerate() {
                let fed = stage.after.contains(&(ride.stage as usize));
                if fed && stage.after.iter().all(|&it| done >> it & 1 == 1) {
                    self.enqueue(ride.journey, next, now_ns);
                }
            }
        }
    }

    fn renew(&mut self, planner: Option<Planner<'_>>, now_ns: u64) {
        let (Some(renewal), Some(planner)) = (self.settings.renewal, planner) else { return };
        let counted = self.counted.iter().map(|&count| count as f64 / renewal.period_s);
        let rates: Vec<f64> = counted.collect();
        self.counted.fill(0);
        let next_ns = now_ns + (renewal.period_s * 1e9) as u64;
        if next_ns < self.end_ns {
            self.push(next_ns, Event::Renewal);
        }
        let devices = self.plan.devices.len() as u32;
        let until = (now_ns / 1_000_000_000) as usize;
        for second in self.outcome.time_line.iter_mut().take(until) {
            second.devices = if second.devices == 0 { devices } else { second.devices };
        }
        // Where there is no plan for these rates, the running one stays.
        let Ok(next) = planner(&rates, &self.plan) else { return };
        if next.devices == self.plan.devices {
            return;
        }
        let ready_ns = now_ns + (renewal.change_s * 1e9) as u64;
        self.outcome.plans += 1;
        self.replace(next, ready_ns);
        self.push(ready_ns, Event::Ready);
    }

    /// Executors that are in the next plan too go on; the others finish what they run.
    fn replace(&mut self, next: Plan, ready_ns: u64) {
        let new = executors(self.problem, &next, self.settings, ready_ns);
        let mut kept = vec![false; self.executors.len()];
        let same = |one: &Executor, two: &Executor| {
            let models = |it: &Executor| it.hosted.iter().map(|it| it.0).collect::<Vec<_>>();
            one.device == two.device && one.share == two.share && models(one) == models(two)
        };
        for executor in new {
            let old = (0..kept.len()).find(|&at| {
                !kept[at] && !self.executors[at].retired && same(&self.executors[at], &executor)
            });
            match old {
                Some(at) => {
                    kept[at] = true;
                    self.executors[at].hosted = executor.hosted;
                    self.executors[at].guests = executor.guests;
                }
                None => self.executors.push(executor),
            }
        }
        kept.iter().zip(&mut self.executors).for_each(|(kept, it)| it.retired |= !kept);
        self.plan = next;
        self.index();
    }
}
