//! A problem from the texts of the published files.

use std::collections::BTreeMap;

use super::{
    BATCH_MAX, CONTEXT_MB, Gathering, IMAGES_224, InputShapes, Known, MODELS, Memory, Scheduling,
    constants, latencies, utilisations,
};
use crate::demand::{Demand, HeadRoom};
use crate::input::InputError;
use crate::interference::{Interference, Linear, Undisturbed};
use crate::problem::{DeviceType, GPULETS_PER_DEVICE_MAX, Model, ModelCosts, Problem, Settings};

/// Name and text of a file.
pub type Text = (String, String);

/// The files of one device type.
#[derive(Debug, Clone)]
pub struct DeviceTexts {
    /// Memory of the device, MB; a tenth of it is left free.
    pub memory_mb: u64,
    /// Latencies.
    pub latency: Text,
    /// Constants and utilisations; `None` where interference is off.
    pub interference: Option<(Text, Text)>,
}

/// Everything that the published scheduler reads.
#[derive(Debug, Clone)]
pub struct Texts {
    /// Name of the file with the rates, for errors.
    pub rates_file: String,
    /// What it holds.
    pub rates: Vec<Demand>,
    /// The scheduler's flags.
    pub scheduling: Scheduling,
    /// Device types by name.
    pub devices: BTreeMap<String, DeviceTexts>,
    /// Memory of the models.
    pub memory: Memory,
    /// Gathering times by file stem.
    pub batching: BTreeMap<&'static str, Vec<f64>>,
    /// Input shapes and the bits per second of a device's network, to reckon with a network.
    pub network: Option<(InputShapes, f64)>,
}

/// The problem that the files pose.
///
/// # Errors
/// File, line, field and rule.
pub fn problem(texts: &Texts) -> Result<Problem, InputError> {
    let demands = crate::problem::merge_demands(&texts.rates_file, &texts.rates)?;
    let head_room = HeadRoom::PoissonP99;
    let mut models = Vec::new();
    for Demand { model: name, rate, slo_ms } in demands {
        let costs = costs(texts, &name)?;
        let planned_rate = head_room.inflate(rate);
        models.push(Model { name, rate, planned_rate, slo_ms, costs });
    }
    let mut devices = Vec::new();
    for (name, count) in &texts.scheduling.devices {
        devices.push(device(texts, name, *count, &models)?);
    }
    let settings = Settings {
        latency_ratio: texts.scheduling.latency_ratio,
        models_per_gpulet_max: texts.scheduling.models_per_gpulet_max,
        gpulets_per_device_max: GPULETS_PER_DEVICE_MAX,
        batch_max: BATCH_MAX,
        head_room,
    };
    Ok(Problem::new(devices, models, settings))
}

/// What is known of a model by its published name; other names are images of 224 x 224.
fn known(name: &str) -> Known {
    let image = Gathering::Measured(IMAGES_224, 1.9);
    let found = MODELS.into_iter().find(|known| known.name == name);
    found.unwrap_or(Known { name: "", profile: "", gathering: image })
}

fn profile_name(name: &str) -> String {
    match known(name).profile {
        "" => name.to_owned(),
        profile => profile.to_owned(),
    }
}

fn costs(texts: &Texts, name: &str) -> Result<ModelCosts, InputError> {
    let batching_ms = match known(name).gathering {
        Gathering::Fixed(ms) => vec![ms],
        Gathering::Measured(stem, factor) => {
            let times = texts.batching.get(stem).ok_or_else(|| {
                InputError::whole(&format!("{stem}.txt"), name, "must be there, is not")
            })?;
            times.iter().map(|ms| ms * factor).collect()
        }
    };
    let request_bytes = match &texts.network {
        Some((shapes, _)) => shapes.of(name)?,
        None => 0,
    };
    Ok(ModelCosts { memory_mb: texts.memory.of(name)?, batching_ms, request_bytes })
}

fn device(
    texts: &Texts,
    name: &str,
    count: u32,
    models: &[Model],
) -> Result<DeviceType, InputError> {
    let device = texts.devices.get(name).ok_or_else(|| {
        InputError::whole("device-config", name, "must be one of the types, is not")
    })?;
    let (file, text) = &device.latency;
    let latency = latencies(file, text)?;
    let mut profiles = Vec::new();
    for model in models {
        let profile = profile_name(&model.name);
        if !latency.contains(&profile) {
            return Err(InputError::whole(file, &profile, "must have latency lines, has none"));
        }
        profiles.push(profile);
    }
    let interference: Box<dyn Interference> = match &device.interference {
        None => Box::new(Undisturbed),
        Some((of_constants, of_utilisations)) => {
            let utilisations = utilisations(&of_utilisations.0, &of_utilisations.1)?;
            let curves = models.iter().map(|model| utilisations.of(&model.name).cloned());
            let constants = constants(&of_constants.0, &of_constants.1)?;
            Box::new(Linear::new(constants, curves.collect::<Result<_, _>>()?))
        }
    };
    let mut shares_pct = latency.shares_pct();
    if !texts.scheduling.divided {
        shares_pct.retain(|&share| share == 100);
    }
    if shares_pct.is_empty() {
        return Err(InputError::whole(file, "share", "must be measured at 100 %, is not"));
    }
    Ok(DeviceType {
        name: name.to_owned(),
        count,
        memory_mb: device.memory_mb * 9 / 10,
        context_mb: CONTEXT_MB,
        network_bits: texts.network.as_ref().map(|network| network.1),
        shares_pct,
        latency,
        profiles,
        interference,
    })
}
