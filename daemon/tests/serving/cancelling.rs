//! Requests that nobody wants any more.

use gpulet_client::{Session, Status};

use crate::support::client::{collect, finish_echo, next, open, status, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::Frozen;

/// Four requests in a session of four slots, one of them running, on an executor that is stopped.
fn four_in_flight(daemon: &Daemon) -> (Session, Vec<gpulet_client::Request>, Frozen) {
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    let mut session = Session::open(&daemon.options().slots(4)).unwrap();
    let echo = open(&mut session, "echo");
    let mut requests = vec![submit(&mut session, echo, 1, 0)];
    daemon.wait_for("one runs", |state| (state.count("echo", "running") == 1).then_some(()));
    requests.extend((1..4).map(|seed| submit(&mut session, echo, 1, seed)));
    daemon.wait_for("three wait", |state| (state.count("echo", "queued") == 3).then_some(()));
    (session, requests, frozen)
}

#[test]
fn a_queued_request_is_cancelled_at_once_though_every_slot_is_in_flight() {
    let daemon = Setup::builtin().start();
    let (mut session, requests, frozen) = four_in_flight(&daemon);
    session.cancel(requests[2]).unwrap();
    // The executor is stopped: nothing else can be answered now.
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Cancelled, 2));
    assert_eq!((answer.batch_rows, answer.exec_ns), (0, 0));
    session.release((&answer).into()).unwrap();
    drop(frozen);
    for answer in collect(&mut session, 3) {
        finish_echo(&mut session, &answer);
    }
    let state = daemon.state();
    assert_eq!(state.answers("echo", "GPULET_CANCELLED"), 1);
    assert_eq!(state.answers("echo", "GPULET_OK"), 3);
}

#[test]
fn a_running_request_is_answered_whoever_cancels_it_and_however_often() {
    let daemon = Setup::builtin().start();
    let (mut session, requests, frozen) = four_in_flight(&daemon);
    for _ in 0..2 {
        session.cancel(requests[0]).unwrap();
        session.cancel(requests[3]).unwrap();
    }
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Cancelled, 3));
    drop(frozen);
    let answers = collect(&mut session, 3);
    assert_eq!(answers.iter().map(|it| it.user_data).collect::<Vec<_>>(), [0, 1, 2]);
    for answer in answers {
        finish_echo(&mut session, &answer);
    }
}
