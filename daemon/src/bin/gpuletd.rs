//! `gpuletd`: parses, builds, runs, and says by its exit code how it ended.

use std::process::ExitCode;

use gpulet_daemon::cli::check::examine;
use gpulet_daemon::cli::daemon::{Arguments, BAD_CONFIG, FAILED};
use gpulet_daemon::config::Config;
use gpulet_daemon::server::{Server, ServerError};
use tracing::error;

fn main() -> ExitCode {
    let arguments = match gpulet_daemon::cli::parse::<Arguments>("gpuletd") {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    if arguments.check {
        return check(&arguments);
    }
    gpulet_daemon::log::start();
    let config = match Config::load(&arguments.config) {
        Ok(config) => config,
        Err(problem) => return end(&problem, BAD_CONFIG),
    };
    match Server::new(config).and_then(Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ServerError::Config(problem)) => end(&problem, BAD_CONFIG),
        Err(problem) => end(&problem, FAILED),
    }
}

fn end(problem: &dyn std::error::Error, code: u8) -> ExitCode {
    error!("{problem}");
    ExitCode::from(code)
}

fn check(arguments: &Arguments) -> ExitCode {
    let findings = examine(&arguments.config);
    for line in findings.problems.iter().chain(&findings.notes) {
        eprintln!("{line}");
    }
    if !findings.problems.is_empty() {
        return ExitCode::from(BAD_CONFIG);
    }
    println!("{}", findings.good(&arguments.config));
    ExitCode::SUCCESS
}
