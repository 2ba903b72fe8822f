//! How much slower a batch runs because of what runs beside it on the same device.
//!
//! Both models are *separable*: whatever runs on another gpulet of the device emits a pressure,
//! the pressures of all of them join into one number, and that number acts on a batch through
//! the batch's own sensitivity. A search can so bound what a gpulet will suffer before it knows
//! its neighbours. Models that take turns on one gpulet do not disturb each other.

mod additive;
mod fitting;
mod judge;

pub use self::additive::{Additive, Meeting, Temper, Tempers};
pub use self::judge::{Errors, Predictor, held_out};

use crate::input::InputError;

/// A batch of a model on a gpulet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// Number of the model in the problem.
    pub model: usize,
    /// Rows of the batch.
    pub batch: u32,
    /// Share of the gpulet, percent.
    pub share_pct: u32,
}

/// A model of interference.
pub trait Interference: std::fmt::Debug + Send + Sync {
    /// What a batch emits towards the other gpulets of its device; at least 0.
    fn pressure(&self, emitter: Running) -> f64;

    /// Two pressures together; commutative, and no smaller than either.
    fn join(&self, pressure: f64, other: f64) -> f64;

    /// Factor on the measured latency of `sufferer` under the joined pressure of all other
    /// gpulets of the device: at least 1, and no smaller for a higher pressure. A gpulet that
    /// is alone on its device has factor 1 and is not asked.
    fn factor(&self, sufferer: Running, pressure: f64) -> f64;
}

/// Nothing disturbs anything.
#[derive(Debug, Clone, Copy, Default)]
pub struct Undisturbed;

impl Interference for Undisturbed {
    fn pressure(&self, _: Running) -> f64 {
        0.0
    }

    fn join(&self, pressure: f64, other: f64) -> f64 {
        pressure.max(other)
    }

    fn factor(&self, _: Running, _: f64) -> f64 {
        1.0
    }
}

/// Utilisation of one model by batch: rows of (batch, L2, DRAM), each of the two 0 to 1.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct UtilisationCurve {
    points: Vec<(u32, f64, f64)>,
}

impl UtilisationCurve {
    /// A curve through `points`: (batch, L2, DRAM), sorted here.
    ///
    /// # Errors
    /// Says which rule the points break, for the reader to add where they are from.
    pub fn new(mut points: Vec<(u32, f64, f64)>) -> Result<Self, String> {
        points.sort_by_key(|&(batch, ..)| batch);
        if points.is_empty() {
            return Err("must have at least one batch".into());
        }
        if let Some(twice) = points.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(format!("batch {} must be given once", twice[0].0));
        }
        Ok(Self { points })
    }

    /// L2 and DRAM utilisation at `batch`: linear between the nearest points that are powers of
    /// two (the published rule), constant beyond the outermost of them.
    #[must_use]
    pub fn at(&self, batch: u32) -> (f64, f64) {
        let powers = || self.points.iter().filter(|point| point.0.is_power_of_two());
        let below = powers().rfind(|point| point.0 <= batch);
        let above = powers().find(|point| point.0 >= batch);
        match (below, above) {
            (Some(low), Some(high)) if high.0 > low.0 => {
                let part = f64::from(batch - low.0) / f64::from(high.0 - low.0);
                (low.1 + part * (high.1 - low.1), low.2 + part * (high.2 - low.2))
            }
            (Some(point), _) | (None, Some(point)) => (point.1, point.2),
            (None, None) => (self.points[0].1, self.points[0].2),
        }
    }

    /// (batch, L2, DRAM) in order of batch.
    #[must_use]
    pub fn points(&self) -> &[(u32, f64, f64)] {
        &self.points
    }
}

/// Weights of the published linear model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinearConstants {
    /// Of the sufferer's L2 utilisation.
    pub own_l2: f64,
    /// Of the neighbour's L2 utilisation.
    pub other_l2: f64,
    /// Of the sufferer's DRAM utilisation.
    pub own_dram: f64,
    /// Of the neighbour's DRAM utilisation.
    pub other_dram: f64,
    /// Constant term.
    pub constant: f64,
}

/// The published linear model: utilisations scaled by the share, weighted, plus a constant, at
/// least 1; of several neighbours the one that disturbs most counts.
#[derive(Debug, Clone)]
pub struct Linear {
    constants: LinearConstants,
    /// L2 and DRAM by model and batch, from batch 1 to where the curve is constant.
    utilisations: Vec<Vec<(f64, f64)>>,
}

