//! `gpuletctl fit`: interference models from measured meetings of batches.

use std::path::PathBuf;

use clap::Args;
use gpulet_plan::input::InputError;
use gpulet_plan::interference::{LinearConstants, Meeting, Tempers};
use gpulet_plan::published::utilisations;

use super::published::{read, write};
use super::{CtlError, print};

/// Fit interference models to batches that were timed beside each other
#[derive(Debug, Args)]
pub struct Fit {
    /// JSON: a list of {"sufferer": [model, batch, share_pct], "neighbours": [...], "factor": n}
    #[arg(value_name = "MEETINGS")]
    meetings: PathBuf,
    /// Utilisations in the published format: fit the published linear model to them too
    #[arg(long, value_name = "CSV", requires = "constants")]
    utilisations: Option<PathBuf>,
    /// Where the linear model's constants go
    #[arg(long, value_name = "CSV", requires = "utilisations")]
    constants: Option<PathBuf>,
    /// Where our model goes, as JSON; left out, to standard output
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Fit {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let (name, text) = read(&self.meetings)?;
        let meetings: Vec<Meeting> = serde_json::from_str(&text).map_err(|error| {
            let (line, rule) = (error.line(), error.to_string());
            InputError { file: name.clone(), line, field: "document".into(), rule }
        })?;
        let sensible = |it: &Meeting| {
            let all = it.neighbours.iter().chain([&it.sufferer]);
            it.factor > 0.0
                && it.factor <= 1000.0
                && !it.neighbours.is_empty()
                && all.into_iter().all(|it| it.1 >= 1 && (1..=100).contains(&it.2))
        };
        if let Some(at) = meetings.iter().position(|meeting| !sensible(meeting)) {
            let rule = "must have neighbours, batches from 1, shares 1 to 100, a factor above 0";
            return Err(InputError::whole(&name, &format!("[{at}]"), rule).into());
        }
        if meetings.is_empty() {
            return Err(InputError::whole(&name, "meetings", "must be at least one").into());
        }
        if let (Some(used), Some(constants)) = (&self.utilisations, &self.constants) {
            let (name, text) = read(used)?;
            let found = LinearConstants::fit(&meetings, &utilisations(&name, &text)?)?;
            let LinearConstants { own_l2, other_l2, own_dram, other_dram, constant } = found;
            let header = "l2_own,l2_other,dram_own,dram_other,constant";
            let line = format!("{own_l2},{other_l2},{own_dram},{other_dram},{constant}");
            write(constants, &format!("{header}\n{line}\n"))?;
        }
        let fitted = Tempers::fit(&meetings);
        let text = serde_json::to_string_pretty(&fitted).map_err(std::io::Error::from);
        let text = text.map_err(CtlError::Output)? + "\n";
        match &self.output {
            Some(path) => write(path, &text)?,
            None => print(&text)?,
        }
        let mut errors: Vec<f64> = meetings
            .iter()
            .filter_map(|meeting| Some((fitted.predicted(meeting)? / meeting.factor - 1.0).abs()))
            .collect();
        errors.sort_by(f64::total_cmp);
        let at = |part: f64| errors[((errors.len() - 1) as f64 * part) as usize] * 100.0;
        eprintln!(
            "{} meetings, error {:.1} % at p50, {:.1} % at p90",
            errors.len(),
            at(0.5),
            at(0.9)
        );
        Ok(())
    }
}
