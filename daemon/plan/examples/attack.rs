//! Poses problems of all kinds at random, and looks for what no plan may do:
//! `cargo run --release -p gpulet-plan --example attack [-- SEED [PROBLEMS]]`.
//! Ends with 1 if it finds any; each finding says the seed that poses its problem again.
#![allow(clippy::unwrap_used, reason = "a panic is a finding too")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;

use fastrand::Rng;
use gpulet_plan::check::check;
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::packed::step;
use gpulet_plan::search::{Infeasible, Policy};

use support::posed::Posed;

/// Policies that may find a plan where ours finds none, or one with fewer devices.
const OTHERS: [Policy; 4] =
    [Policy::Elastic, Policy::ElasticNoInterference, Policy::Greedy, Policy::Temporal];

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).map(|it| it.parse().expect("SEED [PROBLEMS]"));
    let first: u64 = args.next().unwrap_or(1);
    let problems: u64 = args.next().unwrap_or(300);
    let mut attack = Attack::default();
    for seed in first..first + problems {
        attack.pose(seed);
    }
    println!("{problems} problems from seed {first}");
    attack.counts.iter().for_each(|(what, count)| println!("  {count} {what}"));
    println!("{} found", attack.found);
    ExitCode::from(u8::from(attack.found > 0))
}

#[derive(Default)]
struct Attack {
    seed: u64,
    /// What was looked at, and how often.
    counts: BTreeMap<String, usize>,
    found: usize,
}

impl Attack {
    fn pose(&mut self, seed: u64) {
        self.seed = seed;
        let mut rng = Rng::with_seed(seed);
        let posed = Posed::any(&mut rng);
        let Some((plan, kinds)) = self.plans(&posed) else { return };
        self.enough(&posed, &plan, &kinds);
        self.order(&posed, &plan, &mut rng);
        self.others(&posed, &plan);
        self.rising(&posed, &plan, &mut rng);
        self.steps(&posed, plan, &mut rng);
    }

    fn count(&mut self, what: &str, by: usize) {
        *self.counts.entry(what.to_owned()).or_default() += by;
    }

    fn found(&mut self, what: &str) {
        println!("seed {}: {what}", self.seed);
        self.found += 1;
    }

    /// A plan by ours, which has to hold; and how many devices of each type it takes.
    fn plans(&mut self, posed: &Posed) -> Option<(Plan, Vec<u32>)> {
        let problem = posed.problem();
        match Policy::Packed.plan(&problem) {
            Ok(plan) => {
                self.count("plans of ours", 1);
                self.count("devices in them", plan.devices.len());
                self.holds(&problem, &plan);
                let kinds = taken(&problem, &plan);
                Some((plan, kinds))
            }
            Err(why) => {
                self.count(&format!("problems without a plan ({})", kind_of(&why)), 1);
                self.refused(posed, &why);
                None
            }
        }
    }

    fn holds(&mut self, problem: &Problem, plan: &Plan) {
        self.count("checks", 1);
        if let Some(broken) = check(problem, plan).first() {
            self.found(&format!("{}: {broken}", plan.policy));
        }
        if (plan.devices.len() as f64) < plan.bound - 1e-6 {
            self.found(&format!(
                "{}: {} devices, bound {}",
                plan.policy,
                plan.devices.len(),
                plan.bound
            ));
        }
    }

    /// Where ours says that it cannot be, nobody else can.
    fn refused(&mut self, posed: &Posed, why: &Infeasible) {
        for policy in OTHERS {
            if let Ok(plan) = policy.plan(&posed.problem()) {
                self.found(&format!("{why}, but {} needs {}", policy.name(), plan.devices.len()));
            }
        }
    }

    /// As many devices as a plan takes are enough.
    fn enough(&mut self, posed: &Posed, plan: &Plan, kinds: &[u32]) {
        self.count("problems with just enough devices", 1);
        match Policy::Packed.plan(&posed.with_devices(kinds).problem()) {
            Ok(tight) if tight.devices.len() <= plan.devices.len() => {
                self.holds(&posed.with_devices(kinds).problem(), &tight);
            }
            Ok(tight) => self.found(&format!(
                "{} devices, of {:?} there are {}",
                plan.devices.len(),
                kinds,
                tight.devices.len()
            )),
            Err(why) => self.found(&format!("just enough devices {kinds:?}: {why}")),
        }
    }

