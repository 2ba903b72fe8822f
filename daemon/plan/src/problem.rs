//! What a plan is made for: devices with their profiles, and models with their demands.

use crate::demand::{Demand, HeadRoom, RATE_MAX, SLO_MAX_MS};
use crate::input::InputError;
use crate::interference::{Interference, Running};
use crate::table::LatencyTable;

/// Most devices of all types together.
pub const DEVICES_MAX: u32 = 1 << 20;
/// Most gpulets on one device that any mechanism offers.
pub const GPULETS_PER_DEVICE_MAX: usize = 32;

/// What a model costs wherever it runs.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelCosts {
    /// Memory of one instance, MB, without the context of its gpulet.
    pub memory_mb: u64,
    /// Time to gather a batch, ms, of 1, 2, 3... rows; the last one holds for what is larger.
    pub batching_ms: Vec<f64>,
    /// Bytes that a request brings over the network; 0 where it comes through shared memory.
    pub request_bytes: u64,
}

impl ModelCosts {
    /// Milliseconds to gather a batch.
    #[must_use]
    pub fn batching_ms(&self, batch: u32) -> f64 {
        let at = self.batching_ms.len().min(batch as usize);
        at.checked_sub(1).map_or(0.0, |index| self.batching_ms[index])
    }
}

/// A model that is to be served: all demands for it together.
#[derive(Debug, Clone, PartialEq)]
pub struct Model {
    /// Its name, unique in a problem.
    pub name: String,
    /// Requests per second that were asked for.
    pub rate: f64,
    /// Requests per second that a plan must carry.
    pub planned_rate: f64,
    /// Milliseconds from arrival to answer: the shortest of all demands.
    pub slo_ms: f64,
    /// What it costs.
    pub costs: ModelCosts,
}

/// A number of equal devices.
#[derive(Debug)]
pub struct DeviceType {
    /// Name of the type.
    pub name: String,
    /// How many there are.
    pub count: u32,
    /// Memory that models may use, MB.
    pub memory_mb: u64,
    /// Memory that every gpulet takes for itself, MB.
    pub context_mb: u64,
    /// Most bits per second that requests may bring to one device; `None` where they come
    /// through shared memory.
    pub network_bits: Option<f64>,
    /// Shares that the mechanism offers, percent, ascending.
    pub shares_pct: Vec<u32>,
    /// Measured latencies.
    pub latency: LatencyTable,
    /// Name under which each model of the problem stands in `latency`.
    pub profiles: Vec<String>,
    /// How gpulets of a device disturb each other.
    pub interference: Box<dyn Interference>,
}

/// What applies to all devices and models.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Factor on every latency, at least 1.
    pub latency_ratio: f64,
    /// Most models that take turns on one gpulet.
    pub models_per_gpulet_max: usize,
    /// Most gpulets of one device.
    pub gpulets_per_device_max: usize,
    /// Largest batch.
    pub batch_max: u32,
    /// What is planned for beyond the mean rate.
    pub head_room: HeadRoom,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            latency_ratio: 1.0,
            models_per_gpulet_max: 8,
            gpulets_per_device_max: GPULETS_PER_DEVICE_MAX,
            batch_max: 32,
            head_room: HeadRoom::PoissonP99,
        }
    }
}

/// Everything that a plan follows from.
#[derive(Debug)]
pub struct Problem {
    /// Types of devices, in order of their numbering.
    pub devices: Vec<DeviceType>,
    /// Models in order of their names.
    pub models: Vec<Model>,
    /// The rest.
    pub settings: Settings,
    /// Per device type: latency alone by model, share and batch; infinite where it cannot run.
    solo_ms: Vec<Vec<f64>>,
}

