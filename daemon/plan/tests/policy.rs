//! The policy: single decisions, and whole runs on a virtual clock.

use gpulet_plan::policy::{
    Admission, BATCH_REQUESTS_MAX, BatchLimits, Borrowed, Decision, Head, Home, Pace, admit,
    borrow, decide, defer, latest_start_ns, lent_ns, pick,
};
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use gpulet_plan::queue::DeadlineQueue;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const LIMITS: BatchLimits = BatchLimits { max_batch: 8, guard_ns: 10 };

/// `base_ns + rows * row_ns`, exactly.
fn linear(base_ns: u64, row_ns: u64) -> LatencyProfile {
    let point = |rows: u32| {
        let ns = base_ns + u64::from(rows) * row_ns;
        ProfilePoint { rows, p50_ns: ns, p99_ns: ns }
    };
    LatencyProfile::new("m", &[point(1), point(64)]).expect("valid points")
}

fn queue(requests: &[(u64, u32)]) -> DeadlineQueue<usize> {
    let mut queue = DeadlineQueue::new(128);
    for (index, &(deadline_ns, rows)) in requests.iter().enumerate() {
        queue.push(deadline_ns, rows, index).expect("room");
    }
    queue
}

#[test]
fn admits_to_the_nanosecond() {
    let profile = linear(100, 10);
    let at =
        |deadline_ns, rows, busy: &[u64]| admit(50, deadline_ns, rows, &LIMITS, &profile, busy);
    // 110 of latency and 10 of guard, from 50.
    assert_eq!(at(170, 1, &[0]), Admission::Admit);
    assert_eq!(at(169, 1, &[0]), Admission::RejectHopeless { budget_ns: 109 });
    assert_eq!(at(170, 1, &[51, 60]), Admission::RejectHopeless { budget_ns: 109 });
    assert_eq!(at(171, 1, &[60, 51]), Admission::Admit);
    assert_eq!(at(170, 1, &[]), Admission::Admit);
    assert_eq!(at(49, 1, &[]), Admission::RejectHopeless { budget_ns: 0 });
    assert_eq!(at(u64::MAX, 8, &[0]), Admission::Admit);
    assert!(matches!(at(u64::MAX, 9, &[0]), Admission::RejectHopeless { .. }));
}

#[test]
fn an_empty_queue_is_idle() {
    assert_eq!(decide(&queue(&[]), &LIMITS, Some(1), 0, &linear(100, 10)), Decision::Idle);
}

#[test]
fn waits_for_an_executor_until_the_head_expires() {
    let (queue, profile) = (queue(&[(500, 2), (600, 1)]), linear(100, 10));
    let waiting = Decision::Wait { until_ns: 371 };
    assert_eq!(decide(&queue, &LIMITS, None, 370, &profile), waiting);
    assert_eq!(decide(&queue, &LIMITS, None, 371, &profile), Decision::Expire { count: 1 });
}

#[test]
fn expires_only_the_hopeless_at_the_front_and_before_closing() {
    let queue = queue(&[(50, 1), (60, 1), (1_000, 1), (1_001, 9)]);
    let profile = linear(100, 10);
    assert_eq!(decide(&queue, &LIMITS, Some(1), 0, &profile), Decision::Expire { count: 2 });
}

#[test]
fn a_request_larger_than_a_batch_is_expired_not_kept() {
    let decision = decide(&queue(&[(u64::MAX, 9)]), &LIMITS, Some(1), 0, &linear(100, 10));
    assert_eq!(decision, Decision::Expire { count: 1 });
}

#[test]
fn the_earliest_deadline_bounds_the_batch() {
    let profile = linear(100, 10);
    // A budget of 135 holds 3 rows; the first deadline counts, however late the others are.
    let close = Decision::Close { count: 3, rows: 3, latest_start_ns: 5 };
    let requests = [(145, 1), (900, 1), (900, 1), (900, 1)];
    assert_eq!(decide(&queue(&requests), &LIMITS, Some(1), 0, &profile), close);
}

