//! Our policy: any number of gpulets on a device, and batch, share and time searched together.
//!
//! A round takes one device after the other: of all layouts it takes the one whose gpulets, each
//! filled with what is worth most of what is left, are worth most together. A request is worth
//! the least part of a device that could serve it. What is left counts only once, which is what
//! makes remainders of several models end up together on one gpulet. Rounds are repeated with
//! the worths shaken, and with more worth for what came last.

mod exhaustive;
mod fill;
#[cfg(feature = "solver")]
mod integer;
mod ledger;
mod replan;
mod round;
mod step;
mod tables;

pub use self::exhaustive::exhaustive;
#[cfg(feature = "solver")]
pub use self::integer::integer;
pub use self::replan::replan;
pub use self::step::step;

use fastrand::Rng;

use self::exhaustive::Cover;
use self::ledger::Ledger;
use self::round::{Chosen, Style, round};
use self::tables::Tables;
use super::{Infeasible, Policy, elastic};
use crate::plan::Filled;
use crate::problem::Problem;

/// Part of a rate that is planned for on top, against what rounding a duty cycle takes.
const MARGIN: f64 = 5e-6;

/// What sums of parts of devices may be off by.
const ROUNDING: f64 = 1e-6;

/// Seed of the shaken worths: the same problem has the same plan.
const SEED: u64 = 0x6770_756c_6574;

/// How much of the machine's time the search may take; a round costs more than the square of
/// the models.
const EFFORT: usize = 300_000;

/// So few models are looked at in every combination, if there are not too many of these.
const FEW_MODELS: usize = 3;
const FEW_DEVICES: usize = 4;
const FEW_COMBINATIONS: usize = 1 << 21;

/// Devices among which head-room is looked for: with more, one more or less changes little.
const ROOMY_DEVICES_MAX: usize = 16;

/// Devices among which the published rules are tried as well.
const PUBLISHED_DEVICES_MAX: u32 = 16;

/// Rounds for each head-room that is tried, and how close to the highest it comes.
const ROOMY_TURNS: usize = 12;
const ROOMY_STEP: f64 = 1.02;

/// Devices that serve the problem, as few as are found, and of so few those with most head-room.
///
/// # Errors
/// What is in the way.
pub fn search(problem: &Problem, bound: f64) -> Result<Vec<Filled>, Infeasible> {
    Infeasible::look(problem, bound)?;
    let tables = Tables::new(problem, &vec![true; problem.models.len()]);
    let found = fewest(problem, &tables, bound);
    // Among few devices the published rules are quick to try: they may do with fewer.
    let fewer = match &found {
        Some(ledger) => (ledger.filled.len() as u32).saturating_sub(1),
        None => problem.device_count(),
    };
    if f64::from(fewer) >= bound && (1..=PUBLISHED_DEVICES_MAX).contains(&fewer) {
        let published = elastic::search(problem, bound, Policy::Elastic, fewer);
        if published.is_ok() {
            return published;
        }
    }
    let Some(mut ledger) = found else {
        return Err(Infeasible::Devices { bound, count: problem.device_count() });
    };
    ledger.spread();
    Ok(roomiest(problem, &tables, bound, ledger).filled)
}

/// As few devices as are found.
fn fewest<'a>(problem: &'a Problem, tables: &Tables, bound: f64) -> Option<Ledger<'a>> {
    let rates: Vec<f64> =
        problem.models.iter().map(|model| model.planned_rate * (1.0 + MARGIN)).collect();
    let goal =
        Goal { turns: turns(rates.len()), least: (bound - 1e-9).ceil() as u32, most: u32::MAX };
    let available = tables.available();
    // Rounds reckon with the worst neighbours: of what they fill, some can be given back.
    let beyond: Vec<u32> = available.iter().map(|count| count + count / 8 + 1).collect();
    let best = rounds(problem, tables, &rates, &available, goal)
        .or_else(|| rounds(problem, tables, &rates, &beyond, goal))?;
    let mut filled: Vec<Filled> = best.iter().flat_map(|chosen| filled(tables, chosen)).collect();
    let fewer = filled.len().saturating_sub(1);
    if rates.len() <= FEW_MODELS && fewer <= FEW_DEVICES && fewer as f64 >= bound {
        // So few models that no stone need be left unturned.
        if let Cover::Found(found) = exhaustive::cover(tables, &rates, fewer, FEW_COMBINATIONS) {
            filled = found;
        }
    }
    let mut ledger = Ledger::new(problem, filled);
    ledger.vacate();
    let used = |kind: usize| ledger.filled.iter().filter(|it| it.device == kind).count();
    let there = (0..available.len()).all(|kind| used(kind) <= available[kind] as usize);
    there.then_some(ledger)
}

