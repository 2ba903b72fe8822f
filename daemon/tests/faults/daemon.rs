//! The daemon's own end: killed, told to go, started again.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use gpulet_client::{Session, Status, Wait};
use rustix::process::Signal;

use crate::support::client::{collect, echo_once, finish_echo, open, status, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::{Frozen, exists};
use crate::support::{MS_NS, PATIENCE_NS, eventually};

#[test]
fn clients_learn_at_once_that_the_daemon_was_killed_and_can_come_back() {
    let mut daemon = Setup::builtin().slow("slow", 20_000 * MS_NS, 1).start();
    let executor = daemon.executor_pid("r0");
    let wait = |wait: Wait, daemon: &Daemon| {
        let mut session = Session::open(&daemon.options().wait(wait)).unwrap();
        let slow = open(&mut session, "slow");
        submit(&mut session, slow, 1, 1);
        std::thread::spawn(move || {
            let error = session.next(PATIENCE_NS).unwrap_err();
            (error.status(), Instant::now(), session)
        })
    };
    let waiters = [Wait::Block, Wait::Spin, Wait::Hybrid(1_000)].map(|it| wait(it, &daemon));
    std::thread::sleep(Duration::from_millis(50));
    let killed = Instant::now();
    daemon.kill();
    for waiter in waiters {
        let (status, at, mut session) = waiter.join().unwrap();
        assert_eq!(status, Status::DaemonGone);
        assert!(at - killed < Duration::from_secs(5), "{:?}", at - killed);
        assert_eq!(session.claim(0, 1).unwrap_err().status(), Status::DaemonGone);
    }
    eventually("the executor is gone too", || (!exists(executor)).then_some(()));
    let refused = Session::open(&daemon.options()).unwrap_err();
    assert_eq!(refused.status(), Status::NoDaemon);

    // The socket of the one that was killed is in the way of nobody.
    assert!(fs::symlink_metadata(&daemon.socket).is_ok());
    daemon.start_again();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

/// Tells a daemon to go while a stopped executor has one request of a session and three wait.
fn draining() -> (Daemon, Session, u32, Frozen) {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    for seed in 0..4 {
        submit(&mut session, echo, 1, seed);
    }
    daemon.wait_for("they are taken", |state| {
        let (running, queued) = (state.count("echo", "running"), state.count("echo", "queued"));
        (running == 1 && state.0["sessions"][0]["in_flight"] == 4 && queued <= 3).then_some(())
    });
    daemon.signal(Signal::TERM);
    daemon.wait_for("it drains", |state| (state.0["draining"] == true).then_some(()));
    (daemon, session, echo, frozen)
}

#[test]
fn a_daemon_that_is_told_to_go_answers_what_it_has_and_takes_nothing_new() {
    let (mut daemon, mut session, echo, frozen) = draining();
    submit(&mut session, echo, 1, 9);
    let answer = session.next(PATIENCE_NS).unwrap();
    assert_eq!((status(&answer), answer.user_data), (Status::Draining, 9));
    let refused = Session::open(&daemon.options()).unwrap_err();
    assert_eq!(refused.status(), Status::Draining);
    let executor = daemon.executor_pid("r0");
    drop(frozen);
    for answer in collect(&mut session, 4) {
        finish_echo(&mut session, &answer);
    }
    let error = session.next(PATIENCE_NS).unwrap_err();
    assert_eq!(error.status(), Status::Draining, "{error}");
    assert_eq!(daemon.ended().code(), Some(0));
    assert!(!daemon.socket.exists());
    eventually("the executor is gone too", || (!exists(executor)).then_some(()));
    daemon.start_again();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

#[test]
fn a_drain_ends_by_its_timeout() {
    let mut daemon = Setup::builtin().top("drain_timeout_ms = 100").start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let _frozen = Frozen::new(daemon.executor_pid("r0"));
    submit(&mut session, echo, 1, 1);
    daemon.wait_for("it runs", |state| (state.count("echo", "running") == 1).then_some(()));
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(0));
    assert_eq!(session.next(PATIENCE_NS).unwrap_err().status(), Status::Draining);
    assert!(daemon.log().contains("stopping although requests are in flight"));
}

#[test]
fn a_frozen_executor_does_not_keep_the_daemon_from_going() {
    let mut daemon = Setup::builtin().start();
    let _frozen = Frozen::new(daemon.executor_pid("r0"));
    daemon.signal(Signal::INT);
    assert_eq!(daemon.ended().code(), Some(0));
}

#[test]
fn only_one_daemon_listens_at_a_socket() {
    let daemon = Setup::builtin().start();
    let output = Command::new(env!("CARGO_BIN_EXE_gpuletd"))
        .arg("--config")
        .arg(&daemon.config)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another daemon listens there"), "{text}");
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

#[test]
fn what_is_no_socket_is_never_removed() {
    let setup = Setup::builtin();
    let file = setup.path().join("s");
    fs::write(&file, "precious").unwrap();
    let mut daemon = setup.launch();
    assert_eq!(daemon.ended().code(), Some(1));
    assert!(daemon.log().contains(file.to_str().unwrap()));
    assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
}
