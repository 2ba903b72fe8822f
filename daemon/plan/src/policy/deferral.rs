//! Deferred batching: an executor that is free waits for another row where that pays.
//!
//! **What pays.** A row that joins a batch of `b` rows saves the executor `s = L(b) + L(1) - L(b + 1)`.
//! Rows that come each `g` make those before them wait: in a batch of `b` each waits `g * (b - 1) / 2`
//! on average, and has an executor for `s / b` of what it would take alone. The sum of both is less
//! with `b + 1` rows than with `b` while `g * b * (b + 1) / 2 < s`. So waiting ends where it would
//! delay requests by more than it saves, long before the latest start; and a model whose executor
//! has much to do hardly waits, as its batches grow by themselves.
//!
//! **How long.** `g` is the mean gap between requests of late, or the time since the last one if that
//! is longer. So nobody waits longer for a row than pays, whatever the estimate was; and never so long
//! that the batch, with that row, would leave its first request less than as much time again.

use super::{BatchLimits, latest_start_ns};
use crate::profile::LatencyProfile;
use crate::queue::DeadlineQueue;

/// A gap counts for one part in so many of the mean.
const GAPS: u64 = 8;

/// How fast requests of a model come, of late.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pace {
    last_ns: Option<u64>,
    gap_ns: Option<u64>,
}

impl Pace {
    /// Takes note of a request that arrives now.
    pub fn note(&mut self, now_ns: u64) {
        let gap_ns = self.last_ns.map(|last_ns| now_ns.saturating_sub(last_ns));
        self.gap_ns = match (self.gap_ns, gap_ns) {
            (Some(mean_ns), Some(gap_ns)) => Some(mean_ns - mean_ns / GAPS + gap_ns / GAPS),
            (mean_ns, gap_ns) => mean_ns.or(gap_ns),
        };
        self.last_ns = Some(now_ns);
    }
}

/// Until when a batch of `rows` from the front of a queue, which could start at `start_ns`, should wait
/// for another row; `None` if it should start. For an executor without requests of other models.
#[must_use]
pub fn defer<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    pace: &Pace,
    start_ns: u64,
    rows: u32,
    profile: &LatencyProfile,
) -> Option<u64> {
    let (deadline_ns, _) = queue.demand(0)?;
    // The next row is there already.
    if u64::from(rows) < queue.rows() || rows >= limits.max_batch {
        return None;
    }
    let longer_ns = profile.latency_ns(rows + 1);
    let apart_ns = profile.latency_ns(rows).saturating_add(profile.latency_ns(1));
    let waits = u64::from(rows) * u64::from(rows + 1) / 2;
    let pays_ns = apart_ns.saturating_sub(longer_ns) / waits.max(1);
    if pace.gap_ns? >= pays_ns {
        return None;
    }
    let margin_ns = limits.guard_ns.saturating_add(longer_ns);
    let latest_ns = latest_start_ns(deadline_ns, rows + 1, margin_ns, profile);
    let until_ns = pace.last_ns?.saturating_add(pays_ns).min(latest_ns);
    (until_ns > start_ns).then_some(until_ns)
}