#[test]
fn a_queue_that_is_behind_gives_up_its_oldest_for_larger_batches() {
    // A request each 10 ns, an executor that runs 8 in 180 ns: the first deadline allows 4.
    let mut queue = queue(&(0..40).map(|at| (150 + 10 * at, 1)).collect::<Vec<_>>());
    let profile = linear(100, 10);
    let close = Decision::Close { count: 4, rows: 4, latest_start_ns: 0 };
    assert_eq!(decide(&queue, &LIMITS, Some(10), 0, &profile), close, "ten of them keep up");
    assert_eq!(decide(&queue, &LIMITS, Some(1), 0, &profile), Decision::Expire { count: 4 });
    for _ in 0..4 {
        queue.pop_front().expect("one of 40");
    }
    let close = Decision::Close { count: 8, rows: 8, latest_start_ns: 0 };
    assert_eq!(decide(&queue, &LIMITS, Some(1), 0, &profile), close);
}

#[test]
fn nobody_is_given_up_for_more_than_would_be_lost() {
    // After the first, all others make it: giving it up would gain nothing.
    let mut requests = vec![(130, 1)];
    requests.resize(9, (400, 1));
    let close = Decision::Close { count: 2, rows: 2, latest_start_ns: 0 };
    assert_eq!(decide(&queue(&requests), &LIMITS, Some(1), 0, &linear(100, 10)), close);
}

#[test]
fn max_batch_bounds_the_batch_and_nobody_overtakes() {
    let profile = linear(100, 10);
    let requests = [(5_000, 5), (5_001, 4), (5_002, 1)];
    let close = Decision::Close { count: 1, rows: 5, latest_start_ns: 4_840 };
    assert_eq!(decide(&queue(&requests), &LIMITS, Some(1), 0, &profile), close);
}

#[test]
fn requests_bound_a_batch_and_an_expiry() {
    let limits = BatchLimits { max_batch: 1_000, guard_ns: 0 };
    let (queue, profile) = (queue(&[(9_000, 1); 100]), linear(100, 10));
    let close = Decision::Close { count: BATCH_REQUESTS_MAX, rows: 64, latest_start_ns: 8_260 };
    assert_eq!(decide(&queue, &limits, Some(1), 0, &profile), close);
    let expire = Decision::Expire { count: BATCH_REQUESTS_MAX };
    assert_eq!(decide(&queue, &limits, Some(1), 9_000, &profile), expire);
}

#[test]
fn what_was_observed_changes_what_is_decided() {
    let mut profile = linear(100, 10);
    let requests = queue(&[(375, 1), (375, 1)]);
    profile.observe(1, 330);
    profile.observe(64, 3_000);
    let Decision::Close { count: 1, .. } = decide(&requests, &LIMITS, Some(1), 0, &profile) else {
        panic!("two rows no longer fit");
    };
}

/// The model that is picked of some that have one request each, due then.
fn picked(start_ns: u64, models: &[(usize, u64, &LatencyProfile)]) -> Option<usize> {
    let limits = BatchLimits { max_batch: 1, guard_ns: 5 };
    let heads = models.iter().filter_map(|&(model, deadline_ns, profile)| {
        Head::of(model, &queue(&[(deadline_ns, 1)]), &limits, start_ns, profile)
    });
    pick(heads).map(|head| head.model)
}

#[test]
fn picks_the_model_that_must_start_first_of_those_that_still_can() {
    let (slow, fast) = (&linear(1_000, 100), &linear(100, 10));
    assert_eq!(picked(0, &[]), None);
    assert_eq!(picked(0, &[(3, 2_000, fast), (4, 2_500, slow)]), Some(4));
    assert_eq!(picked(0, &[(3, 1_000, fast), (4, 2_500, slow)]), Some(3));
    assert_eq!(picked(0, &[(7, 2_000, fast), (6, 2_000, fast)]), Some(7));
    // At 1,396 the slow one is too late for 2,500, and does not keep the fast one waiting.
    assert_eq!(picked(1_395, &[(3, 2_000, fast), (4, 2_500, slow)]), Some(4));
    assert_eq!(picked(1_396, &[(3, 2_000, fast), (4, 2_500, slow)]), Some(3));
    assert_eq!(picked(1_900, &[(3, 2_000, fast), (4, 2_500, slow)]), None);
    assert_eq!(latest_start_ns(100, 1, 5, fast), 0);
}

