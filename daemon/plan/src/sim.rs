//! Discrete events on virtual time: the dispatcher's own decisions over executors that take as
//! long as a profile says.
//!
//! Requests go through [`policy`](crate::policy) exactly as in the daemon: admitted or refused on
//! arrival, closed into batches when an executor is free, expired when hopeless. What an executor
//! does is made up: the measured latency at its share, times what its neighbours that run at the
//! moment make of it, times noise, plus gathering the batch. Apps are models that feed each
//! other; one request of an app is done when all of its stages are.

mod arrivals;
mod engine;
mod fleet;
mod outcome;

pub use self::arrivals::{Arrivals, Stream};
pub use self::outcome::{Latencies, Outcome, Second, Tally};

use crate::interference::Running;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::search::Infeasible;

/// Who asks, and what for.
#[derive(Debug, Clone, PartialEq)]
pub struct Source {
    /// Name of the app, or of the model that is asked for.
    pub name: String,
    /// When requests arrive.
    pub arrivals: Arrivals,
    /// Its stages, each after those that feed it; a plain model is one stage.
    pub stages: Vec<Stage>,
    /// From arrival to the end of all stages, ms.
    pub slo_ms: f64,
}

/// A model that an app runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stage {
    /// Number of the model in the problem.
    pub model: usize,
    /// Stages that must be done before.
    pub after: Vec<usize>,
}

impl Source {
    /// A source that asks for one model, within the model's SLO.
    #[must_use]
    pub fn plain(problem: &Problem, model: usize, arrivals: Arrivals) -> Self {
        let asked = &problem.models[model];
        let stages = vec![Stage { model, after: Vec::new() }];
        Self { name: asked.name.clone(), arrivals, stages, slo_ms: asked.slo_ms }
    }
}

/// When and how plans are renewed while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Renewal {
    /// Seconds from one plan to the next.
    pub period_s: f64,
    /// Seconds that a gpulet takes to change; it serves nothing meanwhile.
    pub change_s: f64,
}

/// Which models may borrow a gpulet where they are not at home.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guests {
    /// None: every model runs where the plan has it.
    None,
    /// Those at home elsewhere on the same device, which has them loaded.
    OfDevice,
    /// Those, and as many others as the device's memory has room for, in order of their names.
    All,
}

/// How to simulate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The same seed, the same outcome.
    pub seed: u64,
    /// Seconds of virtual time.
    pub seconds: f64,
    /// Standard deviation of an execution's logarithm.
    pub noise: f64,
    /// Time set aside between a batch's end and its deadlines, ms.
    pub guard_ms: f64,
    /// Requests that wait for one model at most.
    pub queue_max: u32,
    /// Who may borrow idle gpulets.
    pub guests: Guests,
    /// A gpulet waits for another row of a model where that pays.
    pub defer: bool,
    /// Renewing plans; `None` keeps the first.
    pub renewal: Option<Renewal>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            seed: 1,
            seconds: 60.0,
            noise: 0.01,
            guard_ms: 0.1,
            queue_max: 4096,
            guests: Guests::None,
            defer: false,
            renewal: None,
        }
    }
}

/// Makes the next plan from rates as they were counted, in requests per second by model.
pub type Planner<'a> = &'a dyn Fn(&[f64], &Plan) -> Result<Plan, Infeasible>;

/// A batch that was begun, and how long it takes: what a model of interference learns from.
#[derive(Debug, Clone, Copy)]
pub struct Ran<'a> {
    /// Number of the device's type in the problem.
    pub kind: usize,
    /// The batch.
    pub running: Running,
    /// What ran on the other gpulets of its device when it was begun.
    pub beside: &'a [Running],
    /// How long it took over how long it takes alone.
    pub factor: f64,
}

/// Is told of every batch, before the next plan is made.
pub type Watcher<'a> = &'a mut dyn FnMut(&Ran<'_>);

/// Simulates `sources` on the gpulets of `plan`. `planner` is asked where
/// [`Settings::renewal`] says so.
#[must_use]
pub fn simulate(
    problem: &Problem,
    plan: &Plan,
    sources: &[Source],
    settings: &Settings,
    planner: Option<Planner<'_>>,
) -> Outcome {
    engine::Engine::new(problem, plan, sources, settings).run(planner)
}

/// The same, with every batch shown to `watcher`: the problem says what really happens, plans may
/// be made from what was learnt of it.
#[must_use]
pub fn simulate_watched(
    problem: &Problem,
    plan: &Plan,
    sources: &[Source],
    settings: &Settings,
    planner: Planner<'_>,
    watcher: Watcher<'_>,
) -> Outcome {
    engine::Engine::new(problem, plan, sources, settings).watched(watcher).run(Some(planner))
}
