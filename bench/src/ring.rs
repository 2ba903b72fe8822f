//! `gpulet-bench ring`: the round trip of a null model that the daemon answers, beside the floors.

mod trip;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::json;

use crate::daemon;
use crate::error::{Doing, Error};
use crate::far::{self, Cpus};
use crate::floor::Floor;
use crate::place::Place;
use crate::report::{Host, Report};
use crate::stats::{Ratio, Round, Summary, Window};
use trip::{Bed, Trip, Wake};

/// 602,112 is an image of 3 x 224 x 224 floats.
const PAYLOADS: &str = "64,4096,65536,602112,4194304,16777216";

#[derive(Debug, Args)]
pub struct Arguments {
    /// Rounds; in each, every contender has one turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..1000))]
    rounds: u32,
    /// Milliseconds that a contender measures in each round
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..600_000))]
    round_ms: u64,
    /// Bytes of the null model's input, ascending
    #[arg(long, value_delimiter = ',', default_value = PAYLOADS,
          value_parser = clap::value_parser!(u64).range(1..=1 << 29))]
    payloads: Vec<u64>,
    /// Requests in flight
    #[arg(long, value_delimiter = ',', default_value = "1,64",
          value_parser = clap::value_parser!(u32).range(1..=4096))]
    in_flight: Vec<u32>,
    /// Write the whole input before each submission; without it no payload is touched at all
    #[arg(long)]
    touch: bool,
    /// Only the floors
    #[arg(long, conflicts_with_all = ["payloads", "in_flight", "touch", "daemon"])]
    floors_only: bool,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
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

impl Arguments {
    fn trips(&self) -> Vec<Trip> {
        let mut trips = Vec::new();
        for wake in [Wake::Busy, Wake::Blocking] {
            for in_flight in &self.in_flight {
                for payload_bytes in &self.payloads {
                    let (in_flight, payload_bytes) = (*in_flight, *payload_bytes);
                    trips.push(Trip { wake, in_flight, payload_bytes, touch: self.touch });
                }
            }
        }
        trips
    }
}

/// Runs the bench and prints its report.
///
/// # Errors
/// The first that any contender had.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let bed = if arguments.floors_only { None } else { Some(bed(arguments)?) };
    let host = Host::look();
    let cpus = Cpus::choose(arguments.near_cpu, arguments.far_cpu)?;
    let window = Window::of(Duration::from_millis(arguments.round_ms));
    far::pin(cpus.near).doing("binding to the near CPU")?;
    let mut floors: Vec<Vec<Round>> = vec![Vec::new(); Floor::value_variants().len()];
    let trips = if bed.is_some() { arguments.trips() } else { Vec::new() };
    let mut trip_rounds: Vec<Vec<Round>> = vec![Vec::new(); trips.len()];
    let mut resident_bytes = None;
    for round in 1..=arguments.rounds {
        eprintln!("round {round} of {}", arguments.rounds);
        for (floor, rounds) in Floor::value_variants().iter().zip(&mut floors) {
            rounds.push(floor.round(cpus, window)?);
        }
        let Some(bed) = &bed else { continue };
        for wake in [Wake::Busy, Wake::Blocking] {
            let daemon = bed.daemon(cpus.far, wake)?;
            for (trip, rounds) in trips.iter().zip(&mut trip_rounds) {
                if trip.wake == wake {
                    rounds.push(trip.round(&daemon, window)?);
                }
            }
            resident_bytes = resident_bytes.max(daemon.resident_bytes());
            daemon.stop()?;
        }
    }
    let floors: Vec<(Floor, Summary)> = Floor::value_variants()
        .iter()
        .zip(floors)
        .filter_map(|(floor, rounds)| {
            Summary::new(floor.title().to_owned(), rounds).map(|summary| (*floor, summary))
        })
        .collect();
    let trips: Vec<(Trip, Summary)> = trips
        .into_iter()
        .zip(trip_rounds)
        .filter_map(|(trip, rounds)| Summary::new(trip.title(), rounds).map(|it| (trip, it)))
        .collect();
    let ratios = ratios(&floors, &trips);
    let contenders = floors.into_iter().map(|it| it.1).chain(trips.into_iter().map(|it| it.1));
    let settings = json!({
        "rounds": arguments.rounds,
        "round_ms": arguments.round_ms,
        "cpus": cpus,
        "touch": arguments.touch,
        "daemon_resident_bytes_max": resident_bytes,
    });
    let contenders = contenders.collect();
    let notes = notes(arguments, resident_bytes);
    let report = Report { contenders, ratios, notes, ..Report::new("ring", host, settings) };
    report.publish(arguments.json.as_deref())
}

fn notes(arguments: &Arguments, resident_bytes: Option<u64>) -> Vec<String> {
    let payload = match arguments.touch {
        true => "each input is written whole before its submission",
        false => "payloads are not touched (--touch writes them): the transport alone",
    };
    let resident = resident_bytes
        .map(|bytes| format!("daemon: {:.1} MB resident at the most", bytes as f64 / 1e6));
    let payload = (!arguments.floors_only).then(|| payload.to_owned());
    payload.into_iter().chain(resident).collect()
}

fn bed(arguments: &Arguments) -> Result<Bed, Error> {
    let program = daemon::program(arguments.daemon.as_deref())?;
    let place = Place::new()?;
    for payload_bytes in &arguments.payloads {
        place.add_null(&trip::model_name(*payload_bytes), *payload_bytes)?;
    }
    Ok(Bed { program, place })
}

fn ratios(floors: &[(Floor, Summary)], trips: &[(Trip, Summary)]) -> Vec<Ratio> {
    let floor = |wanted: Floor| floors.iter().find(|(floor, _)| *floor == wanted);
    let single =
        |wake: Wake| trips.iter().filter(move |(trip, _)| trip.wake == wake && trip.in_flight == 1);
    let least = |wake: Wake| single(wake).min_by_key(|(trip, _)| trip.payload_bytes);
    let most = |wake: Wake| single(wake).max_by_key(|(trip, _)| trip.payload_bytes);
    let mut ratios = Vec::new();
    let mut add = |name: &str, over: Option<&Summary>, under: Option<&Summary>| {
        if let (Some(over), Some(under)) = (over, under) {
            ratios.extend(Ratio::of_p50(name, over, under));
        }
    };
    let busy = least(Wake::Busy).map(|it| &it.1);
    #[cfg(feature = "iceoryx2")]
    add("busy round trip / iceoryx2", busy, floor(Floor::Iceoryx2).map(|it| &it.1));
    add("busy round trip / spinning cache line", busy, floor(Floor::Spin).map(|it| &it.1));
    let blocking = least(Wake::Blocking).map(|it| &it.1);
    add("blocking round trip / futex floor", blocking, floor(Floor::Futex).map(|it| &it.1));
    if let (Some((small, under)), Some((large, over))) = (least(Wake::Busy), most(Wake::Busy)) {
        let sizes = (trip::bytes_text(large.payload_bytes), trip::bytes_text(small.payload_bytes));
        add(&format!("busy round trip, {} / {}", sizes.0, sizes.1), Some(over), Some(under));
    }
    ratios
}
