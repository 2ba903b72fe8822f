//! Why a model gets what it gets.

use std::fmt;

use crate::plan::Plan;
use crate::problem::{DEVICES_MAX, Problem};
use crate::search::Policy;

/// What keeps a gpulet from carrying more of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binds {
    /// A larger batch would take longer than the SLO allows.
    Slo,
    /// There is no larger batch in the profile.
    Batch,
    /// Others on the gpulet take the rest of the time.
    Turns,
    /// Nothing: it has room for more.
    Nothing,
}

impl fmt::Display for Binds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Binds::Slo => "the SLO binds",
            Binds::Batch => "the largest batch binds",
            Binds::Turns => "the turns of others bind",
            Binds::Nothing => "nothing binds",
        })
    }
}

/// One place of a model, and what binds there.
#[derive(Debug, Clone, PartialEq)]
pub struct Reason {
    /// Number of the device.
    pub device: u32,
    /// Share of the gpulet, percent.
    pub share_pct: u32,
    /// Rows of a batch.
    pub batch: u32,
    /// Predicted latency, ms.
    pub latency_ms: f64,
    /// Factor of the neighbours on the measured latency.
    pub interference: f64,
    /// Time from arrival to answer at most, ms.
    pub response_ms: f64,
    /// What is left of the SLO, ms.
    pub room_ms: f64,
    /// Requests per second.
    pub throughput: f64,
    /// What binds.
    pub binds: Binds,
}

impl fmt::Display for Reason {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            out,
            "GPU {}, {} %: {:.1}/s in batches of {}, {:.3} ms each (interference {:.3}), answers \
             within {:.3} ms, {:.3} ms to spare; {}",
            self.device,
            self.share_pct,
            self.throughput,
            self.batch,
            self.latency_ms,
            self.interference,
            self.response_ms,
            self.room_ms,
            self.binds
        )
    }
}

/// Every place of a model in a plan for `problem`; `model` is its number there.
#[must_use]
pub fn why(problem: &Problem, plan: &Plan, model: usize) -> Vec<Reason> {
    let asked = &problem.models[model];
    let mut reasons = Vec::new();
    for device in &plan.devices {
        let Some(kind) = problem.devices.iter().position(|it| it.name == device.kind) else {
            continue;
        };
        for gpulet in &device.gpulets {
            for instance in gpulet.instances.iter().filter(|it| it.model == asked.name) {
                let response_ms = gpulet.duty_ms + gpulet.busy_ms();
                let next = instance.batch + 1;
                let share = problem.share_index(kind, gpulet.share_pct);
                let next_ms = share
                    .filter(|_| next <= problem.settings.batch_max)
                    .map(|it| problem.planned_ms(kind, model, it, next, instance.interference))
                    .filter(|ms| ms.is_finite());
                let shortest_slo_ms = gpulet
                    .instances
                    .iter()
                    .filter_map(|it| problem.model_index(&it.model))
                    .map(|it| problem.models[it].slo_ms)
                    .fold(f64::INFINITY, f64::min);
                let binds = match next_ms {
                    None => Binds::Batch,
                    Some(ms) => {
                        let busy_ms = gpulet.busy_ms() + ms - instance.latency_ms;
                        if 2.0 * busy_ms <= shortest_slo_ms {
                            Binds::Nothing
                        } else if gpulet.instances.len() > 1 {
                            Binds::Turns
                        } else {
                            Binds::Slo
                        }
                    }
                };
                reasons.push(Reason {
                    device: device.device,
                    share_pct: gpulet.share_pct,
                    batch: instance.batch,
                    latency_ms: instance.latency_ms,
                    interference: instance.interference,
                    response_ms,
                    room_ms: asked.slo_ms - response_ms,
                    throughput: gpulet.throughput(instance.batch),
                    binds,
                });
            }
        }
    }
    reasons
}

/// The smallest changes, one at a time, that would make room for a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Relief {
    /// Devices of the last type that would do.
    pub devices: Option<u32>,
    /// Part of all rates that can be served with the devices there are.
    pub load: Option<f64>,
}

impl fmt::Display for Relief {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let devices = self.devices.map(|count| format!("{count} devices would do"));
        let load =
            self.load.map(|load| format!("{:.1} % of the rates can be served", 100.0 * load));
        let all: Vec<String> = devices.into_iter().chain(load).collect();
        out.write_str(if all.is_empty() { "nothing simple would help" } else { "" })?;
        out.write_str(&all.join("; "))
    }
}

/// What would make room for a plan of `policy`. `pose` makes the problem with other counts of
/// its last device type, and a factor on all rates.
#[must_use]
pub fn relief(policy: Policy, pose: &dyn Fn(u32, f64) -> Problem, devices: u32) -> Relief {
    let most = devices.max(1).saturating_mul(64).min(DEVICES_MAX);
    let enough = policy.plan(&pose(most, 1.0)).ok();
    let needed = enough.map(|plan| {
        let (mut low, mut high) = (devices, plan.devices.len() as u32);
        while low + 1 < high {
            let middle = u32::midpoint(low, high);
            if policy.plan(&pose(middle, 1.0)).is_ok() { high = middle } else { low = middle }
        }
        high
    });
    let (mut low, mut high) = (0.0, 1.0);
    while high - low > 0.005 {
        let middle = f64::midpoint(low, high);
        if policy.plan(&pose(devices, middle)).is_ok() { low = middle } else { high = middle }
    }
    Relief { devices: needed, load: (low > 0.0).then_some(low) }
}
