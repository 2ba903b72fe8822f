//! Several gpulets in one executor, and batches sent ahead.

use gpulet_client::Status;
use gpulet_client::clock::now_ns;
use rustix::process::Signal;

use crate::support::client::{collect, echo_once, finish_echo, next, open, status, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::{Frozen, cpu_ticks, regions, signal};
use crate::support::state::State;
use crate::support::{MS_NS, eventually};

/// Gpulets that play a GPU: one executor hosts them all.
fn device(gpulets: &[(&str, &str)]) -> String {
    let gpulet = |(name, rest): &(&str, &str)| {
        format!(
            "[[gpulet]]\nname = '{name}'\nmechanism = 'replay'\ndevice = 0\nshare_pct = 50\n\
             profiles = 'profiles'\n{rest}\n"
        )
    };
    gpulets.iter().map(gpulet).collect()
}

fn batches(state: &State, gpulet: &str) -> u64 {
    state.gpulet(gpulet).unwrap()["batches"].as_u64().unwrap()
}

fn loads(daemon: &Daemon, executor: &str) -> usize {
    daemon.log().matches(&format!("model loaded executor=\"{executor}\"")).count()
}

#[test]
fn gpulets_of_one_device_share_a_process_and_what_is_loaded() {
    let daemon = Setup::builtin()
        .slow("slow", 150 * MS_NS, 1)
        .gpulets(&device(&[("left", ""), ("right", "models = ['slow']")]))
        .start();
    let pid = daemon.executor_pid("left");
    assert_eq!((daemon.executor_pid("right"), daemon.state().executors().len()), (pid, 1));
    assert_eq!(loads(&daemon, "replay:0"), 2, "echo and slow, each once");
    let mut session = daemon.session();
    let (slow, echo) = (open(&mut session, "slow"), open(&mut session, "echo"));
    for seed in 0..6 {
        submit(&mut session, slow, 1, seed);
    }
    for answer in collect(&mut session, 6) {
        assert_eq!(status(&answer), Status::Ok);
        session.release((&answer).into()).unwrap();
    }
    assert_eq!(regions(pid), 1, "a region is mapped once for all gpulets");
    let state = daemon.state();
    let right = batches(&state, "right");
    assert!(batches(&state, "left") >= 1 && right >= 1);
    // What the config does not have in a gpulet does not run there, although it is loaded.
    for seed in 0..20 {
        echo_once(&mut session, echo, 1, seed);
    }
    assert_eq!(batches(&daemon.state(), "right"), right);
}

#[test]
fn a_model_moves_between_gpulets_of_a_process_without_a_load() {
    let (left, both) = ("models = ['echo', 'other']", "models = ['echo']");
    let daemon = Setup::builtin()
        .slow("other", MS_NS, 1)
        .gpulets(&device(&[("left", left), ("right", both)]))
        .start();
    let pid = daemon.executor_pid("left");
    let mut session = daemon.session();
    let other = open(&mut session, "other");
    assert_eq!(loads(&daemon, "replay:0"), 2);
    let text = device(&[("left", left), ("right", both)]);
    daemon.edit_config(&text, &device(&[("left", both), ("right", left)]));
    daemon.reload();
    submit(&mut session, other, 1, 1);
    assert_eq!(status(&next(&mut session)), Status::Ok);
    assert_eq!(batches(&daemon.state(), "right"), 1);
    assert_eq!((loads(&daemon, "replay:0"), daemon.executor_pid("right")), (2, pid));

    // With the last gpulet that has it, it goes from the process.
    daemon.edit_config(", 'other'", "");
    daemon.reload();
    eventually("it is unloaded", || daemon.log().contains("unloading").then_some(()));
    submit(&mut session, other, 1, 2);
    assert_eq!(status(&next(&mut session)), Status::ModelFailed);
}

/// A daemon whose one gpulet has two batches under way, and the process, which is stopped.
fn two_ahead() -> (Daemon, gpulet_client::Session, Frozen) {
    let daemon =
        Setup::builtin().slow("slow", 400 * MS_NS, 1).gpulets(&device(&[("alone", "")])).start();
    let frozen = Frozen::new(daemon.executor_pid("alone"));
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    for seed in 0..4 {
        submit(&mut session, slow, 1, seed);
    }
    // The second is sent when the first should be about done.
    daemon.wait_for("two are under way", |state| {
        assert!(state.gpulet("alone").unwrap()["running"].as_u64() <= Some(2));
        (state.count("slow", "running") == 2).then_some(())
    });
    assert_eq!(daemon.state().count("slow", "queued"), 2);
    (daemon, session, frozen)
}

#[test]
fn a_gpulet_is_sent_its_next_batch_while_it_runs_one() {
    let (daemon, mut session, frozen) = two_ahead();
    let mut soonest_ns = now_ns();
    drop(frozen);
    for seed in 0..4 {
        let answer = next(&mut session);
        assert_eq!((status(&answer), answer.user_data), (Status::Ok, seed), "in order");
        soonest_ns += 395 * MS_NS;
        assert!(answer.finished_ns >= soonest_ns, "they overlap");
    }
    assert_eq!(batches(&daemon.state(), "alone"), 4);
}

/// The daemon knows when a batch may end, and does not poll all the while.
#[test]
fn the_daemon_sleeps_while_a_batch_runs() {
    let daemon = Setup::builtin()
        .top("spin_us = 1000")
        .slow("slow", 1_000 * MS_NS, 1)
        .gpulets(&device(&[("alone", "")]))
        .start();
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    let before = cpu_ticks(daemon.pid());
    for seed in 0..2 {
        submit(&mut session, slow, 1, seed);
        assert_eq!(status(&next(&mut session)), Status::Ok);
    }
    // Of two hundred, and more where others have the CPUs.
    assert!(cpu_ticks(daemon.pid()) - before < 50);
}

#[test]
fn batches_sent_ahead_run_again_when_their_executor_dies() {
    let (daemon, mut session, frozen) = two_ahead();
    signal(daemon.executor_pid("alone"), Signal::KILL);
    drop(frozen);
    for answer in collect(&mut session, 4) {
        assert_eq!(status(&answer), Status::Ok);
    }
    let state = daemon.state();
    assert_eq!((state.count("slow", "queued"), state.count("slow", "running")), (0, 0));
    assert_eq!(state.executor("alone").unwrap()["restarts"], 1);
}

#[test]
fn gpulets_of_a_process_that_hangs_are_served_by_the_next() {
    let daemon = Setup::builtin()
        .top("hang_timeout_ms = 200")
        .gpulets(&device(&[("left", ""), ("right", "")]))
        .start();
    let pid = daemon.executor_pid("left");
    let _frozen = Frozen::new(pid);
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    for seed in 0..5 {
        submit(&mut session, echo, 1, seed);
    }
    for answer in collect(&mut session, 5) {
        finish_echo(&mut session, &answer);
    }
    assert_ne!(daemon.executor_pid("right"), pid);
}

/// A gpulet that is too slow for one model's request runs another's meanwhile.
#[test]
fn a_request_that_must_wait_for_a_faster_gpulet_keeps_no_other_waiting() {
    let gpulet = |name: &str| {
        format!(
            "[[gpulet]]\nname='{name}'\nmechanism='replay'\nshare_pct=50\nprofiles='{name}'\n\
             models=['picky', '{name}']\n"
        )
    };
    let setup = Setup::builtin().slow("picky", MS_NS, 1).slow("fast", MS_NS, 1);
    let setup = setup.slow("slow", MS_NS, 1).gpulets(&[gpulet("fast"), gpulet("slow")].concat());
    let profile = |gpulet: &str, model: &str, batch_ns| {
        let folder = setup.path().join(gpulet);
        crate::support::models::write_profile(&folder, model, batch_ns, 1);
    };
    profile("fast", "picky", MS_NS);
    profile("fast", "fast", MS_NS);
    profile("slow", "picky", 3_000_000 * MS_NS);
    profile("slow", "slow", MS_NS);
    let daemon = setup.start();
    let mut session = daemon.session();
    let frozen = Frozen::new(daemon.executor_pid("fast"));
    let models = ["fast", "picky", "slow"].map(|model| open(&mut session, model));
    submit(&mut session, models[0], 1, 0);
    daemon.wait_for("it runs", |state| (state.count("fast", "running") == 1).then_some(()));
    submit(&mut session, models[1], 1, 1);
    daemon.wait_for("it waits", |state| (state.count("picky", "queued") == 1).then_some(()));
    submit(&mut session, models[2], 1, 2);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Ok, 2));
    drop(frozen);
    for answer in collect(&mut session, 2) {
        assert_eq!(status(&answer), Status::Ok);
    }
}
