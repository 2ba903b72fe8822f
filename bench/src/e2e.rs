//! `gpulet-bench e2e`: a model through daemon and executor, against the same libtorch shim called
//! straight from this process: what is between the two is what gpulet costs.
//!
//! Both load the same archive the same way, run with as many threads on the same CPUs, read inputs
//! from and write outputs to shared memory. Both stay loaded throughout, and take turns.

mod alone;
mod gpu;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gpulet_client::clock::now_ns;
use gpulet_client::{ModelSpec, Options, Request, Session, Submit, Wait};
use gpulet_torch::OPENMP_SPIN;
use serde_json::json;

use crate::daemon::{self, Daemon, answered};
use crate::difference::difference;
use crate::error::{Doing, Error};
use crate::input::fill;
use crate::place::{Place, name_of};
use crate::report::{Figures, Host, Report};
use crate::settings::{ALWAYS, Gpulet, Held, SPIN_US, Settings, Spin};
use crate::stats::{Ratio, Recorder, Round, Summary};
use alone::Alone;
use gpu::GpuAlone;

/// A deadline that no model misses: admission is not what is measured.
const ANSWER_NS_MAX: u64 = 120_000_000_000;
/// Largest difference between two processes' answers on a GPU.
const GPU_DIFFERENCE_MAX: f64 = 0.01;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// Rounds; in each, both have one turn
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// Measured requests of each contender in each round, one after the other
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..100_000))]
    requests: u32,
    /// Rows of each request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// How the gpulet holds its share
    #[arg(long, value_enum, default_value_t = Held::Cpu)]
    mechanism: Held,
    /// Poll for answers instead of sleeping
    #[arg(long)]
    busy: bool,
    /// Have daemon and executors on GPUs never sleep
    #[arg(long)]
    always: bool,
    /// The gpulet's share of the CPUs, from which threads and CPUs follow, or of the GPU, in percent
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u8).range(1..=100))]
    share: u8,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What is called straight from this process.
trait Contender {
    /// What it makes of the inputs, one after the other.
    fn outputs(&mut self) -> Result<Vec<Vec<u8>>, Error>;
    /// Measures so many runs.
    fn round(&mut self, count: u32) -> Result<Round, Error>;
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that either had, and different outputs.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    spin_as_executors_do();
    let program = daemon::program(arguments.daemon.as_deref())?;
    let host = Host::look();
    let (place, name) = (Place::new()?, name_of(&arguments.model)?);
    // No more rows than are asked for: each size of batch is warmed up, twice here.
    place.add_as(&name, &arguments.model, Some(arguments.rows))?;
    let spin = if arguments.always { ALWAYS } else { Spin::Micros(SPIN_US) };
    let gpulet = Gpulet::of(arguments.mechanism, arguments.share);
    let settings = Settings { spin, ..Settings::of(vec![gpulet]) };
    let daemon = Daemon::start(&program, &place, None, &settings)?;
    let wait = if arguments.busy { Wait::Spin } else { Wait::Block };
    let mut through = Through::open(&daemon, &name, arguments.rows, wait)?;
    let mut notes = Vec::new();
    let mut alone: Box<dyn Contender> = match arguments.mechanism {
        Held::Cpu => {
            let cpus = cpus_of_share(arguments.share)?;
            notes.push(format!("{} threads each", cpus.len()));
            Box::new(Alone::start(&arguments.model, &through.spec, arguments.rows, cpus)?)
        }
        Held::Mps | Held::Green | Held::GreenMps => {
            Box::new(GpuAlone::load(arguments, &through.spec, &place, &daemon)?)
        }
        Held::Replay | Held::ReplaySplit => {
            return Err(Error::failed("--mechanism", "what is replayed runs no model"));
        }
    };
    notes.push(arguments.compare(&through.spec.clone(), &through.outputs()?, &alone.outputs()?)?);
    let (mut through_rounds, mut alone_rounds) = (Vec::new(), Vec::new());
    let mut cpu_time = Duration::ZERO;
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        let before = daemon.cpu_time().unwrap_or_default();
        through_rounds.push(through.round(arguments.requests)?);
        cpu_time += daemon.cpu_time().unwrap_or_default().saturating_sub(before);
        alone_rounds.push(alone.round(arguments.requests)?);
    }
    let resident_bytes = daemon.resident_bytes();
    drop(through);
    let through = Summary::new(format!("{name} through daemon and executor"), through_rounds);
    let beside = Summary::new(format!("{name}, the shim alone"), alone_rounds);
    let (mut figures, mut ratios) = (Figures::default(), Vec::new());
    if let (Some(through), Some(beside)) = (&through, &beside) {
        let name = "through the daemon / the shim alone";
        ratios.extend(Ratio::of_p50(name, through, beside));
        ratios.extend(Ratio::of_p99(&format!("{name}, p99"), through, beside));
        figures.add("p50_us", through.median.p50_ns as f64 / 1e3);
    }
    for (figure, ratio) in ["p50_ratio", "p99_ratio"].into_iter().zip(&ratios) {
        figures.add(figure, ratio.median);
    }
    // One more in each round is not measured.
    let requests = f64::from(arguments.rounds) * f64::from(arguments.requests + 1);
    let us = cpu_time.as_secs_f64() * 1e6 / requests;
    figures.add("cpu_us", us);
    notes.push(format!("daemon and executor: {us:.1} us of CPU time a request"));
    notes.extend(
        resident_bytes.map(|bytes| format!("daemon: {:.1} MB resident", bytes as f64 / 1e6)),
    );
    let contenders = through.into_iter().chain(beside).collect();
    let settings = arguments.settings(&name, resident_bytes);
    let report =
        Report { contenders, ratios, figures, notes, ..Report::new("e2e", host, settings) };
    report.publish(arguments.json.as_deref())?;
    // Of the daemon's MPS this process may be a client too.
    drop(alone);
    daemon.stop()
}

