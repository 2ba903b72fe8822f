//! Shares that change while requests come in: none is lost, and there is no gap.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::fs;

use gpulet_client::Status;
use rustix::process::Signal;

use support::MS_NS;
use support::client::{
    collect, echo_meanwhile, echo_once, finish_echo, next, open, status, submit,
};
use support::daemon::{Daemon, Setup};
use support::models::write_profile;
use support::process::signal;
use support::state::State;

/// From the second on, executors start when `$FOLDER/go` is there.
const HELD_BACK: &str = "if [ -e \"$FOLDER/once\" ]\n\
    then while [ -d \"$FOLDER\" -a ! -e \"$FOLDER/go\" ]; do sleep 0.01; done\nfi\n\
    touch \"$FOLDER/once\"\nexec \"$EXECUTOR\"";

/// Does not end when its executor does.
const LINGERING: &str = "\"$EXECUTOR\"\nwhile [ -d \"$FOLDER\" ]; do sleep 0.01; done";

/// Several gpulets that play one GPU.
fn device(shares_pct: &[u8]) -> String {
    let gpulet = |(index, share_pct): (usize, &u8)| {
        format!(
            "[[gpulet]]\nname = 'g{index}'\nmechanism = 'replay'\ndevice = 0\n\
             share_pct = {share_pct}\nprofiles = 'profiles'\n"
        )
    };
    shares_pct.iter().enumerate().map(gpulet).collect()
}

/// The processes of executors that are not gone.
fn pids(state: &State) -> Vec<u64> {
    state.executors().iter().filter_map(|it| it["pid"].as_u64()).collect()
}

fn shares(state: &State) -> Vec<u64> {
    let gpulets = state.0["gpulets"].as_array().unwrap().iter();
    let there = gpulets.filter(|it| it["state"] == "running");
    there.map(|it| it["share_pct"].as_u64().unwrap()).collect()
}

fn set_share(daemon: &Daemon, from: &str, to: &str) {
    daemon.edit_config(from, to);
    daemon.signal(Signal::HUP);
}

#[test]
fn a_successor_takes_over_when_it_is_ready() {
    let daemon = Setup::builtin().slow("slow", 300 * MS_NS, 1).executor(HELD_BACK).start();
    let old = daemon.executor_pid("r0");
    let mut session = daemon.session();
    let (slow, echo) = (open(&mut session, "slow"), open(&mut session, "echo"));
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    daemon.wait_for("the successor starts", |state| (pids(state).len() == 2).then_some(()));
    // Until then the old one serves, and what it has then it finishes.
    echo_once(&mut session, echo, 1, 1);
    assert_eq!(shares(&daemon.state()), [100]);
    submit(&mut session, slow, 1, 2);
    daemon.wait_for("a batch runs", |state| (state.count("slow", "running") == 1).then_some(()));
    fs::write(daemon.folder().join("go"), "").unwrap();
    daemon.wait_for("it took over", |state| {
        let states: Vec<_> = state.executors().iter().map(|it| it["state"].clone()).collect();
        (states.contains(&"leaving".into()) || pids(state).len() == 1).then_some(())
    });
    let mut other = daemon.session();
    let echo = open(&mut other, "echo");
    echo_once(&mut other, echo, 1, 3);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Ok, 2));
    let new = daemon.wait_for("the old one is gone", |state| {
        (pids(state).len() == 1).then(|| state.executor_pid("r0")).flatten()
    });
    assert_ne!(new, old);
    let state = daemon.state();
    assert_eq!(
        (shares(&state), state.executor("r0").unwrap()["restarts"].as_u64()),
        (vec![60], Some(0))
    );
    assert!(state.is_ready());
}

/// A process that is killed has its device take down its context at once, at the cost of others there.
#[test]
fn who_was_replaced_ends_by_itself() {
    let daemon = Setup::builtin().start();
    // A session that goes while it leaves is none of its business.
    let session = daemon.session();
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    support::eventually("it takes over", || daemon.log().contains("takes over").then_some(()));
    drop(session);
    support::eventually("the old one is gone", || {
        daemon.log().contains("executor gone").then_some(())
    });
    assert!(daemon.log().contains("status=exit status: 0"), "{}", daemon.log());
}

