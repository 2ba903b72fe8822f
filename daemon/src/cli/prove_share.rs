//! `gpuletctl prove-share`: which multiprocessors gpulets run on, and what each gets done, alone and
//! while all others run.

mod report;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, value_parser};

use self::report::{Gpulet, Report, Seen, problems};
use super::gauge::{
    Answer, Gauge, GpuArguments, Held, Load, Opened, Order, PATIENCE, Pace, Process, environment,
    pace, window, within,
};
use super::run::find_model;
use super::{CtlError, Output, print, print_json};
use crate::config::{DEFAULT_MODELS, DEFAULT_MPS_DIRECTORY};
use crate::cuda::measure::laps::Until;
use crate::cuda::measure::{Part, Spell, What};
use crate::device::Inventory;
use crate::model::Precision;

const SHARES_MAX: usize = 64;
/// Batches of each before the clock runs.
const WARM: usize = 3;
/// Of each at least so many, unless the time is up many times over.
const LAPS_MIN: usize = 8;
const OVERTIME: u64 = 8;
/// The one model's number.
const MODEL: u32 = 0;

/// Show that shares of a GPU hold: which SMs each gpulet runs on, and what it gets done beside others
#[derive(Debug, Args)]
pub(super) struct ProveShare {
    /// Percent of each gpulet
    #[arg(long, value_name = "PCT,...", value_delimiter = ',', default_value = "25,25,25,25")]
    #[arg(value_parser = value_parser!(u8).range(1..=100))]
    shares: Vec<u8>,
    /// How shares are held: by green contexts, or by percentages of the MPS that is running
    #[arg(long, value_enum, default_value_t = Held::Green)]
    held: Held,
    /// The directory of that MPS: its pipes are in DIR/pipe
    #[arg(long, value_name = "DIR", default_value = DEFAULT_MPS_DIRECTORY)]
    mps: PathBuf,
    /// What runs: a model's directory, or its name in one of the roots [default: arithmetic alone]
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// Where models are looked up by name; can be given several times
    #[arg(long, value_name = "ROOT", default_value = DEFAULT_MODELS)]
    models: Vec<PathBuf>,
    /// Rows of each batch of the model
    #[arg(short, long, default_value_t = 8, value_parser = value_parser!(u32).range(1..))]
    batch: u32,
    /// What the model computes in: fp32, tf32, fp16 or bf16 [default: as model.toml says]
    #[arg(long, value_name = "PRECISION", value_parser = super::values::precision)]
    precision: Option<Precision>,
    /// Seconds that each gpulet runs alone, and then all together
    #[arg(long, value_name = "S", default_value_t = 1.0, value_parser = super::values::seconds)]
    seconds: f64,
    #[command(flatten)]
    gpu: GpuArguments,
    #[command(flatten)]
    output: Output,
}

/// The processes of the gpulets, in the gpulets' order.
struct Crew {
    processes: Vec<Process>,
    /// Process and gpulet of it.
    places: Vec<(usize, usize)>,
    opened: Vec<Opened>,
}

impl ProveShare {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        self.check()?;
        let model = match &self.model {
            Some(model) => Some(find_model(model, &self.models)?),
            None => None,
        };
        let inventory = Inventory::read();
        let device = self.gpu.find(&inventory)?;
        let environments: Vec<_> = match self.held {
            Held::Green => vec![environment(&device, None)],
            Held::Mps => {
                let one = |share: &u8| environment(&device, Some((self.mps.as_path(), *share)));
                self.shares.iter().map(one).collect()
            }
        };
        let mut crew = Crew::start(&environments, &self.gpu, self.held, &self.shares)?;
        let seen = crew.probe()?;
        let (what, load) = match &model {
            None => (What::Busy, "arithmetic alone".to_owned()),
            Some((directory, model)) => {
                let rows = self.batch.min(model.max_batch);
                let load = Load {
                    id: MODEL,
                    directory: directory.clone(),
                    precision: self.precision,
                    max_batch: Some(rows),
                };
                let form = crew.load(&load)?;
                let text = format!("{}, {form}, {rows} rows", model.name);
                (What::Model { id: MODEL, rows }, text)
            }
        };
        let count = self.shares.len();
        let mut alone = Vec::new();
        for gpulet in 0..count {
            let spells = crew.run(&[gpulet], what, &self.until())?;
            alone.push(paces(&spells).ok_or_else(|| silent("alone"))?.remove(0));
        }
        let everybody: Vec<usize> = (0..count).collect();
        let spells = crew.run(&everybody, what, &self.until())?;
        let together = paces(&spells).ok_or_else(|| silent("beside the others"))?;
        let gpulets = crew.gpulets(&self.shares, seen, &alone, &together);
        let report = Report::new(&inventory, &device, self.held, load, &crew.opened, gpulets);
        if self.output.json {
            print_json(&report)?
        } else {
            print(&report.show())?
        }
        let problems = problems(self.held, device.sm_count, &report.gpulets);
        if problems.is_empty() { Ok(()) } else { Err(CtlError::Measure(problems.join("\n"))) }
    }

    fn check(&self) -> Result<(), CtlError> {
        let sum: u32 = self.shares.iter().map(|share| u32::from(*share)).sum();
        if self.shares.len() > SHARES_MAX {
            let rule = format!("--shares: {} of them, at most {SHARES_MAX}", self.shares.len());
            return Err(CtlError::Usage(rule));
        }
        if self.held == Held::Green && sum > 100 {
            return Err(CtlError::Usage(format!("--shares: add up to {sum}, at most 100")));
        }
        Ok(())
    }

    fn until(&self) -> Until {
        let ns = Duration::from_secs_f64(self.seconds).as_nanos() as u64;
        Until { ns, laps_min: LAPS_MIN, ns_max: ns.saturating_mul(OVERTIME), warm: WARM }
    }
}

