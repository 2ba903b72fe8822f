//! A problem in a file of our own: several device types, profiles as the daemon measures them.
//!
//! TOML by hand, JSON by machine; both are this structure, and unknown keys are errors. It may
//! name files with what `gpuletctl profile` and `gpuletctl fit` found; who reads it reads those
//! too, and adds them with [`Document::measured`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::demand::{Demand, HeadRoom};
use crate::input::InputError;
use crate::interference::{Additive, Interference, Tempers, Undisturbed};
use crate::measured::MeasuredModel;
use crate::problem::{
    DEVICES_MAX, DeviceType, GPULETS_PER_DEVICE_MAX, Model, ModelCosts, Problem, Settings,
    merge_demands,
};
use crate::profile::{LatencyProfile, ProfilePoint};
use crate::table::{LatencyTable, TABLE_BATCH_MAX};

/// A problem as a file states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Factor on every latency; 1 where profiles are 99th percentiles already.
    #[serde(default = "one")]
    pub latency_ratio: f64,
    /// Most models that take turns on one gpulet.
    #[serde(default = "members")]
    pub models_per_gpulet_max: usize,
    /// Largest batch.
    #[serde(default = "batch")]
    pub batch_max: u32,
    /// Whether to plan for the 99th percentile of Poisson arrivals instead of the mean.
    #[serde(default = "yes")]
    pub head_room: bool,
    /// Types of devices, in order of their numbers.
    pub device: Vec<Device>,
    /// Models and what is asked of them.
    pub model: Vec<Asked>,
    /// Measured latencies, beside those of [`Device::profiles`].
    #[serde(default)]
    pub profile: Vec<Profile>,
    /// What models do to each other; nothing where it is left out.
    #[serde(default)]
    pub interference: Option<Tempers>,
    /// Or a file of that, relative to this one.
    #[serde(default)]
    pub tempers: Option<String>,
}

/// Equal devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// Name of the type.
    pub name: String,
    /// How many.
    pub count: u32,
    /// Memory for models, MB.
    pub memory_mb: u64,
    /// Memory that each gpulet takes for itself, MB.
    pub context_mb: u64,
    /// Most gpulets of one device.
    #[serde(default = "gpulets")]
    pub gpulets_max: usize,
    /// Folder with a `<name>.json` for every model that is asked for, relative to this file.
    #[serde(default)]
    pub profiles: Option<String>,
}

/// A model and what is asked of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked {
    /// Its name.
    pub name: String,
    /// Requests per second.
    pub rate: f64,
    /// From arrival to answer, ms.
    pub slo_ms: f64,
    /// Memory of an instance, MB; 0 for what was measured.
    #[serde(default)]
    pub memory_mb: u64,
}

/// Latencies of a model at one share of one device type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the device type.
    pub device: String,
    /// Name of the model.
    pub model: String,
    /// Share, percent.
    pub share_pct: u32,
    /// Measured; the 99th percentiles count.
    pub points: Vec<ProfilePoint>,
}

fn one() -> f64 {
    1.0
}

fn members() -> usize {
    8
}

fn batch() -> u32 {
    32
}

fn gpulets() -> usize {
    GPULETS_PER_DEVICE_MAX
}

fn yes() -> bool {
    true
}

impl Document {
    /// Adds what was measured of a model on a device type, and says how much memory an instance
    /// took, in MB; `found` was checked.
    pub fn measured(&mut self, device: &str, model: &str, found: &MeasuredModel) -> u64 {
        for share in found.shares.iter().filter(|share| !share.points.is_empty()) {
            let mut points = share.planned_points();
            points.retain(|point| point.rows <= TABLE_BATCH_MAX);
            let (device, model) = (device.to_owned(), model.to_owned());
            let share_pct = share.share_pct.into();
            self.profile.push(Profile { device, model, share_pct, points });
        }
        let bytes = found.shares.iter().map(|share| share.memory_bytes).max().unwrap_or(0);
        bytes.div_ceil(1_000_000).max(1)
    }

    /// What is still named instead of being there.
    fn unread(&self) -> Option<&'static str> {
        let profiles = self.device.iter().any(|device| device.profiles.is_some());
        let fields = [("device.profiles", profiles), ("tempers", self.tempers.is_some())];
        fields.into_iter().find(|it| it.1).map(|it| it.0)
    }
}

