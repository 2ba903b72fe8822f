//! From a running plan to the next, changing as little as it takes.

use super::fill::{Left, Room, fill};
use super::ledger::Ledger;
use super::round::{Style, round};
use super::tables::Tables;
use super::{MARGIN, filled};
use crate::bound;
use crate::churn::aligned;
use crate::plan::{Filled, Plan, Slot};
use crate::problem::Problem;
use crate::search::Infeasible;

/// A plan for `problem` that keeps what runs: gpulets stay where they are, missing rates go to
/// larger batches, then to what is left of devices in use, then to further devices; devices that
/// others can make up for are given back. Devices keep their numbers.
///
/// # Errors
/// What is in the way.
pub fn step(problem: &Problem, running: &Plan) -> Result<Plan, Infeasible> {
    let bound = bound::fluid(problem);
    Infeasible::look(problem, bound)?;
    let plan = step_from(problem, kept(problem, running), bound)?;
    Ok(Plan { epoch: running.epoch + 1, ..aligned(problem, running, plan) })
}

/// The same from devices as they are, numbered anew.
pub(super) fn step_from(
    problem: &Problem,
    stays: Vec<Filled>,
    bound: f64,
) -> Result<Plan, Infeasible> {
    let mut ledger = Ledger::new(problem, stays);
    ledger.vacate();
    raise_batches(&mut ledger);
    let missing: Vec<f64> = ledger.missing();
    let wanted: Vec<bool> = missing.iter().map(|&rate| rate > 0.0).collect();
    if wanted.contains(&true) {
        let tables = Tables::of(problem, &wanted);
        let mut left = Left {
            rate: missing,
            worth: tables.price.clone(),
            active: Vec::new(),
            companions: Vec::new(),
        };
        use_rest(problem, &tables, &mut ledger, &mut left);
        add_devices(problem, &tables, &mut ledger, &left, bound)?;
    }
    Ok(Plan::assemble(problem, "packed", &ledger.filled, bound))
}

/// What of a running plan still means something. Devices keep their order.
pub(super) fn kept(problem: &Problem, running: &Plan) -> Vec<Filled> {
    let mut devices = Vec::new();
    for device in &running.devices {
        let Some(kind) = problem.devices.iter().position(|it| it.name == device.kind) else {
            continue;
        };
        let slots = device.gpulets.iter().filter_map(|gpulet| {
            let mut members: Vec<(usize, u32)> = Vec::new();
            for instance in &gpulet.instances {
                let sensible = (1..=problem.settings.batch_max).contains(&instance.batch);
                let model = problem.model_index(&instance.model).filter(|_| sensible);
                let new = model.filter(|&model| members.iter().all(|it| it.0 != model));
                members.extend(new.map(|model| (model, instance.batch)));
            }
            let share = problem.share_index(kind, gpulet.share_pct)?;
            // A duty cycle is stretched only where a network is limited.
            let limited = problem.devices[kind].network_bits.is_some();
            let duty_ms = limited.then_some(gpulet.duty_ms).filter(|it| it.is_finite());
            (!members.is_empty()).then_some(Slot { share, members, duty_ms })
        });
        let slots: Vec<Slot> = slots.collect();
        let used = devices.iter().filter(|it: &&Filled| it.device == kind).count();
        if !slots.is_empty() && used < problem.devices[kind].count as usize {
            devices.push(Filled { device: kind, slots });
        }
    }
    devices
}

fn raise_batches(ledger: &mut Ledger<'_>) {
    let short: Vec<bool> =
        (0..ledger.carried.len()).map(|it| ledger.carried[it] < ledger.goal(it)).collect();
    if !short.contains(&true) {
        return;
    }
    for at in 0..ledger.filled.len() {
        for slot in 0..ledger.filled[at].slots.len() {
            for member in 0..ledger.filled[at].slots[slot].members.len() {
                let model = ledger.filled[at].slots[slot].members[member].0;
                while short[model] && ledger.carried[model] < ledger.goal(model) {
                    let before = ledger.carried[model];
                    let mut raised = ledger.filled[at].clone();
                    raised.slots[slot].members[member].1 += 1;
                    let batch = raised.slots[slot].members[member].1;
                    if batch > ledger.batch_max()
                        || !ledger.replace(at, raised)
                        || ledger.carried[model] <= before
                    {
                        break;
                    }
                }
            }
        }
    }
}

/// Puts further gpulets on devices that have share and memory left.
fn use_rest(problem: &Problem, tables: &Tables, ledger: &mut Ledger<'_>, left: &mut Left) {
    for at in 0..ledger.filled.len() {
        loop {
            let device = &ledger.filled[at];
            let kind = &tables.kinds[device.device];
            let shares = &problem.devices[device.device].shares_pct;
            let used: u32 = device.slots.iter().map(|slot| shares[slot.share]).sum();
            let models = device.slots.iter().flat_map(|slot| &slot.members).map(|it| it.0);
            let used_mb = models.map(|it| tables.memory_mb[it]).sum::<f64>()
                + kind.context_mb * device.slots.len() as f64;
            let memory_mb = kind.memory_mb - used_mb;
            let least_pct = shares.first().copied().unwrap_or(100);
            if used + least_pct > 100 || memory_mb <= kind.context_mb {
                break;
            }
            left.rate = ledger.missing();
            left.active = (0..left.rate.len()).filter(|&it| left.rate[it] > 0.0).collect();
            left.companions = left.active.clone();
            left.companions.truncate(4);
            let network_bits = kind.network_bits - ledger.network_bits(at);
            let room = Room { memory_mb, network_bits, memory_price: 0.0 };
            let fitting = kind.classes.iter().filter(|class| class.share_pct + used <= 100);
            let best = fitting
                .filter_map(|class| Some((class, fill(tables, kind, class, left, room, 1)?)))
                .max_by(|one, two| one.1.value.total_cmp(&two.1.value));
            let Some((class, found)) = best.filter(|_| !left.active.is_empty()) else { break };
            let mut grown = device.clone();
            grown.slots.push(kind.slot(class, &found));
            if !ledger.replace(at, grown) {
                break;
            }
        }
    }
}

fn add_devices(
    problem: &Problem,
    tables: &Tables,
    ledger: &mut Ledger<'_>,
    left: &Left,
    bound: f64,
) -> Result<(), Infeasible> {
    let rates: Vec<f64> = ledger.missing().iter().map(|rate| rate * (1.0 + MARGIN)).collect();
    let style = Style {
        worth: left.worth.clone(),
        memory_price: 0.35,
        seeds: 1,
        companions: 6,
        layouts: 8,
        devices_max: u32::MAX,
    };
    let mut available: Vec<u32> = tables.kinds.iter().map(|kind| kind.count).collect();
    ledger.filled.iter().for_each(|device| available[device.device] -= 1);
    let added = round(problem, tables, &style, &rates, &available)
        .ok_or(Infeasible::Devices { bound, count: problem.device_count() })?;
    ledger.filled.extend(added.iter().flat_map(filled));
    Ok(())
}