#[test]
fn an_executor_too_slow_for_the_first_runs_those_behind_it() {
    let profile = linear(100, 10);
    // From 1,000 on, 1 row must be due at 1,120, and 2 at 1,130.
    let queue = queue(&[(1_110, 1), (1_119, 1), (1_135, 1), (1_140, 1), (1_900, 1)]);
    let head = Head::of(5, &queue, &LIMITS, 1_000, &profile).expect("the third makes it");
    assert_eq!((head.model, head.skip, head.deadline_ns, head.rows), (5, 2, 1_135, 1));
    let close = Decision::Close { count: 2, rows: 2, latest_start_ns: 1_005 };
    assert_eq!(head.decide(&queue, 1, 1_000), close);
    let head = Head::of(5, &queue, &LIMITS, 990, &profile).expect("the first makes it");
    assert_eq!(head.skip, 0);
    assert_eq!(head.decide(&queue, 1, 990), decide(&queue, &LIMITS, Some(1), 990, &profile));
    assert!(Head::of(5, &queue, &LIMITS, 1_781, &profile).is_none());
}

#[test]
fn a_gpulet_is_lent_for_as_long_as_its_own_can_wait() {
    let profile = linear(100, 10);
    // 110 for one row and 10 of guard.
    assert_eq!(lent_ns(500, &LIMITS, &profile), 380);
    assert_eq!(lent_ns(120, &LIMITS, &profile), 0);
    assert_eq!(lent_ns(5, &LIMITS, &profile), 0);
}

#[test]
fn a_guest_borrows_what_would_be_lost_at_home() {
    let (slow, fast) = (linear(200, 10), linear(100, 10));
    let home = |free_ns| Some(Home { executors: 1, free_ns, profile: &slow });
    let ask = |requests: &[(u64, u32)], home, lent_ns| {
        borrow(&queue(requests), &LIMITS, home, 1_000, lent_ns, &fast)
    };
    let two = [(1_400, 1), (1_400, 1)];
    // At home they take 220, and must start by 1,170.
    assert_eq!(ask(&two, home(1_170), 500), None);
    let lent = Borrowed { count: 2, rows: 2, latest_start_ns: 1_270 };
    assert_eq!(ask(&two, home(1_171), 500), Some(lent));
    let one = Borrowed { count: 1, rows: 1, latest_start_ns: 1_280 };
    assert_eq!(ask(&two, home(1_171), 119), Some(one));
    assert_eq!(ask(&two, home(1_171), 109), None, "no row is done in time for the hosts");
    assert_eq!(ask(&two, None, 500), Some(lent), "there is no home");
    assert_eq!(ask(&[], None, 500), None);
    assert_eq!(ask(&[(1_100, 1)], None, 500), None, "it is too late for it here too");
}

/// A pace of so many requests, one each `gap_ns`, the last at 0 + `last_ns`.
fn paced(gap_ns: u64, last_ns: u64) -> Pace {
    let mut pace = Pace::default();
    (0..100).rev().for_each(|before| pace.note(last_ns - before * gap_ns));
    pace
}

#[test]
fn a_batch_waits_for_a_row_where_that_pays() {
    // Each row that joins saves 100.
    let profile = linear(100, 10);
    let until = |rows: usize, gap_ns, start_ns| {
        let requests: Vec<(u64, u32)> = (0..rows as u64).map(|at| (20_000 + at, 1)).collect();
        let pace = paced(gap_ns, 10_000);
        defer(&queue(&requests), &LIMITS, &pace, start_ns, rows as u32, &profile)
    };
    assert_eq!(until(1, 99, 10_000), Some(10_100));
    assert_eq!(until(1, 99, 10_099), Some(10_100), "longer than that none was worth waiting for");
    assert_eq!(until(1, 99, 10_100), None);
    assert_eq!(until(1, 100, 10_000), None, "rows come too seldom");
    // Of two rows both wait, so that each row less gains a third as much.
    assert_eq!(until(2, 32, 10_000), Some(10_033));
    assert_eq!(until(2, 33, 10_000), None);
    assert_eq!(until(7, 0, 10_000), Some(10_003));
    assert_eq!(until(8, 0, 10_000), None, "the batch is full");
    assert_eq!(until(0, 0, 10_000), None);
}

