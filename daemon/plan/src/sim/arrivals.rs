//! When requests arrive.

use fastrand::Rng;

/// A stream of requests over virtual time. Rates are requests per second.
#[derive(Debug, Clone, PartialEq)]
pub enum Arrivals {
    /// Every `1 / rate`.
    Uniform {
        /// Requests per second.
        rate: f64,
    },
    /// Independent of each other.
    Poisson {
        /// Requests per second on average.
        rate: f64,
    },
    /// Gaps of a Gamma distribution: bursty above a coefficient of variation of 1.
    Gamma {
        /// Requests per second on average.
        rate: f64,
        /// Standard deviation of the gaps over their mean.
        cv: f64,
    },
    /// Poisson at one of two rates, each for a while that is random itself.
    TwoRates {
        /// Requests per second in each state.
        rates: [f64; 2],
        /// Mean stay in each state, seconds.
        stays_s: [f64; 2],
    },
    /// Poisson with a rate that swings around its mean.
    Diurnal {
        /// Requests per second on average.
        rate: f64,
        /// How far it swings: 0 not at all, 1 down to nothing.
        swing: f64,
        /// Length of a swing, seconds.
        period_s: f64,
    },
    /// Poisson with a rate that changes once.
    Step {
        /// Requests per second before.
        before: f64,
        /// Requests per second after.
        after: f64,
        /// When, seconds.
        at_s: f64,
    },
    /// Poisson with a rate given for each second; starts again at its end.
    Trace {
        /// Requests per second, a second each.
        rates: Vec<f64>,
    },
}

/// A stream while it runs.
#[derive(Debug, Clone)]
pub struct Stream {
    arrivals: Arrivals,
    rng: Rng,
    now_s: f64,
    /// Of [`Arrivals::TwoRates`]: which, and until when.
    state: (usize, f64),
}

impl Arrivals {
    /// Rate at `now_s` of the kinds that are Poisson with a changing rate, and the most it gets.
    fn varying(&self, now_s: f64) -> Option<(f64, f64)> {
        match self {
            Arrivals::Diurnal { rate, swing, period_s } => {
                let turn = now_s / period_s * std::f64::consts::TAU;
                Some((rate * (1.0 + swing * turn.sin()), rate * (1.0 + swing)))
            }
            Arrivals::Step { before, after, at_s } => {
                Some((if now_s < *at_s { *before } else { *after }, before.max(*after)))
            }
            Arrivals::Trace { rates } => {
                let at = now_s as usize % rates.len().max(1);
                let most = rates.iter().copied().fold(0.0, f64::max);
                Some((rates.get(at).copied().unwrap_or(0.0), most))
            }
            _ => None,
        }
    }

    /// Requests per second on average, over a whole period.
    #[must_use]
    pub fn mean_rate(&self) -> f64 {
        match self {
            Arrivals::Uniform { rate }
            | Arrivals::Poisson { rate }
            | Arrivals::Gamma { rate, .. }
            | Arrivals::Diurnal { rate, .. } => *rate,
            Arrivals::TwoRates { rates, stays_s } => {
                let requests = rates[0] * stays_s[0] + rates[1] * stays_s[1];
                requests / (stays_s[0] + stays_s[1])
            }
            Arrivals::Step { before, after, .. } => before.max(*after),
            Arrivals::Trace { rates } => rates.iter().sum::<f64>() / rates.len().max(1) as f64,
        }
    }

    /// The same with `factor` times the requests.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let mut scaled = self.clone();
        match &mut scaled {
            Arrivals::Uniform { rate }
            | Arrivals::Poisson { rate }
            | Arrivals::Gamma { rate, .. }
            | Arrivals::Diurnal { rate, .. } => *rate *= factor,
            Arrivals::TwoRates { rates, .. } => rates.iter_mut().for_each(|rate| *rate *= factor),
            Arrivals::Step { before, after, .. } => {
                *before *= factor;
                *after *= factor;
            }
            Arrivals::Trace { rates } => rates.iter_mut().for_each(|rate| *rate *= factor),
        }
        scaled
    }

    /// The stream that `seed` makes of it.
    #[must_use]
    pub fn stream(&self, seed: u64) -> Stream {
        let mut rng = Rng::with_seed(seed);
        let state = match self {
            Arrivals::TwoRates { stays_s, .. } => (0, gap(&mut rng, 1.0 / stays_s[0])),
            _ => (0, f64::INFINITY),
        };
        Stream { arrivals: self.clone(), rng, now_s: 0.0, state }
    }
}

impl Stream {
    /// Seconds from the beginning at which the next request arrives; infinite when none does.
    pub fn next_s(&mut self) -> f64 {
        if self.arrivals.mean_rate() <= 0.0 {
            return f64::INFINITY;
        }
        self.now_s = match &self.arrivals {
            Arrivals::Uniform { rate } => self.now_s + 1.0 / rate,
            Arrivals::Poisson { rate } => self.now_s + gap(&mut self.rng, *rate),
            Arrivals::Gamma { rate, cv } => {
                let shape = 1.0 / (cv * cv).max(1e-9);
                self.now_s + gamma(&mut self.rng, shape) / (shape * rate)
            }
            Arrivals::TwoRates { rates, stays_s } => {
                let (rates, stays_s) = (*rates, *stays_s);
                return self.next_of_two(rates, stays_s);
            }
            _ => return self.next_varying(),
        };
        self.now_s
    }

