//! Latencies: recorded one by one in a round, summed up over rounds.
//!
//! Contenders take turns, round by round, so that whatever disturbs the machine disturbs all of
//! them. A figure is the median of the rounds' figures; a ratio is taken inside each round, between
//! neighbours in time, and then its median.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

/// Longest latency that is told apart, in ns.
const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// How long a round measures, after how much warming up.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// Not measured.
    pub warm: Duration,
    /// Measured.
    pub measured: Duration,
}

impl Window {
    /// A window that measures for `measured`, and warms up for a quarter of that.
    pub fn of(measured: Duration) -> Window {
        Window { warm: measured / 4, measured }
    }
}

/// Collects the latencies of one round. Allocates only when it is made.
#[derive(Debug)]
pub struct Recorder {
    histogram: Histogram<u64>,
}

impl Recorder {
    /// Nothing recorded yet.
    pub fn new() -> Recorder {
        // The bounds are constants that the library accepts: three digits of 1 ns to 600 s.
        let histogram = Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3);
        Recorder { histogram: histogram.unwrap_or_else(|error| panic!("bounds: {error}")) }
    }

    /// Adds `count` latencies of the same length.
    #[inline]
    pub fn add(&mut self, latency: Duration, count: u64) {
        let latency_ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        self.histogram.saturating_record_n(latency_ns, count);
    }

    /// The round's figures, `elapsed` being the time in which everything recorded was done.
    pub fn finish(&self, elapsed: Duration) -> Round {
        let at = |quantile| self.histogram.value_at_quantile(quantile);
        let seconds = elapsed.as_secs_f64();
        let count = self.histogram.len();
        Round {
            count,
            mean_ns: self.histogram.mean(),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p999_ns: at(0.999),
            max_ns: self.histogram.max(),
            per_second: if seconds > 0.0 { count as f64 / seconds } else { 0.0 },
        }
    }
}

/// What one round of one contender gave.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Round {
    /// Latencies recorded.
    pub count: u64,
    /// Mean latency.
    pub mean_ns: f64,
    /// Median latency.
    pub p50_ns: u64,
    /// Latency that one in ten exceeds.
    pub p90_ns: u64,
    /// Latency that one in a hundred exceeds.
    pub p99_ns: u64,
    /// Latency that one in a thousand exceeds.
    pub p999_ns: u64,
    /// Longest latency.
    pub max_ns: u64,
    /// Round trips a second.
    pub per_second: f64,
}

/// All rounds of one contender, and their medians.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Who.
    pub name: String,
    /// Each figure's median over the rounds, but the longest `max_ns` and the sum of `count`.
    pub median: Round,
    /// In the order they were run.
    pub rounds: Vec<Round>,
}

impl Summary {
    /// Sums up; `None` without rounds.
    pub fn new(name: String, rounds: Vec<Round>) -> Option<Summary> {
        if rounds.is_empty() {
            return None;
        }
        let whole = |of: fn(&Round) -> u64| median(rounds.iter().map(|round| of(round) as f64));
        let real = |of: fn(&Round) -> f64| median(rounds.iter().map(of));
        let median = Round {
            count: rounds.iter().map(|round| round.count).sum(),
            mean_ns: real(|round| round.mean_ns),
            p50_ns: whole(|round| round.p50_ns).round() as u64,
            p90_ns: whole(|round| round.p90_ns).round() as u64,
            p99_ns: whole(|round| round.p99_ns).round() as u64,
            p999_ns: whole(|round| round.p999_ns).round() as u64,
            max_ns: rounds.iter().map(|round| round.max_ns).max().unwrap_or(0),
            per_second: real(|round| round.per_second),
        };
        Some(Summary { name, median, rounds })
    }
}

/// One contender's p50 over another's, round by round.
#[derive(Clone, Debug, Serialize)]
pub struct Ratio {
    /// Such as "busy round trip / iceoryx2".
    pub name: String,
    /// The median of `rounds`.
    pub median: f64,
    /// In the order they were run.
    pub rounds: Vec<f64>,
}

impl Ratio {
    /// `over`'s p50 divided by `under`'s, in each round that both ran; `None` if there is none.
    pub fn of_p50(name: &str, over: &Summary, under: &Summary) -> Option<Ratio> {
        Ratio::of(name, over, under, |round| round.p50_ns)
    }

