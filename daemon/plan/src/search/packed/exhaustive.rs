//! Every combination, for small problems: what the search is measured against.
//!
//! All gpulets that are not outdone by another one of their share, all devices that can be made
//! of them, and all sums of devices, each time without what is outdone. Interference is reckoned
//! at the worst that a layout allows, as in the search.

use super::ledger::Ledger;
use super::tables::Tables;
use super::{MARGIN, search};
use crate::plan::{Filled, Slot};
use crate::problem::Problem;
use crate::search::Infeasible;

/// Most models that it is for.
pub(super) const MODELS_MAX: usize = 4;

/// Most sums of devices that are looked at.
const COMBINATIONS_MAX: usize = 1 << 28;

/// Requests per second of each model, none above what is asked.
pub(super) type Rates = [f64; MODELS_MAX];

/// Something that carries rates and takes memory, made of what its indices say.
#[derive(Debug, Clone)]
pub(super) struct Choice<T> {
    pub rates: Rates,
    memory_mb: f64,
    made_of: T,
}

/// Models and batches of a gpulet.
type Members = Vec<(usize, u32)>;

/// Devices that serve the problem; as few as the classes of interference allow.
///
/// # Errors
/// What is in the way; more than a few models.
pub fn exhaustive(problem: &Problem, bound: f64) -> Result<Vec<Filled>, Infeasible> {
    let count = problem.models.len();
    if count > MODELS_MAX || problem.devices.len() > 1 {
        let policy = "exhaustive";
        return Err(Infeasible::TooLarge { policy, most: MODELS_MAX, count });
    }
    let found = search(problem, bound)?;
    let tables = Tables::of(problem, &vec![true; count]);
    let rates: Vec<f64> =
        problem.models.iter().map(|model| model.planned_rate * (1.0 + MARGIN)).collect();
    match cover(&tables, &rates, found.len().saturating_sub(1), COMBINATIONS_MAX) {
        Cover::Found(filled) => {
            let mut ledger = Ledger::new(problem, filled);
            ledger.spread();
            Ok(ledger.filled)
        }
        Cover::None => Ok(found),
        Cover::GaveUp => Err(Infeasible::TooLarge { policy: "exhaustive", most: count - 1, count }),
    }
}

/// What came of looking at every combination.
#[derive(Debug)]
pub(super) enum Cover {
    /// Devices that carry what is asked.
    Found(Vec<Filled>),
    /// There are none.
    None,
    /// There were too many combinations.
    GaveUp,
}

/// Looks for at most `most` devices that carry `rates`, of one device type and few models.
pub(super) fn cover(tables: &Tables, rates: &[f64], most: usize, combinations_max: usize) -> Cover {
    let models = rates.len();
    let limited = tables.kinds.iter().any(|kind| kind.network_bits < f64::INFINITY);
    if most == 0 || models > MODELS_MAX || tables.kinds.len() != 1 || limited {
        return if most == 0 { Cover::None } else { Cover::GaveUp };
    }
    let mut asked = [0.0; MODELS_MAX];
    asked[..models].copy_from_slice(rates);
    let asked = &asked;
    let devices = devices(tables, asked, models);
    let mut combinations = 0;
    let hopeless = |rates: &Rates, rest: usize| {
        let missing = (0..models).map(|it| tables.price[it] * (asked[it] - rates[it]));
        missing.sum::<f64>() > rest as f64 + 1e-9
    };
    let mut sums: Vec<Choice<Vec<usize>>> =
        vec![Choice { rates: [0.0; MODELS_MAX], memory_mb: 0.0, made_of: Vec::new() }];
    for number in 1..=most {
        let mut next = Vec::new();
        for sum in &sums {
            let first = sum.made_of.last().copied().unwrap_or(0);
            combinations += devices.len() - first;
            if combinations > combinations_max {
                return Cover::GaveUp;
            }
            for (at, device) in devices.iter().enumerate().skip(first) {
                let rates = added(&sum.rates, &device.rates, asked);
                if (0..models).all(|it| rates[it] >= asked[it]) {
                    let all = sum.made_of.iter().chain([&at]);
                    let all = all.map(|&at| devices[at].made_of.clone());
                    return Cover::Found(all.collect());
                }
                if number < most && !hopeless(&rates, most - number) {
                    let mut made_of = sum.made_of.clone();
                    made_of.push(at);
                    next.push(Choice { rates, memory_mb: 0.0, made_of });
                }
            }
        }
        sums = best(next);
    }
    Cover::None
}

