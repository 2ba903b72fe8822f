//! Our model: pressures add up, over any number of neighbours.
//!
//! `factor = 1 + sensitivity x (sum of the neighbours' pressures) x residual`. A pressure is in
//! parts of what the most demanding neighbour on a whole device would emit, and grows with the
//! share and, up to a half-way batch, with the batch; a sensitivity is the slow-down under a pressure
//! of 1. What completions say beyond that is learnt as a residual for each model.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Interference, Running};

/// Most models that one file describes.
pub const MODELS_MAX: usize = 4096;

/// How far one observation moves a residual.
const LEARNING: f64 = 0.05;

/// Residuals stay within this factor, both ways.
const RESIDUAL_MAX: f64 = 4.0;

/// What a model does to its neighbours, and what they do to it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Temper {
    /// Emitted at share 100 % and large batches; 0 to 1.
    pub pressure: f64,
    /// Slow-down under a pressure of 1; at least 0.
    pub sensitivity: f64,
    /// Batch at which half of the pressure is emitted; at least 0.
    pub half_batch: f64,
}

/// A file with what models do to each other.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tempers {
    /// Of each model by name.
    pub models: BTreeMap<String, Temper>,
}

/// Batches beside each other, as measured. A model with its batch and its share in percent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Meeting {
    /// What was timed.
    pub sufferer: (String, u32, u32),
    /// What ran on the other gpulets all the while.
    pub neighbours: Vec<(String, u32, u32)>,
    /// Its latency over that alone.
    pub factor: f64,
}

impl Temper {
    fn emitted(&self, batch: u32, share_pct: u32) -> f64 {
        let batch = f64::from(batch);
        self.pressure * f64::from(share_pct) / 100.0 * batch / (batch + self.half_batch)
    }

    /// The first rule that is broken.
    fn wrong(&self) -> Option<String> {
        let fields = [
            ("pressure", self.pressure, 1.0),
            ("sensitivity", self.sensitivity, 100.0),
            ("half_batch", self.half_batch, 1e6),
        ];
        let broken = fields.into_iter().find(|&(_, value, most)| !(0.0..=most).contains(&value));
        broken.map(|(name, value, most)| format!("{name} must be 0 to {most}, is {value}"))
    }
}

impl Tempers {
    /// Names the model and rule where a file makes no sense.
    ///
    /// # Errors
    /// The rule that is broken.
    pub fn check(&self) -> Result<(), String> {
        if self.models.len() > MODELS_MAX {
            let count = self.models.len();
            return Err(format!("models: must be at most {MODELS_MAX}, are {count}"));
        }
        for (name, temper) in &self.models {
            if let Some(rule) = temper.wrong() {
                return Err(format!("models.{name}.{rule}"));
            }
        }
        Ok(())
    }

    /// Predicted factor of a meeting; `None` for a model that is not known.
    #[must_use]
    pub fn predicted(&self, meeting: &Meeting) -> Option<f64> {
        let mut pressure = 0.0;
        for (model, batch, share_pct) in &meeting.neighbours {
            pressure += self.models.get(model)?.emitted(*batch, *share_pct);
        }
        Some(1.0 + self.models.get(&meeting.sufferer.0)?.sensitivity * pressure)
    }

    /// Fits pressures and sensitivities to meetings, in turns: with the pressures fixed each
    /// sensitivity is a least-squares ratio, and the other way about.
    #[must_use]
    pub fn fit(meetings: &[Meeting]) -> Self {
        let start = Temper { pressure: 0.5, sensitivity: 0.3, half_batch: 2.0 };
        let mut fitted = Self::default();
        for meeting in meetings {
            let names = meeting.neighbours.iter().chain([&meeting.sufferer]);
            fitted.models.extend(names.map(|(name, ..)| (name.clone(), start)));
        }
        for _ in 0..60 {
            fitted.fit_sensitivities(meetings);
            fitted.fit_pressures(meetings);
        }
        fitted.normalise();
        fitted.fit_sensitivities(meetings);
        fitted
    }

    fn fit_sensitivities(&mut self, meetings: &[Meeting]) {
        let mut sums: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for meeting in meetings {
            let emitted = |it: &(String, u32, u32)| {
                self.models.get(&it.0).map_or(0.0, |temper| temper.emitted(it.1, it.2))
            };
            let pressure: f64 = meeting.neighbours.iter().map(emitted).sum();
            let sum = sums.entry(&meeting.sufferer.0).or_default();
            sum.0 += pressure * (meeting.factor - 1.0);
            sum.1 += pressure * pressure;
        }
        for (name, (top, bottom)) in sums {
            if let Some(temper) = self.models.get_mut(name).filter(|_| bottom > 1e-12) {
                temper.sensitivity = (top / bottom).clamp(0.0, 100.0);
            }
        }
    }

