//! Where log lines go: to the journal under systemd, else to standard error.

use std::io::IsTerminal;

use tracing::warn;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

const FILTER_VARIABLE: &str = "GPULET_LOG";

/// Starts logging; `GPULET_LOG` filters (such as `debug`, or `gpulet_daemon::server=trace`), and the
/// default is `info`.
pub fn start() {
    let told = EnvFilter::try_from_env(FILTER_VARIABLE);
    let is_told = std::env::var_os(FILTER_VARIABLE).is_some();
    let problem = told.as_ref().err().filter(|_| is_told).map(ToString::to_string);
    write_to_log(told.unwrap_or_else(|_| EnvFilter::new("info")));
    if let Some(problem) = problem {
        warn!("{FILTER_VARIABLE}: {problem}; logged is what \"info\" logs");
    }
}

fn write_to_log(filter: EnvFilter) {
    let registry = tracing_subscriber::registry().with(filter);
    // Set by systemd when standard error is connected to the journal.
    if std::env::var_os("JOURNAL_STREAM").is_some()
        && let Ok(journal) = tracing_journald::layer()
    {
        registry.with(journal).init();
        return;
    }
    let ansi = std::io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(ansi);
    registry.with(lines).init();
}
