//! Measurements of models on gpulets, as `gpuletctl profile` writes them: one file for a model in
//! one precision, on one kind of device, held by one mechanism. The schema is written down in
//! `resource/profiles/README.md`; [`beside`] has what they do to each other.
//!
//! ```
//! use gpulet_plan::measured::MeasuredModel;
//! let file: MeasuredModel = serde_json::from_str(
//!     r#"{ "format": 1, "model": "digits", "precision": "fp16", "mechanism": "green",
//!          "stamp": { "device": "NVIDIA H100", "sm_count": 132, "driver": "580", "cuda": "13.0",
//!                     "libtorch": "2.11.0", "gpulet": "0.1.0" },
//!          "settings": { "max_batch": 8, "archive_bytes": 100, "point_ns": 1000 },
//!          "shares": [ { "share_pct": 50, "sm_count": 64, "date": "2026-11-22T00:00:00Z",
//!              "form": "fp16, CUDA graphs", "captured": true, "error": 0.001, "error_bound": 0.05,
//!              "memory_bytes": 1000, "load_ns": 9, "place_ns": 5, "warm_up_ns": 3,
//!              "capture_ns": 1, "refused": [], "points": [
//!                { "rows": 1, "p50_ns": 1000, "p99_ns": 1100, "mean_ns": 1010, "count": 99,
//!                  "drift_pct": 0.5 } ] } ] }"#,
//! )?;
//! file.check()?;
//! assert_eq!(file.profile(50).ok_or("no such share")?.points[0].p99_ns, 1100);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod beside;

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::profile::{LatencyProfile, ProfileError, ProfilePoint, RawProfile, padded};

/// Of the files that are read and written here.
pub const FORMAT: u32 = 1;

/// How shares were held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Held {
    /// By green contexts of one process.
    Green,
    /// By MPS's active thread percentage.
    Mps,
}

/// What a measurement holds for. Equal stamps make equal measurements.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The product's name.
    pub device: String,
    /// Multiprocessors of the whole device, where that is known.
    pub sm_count: Option<u32>,
    /// The driver's version.
    pub driver: String,
    /// The newest CUDA that the driver has.
    pub cuda: String,
    /// libtorch's version.
    pub libtorch: String,
    /// Our version.
    pub gpulet: String,
}

/// How it was measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The largest batch that the model was loaded for.
    pub max_batch: u32,
    /// Length of the model's archive.
    pub archive_bytes: u64,
    /// How long each point was measured at least.
    pub point_ns: u64,
}

/// A model's measurements in one precision, held by one mechanism.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredModel {
    /// [`FORMAT`].
    pub format: u32,
    /// The model's name.
    pub model: String,
    /// What it computed in, as in model.toml.
    pub precision: String,
    /// How shares were held.
    pub mechanism: Held,
    /// What it holds for.
    pub stamp: Stamp,
    /// How it was measured.
    pub settings: Settings,
    /// Shares, ascending.
    pub shares: Vec<MeasuredShare>,
}

/// A model on one share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredShare {
    /// The percentage asked for, 1 to 100.
    pub share_pct: u8,
    /// Multiprocessors it came to.
    pub sm_count: u32,
    /// When it was measured last, UTC, RFC 3339.
    pub date: String,
    /// How the model ran, for people.
    pub form: String,
    /// Whether all batch sizes were CUDA graphs.
    pub captured: bool,
    /// What the precision costs: the largest difference of an output over the largest value of that
    /// output in fp32; `None` where that is no number.
    pub error: Option<f64>,
    /// What that should stay below; not enforced.
    pub error_bound: f64,
    /// Device memory of weights, graphs and batches.
    pub memory_bytes: u64,
    /// All of the load.
    pub load_ns: u64,
    /// Of it: reading the archive and bringing weights to the device.
    pub place_ns: u64,
    /// Of it: first forwards at every batch size.
    pub warm_up_ns: u64,
    /// Of it: captures.
    pub capture_ns: u64,
    /// Rows ascending.
    pub points: Vec<MeasuredPoint>,
    /// What was not measured, and why.
    pub refused: Vec<Refused>,
}

/// Batches of so many rows, from the first byte copied in to the last copied out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredPoint {
    /// Batch size.
    pub rows: u32,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile, nearest rank.
    pub p99_ns: u64,
    /// Mean.
    pub mean_ns: u64,
    /// Batches that were measured.
    pub count: usize,
    /// How far the medians of the two halves lie apart.
    pub drift_pct: f64,
}

/// A point that is not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refused {
    /// Batch size; 0 where the model could not be loaded at all.
    pub rows: u32,
    /// Which rule it breaks, and by how much.
    pub rule: String,
}

/// The rule that a file breaks. Who reads the file adds its name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MeasuredError {
    /// Of another version.
    #[error("format: must be {FORMAT}, is {format}")]
    Format {
        /// Found.
        format: u32,
    },
    /// A share that is no percentage, or not more than the one before.
    #[error("shares[{index}].share_pct: must be above {above} and at most 100, is {share_pct}")]
    Share {
        /// Which, from 0.
        index: usize,
        /// The one before, 0 for the first.
        above: u8,
        /// Found.
        share_pct: u8,
    },
    /// The points of a share.
    #[error("shares[{index}].{source}")]
    Points {
        /// Which, from 0.
        index: usize,
        /// The rule of profiles.
        source: ProfileError,
    },
}

impl MeasuredShare {
    /// What schedulers take: rows and two latencies.
    #[must_use]
    pub fn profile_points(&self) -> Vec<ProfilePoint> {
        let point = |it: &MeasuredPoint| ProfilePoint {
            rows: it.rows,
            p50_ns: it.p50_ns,
            p99_ns: it.p99_ns,
        };
        self.points.iter().map(point).collect()
    }

    /// What planners take: the sizes between those that were captured are padded to them.
    #[must_use]
    pub fn planned_points(&self) -> Vec<ProfilePoint> {
        let points = self.profile_points();
        if self.captured { padded(&points) } else { points }
    }
}

impl MeasuredModel {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`MeasuredError`] names the first field that breaks its rule.
    pub fn check(&self) -> Result<(), MeasuredError> {
        if self.format != FORMAT {
            return Err(MeasuredError::Format { format: self.format });
        }
        let mut above = 0;
        for (index, share) in self.shares.iter().enumerate() {
            let share_pct = share.share_pct;
            if share_pct <= above || share_pct > 100 {
                return Err(MeasuredError::Share { index, above, share_pct });
            }
            above = share_pct;
            // A share of which nothing could be measured says why, and has no points.
            if !share.points.is_empty() {
                LatencyProfile::new(&self.model, &share.profile_points())
                    .map_err(|source| MeasuredError::Points { index, source })?;
            }
        }
        Ok(())
    }

    /// The profile of one share: what [`LatencyProfile`] and the replay backend take. `None` where
    /// nothing was measured at exactly that share.
    #[must_use]
    pub fn profile(&self, share_pct: u8) -> Option<RawProfile> {
        let share = self.shares.iter().find(|share| share.share_pct == share_pct)?;
        let points = share.profile_points();
        (!points.is_empty()).then(|| RawProfile { model: self.model.clone(), points })
    }
}
