//! One run of a process that measures.

use std::time::Duration;

use super::super::CtlError;
use super::super::gauge::{Answer, Gauge, Order};
use crate::cuda::measure::laps::Until;
use crate::cuda::measure::{Part, Spell};

/// Batches before those that count.
const WARM: usize = 3;
/// A run lasts at most so many times what it should.
const OVERTIME: u64 = 20;
/// For the answer, beyond that: a run that hangs is not to use up the time there is.
const PATIENCE: Duration = Duration::from_secs(20);
/// But a slow model gets this long.
const NS_MAX_LEAST: u64 = 10_000_000_000;

/// Runs parts, all at once, for `ns` and until each has run `laps_min` batches.
///
/// # Errors
/// [`CtlError::Measure`]: what went wrong; the process is not to be trusted any more.
pub(super) fn run(
    gauge: &mut dyn Gauge,
    parts: &[Part],
    ns: u64,
    laps_min: usize,
) -> Result<Vec<Spell>, CtlError> {
    let ns_max = ns.saturating_mul(OVERTIME).max(NS_MAX_LEAST);
    let until = Until { ns, laps_min, ns_max, warm: WARM };
    let order = Order::Run { parts: parts.to_vec(), until };
    match gauge.ask(&order, PATIENCE + Duration::from_nanos(ns_max))? {
        Answer::Ran(spells) if spells.len() == parts.len() => Ok(spells),
        other => Err(other.unexpected()),
    }
}
