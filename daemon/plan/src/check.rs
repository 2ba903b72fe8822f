//! An independent look at a plan: nothing here relies on how plans are made.

use std::fmt;

use crate::interference::Running;
use crate::plan::{Plan, PlannedDevice, PlannedGpulet};
use crate::problem::{DeviceType, Problem};

/// Rounding that a plan file may bring: parts of the quantity.
const SLACK: f64 = 1e-6;

/// A rule that a plan breaks.
#[derive(Debug, Clone, PartialEq)]
pub struct Violation {
    /// Device and gpulet, or model.
    pub place: String,
    /// What must hold, and what does.
    pub rule: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}: {}", self.place, self.rule)
    }
}

/// Everything in `plan` that breaks a rule of `problem`: rates covered, occupancy at most 1,
/// duty and execution beside the neighbours within the SLO, shares, memory and network within
/// the device, devices that there are. Latencies that the plan states are not believed.
#[must_use]
pub fn check(problem: &Problem, plan: &Plan) -> Vec<Violation> {
    let mut found = Vec::new();
    let mut throughput = vec![0.0; problem.models.len()];
    for (index, device) in plan.devices.iter().enumerate() {
        let place = format!("device {}", device.device);
        if plan.devices[..index].iter().any(|other| other.device == device.device) {
            found.push(Violation { place: place.clone(), rule: "must be given once".into() });
        }
        match kind_of(problem, device) {
            Some(kind) => {
                Checker { problem, kind, found: &mut found, place }.device(device, &mut throughput)
            }
            None => found.push(Violation {
                place,
                rule: format!("must be the number of a device of type {:?}, is not", device.kind),
            }),
        }
    }
    for (model, carried) in problem.models.iter().zip(throughput) {
        if carried < model.planned_rate * (1.0 - SLACK) {
            let rule = format!(
                "must get {:.3} requests/s, gets {carried:.3} ({:.1} %)",
                model.planned_rate,
                100.0 * carried / model.planned_rate
            );
            found.push(Violation { place: model.name.clone(), rule });
        }
    }
    found
}

fn kind_of<'a>(problem: &'a Problem, device: &PlannedDevice) -> Option<&'a DeviceType> {
    let mut first = 0;
    for kind in &problem.devices {
        if device.device >= first && device.device - first < kind.count {
            return (kind.name == device.kind).then_some(kind);
        }
        first += kind.count;
    }
    None
}

struct Checker<'a> {
    problem: &'a Problem,
    kind: &'a DeviceType,
    found: &'a mut Vec<Violation>,
    place: String,
}

