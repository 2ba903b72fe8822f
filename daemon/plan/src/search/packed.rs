//! Our policy: any number of gpulets on a device, and batch, share and time searched together.
//!
//! A round takes one device after the other: of all layouts it takes the one whose gpulets, each
//! filled with what is worth most of what is left, are worth most together. A request is worth
//! the part of a device that it takes. What is left counts only once, which is what
//! makes remainders of several models end up together on one gpulet. Rounds are repeated with
//! the worths shaken, with worse or milder neighbours, and with more worth for what came last;
//! then a few devices at a time are planned anew.

mod exhaustive;
mod fill;
#[cfg(feature = "solver")]
mod integer;
mod layouts;
mod ledger;
mod replan;
mod round;
mod step;
mod tables;
mod thin;

pub use self::exhaustive::exhaustive;
#[cfg(feature = "solver")]
pub use self::integer::integer;
pub use self::replan::replan;
pub use self::step::step;

use fastrand::Rng;

use self::exhaustive::Cover;
use self::layouts::LAYOUTS_MAX;
use self::ledger::Ledger;
use self::round::{Chosen, Style, round};
use self::tables::Tables;
use self::thin::thin;
use super::{Infeasible, Policy, elastic};
use crate::plan::Filled;
use crate::problem::Problem;

/// Whether rounds reckon with the worst neighbours, in turn: where models press unequally they are
/// rarely met, so most rounds reckon with usual ones and make batches fit.
const WORST: [bool; 4] = [false, false, true, false];

/// Part of a rate that is planned for on top, against what rounding a duty cycle takes.
const MARGIN: f64 = 5e-6;

/// What sums of parts of devices may be off by.
const ROUNDING: f64 = 1e-6;

/// Seed of the shaken worths: the same problem has the same plan.
const SEED: u64 = 0x6770_756c_6574;

/// Most rounds of a search.
const TURNS_MAX: usize = 240;

/// So few models are looked at in every combination, if there are not too many of these.
const FEW_MODELS: usize = 3;
const FEW_DEVICES: usize = 4;
const FEW_COMBINATIONS: usize = 1 << 21;

/// Devices among which head-room is looked for: with more, one more or less changes little.
const ROOMY_DEVICES_MAX: usize = 16;

/// Models times devices up to which other policies are tried as well.
const OTHERS_MAX: usize = 1000;

/// Devices among which a few are planned anew again and again: with more, one counts for little.
const THIN_DEVICES_MAX: usize = 64;

/// What planning a few anew may take, in parts of what rounds may.
const THIN_EFFORT: f64 = 0.3;

/// Policies that may have a plan where rounds find none, or one for fewer devices.
const OTHERS: [Policy; 4] =
    [Policy::Elastic, Policy::ElasticNoInterference, Policy::Greedy, Policy::Temporal];

/// Rounds for each head-room that is tried, and how close to the highest it comes.
const ROOMY_TURNS: usize = 12;
const ROOMY_STEP: f64 = 1.02;

/// Devices that serve the problem, as few as are found, and of so few those with most head-room.
///
/// # Errors
/// What is in the way.
pub fn search(problem: &Problem, bound: f64) -> Result<Vec<Filled>, Infeasible> {
    Infeasible::look(problem, bound)?;
    let tables = Tables::all(problem);
    let Some(mut ledger) = fewest(problem, &tables, bound) else {
        let count = problem.device_count();
        return otherwise(problem, f64::from(count), count)
            .ok_or(Infeasible::Devices { bound, count });
    };
    // Other rules are quick to try where there is little to place: they may do with fewer.
    let fewer = ledger.filled.len().saturating_sub(1);
    if fewer as f64 >= bound
        && problem.models.len() * fewer <= OTHERS_MAX
        && let Some(found) = otherwise(problem, bound, fewer as u32)
    {
        return Ok(found);
    }
    ledger.spread();
    Ok(roomiest(problem, &tables, bound, ledger).filled)
}

