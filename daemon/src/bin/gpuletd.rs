//! `gpuletd`: parses, builds, runs, and says by its exit code how it ended.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use gpulet_daemon::config::Config;
use gpulet_daemon::server::{Server, ServerError};
use tracing::error;

/// Serves models to local clients over shared memory.
#[derive(Debug, Parser)]
#[command(name = "gpuletd", version)]
struct Arguments {
    /// The configuration.
    #[arg(long, default_value = "/etc/gpulet/gpuletd.toml")]
    config: PathBuf,
}

/// EX_CONFIG of sysexits.h: systemd must not try again before somebody mends the config.
const BAD_CONFIG: u8 = 78;
const FAILED: u8 = 1;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    gpulet_daemon::log::start();
    let config = match load(&arguments.config) {
        Ok(config) => config,
        Err(code) => return code,
    };
    match Server::new(config).and_then(Server::run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(ServerError::Config(problem)) => {
            error!("{problem}");
            ExitCode::from(BAD_CONFIG)
        }
        Err(problem) => {
            error!("{problem}");
            ExitCode::from(FAILED)
        }
    }
}

fn load(path: &PathBuf) -> Result<Config, ExitCode> {
    Config::load(path).map_err(|problem| {
        error!("{problem}");
        ExitCode::from(BAD_CONFIG)
    })
}