impl Checker<'_> {
    fn violated(&mut self, rule: String) {
        self.found.push(Violation { place: self.place.clone(), rule });
    }

    fn device(&mut self, device: &PlannedDevice, throughput: &mut [f64]) {
        let shares: u32 = device.gpulets.iter().map(|gpulet| gpulet.share_pct).sum();
        if shares > 100 {
            self.violated(format!("shares must be at most 100 % together, are {shares}"));
        }
        let count = device.gpulets.len();
        let count_max = self.problem.settings.gpulets_per_device_max;
        if count > count_max {
            self.violated(format!("must have at most {count_max} gpulets, has {count}"));
        }
        self.memory(device);
        let before: Vec<f64> = throughput.to_vec();
        for (index, gpulet) in device.gpulets.iter().enumerate() {
            let place = format!("device {}, gpulet {index}", device.device);
            let others = device.gpulets.iter().enumerate().filter(|it| it.0 != index);
            let others: Vec<&PlannedGpulet> = others.map(|it| it.1).collect();
            let (problem, kind) = (self.problem, self.kind);
            Checker { problem, kind, found: self.found, place }.gpulet(gpulet, &others, throughput);
        }
        if let Some(limit) = self.kind.network_bits {
            let carried = self.problem.models.iter().zip(throughput.iter().zip(&before));
            let bits: f64 = carried
                .map(|(model, (after, before))| {
                    (after - before) * model.costs.request_bytes as f64 * 8.0
                })
                .sum();
            if bits > limit * (1.0 + SLACK) {
                self.violated(format!("network must bring at most {limit} bit/s, brings {bits}"));
            }
        }
    }

    fn memory(&mut self, device: &PlannedDevice) {
        let instances = device.gpulets.iter().flat_map(|gpulet| &gpulet.instances);
        let models: u64 = instances
            .filter_map(|instance| self.problem.model_index(&instance.model))
            .map(|model| self.problem.models[model].costs.memory_mb)
            .sum();
        let used_mb = models + self.kind.context_mb * device.gpulets.len() as u64;
        if used_mb > self.kind.memory_mb {
            let limit_mb = self.kind.memory_mb;
            self.violated(format!("memory must be at most {limit_mb} MB, is {used_mb}"));
        }
    }

    fn gpulet(
        &mut self,
        gpulet: &PlannedGpulet,
        others: &[&PlannedGpulet],
        throughput: &mut [f64],
    ) {
        if !(gpulet.duty_ms > 0.0 && gpulet.duty_ms.is_finite()) {
            return self.violated(format!("duty must be above 0 ms, is {}", gpulet.duty_ms));
        }
        let count = gpulet.instances.len();
        let count_max = self.problem.settings.models_per_gpulet_max;
        if count > count_max {
            self.violated(format!("must host at most {count_max} models, hosts {count}"));
        }
        let mut busy_ms = 0.0;
        let mut slo: Option<(&str, f64)> = None;
        for (index, instance) in gpulet.instances.iter().enumerate() {
            let name = instance.model.as_str();
            let Some(model) = self.problem.model_index(name) else {
                return self.violated(format!("model {name:?} must be asked for, is not"));
            };
            if gpulet.instances[..index].iter().any(|other| other.model == name) {
                self.violated(format!("model {name:?} must be hosted once"));
            }
            match self.latency_ms(model, instance.batch, gpulet.share_pct, others) {
                Some(ms) => busy_ms += ms,
                None => {
                    let (batch, share) = (instance.batch, gpulet.share_pct);
                    let rule = "must have a measured latency, has none";
                    return self.violated(format!("{name} batch {batch} at {share} %: {rule}"));
                }
            }
            let slo_ms = self.problem.models[model].slo_ms;
            if slo.is_none_or(|it| slo_ms < it.1) {
                slo = Some((name, slo_ms));
            }
            throughput[model] += gpulet.throughput(instance.batch);
        }
        if busy_ms > gpulet.duty_ms * (1.0 + SLACK) {
            let duty_ms = gpulet.duty_ms;
            self.violated(format!("execution must be at most the duty {duty_ms}, is {busy_ms} ms"));
        }
        if let Some((name, slo_ms)) = slo
            && gpulet.duty_ms + busy_ms > slo_ms * (1.0 + SLACK)
        {
            let response_ms = gpulet.duty_ms + busy_ms;
            self.violated(format!(
                "duty and execution must be at most {slo_ms} ms for {name}, are {response_ms}"
            ));
        }
    }

    /// From the table and the interference model alone.
    fn latency_ms(
        &self,
        model: usize,
        batch: u32,
        share_pct: u32,
        others: &[&PlannedGpulet],
    ) -> Option<f64> {
        if batch == 0 || batch > self.problem.settings.batch_max {
            return None;
        }
        let kind = self.kind;
        let solo_ms = kind.latency.latency_ms(&kind.profiles[model], share_pct, batch)?;
        let mut pressure: Option<f64> = None;
        for other in others {
            let mut emitted = 0.0_f64;
            for instance in &other.instances {
                // A model that nobody asked for is told of at its own place.
                let Some(model) = self.problem.model_index(&instance.model) else { continue };
                let (batch, share_pct) = (instance.batch, other.share_pct);
                let running = Running { model, batch, share_pct };
                emitted = emitted.max(kind.interference.pressure(running));
            }
            pressure = Some(pressure.map_or(emitted, |it| kind.interference.join(it, emitted)));
        }
        let running = Running { model, batch, share_pct };
        let factor = pressure.map_or(1.0, |it| kind.interference.factor(running, it));
        let batching_ms = self.problem.models[model].costs.batching_ms(batch);
        Some((solo_ms * factor + batching_ms) * self.problem.settings.latency_ratio)
    }
}
