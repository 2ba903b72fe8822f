//! The additive model that explains measured meetings.

use std::collections::BTreeMap;

use super::additive::reach;
use super::{Meeting, Temper, Tempers};

/// Powers of the share that are tried.
const POWERS: [f64; 11] = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0];

/// Turns of fitting sensitivities and pressures.
const TURNS: usize = 40;

/// How much a model that was seldom seen is held to what all models are like, in meetings.
const HELD: f64 = 0.02;

/// A meeting in numbers.
struct Seen {
    sufferer: usize,
    /// One over the rows of its batch.
    single: f64,
    /// Models, and what their shares make of their pressures.
    neighbours: Vec<(usize, f64)>,
    /// The factor, less 1.
    excess: f64,
}

/// A model under way.
#[derive(Debug, Clone, Copy)]
struct Guess {
    pressure: f64,
    one: f64,
    many: f64,
}

impl Guess {
    fn sensitivity(&self, single: f64) -> f64 {
        self.many + (self.one - self.many) * single
    }
}

impl Tempers {
    /// Fits pressures and sensitivities to meetings, in turns: with the pressures fixed the
    /// sensitivities are a problem of least squares, and the other way about. Of several powers
    /// of the share the one that leaves the least unexplained is taken. A model that was only
    /// ever a neighbour, or never one, is taken to be like the others.
    #[must_use]
    pub fn fit(meetings: &[Meeting]) -> Self {
        let mut names: BTreeMap<&str, usize> = BTreeMap::new();
        for meeting in meetings {
            for (name, ..) in meeting.neighbours.iter().chain([&meeting.sufferer]) {
                names.insert(name, 0);
            }
        }
        names.values_mut().enumerate().for_each(|(number, at)| *at = number);
        let mut best: Option<(f64, f64, Vec<Guess>)> = None;
        for power in POWERS {
            let seen: Vec<Seen> = meetings.iter().map(|it| Seen::new(it, &names, power)).collect();
            let guesses = fitted(&seen, names.len());
            let unexplained = seen.iter().map(|it| it.unexplained(&guesses).powi(2)).sum();
            if best.as_ref().is_none_or(|best| unexplained < best.0) {
                best = Some((unexplained, power, guesses));
            }
        }
        let Some((_, share_power, guesses)) = best.filter(|_| !names.is_empty()) else {
            return Self::default();
        };
        // Only products matter: the highest pressure becomes 1.
        let most = guesses.iter().map(|guess| guess.pressure).fold(1e-9, f64::max);
        let temper = |guess: &Guess| Temper {
            pressure: guess.pressure / most,
            sensitivity_one: (guess.one * most).min(100.0),
            sensitivity_many: (guess.many * most).min(100.0),
        };
        let models = names.into_iter().map(|(name, at)| (name.to_owned(), temper(&guesses[at])));
        Self { share_power, models: models.collect() }
    }
}

impl Seen {
    fn new(meeting: &Meeting, names: &BTreeMap<&str, usize>, power: f64) -> Self {
        let number = |name: &str| names.get(name).copied().unwrap_or(0);
        let neighbours = meeting.neighbours.iter();
        Self {
            sufferer: number(&meeting.sufferer.0),
            single: 1.0 / f64::from(meeting.sufferer.1.max(1)),
            neighbours: neighbours.map(|it| (number(&it.0), reach(it.2, power))).collect(),
            excess: meeting.factor - 1.0,
        }
    }

    fn pressure(&self, guesses: &[Guess]) -> f64 {
        self.neighbours.iter().map(|&(model, reach)| guesses[model].pressure * reach).sum()
    }

    fn unexplained(&self, guesses: &[Guess]) -> f64 {
        let sensitivity = guesses[self.sufferer].sensitivity(self.single);
        self.excess - sensitivity * self.pressure(guesses)
    }
}