/// Has OpenMP's threads wait as those of an executor.
fn spin_as_executors_do() {
    let (variable, value) = OPENMP_SPIN;
    if std::env::var_os(variable).is_none() {
        // SAFETY: no other thread runs yet, so nobody reads the environment meanwhile.
        unsafe { std::env::set_var(variable, value) };
    }
}

impl Arguments {
    /// Refuses answers that differ; for the notes.
    fn compare(
        &self,
        spec: &ModelSpec,
        one: &[Vec<u8>],
        other: &[Vec<u8>],
    ) -> Result<String, Error> {
        let outputs = &spec.outputs[..spec.output_count as usize];
        let dtypes: Vec<_> = outputs.iter().map(|output| output.dtype()).collect();
        let difference = difference(&dtypes, one, other);
        // Two processes choose among a GPU's algorithms on their own.
        let cpu = self.mechanism == Held::Cpu;
        let allowed = if cpu { 0.0 } else { GPU_DIFFERENCE_MAX };
        let text = format!("outputs differ by {difference:.1e} of their largest value");
        if difference.is_nan() || difference > allowed {
            return Err(Error::failed("e2e", text));
        }
        Ok(text)
    }

    fn settings(&self, name: &str, resident_bytes: Option<u64>) -> serde_json::Value {
        json!({
            "model": name,
            "rounds": self.rounds,
            "requests": self.requests,
            "rows": self.rows,
            "share_pct": self.share,
            "mechanism": self.mechanism.word(),
            "busy": self.busy,
            "always": self.always,
            "daemon_resident_bytes": resident_bytes,
        })
    }
}

/// The CPUs that a daemon gives its only gpulet: the first of those allowed, rounded, at least one.
fn cpus_of_share(share_pct: u8) -> Result<Vec<u32>, Error> {
    let allowed = rustix::thread::sched_getaffinity(None).doing("reading the CPU set")?;
    let all = (0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
    let all: Vec<u32> = all.filter_map(|cpu| u32::try_from(cpu).ok()).collect();
    let count = (all.len() * usize::from(share_pct) + 50) / 100;
    Ok(all[..count.clamp(1, all.len())].to_vec())
}

/// The way through the daemon.
struct Through {
    session: Session,
    spec: ModelSpec,
    rows: u32,
}

impl Through {
    fn open(daemon: &Daemon, name: &str, rows: u32, wait: Wait) -> Result<Through, Error> {
        // The first session is only to learn how large a slot has to be.
        let spec = daemon.model(&mut daemon.session(Options::default())?, name)?;
        let layout = gpulet_abi::tensor::SlotLayout::of_spec(&spec, rows)
            .ok_or_else(|| Error::failed("e2e", "so many rows have no layout"))?;
        let mut session = daemon.session(Options {
            wait,
            slot_bytes: layout.bytes(),
            slot_count: 1,
            ..Options::default()
        })?;
        let spec = daemon.model(&mut session, name)?;
        let mut through = Through { session, spec, rows };
        through.write_inputs()?;
        Ok(through)
    }

    /// Into the only slot, where they stay: what is measured begins with a filled slot.
    fn write_inputs(&mut self) -> Result<(), Error> {
        let request = self.session.claim(self.spec.model, self.rows)?;
        for index in 0..self.spec.input_count {
            let dtype = self.spec.inputs[index as usize].dtype();
            let input = self.session.input_bytes_mut(request, index)?;
            fill(input, dtype, u64::from(index));
        }
        self.session.release(request)?;
        Ok(())
    }

    fn request(&mut self) -> Result<Request, Error> {
        let request = self.session.claim(self.spec.model, self.rows)?;
        let deadline_ns = now_ns() + ANSWER_NS_MAX;
        self.session.submit(request, Submit { deadline_ns, ..Submit::default() })?;
        let answer = self.session.next(2 * ANSWER_NS_MAX)?;
        if answered(answer.status).is_err() {
            let text = self.session.request_error(request).unwrap_or_default();
            let status = gpulet_client::Status::from_number(answer.status);
            return Err(Error::failed("request", format!("{status:?} {text}")));
        }
        Ok(request)
    }

    fn outputs(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        let request = self.request()?;
        let outputs = (0..self.spec.output_count)
            .map(|index| self.session.output_bytes(request, index).map(<[u8]>::to_vec))
            .collect::<Result<_, _>>()?;
        self.session.release(request)?;
        Ok(outputs)
    }

    fn round(&mut self, count: u32) -> Result<Round, Error> {
        round_of(count, || {
            let request = self.request()?;
            self.session.release(request)?;
            Ok(())
        })
    }
}

/// One call that is not measured, since the other had its turn before, then `count` that are.
fn round_of(count: u32, mut call: impl FnMut() -> Result<(), Error>) -> Result<Round, Error> {
    let mut recorder = Recorder::new();
    call()?;
    let begin_ns = now_ns();
    for _ in 0..count {
        let start_ns = now_ns();
        call()?;
        recorder.add(Duration::from_nanos(now_ns() - start_ns), 1);
    }
    Ok(recorder.finish(Duration::from_nanos(now_ns() - begin_ns)))
}
