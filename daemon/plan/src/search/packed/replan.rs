//! The next plan, where changes have a price.

use super::step::{kept, step_from};
use crate::bound;
use crate::check::check;
use crate::churn::{Churn, aligned, changes};
use crate::plan::{Filled, Plan, gap, latencies, planned_models, pressures};
use crate::problem::Problem;
use crate::search::{Infeasible, Policy};

/// The plan for `problem` with the least devices and changes from `running` together: `running`
/// as it is, a [`step`](super::step) from it, more and more of its worst used devices planned
/// anew, or all of them. Where changes are free it takes no more devices than a new plan; where
/// they cost more than the devices that they save, it leaves a plan that holds as it is.
///
/// # Errors
/// What is in the way.
pub fn replan(problem: &Problem, running: &Plan, churn: &Churn) -> Result<Plan, Infeasible> {
    let bound = bound::fluid(problem);
    Infeasible::look(problem, bound)?;
    let cost = |plan: &Plan| plan.devices.len() as f64 + churn.price(changes(running, plan));
    let mut best: Option<(f64, Plan)> = None;
    let mut offer = |plan: Plan| {
        let cost = cost(&plan);
        if best.as_ref().is_none_or(|best| cost < best.0) {
            best = Some((cost, plan));
        }
    };
    let same = untouched(problem, running, bound);
    if check(problem, &same).is_empty() {
        offer(same);
    }
    let devices = kept(problem, running);
    let order = worst_used(problem, &devices);
    let mut anew = 0;
    while anew < devices.len() {
        let mut stays = devices.clone();
        let mut dropped: Vec<usize> = order.iter().copied().take(anew).collect();
        dropped.sort_unstable();
        dropped.into_iter().rev().for_each(|at| drop(stays.remove(at)));
        if let Ok(plan) = step_from(problem, stays, bound) {
            offer(aligned(problem, running, plan));
        }
        anew = (anew * 2).max(1);
    }
    let whole = Policy::Packed.plan(problem);
    let failed = whole.map(|plan| offer(aligned(problem, running, plan))).err();
    match (best, failed) {
        (Some((_, plan)), _) => Ok(Plan { epoch: running.epoch + 1, ..plan }),
        (None, Some(why)) => Err(why),
        (None, None) => Err(Infeasible::Devices { bound, count: problem.device_count() }),
    }
}

fn untouched(problem: &Problem, running: &Plan, bound: f64) -> Plan {
    Plan {
        epoch: running.epoch,
        policy: running.policy.clone(),
        devices: running.devices.clone(),
        bound,
        gap: gap(running.devices.len(), bound),
        models: planned_models(problem, &running.devices),
    }
}

/// Positions of `devices`, those that carry what is worth least first.
fn worst_used(problem: &Problem, devices: &[Filled]) -> Vec<usize> {
    let price: Vec<f64> =
        (0..problem.models.len()).map(|model| bound::least_share(problem, model)).collect();
    let worth = |device: &Filled| -> f64 {
        let slots = device.slots.iter().zip(pressures(problem, device));
        slots
            .map(|(slot, pressure)| {
                let costs = latencies(problem, device.device, slot, pressure);
                let duty_ms: f64 = costs.iter().map(|cost| cost.0).sum();
                let members = slot.members.iter();
                let worth = members.map(|&(model, batch)| f64::from(batch) * price[model]);
                1000.0 * worth.sum::<f64>() / duty_ms
            })
            .sum()
    };
    let mut order: Vec<(f64, usize)> = devices.iter().map(worth).zip(0..).collect();
    order.sort_by(|one, two| one.0.total_cmp(&two.0).then(one.1.cmp(&two.1)));
    order.into_iter().map(|it| it.1).collect()
}
