//! Our model: pressures add up, over any number of neighbours.
//!
//! `factor = 1 + sensitivity x (sum of the neighbours' pressures) x residual`. A pressure is in
//! parts of what the most demanding neighbour on a whole device would emit. It grows with a power
//! of the share, and hardly with the batch: a model that is kept busy reads and writes as fast as
//! its multiprocessors let it, whatever it is busy with. A sensitivity is the slow-down under a
//! pressure of 1, and falls with the batch: what is waited for between kernels is waited for once
//! a batch. What completions say beyond that is learnt as a residual for each model.

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
    /// Emitted at share 100 %; 0 to 1.
    pub pressure: f64,
    /// Slow-down of a single row under a pressure of 1; at least 0.
    pub sensitivity_one: f64,
    /// Slow-down of large batches under a pressure of 1; at least 0.
    pub sensitivity_many: f64,
}

/// A file with what models do to each other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tempers {
    /// Power of its share with which a gpulet's pressure grows; above 0, at most 4.
    #[serde(default = "linear")]
    pub share_power: f64,
    /// Of each model by name.
    pub models: BTreeMap<String, Temper>,
}

fn linear() -> f64 {
    1.0
}

impl Default for Tempers {
    fn default() -> Self {
        Self { share_power: linear(), models: BTreeMap::new() }
    }
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
    /// Slow-down of a batch under a pressure of 1.
    #[must_use]
    pub fn sensitivity(&self, batch: u32) -> f64 {
        let part = 1.0 / f64::from(batch.max(1));
        self.sensitivity_many + (self.sensitivity_one - self.sensitivity_many) * part
    }

    /// The first rule that is broken.
    fn wrong(&self) -> Option<String> {
        let fields = [
            ("pressure", self.pressure, 1.0),
            ("sensitivity_one", self.sensitivity_one, 100.0),
            ("sensitivity_many", self.sensitivity_many, 100.0),
        ];
        let broken = fields.into_iter().find(|&(_, value, most)| !(0.0..=most).contains(&value));
        broken.map(|(name, value, most)| format!("{name} must be 0 to {most}, is {value}"))
    }
}

/// What a share does to a pressure.
pub(super) fn reach(share_pct: u32, power: f64) -> f64 {
    (f64::from(share_pct) / 100.0).powf(power)
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
        if !(self.share_power > 0.0 && self.share_power <= 4.0) {
            let power = self.share_power;
            return Err(format!("share_power: must be above 0 and at most 4, is {power}"));
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
        for (model, _, share_pct) in &meeting.neighbours {
            pressure += self.models.get(model)?.pressure * reach(*share_pct, self.share_power);
        }
        let (model, batch, _) = &meeting.sufferer;
        Some(1.0 + self.models.get(model)?.sensitivity(*batch) * pressure)
    }
}

/// The model for a problem: tempers in the order of its models, and what was learnt since.
#[derive(Debug, Clone)]
pub struct Additive {
    share_power: f64,
    tempers: Vec<Temper>,
    residuals: Vec<f64>,
}

impl Additive {
    /// Nothing learnt yet; tempers in the order of the problem's models.
    #[must_use]
    pub fn new(share_power: f64, tempers: Vec<Temper>) -> Self {
        let residuals = vec![1.0; tempers.len()];
        Self { share_power, tempers, residuals }
    }

    /// Learns from a batch that took `factor` times as long beside others as alone.
    pub fn observe_beside(&mut self, sufferer: Running, beside: &[Running], factor: f64) {
        let pressure: f64 = beside.iter().map(|&neighbour| self.pressure(neighbour)).sum();
        self.observe(sufferer, pressure, factor);
    }

    /// Learns from a batch that took `factor` times as long as alone under `pressure`.
    pub fn observe(&mut self, sufferer: Running, pressure: f64, factor: f64) {
        let expected = self.tempers[sufferer.model].sensitivity(sufferer.batch) * pressure;
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
        self.tempers[emitter.model].pressure * reach(emitter.share_pct, self.share_power)
    }

    fn join(&self, pressure: f64, other: f64) -> f64 {
        pressure + other
    }

    fn factor(&self, sufferer: Running, pressure: f64) -> f64 {
        let sensitivity = self.tempers[sufferer.model].sensitivity(sufferer.batch);
        1.0 + sensitivity * pressure * self.residuals[sufferer.model]
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// One that suffers and one that others suffer from.
    pub(in crate::interference) fn tempers() -> Tempers {
        let temper = |pressure: f64, sensitivity_one: f64| Temper {
            pressure,
            sensitivity_one,
            sensitivity_many: 0.6 * sensitivity_one,
        };
        let models = [("calm", temper(0.2, 0.5)), ("loud", temper(1.0, 0.1))];
        let models = models.into_iter().map(|(name, it)| (name.into(), it)).collect();
        Tempers { share_power: 0.8, models }
    }

    #[test]
    fn neighbours_add_up_and_completions_teach() {
        let all: Vec<Temper> = tempers().models.values().copied().collect();
        let mut model = Additive::new(0.8, all);
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
        let odd = Temper { pressure: 2.0, sensitivity_one: 0.0, sensitivity_many: 0.0 };
        wrong.models.insert("odd".into(), odd);
        assert_eq!(wrong.check(), Err("models.odd.pressure must be 0 to 1, is 2".into()));
        let rule = "share_power: must be above 0 and at most 4, is 0";
        assert_eq!(Tempers { share_power: 0.0, ..tempers() }.check(), Err(rule.into()));
    }

    #[test]
    fn single_rows_suffer_otherwise_than_batches() {
        let it = Temper { pressure: 1.0, sensitivity_one: 0.4, sensitivity_many: 0.2 };
        assert_eq!(
            [1, 2, 1000].map(|rows| (it.sensitivity(rows) * 1e3).round()),
            [400.0, 300.0, 200.0]
        );
    }
}
