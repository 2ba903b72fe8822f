//! A plan: which model runs on which gpulet of which device, at which batch and duty cycle.

use serde::{Deserialize, Serialize};

use crate::problem::Problem;

/// A whole assignment; immutable once made. Serialises as JSON.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Counts the plans of one daemon; 0 for one that stands alone.
    pub epoch: u64,
    /// Name of the policy that made it.
    pub policy: String,
    /// Devices in use, in order of their number.
    pub devices: Vec<PlannedDevice>,
    /// Devices that no plan for the same problem can do without: a fluid bound, not rounded.
    pub bound: f64,
    /// Devices used over `bound`, minus 1.
    pub gap: f64,
    /// What each model gets, in order of their names.
    pub models: Vec<PlannedModel>,
}

/// A device that a plan uses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedDevice {
    /// Number of the device, from 0 over all types.
    pub device: u32,
    /// Name of its type.
    pub kind: String,
    /// Its gpulets, largest first.
    pub gpulets: Vec<PlannedGpulet>,
}

/// A gpulet and what takes turns on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedGpulet {
    /// Share of the device, percent.
    pub share_pct: u32,
    /// Period in which every instance runs one batch, ms.
    pub duty_ms: f64,
    /// Its instances.
    pub instances: Vec<PlannedInstance>,
}

/// A model on a gpulet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedInstance {
    /// Name of the model.
    pub model: String,
    /// Rows of a batch.
    pub batch: u32,
    /// Predicted latency of that batch beside its neighbours, ms, latency ratio included.
    pub latency_ms: f64,
    /// Of that, the factor that the neighbours put on the measured latency.
    pub interference: f64,
}

/// What a plan promises a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlannedModel {
    /// Its name.
    pub model: String,
    /// Requests per second that were asked for.
    pub rate: f64,
    /// Requests per second that were planned for.
    pub planned_rate: f64,
    /// Requests per second that its instances carry together.
    pub throughput: f64,
    /// Longest time from arrival to answer on any of its gpulets, ms.
    pub response_ms: f64,
    /// What it may take, ms.
    pub slo_ms: f64,
}

impl PlannedGpulet {
    /// Sum of the latencies of one turn of each instance, ms.
    #[must_use]
    pub fn busy_ms(&self) -> f64 {
        self.instances.iter().map(|instance| instance.latency_ms).sum()
    }

    /// Requests per second of an instance with that batch.
    #[must_use]
    pub fn throughput(&self, batch: u32) -> f64 {
        f64::from(batch) * 1000.0 / self.duty_ms
    }
}

/// A gpulet as a search leaves it: numbers instead of names, duty still open.
#[derive(Debug, Clone, PartialEq)]
pub struct Slot {
    /// Index into the shares of the device type.
    pub share: usize,
    /// Models and their batches.
    pub members: Vec<(usize, u32)>,
    /// Period, ms; `None` for as short as the batches allow.
    pub duty_ms: Option<f64>,
}

/// A device as a search leaves it.
#[derive(Debug, Clone, PartialEq)]
pub struct Filled {
    /// Index of the device type.
    pub device: usize,
    /// Its gpulets.
    pub slots: Vec<Slot>,
}

/// Joined pressure on each slot of a device from all its other slots; `None` where it is alone.
#[must_use]
pub fn pressures(problem: &Problem, filled: &Filled) -> Vec<Option<f64>> {
    let kind = &problem.devices[filled.device];
    let emitted: Vec<f64> = filled
        .slots
        .iter()
        .map(|slot| {
            let share_pct = kind.shares_pct[slot.share];
            slot.members
                .iter()
                .map(|&(model, batch)| {
                    let running = crate::interference::Running { model, batch, share_pct };
                    kind.interference.pressure(running)
                })
                // One of them runs at a time.
                .fold(0.0, f64::max)
        })
        .collect();
    (0..emitted.len())
        .map(|own| {
            let others = (0..emitted.len()).filter(|&at| at != own).map(|at| emitted[at]);
            others.reduce(|one, two| kind.interference.join(one, two))
        })
        .collect()
}

