use super::*;

const BATCH_NS: u64 = 800_000;

/// A machine whose batches and timers vary, from a small generator of fixed seed.
struct Machine {
    state: u64,
    batch_ns: u64,
    batch_jitter_ns: u64,
    timer_late_ns: u64,
    timer_jitter_ns: u64,
}

/// What naps did over some batches.
#[derive(Default)]
struct Tally {
    count: u64,
    missed: u64,
    polled_ns: u64,
    /// By how much ends were slept through, the most and in all.
    overslept_ns_max: u64,
    overslept_ns: u64,
}

impl Machine {
    fn new(batch_ns: u64) -> Machine {
        Machine {
            state: 1,
            batch_ns,
            batch_jitter_ns: 12_000,
            timer_late_ns: 8_000,
            timer_jitter_ns: 15_000,
        }
    }

    fn random(&mut self, below: u64) -> u64 {
        self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.state >> 33) % below.max(1)
    }

    /// One batch: naps as told, polls from there, and tells what it saw.
    fn run(&mut self, foresight: &mut Foresight, tally: &mut Tally) {
        let taken_ns = self.batch_ns + self.random(self.batch_jitter_ns);
        let late_ns = match nap_ns(0, foresight.look_ns()) {
            Some(_) => self.timer_late_ns + self.random(self.timer_jitter_ns),
            None => 0,
        };
        let woke_ns = foresight.look_ns() + late_ns;
        tally.count += 1;
        if woke_ns < taken_ns {
            tally.polled_ns += taken_ns - woke_ns;
            foresight.awaited(taken_ns, late_ns);
        } else {
            tally.missed += 1;
            tally.overslept_ns += woke_ns - taken_ns;
            tally.overslept_ns_max = tally.overslept_ns_max.max(woke_ns - taken_ns);
            foresight.missed();
        }
    }

    fn run_many(&mut self, foresight: &mut Foresight, count: u64) -> Tally {
        let mut tally = Tally::default();
        for _ in 0..count {
            self.run(foresight, &mut tally);
        }
        tally
    }
}

#[test]
fn most_ends_are_awaited_and_none_for_long() {
    let mut machine = Machine::new(BATCH_NS);
    let mut foresight = Foresight::new(BATCH_NS);
    machine.run_many(&mut foresight, 50);
    let tally = machine.run_many(&mut foresight, 10_000);
    let missed = tally.missed as f64 / tally.count as f64;
    assert!((0.02..0.2).contains(&missed), "{missed} of all ends were slept through");
    let polled_ns = tally.polled_ns / tally.count;
    assert!(polled_ns < 25_000, "{polled_ns} ns of polling a batch");
    assert!(tally.overslept_ns / tally.count < 2_000, "{} ns", tally.overslept_ns / tally.count);
}

#[test]
fn a_steady_machine_hardly_polls() {
    let mut machine = Machine { batch_jitter_ns: 0, timer_jitter_ns: 0, ..Machine::new(BATCH_NS) };
    let mut foresight = Foresight::new(BATCH_NS);
    machine.run_many(&mut foresight, 50);
    let tally = machine.run_many(&mut foresight, 1_000);
    assert!(tally.polled_ns / tally.count <= STEP_NS, "{}", tally.polled_ns / tally.count);
    assert!(tally.overslept_ns_max <= STEP_NS);
}

#[test]
fn batches_that_get_faster_or_slower_are_caught_up_with() {
    let mut machine = Machine::new(2 * BATCH_NS);
    let mut foresight = Foresight::new(2 * BATCH_NS);
    machine.run_many(&mut foresight, 50);
    // Nobody sees how much faster they are, since all of them are over on waking up.
    machine.batch_ns = BATCH_NS;
    let change = machine.run_many(&mut foresight, 12);
    assert!(change.missed <= 10, "{} in a row", change.missed);
    machine.run_many(&mut foresight, RECENT as u64);
    let faster = machine.run_many(&mut foresight, 1_000);
    assert!(faster.polled_ns / faster.count < 25_000, "{}", faster.polled_ns / faster.count);
    machine.batch_ns = 2 * BATCH_NS;
    machine.run_many(&mut foresight, RECENT as u64 + 1);
    let slower = machine.run_many(&mut foresight, 1_000);
    assert!(slower.polled_ns / slower.count < 25_000, "{}", slower.polled_ns / slower.count);
}

#[test]
fn naps_do_not_grow_by_themselves() {
    let mut foresight = Foresight::new(BATCH_NS);
    // Whatever a nap makes of it, a batch that was not awaited never has the next one end later.
    for _ in 0..100 {
        let before_ns = foresight.look_ns();
        foresight.missed();
        assert!(foresight.look_ns() < before_ns || before_ns == 0);
    }
    assert_eq!(foresight.look_ns(), 0, "polled from the start");
    let mut machine = Machine::new(BATCH_NS);
    machine.run_many(&mut foresight, RECENT as u64);
    assert!(foresight.look_ns() > BATCH_NS / 2, "and napped for again");
}

#[test]
fn one_stray_batch_or_delay_changes_little() {
    let mut machine = Machine::new(BATCH_NS);
    let mut foresight = Foresight::new(BATCH_NS);
    machine.run_many(&mut foresight, 50);
    let before_ns = foresight.look_ns();
    foresight.awaited(50 * BATCH_NS, 0);
    assert!(foresight.look_ns().abs_diff(before_ns) <= machine.timer_jitter_ns);
    let before_ns = foresight.look_ns();
    // A wake-up milliseconds late.
    foresight.missed();
    assert_eq!(foresight.look_ns(), before_ns - STEP_NS);
}

#[test]
fn naps_end_where_to_look_and_go_on_when_it_is_late() {
    let look_ns = 1_000_000;
    assert_eq!(nap_ns(0, look_ns), Some(look_ns));
    for polling_ns in [look_ns - NAP_NS_MIN + 1, look_ns, look_ns + PATIENCE_NS] {
        assert_eq!(nap_ns(polling_ns, look_ns), None);
    }
    assert_eq!(nap_ns(look_ns + PATIENCE_NS + 1, look_ns), Some(LATE_NAP_NS));
    assert_eq!(nap_ns(look_ns + 800_000, look_ns), Some(100_000));
    assert_eq!(nap_ns(u64::MAX, look_ns), Some(LATE_NAP_NS_MAX));
}

#[test]
fn the_soonest_end_is_that_of_the_last_awaited_ones() {
    let mut foresight = Foresight::new(BATCH_NS);
    for taken_ns in [7, 3, 5] {
        (0..RECENT).for_each(|_| foresight.awaited(BATCH_NS + 9, 40));
        foresight.awaited(BATCH_NS + taken_ns, 40);
        // Nobody knows when one ended that was slept through.
        foresight.missed();
        assert_eq!(foresight.soonest_ns(), BATCH_NS + taken_ns);
        assert!(foresight.look_ns() < foresight.soonest_ns());
    }
}