/// At least `least` and at most `most` devices by other policies, as few as they get by with.
fn otherwise(problem: &Problem, least: f64, mut most: u32) -> Option<Vec<Filled>> {
    let mut fewest = None;
    for policy in OTHERS {
        if let Ok(found) = elastic::search(problem, least, policy, most) {
            most = found.len().saturating_sub(1) as u32;
            fewest = Some(found);
        }
        if f64::from(most) < least {
            break;
        }
    }
    fewest
}

/// As few devices as are found.
fn fewest<'a>(problem: &'a Problem, tables: &[Tables], bound: f64) -> Option<Ledger<'a>> {
    let available = tables[0].available();
    let there = |more: &dyn Fn(u32) -> u32| -> Vec<u32> {
        available.iter().map(|&count| if count == 0 { 0 } else { more(count) }).collect()
    };
    // How many there are must not change where the search goes, as long as they are enough. Of
    // what rounds fill beyond them, some can be given back.
    let limits = [there(&|_| u32::MAX), available.clone(), there(&|count| count + count / 8 + 1)];
    let ways = if available.len() == 1 { 1 } else { limits.len() };
    limits[..ways].iter().find_map(|limit| {
        let ledger = fewest_of(problem, tables, bound, limit)?;
        let used = |kind: usize| ledger.filled.iter().filter(|it| it.device == kind).count();
        let enough = (0..available.len()).all(|kind| used(kind) <= available[kind] as usize);
        enough.then_some(ledger)
    })
}

/// As few as are found where there are at most so many of each type.
fn fewest_of<'a>(
    problem: &'a Problem,
    tables: &[Tables],
    bound: f64,
    limit: &[u32],
) -> Option<Ledger<'a>> {
    let rates: Vec<f64> =
        problem.models.iter().map(|model| model.planned_rate * (1.0 + MARGIN)).collect();
    let goal = Goal { turns: TURNS_MAX, least: (bound - 1e-9).ceil() as u32, most: u32::MAX };
    let best = rounds(problem, tables, &rates, limit, goal)?;
    let mut filled: Vec<Filled> = best.iter().flat_map(filled).collect();
    let fewer = filled.len().saturating_sub(1);
    if rates.len() <= FEW_MODELS && fewer <= FEW_DEVICES && fewer as f64 >= bound {
        // So few models that no stone need be left unturned.
        if let Cover::Found(found) = exhaustive::cover(&tables[0], &rates, fewer, FEW_COMBINATIONS)
        {
            filled = found;
        }
    }
    let mut ledger = Ledger::new(problem, filled);
    ledger.vacate();
    if ledger.filled.len() <= THIN_DEVICES_MAX {
        let work_max = work(tables) + (THIN_EFFORT * effort(rates.len())) as u64;
        thin(problem, tables, &mut ledger, (goal.least, limit), work_max);
    }
    let missing = ledger.missing();
    let whole = (0..missing.len()).all(|it| missing[it] <= MARGIN / 2.0 * rates[it]);
    whole.then_some(ledger)
}

/// As many devices as `found` has, that carry more than is asked: of all models by the same
/// factor, the highest that is found.
fn roomiest<'a>(
    problem: &'a Problem,
    tables: &[Tables],
    bound: f64,
    found: Ledger<'a>,
) -> Ledger<'a> {
    let count = found.filled.len();
    let (mut best, mut low) = (found, 1.0);
    if count == 0 || count > ROOMY_DEVICES_MAX {
        return best;
    }
    let goal = Goal { turns: ROOMY_TURNS, least: count as u32, most: count as u32 };
    let mut high = count as f64 / bound;
    while high > low * ROOMY_STEP {
        let factor = (low * high).sqrt();
        let rates: Vec<f64> =
            (0..best.carried.len()).map(|model| best.goal(model) * factor).collect();
        let Some(chosen) = rounds(problem, tables, &rates, &tables[0].available(), goal) else {
            high = factor;
            continue;
        };
        low = factor;
        let filled = chosen.iter().flat_map(filled).collect();
        let mut ledger = Ledger::new(problem, filled);
        ledger.spread();
        if ledger.least_head_room() > best.least_head_room() {
            best = ledger;
        }
    }
    best
}

/// Work after which no further round is begun. Among few models there is much to try, in about
/// 50 ms; among many a round takes long, and more of them gain little.
fn effort(models: usize) -> f64 {
    let of_fifty = models.max(1) as f64 / 50.0;
    1e6 * of_fifty.powf(-2.7).min(20.0).max(of_fifty.powf(1.5))
}