#[test]
fn nothing_waits_that_could_be_late_or_has_the_next_row_already() {
    let profile = linear(100, 10);
    let ask = |requests: &[(u64, u32)], rows| {
        defer(&queue(requests), &LIMITS, &paced(50, 10_000), 10_000, rows, &profile)
    };
    // With another row it takes 120, and leaves as much again and a guard of 10.
    assert_eq!(ask(&[(10_251, 1)], 1), Some(10_001));
    assert_eq!(ask(&[(10_250, 1)], 1), None);
    assert_eq!(ask(&[(20_000, 1), (20_000, 1)], 1), None);
    let flat = linear(100, 0);
    let unknown = |pace: &Pace| defer(&queue(&[(9_000, 1)]), &LIMITS, pace, 5, 1, &flat);
    let mut pace = Pace::default();
    assert_eq!(unknown(&pace), None);
    pace.note(0);
    assert_eq!(unknown(&pace), None, "one request has no gap");
    pace.note(5);
    assert_eq!(unknown(&pace), Some(105));
    assert_eq!(
        defer(&queue(&[(u64::MAX, 1)]), &LIMITS, &paced(0, u64::MAX), 0, 1, &flat),
        Some(u64::MAX - 210)
    );
}

#[derive(Debug, Clone)]
struct Arrival {
    after_ns: u64,
    slo_ns: u64,
    rows: u32,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let arrival = (0_u64..400, 0_u64..4_000, 1_u32..10);
    let built = arrival.prop_map(|(after_ns, slo_ns, rows)| Arrival { after_ns, slo_ns, rows });
    prop::collection::vec(built, 1..120)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Rejected,
    Queued,
    Expired,
    Closed,
}

/// Requests lost if the queue were served from the front, in batches as large as they may be.
fn lost(
    mut requests: &[(u64, u32)],
    limits: &BatchLimits,
    executors: u32,
    mut now_ns: u64,
    profile: &LatencyProfile,
) -> usize {
    let mut lost = 0;
    while let Some(&(deadline_ns, _)) = requests.first() {
        let makes = |count: usize| {
            let rows = requests[..count].iter().map(|it| it.1).sum();
            let ends_ns = now_ns + profile.latency_ns(rows) + limits.guard_ns;
            rows <= limits.max_batch && ends_ns <= deadline_ns
        };
        let count = (1..=requests.len()).take_while(|&count| makes(count)).count();
        let rows = requests[..count].iter().map(|it| it.1).sum();
        now_ns += if count > 0 { profile.latency_ns(rows) / u64::from(executors) } else { 0 };
        lost += usize::from(count == 0);
        requests = &requests[count.max(1)..];
    }
    lost
}

/// A dispatcher and its executors on a virtual clock.
struct Run<'a> {
    queue: DeadlineQueue<usize>,
    limits: BatchLimits,
    profile: &'a LatencyProfile,
    busy_until_ns: Vec<u64>,
    fates: Vec<Fate>,
}

