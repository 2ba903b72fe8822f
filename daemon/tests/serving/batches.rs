//! What waits behind a busy executor runs together.

use gpulet_client::{Session, Status};

use crate::support::client::{collect, finish_echo, next, open, status, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::models::ROW_BYTES;
use crate::support::{MS_NS, process};

/// A daemon of `echo` whose one executor is stopped with a batch of its own, a session beside it,
/// and what starts it again.
fn blocked(daemon: &Daemon) -> (Session, process::Frozen) {
    let frozen = process::Frozen::new(daemon.executor_pid("r0"));
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    submit(&mut session, echo, 1, 1);
    daemon.wait_for("the executor has a batch", |state| {
        (state.count("echo", "running") == 1).then_some(())
    });
    (session, frozen)
}

fn wait_for_queue(daemon: &Daemon, length: u64) {
    daemon.wait_for("the requests are queued", |state| {
        (state.count("echo", "queued") == length).then_some(())
    });
}

#[test]
fn requests_of_several_sessions_make_one_batch_that_is_gathered_once() {
    let daemon = Setup::builtin().start();
    let (mut first, frozen) = blocked(&daemon);
    let mut sessions = [daemon.wide_session(), daemon.wide_session()];
    let mut rows_sum = 0;
    for (part, session) in sessions.iter_mut().enumerate() {
        let echo = open(session, "echo");
        for (index, rows) in [1, 5, 2, 9].into_iter().enumerate() {
            submit(session, echo, rows, 100 * part as u64 + index as u64);
            rows_sum += rows;
        }
    }
    wait_for_queue(&daemon, 8);
    drop(frozen);
    let alone = next(&mut first);
    assert_eq!(alone.batch_rows, 1);
    finish_echo(&mut first, &alone);
    for session in &mut sessions {
        for answer in collect(session, 4) {
            assert_eq!(answer.batch_rows, rows_sum);
            finish_echo(session, &answer);
        }
    }
    let state = daemon.state();
    assert_eq!(state.count("echo", "batches"), 2);
    assert_eq!(state.count("echo", "input_bytes_copied"), u64::from(rows_sum) * ROW_BYTES);
}

#[test]
fn rows_that_a_client_laid_out_together_are_not_gathered() {
    let daemon = Setup::builtin().start();
    let (mut first, frozen) = blocked(&daemon);
    let mut session = daemon.wide_session();
    let echo = open(&mut session, "echo");
    submit(&mut session, echo, 64, 7);
    wait_for_queue(&daemon, 1);
    drop(frozen);
    let answer = next(&mut session);
    assert_eq!(answer.batch_rows, 64);
    finish_echo(&mut session, &answer);
    let answer = next(&mut first);
    finish_echo(&mut first, &answer);
    assert_eq!(daemon.state().count("echo", "input_bytes_copied"), 0);
}

#[test]
fn a_batch_never_has_more_rows_than_the_model_takes() {
    let daemon = Setup::builtin().start();
    let (mut first, frozen) = blocked(&daemon);
    let mut session = daemon.wide_session();
    let echo = open(&mut session, "echo");
    for seed in 0..10 {
        submit(&mut session, echo, 20, seed);
    }
    wait_for_queue(&daemon, 10);
    drop(frozen);
    for answer in collect(&mut session, 10) {
        assert!(answer.batch_rows <= 64 && answer.batch_rows % 20 == 0, "{}", answer.batch_rows);
        finish_echo(&mut session, &answer);
    }
    let answer = next(&mut first);
    finish_echo(&mut first, &answer);
    // One alone, three of three requests each, and one of the last.
    assert_eq!(daemon.state().count("echo", "batches"), 5);
}

#[test]
fn gpulets_share_the_work() {
    let gpulet = |name: &str| {
        format!(
            "[[gpulet]]\nname='{name}'\nmechanism='replay'\nshare_pct=50\nprofiles='profiles'\n"
        )
    };
    let daemon = Setup::builtin()
        .slow("slow", 150 * MS_NS, 1)
        .gpulets(&[gpulet("left"), gpulet("right")].concat())
        .start();
    daemon.executor_pid("left");
    daemon.executor_pid("right");
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    for seed in 0..6 {
        submit(&mut session, slow, 1, seed);
    }
    for answer in collect(&mut session, 6) {
        assert_eq!(status(&answer), Status::Ok);
    }
    let state = daemon.state();
    for gpulet in ["left", "right"] {
        let batches = state.gpulet(gpulet).unwrap()["batches"].as_u64().unwrap();
        assert!(batches >= 1, "{gpulet} ran nothing");
    }
}
