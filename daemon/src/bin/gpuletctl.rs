//! `gpuletctl`: runs models, and asks the daemon that serves them.

use std::process::ExitCode;

fn main() -> ExitCode {
    gpulet_daemon::cli::main()
}
