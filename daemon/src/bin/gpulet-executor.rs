//! `gpulet-executor`: runs models for `gpuletd`, which starts it.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;

use clap::Parser;
use gpulet_daemon::execute::{self, ExecuteError, start};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// Runs models for gpuletd, which starts it with a control socket as standard input.
///
/// GPULET_LOG says what is logged to standard error, such as "info" (the default) or "debug".
/// Exit codes: 0 the daemon hung up, 1 an error that was logged, 2 not started by gpuletd.
#[derive(Debug, Parser)]
#[command(name = "gpulet-executor", version)]
struct Arguments {}

fn main() -> ExitCode {
    let Arguments {} = Arguments::parse();
    let filter = EnvFilter::try_from_env("GPULET_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Whoever collects standard error (journald, a terminal under the daemon's own log) knows the
    // time.
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .without_time()
        .with_target(false)
        .with_writer(Named)
        .init();
    ignore_terminal();
    let served = match io::stdin().as_fd().try_clone_to_owned() {
        Ok(control) => execute::serve(control),
        Err(_) => Err(ExecuteError::NoDaemon),
    };
    let code = match served {
        Ok(()) => 0,
        Err(error @ ExecuteError::NoDaemon) => {
            eprintln!("gpulet-executor: {error}");
            2
        }
        Err(error) => {
            tracing::error!("{error}");
            1
        }
    };
    // SAFETY: ends the process at once. Destructors of libtorch must not run while the loader's
    // thread may be inside of it, and nothing of ours is left to be written.
    unsafe { libc::_exit(code) }
}

/// The daemon decides when an executor goes: not Ctrl-C, which reaches the terminal's whole process
/// group, and not the terminal's end.
fn ignore_terminal() {
    for signal in [libc::SIGINT, libc::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours; it cannot fail for these two.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Standard error, each line with the executor's name.
struct Named;

impl<'a> MakeWriter<'a> for Named {
    type Writer = Named;
    fn make_writer(&'a self) -> Named {
        Named
    }
}

impl Write for Named {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        // One write a line, so that lines of several executors do not mix.
        let mut named = format!("gpulet-executor[{}]: ", start::name()).into_bytes();
        named.extend_from_slice(line);
        io::stderr().write_all(&named)?;
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