/// When a search ends.
#[derive(Debug, Clone, Copy)]
struct Goal {
    /// After so many rounds.
    turns: usize,
    /// When no more devices than that are needed.
    least: u32,
    /// More devices than that are of no use.
    most: u32,
}

fn count(chosen: &[Chosen]) -> u32 {
    chosen.iter().map(|it| it.times).sum()
}

fn rounds(
    problem: &Problem,
    tables: &[Tables],
    rates: &[f64],
    available: &[u32],
    goal: Goal,
) -> Option<Vec<Chosen>> {
    let models = rates.len();
    let mut rng = Rng::with_seed(SEED);
    let mildest = &tables[tables.len() - 1];
    let takes: Vec<f64> = (0..models).map(|it| mildest.devices(it, rates[it])).collect();
    let taken: f64 = takes.iter().sum();
    if taken > f64::from(goal.most) + ROUNDING {
        return None;
    }
    let least = goal.least.max((taken - ROUNDING).ceil() as u32);
    let work_max = work(tables) + effort(models) as u64;
    let mut best: Option<Vec<Chosen>> = None;
    let mut lateness = vec![0.0; models];
    for turn in 0..goal.turns {
        if turn > 0 && work(tables) > work_max {
            break;
        }
        let tables = if WORST[turn % WORST.len()] { &tables[0] } else { mildest };
        let mut worth = worths(tables, rates, &takes, turn, &mut rng);
        worth.iter_mut().zip(&lateness).for_each(|(worth, late)| *worth *= 1.0 + 0.5 * late);
        let style = Style {
            worth,
            memory_price: if turn % 2 == 0 { 0.35 } else { 0.7 * rng.f64() },
            seeds: if models <= 32 { 3 } else { 2 },
            companions: if models <= 32 { 12 } else { 8 },
            layouts: if models <= 32 { LAYOUTS_MAX } else { 8 },
            devices_max: best.as_ref().map_or(goal.most, |it| count(it) - 1),
        };
        // What a plan for a little more needs, this one needs at most.
        let more = if turn % 4 == 3 { 1.0 + 0.12 * rng.f64() } else { 1.0 };
        let asked: Vec<f64> = rates.iter().map(|rate| rate * more).collect();
        let Some(found) = round(problem, tables, &style, &asked, available) else { continue };
        lateness.fill(0.0);
        for &(model, served) in found.last().iter().flat_map(|it| &it.carried) {
            lateness[model] += (served / rates[model]).min(1.0);
        }
        let done = count(&found) <= least;
        best = Some(found);
        if done {
            break;
        }
    }
    best
}

/// What a request of each model is worth in a round: what it takes of a device at the rate that
/// is asked, a little more for what it takes of the memory, or what it takes at the least.
fn worths(tables: &Tables, rates: &[f64], takes: &[f64], turn: usize, rng: &mut Rng) -> Vec<f64> {
    let memory_mb = tables.kinds.iter().map(|kind| kind.memory_mb).fold(1.0, f64::max);
    let network_bits = tables.kinds.iter().map(|kind| kind.network_bits).fold(1.0, f64::max);
    let of_memory = if turn == 0 { 0.3 } else { rng.f64() };
    let of_network = if turn == 0 { 0.3 } else { rng.f64() };
    let worth = |model: usize| {
        let shaken = if turn == 0 { 1.0 } else { 1.0 + 0.6 * rng.f64() };
        let needed = takes[model] + of_memory * tables.memory_mb[model] / memory_mb;
        let brought = of_network * tables.request_bits[model] / network_bits;
        match turn % 3 {
            0 | 2 if rates[model] > 0.0 => (needed / rates[model] + brought) * shaken,
            _ => (tables.price[model] + brought) * shaken,
        }
    };
    (0..rates.len()).map(worth).collect()
}

fn filled(chosen: &Chosen) -> Vec<Filled> {
    vec![chosen.device.clone(); chosen.times as usize]
}

fn work(tables: &[Tables]) -> u64 {
    tables.iter().map(|it| it.work.get()).sum()
}