    /// The order of demands does not matter.
    fn order(&mut self, posed: &Posed, plan: &Plan, rng: &mut Rng) {
        let mut order: Vec<usize> = (0..posed.models.len()).collect();
        rng.shuffle(&mut order);
        self.count("other orders", 1);
        if Policy::Packed.plan(&posed.problem_in(&order)).as_ref() != Ok(plan) {
            self.found("another order, another plan");
        }
    }

    /// No other policy needs fewer devices; with what it needs, ours finds a plan too.
    fn others(&mut self, posed: &Posed, plan: &Plan) {
        let problem = posed.problem();
        for policy in OTHERS {
            let Ok(other) = policy.plan(&problem) else { continue };
            self.holds(&problem, &other);
            let (ours, theirs) = (plan.devices.len(), other.devices.len());
            self.count(&format!("devices of {}", policy.name()), theirs);
            self.count(&format!("devices of ours, where {} has a plan", policy.name()), ours);
            if ours > theirs {
                self.found(&format!("{} needs {theirs}, ours {ours}", policy.name()));
            }
            let limited = posed.with_devices(&taken(&problem, &other));
            self.count("problems with the devices of another policy", 1);
            match Policy::Packed.plan(&limited.problem()) {
                Ok(tight) => self.holds(&limited.problem(), &tight),
                Err(why) => self.found(&format!("the devices of {}: {why}", policy.name())),
            }
        }
    }

    /// More load of all models, and of one: never fewer devices.
    fn rising(&mut self, posed: &Posed, plan: &Plan, rng: &mut Rng) {
        let levels = if posed.models.len() <= 20 { 12 } else { 4 };
        let single = rng.usize(0..posed.models.len());
        let steps = [1.01, 1.03, 1.08, 1.2];
        for one in [false, true] {
            let (mut last, mut factor) = (plan.devices.len(), 1.0);
            for _ in 0..levels {
                factor *= steps[rng.usize(0..steps.len())];
                let raised = posed.raised(|at| if one && at != single { 1.0 } else { factor });
                let problem = raised.problem();
                let Ok(plan) = Policy::Packed.plan(&problem) else { break };
                self.holds(&problem, &plan);
                self.count("rising loads", 1);
                let count = plan.devices.len();
                if count < last {
                    let what = if one { format!("of model {single}") } else { "of all".into() };
                    self.found(&format!("load {what} times {factor:.4}: {count} after {last}"));
                }
                last = count;
            }
        }
    }

    /// From plan to plan: each holds.
    fn steps(&mut self, posed: &Posed, mut running: Plan, rng: &mut Rng) {
        for _ in 0..3 {
            let factors: Vec<f64> =
                posed.models.iter().map(|_| 0.3 * 8.0_f64.powf(rng.f64())).collect();
            let problem = posed.raised(|at| factors[at]).problem();
            match step(&problem, &running) {
                Ok(plan) => {
                    self.count("steps", 1);
                    self.holds(&problem, &plan);
                    running = plan;
                }
                Err(why) => {
                    if Policy::Packed.plan(&problem).is_ok() {
                        self.found(&format!("step: {why}"));
                    }
                }
            }
        }
    }
}

/// Devices of each type that a plan takes.
fn taken(problem: &Problem, plan: &Plan) -> Vec<u32> {
    let of = |name: &str| plan.devices.iter().filter(|device| device.kind == name).count() as u32;
    problem.devices.iter().map(|kind| of(&kind.name)).collect()
}

fn kind_of(why: &Infeasible) -> &'static str {
    match why {
        Infeasible::Slo { .. } => "SLO",
        Infeasible::Memory { .. } => "memory",
        Infeasible::Devices { .. } => "devices",
        _ => "other",
    }
}
