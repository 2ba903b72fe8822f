//! What gpulets of one device do to each other, as `gpuletctl profile --interference` measures it:
//! every measurement by itself, so that a model can be fitted on some and tested on the others.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::interference::{Meeting, UtilisationCurve, Utilisations};

use super::{FORMAT, MeasuredError, Stamp};

/// Everything measured on one kind of device. Shares are green contexts of equal size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MeasuredBeside {
    /// [`FORMAT`].
    pub format: u32,
    /// What it holds for.
    pub stamp: Stamp,
    /// How long each run was at least.
    pub point_ns: u64,
    /// What sets were drawn by.
    pub seed: u64,
    /// Pressure kernels alone, on half of the device.
    pub pressures: Vec<PressureAlone>,
    /// A model on one half, a pressure kernel on the other.
    pub pressed: Vec<Pressed>,
    /// Models side by side.
    pub sets: Vec<SetRun>,
    /// What was not measured, and why.
    pub refused: Vec<RefusedRun>,
}

/// Batches of a model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its name.
    pub model: String,
    /// What it computed in.
    pub precision: String,
    /// Batch size.
    pub rows: u32,
}

/// A closed loop: batches one after the other, copies included.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    /// Batches a second.
    pub per_s: f64,
    /// Mean of what each took.
    pub mean_ns: u64,
    /// Median.
    pub p50_ns: u64,
    /// 99th percentile, nearest rank.
    pub p99_ns: u64,
    /// Batches that were measured.
    pub count: usize,
}

/// Which memory a kernel presses on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PressedMemory {
    /// The cache.
    L2,
    /// What is behind it.
    Dram,
}

/// A pressure kernel as it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PressureKernel {
    /// What it reads.
    pub memory: PressedMemory,
    /// From 1, the mildest.
    pub level: u32,
    /// Blocks on each multiprocessor.
    pub blocks_per_sm: u32,
    /// Each block's pause after each 64 KiB.
    pub pause_ns: u32,
}

/// What a pressure kernel reads where nothing else runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PressureAlone {
    /// Which.
    pub kernel: PressureKernel,
    /// Multiprocessors it runs on.
    pub sm_count: u32,
    /// What it reads a second.
    pub bytes_per_s: f64,
}

/// A model beside a pressure kernel.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pressed {
    /// The model.
    pub member: Member,
    /// Multiprocessors of the model.
    pub sm_count: u32,
    /// The kernel.
    pub kernel: PressureKernel,
    /// The model where nothing else runs.
    pub alone: Loop,
    /// The model beside the kernel.
    pub beside: Loop,
    /// Ratio of the two medians: the model's sensitivity.
    pub slowdown: f64,
    /// What the kernel reads a second beside the model; against [`PressureAlone`], the model's
    /// pressure.
    pub bytes_per_s: f64,
}

/// Models side by side, each on its equal share, none waiting for another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetRun {
    /// In the order of the gpulets.
    pub members: Vec<SetMember>,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetMember {
    /// The model.
    pub member: Member,
    /// Multiprocessors it has.
    pub sm_count: u32,
    /// On the same gpulet where nothing else runs.
    pub alone: Loop,
    /// In the time in which all others ran.
    pub beside: Loop,
    /// Ratio of the two medians.
    pub slowdown: f64,
}

/// A run that is not to be trusted, or could not be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedRun {
    /// Who was to run.
    pub members: Vec<Member>,
    /// Beside which kernel.
    pub kernel: Option<PressureKernel>,
    /// Which rule it breaks, and by how much.
    pub rule: String,
}

impl MeasuredBeside {
    /// Checks what the types do not.
    ///
    /// # Errors
    /// [`MeasuredError::Format`].
    pub fn check(&self) -> Result<(), MeasuredError> {
        match self.format {
            FORMAT => Ok(()),
            format => Err(MeasuredError::Format { format }),
        }
    }
}

impl Member {
    /// Name of the model, as files of profiles have it: with the precision, unless it is fp32.
    #[must_use]
    pub fn name(&self) -> String {
        match self.precision.as_str() {
            "fp32" => self.model.clone(),
            precision => format!("{}.{precision}", self.model),
        }
    }
}

impl MeasuredBeside {
    /// What every member of every set suffered, set by set; `None` where the size of the device
    /// is not known.
    #[must_use]
    pub fn meetings(&self) -> Option<Vec<Vec<Meeting>>> {
        let all = self.stamp.sm_count.filter(|&count| count > 0)?;
        let beside = |it: &SetMember| {
            let percent = u64::from(it.sm_count) * 100 / u64::from(all);
            let share_pct = percent.clamp(1, 100) as u32;
            (it.member.name(), it.member.rows, share_pct)
        };
        let meeting = |set: &SetRun, at: usize| Meeting {
            sufferer: beside(&set.members[at]),
            neighbours: (0..set.members.len())
                .filter(|&other| other != at)
                .map(|other| beside(&set.members[other]))
                .collect(),
            factor: set.members[at].slowdown,
        };
        let meetings = |set: &SetRun| (0..set.members.len()).map(|at| meeting(set, at)).collect();
        Some(self.sets.iter().map(meetings).collect())
    }

    /// What the published linear model takes: of each memory the part of its bandwidth that a
    /// model takes away from the kernels that press on it, whichever it takes most from.
    #[must_use]
    pub fn utilisations(&self, file: &str) -> Utilisations {
        let mut taken: BTreeMap<String, BTreeMap<u32, (f64, f64)>> = BTreeMap::new();
        for pressed in &self.pressed {
            let of_kernel = self.pressures.iter().find(|it| it.kernel == pressed.kernel);
            let Some(alone) = of_kernel.filter(|it| it.bytes_per_s > 0.0) else { continue };
            let part = (1.0 - pressed.bytes_per_s / alone.bytes_per_s).clamp(0.0, 1.0);
            let of_model = taken.entry(pressed.member.name()).or_default();
            let (l2, dram) = of_model.entry(pressed.member.rows).or_default();
            match pressed.kernel.memory {
                PressedMemory::L2 => *l2 = l2.max(part),
                PressedMemory::Dram => *dram = dram.max(part),
            }
        }
        let curve = |points: BTreeMap<u32, (f64, f64)>| {
            let points = points.into_iter().map(|(rows, (l2, dram))| (rows, l2, dram));
            UtilisationCurve::new(points.collect()).ok()
        };
        let curves = taken.into_iter().filter_map(|(name, it)| Some((name, curve(it)?)));
        Utilisations { file: file.to_owned(), curves: curves.collect() }
    }

    /// How far measurements of the same lie apart: of each two equal members of a set, on equal
    /// gpulets, the relative difference of what they suffered.
    #[must_use]
    pub fn repeats(&self) -> Vec<f64> {
        let mut apart = Vec::new();
        for set in &self.sets {
            for (at, one) in set.members.iter().enumerate() {
                let same = |it: &&SetMember| it.member == one.member && it.sm_count == one.sm_count;
                let twins = set.members[at + 1..].iter().filter(same);
                apart.extend(twins.map(|two| (two.slowdown / one.slowdown - 1.0).abs()));
            }
        }
        apart
    }
}
