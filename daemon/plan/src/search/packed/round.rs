//! One round of the search: fills device after device with what is worth most.

use super::ROUNDING;
use super::fill::{Fill, Left, Room, fill};
use super::ledger::fit;
use super::tables::{Class, Kind, Tables};
use crate::plan::{Filled, Slot};
use crate::problem::Problem;

/// What is left of a rate when it counts as served, requests per second.
const SERVED: f64 = 1e-9;

/// How much more a slot may be worth than hoped for: what shares it is found step by step.
const ERRING: f64 = 1.02;

/// Equal devices.
#[derive(Debug, Clone)]
pub(super) struct Chosen {
    /// One of them.
    pub device: Filled,
    /// How many.
    pub times: u32,
    /// Requests per second of each model that one of them carries, beside the neighbours that
    /// its gpulets have there.
    pub carried: Vec<(usize, f64)>,
}

impl Kind {
    /// A device of this type, `number`, with its gpulets filled.
    pub fn device(&self, number: usize, slots: &[(usize, Fill)]) -> Filled {
        let slots = slots.iter().map(|(class, fill)| self.slot(&self.classes[*class], fill));
        Filled { device: number, slots: slots.collect() }
    }

    /// A gpulet of `class`, filled. It takes its turns as fast as it can, unless what requests
    /// bring over a network is limited.
    pub fn slot(&self, class: &Class, fill: &Fill) -> Slot {
        let duty_ms = (self.network_bits < f64::INFINITY).then_some(fill.duty_ms);
        Slot { share: class.share, members: fill.members().collect(), duty_ms }
    }
}

/// How a round goes about it.
#[derive(Debug, Clone)]
pub(super) struct Style {
    /// Worth of a request per second by model.
    pub worth: Vec<f64>,
    /// Worth charged for all memory of a device.
    pub memory_price: f64,
    /// Models that shared gpulets are begun with.
    pub seeds: usize,
    /// Models tried as companions on shared gpulets.
    pub companions: usize,
    /// Layouts that are filled for each device, those with most hope first.
    pub layouts: usize,
    /// Gives up where it would take more devices than so many.
    pub devices_max: u32,
}

/// Devices that serve `rates`; `None` when the round gives up.
pub(super) fn round(
    problem: &Problem,
    tables: &Tables,
    style: &Style,
    rates: &[f64],
    available: &[u32],
) -> Option<Vec<Chosen>> {
    let mut left = Left {
        rate: rates.to_vec(),
        worth: style.worth.clone(),
        active: (0..rates.len()).filter(|&model| rates[model] > SERVED).collect(),
        companions: Vec::new(),
    };
    let mut available = available.to_vec();
    let mut devices = Vec::new();
    let mut used = 0_u32;
    // Devices that what is left of each model takes at least.
    let mut takes = vec![0.0; rates.len()];
    for &model in &left.active {
        takes[model] = tables.devices(model, rates[model]);
    }
    while !left.active.is_empty() {
        left.choose_companions(tables, style.companions);
        let mut best: Option<(usize, Worth)> = None;
        // The last device that may be used has to serve all.
        let last = used + 1 == style.devices_max;
        let needed = if last { left.all() * (1.0 - ROUNDING) - ROUNDING } else { 0.0 };
        for (index, kind) in tables.kinds.iter().enumerate() {
            if available[index] == 0 {
                continue;
            }
            for memory_price in [0.0, style.memory_price] {
                let packing = Packing { tables, kind, style, memory_price };
                let least = best.as_ref().map_or(needed.max(0.0), |it| it.1.0);
                let (found, unbound) = packing.best_layout(&left, least);
                best = found.map(|found| (index, found)).or(best);
                if unbound {
                    break;
                }
            }
        }
        let (kind, (_, slots)) = best?;
        // What gpulets carry beside the neighbours that they have counts.
        let mut device = tables.kinds[kind].device(kind, &slots);
        let carried = fit(problem, &mut device).filter(|it| !it.is_empty())?;
        let mut chosen = Chosen { device, times: 1, carried };
        chosen.times = left.repeats(&chosen).min(available[kind]);
        used = used.saturating_add(chosen.times);
        available[kind] -= chosen.times;
        for _ in 0..chosen.times {
            left.serve(chosen.carried.iter().copied());
        }
        left.active.retain(|&model| left.rate[model] > SERVED);
        for &(model, _) in &chosen.carried {
            takes[model] = tables.devices(model, left.rate[model]);
        }
        devices.push(chosen);
        let rest: f64 = left.active.iter().map(|&model| takes[model]).sum();
        if f64::from(used) + rest > f64::from(style.devices_max) + ROUNDING {
            return None;
        }
    }
    Some(devices)
}

