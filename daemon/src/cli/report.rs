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

use self::charts::{Series, Titles, chart};
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
        let offered: f64 = problem.models.iter().map(|model| model.rate).sum();
        let mut lines = Lines::default();
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
            lines.devices.push((name.clone(), points));
            if let Some(plan) = self.most(policy) {
                let goodput = |level| run(&problem, &plan, &load, level, &settings).goodput();
                let points = LEVELS.iter().map(|&level| (offered * level, goodput(level)));
                lines.goodputs.push((name.clone(), points.collect()));
            }
            let Ok(plan) = policy.plan(&problem) else {
                let _ = writeln!(rows, "<tr><td>{name}<td colspan=5>no plan with these GPUs");
                continue;
            };
            let outcome = run(&problem, &plan, &load, 1.0, &settings);
            lines.latencies.extend(curves(&problem, &name, &outcome));
            let seconds = outcome.time_line.iter().enumerate();
            lines
                .shares
                .push((name.clone(), seconds.map(|(at, it)| (at as f64, it.busy)).collect()));
            let _ = writeln!(
                rows,
                "<tr><td>{name}<td>{}<td>{:.2}<td>{:.1}&nbsp;%<td>{:.1}<td>{:.3}&nbsp;%",
                plan.devices.len(),
                plan.bound,
                100.0 * plan.gap,
                outcome.goodput(),
                100.0 * outcome.attainment()
            );
        }
        let about = format!(
            "{} models asked for {offered:.0} requests/s together, of {} GPUs. Simulated: {} for \
             {} s of virtual time, seed {}.",
            problem.models.len(),
            problem.device_count(),
            load.pattern(),
            settings.seconds,
            settings.seed
        );
        write(&self.output, &page(&about, &rows, &lines.charts(problem.device_count())?))?;
        print(&format!("{}: written", self.output.display()))
    }

    /// The plan for the highest load that a policy can plan for on the GPUs there are, to a
    /// fiftieth.
    fn most(&self, policy: Policy) -> Option<Plan> {
        let plan = |level: f64| policy.plan(&self.files.posed(level).ok()?).ok();
        let (mut low, mut high, mut best) = (0.0, 1.0, None);
        while let Some(found) = plan(high).filter(|_| high < 1e6) {
            (low, high, best) = (high, 2.0 * high, Some(found));
        }
        while high - low > high / 50.0 && high > 1e-3 {
            let middle = (low + high) / 2.0;
            match plan(middle) {
                Some(found) => (low, best) = (middle, Some(found)),
                None => high = middle,
            }
        }
        best
    }
}

/// A line of each policy in each chart.
#[derive(Default)]
struct Lines {
    devices: Vec<Series>,
    goodputs: Vec<Series>,
    latencies: Vec<Series>,
    shares: Vec<Series>,
}

impl Lines {
    fn charts(&self, count: u32) -> Result<Vec<String>, CtlError> {
        let titles = |chart, x, y, note: &str| Titles { chart, x, y, note: note.to_owned() };
        let goodput =
            format!("Each policy's plan for the highest load it can plan on {count} GPUs.");
        Ok(vec![
            chart(
                &titles(
                    "GPUs by load",
                    "load, in parts of the rates asked",
                    "GPUs",
                    "What a plan takes, with as many GPUs to be had as it likes.",
                ),
                &self.devices,
            )?,
            chart(
                &titles(
                    "Goodput by rate",
                    "requests offered, 1/s",
                    "answers in time, 1/s",
                    &goodput,
                ),
                &self.goodputs,
            )?,
            chart(
                &titles(
                    "Latency of answers",
                    "latency, in parts of the SLO",
                    "part of the answers",
                    "At the rates asked, of the model that fares worst.",
                ),
                &self.latencies,
            )?,
            chart(
                &titles("Busy shares", "time, s", "GPUs at work", "At the rates asked."),
                &self.shares,
            )?,
        ])
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

fn page(about: &str, rows: &str, charts: &[String]) -> String {
    let style = "html{color-scheme:light}\
        body{font:16px/1.5 system-ui,sans-serif;max-width:78rem;margin:0 auto;padding:1.5rem 1rem;\
        color:#222;background:#fff}\
        h1,h2,p{margin:.2rem 0}h2{font-size:1.2rem}\
        table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .7rem;\
        border-bottom:1px solid #ccc;text-align:right;vertical-align:bottom}\
        td{white-space:nowrap}td:first-child,th:first-child{text-align:left;padding-left:0}\
        main{display:grid;gap:1rem 2rem;\
        grid-template-columns:repeat(auto-fit,minmax(min(100%,32rem),1fr))}\
        figure{margin:0}figcaption p{font-size:.9rem;color:#444}\
        .key span{white-space:nowrap;margin-right:1rem}svg{width:100%;height:auto}";
    format!(
        "<!doctype html>\n<html lang=en><meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width\">\n<title>gpulet: policies</title>\n\
         <style>{style}</style>\n<h1>Policies compared</h1>\n<p>{about}</p>\n\
         <table><tr><th>policy<th>GPUs<th>at least<br>(fluid bound)<th>gap<th>answers in time,\
         <br>1/s<th>answered<br>in time\n{rows}</table>\n<main>\n{}</main>\n</html>\n",
        charts.concat()
    )
}
