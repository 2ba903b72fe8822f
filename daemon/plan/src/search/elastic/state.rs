//! Devices while they are being filled.

use super::Rules;
use crate::interference::Running;
use crate::plan::{Filled, Slot};
use crate::problem::Problem;

/// A gpulet, in use or empty.
#[derive(Debug, Clone)]
pub(super) struct Part {
    /// Share, percent.
    pub share_pct: u32,
    /// Models and batches.
    pub members: Vec<(usize, u32)>,
    /// Period, ms.
    pub duty_ms: f64,
    /// Always busy: the period follows the latency.
    pub saturated: bool,
}

impl Part {
    pub fn empty(share_pct: u32) -> Self {
        Self { share_pct, members: Vec::new(), duty_ms: 0.0, saturated: false }
    }

    pub fn throughput(&self, model: usize) -> f64 {
        let own = self.members.iter().find(|member| member.0 == model);
        own.map_or(0.0, |member| f64::from(member.1) * 1000.0 / self.duty_ms)
    }
}

/// A device and its gpulets.
#[derive(Debug, Clone)]
pub(super) struct Device {
    pub kind: usize,
    pub parts: Vec<Part>,
}

/// Where a gpulet is: device, part.
pub(super) type Place = (usize, usize);

#[derive(Debug, Clone)]
pub(super) struct State<'a> {
    pub problem: &'a Problem,
    pub rules: Rules,
    pub devices: Vec<Device>,
}

impl<'a> State<'a> {
    /// The first `count` devices, each one empty gpulet.
    pub fn empty(problem: &'a Problem, rules: Rules, count: u32) -> Self {
        let kinds = problem.devices.iter().enumerate();
        let all = kinds.flat_map(|(kind, device)| (0..device.count).map(move |_| kind));
        let devices = all
            .take(count as usize)
            .map(|kind| Device { kind, parts: vec![Part::empty(100)] })
            .collect();
        Self { problem, rules, devices }
    }

    /// Places of empty gpulets, in order of devices.
    pub fn empties(&self) -> Vec<Place> {
        let all = self.devices.iter().enumerate();
        all.flat_map(|(at, device)| {
            let parts = device.parts.iter().enumerate();
            parts.filter(|(_, it)| it.members.is_empty()).map(move |(part, _)| (at, part))
        })
        .collect()
    }

    pub fn part(&self, place: Place) -> &Part {
        &self.devices[place.0].parts[place.1]
    }

    pub fn part_mut(&mut self, place: Place) -> &mut Part {
        &mut self.devices[place.0].parts[place.1]
    }

    pub fn throughput(&self, model: usize) -> f64 {
        let parts = self.devices.iter().flat_map(|device| &device.parts);
        parts.map(|part| part.throughput(model)).sum()
    }

    /// Divides an empty whole device into `share_pct` and the rest.
    pub fn split(&mut self, place: Place, share_pct: u32) {
        if self.part(place).share_pct == 100 && share_pct < 100 {
            self.devices[place.0].parts =
                vec![Part::empty(share_pct), Part::empty(100 - share_pct)];
        }
    }

    /// Joins empty halves again.
    pub fn join_empty(&mut self) {
        for device in &mut self.devices {
            if device.parts.iter().all(|part| part.members.is_empty()) {
                device.parts = vec![Part::empty(100)];
            }
        }
    }

    /// Planned latency of a batch at `place`, beside what is on the device now.
    pub fn latency_ms(&self, place: Place, model: usize, batch: u32) -> f64 {
        let device = &self.devices[place.0];
        let share_pct = device.parts[place.1].share_pct;
        let Some(share) = self.problem.share_index(device.kind, share_pct) else {
            return f64::INFINITY;
        };
        let factor = match self.pressure(place) {
            Some(pressure) => self.problem.factor(device.kind, model, share, batch, pressure),
            None => 1.0,
        };
        self.problem.planned_ms(device.kind, model, share, batch, factor)
    }

    fn pressure(&self, place: Place) -> Option<f64> {
        if !self.rules.interference {
            return None;
        }
        let device = &self.devices[place.0];
        let interference = &self.problem.devices[device.kind].interference;
        let others = device.parts.iter().enumerate();
        others
            .filter(|(at, part)| *at != place.1 && !part.members.is_empty())
            .map(|(_, part)| {
                let running = part.members.iter().map(|&(model, batch)| Running {
                    model,
                    batch,
                    share_pct: part.share_pct,
                });
                running.map(|it| interference.pressure(it)).fold(0.0, f64::max)
            })
            .reduce(|one, two| interference.join(one, two))
    }

