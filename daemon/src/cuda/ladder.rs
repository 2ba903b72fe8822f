//! Which division of a device batches run on, while it changes. No GPU in it.
//!
//! A *rung* is one division with what every model has on it. Batches run on one rung, the present
//! one. The next is made while they do, and holds a model only once that is ready on it; when all are,
//! batches can be switched to it. The rung that was left goes when its last batch is done: until then
//! a gpulet's batches end there before those on the present rung, so that they end in order.

use std::collections::HashMap;

/// One division of a device: `P` is what each gpulet has of it, `L` what a model has on it.
pub(super) struct Rung<P, L> {
    /// Never given to another.
    pub number: u64,
    /// In the order of the gpulets.
    pub parts: Vec<P>,
    /// By instance.
    pub models: HashMap<u32, L>,
}

/// The rungs that there are.
pub(super) struct Ladder<P, L> {
    present: Rung<P, L>,
    next: Option<Rung<P, L>>,
    /// With batches under way; the one left first is the first.
    left: Vec<Rung<P, L>>,
}

/// Whether a gpulet has batches under way on its part of a rung.
pub(super) trait Busy {
    fn is_busy(&self) -> bool;
}

impl<P: Busy, L> Ladder<P, L> {
    pub(super) fn new(present: Rung<P, L>) -> Ladder<P, L> {
        Ladder { present, next: None, left: Vec::new() }
    }

    /// The rung that new batches run on.
    pub(super) fn present(&self) -> &Rung<P, L> {
        &self.present
    }

    /// The same, to be changed.
    pub(super) fn present_mut(&mut self) -> &mut Rung<P, L> {
        &mut self.present
    }

    /// The rung on which the oldest batch of a gpulet runs; the present one if there is none.
    pub(super) fn oldest_mut(&mut self, gpulet: usize) -> &mut Rung<P, L> {
        let busy = |rung: &&mut Rung<P, L>| rung.parts[gpulet].is_busy();
        self.left.iter_mut().find(busy).unwrap_or(&mut self.present)
    }

    /// What gpulets have where batches may be under way.
    pub(super) fn parts(&self) -> impl Iterator<Item = &P> {
        self.left.iter().chain([&self.present]).flat_map(|rung| &rung.parts)
    }

    /// The same, to be changed.
    pub(super) fn parts_mut(&mut self) -> impl Iterator<Item = &mut P> {
        self.left.iter_mut().chain([&mut self.present]).flat_map(|rung| &mut rung.parts)
    }

    /// The rung that is being made, without models.
    pub(super) fn set_next(&mut self, rung: Rung<P, L>) -> Option<Rung<P, L>> {
        self.next.replace(rung)
    }

    /// What a model has on a rung; returns what it had there. Given back where there is no such rung
    /// any more, or no such model.
    pub(super) fn put(&mut self, number: u64, instance: u32, model: L) -> Result<Option<L>, L> {
        let known = self.present.models.contains_key(&instance);
        let next = self.next.as_mut().filter(|next| known && next.number == number);
        let present = (self.present.number == number).then_some(&mut self.present);
        match present.or(next) {
            Some(rung) => Ok(rung.models.insert(instance, model)),
            None => Err(model),
        }
    }

    /// Takes a model off every rung.
    pub(super) fn take(&mut self, instance: u32) -> Vec<L> {
        let rungs = self.left.iter_mut().chain([&mut self.present]).chain(&mut self.next);
        rungs.filter_map(|rung| rung.models.remove(&instance)).collect()
    }

    /// Whether the next rung is that one.
    pub(super) fn is_next(&self, number: u64) -> bool {
        self.next.as_ref().is_some_and(|next| next.number == number)
    }

    /// Models that the next rung lacks, ascending.
    pub(super) fn lacking(&self) -> Vec<u32> {
        let Some(next) = &self.next else { return Vec::new() };
        let there = |instance: &&u32| !next.models.contains_key(instance);
        let mut lacking: Vec<u32> = self.present.models.keys().filter(there).copied().collect();
        lacking.sort_unstable();
        lacking
    }

    /// Goes to the next rung, if it has all models.
    pub(super) fn switch(&mut self) -> bool {
        if !self.lacking().is_empty() {
            return false;
        }
        let Some(next) = self.next.take() else { return false };
        self.left.push(std::mem::replace(&mut self.present, next));
        true
    }

    /// The next rung is not wanted any more.
    pub(super) fn abandon(&mut self) -> Option<Rung<P, L>> {
        self.next.take()
    }

