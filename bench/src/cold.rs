//! `gpulet-bench cold`: a model is added to a daemon that runs, asked once, and removed; over and over.
//!
//! How long the first answer takes, from telling the daemon, against what its bytes cost on the way
//! from the disk to the device at the rates of this machine; and how much memory of the device stays
//! behind.

pub mod rates;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use gpulet_abi::tensor::SlotLayout;
use gpulet_client::clock::now_ns;
use gpulet_client::{Options, Session, Status, Submit, Wait};
use gpulet_daemon::device::Reader;
use gpulet_daemon::limits::{Limits, SLOT_BYTES_HARD_MAX};
use gpulet_daemon::model::{self, Builtin};
use serde_json::json;

use crate::closed::ANSWER_NS_MAX;
use crate::daemon::{self, Daemon, answered};
use crate::error::Error;
use crate::place::{Place, name_of};
use crate::report::{Figures, Host, Report};
use crate::settings::{Gpulet, Held, Settings};
use crate::stats::{Recorder, Summary, median};

use rates::{CopyRate, Disk};

/// What an executor has before the model comes.
const RESIDENT: &str = "resident";
const PATIENCE: Duration = Duration::from_secs(120);
/// Memory is given back for good when it has not changed for so many looks.
const LOOKS: u32 = 8;
const LOOK_EVERY: Duration = Duration::from_millis(15);

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the gpulet holds its share
    #[arg(long, value_enum, default_value_t = Held::Mps)]
    mechanism: Held,
    /// The gpulet's share in percent
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    share: u8,
    /// Most rows of a batch [default: as model.toml says]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    max_batch: Option<u32>,
    /// How often
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    times: u32,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One coming and going.
#[derive(Clone, Copy, Debug, serde::Serialize)]
struct Cycle {
    answer_s: f64,
    /// What the file's bytes cost by themselves.
    bytes_s: f64,
    /// Used of the device when the model was gone again, where there is one.
    left_mib: Option<f64>,
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that it had.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let program = daemon::program(arguments.daemon.as_deref())?;
    let (host, place, name) = (Host::look(), Place::new()?, name_of(&arguments.model)?);
    let copy = if arguments.mechanism.on_gpu() { Some(CopyRate::measure()?) } else { None };
    let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
    let model = model::load(&arguments.model, &limits)
        .map_err(|why| Error::failed(format!("model {name}"), why))?;
    let rows =
        |tensors: &[model::Tensor]| tensors.iter().map(|it| it.row_bytes).collect::<Vec<_>>();
    let slot_bytes = SlotLayout::new(&rows(&model.inputs), &rows(&model.outputs), 1)
        .map_or(0, |layout| layout.bytes());
    place.add_builtin(RESIDENT, Builtin::Echo, 1_000_000)?;
    place.add_profile(&name, arguments.max_batch.unwrap_or(1), 1_000_000)?;
    let settings = Settings::of(vec![Gpulet::of(arguments.mechanism, arguments.share)]);
    let mut bench = Bench {
        daemon: Daemon::start(&program, &place, None, &settings)?,
        disk: Disk::of(&model),
        slot_bytes,
        memory: Memory::open(arguments.mechanism)?,
        copy,
        arguments,
        place,
        name,
    };
    let mut session = bench.daemon.session(Options::default())?;
    bench.daemon.model(&mut session, RESIDENT)?;
    let before_mib = bench.memory.settled();
    let mut cycles = Vec::new();
    for time in 1..=arguments.times {
        let cycle = bench.cycle(&mut session)?;
        eprintln!("{time} of {}: {cycle:?}", arguments.times);
        cycles.push(cycle);
    }
    drop(session);
    let report = bench.report(host, before_mib, &cycles);
    bench.daemon.stop()?;
    report.publish(arguments.json.as_deref())
}

struct Bench<'a> {
    arguments: &'a Arguments,
    place: Place,
    name: String,
    daemon: Daemon,
    slot_bytes: u64,
    disk: Disk,
    copy: Option<CopyRate>,
    memory: Memory,
}