impl Run<'_> {
    /// One turn: decides until there is nothing more to do, checking each decision.
    /// Returns when the next turn is due without a new arrival.
    fn turn(&mut self, now_ns: u64) -> Result<Option<u64>, TestCaseError> {
        loop {
            let free = self.busy_until_ns.iter().position(|&until_ns| until_ns <= now_ns);
            let executors = free.map(|_| self.busy_until_ns.len() as u32);
            match decide(&self.queue, &self.limits, executors, now_ns, self.profile) {
                Decision::Idle => {
                    prop_assert!(self.queue.is_empty());
                    return Ok(None);
                }
                Decision::Wait { until_ns } => {
                    prop_assert!(free.is_none() && until_ns > now_ns);
                    return Ok(self.busy_until_ns.iter().copied().min().map(|ns| ns.min(until_ns)));
                }
                Decision::Expire { count } => {
                    prop_assert!((1..=BATCH_REQUESTS_MAX).contains(&count));
                    self.expire(count, executors, now_ns)?;
                }
                Decision::Close { count, rows, latest_start_ns } => {
                    let executor = free.expect("closes only for a free executor");
                    self.close(now_ns, executor, count, rows, latest_start_ns)?;
                }
            }
        }
    }

    /// Takes out what is hopeless, or what is no more than would be lost anyway.
    fn expire(
        &mut self,
        count: u32,
        executors: Option<u32>,
        now_ns: u64,
    ) -> Result<(), TestCaseError> {
        let requests: Vec<(u64, u32)> = self.queue.demands().collect();
        let makes = |&(deadline_ns, rows): &(u64, u32)| {
            let ends_ns = now_ns + self.profile.latency_ns(rows) + self.limits.guard_ns;
            ends_ns <= deadline_ns && rows <= self.limits.max_batch
        };
        let hopeful = requests[..count as usize].iter().filter(|&it| makes(it)).count();
        if hopeful > 0 {
            prop_assert!(makes(&requests[0]), "what is hopeless goes first");
            let executors = executors.expect("gives up only for a free executor");
            let lost = lost(&requests, &self.limits, executors, now_ns, self.profile);
            prop_assert!(hopeful <= lost, "gave up {} to save {}", hopeful, lost);
        }
        for _ in 0..count {
            let entry = self.queue.pop_front().expect("counted");
            self.settle(entry.payload, Fate::Expired)?;
        }
        Ok(())
    }

    fn close(
        &mut self,
        now_ns: u64,
        executor: usize,
        count: u32,
        rows: u32,
        latest_start_ns: u64,
    ) -> Result<(), TestCaseError> {
        prop_assert!((1..=BATCH_REQUESTS_MAX).contains(&count) && rows <= self.limits.max_batch);
        let latency_ns = self.profile.latency_ns(rows);
        let (mut sum, mut last_ns) = (0, 0);
        for _ in 0..count {
            let entry = self.queue.pop_front().expect("counted");
            prop_assert!(entry.deadline_ns >= last_ns, "earliest deadline first");
            prop_assert!(now_ns + latency_ns + self.limits.guard_ns <= entry.deadline_ns);
            prop_assert!(latest_start_ns + latency_ns + self.limits.guard_ns <= entry.deadline_ns);
            (sum, last_ns) = (sum + entry.rows, entry.deadline_ns);
            self.settle(entry.payload, Fate::Closed)?;
        }
        prop_assert_eq!(sum, rows);
        prop_assert!(latest_start_ns >= now_ns);
        self.busy_until_ns[executor] = now_ns + latency_ns;
        Ok(())
    }

    fn settle(&mut self, index: usize, fate: Fate) -> Result<(), TestCaseError> {
        prop_assert_eq!(self.fates[index], Fate::Queued, "settled once");
        self.fates[index] = fate;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(0x70_6f_6c), failure_persistence: None,
        ..ProptestConfig::with_cases(512)
    })]

    /// Every admitted request is closed in time or expired, once, and the queue drains.
    #[test]
    fn runs_keep_every_promise(
        arrivals in arrivals(),
        base_ns in 1_u64..500,
        row_ns in 0_u64..200,
        max_batch in 1_u32..10,
        guard_ns in 0_u64..50,
        executors in 1_usize..4,
    ) {
        let profile = linear(base_ns, row_ns);
        let limits = BatchLimits { max_batch, guard_ns };
        let mut run = Run {
            queue: DeadlineQueue::new(128),
            limits,
            profile: &profile,
            busy_until_ns: vec![0; executors],
            fates: Vec::new(),
        };
        let mut now_ns = 0;
        for (index, Arrival { after_ns, slo_ns, rows }) in arrivals.into_iter().enumerate() {
            let arrive_ns = now_ns + after_ns;
            while let Some(due_ns) = run.turn(now_ns)?.filter(|&due_ns| due_ns <= arrive_ns) {
                prop_assert!(due_ns > now_ns, "time goes on");
                now_ns = due_ns;
            }
            now_ns = arrive_ns;
            let deadline_ns = now_ns + slo_ns;
            let busy = run.busy_until_ns.clone();
            let admitted =
                admit(now_ns, deadline_ns, rows, &limits, &profile, &busy) == Admission::Admit;
            run.fates.push(if admitted { Fate::Queued } else { Fate::Rejected });
            if admitted {
                prop_assert!(rows <= max_batch);
                run.queue.push(deadline_ns, rows, index).expect("room for all");
                if run.queue.len() == 1 && busy.iter().any(|&until_ns| until_ns <= now_ns) {
                    let decision = decide(&run.queue, &limits, Some(1), now_ns, &profile);
                    let closes = matches!(decision, Decision::Close { count: 1, .. });
                    prop_assert!(closes, "admitted and free: {:?}", decision);
                }
            }
        }
        while let Some(due_ns) = run.turn(now_ns)? {
            prop_assert!(due_ns > now_ns, "time goes on");
            now_ns = due_ns;
        }
        prop_assert!(run.fates.iter().all(|&fate| fate != Fate::Queued), "nobody starves");
    }

    /// A batch is as large as it may be: one more request would break a bound.
    #[test]
    fn a_batch_is_the_largest_allowed_prefix(
        requests in prop::collection::vec((0_u64..3_000, 1_u32..6), 1..100),
        max_batch in 6_u32..80,
        row_ns in 0_u64..40,
    ) {
        let (queue, profile) = (queue(&requests), linear(100, row_ns));
        let limits = BatchLimits { max_batch, guard_ns: 0 };
        if let Decision::Close { count, rows, .. } = decide(&queue, &limits, Some(1), 0, &profile) {
            let (earliest_ns, _) = queue.demands().next().expect("closed something");
            if let Some((_, more)) = queue.demands().nth(count as usize) {
                let fits = rows + more <= max_batch
                    && profile.latency_ns(rows + more) <= earliest_ns
                    && count < BATCH_REQUESTS_MAX;
                prop_assert!(!fits, "left out {} rows after {}", more, rows);
            }
        }
    }

    /// What is lent is given back in time for the hosts, and lent only for who is lost without.
    #[test]
    fn guests_make_nobody_late(
        requests in prop::collection::vec((0_u64..3_000, 1_u32..6), 1..100),
        free_ns in 0_u64..2_000,
        executors in 1_u32..4,
        base_ns in 1_u64..500,
        host_ns in 1_u64..500,
        slo_ns in 0_u64..3_000,
    ) {
        let (queue, guest, home, host) =
            (queue(&requests), linear(base_ns, 10), linear(100, 20), linear(host_ns, 10));
        let limits = BatchLimits { max_batch: 16, guard_ns: 10 };
        let lent_ns = lent_ns(slo_ns, &limits, &host);
        let at_home = Home { executors, free_ns, profile: &home };
        if let Some(Borrowed { count, rows, .. }) =
            borrow(&queue, &limits, Some(at_home), 0, lent_ns, &guest)
        {
            let ends_ns = guest.latency_ns(rows);
            let sum: u32 = queue.demands().take(count as usize).map(|(_, rows)| rows).sum();
            prop_assert_eq!(rows, sum);
            prop_assert!(queue.demands().next().is_some_and(|it| ends_ns + 10 <= it.0));
            let own = admit(0, slo_ns, 1, &limits, &host, &[ends_ns]);
            prop_assert_eq!(own, Admission::Admit, "the host's own request");
            let makes = |start_ns: u64, it: &(u64, u32)| {
                start_ns + home.latency_ns(it.1) + limits.guard_ns <= it.0
            };
            let all: Vec<(u64, u32)> = queue.demands().filter(|it| makes(0, it)).collect();
            let lost = lost(&all, &limits, executors, free_ns, &home);
            prop_assert!(lost > 0, "home keeps up");
        }
    }

    /// No numbers, however absurd, overflow or stop a decision.
    #[test]
    fn extremes_are_decided(
        now_ns: u64, deadline_ns: u64, rows: u32, max_batch: u32, guard_ns: u64, busy_ns: u64,
        free: bool,
    ) {
        let mut profile = linear(1_000, 1_000);
        profile.observe(rows, guard_ns);
        let limits = BatchLimits { max_batch, guard_ns };
        let admission = admit(now_ns, deadline_ns, rows, &limits, &profile, &[busy_ns]);
        if deadline_ns <= now_ns {
            prop_assert_ne!(admission, Admission::Admit);
        }
        let queue = queue(&[(deadline_ns, rows), (u64::MAX, u32::MAX)]);
        let decision = decide(&queue, &limits, free.then_some(3), now_ns, &profile);
        if let (Admission::Admit, Decision::Expire { .. }, true) =
            (admission, decision, busy_ns <= now_ns)
        {
            return Err(TestCaseError::fail("admitted, startable, and expired at once"));
        }
    }
}
