//! `gpulet-bench ring`: the round trip of a null model, beside the floors.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::error::{Doing, Error};
use crate::far::{self, Cpus};
use crate::floor::Floor;
use crate::report::{Host, Report};
use crate::stats::{Round, Summary, Window};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Rounds; in each, every contender has one turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// Milliseconds that a contender measures in each round
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..600_000))]
    round_ms: u64,
    /// CPU of the measuring side [default: the first that is allowed]
    #[arg(long)]
    near_cpu: Option<u32>,
    /// CPU of the answering side [default: the last that is allowed]
    #[arg(long)]
    far_cpu: Option<u32>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that any contender had.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let host = Host::look();
    let cpus = Cpus::choose(arguments.near_cpu, arguments.far_cpu)?;
    let window = Window::of(Duration::from_millis(arguments.round_ms));
    far::pin(cpus.near).doing("binding to the near CPU")?;
    let mut rounds: Vec<(Floor, Vec<Round>)> =
        Floor::value_variants().iter().map(|floor| (*floor, Vec::new())).collect();
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for (floor, rounds) in &mut rounds {
            rounds.push(floor.round(cpus, window)?);
        }
    }
    let contenders = rounds
        .into_iter()
        .filter_map(|(floor, rounds)| Summary::new(floor.title().to_owned(), rounds))
        .collect();
    let settings = json!({
        "rounds": arguments.rounds,
        "round_ms": arguments.round_ms,
        "cpus": cpus,
    });
    let report = Report { bench: "ring", host, settings, contenders, ratios: Vec::new() };
    report.publish(arguments.json.as_deref())
}
