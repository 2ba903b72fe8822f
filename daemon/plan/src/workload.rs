//! The published workloads, variants of them, and the highest rate that a policy sustains.

use crate::demand::Demand;
use crate::plan::Plan;
use crate::problem::Problem;
use crate::search::Policy;
use crate::sim::{Arrivals, Outcome, Settings, Source, Stage, simulate};

/// Models that are asked for together, at level 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Workload {
    /// Its name.
    pub name: &'static str,
    /// Model, requests per second at level 1, SLO in ms.
    pub asked: &'static [(&'static str, f64, f64)],
    /// For an app: for each of `asked`, which of them feed it.
    pub fed_by: Option<&'static [&'static [usize]]>,
    /// For an app: from arrival to the last answer, ms.
    pub slo_ms: f64,
}

const LENET: f64 = 5.0;
const GOOGLENET: f64 = 66.0;
const RESNET: f64 = 108.0;
const SSD: f64 = 202.0;
const VGG: f64 = 142.0;
const MNASNET: f64 = 62.0;
const MOBILENET: f64 = 64.0;
const DENSENET: f64 = 202.0;
const BERT: f64 = 22.0;

const fn plain(name: &'static str, asked: &'static [(&'static str, f64, f64)]) -> Workload {
    Workload { name, asked, fed_by: None, slo_ms: 0.0 }
}

const GAME: &[(&str, f64, f64)] = &[
    ("lenet1", 1.0, 108.0),
    ("lenet2", 1.0, 108.0),
    ("lenet3", 1.0, 108.0),
    ("lenet4", 1.0, 108.0),
    ("lenet5", 1.0, 108.0),
    ("lenet6", 1.0, 108.0),
    ("resnet50", 1.0, 108.0),
];

const TRAFFIC: &[(&str, f64, f64)] =
    &[("googlenet", 1.0, 112.0), ("ssd-mobilenetv1", 1.0, 90.0), ("vgg16", 1.0, 112.0)];

/// The scenarios and apps of the published experiments, by level.
pub const SCENARIOS: [Workload; 7] = [
    plain(
        "scen1",
        &[
            ("googlenet", 100.0, GOOGLENET),
            ("bert", 100.0, BERT),
            ("mnasnet1_0", 50.0, MNASNET),
            ("mobilenet_v2", 50.0, MOBILENET),
        ],
    ),
    plain("scen2", &[("densenet161", 10.0, DENSENET), ("vgg16", 10.0, VGG)]),
    plain(
        "scen3",
        &[("resnet50", 10.0, RESNET), ("vgg16", 10.0, VGG), ("mobilenet_v2", 10.0, MOBILENET)],
    ),
    plain(
        "scen4",
        &[
            ("ssd-mobilenetv1", 10.0, SSD),
            ("mnasnet1_0", 10.0, MNASNET),
            ("densenet161", 10.0, DENSENET),
        ],
    ),
    plain(
        "scen5",
        &[
            ("lenet1", 10.0, LENET),
            ("ssd-mobilenetv1", 10.0, SSD),
            ("vgg16", 10.0, VGG),
            ("mnasnet1_0", 10.0, MNASNET),
        ],
    ),
    Workload {
        name: "game",
        asked: GAME,
        fed_by: Some(&[&[], &[], &[], &[], &[], &[], &[]]),
        slo_ms: 108.0,
    },
    Workload { name: "traffic", asked: TRAFFIC, fed_by: Some(&[&[1], &[], &[1]]), slo_ms: 202.0 },
];

/// The workloads of the published peak search, by rate; where they differ from the scenarios.
pub const PEAKS: [Workload; 2] = [
    plain(
        "peak1",
        &[
            ("lenet1", 2.0, LENET),
            ("googlenet", 2.0, GOOGLENET),
            ("resnet50", 2.0, RESNET),
            ("ssd-mobilenetv1", 1.0, SSD),
            ("vgg16", 1.0, VGG),
        ],
    ),
    plain(
        "peak2",
        &[("resnet50", 1.0, RESNET), ("ssd-mobilenetv1", 1.0, SSD), ("vgg16", 1.0, VGG)],
    ),
];

/// Models of the published schedulability cases.
pub const SCHEDULABILITY: [(&str, f64); 9] = [
    ("lenet1", LENET),
    ("googlenet", GOOGLENET),
    ("resnet50", RESNET),
    ("ssd-mobilenetv1", SSD),
    ("vgg16", VGG),
    ("mnasnet1_0", MNASNET),
    ("mobilenet_v2", MOBILENET),
    ("densenet161", DENSENET),
    ("bert", BERT),
];

/// The workload of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<&'static Workload> {
    SCENARIOS.iter().chain(&PEAKS).find(|workload| workload.name == name)
}

/// Case `number` of the schedulability cases: every model at 0, 100 or 200 requests per second.
/// From 1 to 3 to the power of the models, less 1.
#[must_use]
pub fn schedulability(mut number: u32) -> Vec<Demand> {
    let mut demands = Vec::new();
    for (model, slo_ms) in SCHEDULABILITY {
        let rate = f64::from(number % 3) * 100.0;
        number /= 3;
        demands.push(Demand { model: model.into(), rate, slo_ms });
    }
    demands
}

impl Workload {
    /// Demands at a level; `slo` is a factor on every SLO: below 1 for the tight variants.
    #[must_use]
    pub fn demands(&self, level: f64, slo: f64) -> Vec<Demand> {
        let demand = |&(model, rate, slo_ms): &(&str, f64, f64)| Demand {
            model: model.into(),
            rate: rate * level,
            slo_ms: slo_ms * slo,
        };
        self.asked.iter().map(demand).collect()
    }

    /// Who asks, for a problem made of its demands: `arrivals` makes a stream of a rate.
    #[must_use]
    pub fn sources(&self, problem: &Problem, arrivals: &dyn Fn(f64) -> Arrivals) -> Vec<Source> {
        let number = |name: &str| problem.model_index(name);
        let rate = |model: usize| arrivals(problem.models[model].rate);
        let Some(fed_by) = self.fed_by else {
            let models = 0..problem.models.len();
            return models.map(|it| Source::plain(problem, it, rate(it))).collect();
        };
        let stages: Vec<Stage> = self
            .asked
            .iter()
            .zip(fed_by)
            .filter_map(|(it, after)| Some(Stage { model: number(it.0)?, after: after.to_vec() }))
            .collect();
        let arrivals = stages.first().map(|stage| rate(stage.model));
        let source =
            |arrivals| Source { name: self.name.into(), arrivals, stages, slo_ms: self.slo_ms };
        arrivals.map(source).into_iter().collect()
    }
}

/// The published file of rates for `demands`: a count, then `model,rate,slo_ms,` a line.
#[must_use]
pub fn rates_file(demands: &[Demand]) -> String {
    let lines = demands.iter().map(|it| {
        let known = crate::published::MODELS.iter().position(|known| known.name == it.model);
        let model = known.map_or_else(|| it.model.clone(), |number| number.to_string());
        format!("{model},{},{},\n", it.rate, it.slo_ms)
    });
    format!("{}\n{}", demands.len(), lines.collect::<String>())
}

/// The most that a policy sustains.
#[derive(Debug, Clone)]
pub struct Peak {
    /// Level of the workload.
    pub level: f64,
    /// Requests per second asked at that level, of all models.
    pub rate: f64,
    /// The plan.
    pub plan: Plan,
    /// What came of it.
    pub outcome: Outcome,
}

/// The highest level at which all models, or apps, reach `attainment`, to a hundredth; `None`
/// when there is none. `pose` makes the problem of a level, planned for its mean rates. The plan
/// is that of the highest level that the policy plans for on the devices there are: what it
/// has to offer.
#[must_use]
pub fn peak(
    policy: Policy,
    pose: &dyn Fn(f64) -> Problem,
    sources: &dyn Fn(&Problem) -> Vec<Source>,
    attainment: f64,
    settings: &Settings,
) -> Option<Peak> {
    let planned = highest(|level| policy.plan(&pose(level)).ok())?;
    let (_, plan) = planned;
    let sustained = highest(|level| {
        let problem = pose(level);
        let outcome = simulate(&problem, &plan, &sources(&problem), settings, None);
        let rate = problem.models.iter().map(|model| model.rate).sum();
        (outcome.least_attainment() >= attainment).then_some((rate, outcome))
    });
    let (level, (rate, outcome)) = sustained?;
    Some(Peak { level, rate, plan, outcome })
}

/// The highest level at which `attempt` succeeds, to a hundredth, and what it gave there.
fn highest<T>(attempt: impl Fn(f64) -> Option<T>) -> Option<(f64, T)> {
    let (mut low, mut high) = (None, 1.0);
    while let Some(found) = attempt(high) {
        low = Some((high, found));
        high *= 2.0;
        if high > 1e7 {
            return low;
        }
    }
    let mut low_level = low.as_ref().map_or(0.0, |it| it.0);
    while high - low_level > high * 0.01 && high > 1e-3 {
        let middle = (low_level + high) / 2.0;
        match attempt(middle) {
            Some(found) => {
                low_level = middle;
                low = Some((middle, found));
            }
            None => high = middle,
        }
    }
    low
}
