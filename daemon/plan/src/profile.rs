//! Latency profiles: how long a batch of so many rows takes for one model on one gpulet.
//!
//! Points come from warm-up or from a file (JSON, machine-written). Between points a latency is
//! interpolated; batches that were run correct the prediction. There is no model without a
//! profile: loading one ends with a warm-up, and the warm-up measures.

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::correction::Correction;

/// Most points a profile may have.
pub const PROFILE_POINTS_MAX: usize = 64;

/// Predictions for batches of up to so many rows are kept ready: one decision asks for dozens.
const READY_ROWS: u32 = 64;

/// Longest latency a profile may state: one hour. Above it a file has its units wrong.
pub const PROFILE_LATENCY_MAX_NS: u64 = 3_600_000_000_000;

/// What was measured at one batch size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProfilePoint {
    /// Batch size in rows, at least 1.
    pub rows: u32,
    /// Median latency of a batch.
    pub p50_ns: u64,
    /// 99th percentile of the latency of a batch, at least `p50_ns`.
    pub p99_ns: u64,
}

/// What batches take that are padded to the next of `sizes`: one row more than a size takes as long
/// as all of the next. A line between the two would promise what no batch keeps.
#[must_use]
pub fn padded(sizes: &[ProfilePoint]) -> Vec<ProfilePoint> {
    let mut points = Vec::with_capacity(2 * sizes.len());
    let mut below = 0;
    for size in sizes {
        if below + 1 < size.rows {
            points.push(ProfilePoint { rows: below + 1, ..*size });
        }
        points.push(*size);
        below = size.rows;
    }
    points
}

/// A profile as a file states it, unchecked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawProfile {
    /// The model that was measured.
    pub model: String,
    /// Points in strictly increasing order of `rows`.
    pub points: Vec<ProfilePoint>,
}

/// The rule that a profile breaks. The reader of a file adds the file's name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// No model name.
    #[error("model: must not be empty")]
    ModelEmpty,
    /// None or too many points.
    #[error("points: must hold 1 to {PROFILE_POINTS_MAX} entries, holds {count}")]
    PointCount {
        /// Entries found.
        count: usize,
    },
    /// Zero rows, or not more than the point before.
    #[error("points[{index}].rows: must be above {above} (strictly increasing from 1), is {rows}")]
    Rows {
        /// Which point, from 0.
        index: usize,
        /// The rows of the point before, 0 for the first.
        above: u32,
        /// Rows found.
        rows: u32,
    },
    /// A median that is zero or absurd.
    #[error(
        "points[{index}].p50_ns: must be 1 to {PROFILE_LATENCY_MAX_NS} (one hour), is {p50_ns}"
    )]
    P50 {
        /// Which point, from 0.
        index: usize,
        /// Median found.
        p50_ns: u64,
    },
    /// A 99th percentile below the median, or absurd.
    #[error(
        "points[{index}].p99_ns: must be {p50_ns} (its p50_ns) to {PROFILE_LATENCY_MAX_NS} \
         (one hour), is {p99_ns}"
    )]
    P99 {
        /// Which point, from 0.
        index: usize,
        /// Median of the same point.
        p50_ns: u64,
        /// 99th percentile found.
        p99_ns: u64,
    },
}

/// A checked profile with its online correction.
///
/// All predictions grow with the rows (running maximum over the points, so noise in a
/// measurement cannot make a larger batch look faster). Below the first point they are constant;
/// above the last they go on with the last slope, or in proportion to the rows where there is
/// only one point. Nothing allocates after construction.
///
/// Serialises as [`RawProfile`]: what was measured, without the correction.
///
/// ```
/// use gpulet_plan::profile::LatencyProfile;
/// let profile: LatencyProfile = serde_json::from_str(
///     r#"{ "model": "digits", "points": [
///         { "rows": 1, "p50_ns": 1000, "p99_ns": 1100 },
///         { "rows": 5, "p50_ns": 3000, "p99_ns": 3100 } ] }"#,
/// )?;
/// assert_eq!(profile.latency_ns(3), 2100);
/// assert_eq!(profile.latency_ns(7), 4100);
/// assert_eq!(profile.largest_batch_within(2_700, 8), 4);
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "RawProfile", into = "RawProfile")]
pub struct LatencyProfile {
    model: String,
    points: Vec<ProfilePoint>,
    /// The curves below have one value a point.
    rows: Vec<u32>,
    p50_ns: Vec<u64>,
    p99_ns: Vec<u64>,
    corrected_ns: Vec<u64>,
    soonest_ns: Vec<u64>,
    corrections: Vec<Correction>,
    /// What `corrected_ns` predicts for 0, 1, ... [`READY_ROWS`] rows.
    ready_ns: Vec<u64>,
}