impl Bench<'_> {
    fn cycle(&mut self, session: &mut Session) -> Result<Cycle, Error> {
        let read_s = self.disk.read()?;
        let copy_s = self.copy.as_ref().map_or(0.0, |copy| copy.seconds(self.disk.bytes()));
        self.disk.forget()?;
        let begin = Instant::now();
        self.place.add_as(&self.name, &self.arguments.model, self.arguments.max_batch)?;
        self.daemon.reload()?;
        self.first_answer()?;
        let answer_s = begin.elapsed().as_secs_f64();
        self.place.remove(&self.name)?;
        self.daemon.reload()?;
        self.await_gone(session)?;
        Ok(Cycle { answer_s, bytes_s: read_s + copy_s, left_mib: self.memory.settled() })
    }

    /// Asks for one row as soon as it can be asked for.
    fn first_answer(&self) -> Result<(), Error> {
        let end = Instant::now() + PATIENCE;
        let mut session = self.daemon.session(Options {
            wait: Wait::Spin,
            slot_bytes: self.slot_bytes,
            slot_count: 1,
            ..Options::default()
        })?;
        let spec = loop {
            match session.model_open(&self.name) {
                Ok(spec) => break spec,
                Err(why)
                    if matches!(why.status(), Status::NoSuchModel | Status::ModelLoading)
                        && Instant::now() < end =>
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(why) => return Err(self.daemon.complaint(&why.to_string())),
            }
        };
        let request = session.claim(spec.model, 1)?;
        for index in 0..spec.input_count {
            let dtype = spec.inputs[index as usize].dtype();
            crate::input::fill(session.input_bytes_mut(request, index)?, dtype, 1);
        }
        let deadline_ns = now_ns() + ANSWER_NS_MAX;
        session.submit(request, Submit { deadline_ns, ..Submit::default() })?;
        answered(session.next(ANSWER_NS_MAX)?.status)
    }

    fn await_gone(&self, session: &mut Session) -> Result<(), Error> {
        let end = Instant::now() + PATIENCE;
        loop {
            match session.model_open(&self.name) {
                Err(why) if why.status() == Status::NoSuchModel => return Ok(()),
                Err(why) if why.status() != Status::ModelLoading => return Err(why.into()),
                _ if Instant::now() >= end => {
                    return Err(self.daemon.complaint("the model does not go"));
                }
                _ => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn report(&self, host: Host, before_mib: Option<f64>, cycles: &[Cycle]) -> Report {
        let mut recorder = Recorder::new();
        cycles.iter().for_each(|it| recorder.add(Duration::from_secs_f64(it.answer_s), 1));
        let all_s = cycles.iter().map(|it| it.answer_s).sum();
        let round = recorder.finish(Duration::from_secs_f64(all_s));
        let allowed = |it: &Cycle| 1.5 * it.bytes_s + 0.5;
        let over = |it: &Cycle| it.answer_s / allowed(it);
        let answer_s = median(cycles.iter().map(|it| it.answer_s));
        let allowed_s = median(cycles.iter().map(allowed));
        let read = median(cycles.iter().map(|it| it.bytes_s));
        let mut figures = Figures::default();
        figures.add("times", cycles.len() as f64);
        figures.add("answer_s_median", answer_s);
        figures.add("allowed_s_median", allowed_s);
        figures.add("answer_over_allowed_median", median(cycles.iter().map(over)));
        figures.add("answer_over_allowed_max", cycles.iter().map(over).fold(0.0, f64::max));
        let mib = self.disk.bytes() as f64 / f64::from(1 << 20);
        let mut notes = vec![
            format!("file of {mib:.1} MiB; its bytes alone take {read:.3} s; {}", self.disk.say()),
            format!("first answer after {answer_s:.3} s, allowed {allowed_s:.3} s"),
        ];
        notes.extend(self.copy.as_ref().map(CopyRate::say));
        let left: Vec<f64> = cycles.iter().filter_map(|it| it.left_mib).collect();
        match (before_mib, left.first(), left.last()) {
            (Some(before), Some(first), Some(last)) => {
                let most = left.iter().copied().fold(f64::MIN, f64::max);
                figures.add("kept_mib", first - before);
                figures.add("drift_mib", last - first);
                figures.add("drift_most_mib", most - first);
                notes.push(format!(
                    "device memory: {before:.0} MiB before the first, {first:.0} MiB after it, \
                     {last:.0} MiB after the last ({:+.1} MiB; most {:+.1} MiB)",
                    last - first,
                    most - first
                ));
            }
            _ => notes.push("device memory: there is no device".to_owned()),
        }
        let settings = json!({
            "model": self.name,
            "mechanism": self.arguments.mechanism.word(),
            "share_pct": self.arguments.share,
            "cycles": cycles,
        });
        let title = format!("{}, from telling the daemon to the first answer", self.name);
        let contenders = Summary::new(title, vec![round]).into_iter().collect();
        Report { contenders, figures, notes, ..Report::new("cold", host, settings) }
    }
}

/// The first device's memory, where there is one.
struct Memory(Option<(Reader, String)>);

impl Memory {
    fn open(held: Held) -> Result<Memory, Error> {
        if !held.on_gpu() {
            return Ok(Memory(None));
        }
        let reader = Reader::open().map_err(|why| Error::failed("device memory", why))?;
        let first = reader.inventory().devices.into_iter().next();
        let first = first.ok_or_else(|| Error::failed("device memory", "there is no device"))?;
        Ok(Memory(Some((reader, first.uuid))))
    }

    /// MiB used, when that has not changed for a while.
    fn settled(&self) -> Option<f64> {
        let (reader, uuid) = self.0.as_ref()?;
        let look = || reader.usage(uuid).ok().map(|usage| usage.memory_bytes);
        let (mut last, mut same) = (look()?, 0);
        let end = Instant::now() + PATIENCE;
        while same < LOOKS && Instant::now() < end {
            std::thread::sleep(LOOK_EVERY);
            let now = look()?;
            same = if now == last { same + 1 } else { 0 };
            last = now;
        }
        Some(last as f64 / f64::from(1 << 20))
    }
}
