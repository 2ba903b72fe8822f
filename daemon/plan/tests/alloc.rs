//! The request path allocates nothing.

use gpulet_plan::policy::{
    Admission, BatchLimits, Decision, Head, Pace, admit, decide, defer, pick,
};
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use gpulet_plan::queue::DeadlineQueue;

const CAPACITY: u32 = 100;

fn take(queue: &mut DeadlineQueue<[u8; 64]>, count: u32) {
    for _ in 0..count {
        queue.pop_front().expect("counted");
    }
}

/// Fills, cancels in, requeues into and drains the queue; returns how many requests ran.
fn turn(queue: &mut DeadlineQueue<[u8; 64]>, profile: &mut LatencyProfile, now_ns: u64) -> u32 {
    let limits = BatchLimits { max_batch: 16, guard_ns: 100 };
    let mut cancelled = None;
    let mut pace = Pace::default();
    for index in 0..u64::from(CAPACITY) + 5 {
        // In no order, some hopeless, and more than the queue has room for.
        let deadline_ns = now_ns + (index * 7_919) % 100_000;
        pace.note(now_ns);
        match admit(now_ns, deadline_ns, 1, &limits, profile, &[now_ns]) {
            Admission::Admit => cancelled = queue.push(deadline_ns, 1, [0; 64]).ok().or(cancelled),
            Admission::RejectHopeless { budget_ns } => profile.note_refused(1, budget_ns),
        }
    }
    cancelled.and_then(|ticket| queue.remove(ticket)).expect("was in the queue");
    let entry = queue.pop_front().expect("more than one");
    queue.requeue(entry).expect("was just taken out");
    let mut ran = 0;
    let mut at_ns = now_ns;
    loop {
        let picked = pick(Head::of(0, queue, &limits, at_ns, profile));
        let decision = decide(queue, &limits, Some(2), at_ns, profile);
        assert!(picked.is_some() || !matches!(decision, Decision::Close { .. }));
        match decision {
            Decision::Idle => return ran,
            Decision::Wait { .. } => unreachable!("an executor is free"),
            Decision::Expire { count } => take(queue, count),
            Decision::Close { count, rows, .. } => {
                std::hint::black_box(defer(queue, &limits, &pace, at_ns, rows, profile));
                take(queue, count);
                ran += count;
                at_ns += profile.latency_ns(rows);
                profile.observe(rows, 3_500);
            }
        }
    }
}

#[test]
fn turns_allocate_nothing() {
    let points = [
        ProfilePoint { rows: 1, p50_ns: 2_000, p99_ns: 2_500 },
        ProfilePoint { rows: 16, p50_ns: 6_000, p99_ns: 6_500 },
    ];
    let mut profile = LatencyProfile::new("m", &points).expect("valid points");
    let mut queue = DeadlineQueue::new(CAPACITY);
    let mut ran = 0;
    let counted = allocation_counter::measure(|| {
        for turn_index in 0..50 {
            ran += turn(&mut queue, &mut profile, turn_index * 1_000_000);
        }
    });
    assert_eq!(counted.count_total, 0);
    assert!(ran > 1_000, "ran {ran} requests only");
    let seen = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(seen.count_total, 1, "the counter counts");
}