#[test]
fn who_was_replaced_and_does_not_end_is_killed() {
    let daemon = Setup::builtin().executor(LINGERING).start();
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    support::eventually("the old one is gone", || {
        daemon.log().contains("executor gone").then_some(())
    });
    assert!(daemon.log().contains("status=signal: 9"), "{}", daemon.log());
    assert_eq!(pids(&daemon.state()).len(), 1);
}

/// Two gpulets that play one GPU in processes of their own, in a daemon with one more executor than
/// that may start at once: the others wait for `$FOLDER/go`, or die.
fn two_on_a_device(or: &str) -> Daemon {
    let count = "n=1; while ! mkdir \"$FOLDER/start$n\" 2>/dev/null; do n=$((n+1)); done";
    let script = format!("{count}\nif [ $n -gt 3 ]; then {or}; fi\nexec \"$EXECUTOR\"");
    let setup = Setup::builtin().top("spin_us = 10").executor(&script);
    let gpulet = |name: &str| {
        let profiles = setup.path().join("profiles");
        std::os::unix::fs::symlink(&profiles, setup.path().join(name)).unwrap();
        format!(
            "[[gpulet]]\nname = '{name}'\nmechanism = 'replay'\ndevice = 0\nshare_pct = 50\n\
             profiles = '{name}'\n"
        )
    };
    let gpulets = ["one", "two"].map(gpulet).concat();
    let daemon = setup.gpulets(&gpulets).start();
    // It serves as soon as one of them does.
    support::eventually("both are warm", || {
        (daemon.log().matches("model ready").count() == 2).then_some(())
    });
    daemon
}

/// Or both would run on the same part of it until the other one is ready as well.
#[test]
fn successors_on_one_device_take_over_together() {
    let daemon =
        two_on_a_device("while [ -d \"$FOLDER\" -a ! -e \"$FOLDER/go\" ]; do sleep 0.01; done");
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let counted = |what: &str| daemon.log().matches(what).count();
    echo_meanwhile(&daemon, || {
        set_share(&daemon, "spin_us = 10", "spin_us = 20");
        support::eventually("one is ready", || (counted("model ready") == 3).then_some(()));
        echo_once(&mut session, echo, 1, 1);
        assert_eq!((counted("takes over"), pids(&daemon.state()).len()), (0, 4));
        fs::write(daemon.folder().join("go"), "").unwrap();
        daemon.wait_for("both took over", |state| {
            (counted("takes over") == 2 && pids(state).len() == 2).then_some(())
        });
    });
}

