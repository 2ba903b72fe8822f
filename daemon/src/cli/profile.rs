//! `gpuletctl profile`: how long batches take by share, batch size and precision, and what gpulets do
//! to each other. Written to files that a planner reads (resource/profiles/README.md).

mod beside;
mod files;
mod latencies;
mod noise;
mod runs;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, value_parser};
use gpulet_plan::measured::{self, Stamp};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use self::beside::Beside;
use self::latencies::{Case, Grid, Tally};
use self::noise::Others;
use super::gauge::{
    Answer, Gauge, GpuArguments, Held, Opened, Order, PATIENCE, Process, environment,
};
use super::{CtlError, Output, print, print_json};
use crate::config::{DEFAULT_MODELS, DEFAULT_MPS_DIRECTORY};
use crate::device::{Device, Inventory};
use crate::limits::{Limits, SLOT_BYTES_HARD_MAX};
use crate::model::{self, Precision, Source};

/// Points that a profile may have, by the planner's limits.
const BATCH_MAX: i64 = 1024;

/// Measure how long batches take by share, batch size and precision; or what gpulets do to each other
#[derive(Debug, Args)]
pub(super) struct Profile {
    /// Where files go: to a folder there for the kind of device
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Where models are looked for; can be given several times
    #[arg(long, value_name = "ROOT", default_value = DEFAULT_MODELS)]
    models: Vec<PathBuf>,
    /// Only these models [default: all that have an archive]
    #[arg(long, value_name = "MODEL,...", value_delimiter = ',')]
    only: Vec<String>,
    /// How shares are held: by green contexts, or by percentages of the MPS that is running
    #[arg(long, value_enum, default_value_t = Held::Green)]
    held: Held,
    /// The directory of that MPS: its pipes are in DIR/pipe
    #[arg(long, value_name = "DIR", default_value = DEFAULT_MPS_DIRECTORY)]
    mps: PathBuf,
    /// Percent of the GPU
    #[arg(long, value_name = "PCT,...", value_delimiter = ',')]
    #[arg(default_value = "10,20,40,60,80,100", value_parser = value_parser!(u8).range(1..=100))]
    shares: Vec<u8>,
    /// Rows of a batch
    #[arg(long, value_name = "ROWS,...", value_delimiter = ',')]
    #[arg(default_value = "1,2,4,8,16,32", value_parser = value_parser!(u32).range(1..=BATCH_MAX))]
    batches: Vec<u32>,
    /// What models compute in, whatever their model.toml says
    #[arg(long, value_name = "PRECISION,...", value_delimiter = ',')]
    #[arg(default_value = "fp32,fp16", value_parser = super::values::precision)]
    precisions: Vec<Precision>,
    /// Seconds for each point; slow batches get more
    #[arg(long, value_name = "S", default_value_t = 0.25, value_parser = super::values::seconds)]
    seconds_per_point: f64,
    /// Stop after so many seconds; run again to go on where it stopped
    #[arg(long, value_name = "S", value_parser = super::values::seconds)]
    budget: Option<f64>,
    /// Measure what gpulets do to each other, instead of how long they take alone
    #[arg(long)]
    interference: bool,
    /// Rows of a batch beside others
    #[arg(long, value_name = "ROWS,...", value_delimiter = ',', requires = "interference")]
    #[arg(default_value = "1,8", value_parser = value_parser!(u32).range(1..=BATCH_MAX))]
    set_batches: Vec<u32>,
    /// Sets of two models that are measured side by side, as many of three, and of four
    #[arg(long, value_name = "N", default_value_t = 30, requires = "interference")]
    sets: usize,
    /// What sets are drawn by
    #[arg(long, value_name = "N", default_value_t = 1, requires = "interference")]
    seed: u64,
    /// Measure although other processes compute on the device
    #[arg(long)]
    allow_others: bool,
    #[command(flatten)]
    gpu: GpuArguments,
    #[command(flatten)]
    output: Output,
}

/// A process that measures, and what it has opened.
type Running = (Box<dyn Gauge>, Opened);

/// Where it is measured, and what can be asked there.
struct Site<'a> {
    device: String,
    sm_count: Option<u32>,
    driver: String,
    cuda: String,
    /// Starts a process that measures, on gpulets of so many percent.
    start: &'a mut dyn FnMut(&[u8]) -> Result<Running, CtlError>,
    /// Says who else computes on the device.
    others: &'a dyn Fn() -> Option<String>,
    out_of_time: &'a dyn Fn() -> bool,
    bar: ProgressBar,
}

impl Site<'_> {
    /// Says how it goes, on standard error.
    fn say(&self, line: &str) {
        self.bar.suspend(|| eprintln!("gpuletctl: {line}"));
    }

    /// Says what is done next, where no bar shows it: a load may take half a minute.
    fn begin(&self, what: &str) {
        self.bar.set_message(what.to_owned());
        if self.bar.is_hidden() {
            self.say(what);
        }
    }

    fn stamp(&self, opened: &Opened) -> Stamp {
        Stamp {
            device: self.device.clone(),
            sm_count: self.sm_count,
            driver: self.driver.clone(),
            cuda: self.cuda.clone(),
            libtorch: opened.libtorch.clone(),
            gpulet: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }
}

/// What is said at the end.
#[derive(Debug, Serialize)]
struct Summary<'a> {
    folder: &'a Path,
    measured: usize,
    kept: usize,
    refused: usize,
    stopped: bool,
    seconds: f64,
}

