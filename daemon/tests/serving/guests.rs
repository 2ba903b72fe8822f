//! Idle gpulets: the fastest is used first, and guests may borrow what their own could not do in time.

use std::time::Duration;

use gpulet_client::clock::now_ns;
use gpulet_client::{Session, Status};

use crate::support::client::{collect, next, open, status, submit, submit_until};
use crate::support::daemon::{Daemon, Setup};
use crate::support::models::{Folder, write_profile};
use crate::support::process::Frozen;
use crate::support::{MS_NS, eventually};

fn batches(daemon: &Daemon, gpulet: &str) -> u64 {
    daemon.state().gpulet(gpulet).unwrap()["batches"].as_u64().unwrap()
}

/// Waits until these have all of their models: the daemon serves one as soon as somebody has it.
fn all_warm(daemon: &Daemon, gpulets: &[&str]) {
    let warm = |name: &&str| daemon.log().contains(&format!("model ready gpulet=\"{name}\""));
    eventually("all are warm", || gpulets.iter().all(warm).then_some(()));
}

fn gpulet(name: &str, rest: &str) -> String {
    format!(
        "[[gpulet]]\nname = '{name}'\nmechanism = 'replay'\nshare_pct = 50\n\
         profiles = '{name}'\n{rest}\n"
    )
}

/// A daemon whose gpulet `host` has `own`, with an SLO of that many ms, and `guest` as a guest. The
/// only home of `guest` is busy for 4 s from now on; on the host a batch of it takes `guest_ns`.
fn borrower(own_slo_ms: f64, guest_ns: u64) -> (Daemon, Session, u32) {
    let own = Folder { slo_ms: own_slo_ms, ..Folder::of("file = \"model.pt\"", 1) };
    let setup =
        Setup::builtin().slow("guest", MS_NS, 1).slow("own", MS_NS, 1).model("own", &own).gpulets(
            &(gpulet("home", "models = ['guest']")
                + &gpulet("host", "models = ['own']\nguests = ['guest']")),
        );
    write_profile(&setup.path().join("home"), "guest", 4_000 * MS_NS, 1);
    write_profile(&setup.path().join("host"), "guest", guest_ns, 1);
    write_profile(&setup.path().join("host"), "own", MS_NS, 1);
    let daemon = setup.start();
    all_warm(&daemon, &["home", "host"]);
    let mut session = daemon.session();
    let guest = open(&mut session, "guest");
    submit(&mut session, guest, 1, 0);
    daemon.wait_for("home is busy", |state| {
        (state.gpulet("home").unwrap()["running"].as_u64() == Some(1)).then_some(())
    });
    (daemon, session, guest)
}

#[test]
fn a_guest_borrows_what_its_own_gpulet_cannot_do_in_time() {
    let (daemon, mut session, guest) = borrower(60_000.0, MS_NS);
    // Home makes this one, so it waits for home.
    submit(&mut session, guest, 1, 1);
    daemon.wait_for("it waits", |state| (state.count("guest", "queued") == 1).then_some(()));
    assert_eq!(batches(&daemon, "host"), 0);
    submit_until(&mut session, guest, 1, 2, now_ns() + 6_000 * MS_NS);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Ok, 2));
    assert_eq!(batches(&daemon, "host"), 1);
    let own = open(&mut session, "own");
    submit(&mut session, own, 1, 3);
    let answer = next(&mut session);
    assert_eq!((status(&answer), answer.user_data), (Status::Ok, 3));
    let state = daemon.state();
    assert_eq!((state.count("guest", "queued"), state.count("guest", "running")), (1, 1));
}

#[test]
fn a_guest_is_lent_no_longer_than_the_hosts_own_requests_can_wait() {
    let (daemon, mut session, guest) = borrower(500.0, 600 * MS_NS);
    submit_until(&mut session, guest, 1, 1, now_ns() + 6_000 * MS_NS);
    let answer = next(&mut session);
    // So nobody will make it, and that is known at once.
    assert_eq!((status(&answer), answer.user_data), (Status::DeadlineHopeless, 1));
    assert_eq!(batches(&daemon, "host"), 0);
}