/// The problem that `document` poses; `file` is its name, for errors.
///
/// # Errors
/// File, field and rule.
pub fn problem(file: &str, document: &Document) -> Result<Problem, InputError> {
    let wrong = |field: &str, rule: String| Err(InputError::whole(file, field, rule));
    if let Some(field) = document.unread() {
        return wrong(field, "must have been read with the file, was not".into());
    }
    if !(1.0..=1000.0).contains(&document.latency_ratio) {
        let ratio = document.latency_ratio;
        return wrong("latency_ratio", format!("must be 1 to 1000, is {ratio}"));
    }
    if !(1..=TABLE_BATCH_MAX).contains(&document.batch_max) {
        let batch = document.batch_max;
        return wrong("batch_max", format!("must be 1 to {TABLE_BATCH_MAX}, is {batch}"));
    }
    if document.models_per_gpulet_max == 0 {
        return wrong("models_per_gpulet_max", "must be at least 1, is 0".into());
    }
    let tempers = document.interference.clone().unwrap_or_default();
    if let Err(rule) = tempers.check() {
        return wrong("interference", rule);
    }
    let models = models(file, document)?;
    let count: u64 = document.device.iter().map(|device| u64::from(device.count)).sum();
    if count == 0 || count > u64::from(DEVICES_MAX) {
        return wrong("device.count", format!("must be 1 to {DEVICES_MAX} together, is {count}"));
    }
    let mut devices = Vec::new();
    for (index, device) in document.device.iter().enumerate() {
        if document.device[..index].iter().any(|other| other.name == device.name) {
            return wrong("device.name", format!("{:?} must be given once", device.name));
        }
        devices.push(device_type(file, document, device, &models, &tempers)?);
    }
    let slots = document.device.iter().map(|device| device.gpulets_max).min().unwrap_or(1);
    if !(1..=GPULETS_PER_DEVICE_MAX).contains(&slots) {
        let rule = format!("must be 1 to {GPULETS_PER_DEVICE_MAX}, is {slots}");
        return wrong("device.gpulets_max", rule);
    }
    let settings = Settings {
        latency_ratio: document.latency_ratio,
        models_per_gpulet_max: document.models_per_gpulet_max,
        gpulets_per_device_max: slots,
        batch_max: document.batch_max,
        head_room: if document.head_room { HeadRoom::PoissonP99 } else { HeadRoom::None },
    };
    Ok(Problem::new(devices, models, settings))
}

fn models(file: &str, document: &Document) -> Result<Vec<Model>, InputError> {
    let mut memory: BTreeMap<&str, u64> = BTreeMap::new();
    for asked in &document.model {
        let known = memory.insert(&asked.name, asked.memory_mb);
        if asked.memory_mb == 0 || known.is_some_and(|it| it != asked.memory_mb) {
            let rule = "memory_mb must be at least 1, and the same everywhere";
            return Err(InputError::whole(file, &asked.name, rule));
        }
    }
    let demands: Vec<Demand> = document
        .model
        .iter()
        .map(|it| Demand { model: it.name.clone(), rate: it.rate, slo_ms: it.slo_ms })
        .collect();
    let head_room = if document.head_room { HeadRoom::PoissonP99 } else { HeadRoom::None };
    let merged = merge_demands(file, &demands)?;
    Ok(merged
        .into_iter()
        .map(|demand| Model {
            costs: ModelCosts {
                memory_mb: memory.get(demand.model.as_str()).copied().unwrap_or(1),
                batching_ms: Vec::new(),
                request_bytes: 0,
            },
            planned_rate: head_room.inflate(demand.rate),
            name: demand.model,
            rate: demand.rate,
            slo_ms: demand.slo_ms,
        })
        .collect())
}

fn device_type(
    file: &str,
    document: &Document,
    device: &Device,
    models: &[Model],
    tempers: &Tempers,
) -> Result<DeviceType, InputError> {
    let mut latency = LatencyTable::new();
    for profile in document.profile.iter().filter(|it| it.device == device.name) {
        let Profile { model, share_pct, points, .. } = profile;
        let field = format!("profile of {model} at {share_pct} %");
        let wrong = |rule: String| InputError::whole(file, &field, rule);
        if !(1..=100).contains(share_pct) {
            return Err(wrong("share_pct must be 1 to 100".into()));
        }
        LatencyProfile::new(model, points).map_err(|error| wrong(error.to_string()))?;
        for point in points {
            if point.rows > TABLE_BATCH_MAX {
                return Err(wrong(format!("rows must be at most {TABLE_BATCH_MAX}")));
            }
            if !latency.insert(model, *share_pct, point.rows, point.p99_ns as f64 / 1e6) {
                return Err(wrong(format!("rows {} must be given once", point.rows)));
            }
        }
    }
    if let Some(model) = models.iter().find(|model| !latency.contains(&model.name)) {
        let rule = format!("must have a profile on {:?}, has none", device.name);
        return Err(InputError::whole(file, &model.name, rule));
    }
    let interference: Box<dyn Interference> = if tempers.models.is_empty() {
        Box::new(Undisturbed)
    } else {
        let of_model = |model: &Model| {
            let rule = "must have its interference given where others have, has not";
            let found = tempers.models.get(&model.name).copied();
            found.ok_or_else(|| InputError::whole(file, &model.name, rule))
        };
        let of_models = models.iter().map(of_model).collect::<Result<_, _>>()?;
        Box::new(Additive::new(tempers.share_power, of_models))
    };
    Ok(DeviceType {
        name: device.name.clone(),
        count: device.count,
        memory_mb: device.memory_mb,
        context_mb: device.context_mb,
        network_bits: None,
        shares_pct: latency.shares_pct(),
        latency,
        profiles: models.iter().map(|model| model.name.clone()).collect(),
        interference,
    })
}