    /// Whether the device holds what is on it, and `more` for `place` besides.
    pub fn has_memory(&self, place: Place, more: usize) -> bool {
        let device = &self.devices[place.0];
        let kind = &self.problem.devices[device.kind];
        let memory_mb = |model: usize| self.problem.models[model].costs.memory_mb;
        let parts = device.parts.iter().enumerate();
        let used: u64 = parts
            .filter(|(at, part)| *at == place.1 || !part.members.is_empty())
            .map(|(_, part)| {
                let models: u64 = part.members.iter().map(|&(model, _)| memory_mb(model)).sum();
                models + kind.context_mb
            })
            .sum();
        used + memory_mb(more) <= kind.memory_mb
    }

    /// Brings every gpulet of a device to its SLOs beside its neighbours; false when one cannot.
    /// Remainders keep what they carry, what saturates may lose some.
    pub fn settle(&mut self, device: usize) -> bool {
        let before = self.devices[device].clone();
        // What one of two changes is felt by the other.
        for _ in 0..3 {
            for part in 0..self.devices[device].parts.len() {
                if !self.settle_part((device, part)) {
                    self.devices[device] = before;
                    return false;
                }
            }
        }
        let holds = (0..self.devices[device].parts.len()).all(|part| {
            let place = (device, part);
            let part = self.part(place);
            part.members.is_empty() || self.holds(place, &part.members, part.duty_ms)
        });
        if !holds {
            self.devices[device] = before;
        }
        holds
    }

    fn settle_part(&mut self, place: Place) -> bool {
        let part = self.part(place).clone();
        if part.members.is_empty() {
            return true;
        }
        if part.saturated {
            return self.saturate(place);
        }
        let most = part.members.iter().map(|member| member.1).max().unwrap_or(0);
        for batch in (1..=most).rev() {
            let shorter = f64::from(batch) / f64::from(most);
            let members: Vec<(usize, u32)> = part
                .members
                .iter()
                .map(|&(model, own)| {
                    (model, ((f64::from(own) * shorter - 1e-9).ceil() as u32).max(1))
                })
                .collect();
            let duty_ms = part.duty_ms * shorter;
            if self.holds(place, &members, duty_ms) {
                let part = self.part_mut(place);
                (part.members, part.duty_ms) = (members, duty_ms);
                return true;
            }
        }
        part.members.len() == 1 && self.saturate(place)
    }

    /// The largest batch that meets the SLO, in the shortest cycle.
    fn saturate(&mut self, place: Place) -> bool {
        let (model, batch) = self.part(place).members[0];
        let slo_ms = self.problem.models[model].slo_ms;
        let fitting = (1..=batch).rev().find_map(|batch| {
            let ms = self.latency_ms(place, model, batch);
            (2.0 * ms <= slo_ms).then_some((batch, ms))
        });
        let Some((batch, ms)) = fitting else { return false };
        let part = self.part_mut(place);
        (part.members[0].1, part.duty_ms, part.saturated) = (batch, ms, true);
        true
    }

    /// Whether these batches fit into the duty cycle, and the cycle into their SLOs.
    pub fn holds(&self, place: Place, members: &[(usize, u32)], duty_ms: f64) -> bool {
        let latencies = members.iter().map(|&(model, batch)| self.latency_ms(place, model, batch));
        let busy_ms: f64 = latencies.sum();
        let slos = members.iter().map(|&(model, _)| self.problem.models[model].slo_ms);
        let slo_ms = slos.fold(f64::INFINITY, f64::min);
        busy_ms <= duty_ms * (1.0 + 1e-12) && duty_ms + busy_ms <= slo_ms
    }

    pub fn occupancy(&self, place: Place) -> f64 {
        let part = self.part(place);
        let latencies = part.members.iter().map(|&(model, b)| self.latency_ms(place, model, b));
        latencies.sum::<f64>() / part.duty_ms
    }

    /// What the devices hold, for a plan.
    pub fn filled(&self) -> Vec<Filled> {
        let slot = |kind: usize, part: &Part| -> Option<Slot> {
            let share = self.problem.share_index(kind, part.share_pct)?;
            let duty_ms = Some(part.duty_ms);
            Some(Slot { share, members: part.members.clone(), duty_ms })
        };
        let in_use = |part: &&Part| !part.members.is_empty();
        self.devices
            .iter()
            .map(|device| Filled {
                device: device.kind,
                slots: device
                    .parts
                    .iter()
                    .filter(in_use)
                    .filter_map(|part| slot(device.kind, part))
                    .collect(),
            })
            .collect()
    }
}