impl Left {
    /// Worth of all that is left.
    fn all(&self) -> f64 {
        self.active.iter().map(|&model| self.worth[model] * self.rate[model]).sum()
    }

    /// Takes out what the slots serve; never below nothing.
    fn serve(&mut self, served: impl Iterator<Item = (usize, f64)>) {
        for (model, rate) in served {
            self.rate[model] = (self.rate[model] - rate).max(0.0);
        }
    }

    /// How often the same choice would be made again: as long as it serves nothing in vain.
    fn repeats(&self, chosen: &Chosen) -> u32 {
        let mut served: Vec<(usize, f64)> = Vec::new();
        for &(model, rate) in &chosen.carried {
            match served.iter_mut().find(|it| it.0 == model) {
                Some(known) => known.1 += rate,
                None => served.push((model, rate)),
            }
        }
        let times = served.iter().map(|&(model, rate)| (self.rate[model] / rate).floor());
        times.fold(f64::INFINITY, f64::min).clamp(1.0, 1e9) as u32
    }

    fn choose_companions(&mut self, tables: &Tables, count: usize) {
        self.companions.clear();
        if tables.members_max < 2 {
            return;
        }
        let worth = |model: usize| self.worth[model] * self.rate[model];
        self.companions.extend(&self.active);
        if self.companions.len() > count {
            // What is left of most models at the beginning fills gpulets of its own; the
            // smaller rest is what companions are found among.
            let by_worth = |one: &usize, two: &usize| {
                let keys = (worth(*one) > 0.2, worth(*two) > 0.2);
                keys.0.cmp(&keys.1).then(worth(*two).total_cmp(&worth(*one))).then(one.cmp(two))
            };
            self.companions.select_nth_unstable_by(count - 1, by_worth);
            self.companions.truncate(count);
        }
        // Whoever is tried first spares the others if all of it fits.
        self.companions
            .sort_unstable_by(|one, two| worth(*two).total_cmp(&worth(*one)).then(one.cmp(two)));
    }
}

/// Slots of a device by class, and what they are worth together.
type Worth = (f64, Vec<(usize, Fill)>);

struct Packing<'a> {
    tables: &'a Tables,
    kind: &'a Kind,
    style: &'a Style,
    memory_price: f64,
}

