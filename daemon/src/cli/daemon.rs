//! The command line of `gpuletd`.

use std::path::PathBuf;

use clap::Parser;

use super::manual;
use crate::config::DEFAULT_PATH;

/// Everything else that went wrong.
pub const FAILED: u8 = 1;
/// EX_CONFIG of sysexits.h: a supervisor should not try again before somebody mends it.
pub const BAD_CONFIG: u8 = 78;

/// Serves TorchScript models to local programs over shared memory.
#[derive(Debug, Parser)]
#[command(name = "gpuletd", version, max_term_width = 100)]
#[command(after_help = manual::help(manual::DAEMON))]
pub struct Arguments {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Check the configuration and its models, print what is wrong, and exit
    #[arg(long)]
    pub check: bool,
}