fn silent(when: &str) -> CtlError {
    CtlError::Measure(format!("a gpulet ran no whole batch {when}: --seconds may be too short"))
}

/// Each one's pace in the time in which all ran.
fn paces(spells: &[Spell]) -> Option<Vec<Pace>> {
    let window = window(spells)?;
    let one = |spell: &Spell| match spell {
        Spell::Laps(laps) => pace(within(laps, window)),
        Spell::Bytes(_) => None,
    };
    spells.iter().map(one).collect()
}

impl Crew {
    fn start(
        environments: &[Vec<(String, String)>],
        gpu: &GpuArguments,
        held: Held,
        shares_pct: &[u8],
    ) -> Result<Crew, CtlError> {
        let cuts = match held {
            Held::Green => shares_pct.to_vec(),
            Held::Mps => Vec::new(),
        };
        let mut crew = Crew { processes: Vec::new(), places: Vec::new(), opened: Vec::new() };
        for environment in environments {
            let mut process = Process::start(environment)?;
            process.order(&Order::Open { gpu: gpu.clone(), shares_pct: cuts.clone() })?;
            crew.processes.push(process);
        }
        for (index, process) in crew.processes.iter_mut().enumerate() {
            match process.answer(PATIENCE)? {
                Answer::Opened(opened) => {
                    let gpulets = 0..opened.gpulets.len();
                    crew.places.extend(gpulets.map(|gpulet| (index, gpulet)));
                    crew.opened.push(opened);
                }
                other => return Err(other.unexpected()),
            }
        }
        Ok(crew)
    }

    fn probe(&mut self) -> Result<Vec<Vec<u32>>, CtlError> {
        let mut seen = Vec::new();
        // One after the other: another probe would keep multiprocessors full.
        for process in &mut self.processes {
            match process.ask(&Order::Probe, PATIENCE)? {
                Answer::Probed(sets) => seen.extend(sets),
                other => return Err(other.unexpected()),
            }
        }
        Ok(seen)
    }

    /// How the model runs, for people.
    fn load(&mut self, load: &Load) -> Result<String, CtlError> {
        let mut form = String::new();
        for process in &mut self.processes {
            match process.ask(&Order::Load(load.clone()), PATIENCE)? {
                Answer::Loaded(facts) => form = facts.form,
                other => return Err(other.unexpected()),
            }
        }
        Ok(form)
    }

    /// Runs the same on some gpulets, all at once.
    fn run(&mut self, who: &[usize], what: What, until: &Until) -> Result<Vec<Spell>, CtlError> {
        let patience = PATIENCE + Duration::from_nanos(until.ns_max);
        let mut spells = Vec::new();
        let parts_of = |process: usize| {
            let here = who.iter().filter_map(|gpulet| self.places.get(*gpulet));
            let here = here.filter(|place| place.0 == process);
            here.map(|place| Part { gpulet: place.1, what }).collect::<Vec<Part>>()
        };
        let all: Vec<Vec<Part>> = (0..self.processes.len()).map(parts_of).collect();
        for (process, parts) in self.processes.iter_mut().zip(&all) {
            if !parts.is_empty() {
                process.order(&Order::Run { parts: parts.clone(), until: *until })?;
            }
        }
        for (process, parts) in self.processes.iter_mut().zip(&all) {
            if !parts.is_empty() {
                match process.answer(patience)? {
                    Answer::Ran(more) => spells.extend(more),
                    other => return Err(other.unexpected()),
                }
            }
        }
        Ok(spells)
    }

    fn gpulets(
        &self,
        shares_pct: &[u8],
        seen: Vec<Vec<u32>>,
        alone: &[Pace],
        together: &[Pace],
    ) -> Vec<Gpulet> {
        let own: Vec<u32> = self.opened.iter().flat_map(|it| it.gpulets.clone()).collect();
        let total: f64 = together.iter().map(|pace| pace.per_s).sum();
        let mut gpulets = Vec::new();
        for (index, sms) in seen.into_iter().enumerate() {
            let seen = Seen::new(sms, own[index]);
            let (alone, together) = (&alone[index], &together[index]);
            gpulets.push(Gpulet::new(shares_pct[index], seen, alone, together, total));
        }
        gpulets
    }
}