impl LinearConstants {
    /// The weights that explain `meetings` with the least squares; of several neighbours the one
    /// with the highest L2 and DRAM utilisation together counts.
    ///
    /// # Errors
    /// A model without utilisations, or too few different meetings to tell weights apart.
    pub fn fit(meetings: &[Meeting], utilisations: &Utilisations) -> Result<Self, InputError> {
        let mut normal = [[0.0; 6]; 5];
        for meeting in meetings {
            let row = Self::row(meeting, utilisations)?;
            for (sums, at) in normal.iter_mut().zip(row) {
                sums.iter_mut().zip(row).for_each(|(sum, it)| *sum += at * it);
                sums[5] += at * meeting.factor;
            }
        }
        let [own_l2, other_l2, own_dram, other_dram, constant] =
            solved(normal).ok_or_else(|| {
                let rule = "must differ enough to tell five weights apart, do not";
                InputError::whole(&utilisations.file, "meetings", rule)
            })?;
        Ok(Self { own_l2, other_l2, own_dram, other_dram, constant })
    }

    /// Predicted factor of a meeting.
    ///
    /// # Errors
    /// A model without utilisations.
    pub fn predicted(
        &self,
        meeting: &Meeting,
        utilisations: &Utilisations,
    ) -> Result<f64, InputError> {
        let weights = [self.own_l2, self.other_l2, self.own_dram, self.other_dram, self.constant];
        let row = Self::row(meeting, utilisations)?;
        Ok(weights.iter().zip(row).map(|(weight, it)| weight * it).sum::<f64>().max(1.0))
    }

    /// What the weights are put on.
    fn row(meeting: &Meeting, utilisations: &Utilisations) -> Result<[f64; 5], InputError> {
        let scaled = |(model, batch, share_pct): &(String, u32, u32)| {
            let (l2, dram) = utilisations.of(model)?.at(*batch);
            let share = f64::from(*share_pct) / 100.0;
            Ok::<_, InputError>((l2 * share, dram * share))
        };
        let own = scaled(&meeting.sufferer)?;
        let mut other = (0.0, 0.0);
        for neighbour in &meeting.neighbours {
            let next = scaled(neighbour)?;
            if next.0 + next.1 > other.0 + other.1 {
                other = next;
            }
        }
        Ok([own.0, other.0, own.1, other.1, 1.0])
    }
}

/// Solves five equations, each with its right side last.
fn solved(mut rows: [[f64; 6]; 5]) -> Option<[f64; 5]> {
    for at in 0..5 {
        let pivot =
            (at..5).max_by(|&one, &two| rows[one][at].abs().total_cmp(&rows[two][at].abs()))?;
        rows.swap(at, pivot);
        if rows[at][at].abs() < 1e-9 {
            return None;
        }
        let pivot = rows[at];
        for (_, row) in rows.iter_mut().enumerate().filter(|it| it.0 != at) {
            let factor = row[at] / pivot[at];
            row.iter_mut().zip(pivot).for_each(|(it, by)| *it -= factor * by);
        }
    }
    Some(std::array::from_fn(|at| rows[at][5] / rows[at][at]))
}

impl Linear {
    /// The model for a problem whose models have `curves`, in the problem's order.
    #[must_use]
    pub fn new(constants: LinearConstants, curves: Vec<UtilisationCurve>) -> Self {
        let dense = |curve: &UtilisationCurve| {
            let last = curve.points.last().map_or(1, |point| point.0);
            (1..=last).map(|batch| curve.at(batch)).collect()
        };
        Self { constants, utilisations: curves.iter().map(dense).collect() }
    }

    fn scaled(&self, running: Running) -> (f64, f64) {
        let curve = &self.utilisations[running.model];
        let (l2, dram) = curve[(running.batch.max(1) as usize).min(curve.len()) - 1];
        let share = f64::from(running.share_pct) / 100.0;
        (l2 * share, dram * share)
    }
}

impl Interference for Linear {
    fn pressure(&self, emitter: Running) -> f64 {
        let (l2, dram) = self.scaled(emitter);
        // Only the difference to other neighbours matters; a negative weight is no relief.
        (self.constants.other_l2 * l2 + self.constants.other_dram * dram).max(0.0)
    }

    fn join(&self, pressure: f64, other: f64) -> f64 {
        pressure.max(other)
    }

    fn factor(&self, sufferer: Running, pressure: f64) -> f64 {
        let (l2, dram) = self.scaled(sufferer);
        let own = self.constants.own_l2 * l2 + self.constants.own_dram * dram;
        (own + pressure + self.constants.constant).max(1.0)
    }
}

/// Utilisation curves by model name, as a file gives them.
#[derive(Debug, Clone, Default)]
pub struct Utilisations {
    /// Name of the file, for errors.
    pub file: String,
    /// Model and its curve.
    pub curves: std::collections::BTreeMap<String, UtilisationCurve>,
}

