//! Best fit, then what is empty, then one gpulet for several remainders.

use super::NOTHING;
use super::estimate::{Estimator, Need};
use super::state::{Part, Place, State};

impl State<'_> {
    /// Places `rate` of a model that is nowhere yet.
    pub fn add(&mut self, estimator: &Estimator<'_>, model: usize, rate: f64) -> Option<()> {
        if let Some((kind, mut needs)) = estimator.needs(model, rate) {
            needs.sort_by_key(|need| std::cmp::Reverse(need.share_pct));
            let mut tried = self.clone();
            if tried.fit_all(estimator, model, kind, &needs).is_some() {
                *self = tried;
                let lost = rate - self.throughput(model);
                return if lost > NOTHING {
                    self.add_rest(estimator, model, lost)
                } else {
                    Some(())
                };
            }
        }
        self.add_rest(estimator, model, rate)
    }

    /// Places `rate` more of a model wherever there is room.
    pub fn add_rest(&mut self, estimator: &Estimator<'_>, model: usize, rate: f64) -> Option<()> {
        let goal = self.throughput(model) + rate;
        self.fill_empty(estimator, model, rate);
        let rest = |state: &Self| goal - state.throughput(model);
        if rest(self) > NOTHING {
            self.merge(estimator, model, rest(self));
        }
        if rest(self) > NOTHING {
            self.stretch(model, rest(self));
        }
        if rest(self) > NOTHING && !self.rules.greedy {
            self.take_turns(model, rest(self));
        }
        self.join_empty();
        (rest(self) <= NOTHING).then_some(())
    }

    fn fit_all(
        &mut self,
        estimator: &Estimator<'_>,
        model: usize,
        kind: usize,
        needs: &[Need],
    ) -> Option<()> {
        for need in needs {
            let place = self.best_fit(model, kind, need)?;
            let found_pct = self.part(place).share_pct;
            let mut need = *need;
            if found_pct == 100 && need.share_pct < 100 {
                self.split(place, need.share_pct);
            } else if found_pct > need.share_pct {
                let other = if need.saturated {
                    estimator.saturated(kind, model, found_pct)
                } else {
                    estimator.remainder(kind, model, need.throughput(), found_pct)
                };
                need = other.map_or(need, |it| Need { share_pct: found_pct, ..it });
            }
            if !self.put(place, model, &need) {
                return None;
            }
        }
        Some(())
    }

    /// An empty gpulet for `need`: a whole device or the very share before all others, then the
    /// least excess; the last of equals.
    fn best_fit(&self, model: usize, kind: usize, need: &Need) -> Option<Place> {
        let suits = |place: &Place| {
            let share_pct = self.part(*place).share_pct;
            self.devices[place.0].kind == kind
                && share_pct >= need.share_pct
                && self.has_memory(*place, model)
        };
        let excess = |place: &Place| match self.part(*place).share_pct {
            100 => 0,
            share_pct => share_pct - need.share_pct,
        };
        self.empties().into_iter().rev().filter(suits).min_by_key(excess)
    }

    /// Puts a model on an empty gpulet if all on the device can live with it.
    fn put(&mut self, place: Place, model: usize, need: &Need) -> bool {
        let before = self.devices[place.0].clone();
        let share_pct = self.part(place).share_pct;
        *self.part_mut(place) = Part {
            share_pct,
            members: vec![(model, need.batch)],
            duty_ms: need.duty_ms,
            saturated: need.saturated,
        };
        if self.settle(place.0) {
            return true;
        }
        self.devices[place.0] = before;
        false
    }

    /// Fills empty gpulets, largest first: saturated ones while the rate lasts, then a remainder.
    fn fill_empty(&mut self, estimator: &Estimator<'_>, model: usize, rate: f64) {
        let mut rest = rate;
        let mut empties = self.empties();
        empties.sort_by_key(|&place| std::cmp::Reverse(self.part(place).share_pct));
        while rest > NOTHING && !empties.is_empty() {
            let place = empties.remove(0);
            let before = self.devices[place.0].clone();
            let kind = before.kind;
            if !self.has_memory(place, model) {
                continue;
            }
            let wanted = estimator.needs(model, rest).and_then(|(_, needs)| needs.first().copied());
            if self.part(place).share_pct == 100
                && let Some(wanted) = wanted.filter(|it| it.share_pct < 100)
            {
                self.split(place, wanted.share_pct);
                empties.push((place.0, 1));
            }
            let share_pct = self.part(place).share_pct;
            let saturated = estimator.saturated(kind, model, share_pct);
            let need = match saturated {
                Some(need) if need.throughput() <= rest => Some(need),
                _ => estimator
                    .remainder(kind, model, rest, share_pct)
                    .map(|it| Need { share_pct, ..it })
                    .or(saturated),
            };
            match need {
                Some(need) if self.put(place, model, &need) => {
                    rest -= self.part(place).throughput(model);
                }
                _ => {
                    self.devices[place.0] = before;
                    empties.retain(|it| it.0 != place.0 || self.devices[it.0].parts.len() > it.1);
                }
            }
        }
    }

    /// Clears the model's own remainders and looks for one gpulet that carries them all.
    fn merge(&mut self, estimator: &Estimator<'_>, model: usize, rest: f64) {
        let mut tried = self.clone();
        let mut rate = rest;
        for device in &mut tried.devices {
            for part in &mut device.parts {
                if part.members.len() == 1 && part.members[0].0 == model && !part.saturated {
                    rate += part.throughput(model);
                    *part = Part::empty(part.share_pct);
                }
            }
        }
        if rate <= rest + NOTHING {
            return;
        }
        for place in tried.empties() {
            let share_pct = tried.part(place).share_pct;
            let kind = tried.devices[place.0].kind;
            let Some(need) = estimator.remainder(kind, model, rate, share_pct) else { continue };
            let need = Need { share_pct, ..need };
            if tried.has_memory(place, model)
                && tried.put(place, model, &need)
                && tried.part(place).throughput(model) >= rate - NOTHING
            {
                *self = tried;
                return;
            }
        }
    }
}