    /// A rung that was left, and on which no batch is under way any more.
    pub(super) fn take_left(&mut self) -> Option<Rung<P, L>> {
        let idle = self.left.iter().position(|rung| !rung.parts.iter().any(Busy::is_busy))?;
        Some(self.left.remove(idle))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Batches under way.
    #[derive(Default)]
    struct Part(u32);

    impl Busy for Part {
        fn is_busy(&self) -> bool {
            self.0 > 0
        }
    }

    type Words = Ladder<Part, &'static str>;

    fn rung(number: u64) -> Rung<Part, &'static str> {
        Rung { number, parts: vec![Part(0), Part(0)], models: HashMap::new() }
    }

    fn ladder() -> Words {
        let mut ladder = Ladder::new(rung(0));
        assert_eq!(ladder.put(0, 1, "one on 0"), Ok(None));
        assert_eq!(ladder.put(0, 2, "two on 0"), Ok(None));
        ladder
    }

    #[test]
    fn a_switch_needs_every_model_on_the_next_rung() {
        let mut ladder = ladder();
        assert!(!ladder.switch(), "there is none");
        assert!(ladder.set_next(rung(1)).is_none());
        assert_eq!(ladder.lacking(), [1, 2]);
        assert_eq!(ladder.put(1, 2, "two on 1"), Ok(None));
        assert!(!ladder.switch());
        assert_eq!((ladder.present().number, ladder.lacking()), (0, vec![1]));
        assert_eq!(ladder.put(1, 1, "one on 1"), Ok(None));
        assert!(ladder.switch());
        assert_eq!(ladder.present().number, 1);
        assert_eq!(ladder.present().models[&1], "one on 1");
        assert!(!ladder.switch(), "once");
    }

    #[test]
    fn models_that_come_and_go_meanwhile_are_on_all_rungs_or_none() {
        let mut ladder = ladder();
        ladder.set_next(rung(1));
        let _ = (ladder.put(1, 1, "one on 1"), ladder.put(1, 2, "two on 1"));
        assert_eq!(ladder.put(0, 3, "three on 0"), Ok(None));
        assert_eq!(ladder.lacking(), [3]);
        let mut taken = ladder.take(1);
        taken.sort_unstable();
        assert_eq!(taken, ["one on 0", "one on 1"]);
        // It was still being made there when it was unloaded.
        assert_eq!(ladder.put(1, 1, "late"), Err("late"));
        assert_eq!(ladder.put(1, 3, "three on 1"), Ok(None));
        assert!(ladder.switch());
        assert_eq!(ladder.take(7), [""; 0]);
        assert_eq!(ladder.present().models.len(), 2);
    }

    #[test]
    fn what_comes_for_a_rung_that_is_gone_is_given_back() {
        let mut ladder = ladder();
        ladder.set_next(rung(1));
        assert!(ladder.is_next(1) && !ladder.is_next(0));
        assert_eq!(ladder.abandon().map(|rung| rung.number), Some(1));
        assert_eq!(ladder.put(1, 1, "late"), Err("late"));
        assert!(ladder.abandon().is_none() && ladder.lacking().is_empty());
        // A better one for the rung that is there replaces what was.
        assert_eq!(ladder.put(0, 1, "better"), Ok(Some("one on 0")));
        assert_eq!(ladder.set_next(rung(2)).map(|rung| rung.number), None);
        assert_eq!(ladder.set_next(rung(3)).map(|rung| rung.number), Some(2));
    }

    #[test]
    fn a_gpulet_s_batches_end_on_the_rung_that_was_left_first() {
        let mut ladder = ladder();
        ladder.present_mut().parts[0].0 = 2;
        for number in [1, 2] {
            ladder.set_next(rung(number));
            let _ = (ladder.put(number, 1, "one"), ladder.put(number, 2, "two"));
            assert!(ladder.switch());
        }
        ladder.present_mut().parts[0].0 = 1;
        assert_eq!(ladder.oldest_mut(0).number, 0);
        assert_eq!(ladder.oldest_mut(1).number, 2);
        assert_eq!(ladder.parts().filter(|part| part.is_busy()).count(), 2);
        // The second was never used, so it need not be waited for.
        assert_eq!(ladder.take_left().map(|rung| rung.number), Some(1));
        assert!(ladder.take_left().is_none());
        ladder.oldest_mut(0).parts[0].0 = 0;
        assert_eq!(ladder.oldest_mut(0).number, 2);
        let left = ladder.take_left().unwrap();
        assert_eq!((left.number, left.models.len()), (0, 2));
    }
}
