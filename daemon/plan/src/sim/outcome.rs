//! What came of a simulation.

use serde::{Deserialize, Serialize};

/// Buckets for each doubling of a latency: 2 % wide.
const STEPS: f64 = 35.0;

/// Latencies, in buckets of 2 %.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Latencies {
    counts: Vec<u64>,
    count: u64,
}

impl Latencies {
    /// Adds one.
    pub fn add(&mut self, latency_ns: u64) {
        let bucket = ((latency_ns.max(1) as f64).log2() * STEPS) as usize;
        if bucket >= self.counts.len() {
            self.counts.resize(bucket + 1, 0);
        }
        self.counts[bucket] += 1;
        self.count += 1;
    }

    /// Milliseconds that `part` of all stay within; 0 without any.
    #[must_use]
    pub fn quantile_ms(&self, part: f64) -> f64 {
        let wanted = (part * self.count as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return ((bucket + 1) as f64 / STEPS).exp2() / 1e6;
            }
        }
        0.0
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Milliseconds and the part of all within them, for a curve.
    #[must_use]
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let mut seen = 0;
        let mut points = Vec::new();
        for (bucket, count) in self.counts.iter().enumerate().filter(|it| *it.1 > 0) {
            seen += count;
            let ms = ((bucket + 1) as f64 / STEPS).exp2() / 1e6;
            points.push((ms, seen as f64 / self.count as f64));
        }
        points
    }
}

/// What became of the requests of a model or an app.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tally {
    /// Name of the model or app.
    pub name: String,
    /// Requests that arrived.
    pub arrived: u64,
    /// Answered within their SLO.
    pub in_time: u64,
    /// Answered too late.
    pub late: u64,
    /// Turned away on arrival: no time left.
    pub refused: u64,
    /// Given up in the queue.
    pub expired: u64,
    /// Turned away: the queue was full.
    pub overflowed: u64,
    /// Latency of what was answered, ms.
    pub p50_ms: f64,
    /// The same, 99th percentile.
    pub p99_ms: f64,
    /// The same, 99.9th percentile.
    pub p999_ms: f64,
    /// Mean rows of a batch; of an app 0.
    pub batch: f64,
    #[serde(skip)]
    pub(super) latencies: Latencies,
    #[serde(skip)]
    pub(super) batches: u64,
}

impl Tally {
    /// Part of the requests answered within their SLO; 1 when none came.
    #[must_use]
    pub fn attainment(&self) -> f64 {
        if self.arrived == 0 { 1.0 } else { self.in_time as f64 / self.arrived as f64 }
    }

    /// Latencies of what was answered.
    #[must_use]
    pub fn latencies(&self) -> &Latencies {
        &self.latencies
    }

    pub(super) fn finish(&mut self) {
        self.p50_ms = self.latencies.quantile_ms(0.5);
        self.p99_ms = self.latencies.quantile_ms(0.99);
        self.p999_ms = self.latencies.quantile_ms(0.999);
        if self.batches > 0 {
            self.batch = (self.in_time + self.late) as f64 / self.batches as f64;
        }
    }
}

/// A second of virtual time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Second {
    /// Requests that arrived.
    pub arrived: u64,
    /// Requests answered within their SLO.
    pub in_time: u64,
    /// Busy shares, in devices: 1.5 is one and a half devices at work all the time.
    pub busy: f64,
    /// Devices in use by the plan.
    pub devices: u32,
}

/// What came of a simulation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// Seconds of virtual time.
    pub seconds: f64,
    /// By model.
    pub models: Vec<Tally>,
    /// By app.
    pub apps: Vec<Tally>,
    /// Second by second.
    pub time_line: Vec<Second>,
    /// Plans that took over while it ran.
    pub plans: u64,
}

impl Outcome {
    /// What requests count by: apps where there are any, else models.
    #[must_use]
    pub fn tallies(&self) -> &[Tally] {
        if self.apps.is_empty() { &self.models } else { &self.apps }
    }

    /// Answers within their SLO per second.
    #[must_use]
    pub fn goodput(&self) -> f64 {
        self.tallies().iter().map(|tally| tally.in_time).sum::<u64>() as f64 / self.seconds
    }

    /// Part of all requests answered within their SLO.
    #[must_use]
    pub fn attainment(&self) -> f64 {
        let arrived: u64 = self.tallies().iter().map(|tally| tally.arrived).sum();
        let in_time: u64 = self.tallies().iter().map(|tally| tally.in_time).sum();
        if arrived == 0 { 1.0 } else { in_time as f64 / arrived as f64 }
    }

    /// Attainment of whoever fares worst.
    #[must_use]
    pub fn least_attainment(&self) -> f64 {
        self.tallies().iter().map(Tally::attainment).fold(1.0, f64::min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_two_percent() {
        let mut latencies = Latencies::default();
        (1..=1000).for_each(|ms| latencies.add(ms * 1_000_000));
        for (part, ms) in [(0.5, 500.0), (0.99, 990.0), (1.0, 1000.0)] {
            let found = latencies.quantile_ms(part);
            assert!((1.0..1.03).contains(&(found / ms)), "{part}: {found}");
        }
        assert_eq!(latencies.curve().last().map(|it| it.1), Some(1.0));
        assert_eq!(Latencies::default().quantile_ms(0.5), 0.0);
    }
}