impl LatencyProfile {
    /// Checks `points` and builds a profile that has observed nothing yet.
    ///
    /// # Errors
    /// [`ProfileError`] names the first field that breaks its rule.
    pub fn new(model: &str, points: &[ProfilePoint]) -> Result<Self, ProfileError> {
        if model.is_empty() {
            return Err(ProfileError::ModelEmpty);
        }
        check_points(points)?;
        let p99_ns = running_max(points.iter().map(|point| point.p99_ns));
        let p50_ns = running_max(points.iter().map(|point| point.p50_ns));
        let mut profile = Self {
            model: model.to_owned(),
            points: points.to_vec(),
            rows: points.iter().map(|point| point.rows).collect(),
            soonest_ns: p50_ns.clone(),
            p50_ns,
            corrected_ns: p99_ns.clone(),
            p99_ns,
            corrections: vec![Correction::new(); points.len()],
            ready_ns: vec![0; READY_ROWS as usize + 1],
        };
        profile.make_ready();
        Ok(profile)
    }

    /// The model that was measured.
    #[must_use]
    pub fn model(&self) -> &str {
        &self.model
    }

    /// The points as measured, uncorrected.
    #[must_use]
    pub fn points(&self) -> &[ProfilePoint] {
        &self.points
    }

    /// Measured median latency of a batch of `rows`, uncorrected.
    #[must_use]
    pub fn p50_ns(&self, rows: u32) -> u64 {
        curve_at(&self.rows, &self.p50_ns, rows)
    }

    /// Measured 99th percentile of the latency of a batch of `rows`, uncorrected.
    #[must_use]
    pub fn p99_ns(&self, rows: u32) -> u64 {
        // Above the last point the two slopes may cross; between points they cannot.
        curve_at(&self.rows, &self.p99_ns, rows).max(self.p50_ns(rows))
    }

    /// Predicted 99th percentile of the latency of a batch of `rows`: what a decision relies on.
    ///
    /// It is [`p99_ns`](Self::p99_ns) until [`observe`](Self::observe) has learnt otherwise.
    #[must_use]
    pub fn latency_ns(&self, rows: u32) -> u64 {
        self.ready_ns.get(rows as usize).copied().unwrap_or_else(|| self.predicted_ns(rows))
    }

    fn make_ready(&mut self) {
        for rows in 0..=READY_ROWS {
            self.ready_ns[rows as usize] = self.predicted_ns(rows);
        }
    }

    fn predicted_ns(&self, rows: u32) -> u64 {
        let corrected_ns = curve_at(&self.rows, &self.corrected_ns, rows);
        let last = self.rows.len() - 1;
        if rows <= self.rows[last] {
            return corrected_ns;
        }
        // A raised small batch can level out the corrected curve; larger ones still cost more.
        let growth_ns = self.p99_ns(rows) - self.p99_ns[last];
        corrected_ns.max(self.corrected_ns[last].saturating_add(growth_ns))
    }

    /// When to look for the end of a batch of `rows` that was just handed over: the least that one
    /// near that size took of late, the measured median until one ran. Never above
    /// [`latency_ns`](Self::latency_ns). For waking up, not for promises.
    #[must_use]
    pub fn soonest_ns(&self, rows: u32) -> u64 {
        curve_at(&self.rows, &self.soonest_ns, rows).min(self.latency_ns(rows))
    }

    /// Rows of the largest batch, at most `max_rows`, predicted to take at most `budget_ns`;
    /// 0 when not even one row does.
    #[must_use]
    pub fn largest_batch_within(&self, budget_ns: u64, max_rows: u32) -> u32 {
        if self.latency_ns(max_rows) <= budget_ns {
            return max_rows;
        }
        // Predictions grow with the rows: `fits` always does, `exceeds` never.
        let (mut fits, mut exceeds) = (0, max_rows);
        while exceeds - fits > 1 {
            let middle = fits + (exceeds - fits) / 2;
            if self.latency_ns(middle) <= budget_ns {
                fits = middle;
            } else {
                exceeds = middle;
            }
        }
        fits
    }

    /// Learns from a batch of `rows` that took `measured_ns` from its hand-over to its completion.
    ///
    /// Kept per profile point; a batch between two points counts for both. A batch slower than
    /// the profile raises the prediction in proportion until 16 later ones near that size were
    /// faster, or 64 of other sizes ran since: what is predicted too slow to run would never be
    /// seen to be faster. Only 128 batches in a row, all faster than the profile, lower it, to the
    /// slowest of them.
    pub fn observe(&mut self, rows: u32, measured_ns: u64) {
        let ratio = Correction::ratio(measured_ns, self.p99_ns(rows));
        let around = self.points_around(rows);
        for (index, correction) in self.corrections.iter_mut().enumerate() {
            if around.contains(&index) { correction.observe(ratio) } else { correction.pass() }
        }
        self.apply_corrections();
    }

