//! `gpulet-bench coexist`: several gpulets of one GPU, all busy all the time.
//!
//! One client for each GPU keeps as many requests in flight as keep every gpulet busy, each a whole
//! batch, and sends the next as soon as one is answered: the rate is the most that the gpulets give
//! together, and the latency that of a batch with all the others running.

use std::time::Duration;

use clap::Args;

use crate::closed::Load;
use crate::error::Error;
use crate::report::{Figures, Host, Report};
use crate::scene::{Copies, Given};
use crate::stats::{Round, Summary};

const WARM_UP: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    scene: Given,
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
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that it had.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { scene: given, rows, depth, rounds, seconds } = arguments;
    let host = Host::look();
    let scene = given.scene(Copies::EachDevice, 4, *rows)?;
    let count = scene.settings.gpulets.len() / scene.models.len();
    let in_flight = count as u32 * depth;
    let daemon = scene.start()?;
    let mut loads = Vec::new();
    for model in &scene.models {
        loads.push(Load::open(&daemon, model, *rows, in_flight)?);
    }
    daemon.await_gpulets(&scene.settings)?;
    // The daemon learns what batches take, and clocks rise.
    together(&mut loads, WARM_UP)?;
    let mut all: Vec<Vec<Round>> = vec![Vec::new(); loads.len()];
    for round in 1..=*rounds {
        eprintln!("round {round} of {rounds}");
        let done = together(&mut loads, Duration::from_secs_f64(*seconds))?;
        all.iter_mut().zip(done).for_each(|(rounds, round)| rounds.push(round));
    }
    drop(loads);
    daemon.stop()?;
    let word = given.mechanism.word();
    let label = |device| format!("{}, {count} gpulets of GPU {device}, {word}", scene.name);
    let labels = given.devices.iter().map(label);
    let contenders: Vec<Summary> =
        labels.zip(all).filter_map(|(label, rounds)| Summary::new(label, rounds)).collect();
    let (mut figures, mut notes) = (Figures::default(), Vec::new());
    let (mut sum, mut worst) = (0.0, 0f64);
    for it in &contenders {
        let rate = it.median.per_second * f64::from(*rows);
        let tail = it.median.p99_ns as f64 / it.median.p50_ns.max(1) as f64;
        notes.push(format!(
            "{}: {rate:.0} rows/s in batches of {rows}; p99 {tail:.2} x p50",
            it.name
        ));
        (sum, worst) = (sum + rate, worst.max(tail));
    }
    figures.add("rows_per_s", sum / contenders.len() as f64);
    figures.add("rows_per_s_in_all", sum);
    figures.add("p99_over_p50", worst);
    let mut settings = given.to_json(&scene);
    settings["rows"] = (*rows).into();
    settings["depth"] = (*depth).into();
    settings["seconds"] = (*seconds).into();
    let report = Report { contenders, figures, notes, ..Report::new("coexist", host, settings) };
    report.publish(given.json.as_deref())
}

/// A round of every load, at the same time.
fn together(loads: &mut [Load], duration: Duration) -> Result<Vec<Round>, Error> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            loads.iter_mut().map(|load| scope.spawn(move || load.round(duration))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err(Error::failed("coexist", "a client panicked")))
        };
        threads.into_iter().map(join).collect()
    })
}
