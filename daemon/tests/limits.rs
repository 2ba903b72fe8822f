//! Every limit, from both sides: what is within it works, and what is beyond is refused with a
//! status, without a loss.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use gpulet_abi::layout::COMPLETION_CONTROL_OFFSET;
use gpulet_client::{Options, Session, Status};

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use support::MS_NS;
use support::client::{collect, echo_once, finish_echo, open, status, submit};
use support::daemon::Setup;
use support::models::Folder;
use support::process::{self, Frozen, descriptors_at_rest};
use support::raw::{Connection, RawSession, hello};

#[test]
fn a_full_queue_pushes_back_and_loses_nothing() {
    let daemon = Setup::builtin().section("[limits]\nqueue_max = 4").start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    submit(&mut session, echo, 1, 0);
    daemon.wait_for("one runs", |state| (state.count("echo", "running") == 1).then_some(()));
    for seed in 1..40 {
        submit(&mut session, echo, 1, seed);
    }
    // The first four wait; the others are told at once.
    for answer in collect(&mut session, 35) {
        assert_eq!(status(&answer), Status::QueueFull);
        assert!(answer.user_data >= 5, "{answer:?}");
        session.release((&answer).into()).unwrap();
    }
    assert_eq!(daemon.state().count("echo", "queued"), 4);
    drop(frozen);
    for answer in collect(&mut session, 5) {
        finish_echo(&mut session, &answer);
    }
    let state = daemon.state();
    let id = session.info().session;
    let told = state.session(id).unwrap();
    assert_eq!((&told["submitted"], &told["completed"]), (&40.into(), &40.into()));
    assert_eq!(state.answers("echo", "GPULET_QUEUE_FULL"), 35);
    assert_eq!(state.answers("echo", "GPULET_OK"), 5);
    echo_once(&mut session, echo, 1, 99);
}

/// Many more requests than the queue holds, from clients that try again: all are answered.
#[test]
fn clients_that_try_again_get_every_answer_through_a_short_queue() {
    const REQUESTS: u64 = 300;
    let daemon = Setup::builtin().section("[limits]\nqueue_max = 2").start();
    std::thread::scope(|scope| {
        for part in 0..3u64 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut session = Session::open(&daemon.options().slots(8)).unwrap();
                let echo = open(&mut session, "echo");
                let mut left: Vec<u64> = (0..REQUESTS).map(|seed| part << 32 | seed).collect();
                let (mut in_flight, mut right) = (0, 0);
                while right < REQUESTS {
                    while in_flight < 8 {
                        let Some(seed) = left.pop() else { break };
                        submit(&mut session, echo, 1, seed);
                        in_flight += 1;
                    }
                    let answer = support::client::next(&mut session);
                    in_flight -= 1;
                    if status(&answer) == Status::QueueFull {
                        left.push(answer.user_data);
                        session.release((&answer).into()).unwrap();
                    } else {
                        finish_echo(&mut session, &answer);
                        right += 1;
                    }
                }
            });
        }
    });
    assert_eq!(daemon.state().answers("echo", "GPULET_OK"), 3 * REQUESTS);
}

