//! Executors that die or hang with requests in their hands.

use std::time::Duration;

use gpulet_client::{Session, Status};
use rustix::process::Signal;

use crate::support::MS_NS;
use crate::support::client::{collect, echo_once, finish_echo, next, open, status, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::{Frozen, signal};

fn wait_until_running(daemon: &Daemon, model: &str) -> u32 {
    daemon.wait_for("a batch runs", |state| {
        let running = state.count(model, "running") == 1;
        running.then(|| state.executor_pid("r0")).flatten()
    })
}

fn restarts(daemon: &Daemon) -> u64 {
    daemon.state().executor("r0").unwrap()["restarts"].as_u64().unwrap()
}

#[test]
fn what_a_killed_executor_had_runs_again_and_is_answered_once() {
    let daemon = Setup::builtin().slow("slow", 150 * MS_NS, 8).start();
    let mut sessions = [daemon.session(), daemon.session()];
    for (part, session) in sessions.iter_mut().enumerate() {
        let slow = open(session, "slow");
        for seed in 0..6 {
            submit(session, slow, 1, 10 * part as u64 + seed);
        }
    }
    let pid = wait_until_running(&daemon, "slow");
    signal(pid, Signal::KILL);
    for session in &mut sessions {
        for answer in collect(session, 6) {
            assert_eq!(status(&answer), Status::Ok);
            session.release((&answer).into()).unwrap();
        }
    }
    assert_ne!(daemon.executor_pid("r0"), pid);
    assert_eq!(restarts(&daemon), 1);
    let state = daemon.state();
    assert_eq!(state.answers("slow", "GPULET_OK"), 12);
    assert_eq!((state.count("slow", "queued"), state.count("slow", "running")), (0, 0));
}

#[test]
fn echoes_are_right_after_their_executor_was_killed() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    for round in 0..3 {
        let pid = daemon.executor_pid("r0");
        let frozen = Frozen::new(pid);
        for seed in 0..10 {
            submit(&mut session, echo, 1, 100 * round + seed);
        }
        wait_until_running(&daemon, "echo");
        signal(pid, Signal::KILL);
        drop(frozen);
        for answer in collect(&mut session, 10) {
            finish_echo(&mut session, &answer);
        }
    }
}

#[test]
fn a_request_that_two_executors_died_on_is_given_up() {
    let daemon = Setup::builtin().slow("slow", 300 * MS_NS, 1).start();
    let mut session = daemon.session();
    let (slow, echo) = (open(&mut session, "slow"), open(&mut session, "echo"));
    submit(&mut session, slow, 1, 1);
    let first = wait_until_running(&daemon, "slow");
    signal(first, Signal::KILL);
    let second = daemon.wait_for("its successor has it", |state| {
        let running = state.count("slow", "running") == 1;
        state.executor_pid("r0").filter(|pid| running && *pid != first)
    });
    signal(second, Signal::KILL);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::ExecutorLost, 1));
    let text = session.request_error((&answer).into()).unwrap();
    assert!(!text.is_empty());
    session.release((&answer).into()).unwrap();
    echo_once(&mut session, echo, 1, 2);
    submit(&mut session, slow, 1, 3);
    assert_eq!(status(&next(&mut session)), Status::Ok);
}

#[test]
fn an_executor_that_hangs_is_replaced() {
    let daemon = Setup::builtin().top("hang_timeout_ms = 200").start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let pid = daemon.executor_pid("r0");
    let _frozen = Frozen::new(pid);
    for seed in 0..5 {
        submit(&mut session, echo, 1, seed);
    }
    for answer in collect(&mut session, 5) {
        finish_echo(&mut session, &answer);
    }
    assert_ne!(daemon.executor_pid("r0"), pid);
    assert!(daemon.log().contains("the executor hangs"));
}

#[test]
fn an_executor_that_hangs_while_it_starts_is_replaced() {
    let daemon = Setup::builtin()
        .top("hang_timeout_ms = 200")
        .executor(
            "[ -e \"$FOLDER/once\" ] && exec \"$EXECUTOR\"\n\
             touch \"$FOLDER/once\"\nexec sleep 999",
        )
        .start();
    assert_eq!(restarts(&daemon), 1);
    assert!(daemon.log().contains("the executor is silent"));
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

#[test]
fn an_idle_executor_that_is_killed_is_replaced_before_it_is_missed() {
    let daemon = Setup::builtin().start();
    let pid = daemon.executor_pid("r0");
    signal(pid, Signal::KILL);
    daemon.wait_for("there is another", |state| {
        state.executor_pid("r0").filter(|other| *other != pid)
    });
    let mut session = daemon.session();
    let echo = crate::support::eventually("echo is warm", || session.model_open("echo").ok());
    echo_once(&mut session, echo.model, 1, 1);
}

/// Whoever served and dies is replaced at once, however often; whoever only dies is kept waiting.
#[test]
fn only_executors_that_die_before_they_served_are_kept_waiting() {
    let waits = |daemon: &Daemon| -> Vec<bool> {
        let log = daemon.log();
        let lost = log.lines().filter(|line| line.contains("executor lost"));
        lost.map(|line| !line.contains(" wait_ns=0")).collect()
    };
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let kill = |round: usize| {
        let pid = daemon.executor_pid("r0");
        signal(pid, Signal::KILL);
        daemon.wait_for("it is replaced", |state| {
            state
                .executor_pid("r0")
                .filter(|other| *other != pid && restarts(&daemon) > round as u64)
        });
    };
    for round in 0..3 {
        echo_once(&mut session, echo, 1, round as u64);
        kill(round);
    }
    assert_eq!(waits(&daemon), [false; 3]);
    kill(3);
    assert_eq!(waits(&daemon), [false, false, false, true]);
}

/// Requests wait for a restart rather than be told that the model is loading.
#[test]
fn requests_wait_while_their_executor_starts_again() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    for seed in 0..10 {
        signal(daemon.executor_pid("r0"), Signal::KILL);
        std::thread::sleep(Duration::from_micros(700 * seed));
        echo_once(&mut session, echo, 1, seed);
        if restarts(&daemon) >= 3 {
            break;
        }
    }
}

#[test]
fn one_executor_that_dies_leaves_the_others_alone() {
    let gpulet = |name: &str, model: &str| {
        format!(
            "[[gpulet]]\nname='{name}'\nmechanism='replay'\nshare_pct=50\nprofiles='profiles'\n\
             models=['{model}']\n"
        )
    };
    let daemon = Setup::builtin()
        .slow("slow", 200 * MS_NS, 1)
        .gpulets(&[gpulet("r0", "slow"), gpulet("r1", "echo")].concat())
        .start();
    let mut session = Session::open(&daemon.options()).unwrap();
    let (slow, echo) = (open(&mut session, "slow"), open(&mut session, "echo"));
    submit(&mut session, slow, 1, 1);
    signal(wait_until_running(&daemon, "slow"), Signal::KILL);
    let other = daemon.executor_pid("r1");
    let mut beside = daemon.session();
    let echo_beside = open(&mut beside, "echo");
    assert_eq!(echo, echo_beside);
    for seed in 0..50 {
        echo_once(&mut beside, echo_beside, 1, seed);
    }
    assert_eq!(status(&next(&mut session)), Status::Ok);
    assert_eq!(daemon.executor_pid("r1"), other);
}
