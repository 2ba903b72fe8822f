//! Gpulets that wait for another row where that pays, and wake up by themselves.

use gpulet_client::clock::now_ns;
use gpulet_client::{Session, Status};

use crate::support::MS_NS;
use crate::support::client::{collect, next, open, status, submit, submit_until};
use crate::support::daemon::{Daemon, Setup};

/// What a batch takes, whatever its rows: each row that joins one saves as much.
const BATCH_NS: u64 = 1_000 * MS_NS;

/// A daemon that defers, idle, of whose model two requests came at once: the second was taken back.
fn paced() -> (Daemon, Session, u32) {
    let daemon = Setup::builtin().top("defer = true").slow("slow", BATCH_NS, 8).start();
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    submit(&mut session, slow, 1, 0);
    daemon.wait_for("one runs", |state| (state.count("slow", "running") == 1).then_some(()));
    let second = submit(&mut session, slow, 1, 1);
    session.cancel(second).unwrap();
    let answers = collect(&mut session, 2);
    assert_eq!(answers.iter().map(status).collect::<Vec<_>>(), [Status::Ok, Status::Cancelled]);
    (daemon, session, slow)
}

#[test]
fn requests_that_come_while_one_waits_run_with_it() {
    let (daemon, mut session, slow) = paced();
    submit(&mut session, slow, 1, 2);
    daemon.wait_for("it waits", |state| (state.count("slow", "queued") == 1).then_some(()));
    assert_eq!(daemon.state().count("slow", "running"), 0, "the gpulet is free");
    submit(&mut session, slow, 1, 3);
    for answer in collect(&mut session, 2) {
        assert_eq!((status(&answer), answer.batch_rows, answer.flags), (Status::Ok, 2, 0));
    }
    assert_eq!(daemon.state().count("slow", "batches"), 2);
}

#[test]
fn a_request_that_waits_in_vain_is_answered_in_time() {
    let (daemon, mut session, slow) = paced();
    // Far enough that it waits even where the first batch took longer than it should.
    submit_until(&mut session, slow, 1, 2, now_ns() + 1_600 * MS_NS + 2 * BATCH_NS);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.batch_rows, answer.flags), (Status::Ok, 1, 0));
    assert!(answer.queue_ns > 300 * MS_NS, "it did not wait: {answer:?}");
    assert_eq!(daemon.state().count("slow", "batches"), 2);
}
