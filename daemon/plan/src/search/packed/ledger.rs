//! Filled devices and what they carry, kept true while they change.

use std::cmp::Reverse;

use crate::plan::{Filled, latencies, pressures};
use crate::problem::Problem;

/// Room that rounding a duty cycle may take of an SLO, ms.
const ROUNDING_MS: f64 = 4e-6;

/// Requests per second of each model on one device; `None` when the device does not hold.
pub(super) type Carried = Option<Vec<(usize, f64)>>;

/// Devices, and the requests per second that they carry of each model.
#[derive(Debug)]
pub(super) struct Ledger<'a> {
    problem: &'a Problem,
    pub filled: Vec<Filled>,
    pub carried: Vec<f64>,
    /// Of that, by device.
    on_device: Vec<Vec<(usize, f64)>>,
}

impl<'a> Ledger<'a> {
    /// The ledger of devices that hold; slots that do not are emptied.
    pub fn new(problem: &'a Problem, mut filled: Vec<Filled>) -> Self {
        let mut carried = vec![0.0; problem.models.len()];
        let mut on_device = Vec::with_capacity(filled.len());
        for device in &mut filled {
            let rates = loop {
                match carried_by(problem, device) {
                    Some(rates) => break rates,
                    None => drop(device.slots.pop()),
                }
            };
            rates.iter().for_each(|&(model, rate)| carried[model] += rate);
            on_device.push(rates);
        }
        Self { problem, filled, carried, on_device }
    }

    /// What a plan must carry of `model`, with a margin for rounding.
    pub fn goal(&self, model: usize) -> f64 {
        self.problem.models[model].planned_rate * (1.0 + super::MARGIN)
    }

    /// Largest batch that there is.
    pub fn batch_max(&self) -> u32 {
        self.problem.settings.batch_max
    }

    /// Head-room of a model: what is carried over what must be.
    pub fn head_room(&self, model: usize) -> f64 {
        self.carried[model] / self.goal(model)
    }

    /// Head-room of the model that has least; 1 without models.
    pub fn least_head_room(&self) -> f64 {
        let rooms = (0..self.carried.len()).map(|model| self.head_room(model));
        rooms.reduce(f64::min).unwrap_or(1.0)
    }

    /// Bits per second that requests bring to a device.
    pub fn network_bits(&self, at: usize) -> f64 {
        let bits = |model: usize| self.problem.models[model].costs.request_bytes as f64 * 8.0;
        self.on_device[at].iter().map(|&(model, rate)| rate * bits(model)).sum()
    }

    /// Replaces a device if it holds and no model that had enough has too little then.
    pub fn replace(&mut self, at: usize, by: Filled) -> bool {
        let Some(after) = carried_by(self.problem, &by) else { return false };
        let before = self.on_device[at].iter();
        let mut changed: Vec<(usize, f64)> = before.map(|it| (it.0, -it.1)).collect();
        changed.extend(&after);
        changed.sort_by_key(|it| it.0);
        let mut sums: Vec<(usize, f64)> = Vec::new();
        for (model, rate) in changed {
            match sums.last_mut().filter(|it| it.0 == model) {
                Some(last) => last.1 += rate,
                None => sums.push((model, rate)),
            }
        }
        let enough = |&(model, change): &(usize, f64)| {
            change >= 0.0 || self.carried[model] + change >= self.goal(model)
        };
        if !sums.iter().all(enough) {
            return false;
        }
        sums.iter().for_each(|&(model, change)| self.carried[model] += change);
        self.filled[at] = by;
        self.on_device[at] = after;
        true
    }

    /// Requests per second of each model that are not carried yet.
    pub fn missing(&self) -> Vec<f64> {
        let rest = |model: usize| (self.goal(model) - self.carried[model]).max(0.0);
        (0..self.carried.len()).map(rest).collect()
    }

    /// Worth of what would not be carried without a device, at a `price` for each model.
    pub fn missed(&self, at: usize, price: &[f64]) -> f64 {
        let worth = |&(model, rate): &(usize, f64)| {
            let spare = (self.carried[model] - self.goal(model)).max(0.0);
            price[model] * (rate - spare).max(0.0)
        };
        self.on_device[at].iter().map(worth).sum()
    }

    /// Takes a device out; the last one comes to its place.
    pub fn take(&mut self, at: usize) -> Filled {
        for (model, rate) in self.on_device.swap_remove(at) {
            self.carried[model] -= rate;
        }
        self.filled.swap_remove(at)
    }

    /// Adds a device; one that does not hold is left out.
    pub fn push(&mut self, device: Filled) {
        let Some(rates) = carried_by(self.problem, &device) else { return };
        rates.iter().for_each(|&(model, rate)| self.carried[model] += rate);
        self.filled.push(device);
        self.on_device.push(rates);
    }

