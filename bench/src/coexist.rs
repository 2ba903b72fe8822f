//! `gpulet-bench coexist`: several gpulets of one GPU, all busy all the time.
//!
//! One client keeps as many requests in flight as keep every gpulet busy, each a whole batch, and
//! sends the next as soon as one is answered: the rate is the most that the gpulets give together,
//! and the latency that of a batch with all the others running.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde_json::json;

use crate::closed::Load;
use crate::daemon::{self, Daemon, Gpulet, Held, Place, Spin};
use crate::error::Error;
use crate::report::{Host, Report};
use crate::stats::Summary;

const SPIN_US: u32 = 20;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the gpulets hold their shares
    #[arg(long, value_enum)]
    mechanism: Held,
    /// Where the MPS that is running has its pipes; without, the daemon starts its own
    #[arg(long, value_name = "DIR")]
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
