//! `gpuletctl plan-check`: an independent look at a plan, whoever made it.

use std::path::PathBuf;

use clap::Args;
use gpulet_plan::check::check;
use gpulet_plan::input::InputError;
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::published;

use super::published::{Files, read};
use super::{CtlError, print};

/// Check a plan: rates, SLOs beside neighbours, shares, memory and network
#[derive(Debug, Args)]
pub struct PlanCheck {
    #[command(flatten)]
    files: Files,
    /// A placement file, or a plan as JSON
    #[arg(value_name = "PLAN")]
    plan: PathBuf,
}

impl PlanCheck {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let problem = self.files.problem()?;
        let plan = load(&self.plan, &problem)?;
        let file = self.plan.display();
        let found: Vec<String> =
            check(&problem, &plan).iter().map(|it| format!("{file}: {it}")).collect();
        if !found.is_empty() {
            return Err(CtlError::Problems(found));
        }
        print(&format!(
            "{file}: good, with {} GPUs (bound {:.2}, gap {:.1} %)",
            plan.devices.len(),
            plan.bound,
            100.0 * plan.gap
        ))
    }
}

/// A plan from either kind of file.
pub(super) fn load(path: &std::path::Path, problem: &Problem) -> Result<Plan, CtlError> {
    let (name, text) = read(path)?;
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(&text).map_err(|error| {
            let rule = error.to_string();
            let (line, field) = (error.line(), "document".to_owned());
            InputError { file: name, line, field, rule }.into()
        });
    }
    Ok(published::place(&name, &text, problem)?)
}
