//! `gpulet-bench`: what gpulet costs, beside the least that anything could cost.
//!
//! Every figure is taken beside its yardstick in the same run, in turns; see [`stats`]. Exit codes:
//! 0, 1 when a measurement failed, 2 for bad arguments.

mod answers;
mod change;
mod closed;
mod coexist;
mod cold;
mod daemon;
mod difference;
mod drill;
mod e2e;
mod error;
mod events;
mod far;
mod floor;
mod input;
mod load;
mod place;
mod report;
mod ring;
mod scene;
mod settings;
mod stats;
mod steady;
mod table;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::floor::Floor;

#[derive(Debug, Parser)]
#[command(name = "gpulet-bench", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Round trip of the null model, beside the floors of two processes on this machine
    Ring(ring::Arguments),
    /// A model through daemon and executor, beside the libtorch shim alone
    E2e(e2e::Arguments),
    /// What a GPU answers, against what the CPU answers
    Answers(answers::Arguments),
    /// Several gpulets of one GPU, all busy all the time
    Coexist(coexist::Arguments),
    /// Shares that change under full load
    Change(change::Arguments),
    /// A model that is loaded, asked and unloaded, again and again
    Cold(cold::Arguments),
    /// What can go wrong with a GPU, under full load, again and again
    Drill(drill::Arguments),
    /// Requests at a stated rate, against a daemon that runs already
    Load(load::Arguments),
    /// What was measured, beside what was aimed at
    Table(table::Arguments),
    /// How fast a GPU's memory is written, by itself
    #[command(hide = true)]
    CopyRate,
    /// The other process of a measurement
    #[command(hide = true)]
    Far {
        /// Which answer to give
        floor: Floor,
    },
    /// Binds to a CPU and to the life of the parent, then becomes another program
    #[command(hide = true)]
    Leash {
        /// CPU to run on
        #[arg(long)]
        cpu: Option<u32>,
        /// Program and arguments
        #[arg(last = true, required = true)]
        program: Vec<OsString>,
    },
}

fn run(command: Command) -> Result<(), Error> {
    match command {
        Command::Ring(arguments) => ring::run(&arguments),
        Command::Answers(arguments) => answers::run(&arguments),
        Command::Change(arguments) => change::run(&arguments),
        Command::Cold(arguments) => cold::run(&arguments),
        Command::CopyRate => cold::rates::print_copy_rate(),
        Command::Drill(arguments) => drill::run(&arguments),
        Command::Coexist(arguments) => coexist::run(&arguments),
        Command::E2e(arguments) => e2e::run(&arguments),
        Command::Load(arguments) => load::run(&arguments),
        Command::Table(arguments) => table::run(&arguments),
        Command::Far { floor } => floor.answer(),
        Command::Leash { cpu, program } => Err(far::leash(cpu, &program)),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("gpulet-bench: {error}");
            ExitCode::FAILURE
        }
    }
}
