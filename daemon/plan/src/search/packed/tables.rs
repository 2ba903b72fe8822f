//! What the search looks up: layouts of a device, and latencies by the worst that can happen there.

use std::cell::Cell;

use super::layouts::{alone, layouts_of};
use crate::bound::least_share;
use crate::interference::Running;
use crate::problem::Problem;

/// Most models that take turns on one gpulet.
pub(super) const MEMBERS_MAX: usize = 8;

/// Margin that the rounding of a duty cycle may take of an SLO, ms.
const ROUNDING_MS: f64 = 4e-6;

/// What gpulets emit, by device type and share.
type Emitted = Vec<Vec<f64>>;

/// Gpulets of one share that suffer at most one pressure.
#[derive(Debug)]
pub(super) struct Class {
    /// Index into the shares of the device type.
    pub share: usize,
    /// Share, percent.
    pub share_pct: u32,
    /// Worst pressure from the other slots; `None` without others.
    pressure: Option<f64>,
    /// Planned latency by model and batch, ms; infinite where it cannot run.
    latency_ms: Vec<f64>,
    /// Per model the batch that carries most alone, and how much, requests per second.
    pub best: Vec<(u32, f64)>,
    /// What such a gpulet costs, in devices: all of a layout cost 1 at most.
    cost: f64,
}

/// A device type, prepared.
#[derive(Debug)]
pub(super) struct Kind {
    pub classes: Vec<Class>,
    /// Classes of the slots of each layout, largest share first.
    pub layouts: Vec<Vec<usize>>,
    /// For each class the one of the same share that suffers least: no slot is worth more.
    pub hopes: Vec<usize>,
    pub memory_mb: f64,
    pub context_mb: f64,
    pub network_bits: f64,
    pub count: u32,
}

/// Everything that does not change between rounds, and what looking through it has taken.
#[derive(Debug)]
pub(super) struct Tables {
    /// What filling gpulets has taken so far, in steps of a few ns each: a search ends after so
    /// much work, because it must not depend on a clock.
    pub work: Cell<u64>,
    pub kinds: Vec<Kind>,
    pub batch_max: u32,
    pub members_max: usize,
    /// Longest duty cycle of each model, ms: half its SLO.
    pub duty_max_ms: Vec<f64>,
    pub memory_mb: Vec<f64>,
    pub request_bits: Vec<f64>,
    /// Least part of a device that a request per second takes.
    pub price: Vec<f64>,
}

impl Class {
    /// Worth of what such a gpulet serves at most, however much is asked of `models`: one that is
    /// shared serves no more than the best of those that share it would alone.
    pub fn most(&self, worth: &[f64], models: impl Iterator<Item = usize>) -> f64 {
        let carries = models.filter(|&model| self.best[model].1 > 0.0);
        carries.map(|model| worth[model] * self.best[model].1).fold(0.0, f64::max)
    }
}

impl Kind {
    /// The same of every class.
    pub fn most(&self, worth: &[f64], models: &[usize]) -> Vec<f64> {
        self.classes.iter().map(|class| class.most(worth, models.iter().copied())).collect()
    }
}

impl Tables {
    /// For all models: with the worst neighbours, beside whom all that is found holds; and, unless
    /// they are as bad, with usual ones: what is found must be fitted to those that it has.
    pub fn all(problem: &Problem) -> Vec<Self> {
        let wanted = vec![true; problem.models.len()];
        let mut neighbours = vec![worst(problem), usual(problem)];
        neighbours.dedup();
        neighbours.iter().map(|it| Self::beside(problem, &wanted, it)).collect()
    }

    /// For the models that are `wanted`, with the worst neighbours; the others cannot be placed
    /// with them.
    pub fn of(problem: &Problem, wanted: &[bool]) -> Self {
        Self::beside(problem, wanted, &worst(problem))
    }