#[test]
fn a_successor_does_not_wait_for_one_that_was_lost() {
    let daemon = two_on_a_device("exit 1");
    set_share(&daemon, "spin_us = 10", "spin_us = 20");
    support::eventually("one took over", || {
        (daemon.log().matches("takes over").count() == 1).then_some(())
    });
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

#[test]
fn nothing_is_lost_while_successors_take_over() {
    let daemon = Setup::builtin().start();
    echo_meanwhile(&daemon, || {
        for (from, to) in [("100", "70"), ("70", "40"), ("40", "100")] {
            let before = daemon.executor_pid("r0");
            set_share(&daemon, &format!("share_pct = {from}"), &format!("share_pct = {to}"));
            daemon.wait_for("a successor serves alone", |state| {
                let pid = state.executor_pid("r0").filter(|pid| *pid != before);
                pid.filter(|_| pids(state).len() == 1)
            });
        }
    });
}

#[test]
fn a_successor_that_lacks_a_model_is_given_up() {
    let daemon = Setup::builtin().slow("slow", MS_NS, 1).start();
    let pid = daemon.executor_pid("r0");
    fs::remove_file(daemon.folder().join("profiles/slow.json")).unwrap();
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    daemon.wait_for("it is given up", |state| {
        (daemon.log().contains("stays as it is") && pids(state).len() == 1).then_some(())
    });
    assert_eq!((daemon.executor_pid("r0"), shares(&daemon.state())), (pid, vec![100]));
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    submit(&mut session, slow, 1, 1);
    assert_eq!(status(&next(&mut session)), Status::Ok);
    // With the profile back, the next reload has it.
    write_profile(&daemon.folder().join("profiles"), "slow", MS_NS, 1);
    daemon.signal(Signal::HUP);
    daemon.wait_for("the share is changed", |state| (shares(state) == [60]).then_some(()));
}

#[test]
fn a_share_that_changes_back_needs_no_successor() {
    let daemon = Setup::builtin().executor(HELD_BACK).start();
    let pid = daemon.executor_pid("r0");
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    daemon.wait_for("the successor starts", |state| (pids(state).len() == 2).then_some(()));
    set_share(&daemon, "share_pct = 60", "share_pct = 100");
    fs::write(daemon.folder().join("go"), "").unwrap();
    daemon.wait_for("it is dismissed", |state| (pids(state).len() == 1).then_some(()));
    assert_eq!((daemon.executor_pid("r0"), shares(&daemon.state())), (pid, vec![100]));
    // And one that leaves the config takes its successor along.
    fs::remove_file(daemon.folder().join("go")).unwrap();
    set_share(&daemon, "share_pct = 100", "share_pct = 50");
    daemon.wait_for("the successor starts", |state| (pids(state).len() == 2).then_some(()));
    set_share(&daemon, "\"r0\"", "\"r1\"");
    fs::write(daemon.folder().join("go"), "").unwrap();
    daemon.wait_for("only the new one is there", |state| {
        (pids(state).len() == 1 && state.executor_pid("r1").is_some()).then_some(())
    });
}

#[test]
fn a_successor_inherits_at_once_when_the_old_one_dies() {
    let daemon = Setup::builtin().executor(HELD_BACK).start();
    let old = daemon.executor_pid("r0");
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    set_share(&daemon, "share_pct = 100", "share_pct = 60");
    daemon.wait_for("the successor starts", |state| (pids(state).len() == 2).then_some(()));
    signal(old, Signal::KILL);
    for seed in 0..4 {
        submit(&mut session, echo, 1, seed);
    }
    fs::write(daemon.folder().join("go"), "").unwrap();
    for answer in collect(&mut session, 4) {
        finish_echo(&mut session, &answer);
    }
    let state = daemon.state();
    assert_eq!((pids(&state).len(), shares(&state)), (1, vec![60]));
    assert_eq!(state.executor("r0").unwrap()["restarts"], 0);
}

/// An executor that splits its device changes shares itself.
#[test]
fn shares_of_a_split_device_change_in_its_process() {
    let daemon = Setup::builtin().slow("slow", 40 * MS_NS, 1).gpulets(&device(&[50, 50])).start();
    let pid = daemon.executor_pid("g0");
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    echo_meanwhile(&daemon, || {
        for (from, to) in [([50, 50], [80, 20]), ([80, 20], [20, 80]), ([20, 80], [50, 50])] {
            set_share(&daemon, &device(&from), &device(&to));
            daemon.wait_for("the shares are changed", |state| {
                (shares(state) == to.map(u64::from)).then_some(())
            });
        }
    });
    assert_eq!(daemon.executor_pid("g1"), pid);
    assert_eq!(daemon.log().matches("shares changed").count(), 2 * 3, "by it, and by the daemon");
    // A fifth of the share takes four times as long as half of it did, and the daemon knows.
    set_share(&daemon, &device(&[50, 50]), &device(&[10, 10]));
    daemon.wait_for("they are small", |state| (shares(state) == [10, 10]).then_some(()));
    submit(&mut session, slow, 1, 1);
    let answer = next(&mut session);
    assert_eq!(status(&answer), Status::Ok);
    assert!(answer.exec_ns >= 200 * MS_NS);
}

#[test]
fn shares_that_cannot_be_had_leave_everything_as_it_is() {
    let daemon = Setup::builtin().gpulets(&device(&[50, 50])).start();
    let pid = daemon.executor_pid("g0");
    set_share(&daemon, &device(&[50, 50]), &device(&[60, 50]));
    support::eventually("it is said", || {
        daemon.log().contains("the shares stay as they are").then_some(())
    });
    let state = daemon.state();
    assert_eq!(
        (shares(&state), state.gpulet("g0").unwrap()["wanted_pct"].as_u64()),
        (vec![50, 50], Some(60))
    );
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
    set_share(&daemon, &device(&[60, 50]), &device(&[60, 40]));
    daemon.wait_for("others are", |state| (shares(state) == [60, 40]).then_some(()));
    assert_eq!(daemon.executor_pid("g1"), pid);
    // One gpulet more is another process.
    set_share(&daemon, &device(&[60, 40]), &device(&[30, 30, 30]));
    daemon.wait_for("there are three", |state| {
        (shares(state) == [30, 30, 30] && pids(state).len() == 1).then_some(())
    });
    echo_once(&mut session, echo, 1, 2);
    assert_ne!(daemon.executor_pid("g2"), pid);
}
