//! What is asked of a plan: a rate and a deadline for each model.

/// Highest rate of one model, requests per second. Above it a file has its units wrong.
pub const RATE_MAX: f64 = 1e7;
/// Longest SLO, milliseconds: one hour.
pub const SLO_MAX_MS: f64 = 3_600_000.0;

/// A model, how often it is asked, and how fast it must answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    /// Name of the model.
    pub model: String,
    /// Requests per second, on average; at least 0.
    pub rate: f64,
    /// Time from a request's arrival to its answer, milliseconds.
    pub slo_ms: f64,
}

/// What a plan adds to a rate, so that arrivals at random do not overrun it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HeadRoom {
    /// Nothing: the rate is what it is.
    None,
    /// The 99th percentile of Poisson arrivals in a second, as the published tool counts it.
    #[default]
    PoissonP99,
}

impl HeadRoom {
    /// The rate to plan for.
    #[must_use]
    pub fn inflate(self, rate: f64) -> f64 {
        match self {
            HeadRoom::None => rate,
            HeadRoom::PoissonP99 => poisson_p99(rate),
        }
    }
}

/// One more than the smallest count that Poisson arrivals of mean `rate` stay within in 99 % of
/// all seconds, where a second without any does not count; above 550 a tenth more. The
/// published rule. A fraction of a request per second counts as a whole one.
fn poisson_p99(rate: f64) -> f64 {
    let mean = rate.ceil();
    if mean <= 0.0 {
        return 0.0;
    }
    if mean > 550.0 {
        return (1.1 * mean).floor();
    }
    let zero = (-mean).exp();
    // Below a mean of 4.6 the other seconds are less than 99 % of all: there, zero counts.
    let (mut count, mut sum) = (1.0, if zero < 0.01 { 0.0 } else { zero });
    let mut mass = mean * zero;
    while sum < 0.99 {
        sum += mass;
        count += 1.0;
        mass *= mean / count;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_percentiles() {
        let known = [
            (0.0, 0.0),
            (5.0, 13.0),
            (10.0, 19.0),
            (20.0, 32.0),
            (50.0, 68.0),
            (100.0, 125.0),
            (200.0, 235.0),
            (300.0, 342.0),
            (500.0, 554.0),
            (1000.0, 1100.0),
        ];
        for (rate, planned) in known {
            assert_eq!(HeadRoom::PoissonP99.inflate(rate), planned, "of {rate}");
        }
    }

    #[test]
    fn more_is_never_less_and_it_always_ends() {
        let mut last = 0.0_f64;
        for tenth in 0..12_000 {
            let rate = f64::from(tenth) / 10.0;
            let planned = HeadRoom::PoissonP99.inflate(rate);
            assert!(planned >= last.max(rate), "{rate}: {planned} after {last}");
            last = planned;
        }
        assert_eq!(HeadRoom::None.inflate(7.5), 7.5);
    }
}