/// Latencies of a slot's members under a pressure, with the factors.
#[must_use]
pub fn latencies(
    problem: &Problem,
    device: usize,
    slot: &Slot,
    pressure: Option<f64>,
) -> Vec<(f64, f64)> {
    slot.members
        .iter()
        .map(|&(model, batch)| {
            let factor =
                pressure.map_or(1.0, |it| problem.factor(device, model, slot.share, batch, it));
            (problem.planned_ms(device, model, slot.share, batch, factor), factor)
        })
        .collect()
}

impl Plan {
    /// The plan that a search's result stands for. Devices are numbered within their types.
    #[must_use]
    pub fn assemble(problem: &Problem, policy: &str, filled: &[Filled], bound: f64) -> Self {
        let mut firsts = Vec::new();
        let mut next = 0;
        for kind in &problem.devices {
            firsts.push(next);
            next += kind.count;
        }
        let mut devices = Vec::new();
        for one in filled.iter().filter(|one| one.slots.iter().any(|it| !it.members.is_empty())) {
            let device = firsts[one.device];
            firsts[one.device] += 1;
            devices.push(planned_device(problem, device, one));
        }
        devices.sort_by_key(|one| one.device);
        let gap = gap(devices.len(), bound);
        let models = planned_models(problem, &devices);
        Self { epoch: 0, policy: policy.to_owned(), devices, bound, gap, models }
    }

    /// Sum of the shares in use, percent of one device.
    #[must_use]
    pub fn shares_pct(&self) -> u32 {
        self.devices.iter().flat_map(|it| &it.gpulets).map(|gpulet| gpulet.share_pct).sum()
    }
}

/// Devices used over the bound, minus 1; 0 where nothing is asked.
#[must_use]
pub fn gap(devices: usize, bound: f64) -> f64 {
    if bound > 0.0 { devices as f64 / bound - 1.0 } else { 0.0 }
}

fn planned_device(problem: &Problem, device: u32, filled: &Filled) -> PlannedDevice {
    let kind = &problem.devices[filled.device];
    let pressures = pressures(problem, filled);
    let mut gpulets: Vec<PlannedGpulet> = filled
        .slots
        .iter()
        .zip(pressures)
        .filter(|(slot, _)| !slot.members.is_empty())
        .map(|(slot, pressure)| {
            let costs = latencies(problem, filled.device, slot, pressure);
            let busy_ms: f64 = costs.iter().map(|cost| cost.0).sum();
            let instances = slot.members.iter().zip(costs);
            PlannedGpulet {
                share_pct: kind.shares_pct[slot.share],
                // Six decimals are what the published file keeps.
                duty_ms: (slot.duty_ms.unwrap_or(0.0).max(busy_ms) * 1e6 - 1e-4).ceil() / 1e6,
                instances: instances
                    .map(|(&(model, batch), (latency_ms, interference))| PlannedInstance {
                        model: problem.models[model].name.clone(),
                        batch,
                        latency_ms,
                        interference,
                    })
                    .collect(),
            }
        })
        .collect();
    gpulets.sort_by_key(|gpulet| std::cmp::Reverse(gpulet.share_pct));
    PlannedDevice { device, kind: kind.name.clone(), gpulets }
}

/// What the gpulets of `devices` come to for each model.
#[must_use]
pub fn planned_models(problem: &Problem, devices: &[PlannedDevice]) -> Vec<PlannedModel> {
    let mut models: Vec<PlannedModel> = problem
        .models
        .iter()
        .map(|model| PlannedModel {
            model: model.name.clone(),
            rate: model.rate,
            planned_rate: model.planned_rate,
            throughput: 0.0,
            response_ms: 0.0,
            slo_ms: model.slo_ms,
        })
        .collect();
    for gpulet in devices.iter().flat_map(|device| &device.gpulets) {
        for instance in &gpulet.instances {
            let Some(index) = problem.model_index(&instance.model) else { continue };
            models[index].throughput += gpulet.throughput(instance.batch);
            let response_ms = gpulet.duty_ms + gpulet.busy_ms();
            models[index].response_ms = models[index].response_ms.max(response_ms);
        }
    }
    models
}