fn fitted(seen: &[Seen], models: usize) -> Vec<Guess> {
    let mut guesses = vec![Guess { pressure: 1.0, one: 0.3, many: 0.2 }; models];
    for _ in 0..TURNS {
        fit_sensitivities(seen, &mut guesses);
        fit_pressures(seen, &mut guesses);
    }
    fit_sensitivities(seen, &mut guesses);
    guesses
}

fn mean(guesses: &[Guess], of: impl Fn(&Guess) -> f64) -> f64 {
    guesses.iter().map(of).sum::<f64>() / guesses.len().max(1) as f64
}

/// Two numbers a model: what it suffers is a sum of both, weighted by the batch.
fn fit_sensitivities(seen: &[Seen], guesses: &mut [Guess]) {
    let (one, many) = (mean(guesses, |it| it.one), mean(guesses, |it| it.many));
    // Products of the weights with each other and with what is to be explained.
    let start = [HELD, 0.0, HELD, HELD * one, HELD * many];
    let mut sums = vec![start; guesses.len()];
    for it in seen {
        let pressure = it.pressure(guesses);
        let (of_one, of_many) = (pressure * it.single, pressure * (1.0 - it.single));
        let sum = &mut sums[it.sufferer];
        sum[0] += of_one * of_one;
        sum[1] += of_one * of_many;
        sum[2] += of_many * of_many;
        sum[3] += of_one * it.excess;
        sum[4] += of_many * it.excess;
    }
    for (guess, [aa, ab, bb, ay, by]) in guesses.iter_mut().zip(sums) {
        let determinant = aa * bb - ab * ab;
        if determinant > 1e-12 {
            guess.one = ((ay * bb - by * ab) / determinant).max(0.0);
            guess.many = ((by * aa - ay * ab) / determinant).max(0.0);
        }
    }
}

/// One model after the other, against what the other neighbours leave unexplained.
fn fit_pressures(seen: &[Seen], guesses: &mut [Guess]) {
    let held = HELD / 20.0;
    let usual = mean(guesses, |it| it.pressure);
    for model in 0..guesses.len() {
        let (mut top, mut bottom) = (held * usual, held);
        for it in seen {
            let own = it.neighbours.iter().filter(|neighbour| neighbour.0 == model);
            let reach: f64 = own.map(|neighbour| neighbour.1).sum();
            if reach > 0.0 {
                let effect = guesses[it.sufferer].sensitivity(it.single) * reach;
                let rest = it.unexplained(guesses) + effect * guesses[model].pressure;
                top += effect * rest;
                bottom += effect * effect;
            }
        }
        guesses[model].pressure = (top / bottom).max(0.0);
    }
    let usual = mean(guesses, |it| it.pressure).max(1e-9);
    for guess in guesses {
        guess.pressure /= usual;
        guess.one *= usual;
        guess.many *= usual;
    }
}

#[cfg(test)]
mod tests {
    use super::super::additive::tests::tempers;
    use super::*;

    #[test]
    fn what_was_made_by_the_model_is_found_again() {
        let made = tempers();
        let mut meetings = Vec::new();
        let names = ["calm", "loud"];
        for sufferer in names {
            for (one, two) in names.into_iter().flat_map(|one| names.map(|two| (one, two))) {
                for (batch, share_pct) in [(1, 20), (8, 40), (32, 60)] {
                    let neighbours = vec![(one.into(), 8, share_pct), (two.into(), 8, 20)];
                    let sufferer = (sufferer.into(), batch, 20);
                    let mut meeting = Meeting { sufferer, neighbours, factor: 1.0 };
                    meeting.factor = made.predicted(&meeting).unwrap();
                    meetings.push(meeting);
                }
            }
        }
        let fitted = Tempers::fit(&meetings);
        assert_eq!(fitted.check(), Ok(()));
        assert_eq!(fitted.share_power, 0.8);
        for meeting in &meetings {
            let found = fitted.predicted(meeting).unwrap();
            assert!((found - meeting.factor).abs() < 0.01, "{found} {meeting:?}");
        }
        assert_eq!(Tempers::fit(&[]), Tempers::default());
    }
}
