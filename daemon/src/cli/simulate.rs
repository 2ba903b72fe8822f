//! `gpuletctl simulate`: what a plan would do under load, on virtual time.

use std::fmt::Write;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use gpulet_plan::demand::HeadRoom;
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::{Policy, packed::step};
use gpulet_plan::sim::{Arrivals, Guests, Outcome, Renewal, Settings, Source, simulate};

use super::published::{Files, read};
use super::schedule::policy;
use super::{CtlError, Output, plan_check, print, print_json};

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Pattern {
    /// Equal gaps
    Uniform,
    /// Independent of each other
    Poisson,
    /// Gaps of a Gamma distribution with --cv
    Gamma,
    /// Two rates in turn, four times apart, half a second each on average
    TwoRates,
    /// A rate that swings by 80 % once in the time
    Diurnal,
    /// Double the rate from the middle on
    Step,
    /// A rate for each second from --trace, scaled to the mean that is asked
    Trace,
}

/// Which models may borrow gpulets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Borrowers {
    /// None
    None,
    /// Those that the plan has on another gpulet of the same device
    OfDevice,
    /// Those, and all others that the device's memory has room for
    All,
}

/// The load of a simulation.
#[derive(Debug, Clone, Args)]
pub struct Load {
    /// How requests arrive
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Pattern,
    /// Coefficient of variation of Gamma gaps
    #[arg(long, default_value_t = 2.0)]
    cv: f64,
    /// One number a line: requests per second, a second each
    #[arg(long, value_name = "FILE", required_if_eq("arrivals", "trace"))]
    trace: Option<PathBuf>,
    /// Seconds of virtual time
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// The same seed, the same outcome
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Spread of execution times, standard deviation of their logarithm
    #[arg(long, default_value_t = 0.01)]
    noise: f64,
    /// Which models may borrow idle gpulets where the plan does not have them
    #[arg(long, value_enum, default_value = "none")]
    guests: Borrowers,
    /// Idle gpulets wait for another row where that pays, as with the daemon's `defer`
    #[arg(long)]
    defer: bool,
    #[arg(skip)]
    rates: Vec<f64>,
}

impl Load {
    /// Checks what was given.
    pub(super) fn settings(&self, settings: Settings) -> Result<Settings, CtlError> {
        let sensible = self.seconds > 0.0
            && self.seconds <= 1e6
            && (0.0..=2.0).contains(&self.noise)
            && self.cv > 0.01
            && self.cv <= 100.0;
        if !sensible {
            let rule = "--seconds must be up to 1000000, --noise 0 to 2, --cv 0.01 to 100";
            return Err(CtlError::Usage(rule.into()));
        }
        let (seed, seconds, noise) = (self.seed, self.seconds, self.noise);
        let guests = match self.guests {
            Borrowers::None => Guests::None,
            Borrowers::OfDevice => Guests::OfDevice,
            Borrowers::All => Guests::All,
        };
        Ok(Settings { seed, seconds, noise, guests, defer: self.defer, ..settings })
    }

    /// How requests arrive, for people.
    pub(super) fn pattern(&self) -> String {
        match self.arrivals {
            Pattern::Uniform => "requests at equal gaps".to_owned(),
            Pattern::Poisson => "requests independent of each other (Poisson)".to_owned(),
            Pattern::Gamma => {
                format!("requests at Gamma gaps (coefficient of variation {})", self.cv)
            }
            Pattern::TwoRates => "two rates in turn, four times apart".to_owned(),
            Pattern::Diurnal => "a rate that swings by 80 %".to_owned(),
            Pattern::Step => "a rate that doubles half-way".to_owned(),
            Pattern::Trace => "the rates of a trace".to_owned(),
        }
    }

    /// Reads the trace, if one is named.
    pub(super) fn with_trace(&self) -> Result<Self, CtlError> {
        let mut load = self.clone();
        if let Some(path) = &self.trace {
            let (name, text) = read(path)?;
            load.rates = gpulet_plan::published::trace(&name, &text)?;
        }
        Ok(load)
    }

    /// Arrivals at a mean rate.
    pub(super) fn arrivals(&self, rate: f64) -> Arrivals {
        match self.arrivals {
            Pattern::Uniform => Arrivals::Uniform { rate },
            Pattern::Poisson => Arrivals::Poisson { rate },
            Pattern::Gamma => Arrivals::Gamma { rate, cv: self.cv },
            Pattern::TwoRates => {
                Arrivals::TwoRates { rates: [0.4 * rate, 1.6 * rate], stays_s: [0.5, 0.5] }
            }
            Pattern::Diurnal => Arrivals::Diurnal { rate, swing: 0.8, period_s: self.seconds },
            Pattern::Step => {
                Arrivals::Step { before: rate, after: 2.0 * rate, at_s: self.seconds / 2.0 }
            }
            Pattern::Trace => {
                let trace = Arrivals::Trace { rates: self.rates.clone() };
                let mean = trace.mean_rate();
                trace.scaled(if mean > 0.0 { rate / mean } else { 0.0 })
            }
        }
    }
}

