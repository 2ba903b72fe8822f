//! `gpuletctl schedule`: which model on which gpulet, from the published files.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use gpulet_plan::check::check;
use gpulet_plan::churn::{Changes, Churn, changes};
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::published;
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::replan;

use super::published::{Files, write};
use super::{CtlError, plan_check, print};

/// Plan which model runs on which gpulet, at which batch and duty cycle
#[derive(Debug, Args)]
pub struct Schedule {
    #[command(flatten)]
    files: Files,
    /// Where the placement is written; EMPTY when there is none
    #[arg(long, value_name = "FILE", default_value = "ModelList.txt")]
    output: PathBuf,
    /// How to plan
    #[arg(long, value_name = "NAME", default_value = "packed", value_parser = policy)]
    policy: Policy,
    /// Write the whole plan there, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Say for each model what it gets and what binds it
    #[arg(long)]
    explain: bool,
    /// Plan on from this plan, of either kind of file: what changes has a price
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    running: Option<PathBuf>,
    #[command(flatten)]
    prices: Prices,
    /// Say too what a solver finds: how few GPUs could do if everything were divisible, or how
    /// few do in fact (up to four models); gpuletctl must be built with its feature `solver`
    #[arg(long, value_enum)]
    bound: Option<Bound>,
}

/// What a solver is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Bound {
    /// The linear program of the fluid bound
    Linear,
    /// The integer program over all GPUs that can be made of gpulets
    Integer,
}

impl Bound {
    /// What the solver says, as a line.
    #[cfg(feature = "solver")]
    fn said(self, files: &Files, problem: &Problem, plan: &Plan) -> Result<String, CtlError> {
        use gpulet_plan::bound::linear;
        use gpulet_plan::search::packed::integer;

        let begun = Instant::now();
        let found = match self {
            Bound::Linear => match linear(problem) {
                Some(found) => format!("linear program: at least {found:.3} GPUs"),
                None => "linear program: no plan with these GPUs".to_owned(),
            },
            Bound::Integer => {
                let found = integer(problem, plan.bound).map_err(|why| files.blamed(why))?;
                format!("integer program: {found} GPUs")
            }
        };
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        Ok(format!("{found}, in {took_ms:.1} ms; the plan has {}\n", plan.devices.len()))
    }

    /// There is none.
    #[cfg(not(feature = "solver"))]
    fn said(self, _: &Files, _: &Problem, _: &Plan) -> Result<String, CtlError> {
        Err(no_solver())
    }
}

#[cfg(not(feature = "solver"))]
fn no_solver() -> CtlError {
    let rule = "--bound needs a solver: cargo build -p gpulet-daemon --features solver";
    CtlError::Usage(rule.to_owned())
}

/// What changes cost beside GPUs.
#[derive(Debug, Clone, Copy, Args)]
struct Prices {
    /// Price of a model that is loaded, in GPUs
    #[arg(long, value_name = "GPUS", default_value_t = Churn::default().load)]
    #[arg(requires = "running", value_parser = price)]
    load_price: f64,
    /// Price of a model that is unloaded, in GPUs
    #[arg(long, value_name = "GPUS", default_value_t = Churn::default().unload)]
    #[arg(requires = "running", value_parser = price)]
    unload_price: f64,
    /// Price of a gpulet that changes its share, in GPUs
    #[arg(long, value_name = "GPUS", default_value_t = Churn::default().resize)]
    #[arg(requires = "running", value_parser = price)]
    resize_price: f64,
}

impl Prices {
    fn churn(self) -> Churn {
        Churn { load: self.load_price, unload: self.unload_price, resize: self.resize_price }
    }
}

fn price(text: &str) -> Result<f64, String> {
    let price = text.parse::<f64>().ok().filter(|it| (0.0..=1e6).contains(it));
    price.ok_or_else(|| "must be a number 0 to 1000000".to_owned())
}

