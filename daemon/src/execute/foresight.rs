//! When to look for the end of a batch on a device.
//!
//! Polling from its start to its end costs a CPU, and being woken up by its end costs latency. So the
//! executor sleeps until shortly before the end, and polls from there. How late it may wake is found by
//! trial, for each model and batch size, from the last `RECENT` batches:
//!
//! * An end that was awaited tells which wake-up would just have been early enough: as long after the
//!   start as the batch took, less what waking up took longer than asked for.
//! * An end that was slept through tells only that the wake-up was too late, nobody knows by how much.
//!   It stands for a wake-up `STEP_NS` earlier, and for twice as much with each such end in a row.
//!
//! The next wake-up is the earliest of these. So the margin comes from how late this machine's timers
//! are and how much its batches vary; a slow batch moves nothing, and a stray delay moves it by a step.
//! No nap can put off the next one: only ends that were awaited do, all of the last ones together.
//!
//! Of those it also knows the soonest. Shortly before that the daemon is woken, which would poll in
//! vain if it were woken whenever this thread is.

/// Batches that are remembered. One end in so many and one more is slept through, as a rule.
const RECENT: usize = 8;
/// See the module.
const STEP_NS: u64 = 3_000;
/// Shorter naps are not worth two switches of context.
const NAP_NS_MIN: u64 = 10_000;
/// A late batch is polled for so long, and then looked at between naps.
const PATIENCE_NS: u64 = 50_000;
/// The shortest and the longest of those naps; in between they are an eighth of its lateness.
const LATE_NAP_NS: u64 = 20_000;
const LATE_NAP_NS_MAX: u64 = 1_000_000;

/// What is known of when batches of one size end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foresight {
    /// For each of the last batches, how long after its start a wake-up was early enough.
    fit_ns: [u64; RECENT],
    next: usize,
    step_ns: u64,
    /// How long each of the last ones took whose end was awaited.
    taken_ns: [u64; RECENT],
    next_taken: usize,
}

impl Foresight {
    /// As if all batches had taken so long.
    pub fn new(taken_ns: u64) -> Foresight {
        Foresight {
            fit_ns: [taken_ns; RECENT],
            next: 0,
            step_ns: STEP_NS,
            taken_ns: [taken_ns; RECENT],
            next_taken: 0,
        }
    }

    /// How long after its start to wake up for the end of the next batch.
    pub fn look_ns(&self) -> u64 {
        self.fit_ns.into_iter().fold(u64::MAX, u64::min)
    }

    /// How long after its start the next batch may end at the soonest.
    pub fn soonest_ns(&self) -> u64 {
        self.taken_ns.into_iter().fold(u64::MAX, u64::min)
    }

    /// The end of a batch was awaited: it took so long, and this thread had woken up so late.
    pub fn awaited(&mut self, taken_ns: u64, late_ns: u64) {
        self.taken_ns[self.next_taken] = taken_ns;
        self.next_taken = (self.next_taken + 1) % RECENT;
        self.step_ns = STEP_NS;
        self.remember(taken_ns.saturating_sub(late_ns));
    }

    /// The end of a batch was slept through.
    pub fn missed(&mut self) {
        let fit_ns = self.look_ns().saturating_sub(self.step_ns);
        self.step_ns = self.step_ns.saturating_mul(2);
        self.remember(fit_ns);
    }

    fn remember(&mut self, fit_ns: u64) {
        self.fit_ns[self.next] = fit_ns;
        self.next = (self.next + 1) % RECENT;
    }
}

/// How long to sleep while an end is to be looked for from `look_ns` on; `None` to poll for it.
pub fn nap_ns(now_ns: u64, look_ns: u64) -> Option<u64> {
    let late_ns = now_ns.saturating_sub(look_ns);
    if late_ns > PATIENCE_NS {
        return Some((late_ns / 8).clamp(LATE_NAP_NS, LATE_NAP_NS_MAX));
    }
    look_ns.checked_sub(now_ns).filter(|nap_ns| *nap_ns >= NAP_NS_MIN)
}

#[cfg(test)]
mod tests;