impl Profile {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let begun = Instant::now();
        if self.interference && self.held == Held::Mps {
            let rule = "--interference: is measured between green contexts, --held green";
            return Err(CtlError::Usage(rule.to_owned()));
        }
        let cases = self.cases()?;
        let inventory = Inventory::read();
        let device = self.gpu.find(&inventory)?;
        let held = self.held.into();
        let others = Others::new(device.uuid.clone(), self.held, !self.allow_others);
        if let Some(others) = others.see(0) {
            let rule = format!("{others}: --allow-others measures nevertheless");
            return Err(CtlError::Measure(rule));
        }
        let folder = files::folder(&self.out, &device.name);
        let point_ns = Duration::from_secs_f64(self.seconds_per_point).as_nanos() as u64;
        let budget = self.budget.map(Duration::from_secs_f64);
        let mut site = Site {
            device: device.name.clone(),
            sm_count: device.sm_count,
            driver: inventory.driver.clone().unwrap_or_default(),
            cuda: inventory.cuda_version.map(String::from).unwrap_or_default(),
            start: &mut |shares_pct| self.start(&device, shares_pct),
            others: &|| others.see(1),
            out_of_time: &|| budget.is_some_and(|budget| begun.elapsed() >= budget),
            bar: bar(),
        };
        let tally = if self.interference {
            let batches = ascending(&self.set_batches);
            let (set_count, seed) = (self.sets, self.seed);
            Beside { folder: &folder, cases, batches, point_ns, set_count, seed }.measure(&mut site)
        } else {
            // From the largest: what is wrong with a model shows soonest there.
            let shares_pct = ascending(&self.shares).into_iter().rev().collect();
            let batches = ascending(&self.batches);
            let grid = Grid { folder: &folder, held, cases, shares_pct, batches, point_ns };
            grid.measure(&mut site)
        };
        site.bar.finish_and_clear();
        self.tell(&folder, tally?, begun.elapsed())
    }

    fn tell(&self, folder: &Path, tally: Tally, elapsed: Duration) -> Result<(), CtlError> {
        let Tally { measured, kept, refused, stopped } = tally;
        let seconds = elapsed.as_secs_f64();
        if self.output.json {
            print_json(&Summary { folder, measured, kept, refused, stopped, seconds })?;
        } else {
            let stopped = if stopped { "; the time is up, run again to go on" } else { "" };
            print(&format!(
                "{}: {measured} measured, {kept} were there, {refused} refused, in {seconds:.0} s\
                 {stopped}",
                folder.display()
            ))?;
        }
        if refused == 0 {
            return Ok(());
        }
        let rule = format!("{refused} measurements were refused: the files say why");
        Err(CtlError::Measure(rule))
    }

    /// Models with archives, each in every precision.
    fn cases(&self) -> Result<Vec<Case>, CtlError> {
        // Nothing is shared here, so a slot may be as large as any.
        let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
        let scan = model::scan_each(&self.models, &limits);
        for (_, error) in &scan.errors {
            eprintln!("gpuletctl: left out: {error}");
        }
        let is_wanted = |name: &String| self.only.is_empty() || self.only.contains(name);
        let mut cases = Vec::new();
        for model in scan.models.iter().filter(|model| is_wanted(&model.name)) {
            let Source::File(archive) = &model.source else { continue };
            let Some(directory) = archive.parent() else { continue };
            for precision in &self.precisions {
                cases.push(Case {
                    model: model.name.clone(),
                    directory: directory.to_owned(),
                    archive_bytes: model.stamp.1,
                    precision: *precision,
                });
            }
        }
        let missing = |name: &&String| !cases.iter().any(|case| case.model == **name);
        let missing: Vec<&str> = self.only.iter().filter(missing).map(String::as_str).collect();
        if !missing.is_empty() || cases.is_empty() {
            let name = if missing.is_empty() { "--models".to_owned() } else { missing.join(", ") };
            let roots: Vec<String> =
                self.models.iter().map(|root| root.display().to_string()).collect();
            return Err(CtlError::NoModel { name: name.into(), roots: roots.join(", ") });
        }
        Ok(cases)
    }

    fn start(&self, device: &Device, shares_pct: &[u8]) -> Result<Running, CtlError> {
        let (mps, cuts) = match (self.held, shares_pct.first()) {
            (Held::Mps, Some(share_pct)) => (Some((self.mps.as_path(), *share_pct)), Vec::new()),
            _ => (None, shares_pct.to_vec()),
        };
        let mut process = Process::start(&environment(device, mps))?;
        let order = Order::Open { gpu: self.gpu.clone(), shares_pct: cuts };
        match process.ask(&order, PATIENCE)? {
            Answer::Opened(opened) => Ok((Box::new(process), opened)),
            other => Err(other.unexpected()),
        }
    }
}

impl From<Held> for measured::Held {
    fn from(held: Held) -> measured::Held {
        match held {
            Held::Green => measured::Held::Green,
            Held::Mps => measured::Held::Mps,
        }
    }
}

fn ascending<T: Ord + Copy>(numbers: &[T]) -> Vec<T> {
    let mut numbers = numbers.to_vec();
    numbers.sort_unstable();
    numbers.dedup();
    numbers
}

/// Drawn on standard error, and only where that is a terminal.
fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta} {msg}") {
        bar.set_style(style);
    }
    bar
}