    /// The same of the 99th percentiles.
    pub fn of_p99(name: &str, over: &Summary, under: &Summary) -> Option<Ratio> {
        Ratio::of(name, over, under, |round| round.p99_ns)
    }

    fn of(
        name: &str,
        over: &Summary,
        under: &Summary,
        figure: impl Fn(&Round) -> u64,
    ) -> Option<Ratio> {
        let pairs = over.rounds.iter().zip(&under.rounds);
        let rounds: Vec<f64> =
            pairs.map(|(over, under)| figure(over) as f64 / figure(under).max(1) as f64).collect();
        if rounds.is_empty() {
            return None;
        }
        Some(Ratio { name: name.to_owned(), median: median(rounds.iter().copied()), rounds })
    }

    /// Lowest and highest round.
    pub fn range(&self) -> (f64, f64) {
        let bounds = (f64::INFINITY, f64::NEG_INFINITY);
        self.rounds.iter().fold(bounds, |(low, high), ratio| (low.min(*ratio), high.max(*ratio)))
    }
}

/// The median; of an even count the mean of the middle two, of nothing zero.
pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        count if count % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

/// Calls `round_trip` for the whole window, one at a time, and records the measured part.
///
/// # Errors
/// The first of `round_trip`.
pub fn measure<E>(
    window: Window,
    mut round_trip: impl FnMut() -> Result<(), E>,
) -> Result<Round, E> {
    let mut recorder = Recorder::new();
    let warm_end = Instant::now() + window.warm;
    loop {
        round_trip()?;
        if Instant::now() >= warm_end {
            break;
        }
    }
    let begin = Instant::now();
    let mut now;
    loop {
        let start = Instant::now();
        round_trip()?;
        now = Instant::now();
        recorder.add(now - start, 1);
        if now - begin >= window.measured {
            break;
        }
    }
    Ok(recorder.finish(now - begin))
}

/// What reading the clock twice costs here: every latency of [`measure`] holds as much.
pub fn clock_cost_ns() -> u64 {
    let mut recorder = Recorder::new();
    for _ in 0..10_000 {
        let start = Instant::now();
        recorder.add(start.elapsed(), 1);
    }
    recorder.finish(Duration::ZERO).p50_ns
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(p50_ns: u64) -> Round {
        let mut recorder = Recorder::new();
        recorder.add(Duration::from_nanos(p50_ns), 4);
        recorder.finish(Duration::from_secs(2))
    }

    #[test]
    fn a_round_tells_percentiles_and_rate() {
        let mut recorder = Recorder::new();
        for micros in 1..=1000 {
            recorder.add(Duration::from_micros(micros), 1);
        }
        let round = recorder.finish(Duration::from_secs(2));
        let close = |ns: u64, micros: u64| ns.abs_diff(micros * 1000) <= micros;
        assert!(close(round.p50_ns, 500) && close(round.p90_ns, 900), "{round:?}");
        assert!(close(round.p99_ns, 990) && close(round.max_ns, 1000), "{round:?}");
        assert_eq!((round.count, round.per_second), (1000, 500.0));
    }

    #[test]
    fn ratios_are_taken_inside_rounds() {
        // The machine slowed down by ten in the last round: both did, the ratio did not.
        let over = Summary::new("over".into(), vec![round(200), round(400), round(2000)]).unwrap();
        let under =
            Summary::new("under".into(), vec![round(100), round(100), round(1000)]).unwrap();
        let ratio = Ratio::of_p50("over / under", &over, &under).unwrap();
        assert_eq!(ratio.rounds, [2.0, 4.0, 2.0]);
        assert_eq!((ratio.median, ratio.range()), (2.0, (2.0, 4.0)));
        assert_eq!((over.median.p50_ns, over.median.count), (400, 12));
    }

    #[test]
    fn medians_of_even_and_odd_counts() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 2.5);
        assert_eq!(median(std::iter::empty()), 0.0);
    }

    #[test]
    fn every_measured_call_is_recorded() {
        let mut calls = 0u64;
        let window = Window { warm: Duration::ZERO, measured: Duration::from_millis(2) };
        let round = measure(window, || {
            calls += 1;
            Ok::<(), Error>(())
        });
        // One call warms up.
        assert_eq!(round.unwrap().count, calls - 1);
    }

    type Error = std::convert::Infallible;
}