/// As many devices as `found` has, that carry more than is asked: of all models by the same
/// factor, the highest that is found.
fn roomiest<'a>(
    problem: &'a Problem,
    tables: &Tables,
    bound: f64,
    found: Ledger<'a>,
) -> Ledger<'a> {
    let count = found.filled.len();
    let (mut best, mut low) = (found, 1.0);
    if count == 0 || count > ROOMY_DEVICES_MAX {
        return best;
    }
    let turns = turns(best.carried.len()).min(ROOMY_TURNS);
    let goal = Goal { turns, least: count as u32, most: count as u32 };
    let mut high = count as f64 / bound;
    while high > low * ROOMY_STEP {
        let factor = (low * high).sqrt();
        let rates: Vec<f64> =
            (0..best.carried.len()).map(|model| best.goal(model) * factor).collect();
        let Some(chosen) = rounds(problem, tables, &rates, &tables.available(), goal) else {
            high = factor;
            continue;
        };
        low = factor;
        let filled = chosen.iter().flat_map(|chosen| filled(tables, chosen)).collect();
        let mut ledger = Ledger::new(problem, filled);
        ledger.spread();
        if ledger.least_head_room() > best.least_head_room() {
            best = ledger;
        }
    }
    best
}

/// Rounds that a search among so many models may take.
fn turns(models: usize) -> usize {
    (EFFORT / models.max(1).pow(3)).clamp(2, 240)
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
    tables: &Tables,
    rates: &[f64],
    available: &[u32],
    goal: Goal,
) -> Option<Vec<Chosen>> {
    let models = rates.len();
    let mut rng = Rng::with_seed(SEED);
    let taken: f64 = (0..models).map(|model| tables.devices(model, rates[model])).sum();
    if taken > f64::from(goal.most) + ROUNDING {
        return None;
    }
    let least = goal.least.max((taken - ROUNDING).ceil() as u32);
    let mut best: Option<Vec<Chosen>> = None;
    let mut lateness = vec![0.0; rates.len()];
    for turn in 0..goal.turns {
        let shake = |rng: &mut Rng| if turn == 0 { 1.0 } else { 1.0 + 0.6 * rng.f64() };
        let worth: Vec<f64> = (0..rates.len())
            .map(|model| tables.price[model] * shake(&mut rng) * (1.0 + 0.5 * lateness[model]))
            .collect();
        let style = Style {
            worth,
            memory_price: if turn % 2 == 0 { 0.35 } else { 0.7 * rng.f64() },
            seeds: if models <= 32 { 3 } else { 2 },
            companions: if models <= 32 { 12 } else { 8 },
            devices_max: best.as_ref().map_or(goal.most, |it| count(it) - 1),
        };
        // What a plan for a little more needs, this one needs at most.
        let more = if turn % 4 == 3 { 1.0 + 0.12 * rng.f64() } else { 1.0 };
        let asked: Vec<f64> = rates.iter().map(|rate| rate * more).collect();
        let Some(found) = round(problem, tables, &style, &asked, available) else { continue };
        lateness.fill(0.0);
        if let Some(last) = found.last() {
            for (model, served) in last.carried.iter().copied() {
                lateness[model] += (served / rates[model]).min(1.0);
            }
        }
        let done = count(&found) <= least;
        best = Some(found);
        if done {
            break;
        }
    }
    best
}

fn filled(tables: &Tables, chosen: &Chosen) -> Vec<Filled> {
    let device = tables.kinds[chosen.kind].device(chosen.kind, &chosen.slots);
    vec![device; chosen.times as usize]
}
