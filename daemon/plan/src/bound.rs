//! How few devices any plan can do with.

#[cfg(feature = "solver")]
mod linear;

#[cfg(feature = "solver")]
pub use self::linear::linear;

use crate::problem::{Model, Problem};

/// A fluid lower bound on the devices: every model split at will over its best gpulets, which
/// are divisible, undisturbed, and share out time as well as memory without loss.
///
/// With several device types each request goes where it is cheapest. Two things are scarce on a
/// device, share and memory; for any weights of the two a plan's cost is at least that of the
/// cheapest gpulets, so the best weights give a bound that holds for time-shared gpulets too.
/// Networks give a bound of their own.
#[must_use]
pub fn fluid(problem: &Problem) -> f64 {
    let choices: Vec<_> = (0..problem.models.len()).map(|it| choices(problem, it)).collect();
    let cost = |weight: f64| -> f64 {
        let models = problem.models.iter().zip(&choices);
        models
            .map(|(model, choices)| {
                let each = choices.iter().map(|it| weight * it.1 + (1.0 - weight) * it.2);
                model.planned_rate * each.fold(f64::INFINITY, f64::min)
            })
            .sum()
    };
    // The cost is concave in the weight: ternary search finds its top, any point is a bound.
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let (left, right) = (low + (high - low) / 3.0, high - (high - low) / 3.0);
        if cost(left) < cost(right) { low = left } else { high = right }
    }
    // Of nothing, a sum is -0.
    cost(low).max(cost(1.0)).max(of_network(problem)) + 0.0
}

/// Devices whose networks together take in what is asked; 0 where one of a type is unlimited.
fn of_network(problem: &Problem) -> f64 {
    let limits = problem.devices.iter().map(|kind| kind.network_bits.unwrap_or(f64::INFINITY));
    let bits = |model: &Model| model.planned_rate * model.costs.request_bytes as f64 * 8.0;
    problem.models.iter().map(bits).sum::<f64>() / limits.fold(0.0, f64::max)
}

/// Device type, and parts of a device's share and memory that a request per second of a model
/// takes, for every gpulet that can meet its SLO.
fn choices(problem: &Problem, model: usize) -> Vec<(usize, f64, f64)> {
    let mut choices = Vec::new();
    for (device, kind) in problem.devices.iter().enumerate() {
        for share in 0..kind.shares_pct.len() {
            let found = choice(problem, device, model, share);
            choices.extend(found.map(|(of_share, of_memory)| (device, of_share, of_memory)));
        }
    }
    choices
}

fn choice(problem: &Problem, device: usize, model: usize, share: usize) -> Option<(f64, f64)> {
    let kind = &problem.devices[device];
    let throughput = best_throughput(problem, device, model, share)?;
    let memory_mb = kind.context_mb + problem.models[model].costs.memory_mb;
    if memory_mb > kind.memory_mb {
        return None;
    }
    let part_of_memory = memory_mb as f64 / kind.memory_mb as f64;
    let part_of_share = f64::from(kind.shares_pct[share]) / 100.0;
    Some((part_of_share / throughput, part_of_memory / throughput))
}

/// Most requests per second that an undisturbed gpulet serves within the SLO.
#[must_use]
pub fn best_throughput(
    problem: &Problem,
    device: usize,
    model: usize,
    share: usize,
) -> Option<f64> {
    (1..=problem.settings.batch_max)
        .map(|batch| (batch, problem.planned_ms(device, model, share, batch, 1.0)))
        .take_while(|&(_, ms)| 2.0 * ms <= problem.models[model].slo_ms)
        .map(|(batch, ms)| f64::from(batch) * 1000.0 / ms)
        .reduce(f64::max)
}

/// Least part of a device that a request per second of a model takes; infinite for one that no
/// gpulet can serve.
#[must_use]
pub fn least_share(problem: &Problem, model: usize) -> f64 {
    let mut least = f64::INFINITY;
    for (device, kind) in problem.devices.iter().enumerate() {
        for (share, share_pct) in kind.shares_pct.iter().enumerate() {
            if let Some(throughput) = best_throughput(problem, device, model, share) {
                least = least.min(f64::from(*share_pct) / 100.0 / throughput);
            }
        }
    }
    least
}
