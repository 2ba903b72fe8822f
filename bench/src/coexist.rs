//! `gpulet-bench coexist`: several gpulets of one GPU, all busy all the time.
//!
//! One client keeps as many requests in flight as keep every gpulet busy, each a whole batch, and
//! sends the next as soon as one is answered: the rate is the most that the gpulets give together,
//! and the latency that of a batch with all the others running.

use std::path::PathBuf;
use std::time::Duration;

use bytemuck::Zeroable;
use clap::Args;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, ModelSpec, Options, Request, Session, Submit, Wait};
use serde_json::json;

use crate::daemon::{self, Daemon, Gpulet, Held, Place, Spin, answered};
use crate::error::Error;
use crate::input::fill;
use crate::report::{Host, Report};
use crate::stats::{Recorder, Round, Summary};

/// A deadline that no batch misses: admission is not what is measured.
const ANSWER_NS_MAX: u64 = 120_000_000_000;
const SPIN_US: u32 = 20;
/// One look at whether the rate has settled: longer than loading a model takes.
const SETTLING: Duration = Duration::from_secs(4);
const SETTLING_MAX: u32 = 15;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the gpulets hold their shares
    #[arg(long, value_enum)]
    mechanism: Held,
    /// Where the MPS that is running has its pipes, for --mechanism mps
    #[arg(long, value_name = "DIR", required_if_eq("mechanism", "mps"))]
    mps: Option<PathBuf>,
    /// Gpulets, of equal shares of the whole GPU
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=32))]
    gpulets: u32,
    /// Rows of each request, which is a batch
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Requests in flight for each gpulet
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
    /// Rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// Seconds of each round
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that it had.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let program = daemon::program(arguments.daemon.as_deref())?;
    let host = Host::look();
    let place = Place::new()?;
    let name = place.add_with_batch(&arguments.model, arguments.rows)?;
    let mechanism = arguments.mechanism.word();
    let gpulet = Gpulet::Gpu {
        mechanism,
        count: arguments.gpulets,
        share_pct: u8::try_from(100 / arguments.gpulets).unwrap_or(100),
        model: Some(name.clone()),
        mps: arguments.mps.clone(),
    };
    let daemon = Daemon::start(&program, &place, None, Spin::Micros(SPIN_US), &gpulet)?;
    let in_flight = arguments.gpulets * arguments.depth;
    let mut load = Load::open(&daemon, &name, arguments.rows, in_flight)?;
    load.settle()?;
    let mut rounds = Vec::new();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        rounds.push(load.round(Duration::from_secs_f64(arguments.seconds))?);
    }
    drop(load);
    daemon.stop()?;
    let label = format!("{name}, {} gpulets of mechanism {mechanism}", arguments.gpulets);
    let summary = Summary::new(label, rounds);
    let notes = summary.iter().map(|it| {
        let rows = it.median.per_second * f64::from(arguments.rows);
        let tail = it.median.p99_ns as f64 / it.median.p50_ns.max(1) as f64;
        format!("{rows:.0} rows/s in batches of {}; p99 is {tail:.2} x p50", arguments.rows)
    });
    let settings = json!({
        "model": name,
        "mechanism": mechanism,
        "gpulets": arguments.gpulets,
        "rows": arguments.rows,
        "depth": arguments.depth,
        "rounds": arguments.rounds,
        "seconds": arguments.seconds,
    });
    let notes = notes.collect();
    let contenders = summary.into_iter().collect();
    let report = Report { bench: "coexist", host, settings, contenders, ratios: Vec::new(), notes };
    report.publish(arguments.json.as_deref())
}

/// A client that never lets up.
struct Load {
    session: Session,
    spec: ModelSpec,
    rows: u32,
    in_flight: u32,
}

impl Load {
    fn open(daemon: &Daemon, name: &str, rows: u32, in_flight: u32) -> Result<Load, Error> {
        let spec = daemon.model(&mut daemon.session(Options::default())?, name)?;
        let layout = gpulet_abi::tensor::SlotLayout::of_spec(&spec, rows)
            .ok_or_else(|| Error::failed("coexist", "so many rows have no layout"))?;
        let mut session = daemon.session(Options {
            wait: Wait::Spin,
            slot_bytes: layout.bytes(),
            slot_count: in_flight,
            ..Options::default()
        })?;
        let spec = daemon.model(&mut session, name)?;
        let mut load = Load { session, spec, rows, in_flight };
        load.fill()?;
        Ok(load)
    }

    /// Every slot, where the inputs stay.
    fn fill(&mut self) -> Result<(), Error> {
        let mut requests = Vec::new();
        for seed in 0..self.in_flight {
            let request = self.session.claim(self.spec.model, self.rows)?;
            for index in 0..self.spec.input_count {
                let dtype = self.spec.inputs[index as usize].dtype();
                let input = self.session.input_bytes_mut(request, index)?;
                fill(input, dtype, u64::from(seed * self.spec.input_count + index));
            }
            requests.push(request);
        }
        requests.into_iter().try_for_each(|request| Ok(self.session.release(request)?))
    }

    /// Runs until more time makes no difference: every gpulet has loaded the model then.
    fn settle(&mut self) -> Result<(), Error> {
        let mut last = f64::INFINITY;
        for _ in 0..SETTLING_MAX {
            let rate = self.round(SETTLING)?.per_second;
            if (rate - last).abs() <= last * 0.02 {
                return Ok(());
            }
            last = rate;
        }
        Err(Error::failed("coexist", "the rate does not settle"))
    }

    fn submit(&mut self) -> Result<(), Error> {
        let request = self.session.claim(self.spec.model, self.rows)?;
        let now_ns = now_ns();
        let deadline_ns = now_ns + ANSWER_NS_MAX;
        let user_data = now_ns;
        Ok(self.session.submit(request, Submit { deadline_ns, user_data, ..Submit::default() })?)
    }

    fn round(&mut self, duration: Duration) -> Result<Round, Error> {
        let mut recorder = Recorder::new();
        let begin_ns = now_ns();
        let end_ns = begin_ns + duration.as_nanos() as u64;
        for _ in 0..self.in_flight {
            self.submit()?;
        }
        let mut flying = self.in_flight;
        let mut answers = [Completion::zeroed(); 16];
        while flying > 0 {
            let count = self.session.reap(&mut answers)?;
            for answer in &answers[..count] {
                answered(answer.status)?;
                let now_ns = now_ns();
                self.session
                    .release(Request { slot: answer.slot, generation: answer.generation })?;
                flying -= 1;
                if now_ns < end_ns {
                    recorder.add(Duration::from_nanos(now_ns - answer.user_data), 1);
                    self.submit()?;
                    flying += 1;
                }
            }
        }
        Ok(recorder.finish(Duration::from_nanos(end_ns - begin_ns)))
    }
}