impl Utilisations {
    /// The curve of `model`. Files name families: without an entry of its own, a model has that
    /// of its name without trailing digits, or of what comes before the first hyphen.
    ///
    /// # Errors
    /// The file has none of the three.
    pub fn of(&self, model: &str) -> Result<&UtilisationCurve, InputError> {
        let family = model.trim_end_matches(|letter: char| letter.is_ascii_digit());
        let stem = model.split('-').next().unwrap_or(model);
        [model, family, stem].iter().find_map(|name| self.curves.get(*name)).ok_or_else(|| {
            InputError::whole(&self.file, model, "must have utilisation lines, has none")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linear() -> Linear {
        let constants = LinearConstants {
            own_l2: 0.1,
            other_l2: 0.7,
            own_dram: 0.4,
            other_dram: 0.1,
            constant: 0.9,
        };
        let curve =
            UtilisationCurve::new(vec![(1, 0.1, 0.2), (2, 0.2, 0.4), (3, 9.0, 9.0), (4, 0.4, 0.6)]);
        Linear::new(constants, vec![curve.unwrap()])
    }

    #[test]
    fn the_published_formula() {
        let model = linear();
        let own = Running { model: 0, batch: 3, share_pct: 50 };
        let other = Running { model: 0, batch: 1, share_pct: 50 };
        // Batch 3 lies halfway between the powers 2 and 4: L2 0.3, DRAM 0.5, halved by the share.
        let factor = model.factor(own, model.pressure(other));
        let expected: f64 = 0.1 * 0.15 + 0.7 * 0.05 + 0.4 * 0.25 + 0.1 * 0.1 + 0.9;
        assert!((factor - expected.max(1.0)).abs() < 1e-12);
        assert_eq!(model.factor(Running { share_pct: 1, ..own }, 0.0), 1.0);
    }

    #[test]
    fn weights_are_found_again() {
        let curve = |l2: f64, dram: f64| {
            UtilisationCurve::new(vec![(1, 0.1 * l2, 0.3 * dram), (32, l2, dram)]).unwrap()
        };
        let curves = [("a", curve(0.9, 0.2)), ("b", curve(0.3, 0.8)), ("c", curve(0.5, 0.4))];
        let curves = curves.into_iter().map(|(name, curve)| (name.to_owned(), curve)).collect();
        let all = Utilisations { file: "u".into(), curves };
        let weights = linear().constants;
        let mut meetings = Vec::new();
        for (own, other) in [("a", "b"), ("b", "a"), ("c", "a"), ("a", "c"), ("b", "c")] {
            for (batch, share) in [(1, 20), (16, 40), (32, 80)] {
                let (one, two) = (all.of(own).unwrap().at(batch), all.of(other).unwrap().at(8));
                let (mine, others) = (f64::from(share) / 100.0, 0.2);
                let factor = weights.own_l2 * one.0 * mine
                    + weights.other_l2 * two.0 * others
                    + weights.own_dram * one.1 * mine
                    + weights.other_dram * two.1 * others
                    + weights.constant;
                let sufferer = (own.to_owned(), batch, share);
                meetings.push(Meeting {
                    sufferer,
                    neighbours: vec![(other.into(), 8, 20)],
                    factor,
                });
            }
        }
        let found = LinearConstants::fit(&meetings, &all).unwrap();
        assert!((found.other_l2 - weights.other_l2).abs() < 1e-6, "{found:?}");
        assert!((found.constant - weights.constant).abs() < 1e-6, "{found:?}");
        assert!(LinearConstants::fit(&meetings[..2], &all).is_err());
    }

    #[test]
    fn the_worst_neighbour_counts() {
        assert_eq!(linear().join(0.3, 0.2), 0.3);
        assert_eq!(Undisturbed.factor(Running { model: 0, batch: 1, share_pct: 1 }, 9.0), 1.0);
    }

    #[test]
    fn families_share_a_curve() {
        let curve = UtilisationCurve::new(vec![(1, 0.1, 0.2)]).unwrap();
        let mut all = Utilisations { file: "UTIL.CSV".into(), ..Utilisations::default() };
        for name in ["lenet", "ssd"] {
            all.curves.insert(name.into(), curve.clone());
        }
        assert_eq!(all.of("lenet4"), Ok(&curve));
        assert_eq!(all.of("ssd-mobilenetv1"), Ok(&curve));
        let error = all.of("bert").unwrap_err().to_string();
        assert_eq!(error, "UTIL.CSV: bert: must have utilisation lines, has none");
        assert!(UtilisationCurve::new(vec![]).is_err());
        assert!(UtilisationCurve::new(vec![(1, 0.1, 0.2); 2]).is_err());
    }
}