#[test]
fn a_gpulet_too_slow_for_the_first_request_runs_those_behind_it() {
    let gpulets = ["fast", "slow"].map(|name| gpulet(name, "models = ['model']"));
    let setup = Setup::builtin().slow("model", MS_NS, 1).gpulets(&gpulets.concat());
    for (name, batch_ns) in [("fast", 1_000 * MS_NS), ("slow", 10_000 * MS_NS)] {
        write_profile(&setup.path().join(name), "model", batch_ns, 1);
    }
    let daemon = setup.start();
    all_warm(&daemon, &["fast", "slow"]);
    let mut session = daemon.session();
    let model = open(&mut session, "model");
    submit(&mut session, model, 1, 0);
    daemon.wait_for("the fast one is busy", |state| {
        (state.gpulet("fast").unwrap()["running"].as_u64() == Some(1)).then_some(())
    });
    submit_until(&mut session, model, 1, 1, now_ns() + 9_000 * MS_NS);
    submit(&mut session, model, 1, 2);
    daemon.wait_for("the slow one runs the second", |state| {
        let runs = state.gpulet("slow").unwrap()["running"].as_u64() == Some(1);
        (runs && state.count("model", "queued") == 1).then_some(())
    });
    for seed in 0..2 {
        let answer = next(&mut session);
        assert_eq!((status(&answer), answer.user_data, answer.flags), (Status::Ok, seed, 0));
    }
}

#[test]
fn of_idle_gpulets_the_fastest_is_used() {
    let gpulets = ["a", "b", "c"].map(|name| gpulet(name, "models = ['model']"));
    let setup = Setup::builtin().slow("model", MS_NS, 1).gpulets(&gpulets.concat());
    for (name, batch_ns) in [("a", 20_000 * MS_NS), ("b", MS_NS), ("c", 10_000 * MS_NS)] {
        write_profile(&setup.path().join(name), "model", batch_ns, 1);
    }
    let daemon = setup.start();
    all_warm(&daemon, &["a", "b", "c"]);
    let mut session = daemon.session();
    let model = open(&mut session, "model");
    for seed in 0..5 {
        submit(&mut session, model, 1, seed);
        assert_eq!(status(&next(&mut session)), Status::Ok);
    }
    assert_eq!(["a", "b", "c"].map(|name| batches(&daemon, name)), [0, 5, 0]);
}

#[test]
fn a_host_that_was_slow_once_is_lent_again() {
    let setup = Setup::builtin().slow("guest", MS_NS, 1).slow("own", MS_NS, 1).gpulets(
        &(gpulet("home", "models = ['guest']")
            + &gpulet("host", "models = ['own']\nguests = ['guest']")),
    );
    write_profile(&setup.path().join("home"), "guest", 20 * MS_NS, 1);
    write_profile(&setup.path().join("host"), "guest", 40 * MS_NS, 1);
    write_profile(&setup.path().join("host"), "own", MS_NS, 1);
    let daemon = setup.start();
    all_warm(&daemon, &["home", "host"]);
    let mut session = daemon.session();
    let guest = open(&mut session, "guest");
    // Home makes two of them one after the other, and would make the third if it had not those.
    let three = |session: &mut Session| {
        for seed in 0..3 {
            submit_until(session, guest, 1, seed, now_ns() + 55 * MS_NS);
        }
    };
    let stall = Frozen::new(daemon.executor_pid("host"));
    three(&mut session);
    daemon.wait_for("it is lent", |state| {
        (state.gpulet("host").unwrap()["running"].as_u64() == Some(1)).then_some(())
    });
    std::thread::sleep(Duration::from_millis(100));
    drop(stall);
    collect(&mut session, 3);
    assert_eq!(batches(&daemon, "host"), 1);
    // It took longer than any of these has, and only trying can tell that it no longer does.
    let lent = (0..60).any(|_| {
        three(&mut session);
        collect(&mut session, 3);
        batches(&daemon, "host") > 1
    });
    assert!(lent, "nothing was lent any more");
}
