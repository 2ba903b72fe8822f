//! `gpuletctl why`: where a model runs and what binds it there; or what would make room for it.

use std::fmt::Write;

use clap::Args;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::{Infeasible, Policy};
use gpulet_plan::why::{relief, why};

use super::published::Files;
use super::schedule::policy;
use super::{CtlError, print};

/// Explain a plan: for each model where it runs, what binds it, and what is to spare
#[derive(Debug, Args)]
pub struct Why {
    #[command(flatten)]
    files: Files,
    /// Only this model
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    /// How to plan
    #[arg(long, value_name = "NAME", default_value = "packed", value_parser = policy)]
    policy: Policy,
}

impl Why {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let problem = self.files.problem()?;
        let plan = match self.policy.plan(&problem) {
            Ok(plan) => plan,
            Err(infeasible) => return self.relieve(&problem, infeasible),
        };
        let mut text = String::new();
        for (index, model) in plan.models.iter().enumerate() {
            if self.model.as_ref().is_some_and(|name| *name != model.model) {
                continue;
            }
            let _ = writeln!(
                text,
                "{}: asked {:.1}/s, planned {:.1}/s, gets {:.1}/s ({:+.1} %), at most {:.3} of {} ms",
                model.model,
                model.rate,
                model.planned_rate,
                model.throughput,
                100.0 * (model.throughput / model.planned_rate - 1.0),
                model.response_ms,
                model.slo_ms
            );
            for reason in why(&problem, &plan, index) {
                let _ = writeln!(text, "  {reason}");
            }
        }
        if text.is_empty() {
            let name = self.model.clone().unwrap_or_default();
            return Err(CtlError::Usage(format!("MODEL must be asked for, {name:?} is not")));
        }
        print(&text)
    }

    /// Prints what would help, and fails with what is in the way.
    fn relieve(&self, problem: &Problem, infeasible: Infeasible) -> Result<(), CtlError> {
        if matches!(infeasible, Infeasible::Devices { .. }) {
            let count = problem.devices.last().map_or(1, |device| device.count);
            // The files were read once already; should they vanish meanwhile, nothing helps.
            let pose = |count: u32, load: f64| {
                let posed = self.files.with_gpus(count).posed(load);
                posed.unwrap_or_else(|_| Problem::new(Vec::new(), Vec::new(), problem.settings))
            };
            print(&relief(self.policy, &pose, count).to_string())?;
        }
        Err(self.files.blamed(infeasible))
    }
}
