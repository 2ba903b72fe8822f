//! Executors: one for each gpulet of a plan.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::arrivals::normal;
use super::{Guests, Settings};
use crate::interference::Running;
use crate::plan::{Plan, PlannedGpulet};
use crate::problem::Problem;
use crate::profile::{LatencyProfile, ProfilePoint};

/// Normal deviations that a 99th percentile is off the median.
const DEVIATIONS_P99: f64 = 2.326;

/// A gpulet that runs batches.
#[derive(Debug)]
pub(super) struct Executor {
    /// Number of its device.
    pub device: u32,
    /// Index of the device's type.
    pub kind: usize,
    /// Index of its share.
    pub share: usize,
    /// Models, and what the dispatcher knows of their latencies here.
    pub hosted: Vec<(usize, LatencyProfile)>,
    /// The same of models that may borrow it.
    pub guests: Vec<(usize, LatencyProfile)>,
    /// The factor that the planned neighbours put on latencies here.
    factor: f64,
    /// What it runs, and until when as predicted.
    pub running: Option<Running>,
    pub busy_until_ns: u64,
    /// When the wait for another row ends that was begun last.
    pub due_ns: u64,
    /// Serves nothing before.
    pub ready_ns: u64,
    /// Replaced by another plan: finishes what it runs.
    pub retired: bool,
    /// Counts the batches, to tell old events from new.
    pub batches: u64,
}

impl Executor {
    pub fn new(
        problem: &Problem,
        device: u32,
        kind_name: &str,
        gpulet: &PlannedGpulet,
        noise: f64,
        ready_ns: u64,
    ) -> Option<Self> {
        let kind = problem.devices.iter().position(|it| it.name == kind_name)?;
        let share = problem.share_index(kind, gpulet.share_pct)?;
        let mut hosted = Vec::new();
        for instance in &gpulet.instances {
            let model = problem.model_index(&instance.model)?;
            let factor = instance.interference;
            hosted.push((model, profile(problem, kind, share, model, factor, noise)?));
        }
        Some(Self {
            device,
            kind,
            share,
            hosted,
            guests: Vec::new(),
            factor: gpulet.instances.iter().map(|it| it.interference).fold(1.0, f64::max),
            running: None,
            busy_until_ns: 0,
            due_ns: 0,
            ready_ns,
            retired: false,
            batches: 0,
        })
    }

    pub fn profile(&self, model: usize) -> Option<&LatencyProfile> {
        self.hosted.iter().find(|it| it.0 == model).map(|it| &it.1)
    }

    /// The same for a model that may borrow it.
    pub fn guest(&self, model: usize) -> Option<&LatencyProfile> {
        self.guests.iter().find(|it| it.0 == model).map(|it| &it.1)
    }

    pub fn is_free(&self, now_ns: u64) -> bool {
        self.running.is_none() && !self.retired && self.ready_ns <= now_ns
    }
}

/// What a warm-up beside the planned neighbours would measure.
fn profile(
    problem: &Problem,
    kind: usize,
    share: usize,
    model: usize,
    factor: f64,
    noise: f64,
) -> Option<LatencyProfile> {
    let mut points = Vec::new();
    for rows in 1..=problem.settings.batch_max.min(64) {
        let solo_ms = problem.solo_ms(kind, model, share, rows);
        if !solo_ms.is_finite() {
            break;
        }
        let batching_ms = problem.models[model].costs.batching_ms(rows);
        let ns = |spread: f64| ((solo_ms * factor * spread + batching_ms) * 1e6).ceil() as u64;
        let p99_ns = ns((DEVIATIONS_P99 * noise).exp());
        points.push(ProfilePoint { rows, p50_ns: ns(1.0).max(1), p99_ns: p99_ns.max(1) });
    }
    LatencyProfile::new(&problem.models[model].name, &points).ok()
}

/// Executors of a plan.
pub(super) fn executors(
    problem: &Problem,
    plan: &Plan,
    settings: &Settings,
    ready_ns: u64,
) -> Vec<Executor> {
    let noise = settings.noise;
    let gpulets = plan.devices.iter().flat_map(|device| {
        device.gpulets.iter().map(move |gpulet| (device.device, device.kind.as_str(), gpulet))
    });
    let mut executors: Vec<Executor> = gpulets
        .filter_map(|(device, kind, gpulet)| {
            Executor::new(problem, device, kind, gpulet, noise, ready_ns)
        })
        .collect();
    for at in 0..executors.len() {
        let mut guests = guests(problem, &executors, at, settings.guests);
        let Executor { kind, share, factor, .. } = executors[at];
        guests.retain(|&model| executors[at].profile(model).is_none());
        let measured = |model| Some((model, profile(problem, kind, share, model, factor, noise)?));
        executors[at].guests = guests.into_iter().filter_map(measured).collect();
    }
    executors
}

/// Models that are loaded on an executor's device for others to borrow.
fn guests(problem: &Problem, executors: &[Executor], at: usize, guests: Guests) -> Vec<usize> {
    if guests == Guests::None {
        return Vec::new();
    }
    let Executor { device, kind, .. } = executors[at];
    let kind = &problem.devices[kind];
    let memory_mb = |model: usize| problem.models[model].costs.memory_mb;
    let here = executors.iter().filter(|it| it.device == device);
    let instances = here.clone().flat_map(|it| it.hosted.iter().map(|it| it.0));
    let contexts_mb = kind.context_mb * here.count() as u64;
    let used_mb = contexts_mb + instances.clone().map(memory_mb).sum::<u64>();
    let mut free_mb = kind.memory_mb.saturating_sub(used_mb);
    let mut loaded: BTreeSet<usize> = instances.collect();
    for model in 0..problem.models.len() {
        let fits = memory_mb(model) <= free_mb;
        if guests == Guests::All && fits && loaded.insert(model) {
            free_mb -= memory_mb(model);
        }
    }
    loaded.into_iter().collect()
}

/// Nanoseconds that a batch takes on `executors[at]` beside what its neighbours run right now.
pub(super) fn execution_ns(
    problem: &Problem,
    executors: &[Executor],
    beside: &[usize],
    at: usize,
    running: Running,
    noise: f64,
    rng: &mut Rng,
) -> u64 {
    let executor = &executors[at];
    let interference = &problem.devices[executor.kind].interference;
    let pressure = beside
        .iter()
        .filter(|&&other| other != at)
        .filter_map(|&other| executors[other].running)
        .map(|neighbour| interference.pressure(neighbour))
        .reduce(|one, two| interference.join(one, two));
    let factor = pressure.map_or(1.0, |it| interference.factor(running, it));
    let (model, rows) = (running.model, running.batch);
    let solo_ms = problem.solo_ms(executor.kind, model, executor.share, rows);
    let batching_ms = problem.models[model].costs.batching_ms(rows);
    let spread = if noise > 0.0 { (noise * normal(rng)).exp() } else { 1.0 };
    ((solo_ms * factor * spread + batching_ms) * 1e6).max(1.0) as u64
}