    fn next_of_two(&mut self, rates: [f64; 2], stays_s: [f64; 2]) -> f64 {
        loop {
            let (at, until_s) = self.state;
            let next_s = self.now_s + gap(&mut self.rng, rates[at]);
            if next_s <= until_s {
                self.now_s = next_s;
                return next_s;
            }
            self.now_s = until_s;
            self.state = (1 - at, until_s + gap(&mut self.rng, 1.0 / stays_s[1 - at]));
        }
    }

    /// Candidates at the highest rate, kept as often as the rate at their time says.
    fn next_varying(&mut self) -> f64 {
        loop {
            let most = self.arrivals.varying(self.now_s).map_or(0.0, |it| it.1);
            self.now_s += gap(&mut self.rng, most);
            let (rate, _) = self.arrivals.varying(self.now_s).unwrap_or((0.0, 0.0));
            if self.rng.f64() * most < rate {
                return self.now_s;
            }
        }
    }
}

/// An exponential gap, seconds; infinite at rate 0.
pub(super) fn gap(rng: &mut Rng, rate: f64) -> f64 {
    if rate > 0.0 { -(1.0 - rng.f64()).ln() / rate } else { f64::INFINITY }
}

/// A standard normal value.
pub(super) fn normal(rng: &mut Rng) -> f64 {
    let radius = (-2.0 * (1.0 - rng.f64()).ln()).sqrt();
    radius * (std::f64::consts::TAU * rng.f64()).cos()
}

/// A Gamma value of mean `shape` and scale 1, by squeezing a cubed normal one.
fn gamma(rng: &mut Rng, shape: f64) -> f64 {
    if shape < 1.0 {
        let boost = (1.0 - rng.f64()).powf(1.0 / shape);
        return gamma(rng, shape + 1.0) * boost;
    }
    let d = shape - 1.0 / 3.0;
    let c = 1.0 / (9.0 * d).sqrt();
    loop {
        let x = normal(rng);
        let v = (1.0 + c * x).powi(3);
        if v > 0.0 && (1.0 - rng.f64()).ln() < 0.5 * x * x + d * (1.0 - v + v.ln()) {
            return d * v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean rate and coefficient of variation of the gaps.
    fn measured(arrivals: &Arrivals, seconds: f64) -> (f64, f64) {
        let mut stream = arrivals.stream(7);
        let mut last = 0.0;
        let mut gaps: Vec<f64> = Vec::new();
        loop {
            let next = stream.next_s();
            assert!(next >= last, "time goes on");
            if next > seconds {
                break;
            }
            gaps.push(next - last);
            last = next;
        }
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64;
        (gaps.len() as f64 / seconds, variance.sqrt() / mean)
    }

    #[test]
    fn rates_and_variations_are_what_was_asked() {
        let rate = 500.0;
        let cases = [
            (Arrivals::Uniform { rate }, Some(0.0)),
            (Arrivals::Poisson { rate }, Some(1.0)),
            (Arrivals::Gamma { rate, cv: 3.0 }, Some(3.0)),
            (Arrivals::Gamma { rate, cv: 0.5 }, Some(0.5)),
            (Arrivals::TwoRates { rates: [200.0, 800.0], stays_s: [1.0, 1.0] }, None),
            (Arrivals::Diurnal { rate, swing: 0.8, period_s: 20.0 }, None),
            (Arrivals::Step { before: rate, after: rate, at_s: 9.0 }, Some(1.0)),
            (Arrivals::Trace { rates: vec![100.0, 900.0] }, None),
        ];
        for (arrivals, cv) in cases {
            let (rate, measured_cv) = measured(&arrivals, 400.0);
            let mean = arrivals.mean_rate();
            assert!((rate / mean - 1.0).abs() < 0.06, "{arrivals:?}: {rate}");
            if let Some(cv) = cv {
                assert!((measured_cv - cv).abs() < 0.1 * cv + 0.01, "{arrivals:?}: {measured_cv}");
            }
        }
    }

    #[test]
    fn nothing_comes_of_nothing_and_seeds_repeat() {
        assert_eq!(Arrivals::Trace { rates: vec![] }.stream(1).next_s(), f64::INFINITY);
        assert_eq!(Arrivals::Poisson { rate: 0.0 }.stream(1).next_s(), f64::INFINITY);
        let arrivals = Arrivals::Gamma { rate: 5.0, cv: 2.0 };
        let (mut one, mut two) = (arrivals.stream(3), arrivals.stream(3));
        assert!((0..100).all(|_| one.next_s() == two.next_s()));
        assert_eq!(arrivals.scaled(2.0).mean_rate(), 10.0);
    }
}
