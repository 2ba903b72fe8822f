//! The command line of `gpuletd`.

use std::path::PathBuf;

use clap::Parser;

use crate::config::DEFAULT_PATH;

/// Everything else that went wrong.
pub const FAILED: u8 = 1;
/// EX_CONFIG of sysexits.h: a service manager should not try again before somebody mends it.
pub const BAD_CONFIG: u8 = 78;

const AFTER: &str = "\
Signals:
  SIGTERM, SIGINT  take nothing new, finish what is in flight, exit
  SIGHUP           read configuration and models again; keep the old ones if the new are bad

Environment:
  GPULET_LOG       what is logged, such as debug [default: info]

Exit codes:
  0   stopped as asked
  1   could not start or go on; the log says why
  2   wrong usage
  78  the configuration is bad";

/// Serves TorchScript models to local programs over shared memory.
#[derive(Debug, Parser)]
#[command(name = "gpuletd", version, after_help = AFTER, max_term_width = 100)]
pub struct Arguments {
    /// The configuration
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_PATH)]
    pub config: PathBuf,
    /// Check the configuration and its models, print what is wrong, and exit
    #[arg(long)]
    pub check: bool,
}
