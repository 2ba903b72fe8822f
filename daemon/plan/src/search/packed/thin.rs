//! Fewer devices, by planning a few of them anew.

use fastrand::Rng;

use super::ledger::Ledger;
use super::round::{Style, round};
use super::tables::Tables;
use super::{SEED, filled, work};
use crate::plan::Filled;
use crate::problem::Problem;

/// Devices that are planned anew together, at most.
const TOGETHER_MAX: usize = 6;

/// Serves what a few devices carry with fewer, and again, as long as there are more devices than
/// `least` and less work was done than `work_max`. Of each type there are at most `limit`. Those
/// that would be missed least go first.
pub(super) fn thin(
    problem: &Problem,
    tables: &[Tables],
    ledger: &mut Ledger<'_>,
    (least, limit): (u32, &[u32]),
    work_max: u64,
) {
    let mut rng = Rng::with_seed(SEED);
    while ledger.filled.len() > least.max(1) as usize && work(tables) < work_max {
        let tables = &tables[rng.usize(0..tables.len())];
        // Looking at all devices is work too.
        tables.worked(ledger.filled.len() + tables.price.len());
        let old = take(tables, ledger, &mut rng);
        let style = Style {
            worth: tables.price.iter().map(|price| price * (1.0 + 0.6 * rng.f64())).collect(),
            memory_price: 0.7 * rng.f64(),
            seeds: 3,
            companions: 12,
            layouts: 32,
            devices_max: old.len() as u32 - 1,
        };
        let rates = ledger.missing();
        let mut available = limit.to_vec();
        for device in &ledger.filled {
            available[device.device] = available[device.device].saturating_sub(1);
        }
        match round(problem, tables, &style, &rates, &available) {
            Some(new) => {
                new.iter().flat_map(filled).for_each(|it| ledger.push(it));
                ledger.vacate();
            }
            None => old.into_iter().for_each(|it| ledger.push(it)),
        }
    }
}

/// Takes two devices or a few more out of `ledger`.
fn take(tables: &Tables, ledger: &mut Ledger<'_>, rng: &mut Rng) -> Vec<Filled> {
    let count = ledger.filled.len();
    let together = rng.usize(2..=TOGETHER_MAX).min(count);
    let mut order: Vec<(f64, usize)> =
        (0..count).map(|at| (ledger.missed(at, &tables.price) * (0.3 + rng.f64()), at)).collect();
    if together < count {
        order.select_nth_unstable_by(together, |one, two| one.0.total_cmp(&two.0));
    }
    let mut places: Vec<usize> = order[..together].iter().map(|it| it.1).collect();
    places.sort_unstable();
    places.into_iter().rev().map(|at| ledger.take(at)).collect()
}