/// A policy by its name.
pub(super) fn policy(name: &str) -> Result<Policy, String> {
    let names: Vec<&str> = Policy::ALL.iter().map(|policy| policy.name()).collect();
    Policy::by_name(name).ok_or_else(|| format!("must be one of {}", names.join(", ")))
}

impl Schedule {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        #[cfg(not(feature = "solver"))]
        if self.bound.is_some() {
            return Err(no_solver());
        }
        let problem = self.files.problem()?;
        let running = match &self.running {
            Some(path) => Some(plan_check::load(path, &problem)?),
            None => None,
        };
        let begun = Instant::now();
        let planned = match &running {
            Some(running) => replan(&problem, running, &self.prices.churn()),
            None => self.policy.plan(&problem),
        };
        let took_ms = begun.elapsed().as_secs_f64() * 1e3;
        let plan = match planned {
            Ok(plan) => plan,
            Err(infeasible) => {
                write(&self.output, published::EMPTY)?;
                return Err(self.files.blamed(infeasible));
            }
        };
        let violations = check(&problem, &plan);
        assert!(violations.is_empty(), "{}: {violations:?}", plan.policy);
        write(&self.output, &published::placements(&problem, &plan))?;
        if let Some(path) = &self.json {
            let text = serde_json::to_string_pretty(&plan).map_err(std::io::Error::from);
            write(path, &(text.map_err(CtlError::Output)? + "\n"))?;
        }
        let mut text = shown(&plan);
        if let Some(running) = &running {
            let Changes { loads, unloads, resizes } = changes(running, &plan);
            let _ = writeln!(text, "loads {loads}, unloads {unloads}, resizes {resizes}");
        }
        if let Some(bound) = self.bound {
            text += &bound.said(&self.files, &problem, &plan)?;
        }
        if self.explain {
            text += &explained(&problem, &plan);
        }
        let _ = writeln!(text, "computation time(ms): {took_ms:.3}");
        print(&text)
    }
}

/// A plan for people.
fn shown(plan: &Plan) -> String {
    let mut text = String::new();
    for device in &plan.devices {
        let shares: Vec<String> =
            device.gpulets.iter().map(|it| format!("{} %", it.share_pct)).collect();
        let _ = writeln!(text, "GPU {} ({}): {}", device.device, device.kind, shares.join(" + "));
        for gpulet in &device.gpulets {
            let _ = writeln!(
                text,
                "  {} %: duty {:.3} ms, occupancy {:.3}",
                gpulet.share_pct,
                gpulet.duty_ms,
                gpulet.busy_ms() / gpulet.duty_ms
            );
            for instance in &gpulet.instances {
                let _ = writeln!(
                    text,
                    "    {}: batch {}, {:.3} ms (interference {:.3}), {:.1}/s",
                    instance.model,
                    instance.batch,
                    instance.latency_ms,
                    instance.interference,
                    gpulet.throughput(instance.batch)
                );
            }
        }
    }
    let _ = writeln!(
        text,
        "policy {}: {} GPUs, bound {:.2}, gap {:.1} %",
        plan.policy,
        plan.devices.len(),
        plan.bound,
        100.0 * plan.gap
    );
    text
}

/// What each model gets, and what keeps it from more.
fn explained(problem: &Problem, plan: &Plan) -> String {
    let mut text = String::new();
    for (index, model) in plan.models.iter().enumerate() {
        let reasons = gpulet_plan::why::why(problem, plan, index);
        let _ = writeln!(
            text,
            "{}: asked {:.1}/s, planned {:.1}/s, gets {:.1}/s ({:+.1} %); at most {:.3} of {} ms",
            model.model,
            model.rate,
            model.planned_rate,
            model.throughput,
            100.0 * (model.throughput / model.planned_rate - 1.0),
            model.response_ms,
            model.slo_ms
        );
        for reason in reasons {
            let _ = writeln!(text, "  {reason}");
        }
    }
    text
}