    /// With neighbours that emit so much.
    fn beside(problem: &Problem, wanted: &[bool], emitted: &Emitted) -> Self {
        let models = &problem.models;
        let duty_max_ms: Vec<f64> =
            models.iter().map(|model| (model.slo_ms - ROUNDING_MS) / 2.0).collect();
        let limits = duty_max_ms.iter().zip(wanted);
        let limits: Vec<f64> = limits.map(|(&ms, &it)| if it { ms } else { 0.0 }).collect();
        let mut kinds: Vec<Kind> = (0..problem.devices.len())
            .map(|device| kind(problem, device, &limits, &emitted[device]))
            .collect();
        let price: Vec<f64> = (0..models.len()).map(|model| price(&kinds, model)).collect();
        set_costs(&mut kinds, &price);
        Self {
            work: Cell::new(0),
            kinds,
            batch_max: problem.settings.batch_max,
            members_max: problem.settings.models_per_gpulet_max.min(MEMBERS_MAX),
            duty_max_ms,
            memory_mb: models.iter().map(|model| model.costs.memory_mb as f64).collect(),
            request_bits: models.iter().map(|it| it.costs.request_bytes as f64 * 8.0).collect(),
            price,
        }
    }

    /// Adds to the work that was done.
    pub fn worked(&self, steps: usize) {
        self.work.set(self.work.get() + steps as u64);
    }

    /// Devices that there are of each type.
    pub fn available(&self) -> Vec<u32> {
        self.kinds.iter().map(|kind| kind.count).collect()
    }

    pub fn latency_ms(&self, class: &Class, model: usize, batch: u32) -> f64 {
        class.latency_ms[model * self.batch_max as usize + batch as usize - 1]
    }

    /// Devices that so many requests per second of a model take at least, however they are spread.
    pub fn devices(&self, model: usize, rate: f64) -> f64 {
        let classes = self.kinds.iter().flat_map(|kind| &kind.classes);
        self.worked(20);
        let costs = classes.map(|class| class.cost * self.busy(class, model, rate));
        costs.fold(f64::INFINITY, f64::min)
    }

    /// Part of a gpulet's time that so many requests per second take at least: batches of more
    /// rows take less time for each, but they must come together within a duty cycle.
    fn busy(&self, class: &Class, model: usize, rate: f64) -> f64 {
        let (batch, carried) = class.best[model];
        let duty_s = self.duty_max_ms[model] / 1000.0;
        let rows = rate * duty_s;
        if carried <= 0.0 {
            return f64::INFINITY;
        }
        if rows >= f64::from(batch) {
            return rate / carried;
        }
        let seconds = |batch: u32| self.latency_ms(class, model, batch) / 1000.0;
        let filled = (1..=rows as u32).map(|batch| rate * seconds(batch) / f64::from(batch));
        filled.fold(seconds(rows as u32 + 1) / duty_s, f64::min)
    }

    /// Largest batch of a model that takes at most `within_ms`; 0 for none.
    pub fn batch_within(&self, class: &Class, model: usize, within_ms: f64) -> u32 {
        let batches = self.batch_max as usize;
        let latencies = &class.latency_ms[model * batches..(model + 1) * batches];
        latencies.partition_point(|&ms| ms <= within_ms) as u32
    }
}

/// A gpulet costs what the best that it could serve is worth, of a device that is worth most.
fn set_costs(kinds: &mut [Kind], price: &[f64]) {
    let all: Vec<usize> = (0..price.len()).collect();
    let mut dearest = 0.0_f64;
    for kind in kinds.iter_mut() {
        let most = kind.most(price, &all);
        for layout in &kind.layouts {
            dearest = dearest.max(layout.iter().map(|&class| most[class]).sum());
        }
        kind.classes.iter_mut().zip(most).for_each(|(class, most)| class.cost = most);
    }
    kinds.iter_mut().flat_map(|kind| &mut kind.classes).for_each(|class| class.cost /= dearest);
}

fn price(kinds: &[Kind], model: usize) -> f64 {
    let classes = kinds.iter().flat_map(|kind| &kind.classes);
    classes
        .filter(|class| class.best[model].1 > 0.0)
        .map(|class| f64::from(class.share_pct) / 100.0 / class.best[model].1)
        .fold(f64::INFINITY, f64::min)
}

/// The most that any model emits.
fn worst(problem: &Problem) -> Emitted {
    by_share(problem, |device, share| {
        emitted(problem, device, share).map(|it| it.1).fold(0.0, f64::max)
    })
}

/// The mean of all models, by what they take of devices.
fn usual(problem: &Problem) -> Emitted {
    let takes: Vec<f64> = (0..problem.models.len())
        .map(|it| problem.models[it].planned_rate * least_share(problem, it))
        .collect();
    by_share(problem, |device, share| mean(&takes, emitted(problem, device, share)))
}

fn by_share(problem: &Problem, of: impl Fn(usize, usize) -> f64) -> Emitted {
    let shares = |device: usize| 0..problem.devices[device].shares_pct.len();
    (0..problem.devices.len())
        .map(|device| shares(device).map(|share| of(device, share)).collect())
        .collect()
}

