//! `gpuletctl workload`: files of rates, and the highest rate that a policy sustains.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;
use gpulet_plan::bound::fluid;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::Policy;
use gpulet_plan::sim::Settings;
use gpulet_plan::workload::{
    PEAKS, SCENARIOS, SCHEDULABILITY, Workload as Kind, by_name, peak, rates_file, schedulability,
};

use super::published::{Files, write};
use super::schedule::policy;
use super::simulate::Load;
use super::{CtlError, print};

/// Write a published workload as a file of rates, or search for the highest rate of a policy
#[derive(Debug, Args)]
pub struct Workload {
    /// scen1 to scen5, game, traffic, peak1, peak2, or schedulability; left out, a list
    #[arg(value_name = "NAME")]
    name: Option<String>,
    /// Its level; of schedulability the number of the case
    #[arg(long, default_value_t = 1.0)]
    level: f64,
    /// Factor on every SLO
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    slo: f64,
    /// Where the file goes; left out, to standard output
    #[arg(long, value_name = "FILE", conflicts_with = "peak")]
    output: Option<PathBuf>,
    /// Instead: how many requests arrive in each second, as a trace for `simulate --trace`
    #[arg(long, conflicts_with = "peak")]
    counts: bool,
    /// Search for the highest level at which all requests reach --attainment in simulation
    #[arg(long)]
    peak: bool,
    /// Policies to search for; left out, packed, elastic and temporal
    #[arg(long, value_name = "NAME", value_parser = policy, requires = "peak")]
    policy: Vec<Policy>,
    /// Part of the requests of every model, or app, answered within their SLO
    #[arg(long, default_value_t = 0.99)]
    attainment: f64,
    #[command(flatten)]
    load: Load,
    #[command(flatten)]
    files: Files,
}

impl Workload {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        if !(self.level >= 0.0 && self.level < 1e9 && self.slo > 0.0 && self.slo < 1e6) {
            return Err(CtlError::Usage("--level and --slo must be sensible numbers".into()));
        }
        let Some(name) = &self.name else { return list() };
        if name == "schedulability" {
            return self.schedulability();
        }
        let Some(kind) = by_name(name) else {
            return Err(CtlError::Usage(format!("NAME must be a workload, {name:?} is not")));
        };
        if self.peak {
            self.peaks(kind)
        } else if self.counts {
            self.put(&self.counted(kind)?)
        } else {
            self.put(&rates_file(&kind.demands(self.level, self.slo)))
        }
    }

    fn schedulability(&self) -> Result<(), CtlError> {
        let cases = 3_u32.pow(SCHEDULABILITY.len() as u32) - 1;
        let whole = self.level.fract() == 0.0 && self.level >= 1.0 && self.level <= cases.into();
        if !whole || self.counts || self.peak {
            let rule =
                format!("schedulability takes --level 1 to {cases}, and no --peak or --counts");
            return Err(CtlError::Usage(rule));
        }
        let mut demands = schedulability(self.level as u32);
        demands.iter_mut().for_each(|demand| demand.slo_ms *= self.slo);
        self.put(&rates_file(&demands))
    }

    /// Arrivals of all requests together, second by second.
    fn counted(&self, kind: &Kind) -> Result<String, CtlError> {
        let load = self.load.with_trace()?;
        let Settings { seed, seconds, .. } = load.settings(Settings::default())?;
        let rate: f64 = kind.demands(self.level, self.slo).iter().map(|demand| demand.rate).sum();
        let mut counts = vec![0_u64; seconds.ceil() as usize];
        let mut stream = load.arrivals(rate).stream(seed);
        while let Some(count) = counts.get_mut(stream.next_s() as usize) {
            *count += 1;
        }
        Ok(counts.iter().map(|count| format!("{count}\n")).collect())
    }

    fn put(&self, text: &str) -> Result<(), CtlError> {
        match &self.output {
            Some(path) => write(path, text),
            None => print(text),
        }
    }

    /// The workload at a level, planned for its mean rates.
    fn posed(&self, kind: &Kind, level: f64) -> Result<Problem, CtlError> {
        let mut problem = self.files.problem_of(kind.name, kind.demands(level, self.slo))?;
        problem.models.iter_mut().for_each(|model| model.planned_rate = model.rate);
        Ok(problem)
    }

    fn peaks(&self, kind: &Kind) -> Result<(), CtlError> {
        let unit = self.posed(kind, 1.0)?;
        let devices = f64::from(unit.device_count());
        let bound_level = devices / fluid(&unit);
        let policies: &[Policy] = match self.policy.as_slice() {
            [] => &[Policy::Packed, Policy::Elastic, Policy::Temporal],
            named => named,
        };
        let load = self.load.with_trace()?;
        let settings = load.settings(Settings::default())?;
        // The files were read above; should they vanish meanwhile, no level is sustained.
        let pose = |level: f64| {
            let posed = self.posed(kind, level);
            posed.unwrap_or_else(|_| Problem::new(Vec::new(), Vec::new(), unit.settings))
        };
        let mut text =
            format!("{}, {devices} GPUs, fluid bound: level {bound_level:.1}\n", kind.name);
        for &policy in policies {
            let sources = |problem: &Problem| kind.sources(problem, &|rate| load.arrivals(rate));
            let _ = match peak(policy, &pose, &sources, self.attainment, &settings) {
                Some(peak) => writeln!(
                    text,
                    "{}: level {:.1} ({:.0} requests/s, goodput {:.0}/s), {:.2} of the bound",
                    policy.name(),
                    peak.level,
                    peak.rate,
                    peak.outcome.goodput(),
                    peak.level / bound_level
                ),
                None => writeln!(text, "{}: none", policy.name()),
            };
        }
        print(&text)
    }
}

fn list() -> Result<(), CtlError> {
    let mut text = String::new();
    for kind in SCENARIOS.iter().chain(&PEAKS) {
        let asked = kind.asked.iter();
        let asked: Vec<String> =
            asked.map(|(model, rate, slo_ms)| format!("{model} {rate}/s {slo_ms} ms")).collect();
        let _ = writeln!(text, "{}: {}", kind.name, asked.join(", "));
    }
    print(&text)
}
