//! Taking turns on a gpulet that is in use.

use super::NOTHING;
use super::state::{Place, State};

impl State<'_> {
    /// Adds `rate` of a model to the fullest gpulet in use that can take it whole.
    pub fn take_turns(&mut self, model: usize, rate: f64) {
        let most = self.problem.settings.models_per_gpulet_max;
        let mut places: Vec<(f64, Place)> = Vec::new();
        for (at, device) in self.devices.iter().enumerate() {
            for (part, it) in device.parts.iter().enumerate() {
                let place = (at, part);
                let hosted = it.members.iter().any(|member| member.0 == model);
                if it.members.is_empty() || hosted || it.members.len() >= most {
                    continue;
                }
                let occupancy = self.occupancy(place);
                if occupancy < 1.0 - 1e-9 && self.has_memory(place, model) {
                    places.push((occupancy, place));
                }
            }
        }
        places.sort_by(|one, two| two.0.total_cmp(&one.0));
        for (_, place) in places {
            if self.take_turn(place, model, rate) {
                return;
            }
        }
    }

    /// Lets remainders of a model run larger batches in the same cycle, where there is time left.
    pub fn stretch(&mut self, model: usize, rate: f64) {
        let goal = self.throughput(model) + rate;
        for at in 0..self.devices.len() {
            for part in 0..self.devices[at].parts.len() {
                let place = (at, part);
                let it = self.part(place);
                let Some(own) = it.members.iter().position(|member| member.0 == model) else {
                    continue;
                };
                if it.saturated {
                    continue;
                }
                let before = self.devices[at].clone();
                while self.throughput(model) < goal - NOTHING {
                    let kept = self.devices[at].clone();
                    let carried = self.throughput(model);
                    let members = &mut self.part_mut(place).members;
                    members[own].1 += 1;
                    let fits = members[own].1 <= self.problem.settings.batch_max;
                    if !fits || !self.settle(at) || self.throughput(model) <= carried {
                        self.devices[at] = kept;
                        break;
                    }
                }
                let mut others = before.parts.iter().flat_map(|it| &it.members);
                if others.any(|&(other, _)| other != model && self.lost(&before, at, other)) {
                    self.devices[at] = before;
                }
            }
        }
    }

    fn lost(&self, before: &super::state::Device, device: usize, model: usize) -> bool {
        let sum = |parts: &[super::state::Part]| -> f64 {
            parts.iter().map(|part| part.throughput(model)).sum()
        };
        sum(&self.devices[device].parts) < sum(&before.parts) - NOTHING
    }

    /// The largest batch of the new model with which everybody's batches fit one cycle.
    fn take_turn(&mut self, place: Place, model: usize, rate: f64) -> bool {
        let part = self.part(place).clone();
        let batch_max = self.problem.settings.batch_max;
        let largest = (part.duty_ms * rate / 1000.0).floor().clamp(1.0, f64::from(batch_max));
        // Whoever is asked seldom fits into a shorter cycle too, at the price of emptier batches.
        let seldom = (3..=9).rev().map(|tenths| {
            let duty_ms = part.duty_ms * f64::from(tenths) / 10.0;
            (((rate * duty_ms / 1000.0 - 1e-9).ceil() as u32).max(1), duty_ms)
        });
        let full = (1..=largest as u32).rev();
        let full = full.map(|it| (it, (f64::from(it) * 1000.0 / rate).min(part.duty_ms)));
        for (batch, duty_ms) in full.chain(seldom) {
            let mut members: Vec<(usize, u32)> = Vec::new();
            for &(old, own) in &part.members {
                let kept = (f64::from(own) * duty_ms / part.duty_ms - 1e-9).ceil();
                members.push((old, (kept as u32).max(1)));
            }
            members.push((model, batch));
            if members.iter().any(|member| member.1 > batch_max)
                || !self.holds(place, &members, duty_ms)
            {
                continue;
            }
            let before = self.devices[place.0].clone();
            let part = self.part_mut(place);
            (part.members, part.duty_ms, part.saturated) = (members, duty_ms, false);
            if self.settle(place.0) {
                return true;
            }
            self.devices[place.0] = before;
        }
        false
    }
}