fn kind(problem: &Problem, device: usize, duty_max_ms: &[f64], emitted: &[f64]) -> Kind {
    let device_type = &problem.devices[device];
    let mut classes: Vec<Class> = Vec::new();
    let mut layouts = Vec::new();
    for layout in layouts_of(problem, device) {
        let mut slots = Vec::new();
        for own in 0..layout.len() {
            let others = (0..layout.len()).filter(|&at| at != own).map(|at| emitted[layout[at]]);
            let pressure = others.reduce(|one, two| device_type.interference.join(one, two));
            let known = classes
                .iter()
                .position(|class| class.share == layout[own] && class.pressure == pressure);
            slots.push(known.unwrap_or_else(|| {
                classes.push(class(problem, device, layout[own], pressure, duty_max_ms));
                classes.len() - 1
            }));
        }
        layouts.push(slots);
    }
    // Whoever bears no neighbour of those has a device alone.
    for model in 0..duty_max_ms.len() {
        if duty_max_ms[model] > 0.0
            && classes.iter().all(|class| class.best[model].1 <= 0.0)
            && let Some(share) = alone(problem, device, model)
        {
            layouts.push(vec![classes.len()]);
            classes.push(class(problem, device, share, None, duty_max_ms));
        }
    }
    let hope = |class: &Class| {
        let same = (0..classes.len()).filter(|&at| classes[at].share == class.share);
        let suffered = |at: usize| classes[at].pressure.unwrap_or(-1.0);
        same.min_by(|&one, &two| suffered(one).total_cmp(&suffered(two))).unwrap_or(0)
    };
    Kind {
        hopes: classes.iter().map(hope).collect(),
        classes,
        layouts,
        memory_mb: device_type.memory_mb as f64,
        context_mb: device_type.context_mb as f64,
        network_bits: device_type.network_bits.unwrap_or(f64::INFINITY),
        count: device_type.count,
    }
}

/// Models that can run on a gpulet of that share, and the most that each emits there.
fn emitted(problem: &Problem, device: usize, share: usize) -> impl Iterator<Item = (usize, f64)> {
    let kind = &problem.devices[device];
    let share_pct = kind.shares_pct[share];
    problem.models.iter().enumerate().filter_map(move |(model, asked)| {
        (1..=problem.settings.batch_max)
            .take_while(|&batch| {
                2.0 * problem.planned_ms(device, model, share, batch, 1.0) <= asked.slo_ms
            })
            .map(|batch| kind.interference.pressure(Running { model, batch, share_pct }))
            .reduce(f64::max)
            .map(|most| (model, most))
    })
}

/// The mean by `weights`; 0 of nothing.
fn mean(weights: &[f64], of: impl Iterator<Item = (usize, f64)>) -> f64 {
    let sums = of.fold((0.0, 0.0), |(sum, weight), (at, value)| {
        (sum + weights[at] * value, weight + weights[at])
    });
    if sums.1 > 0.0 { sums.0 / sums.1 } else { 0.0 }
}

fn class(
    problem: &Problem,
    device: usize,
    share: usize,
    pressure: Option<f64>,
    duty_max_ms: &[f64],
) -> Class {
    let batches = problem.settings.batch_max;
    let mut latency_ms = Vec::with_capacity(problem.models.len() * batches as usize);
    let mut best = Vec::new();
    for (model, &within_ms) in duty_max_ms.iter().enumerate() {
        let mut slowest_ms = 0.0_f64;
        let mut most = (0, 0.0);
        for batch in 1..=batches {
            if slowest_ms.is_finite() {
                let factor =
                    pressure.map_or(1.0, |it| problem.factor(device, model, share, batch, it));
                let ms = problem.planned_ms(device, model, share, batch, factor);
                slowest_ms = slowest_ms.max(ms);
                let throughput = f64::from(batch) * 1000.0 / slowest_ms;
                if slowest_ms <= within_ms && throughput > most.1 {
                    most = (batch, throughput);
                }
                if slowest_ms > within_ms {
                    // No plan could use it.
                    slowest_ms = f64::INFINITY;
                }
            }
            latency_ms.push(slowest_ms);
        }
        best.push(most);
    }
    let share_pct = problem.devices[device].shares_pct[share];
    Class { share, share_pct, pressure, latency_ms, best, cost: 0.0 }
}
