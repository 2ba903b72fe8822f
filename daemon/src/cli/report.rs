//! `gpuletctl report`: policies compared, on one page that needs nothing else.

mod charts;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use gpulet_plan::bound::fluid;
use gpulet_plan::check::check;
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::published::rates;
use gpulet_plan::search::Policy;
use gpulet_plan::sim::{Outcome, Settings, Source, simulate};

use self::charts::{Series, chart};
use super::published::{Files, read, write};
use super::schedule::policy;
use super::simulate::Load;
use super::{CtlError, print};

/// Levels of the load, parts of what is asked.
const LEVELS: [f64; 8] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0];

/// Compare policies: GPUs by load, goodput by rate, latencies and shares over time, as one page
#[derive(Debug, Args)]
pub struct Report {
    #[command(flatten)]
    files: Files,
    /// Policies to compare; left out, packed, elastic and temporal
    #[arg(long, value_name = "NAME", value_parser = policy)]
    policy: Vec<Policy>,
    #[command(flatten)]
    load: Load,
    /// Where the page goes
    #[arg(long, value_name = "HTML", default_value = "report.html")]
    output: PathBuf,
    /// Instead: plan every file of rates in this directory, and print GPUs by policy
    #[arg(long, value_name = "DIR")]
    cases: Option<PathBuf>,
}

impl Report {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        match &self.cases {
            Some(directory) => self.compare_cases(directory),
            None => self.page(),
        }
    }

    fn policies(&self) -> &[Policy] {
        match self.policy.as_slice() {
            [] => &[Policy::Packed, Policy::Elastic, Policy::Temporal],
            named => named,
        }
    }

    fn compare_cases(&self, directory: &Path) -> Result<(), CtlError> {
        let failed = |source| CtlError::File { path: directory.to_owned(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(directory).map_err(failed)? {
            paths.push(entry.map_err(failed)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|it| it == "csv"));
        paths.sort();
        let names: Vec<&str> = self.policies().iter().map(|policy| policy.name()).collect();
        let mut text = format!("case,bound,{}\n", names.join(","));
        let mut sums = vec![0; names.len()];
        let mut bounds = 0.0;
        let mut slowest_ms = vec![0.0_f64; names.len()];
        for path in paths {
            let (name, of_rates) = read(&path)?;
            let problem = self.files.problem_of(&name, rates(&name, &of_rates)?)?;
            let bound = fluid(&problem);
            bounds += (bound - 1e-9).ceil();
            let case = path.file_stem().unwrap_or_default().to_string_lossy();
            let _ = write!(text, "{case},{bound:.2}");
            for (at, policy) in self.policies().iter().enumerate() {
                let begun = Instant::now();
                let planned = policy.plan(&problem);
                slowest_ms[at] = slowest_ms[at].max(begun.elapsed().as_secs_f64() * 1e3);
                let _ = match planned {
                    Ok(plan) => {
                        sums[at] += plan.devices.len();
                        let bad = if check(&problem, &plan).is_empty() { "" } else { " broken" };
                        write!(text, ",{}{bad}", plan.devices.len())
                    }
                    Err(_) => write!(text, ","),
                };
            }
            text.push('\n');
        }
        let sums: Vec<String> = sums.iter().map(ToString::to_string).collect();
        let slowest: Vec<String> = slowest_ms.iter().map(|ms| format!("{ms:.1}")).collect();
        let _ = writeln!(text, "sum,{bounds},{}", sums.join(","));
        let _ = writeln!(text, "slowest ms,,{}", slowest.join(","));
        print(&text)
    }

    fn page(&self) -> Result<(), CtlError> {
        let problem = self.files.problem()?;
        let load = self.load.with_trace()?;
        let settings = load.settings(Settings::default())?;
        let mut devices: Vec<Series> = Vec::new();
        let mut goodputs: Vec<Series> = Vec::new();
        let mut latencies: Vec<Series> = Vec::new();
        let mut shares: Vec<Series> = Vec::new();
        let mut rows = String::new();
        for &policy in self.policies() {
            let name = policy.name().to_owned();
            let mut points = Vec::new();
            for level in LEVELS {
                let posed = self.files.with_gpus(1 << 12).posed(level)?;
                if let Ok(plan) = policy.plan(&posed) {
                    points.push((level, plan.devices.len() as f64));
                }
            }
            devices.push((name.clone(), points));
            let Ok(plan) = policy.plan(&problem) else {
                let _ = writeln!(rows, "<tr><td>{name}<td colspan=5>no plan on these devices");
                continue;
            };
            let at = |factor: f64| run(&problem, &plan, &load, factor, &settings);
            let offered: f64 = problem.models.iter().map(|model| model.rate).sum();
            let points = LEVELS.iter().map(|&it| (offered * it, at(it).goodput())).collect();
            goodputs.push((name.clone(), points));
            let outcome = at(1.0);
            latencies.extend(curves(&problem, &name, &outcome));
            let seconds = outcome.time_line.iter().enumerate();
            shares.push((name.clone(), seconds.map(|(at, it)| (at as f64, it.busy)).collect()));
            let _ = writeln!(
                rows,
                "<tr><td>{name}<td>{}<td>{:.2}<td>{:.1} %<td>{:.1}<td>{:.3} %",
                plan.devices.len(),
                plan.bound,
                100.0 * plan.gap,
                outcome.goodput(),
                100.0 * outcome.attainment()
            );
        }
        let charts = [
            chart("GPUs by load", "part of the rates asked", "GPUs", &devices)?,
            chart("Goodput by rate", "requests/s offered", "in time/s", &goodputs)?,
            chart("Latency of answers", "part of the SLO", "part of the answers", &latencies)?,
            chart("Busy shares over time", "seconds", "GPUs at work", &shares)?,
        ];
        write(&self.output, &page(&rows, &charts))?;
        print(&format!("{}: written", self.output.display()))
    }
}

fn run(problem: &Problem, plan: &Plan, load: &Load, factor: f64, settings: &Settings) -> Outcome {
    let sources: Vec<Source> = (0..problem.models.len())
        .map(|model| {
            let rate = problem.models[model].rate * factor;
            Source::plain(problem, model, load.arrivals(rate))
        })
        .collect();
    simulate(problem, plan, &sources, settings, None)
}

/// The curve of the model that fares worst, over its SLO.
fn curves(problem: &Problem, policy: &str, outcome: &Outcome) -> Option<Series> {
    let tallies = outcome.models.iter().zip(&problem.models);
    let (worst, model) =
        tallies.min_by(|one, two| one.0.attainment().total_cmp(&two.0.attainment()))?;
    let points = worst.latencies().curve().into_iter();
    let points = points.map(|(ms, part)| (ms / model.slo_ms, part)).collect();
    Some((format!("{policy}: {}", worst.name), points))
}

fn page(rows: &str, charts: &[String]) -> String {
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width\">\n<title>gpulet: policies</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;\
         padding:0 1rem;color:#222;background:#fff}}table{{border-collapse:collapse}}\
         td,th{{padding:.2rem .8rem;border-bottom:1px solid #ccc;text-align:right}}\
         td:first-child,th:first-child{{text-align:left}}svg{{width:100%;height:auto}}</style>\n\
         <h1>Policies compared</h1>\n\
         <table><tr><th>policy<th>GPUs<th>bound<th>gap<th>goodput/s<th>attainment\n{rows}</table>\n\
         {}\n</html>\n",
        charts.join("\n")
    )
}