/// A client that does not read its answers gets no more of them than there is room for; the others
/// wait in its own ring until it reads.
#[test]
fn the_completion_ring_never_overflows() {
    let daemon = Setup::builtin().start();
    let mut session = RawSession::open(&daemon.socket, 1024, 4);
    let null = session.model("null");
    // The submission ring holds two entries for each slot.
    for round in 0..2 {
        let mut entries = [0, 1, 2, 3].map(|slot| RawSession::infer(null, slot, 1));
        entries.iter_mut().for_each(|entry| entry.user_data += 4 * round);
        session.send(&entries);
    }
    daemon.wait_for("four are answered", |state| {
        (state.session(session.session).unwrap()["completed"] == 4).then_some(())
    });
    std::thread::sleep(std::time::Duration::from_millis(20));
    let tail = session.memory.atomic_u32(COMPLETION_CONTROL_OFFSET);
    assert_eq!(tail.load(std::sync::atomic::Ordering::Relaxed), 4);
    let order: Vec<u64> = (0..8).map(|_| session.next().user_data).collect();
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_the_model_does_not_take_is_refused() {
    let daemon = Setup::builtin().model("few", &Folder::of("builtin = \"echo\"", 3)).start();
    // Room for two rows of 256 bytes, in and out.
    let mut session = RawSession::open(&daemon.socket, 1024, 2);
    let (few, echo, null) = (session.model("few"), session.model("echo"), session.model("null"));
    for (model, rows, expected) in [
        (few, 0, Status::TooManyRows),
        (few, 2, Status::Ok),
        (few, 3, Status::SlotTooSmall),
        (few, 4, Status::TooManyRows),
        (few, u32::MAX, Status::TooManyRows),
        (echo, 3, Status::SlotTooSmall),
        (echo, 65, Status::TooManyRows),
        (null, 0, Status::TooManyRows),
        (null, 64, Status::SlotTooSmall),
        (1_000, 1, Status::NoSuchModel),
        (u32::MAX, 1, Status::NoSuchModel),
    ] {
        let answer = session.ask(RawSession::infer(model, 1, rows));
        assert_eq!(answer, expected, "{rows} rows of model {model}");
    }
    assert_eq!(daemon.state().answers("few", "GPULET_TOO_MANY_ROWS"), 3);
}

#[test]
fn there_are_so_many_sessions_and_no_more() {
    let limits = "[limits]\nsessions_max = 3\nsessions_per_user_max = 2";
    let daemon = Setup::builtin().section(limits).start();
    let first = daemon.session();
    let _second = daemon.session();
    let refused = Session::open(&daemon.options()).unwrap_err();
    assert_eq!(refused.status(), Status::SessionLimit);
    assert!(refused.to_string().contains("user 0 has 2 sessions"), "{refused}");
    drop(first);
    daemon.wait_for("one is gone", |state| (state.session_count() == 1).then_some(()));
    let _third = daemon.session();

    let daemon = Setup::builtin().section("[limits]\nsessions_max = 1").start();
    let _only = daemon.session();
    let refused = Session::open(&daemon.options()).unwrap_err();
    assert_eq!(refused.status(), Status::SessionLimit);
    assert!(refused.to_string().contains("there are 1 sessions"), "{refused}");
}

#[test]
fn regions_are_as_large_as_allowed_and_no_larger() {
    let limits = "[limits]\nslot_count_max = 100\nslot_bytes_max = 65536\n\
                  region_bytes_max = 1048576\nregion_bytes_total_max = 2097152";
    let daemon = Setup::builtin().section(limits).start();
    for (slot_bytes, slot_count, word) in [
        (256, 101, "slot_count 101"),
        (65_537, 1, "slot_bytes 65537"),
        (u64::MAX, 1, "slot_bytes"),
        (65_536, 17, "region_bytes"),
        (256, u32::MAX, "slot_count"),
    ] {
        let connection = Connection::open(&daemon.socket);
        let (status, text) = connection.refusal(&hello(slot_bytes, slot_count));
        assert_eq!(status, Status::RegionLimit, "{slot_bytes} x {slot_count}");
        assert!(text.contains(word) && text.contains("limit"), "{text}");
    }
    let wish = Options { slot_bytes: 65_536, ..daemon.options().slots(12) };
    let largest = Session::open(&wish).unwrap();
    assert_eq!((largest.info().slot_bytes, largest.info().slot_count), (65_536, 12));
    let _beside = Session::open(&wish).unwrap();
    let refused = Session::open(&wish).unwrap_err();
    assert_eq!(refused.status(), Status::RegionLimit);
    assert!(refused.to_string().contains("region_bytes_total_max"), "{refused}");
    drop(largest);
    daemon.wait_for("one is gone", |state| (state.session_count() == 1).then_some(()));
    Session::open(&wish).unwrap();
}

#[test]
fn a_session_without_wishes_gets_slots_for_one_row_of_any_model() {
    let large = Folder {
        inputs: &[("x", "f32", "[-1, 1000]")],
        outputs: &[("y", "f32", "[-1, 1000]")],
        ..Folder::of("builtin = \"echo\"", 4)
    };
    let daemon = Setup::builtin().model("large", &large).start();
    let session = RawSession::open(&daemon.socket, 0, 0);
    assert_eq!(session.region.geometry().slot_bytes, 2 * 4096);
    assert_eq!(session.region.geometry().slot_count, 64);
    let mut honest = daemon.session();
    let model = open(&mut honest, "large");
    echo_once(&mut honest, model, 1, 1);
    let refused = honest.claim(model, 2).unwrap_err();
    assert_eq!(refused.status(), Status::SlotTooSmall);
}

/// A connection that the daemon had no descriptor for waits, and is served when there is one.
#[test]
fn a_daemon_that_ran_out_of_descriptors_serves_again() {
    let daemon = Setup::builtin().start();
    let pid = daemon.pid();
    let open_now = descriptors_at_rest(pid) as u64;
    let limit = |current: u64| {
        let new = Rlimit { current: Some(current), maximum: Some(4096) };
        prlimit(Pid::from_raw(pid as i32), Resource::Nofile, new).unwrap();
    };
    limit(open_now + 10);
    let hurried = Options { connect_timeout_ns: 300 * MS_NS, ..daemon.options() };
    let mut sessions = Vec::new();
    let refused = loop {
        match Session::open(&hurried) {
            Ok(session) => sessions.push(session),
            Err(error) => break error,
        }
        assert!(sessions.len() < 10, "more than there are descriptors for");
    };
    assert!([Status::SessionLimit, Status::Timeout].contains(&refused.status()), "{refused}");
    // Not even one for the connection.
    descriptors_at_rest(pid);
    limit(process::next_descriptor(pid));
    std::thread::scope(|scope| {
        let patient = scope.spawn(|| daemon.session().info().session);
        std::thread::sleep(std::time::Duration::from_millis(200));
        assert!(!patient.is_finished());
        limit(1024);
        assert!(patient.join().unwrap() > 0);
    });
    let echo = open(&mut sessions[0], "echo");
    echo_once(&mut sessions[0], echo, 1, 1);
}
