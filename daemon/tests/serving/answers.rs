//! Every request is answered once, and rightly.

use gpulet_client::{Session, Status, Submit, Wait};

use crate::support::child::{Player, Role, play_if_told};
use crate::support::client::{claim, collect, echo_once, finish_echo, next, open, status, submit};
use crate::support::daemon::Setup;
use crate::support::models::ROW_BYTES;
use crate::support::{MS_NS, process};

#[test]
fn null_is_answered_by_the_daemon_itself() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.wide_session();
    let null = open(&mut session, "null");
    for seed in 0..64 {
        submit(&mut session, null, 1 + seed as u32, seed);
    }
    for answer in collect(&mut session, 64) {
        assert_eq!(status(&answer), Status::Ok);
        assert_eq!((answer.batch_rows, answer.exec_ns, answer.flags), (0, 0, 0));
        let output = session.output_bytes((&answer).into(), 0).unwrap();
        assert!(output.iter().all(|byte| *byte == 0), "null touched an output");
        session.release((&answer).into()).unwrap();
    }
    let state = daemon.state();
    assert_eq!(state.answers("null", "GPULET_OK"), 64);
    assert_eq!(state.count("null", "batches"), 0);
    assert_eq!(state.gpulet("r0").unwrap()["batches"], 0);
}

#[test]
fn echo_answers_what_it_was_asked_and_no_input_is_copied() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let mut wide = daemon.wide_session();
    let wide_echo = open(&mut wide, "echo");
    let mut rows_sum = 0;
    for round in 0..40 {
        let rows = 1 + round % 64;
        let answer = echo_once(&mut wide, wide_echo, rows, u64::from(round));
        assert_eq!(answer.batch_rows, rows);
        assert!(answer.exec_ns > 0 && answer.finished_ns > 0);
        echo_once(&mut session, echo, 1, u64::from(round));
        rows_sum += u64::from(rows) + 1;
    }
    let state = daemon.state();
    assert_eq!(state.count("echo", "input_bytes_copied"), 0);
    assert_eq!(state.count("echo", "output_bytes_copied"), rows_sum * ROW_BYTES);
    assert_eq!(state.count("echo", "batches"), 80);
}

#[test]
fn every_way_to_wait_finds_the_answers() {
    let daemon = Setup::builtin().start();
    for wait in [Wait::Block, Wait::Spin, Wait::Hybrid(50_000)] {
        let mut session = Session::open(&daemon.options().wait(wait)).unwrap();
        let (echo, null) = (open(&mut session, "echo"), open(&mut session, "null"));
        for seed in 0..200 {
            echo_once(&mut session, echo, 1, seed);
            submit(&mut session, null, 1, seed);
            let answer = next(&mut session);
            assert_eq!((status(&answer), answer.user_data), (Status::Ok, seed));
            session.release((&answer).into()).unwrap();
        }
    }
}

#[test]
fn held_submissions_go_out_together() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    for seed in 0..10 {
        let request = claim(&mut session, echo, 1, seed);
        session
            .submit(request, Submit { user_data: seed, held: true, ..Submit::default() })
            .unwrap();
    }
    assert_eq!(daemon.state().session(session.info().session).unwrap()["submitted"], 0);
    session.flush().unwrap();
    for answer in collect(&mut session, 10) {
        finish_echo(&mut session, &answer);
    }
}

#[test]
fn many_in_flight_from_several_sessions_are_each_answered_once() {
    const REQUESTS: u64 = 400;
    let daemon = Setup::builtin().start();
    std::thread::scope(|scope| {
        for part in 0..4u64 {
            let daemon = &daemon;
            scope.spawn(move || {
                let mut session = Session::open(&daemon.options().slots(16)).unwrap();
                let echo = open(&mut session, "echo");
                let mut answered = vec![false; REQUESTS as usize];
                let (mut sent, mut in_flight) = (0, 0);
                while answered.contains(&false) {
                    while in_flight < 16 && sent < REQUESTS {
                        submit(&mut session, echo, 1, part << 32 | sent);
                        (sent, in_flight) = (sent + 1, in_flight + 1);
                    }
                    let answer = next(&mut session);
                    let index = (answer.user_data & 0xffff_ffff) as usize;
                    assert_eq!(answer.user_data >> 32, part, "another session's answer");
                    assert!(!std::mem::replace(&mut answered[index], true), "answered twice");
                    finish_echo(&mut session, &answer);
                    in_flight -= 1;
                }
                let id = session.info().session;
                let state = daemon.state();
                let told = state.session(id).unwrap();
                assert_eq!(
                    (&told["submitted"], &told["completed"]),
                    (&REQUESTS.into(), &REQUESTS.into())
                );
            });
        }
    });
    assert_eq!(daemon.state().answers("echo", "GPULET_OK"), 4 * REQUESTS);
}

#[test]
fn several_processes_are_served_at_a_time() {
    if play_if_told() {
        return;
    }
    let daemon = Setup::builtin().start();
    let start = |_| {
        Player::start(
            "answers::several_processes_are_served_at_a_time",
            Role::Asking,
            &daemon.socket,
        )
    };
    let mut players: Vec<Player> = (0..3).map(start).collect();
    let mut sessions: Vec<String> = players.iter_mut().map(Player::said).collect();
    sessions.sort();
    sessions.dedup();
    assert_eq!(sessions.len(), 3, "sessions are numbered");
    assert_eq!(daemon.state().answers("echo", "GPULET_OK"), 3 * 500);
}

/// A client may leave its answers lying, and may have every slot in flight, for as long as it likes:
/// nobody polls for it.
#[test]
fn the_daemon_sleeps_while_clients_take_their_time() {
    let daemon = Setup::builtin().slow("slow", 3_000 * MS_NS, 1).start();
    let mut lazy = Session::open(&daemon.options().slots(8)).unwrap();
    let null = open(&mut lazy, "null");
    for seed in 0..8 {
        submit(&mut lazy, null, 1, seed);
    }
    let mut full = Session::open(&daemon.options().slots(4)).unwrap();
    let slow = open(&mut full, "slow");
    for seed in 0..4 {
        submit(&mut full, slow, 1, seed);
    }
    daemon.wait_for("all of it is taken", |state| {
        let running = state.count("slow", "running") == 1 && state.count("slow", "queued") == 3;
        (running && state.answers("null", "GPULET_OK") == 8).then_some(())
    });
    let before = process::cpu_ticks(daemon.pid());
    std::thread::sleep(std::time::Duration::from_millis(500));
    let ticks = process::cpu_ticks(daemon.pid()) - before;
    assert!(ticks <= 10, "{ticks} of 50 ticks were spent on nothing");
    assert_eq!(collect(&mut lazy, 8).len(), 8);
}