    /// Tells that a batch of `rows` was refused or expired because `budget_ns` was all it had.
    ///
    /// A correction that keeps a model from running also keeps it from being observed, so it
    /// could never go away. Where only the correction stood in the way, 16 such refusals with no
    /// batch run between make the profile forget it for batches up to this size.
    pub fn note_refused(&mut self, rows: u32, budget_ns: u64) {
        if self.latency_ns(rows) <= budget_ns || self.p99_ns(rows) > budget_ns {
            return;
        }
        let around = self.points_around(rows);
        let upper = *around.end();
        let mut exhausted = false;
        for index in around {
            exhausted |= self.corrections[index].refuse();
        }
        if exhausted {
            // Smaller batches too: by the running maximum they hold up the larger ones.
            self.corrections[..=upper].iter_mut().for_each(Correction::forget);
            self.apply_corrections();
        }
    }

    /// Tells that some time has passed: a size that was slow is predicted as measured again, if no
    /// batch near it ran since the last time.
    ///
    /// What is predicted too slow to run must be tried again also where nothing else runs and nobody
    /// is refused: while few ask for the model, or others take its requests.
    pub fn fade(&mut self) {
        let mut faded = false;
        for correction in &mut self.corrections {
            faded |= correction.fade();
        }
        if faded {
            self.apply_corrections();
        }
    }

    /// The point with exactly `rows`, else its neighbours.
    fn points_around(&self, rows: u32) -> RangeInclusive<usize> {
        let upper = self.rows.partition_point(|&point_rows| point_rows < rows);
        if upper == self.rows.len() {
            upper - 1..=upper - 1
        } else if upper == 0 || self.rows[upper] == rows {
            upper..=upper
        } else {
            upper - 1..=upper
        }
    }

    fn apply_corrections(&mut self) {
        let (mut largest_ns, mut soonest_ns, mut corrected) = (0, 0, false);
        for (index, correction) in self.corrections.iter().enumerate() {
            largest_ns = largest_ns.max(Correction::scale(self.p99_ns[index], correction.factor()));
            corrected |= self.corrected_ns[index] != largest_ns;
            self.corrected_ns[index] = largest_ns;
            let of_late = correction.smallest();
            let of_late_ns = of_late.map(|ratio| Correction::scale(self.p99_ns[index], ratio));
            soonest_ns = soonest_ns.max(of_late_ns.unwrap_or(self.p50_ns[index]));
            self.soonest_ns[index] = soonest_ns;
        }
        if corrected {
            self.make_ready();
        }
    }
}

impl TryFrom<RawProfile> for LatencyProfile {
    type Error = ProfileError;

    fn try_from(raw: RawProfile) -> Result<Self, ProfileError> {
        Self::new(&raw.model, &raw.points)
    }
}

impl From<LatencyProfile> for RawProfile {
    fn from(profile: LatencyProfile) -> Self {
        Self { model: profile.model, points: profile.points }
    }
}

fn check_points(points: &[ProfilePoint]) -> Result<(), ProfileError> {
    if points.is_empty() || points.len() > PROFILE_POINTS_MAX {
        return Err(ProfileError::PointCount { count: points.len() });
    }
    let mut above = 0;
    for (index, &ProfilePoint { rows, p50_ns, p99_ns }) in points.iter().enumerate() {
        if rows <= above {
            return Err(ProfileError::Rows { index, above, rows });
        }
        if p50_ns == 0 || p50_ns > PROFILE_LATENCY_MAX_NS {
            return Err(ProfileError::P50 { index, p50_ns });
        }
        if p99_ns < p50_ns || p99_ns > PROFILE_LATENCY_MAX_NS {
            return Err(ProfileError::P99 { index, p50_ns, p99_ns });
        }
        above = rows;
    }
    Ok(())
}

fn running_max(values: impl Iterator<Item = u64>) -> Vec<u64> {
    values
        .scan(0, |largest, value| {
            *largest = value.max(*largest);
            Some(*largest)
        })
        .collect()
}

/// The polyline through (`knot_rows`, `knot_ns`) at `rows`: at least one knot, both increasing.
fn curve_at(knot_rows: &[u32], knot_ns: &[u64], rows: u32) -> u64 {
    let knot = |index: usize| (knot_rows[index], knot_ns[index]);
    let last = knot_rows.len() - 1;
    match knot_rows.partition_point(|&knot| knot < rows) {
        0 => knot_ns[0],
        _ if last == 0 => line_at((0, 0), knot(0), rows),
        upper => line_at(knot(upper.min(last) - 1), knot(upper.min(last)), rows),
    }
}

/// The line through two knots at `rows >= from.0`, rounded up, saturating.
fn line_at(from: (u32, u64), to: (u32, u64), rows: u32) -> u64 {
    let (rise_ns, run) = (to.1 - from.1, u64::from(to.0 - from.0));
    if let Some(rise_ns) = rise_ns.checked_mul(u64::from(rows - from.0)) {
        return from.1.saturating_add(rise_ns.div_ceil(run));
    }
    let rise_ns = u128::from(rise_ns) * u128::from(rows - from.0);
    let ns = u128::from(from.1) + rise_ns.div_ceil(u128::from(run));
    u64::try_from(ns).unwrap_or(u64::MAX)
}
