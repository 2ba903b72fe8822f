//! What can be answered in time is; what can not be is told so as early as possible.

use std::time::Duration;

use gpulet_abi::layout::COMPLETION_LATE;
use gpulet_client::clock::now_ns;
use gpulet_client::{Status, Submit};

use crate::support::MS_NS;
use crate::support::client::{
    claim, collect, finish_echo, next, open, status, submit, submit_until,
};
use crate::support::daemon::Setup;
use crate::support::models::Folder;
use crate::support::process::Frozen;

#[test]
fn what_is_hopeless_on_arrival_is_told_so_at_once() {
    let daemon = Setup::builtin().slow("slow", 10_000 * MS_NS, 1).start();
    let mut session = daemon.session();
    let (null, slow) = (open(&mut session, "null"), open(&mut session, "slow"));
    for (model, deadline_ns) in [(slow, now_ns() + 5_000 * MS_NS), (slow, 1), (null, 1)] {
        submit_until(&mut session, model, 1, 9, deadline_ns);
        let answer = next(&mut session);
        assert_eq!(status(&answer), Status::DeadlineHopeless);
        assert_eq!((answer.batch_rows, answer.exec_ns), (0, 0));
        session.release((&answer).into()).unwrap();
    }
    assert_eq!(daemon.state().count("slow", "batches"), 0);
}

#[test]
fn the_models_slo_is_the_deadline_of_requests_without_one() {
    let impatient = Folder { slo_ms: 100.0, ..Folder::of("file = \"model.pt\"", 1) };
    let setup = Setup::builtin().slow("slow", 500 * MS_NS, 1).model("slow", &impatient);
    let daemon = setup.start();
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    submit(&mut session, slow, 1, 1);
    assert_eq!(status(&next(&mut session)), Status::DeadlineHopeless);
    submit_until(&mut session, slow, 1, 2, now_ns() + 20_000 * MS_NS);
    assert_eq!(status(&next(&mut session)), Status::Ok);
}

#[test]
fn what_waits_too_long_expires_in_the_queue() {
    let daemon = Setup::builtin().start();
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    submit(&mut session, echo, 1, 1);
    daemon.wait_for("one runs", |state| (state.count("echo", "running") == 1).then_some(()));
    let deadline_ns = now_ns() + 300 * MS_NS;
    submit_until(&mut session, echo, 1, 2, deadline_ns);
    submit(&mut session, echo, 1, 3);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::DeadlineExpired, 2));
    assert!(answer.queue_ns > 0 && answer.batch_rows == 0);
    drop(frozen);
    for answer in collect(&mut session, 2) {
        finish_echo(&mut session, &answer);
    }
}

#[test]
fn an_answer_after_its_deadline_says_that_it_is_late() {
    let daemon = Setup::builtin().slow("slow", 200 * MS_NS, 1).start();
    let pid = daemon.executor_pid("r0");
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    let deadline_ns = now_ns() + 600 * MS_NS;
    submit_until(&mut session, slow, 1, 1, deadline_ns);
    daemon.wait_for("it runs", |state| (state.count("slow", "running") == 1).then_some(()));
    // The executor has it; now it takes its time.
    std::thread::sleep(Duration::from_millis(50));
    let frozen = Frozen::new(pid);
    std::thread::sleep(Duration::from_nanos(deadline_ns.saturating_sub(now_ns())));
    drop(frozen);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.flags), (Status::Ok, COMPLETION_LATE));
    assert!(answer.finished_ns > deadline_ns);
}

/// An executor that comes to a batch too late for its first request runs the others nevertheless.
#[test]
fn a_late_start_costs_only_the_requests_it_is_too_late_for() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    let deadline_ns = now_ns() + 200 * MS_NS;
    for (user_data, deadline_ns) in [(1, deadline_ns), (2, 0), (3, 0)] {
        let request = claim(&mut session, echo, 1, user_data);
        session.submit(request, Submit { deadline_ns, user_data, held: true }).unwrap();
    }
    session.flush().unwrap();
    daemon.wait_for("they are one batch", |state| {
        (state.count("echo", "running") == 1 && state.count("echo", "queued") == 0).then_some(())
    });
    std::thread::sleep(Duration::from_nanos(deadline_ns.saturating_sub(now_ns())));
    drop(frozen);
    let answers = collect(&mut session, 3);
    assert_eq!(status(&answers[0]), Status::DeadlineExpired);
    for answer in &answers[1..] {
        finish_echo(&mut session, answer);
    }
}

#[test]
fn the_earliest_deadline_goes_first() {
    let daemon = Setup::builtin().slow("slow", 30 * MS_NS, 1).start();
    let mut session = daemon.session();
    let (echo, slow) = (open(&mut session, "echo"), open(&mut session, "slow"));
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    submit(&mut session, echo, 1, 99);
    daemon.wait_for("one runs", |state| (state.count("echo", "running") == 1).then_some(()));
    let now_ns = now_ns();
    let order = [3u64, 1, 4, 0, 2];
    for urgency in order {
        submit_until(&mut session, slow, 1, urgency, now_ns + (20 + urgency) * 1_000 * MS_NS);
    }
    daemon.wait_for("five wait", |state| (state.count("slow", "queued") == 5).then_some(()));
    drop(frozen);
    let answers: Vec<u64> = (0..6).map(|_| next(&mut session).user_data).collect();
    assert_eq!(answers, [99, 0, 1, 2, 3, 4]);
}
