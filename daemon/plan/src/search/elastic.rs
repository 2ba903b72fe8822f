//! The published elastic partitioning, and what it becomes with some of it switched off.
//!
//! A device is one gpulet of 100 %, or two that add up to it. Models come in ascending order of
//! rate x SLO. Each is split into gpulets that it saturates, of the share whose next step up
//! returns most, and a remainder; these are placed by best fit, then in what is empty, then
//! merged, and at last by taking turns on gpulets in use. Where the published tool let a plan
//! pass that missed its rates or SLOs, here it does not: what interference takes from a
//! neighbour is placed again, and a plan that does not hold is tried with more devices.

mod estimate;
mod place;
mod share;
mod state;

use self::estimate::Estimator;
use self::state::State;
use super::{Infeasible, Policy};
use crate::check::check;
use crate::plan::{Filled, Plan};
use crate::problem::Problem;

/// Rate that counts as nothing, requests per second.
const NOTHING: f64 = 1e-6;

/// What is switched on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    /// A device may be divided.
    pub divided: bool,
    /// Interference counts while placing, not only when all is placed.
    pub interference: bool,
    /// Smallest sufficient shares, no turns: the greedy variant.
    pub greedy: bool,
}

impl Rules {
    fn of(policy: Policy) -> Self {
        Self {
            divided: policy != Policy::Temporal,
            interference: policy == Policy::Elastic,
            greedy: policy == Policy::Greedy,
        }
    }
}

/// At most `most` devices that serve the problem by the rules of `policy`, as few as it gets by
/// with.
///
/// # Errors
/// What is in the way.
pub fn search(
    problem: &Problem,
    bound: f64,
    policy: Policy,
    most: u32,
) -> Result<Vec<Filled>, Infeasible> {
    Infeasible::look(problem, bound)?;
    let rules = Rules::of(policy);
    let estimator = Estimator::new(problem, rules);
    let mut count = ((bound - 1e-9).ceil() as u32).clamp(1, most.max(1));
    loop {
        if let Some(filled) = attempt(problem, &estimator, rules, count) {
            let plan = Plan::assemble(problem, policy.name(), &filled, bound);
            if check(problem, &plan).is_empty() {
                return Ok(filled);
            }
        }
        if count >= most {
            return Err(Infeasible::Devices { bound, count: most });
        }
        count = (count + (count / 32).max(1)).min(most);
    }
}

fn attempt(
    problem: &Problem,
    estimator: &Estimator<'_>,
    rules: Rules,
    count: u32,
) -> Option<Vec<Filled>> {
    let mut state = State::empty(problem, rules, count);
    let mut order: Vec<usize> = (0..problem.models.len()).collect();
    let weight = |model: usize| problem.models[model].rate * problem.models[model].slo_ms;
    order.sort_by(|&one, &two| weight(one).total_cmp(&weight(two)).then(two.cmp(&one)));
    // What rounding a duty cycle may take comes on top.
    let goal = |model: usize| problem.models[model].planned_rate * (1.0 + 5e-6);
    for &model in &order {
        state.add(estimator, model, goal(model))?;
    }
    // Whoever searched blind finds out now.
    state.rules.interference = true;
    if !(0..state.devices.len()).all(|device| state.settle(device)) {
        return None;
    }
    // What neighbours have lost to interference since they were placed.
    for _ in 0..4 {
        let mut whole = true;
        for &model in &order {
            let lost = goal(model) - state.throughput(model);
            if lost > NOTHING {
                whole = false;
                state.add_rest(estimator, model, lost)?;
            }
        }
        if whole {
            break;
        }
    }
    Some(state.filled())
}
