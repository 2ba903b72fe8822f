//! `gpuletctl` and the command line of `gpuletd`: help, man pages and completions come from the
//! same definitions.
//!
//! | module       | holds                                                       |
//! |--------------|-------------------------------------------------------------|
//! | [`daemon`]   | gpuletd's flags                                             |
//! | [`check`]    | what is wrong with a configuration, without starting it     |
//! | [`error`]    | how a subcommand fails, and the exit codes                  |
//! | `run`        | a model in this process, no daemon                          |
//! | `infer`      | requests through the daemon                                 |
//! | `status`     | the daemon's state                                          |
//! | `models`     | the daemon's models                                         |
//! | `devices`    | the GPUs there are                                          |
//! | `schedule`   | a plan, from the published files                            |
//! | `why`        | what binds a plan                                           |
//! | `simulate`   | a plan under load, on virtual time                          |
//! | `workload`   | published workloads, and peak rates                         |
//! | `report`     | policies compared, on one page                              |
//! | `fit`        | interference models from measurements                       |
//! | `plan_check` | what is wrong with a plan                                   |
//! | `published`  | the published files on a command line                       |
//! | `profile`    | how long batches take, and what gpulets do to each other    |
//! | `prove_share` | what shares of a GPU are, measured                         |
//! | `gauge`      | processes that measure, for these                           |
//! | `pages`      | man pages and completions                                   |
//! | `manual`     | what these and the help say beyond flags                    |
//! | [`control`]  | asking the daemon for its state                             |
//! | `latency`, `table`, `values` | numbers, for people and programs            |

pub mod check;
pub mod control;
pub mod daemon;
mod devices;
pub mod error;
mod fit;
mod gauge;
mod infer;
mod latency;
mod manual;
mod models;
mod pages;
mod plan_check;
mod profile;
mod prove_share;
mod published;
mod report;
mod run;
mod schedule;
mod simulate;
mod status;
mod table;
mod values;
mod why;
mod workload;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Args, Parser, Subcommand};

pub use self::error::CtlError;

/// Runs models, and asks the daemon that serves them.
#[derive(Debug, Parser)]
#[command(name = "gpuletctl", version, max_term_width = 100)]
#[command(after_help = manual::help(manual::CTL))]
pub struct Arguments {
    /// The daemon's socket [default: $GPULET_SOCKET, else /run/gpulet/gpuletd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Run(run::Run),
    Infer(infer::Infer),
    Status(status::Status),
    Models(models::Models),
    Devices(devices::Devices),
    Check(check::Check),
    Profile(profile::Profile),
    ProveShare(prove_share::ProveShare),
    Schedule(schedule::Schedule),
    PlanCheck(plan_check::PlanCheck),
    Why(why::Why),
    Simulate(simulate::Simulate),
    Workload(workload::Workload),
    Fit(fit::Fit),
    Report(report::Report),
    Completions(pages::Completions),
    Man(pages::ManPages),
    #[command(hide = true)]
    MeasureGpulets(gauge::MeasureGpulets),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Args)]
struct Output {
    /// Print JSON, for programs; times are in nanoseconds
    #[arg(long)]
    json: bool,
}

/// What the binary does: parses, runs one subcommand, and tells how it went.
pub fn main() -> ExitCode {
    let arguments = match parse::<Arguments>("gpuletctl") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    let socket = arguments.socket.as_deref();
    let done = match &arguments.command {
        Command::Run(run) => run.run(),
        Command::Infer(infer) => infer.run(socket),
        Command::Status(status) => status.run(socket),
        Command::Models(models) => models.run(socket),
        Command::Devices(devices) => devices.run(),
        Command::Check(check) => check.run(),
        Command::Profile(profile) => profile.run(),
        Command::ProveShare(prove) => prove.run(),
        Command::Schedule(schedule) => schedule.run(),
        Command::PlanCheck(check) => check.run(),
        Command::Why(why) => why.run(),
        Command::Simulate(simulate) => simulate.run(),
        Command::Workload(workload) => workload.run(),
        Command::Fit(fit) => fit.run(),
        Command::Report(report) => report.run(),
        Command::Completions(completions) => completions.run(),
        Command::Man(man) => man.run(),
        Command::MeasureGpulets(measure) => measure.run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error.print("gpuletctl");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Parses a command line; wrong usage is told in one line.
///
/// # Errors
/// The exit code to end with, after everything is printed: 2 for wrong usage, 0 where help or a
/// version was asked for.
pub fn parse<P: Parser>(program: &str) -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        let help = matches!(
            error.kind(),
            ErrorKind::DisplayHelp
                | ErrorKind::DisplayVersion
                | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        );
        if help {
            // Nobody is left to tell if it cannot be printed.
            let _ = error.print();
        } else {
            eprintln!("{program}: {}", usage_line(&error.to_string()));
        }
        ExitCode::from(if error.exit_code() == 0 { 0 } else { error::USAGE })
    })
}

/// What clap says, without its layout: the error, its tips and where help is.
fn usage_line(text: &str) -> String {
    let mut said: Vec<&str> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") || line.starts_with("For more information") {
            break;
        }
        said.push(line.strip_prefix("error: ").unwrap_or(line));
    }
    format!("{} (--help says more)", said.join(" ").replace(" tip: ", "; "))
}

/// Prints to standard output. A reader that has seen enough is no error.
fn print(text: &str) -> Result<(), CtlError> {
    print_bytes(format!("{}\n", text.trim_end()).as_bytes())
}

fn print_bytes(bytes: &[u8]) -> Result<(), CtlError> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(CtlError::Output(error)),
        _ => Ok(()),
    }
}

fn print_json<T: serde::Serialize>(value: &T) -> Result<(), CtlError> {
    let text = serde_json::to_string_pretty(value).map_err(io::Error::from);
    print(&text.map_err(CtlError::Output)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definitions_hold_together() {
        Arguments::command().debug_assert();
        daemon::Arguments::command().debug_assert();
    }

    #[test]
    fn usage_is_told_in_one_line() {
        let error = Arguments::try_parse_from(["gpuletctl", "status", "--jsom"]).unwrap_err();
        let line = usage_line(&error.to_string());
        assert_eq!(
            line,
            "unexpected argument '--jsom' found; a similar argument exists: '--json' \
             (--help says more)"
        );
    }
}