impl Packing<'_> {
    fn room(&self) -> Room {
        Room {
            memory_mb: self.kind.memory_mb,
            network_bits: self.kind.network_bits,
            memory_price: self.memory_price / self.kind.memory_mb.max(1.0),
        }
    }

    /// Whether memory takes nothing away: there is enough for all that gpulets could host.
    fn ample(&self, left: &Left) -> bool {
        let mut most_mb: Vec<f64> =
            left.active.iter().map(|&model| self.tables.memory_mb[model]).collect();
        most_mb.sort_unstable_by(|one, two| two.total_cmp(one));
        let hosted_mb: f64 = most_mb.iter().take(self.tables.members_max).sum();
        let slots = self.kind.layouts.iter().map(Vec::len).max().unwrap_or(0);
        slots as f64 * (self.kind.context_mb + hosted_mb) <= self.kind.memory_mb
    }

    /// The layout worth more than `least`, with its slots filled one after the other; and
    /// whether memory took nothing away from the best.
    fn best_layout(&self, left: &Left, least: f64) -> (Option<Worth>, bool) {
        let room = self.room();
        let firsts: Vec<Option<Fill>> = (0..self.kind.classes.len())
            .map(|at| {
                let class = &self.kind.classes[at];
                let hoped = self.kind.hopes[at] == at;
                hoped.then(|| fill(self.tables, self.kind, class, left, room, self.style.seeds))?
            })
            .collect();
        // No slot is worth more after another one was filled than it is first, nor more than what
        // it could serve at most under its own pressure.
        let mut hopes = self.kind.most(&left.worth, &left.active);
        self.tables.worked(hopes.len() * left.active.len() / 2 + 5 * self.kind.layouts.len());
        for (class, hope) in hopes.iter_mut().enumerate() {
            let first = &firsts[self.kind.hopes[class]];
            *hope = hope.min(first.map_or(0.0, |first| first.value));
        }
        let hope = |layout: &[usize]| -> f64 { layout.iter().map(|&class| hopes[class]).sum() };
        let mut order: Vec<(f64, usize)> =
            self.kind.layouts.iter().enumerate().map(|(at, it)| (hope(it), at)).collect();
        order.sort_by(|one, two| two.0.total_cmp(&one.0).then(one.1.cmp(&two.1)));
        let most = order.first().map_or(0.0, |it| it.0);
        let mut best: Option<(Worth, u32)> = None;
        for (hoped, at) in
            order.into_iter().take(self.style.layouts.max(self.kind.layouts.len() / 3))
        {
            let (value, pct) = best.as_ref().map_or((least, 0), |it| (it.0.0, it.1));
            if hoped * ERRING <= value {
                break;
            }
            let layout = &self.kind.layouts[at];
            let Some((found, share_pct)) = self.filled(layout, left, &firsts, &hopes, value) else {
                continue;
            };
            let better = found.0 > value + 1e-9 || (found.0 > value - 1e-9 && share_pct < pct);
            if better && !found.1.is_empty() {
                best = Some((found, share_pct));
            }
        }
        let reached = best.as_ref().is_some_and(|it| it.0.0 >= most * 0.999_999);
        (best.map(|it| it.0), reached || self.ample(left))
    }

    /// The slots of a layout, filled; `None` where that would not be worth `least`.
    fn filled(
        &self,
        layout: &[usize],
        left: &Left,
        firsts: &[Option<Fill>],
        hopes: &[f64],
        least: f64,
    ) -> Option<(Worth, u32)> {
        let mut room = self.room();
        let mut rest: Option<Left> = None;
        let mut slots: Vec<(usize, Fill)> = Vec::new();
        let (mut value, mut share_pct) = (0.0, 0);
        for (number, &at) in layout.iter().enumerate() {
            let hoped: f64 = layout[number..].iter().map(|&class| hopes[class]).sum();
            if value + hoped * ERRING < least - 1e-9 {
                return None;
            }
            let class = &self.kind.classes[at];
            let found = match &rest {
                None if self.kind.hopes[at] == at => firsts[at],
                rest => {
                    let left = rest.as_ref().unwrap_or(left);
                    fill(self.tables, self.kind, class, left, room, self.style.seeds)
                }
            };
            let Some(found) = found.filter(|it| it.value > 1e-12) else { continue };
            value += found.value;
            share_pct += class.share_pct;
            room.memory_mb -= found.memory_mb;
            room.network_bits -= found.network_bits;
            slots.push((at, found));
            let rest = rest.get_or_insert_with(|| left.clone());
            rest.serve(found.throughputs());
            rest.active.retain(|&model| rest.rate[model] > SERVED);
        }
        Some(((value, slots), share_pct))
    }
}