/// Adds up demands for the same model (the shortest SLO holds), sorts them by name, and leaves
/// out what nobody asks for.
///
/// # Errors
/// `file` and the demand that breaks a rule.
pub fn merge_demands(file: &str, demands: &[Demand]) -> Result<Vec<Demand>, InputError> {
    let mut merged: Vec<Demand> = Vec::new();
    for demand in demands {
        let Demand { model, rate, slo_ms } = demand;
        if !(0.0..=RATE_MAX).contains(rate) {
            let rule = format!("rate must be 0 to {RATE_MAX} requests/s, is {rate}");
            return Err(InputError::whole(file, model, rule));
        }
        if !(*slo_ms > 0.0 && *slo_ms <= SLO_MAX_MS) {
            let rule = format!("SLO must be above 0 and at most {SLO_MAX_MS} ms, is {slo_ms}");
            return Err(InputError::whole(file, model, rule));
        }
        if *rate > 0.0 {
            merged.push(demand.clone());
        }
    }
    // Sums of rates must not depend on the order in which they are given.
    merged.sort_by(|one, two| one.model.cmp(&two.model).then(one.rate.total_cmp(&two.rate)));
    merged.dedup_by(|later, kept| {
        let same = later.model == kept.model;
        if same {
            kept.rate += later.rate;
            kept.slo_ms = kept.slo_ms.min(later.slo_ms);
        }
        same
    });
    match merged.iter().find(|demand| demand.rate > RATE_MAX) {
        Some(demand) => {
            let rule = format!("rates together must be at most {RATE_MAX}, are {}", demand.rate);
            Err(InputError::whole(file, &demand.model, rule))
        }
        None => Ok(merged),
    }
}

impl Problem {
    /// A problem from parts that readers have checked.
    ///
    /// # Panics
    /// When a device type names no profile for some model, or has shares that are not ascending
    /// in 1 to 100, or models are not sorted and unique: a bug of whoever builds it.
    #[must_use]
    pub fn new(devices: Vec<DeviceType>, models: Vec<Model>, settings: Settings) -> Self {
        assert!(models.windows(2).all(|pair| pair[0].name < pair[1].name), "models by name");
        for device in &devices {
            assert_eq!(device.profiles.len(), models.len(), "a profile for each model");
            assert!(device.shares_pct.windows(2).all(|pair| pair[0] < pair[1]), "shares ascend");
            assert!(device.shares_pct.iter().all(|share| (1..=100).contains(share)), "shares");
        }
        let solo_ms = devices.iter().map(|device| solo(device, settings.batch_max)).collect();
        Self { devices, models, settings, solo_ms }
    }

    /// Devices of all types.
    #[must_use]
    pub fn device_count(&self) -> u32 {
        self.devices.iter().map(|device| device.count).sum()
    }

    /// Measured milliseconds of a batch alone; infinite where it cannot run.
    /// `share` is an index into the shares of the device type.
    #[must_use]
    pub fn solo_ms(&self, device: usize, model: usize, share: usize, batch: u32) -> f64 {
        let shares = self.devices[device].shares_pct.len();
        let batches = self.settings.batch_max as usize;
        self.solo_ms[device][(model * shares + share) * batches + batch as usize - 1]
    }

    /// Milliseconds to plan for: measured, times the interference factor, plus gathering the
    /// batch, times the latency ratio.
    #[must_use]
    pub fn planned_ms(
        &self,
        device: usize,
        model: usize,
        share: usize,
        batch: u32,
        factor: f64,
    ) -> f64 {
        let solo = self.solo_ms(device, model, share, batch);
        let batching = self.models[model].costs.batching_ms(batch);
        (solo * factor + batching) * self.settings.latency_ratio
    }

    /// The factor on `model`'s latency under a joined pressure.
    #[must_use]
    pub fn factor(
        &self,
        device: usize,
        model: usize,
        share: usize,
        batch: u32,
        pressure: f64,
    ) -> f64 {
        let share_pct = self.devices[device].shares_pct[share];
        self.devices[device].interference.factor(Running { model, batch, share_pct }, pressure)
    }

    /// Index of a share among those of a device type.
    #[must_use]
    pub fn share_index(&self, device: usize, share_pct: u32) -> Option<usize> {
        self.devices[device].shares_pct.binary_search(&share_pct).ok()
    }

    /// The model of that name.
    #[must_use]
    pub fn model_index(&self, name: &str) -> Option<usize> {
        self.models.binary_search_by(|model| model.name.as_str().cmp(name)).ok()
    }
}

fn solo(device: &DeviceType, batch_max: u32) -> Vec<f64> {
    let mut latencies = Vec::new();
    for profile in &device.profiles {
        for &share in &device.shares_pct {
            // Noise in a measurement must not make a larger batch look faster.
            let mut slowest = 0.0_f64;
            for batch in 1..=batch_max {
                let ms = device.latency.latency_ms(profile, share, batch);
                slowest = slowest.max(ms.unwrap_or(f64::INFINITY));
                latencies.push(slowest);
            }
        }
    }
    latencies
}