fn added(one: &Rates, two: &Rates, asked: &Rates) -> Rates {
    std::array::from_fn(|it| (one[it] + two[it]).min(asked[it]))
}

/// Every device that is not outdone.
pub(super) fn devices(tables: &Tables, asked: &Rates, models: usize) -> Vec<Choice<Filled>> {
    let kind = &tables.kinds[0];
    let gpulets: Vec<Vec<Choice<Members>>> =
        (0..kind.classes.len()).map(|class| gpulets(tables, class, asked, models)).collect();
    let mut all = Vec::new();
    for layout in &kind.layouts {
        let device = Filled { device: 0, slots: Vec::new() };
        let mut made: Vec<Choice<Filled>> =
            vec![Choice { rates: [0.0; MODELS_MAX], memory_mb: 0.0, made_of: device }];
        for &class in layout {
            let mut next = made.clone();
            for device in &made {
                for gpulet in &gpulets[class] {
                    let memory_mb = device.memory_mb + gpulet.memory_mb;
                    if memory_mb > kind.memory_mb {
                        continue;
                    }
                    let mut made_of = device.made_of.clone();
                    let share = kind.classes[class].share;
                    let members = gpulet.made_of.clone();
                    made_of.slots.push(Slot { share, members, duty_ms: None });
                    let rates = added(&device.rates, &gpulet.rates, asked);
                    next.push(Choice { rates, memory_mb, made_of });
                }
            }
            made = best(next);
        }
        all.extend(made.into_iter().map(|device| Choice { memory_mb: 0.0, ..device }));
    }
    best(all)
}

/// Every gpulet of a class that is not outdone.
fn gpulets(tables: &Tables, class: usize, asked: &Rates, models: usize) -> Vec<Choice<Members>> {
    let mut all = Vec::new();
    for set in 1..1_usize << models {
        let members: Vec<usize> = (0..models).filter(|it| set >> it & 1 == 1).collect();
        if members.len() > tables.members_max.min(3) {
            continue;
        }
        let duty_ms =
            members.iter().map(|&it| tables.duty_max_ms[it]).fold(f64::INFINITY, f64::min);
        let memory_mb = members.iter().map(|&it| tables.memory_mb[it]).sum::<f64>()
            + tables.kinds[0].context_mb;
        let mut of_set = Vec::new();
        batches(tables, class, &members, duty_ms, &mut Vec::new(), 0.0, &mut |batches, busy_ms| {
            let mut rates = [0.0; MODELS_MAX];
            for &(model, batch) in batches {
                rates[model] = (f64::from(batch) * 1000.0 / busy_ms).min(asked[model]);
            }
            of_set.push(Choice { rates, memory_mb, made_of: batches.to_vec() });
        });
        all.extend(best(of_set));
    }
    best(all)
}

/// Every choice of batches within the duty cycle.
fn batches(
    tables: &Tables,
    class: usize,
    members: &[usize],
    duty_ms: f64,
    chosen: &mut Members,
    busy_ms: f64,
    found: &mut dyn FnMut(&Members, f64),
) {
    let Some((&model, rest)) = members.split_first() else {
        return found(chosen, busy_ms);
    };
    for batch in 1..=tables.batch_max {
        let ms = tables.latency_ms(&tables.kinds[0].classes[class], model, batch);
        if busy_ms + ms > duty_ms {
            break;
        }
        chosen.push((model, batch));
        batches(tables, class, rest, duty_ms, chosen, busy_ms + ms, found);
        chosen.pop();
    }
}

/// Without what another one outdoes: at least its rates for at most its memory.
fn best<T>(mut all: Vec<Choice<T>>) -> Vec<Choice<T>> {
    let sum = |it: &Choice<T>| it.rates.iter().sum::<f64>();
    all.sort_by(|one, two| {
        sum(two).total_cmp(&sum(one)).then(one.memory_mb.total_cmp(&two.memory_mb))
    });
    let mut kept: Vec<Choice<T>> = Vec::new();
    for one in all {
        let outdone = kept.iter().any(|it| {
            it.memory_mb <= one.memory_mb
                && it.rates.iter().zip(&one.rates).all(|(has, needs)| has >= needs)
        });
        if !outdone {
            kept.push(one);
        }
    }
    kept
}
