//! Ways to divide a device.

use crate::bound::best_throughput;
use crate::problem::Problem;

/// Most layouts that are tried for one device.
pub(super) const LAYOUTS_MAX: usize = 96;

/// Ways to divide a device into shares that leave no room for another one, as indices of the
/// shares, largest first. Where a fine grain offers too many, shares that serve no model well go,
/// but each stays in halves that fill a device.
pub(super) fn layouts_of(problem: &Problem, device: usize) -> Vec<Vec<usize>> {
    let shares = &problem.devices[device].shares_pct;
    let slots_max = problem.settings.gpulets_per_device_max;
    let mut useful: Vec<(usize, u32)> = shares.iter().copied().enumerate().rev().collect();
    let mut layouts = Vec::new();
    divide(&useful, 100, slots_max, &mut Vec::new(), &mut layouts);
    if layouts.len() <= LAYOUTS_MAX {
        return layouts;
    }
    let halves = halves(shares, slots_max);
    let merits: Vec<f64> = (0..shares.len()).map(|share| merit(problem, device, share)).collect();
    while useful.len() > 2 && layouts.len() + halves.len() > LAYOUTS_MAX {
        let merit = |at: &usize| merits[useful[*at].0];
        // Of equal ones the smallest goes.
        let least = (0..useful.len()).rev().min_by(|one, two| merit(one).total_cmp(&merit(two)));
        useful.remove(least.unwrap_or(0));
        layouts.clear();
        divide(&useful, 100, slots_max, &mut Vec::new(), &mut layouts);
    }
    layouts.extend(halves);
    layouts.sort_unstable();
    layouts.dedup();
    layouts
}

/// Each share with the largest one that fits beside it, if any does.
fn halves(shares: &[u32], slots_max: usize) -> Vec<Vec<usize>> {
    let beside = |share: usize| {
        let fits = shares[..=share].iter().rposition(|other| shares[share] + other <= 100);
        fits.filter(|_| slots_max > 1).map_or(vec![share], |other| vec![share, other])
    };
    (0..shares.len()).map(beside).collect()
}

/// The share on which a model, alone on a device, is served best.
pub(super) fn alone(problem: &Problem, device: usize, model: usize) -> Option<usize> {
    let shares = 0..problem.devices[device].shares_pct.len();
    let carried = |share| best_throughput(problem, device, model, share);
    let served = shares.filter_map(|share| Some((carried(share)?, share)));
    served.max_by(|one, two| one.0.total_cmp(&two.0)).map(|it| it.1)
}

/// How well a share serves the model that it suits best, relative to that model's best share.
fn merit(problem: &Problem, device: usize, share: usize) -> f64 {
    let shares = &problem.devices[device].shares_pct;
    let density = |model: usize, share: usize| {
        let carried = best_throughput(problem, device, model, share).unwrap_or(0.0);
        carried / f64::from(shares[share])
    };
    (0..problem.models.len())
        .map(|model| {
            let best = (0..shares.len()).map(|it| density(model, it)).fold(1e-12, f64::max);
            density(model, share) / best
        })
        .sum()
}

fn divide(
    offered: &[(usize, u32)],
    room_pct: u32,
    slots_max: usize,
    chosen: &mut Vec<usize>,
    layouts: &mut Vec<Vec<usize>>,
) {
    if layouts.len() > LAYOUTS_MAX {
        return;
    }
    let least = offered.iter().map(|it| it.1).min().unwrap_or(101);
    if chosen.len() == slots_max || room_pct < least {
        layouts.push(chosen.clone());
        return;
    }
    for (at, &(share, pct)) in offered.iter().enumerate() {
        if pct <= room_pct {
            chosen.push(share);
            divide(&offered[at..], room_pct - pct, slots_max, chosen, layouts);
            chosen.pop();
        }
    }
}