    /// One model after the other, against what the other neighbours leave unexplained.
    fn fit_pressures(&mut self, meetings: &[Meeting]) {
        let names: Vec<String> = self.models.keys().cloned().collect();
        for name in names {
            let (mut top, mut bottom) = (0.0, 0.0);
            for meeting in meetings.iter().filter(|it| it.neighbours.iter().any(|n| n.0 == name)) {
                let Some(sufferer) = self.models.get(&meeting.sufferer.0) else { continue };
                let (mut unit, mut rest) = (0.0, 0.0);
                for (neighbour, batch, share_pct) in &meeting.neighbours {
                    let Some(temper) = self.models.get(neighbour) else { continue };
                    if *neighbour == name {
                        unit += Temper { pressure: 1.0, ..*temper }.emitted(*batch, *share_pct);
                    } else {
                        rest += temper.emitted(*batch, *share_pct);
                    }
                }
                let effect = sufferer.sensitivity * unit;
                top += effect * (meeting.factor - 1.0 - sufferer.sensitivity * rest);
                bottom += effect * effect;
            }
            if let Some(temper) = self.models.get_mut(&name).filter(|_| bottom > 1e-12) {
                temper.pressure = (top / bottom).max(0.0);
            }
        }
    }

    /// Only products matter: the highest pressure becomes 1.
    fn normalise(&mut self) {
        let most = self.models.values().map(|temper| temper.pressure).fold(0.0, f64::max);
        if most > 0.0 {
            self.models.values_mut().for_each(|temper| temper.pressure /= most);
        }
    }
}

/// The model for a problem: tempers in the order of its models, and what was learnt since.
#[derive(Debug, Clone)]
pub struct Additive {
    tempers: Vec<Temper>,
    residuals: Vec<f64>,
}

impl Additive {
    /// Nothing learnt yet.
    #[must_use]
    pub fn new(tempers: Vec<Temper>) -> Self {
        let residuals = vec![1.0; tempers.len()];
        Self { tempers, residuals }
    }

    /// Learns from a batch that took `factor` times as long as alone under `pressure`.
    pub fn observe(&mut self, sufferer: Running, pressure: f64, factor: f64) {
        let expected = self.tempers[sufferer.model].sensitivity * pressure;
        if expected > 1e-3 && factor.is_finite() {
            let ratio = ((factor - 1.0).max(0.0) / expected).min(RESIDUAL_MAX);
            let residual = &mut self.residuals[sufferer.model];
            *residual += LEARNING * (ratio - *residual);
            *residual = residual.clamp(1.0 / RESIDUAL_MAX, RESIDUAL_MAX);
        }
    }
}

impl Interference for Additive {
    fn pressure(&self, emitter: Running) -> f64 {
        self.tempers[emitter.model].emitted(emitter.batch, emitter.share_pct)
    }

    fn join(&self, pressure: f64, other: f64) -> f64 {
        pressure + other
    }

    fn factor(&self, sufferer: Running, pressure: f64) -> f64 {
        let sensitivity = self.tempers[sufferer.model].sensitivity;
        1.0 + sensitivity * pressure * self.residuals[sufferer.model]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tempers() -> Tempers {
        let temper =
            |pressure: f64, sensitivity: f64| Temper { pressure, sensitivity, half_batch: 2.0 };
        let models = [("calm", temper(0.2, 0.5)), ("loud", temper(1.0, 0.1))];
        Tempers { models: models.into_iter().map(|(name, it)| (name.into(), it)).collect() }
    }

    fn meetings(of: &Tempers) -> Vec<Meeting> {
        let mut meetings = Vec::new();
        let names = ["calm", "loud"];
        for sufferer in names {
            for one in names {
                for two in names {
                    for batch in [1, 8, 32] {
                        let neighbours = vec![(one.into(), batch, 40), (two.into(), 8, 20)];
                        let sufferer = (sufferer.into(), 8, 40);
                        let mut meeting = Meeting { sufferer, neighbours, factor: 1.0 };
                        meeting.factor = of.predicted(&meeting).unwrap();
                        meetings.push(meeting);
                    }
                }
            }
        }
        meetings
    }

    #[test]
    fn what_was_made_by_the_model_is_found_again() {
        let meetings = meetings(&tempers());
        let fitted = Tempers::fit(&meetings);
        assert_eq!(fitted.check(), Ok(()));
        for meeting in &meetings {
            let found = fitted.predicted(meeting).unwrap();
            assert!((found - meeting.factor).abs() < 0.01, "{found} {meeting:?}");
        }
    }

    #[test]
    fn neighbours_add_up_and_completions_teach() {
        let all: Vec<Temper> = tempers().models.values().copied().collect();
        let mut model = Additive::new(all);
        let calm = Running { model: 0, batch: 8, share_pct: 40 };
        let loud = Running { model: 1, batch: 8, share_pct: 40 };
        let pressure = model.pressure(loud);
        let both = model.join(pressure, pressure);
        assert!(model.factor(calm, both) > model.factor(calm, pressure));
        let before = model.factor(calm, both);
        (0..200).for_each(|_| model.observe(calm, both, 1.0 + 2.0 * (before - 1.0)));
        let after = model.factor(calm, both) - 1.0;
        assert!((after / (before - 1.0) - 2.0).abs() < 0.01, "{after}");
    }

    #[test]
    fn nonsense_is_told() {
        let mut wrong = tempers();
        wrong
            .models
            .insert("odd".into(), Temper { pressure: 2.0, sensitivity: 0.0, half_batch: 0.0 });
        assert_eq!(wrong.check(), Err("models.odd.pressure must be 0 to 1, is 2".into()));
    }
}
