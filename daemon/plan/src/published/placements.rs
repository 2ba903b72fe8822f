//! Placement files: `gpu,percent,dedup,model,batch,duty_ms` a line.
//!
//! What is left of a device stands there as model `reserved`, batch 32, duty 0. `dedup` counts
//! gpulets of equal share on one device from 0.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write;

use crate::bound;
use crate::input::{InputError, records};
use crate::plan::{Plan, PlannedDevice, PlannedGpulet, PlannedInstance, gap, planned_models};
use crate::problem::{DEVICES_MAX, Problem};
use crate::table::TABLE_BATCH_MAX;

/// What a placement file holds where there is no plan.
pub const EMPTY: &str = "EMPTY";

const RESERVED: &str = "reserved";

/// The placement file of `plan`.
#[must_use]
pub fn placements(problem: &Problem, plan: &Plan) -> String {
    let mut text = String::new();
    for number in 0..problem.device_count() {
        let device = plan.devices.iter().find(|device| device.device == number);
        let mut seen: BTreeMap<u32, u32> = BTreeMap::new();
        let mut rest_pct = 100;
        for gpulet in device.iter().flat_map(|device| &device.gpulets) {
            let share_pct = gpulet.share_pct;
            let dedup = seen.entry(share_pct).or_default();
            for instance in &gpulet.instances {
                let PlannedInstance { model, batch, .. } = instance;
                // Writing to a string does not fail.
                let _ = writeln!(
                    text,
                    "{number},{share_pct},{dedup},{model},{batch},{:.6}",
                    gpulet.duty_ms
                );
            }
            *dedup += 1;
            rest_pct -= share_pct.min(rest_pct);
        }
        if rest_pct > 0 {
            let dedup = seen.get(&rest_pct).copied().unwrap_or(0);
            let _ = writeln!(text, "{number},{rest_pct},{dedup},{RESERVED},32,{:.6}", 0.0);
        }
    }
    text
}

/// The plan that a placement file describes, for `problem`; rates and latencies it does not have
/// come from there. `EMPTY`, or a file without lines, is a plan without devices.
///
/// # Errors
/// File, line, field and rule.
pub fn place(file: &str, text: &str, problem: &Problem) -> Result<Plan, InputError> {
    let mut gpulets: BTreeMap<(u32, Reverse<u32>, u32), PlannedGpulet> = BTreeMap::new();
    let text = if text.trim() == EMPTY { "" } else { text };
    for record in records(file, text) {
        if record.len() != 6 {
            let rule = format!(
                "must have 6 columns: gpu, percent, dedup, model, batch, duty; has {}",
                record.len()
            );
            return Err(record.error("line", rule));
        }
        let device = record.whole(0, "gpu", (0, DEVICES_MAX - 1))?;
        let share_pct = record.whole(1, "percent", (1, 100))?;
        let dedup = record.whole(2, "dedup", (0, 99))?;
        let model = record.text(3, "model")?;
        let batch = record.whole(4, "batch", (1, TABLE_BATCH_MAX))?;
        let duty_ms = record.number(5, "duty", (0.0, 3.6e6))?;
        if model == RESERVED {
            continue;
        }
        let gpulet = gpulets.entry((device, Reverse(share_pct), dedup)).or_insert(PlannedGpulet {
            share_pct,
            duty_ms,
            instances: Vec::new(),
        });
        if gpulet.duty_ms != duty_ms {
            let rule = format!("must be {} as on the gpulet's first line", gpulet.duty_ms);
            return Err(record.error("duty", rule));
        }
        gpulet.instances.push(PlannedInstance {
            model: model.to_owned(),
            batch,
            latency_ms: 0.0,
            interference: 1.0,
        });
    }
    let mut devices: Vec<PlannedDevice> = Vec::new();
    for ((device, ..), gpulet) in gpulets {
        if devices.last().is_none_or(|last| last.device != device) {
            let kind = kind_name(problem, device);
            devices.push(PlannedDevice { device, kind, gpulets: Vec::new() });
        }
        if let Some(last) = devices.last_mut() {
            last.gpulets.push(gpulet);
        }
    }
    let bound = bound::fluid(problem);
    let gap = gap(devices.len(), bound);
    let models = planned_models(problem, &devices);
    Ok(Plan { epoch: 0, policy: "file".into(), devices, bound, gap, models })
}

fn kind_name(problem: &Problem, device: u32) -> String {
    let mut first = 0;
    for kind in &problem.devices {
        if device - first < kind.count {
            return kind.name.clone();
        }
        first += kind.count;
    }
    "none".to_owned()
}
