//! Whether to poll for the next thing that comes, or to sleep at once.
//!
//! Polling pays if something comes soon: then nobody has to ring, and nobody is woken up. What came
//! last tells a lot about that. A client that was answered may ask again within a microsecond; after
//! submissions alone often nothing comes before a batch ends. So for both the daemon remembers, in two
//! bits as a processor does of a branch, whether something came while it was worth polling. It sees
//! that as well when it slept, later by what waking up takes, which polling is worth at most: so twice
//! the time counts then. After waking up it always polls: somebody said that something is about to
//! come.

/// Whether something came soon, most of the last times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Habit(u8);

/// What happened last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Last {
    /// Requests came.
    Asked,
    /// Requests were answered.
    Answered,
    /// The daemon woke up.
    Woke,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Vigil {
    last: Last,
    since_ns: u64,
    /// Nothing was found since.
    quiet: bool,
    asked: Habit,
    answered: Habit,
}

impl Vigil {
    /// As after waking up.
    pub(super) fn new(now_ns: u64) -> Vigil {
        Vigil {
            last: Last::Woke,
            since_ns: now_ns,
            quiet: false,
            asked: Habit(Habit::MAX),
            answered: Habit(Habit::MAX),
        }
    }

    /// Nothing was there to do.
    pub(super) fn found_nothing(&mut self) {
        self.quiet = true;
    }

    /// Something was there to do, and requests were answered or not. Polling is worth `spin_ns`.
    pub(super) fn worked(&mut self, now_ns: u64, answered: bool, spin_ns: u64) {
        if std::mem::take(&mut self.quiet) {
            self.note(now_ns.saturating_sub(self.since_ns) < spin_ns);
        }
        self.last = if answered { Last::Answered } else { Last::Asked };
        self.since_ns = now_ns;
    }

    /// Somebody rang, or it was time.
    pub(super) fn woke(&mut self, now_ns: u64, spin_ns: u64) {
        let in_vain = self.is_hopeful();
        let waited_ns = now_ns.saturating_sub(self.since_ns);
        self.note(!in_vain && waited_ns < spin_ns.saturating_mul(2));
        self.last = Last::Woke;
        self.since_ns = now_ns;
        self.quiet = false;
    }

    /// Whether to poll on.
    pub(super) fn polls(&self, now_ns: u64, spin_ns: u64) -> bool {
        self.is_hopeful() && now_ns.saturating_sub(self.since_ns) < spin_ns
    }

    fn is_hopeful(&self) -> bool {
        match self.last {
            Last::Asked => self.asked.is_soon(),
            Last::Answered => self.answered.is_soon(),
            Last::Woke => true,
        }
    }

    fn note(&mut self, soon: bool) {
        match self.last {
            Last::Asked => self.asked.note(soon),
            Last::Answered => self.answered.note(soon),
            Last::Woke => {}
        }
    }
}

impl Habit {
    const MAX: u8 = 3;

    fn note(&mut self, soon: bool) {
        self.0 = if soon { (self.0 + 1).min(Habit::MAX) } else { self.0.saturating_sub(1) };
    }

    fn is_soon(self) -> bool {
        self.0 > Habit::MAX / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPIN_NS: u64 = 20_000;

    /// A client that asks again `gap_ns` after each answer; a batch takes `batch_ns`. How often the
    /// daemon would have polled after an answer and after a request, of the last ten times.
    fn course(vigil: &mut Vigil, gap_ns: u64, batch_ns: u64) -> (u32, u32) {
        let mut now_ns = vigil.since_ns;
        let (mut after_answers, mut after_requests) = (0, 0);
        for round in 0..20 {
            for (wait_ns, answers) in [(gap_ns, true), (batch_ns, false)] {
                vigil.worked(now_ns, answers, SPIN_NS);
                vigil.found_nothing();
                if vigil.polls(now_ns + 1, SPIN_NS) && round >= 10 {
                    *(if answers { &mut after_answers } else { &mut after_requests }) += 1;
                }
                if wait_ns >= SPIN_NS || !vigil.polls(now_ns + 1, SPIN_NS) {
                    vigil.woke(now_ns + wait_ns, SPIN_NS);
                    assert!(vigil.polls(now_ns + wait_ns, SPIN_NS));
                }
                now_ns += wait_ns;
            }
        }
        (after_answers, after_requests)
    }

    #[test]
    fn it_polls_where_something_came_soon() {
        let mut vigil = Vigil::new(0);
        assert_eq!(course(&mut vigil, 2_000, 800_000), (10, 0), "a GPU and a client that hurries");
        assert_eq!(course(&mut vigil, 90_000, 800_000), (0, 0), "a client that takes its time");
        assert_eq!(course(&mut vigil, 90_000, 5_000), (0, 10), "a model that takes no time");
        assert_eq!(course(&mut vigil, 1_000, 1_000), (10, 10));
    }

    #[test]
    fn what_it_slept_through_counts_as_well() {
        let mut vigil = Vigil::new(0);
        course(&mut vigil, 90_000, 800_000);
        // Now clients are back just in time, of which a sleeper learns later still.
        vigil.worked(vigil.since_ns, true, SPIN_NS);
        for _ in 0..2 {
            assert!(!vigil.polls(vigil.since_ns, SPIN_NS));
            vigil.woke(vigil.since_ns + 30_000, SPIN_NS);
            vigil.worked(vigil.since_ns, true, SPIN_NS);
        }
        assert!(vigil.polls(vigil.since_ns, SPIN_NS));
        // What comes only after it has polled in vain came too late.
        vigil.woke(vigil.since_ns + 30_000, SPIN_NS);
        vigil.worked(vigil.since_ns, true, SPIN_NS);
        assert!(!vigil.polls(vigil.since_ns, SPIN_NS));
    }

    #[test]
    fn it_never_polls_for_longer_than_that_is_worth() {
        let mut vigil = Vigil::new(0);
        assert!(vigil.polls(SPIN_NS - 1, SPIN_NS) && !vigil.polls(SPIN_NS, SPIN_NS));
        vigil.worked(100_000, true, SPIN_NS);
        assert!(vigil.polls(100_000 + SPIN_NS - 1, SPIN_NS));
        assert!(!vigil.polls(100_000 + SPIN_NS, SPIN_NS));
        assert!(!vigil.polls(100_000, 0), "not at all if it is worth nothing");
    }

    #[test]
    fn work_without_a_pause_teaches_nothing() {
        let mut vigil = Vigil::new(0);
        for now_ns in 0..10 {
            vigil.worked(now_ns * 100_000, false, SPIN_NS);
        }
        assert!(vigil.polls(900_001, SPIN_NS));
    }

    #[test]
    fn what_is_always_worth_it_is_always_done() {
        let mut vigil = Vigil::new(0);
        for round in 1..10 {
            let now_ns = round * 1_000_000_000;
            vigil.worked(now_ns, round % 2 == 0, u64::MAX);
            vigil.found_nothing();
            assert!(vigil.polls(now_ns + 999_999_999, u64::MAX));
        }
    }
}