    /// Gives back devices that nobody misses, those that host the fewest first.
    pub fn vacate(&mut self) {
        let hosted =
            |device: &Filled| -> usize { device.slots.iter().map(|slot| slot.members.len()).sum() };
        let mut order: Vec<usize> = (0..self.filled.len()).collect();
        order.sort_by_key(|&at| (hosted(&self.filled[at]), Reverse(at)));
        for at in order {
            let device = self.filled[at].device;
            self.replace(at, Filled { device, slots: Vec::new() });
        }
        self.filled.retain(|device| !device.slots.is_empty());
        self.on_device.retain(|rates| !rates.is_empty());
    }

    /// Gives what is left of each device to the gpulet whose models have the least head-room.
    pub fn spread(&mut self) {
        for at in 0..self.filled.len() {
            while self.grow_one(at) {}
        }
    }

    fn grow_one(&mut self, at: usize) -> bool {
        let device = &self.filled[at];
        let shares = &self.problem.devices[device.device].shares_pct;
        let used: u32 = device.slots.iter().map(|slot| shares[slot.share]).sum();
        let rest = 100_u32.saturating_sub(used);
        let least = |slot: usize| {
            let members = device.slots[slot].members.iter();
            members.map(|&(model, _)| self.head_room(model)).fold(f64::INFINITY, f64::min)
        };
        let mut order: Vec<usize> = (0..device.slots.len()).collect();
        order.sort_by(|&one, &two| least(one).total_cmp(&least(two)));
        let growths: Vec<Filled> = order
            .into_iter()
            .filter_map(|slot| {
                let share = device.slots[slot].share + 1;
                let more = shares.get(share)? - shares[share - 1];
                let mut grown = device.clone();
                grown.slots[slot].share = share;
                (more <= rest).then_some(grown)
            })
            .collect();
        growths.into_iter().any(|grown| self.replace(at, grown))
    }
}

/// What a device carries, with duty cycles as short as its batches allow.
pub(super) fn carried_by(problem: &Problem, device: &Filled) -> Carried {
    let kind = &problem.devices[device.device];
    let models = || device.slots.iter().flat_map(|slot| &slot.members).map(|it| it.0);
    let used_mb = models().map(|it| problem.models[it].costs.memory_mb).sum::<u64>()
        + kind.context_mb * device.slots.len() as u64;
    let shares: u32 = device.slots.iter().map(|slot| kind.shares_pct[slot.share]).sum();
    if used_mb > kind.memory_mb
        || shares > 100
        || device.slots.len() > problem.settings.gpulets_per_device_max
    {
        return None;
    }
    let mut carried = Vec::new();
    let mut bits = 0.0;
    for (slot, pressure) in device.slots.iter().zip(pressures(problem, device)) {
        let busy_ms: f64 =
            latencies(problem, device.device, slot, pressure).iter().map(|it| it.0).sum();
        let duty_ms = slot.duty_ms.unwrap_or(0.0).max(busy_ms);
        for &(model, batch) in &slot.members {
            if busy_ms + duty_ms + ROUNDING_MS > problem.models[model].slo_ms {
                return None;
            }
            let rate = f64::from(batch) * 1000.0 / duty_ms;
            bits += rate * problem.models[model].costs.request_bytes as f64 * 8.0;
            carried.push((model, rate));
        }
    }
    (bits <= kind.network_bits.unwrap_or(f64::INFINITY) * (1.0 + 1e-9)).then_some(carried)
}

/// What `device` carries once it holds beside the neighbours that it has: batches that take too
/// long become smaller, and who is still too slow with one row goes.
pub(super) fn fit(problem: &Problem, device: &mut Filled) -> Carried {
    loop {
        let carried = carried_by(problem, device);
        if carried.is_some() || !shrink(problem, device) {
            return carried;
        }
    }
}

/// Makes batches of the first gpulet that is too slow smaller; `false` where none is.
fn shrink(problem: &Problem, device: &mut Filled) -> bool {
    let pressures = pressures(problem, device);
    for (at, pressure) in pressures.into_iter().enumerate() {
        let slot = &device.slots[at];
        let taken = latencies(problem, device.device, slot, pressure);
        let busy_ms: f64 = taken.iter().map(|it| it.0).sum();
        let duty_ms = slot.duty_ms.unwrap_or(0.0).max(busy_ms);
        let slo_ms = slot.members.iter().map(|it| problem.models[it.0].slo_ms);
        let room_ms = slo_ms.fold(f64::INFINITY, f64::min) - ROUNDING_MS;
        if busy_ms + duty_ms <= room_ms {
            continue;
        }
        let slot = &mut device.slots[at];
        let Some(largest) = slot.members.iter_mut().max_by_key(|it| it.1) else { continue };
        if largest.1 > 1 {
            let part = (room_ms / (busy_ms + duty_ms)).max(0.5);
            largest.1 = ((f64::from(largest.1) * part) as u32).clamp(1, largest.1 - 1);
        } else {
            slot.members.pop();
        }
        device.slots.retain(|slot| !slot.members.is_empty());
        return true;
    }
    false
}