/// Simulate a plan under load, with the daemon's own decisions on virtual time
#[derive(Debug, Args)]
pub struct Simulate {
    #[command(flatten)]
    files: Files,
    /// A plan, of either kind of file; left out, one is made
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
    /// How to plan where no plan is given
    #[arg(long, value_name = "NAME", default_value = "packed", value_parser = policy)]
    policy: Policy,
    #[command(flatten)]
    load: Load,
    /// Factor on all rates, beyond what is planned for
    #[arg(long, default_value_t = 1.0)]
    factor: f64,
    /// Renew the plan every so many seconds, from the rates that were counted
    #[arg(long, value_name = "SECONDS")]
    renew: Option<f64>,
    /// Seconds for which a gpulet that changes serves nothing
    #[arg(long, value_name = "SECONDS", default_value_t = 0.5)]
    change: f64,
    #[command(flatten)]
    output: Output,
}

impl Simulate {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let problem = self.files.problem()?;
        let plan = match &self.plan {
            Some(path) => plan_check::load(path, &problem)?,
            None => self.policy.plan(&problem).map_err(|why| self.files.blamed(why))?,
        };
        if !(self.factor >= 0.0 && self.factor <= 1e6) {
            return Err(CtlError::Usage("--factor must be 0 to 1000000".into()));
        }
        let load = self.load.with_trace()?;
        let sources: Vec<Source> = (0..problem.models.len())
            .map(|model| {
                let rate = problem.models[model].rate * self.factor;
                Source::plain(&problem, model, load.arrivals(rate))
            })
            .collect();
        let renewal = match self.renew {
            Some(period_s) if period_s >= 0.01 && (0.0..=1e6).contains(&self.change) => {
                Some(Renewal { period_s, change_s: self.change })
            }
            Some(_) => return Err(CtlError::Usage("--renew must be at least 0.01".into())),
            None => None,
        };
        let settings = Settings { renewal, ..load.settings(Settings::default())? };
        let planner = |rates: &[f64], running: &Plan| step(&self.counted(rates), running);
        let outcome = simulate(&problem, &plan, &sources, &settings, Some(&planner));
        if self.output.json { print_json(&outcome) } else { print(&shown(&outcome)) }
    }

    /// The problem with the rates that were counted.
    fn counted(&self, rates: &[f64]) -> Problem {
        // The files were read before; should they vanish meanwhile, nothing is asked of plans.
        let Ok(mut problem) = self.files.problem() else {
            return Problem::new(Vec::new(), Vec::new(), gpulet_plan::problem::Settings::default());
        };
        for (model, &rate) in problem.models.iter_mut().zip(rates) {
            model.rate = rate;
            model.planned_rate = HeadRoom::PoissonP99.inflate(rate.max(1.0));
        }
        problem
    }
}

/// An outcome for people.
fn shown(outcome: &Outcome) -> String {
    let mut text = format!(
        "{:<18} {:>9} {:>8} {:>8} {:>8} {:>8} {:>7} {:>8} {:>8} {:>8} {:>6}\n",
        "",
        "requests",
        "in time",
        "late",
        "refused",
        "expired",
        "full",
        "p50 ms",
        "p99 ms",
        "p99.9",
        "batch"
    );
    for tally in outcome.models.iter().chain(&outcome.apps) {
        let _ = writeln!(
            text,
            "{:<18} {:>9} {:>7.3}% {:>8} {:>8} {:>8} {:>7} {:>8.2} {:>8.2} {:>8.2} {:>6.1}",
            tally.name,
            tally.arrived,
            100.0 * tally.attainment(),
            tally.late,
            tally.refused,
            tally.expired,
            tally.overflowed,
            tally.p50_ms,
            tally.p99_ms,
            tally.p999_ms,
            tally.batch
        );
    }
    let busy: f64 = outcome.time_line.iter().map(|second| second.busy).sum();
    let _ = writeln!(
        text,
        "goodput {:.1}/s, attainment {:.4} %, {:.2} GPUs busy on average, {} plans later",
        outcome.goodput(),
        100.0 * outcome.attainment(),
        busy / outcome.seconds,
        outcome.plans
    );
    text
}
