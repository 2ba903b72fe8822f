//! SIGHUP: a new config or new models, without a request lost.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::fs;

use gpulet_client::{Session, Status};
use rustix::process::Signal;

use support::MS_NS;
use support::client::{
    collect, echo_meanwhile, echo_once, finish_echo, next, open, status, submit,
};
use support::daemon::{REPLAY, Setup};
use support::models::{Folder, write_profile};
use support::process::Frozen;

const ECHO: Folder<'static> = Folder::of("builtin = \"echo\"", 64);

#[test]
fn a_new_model_is_served_and_the_old_ones_are_not_touched() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let pid = daemon.executor_pid("r0");
    assert_eq!(session.model_open("fresh").unwrap_err().status(), Status::NoSuchModel);
    ECHO.write(&daemon.folder().join("models/fresh"));
    daemon.reload();
    let fresh = open(&mut session, "fresh");
    assert_ne!(fresh, echo);
    echo_once(&mut session, fresh, 1, 1);
    echo_once(&mut session, echo, 1, 2);
    assert_eq!(open(&mut session, "echo"), echo, "the old model keeps its number");
    assert_eq!(daemon.executor_pid("r0"), pid);
}

#[test]
fn a_model_that_is_removed_retires() {
    let daemon = Setup::builtin().model("gone", &ECHO).start();
    let mut session = daemon.session();
    let gone = open(&mut session, "gone");
    let frozen = Frozen::new(daemon.executor_pid("r0"));
    submit(&mut session, gone, 1, 0);
    daemon.wait_for("one runs", |state| (state.count("gone", "running") == 1).then_some(()));
    for seed in 1..4 {
        submit(&mut session, gone, 1, seed);
    }
    daemon.wait_for("three wait", |state| (state.count("gone", "queued") == 3).then_some(()));
    fs::remove_dir_all(daemon.folder().join("models/gone")).unwrap();
    daemon.reload();
    // What waits is told; what runs is answered.
    for answer in collect(&mut session, 3) {
        assert_eq!(status(&answer), Status::ModelRetired);
        assert_ne!(answer.user_data, 0);
    }
    submit(&mut session, gone, 1, 9);
    assert_eq!(status(&next(&mut session)), Status::ModelRetired);
    drop(frozen);
    let answer = next(&mut session);
    assert_eq!(answer.user_data, 0);
    finish_echo(&mut session, &answer);
    daemon.wait_for("it is forgotten", |state| {
        let mut models = state.0["models"].as_array().unwrap().iter();
        models.all(|model| model["name"] != "gone").then_some(())
    });
    submit(&mut session, gone, 1, 10);
    assert_eq!(status(&next(&mut session)), Status::ModelRetired);
    assert_eq!(session.model_open("gone").unwrap_err().status(), Status::NoSuchModel);
}

#[test]
fn a_model_that_changed_is_another_model_of_the_same_name() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    Folder { max_batch: 5, ..ECHO }.write(&daemon.folder().join("models/echo"));
    daemon.reload();
    submit(&mut session, echo, 1, 1);
    let answer = next(&mut session);
    assert_eq!(status(&answer), Status::ModelRetired);
    session.release((&answer).into()).unwrap();
    let changed = session.model_open("echo").unwrap();
    assert_ne!(changed.model, echo);
    assert_eq!(changed.max_batch, 5);
    echo_once(&mut session, changed.model, 1, 2);
}

/// Gpulets are renamed, added and taken away under load: executors come and go, and every request is
/// answered rightly.
#[test]
fn gpulets_change_without_a_request_lost() {
    let daemon = Setup::builtin().start();
    let first = daemon.executor_pid("r0");
    echo_meanwhile(&daemon, || {
        let second = REPLAY.replace("r0", "r1");
        for round in 0..6 {
            let (from, to) = match round % 3 {
                0 => (REPLAY.to_owned(), second.clone()),
                1 => (second.clone(), format!("{second}{REPLAY}")),
                _ => (format!("{second}{REPLAY}"), REPLAY.to_owned()),
            };
            daemon.edit_config(&from, &to);
            daemon.reload();
            daemon.wait_for("executors are as the config says", |state| {
                let running = |name: &str| {
                    to.contains(name)
                        == state.executor(name).is_some_and(|it| it["state"] == "running")
                };
                (running("r0") && running("r1")).then_some(())
            });
        }
    });
    assert_ne!(daemon.executor_pid("r0"), first);
}

#[test]
fn a_gpulet_that_is_replaced_finishes_what_it_runs() {
    let daemon = Setup::builtin().slow("slow", 400 * MS_NS, 1).start();
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    for seed in 0..3 {
        submit(&mut session, slow, 1, seed);
    }
    let pid = daemon.executor_pid("r0");
    daemon.wait_for("one runs", |state| (state.count("slow", "running") == 1).then_some(()));
    daemon.edit_config("\"r0\"", "\"other\"");
    daemon.reload();
    for answer in collect(&mut session, 3) {
        assert_eq!(status(&answer), Status::Ok);
    }
    assert_ne!(daemon.executor_pid("other"), pid);
    support::eventually("the old executor is gone", || {
        (!support::process::exists(pid)).then_some(())
    });
    assert_eq!(daemon.state().executor("other").unwrap()["restarts"], 0);
}

#[test]
fn a_gpulet_can_go_while_its_executor_waits_for_its_restart() {
    let first = format!("{REPLAY}models = [\"echo\"]\n");
    let second = first.replace("r0", "r1").replace("echo", "lone");
    let gpulets = format!("{first}{second}");
    let daemon = Setup::builtin().model("lone", &ECHO).gpulets(&gpulets).start();
    // Executors that keep dying are kept waiting, each time for longer.
    for round in 0..3 {
        support::eventually("its model is warm", || {
            (daemon.log().matches("model ready gpulet=\"r1\"").count() > round).then_some(())
        });
        let pid = daemon.executor_pid("r1");
        support::process::signal(pid, Signal::KILL);
        daemon
            .wait_for("it is lost", |state| (state.executor_pid("r1") != Some(pid)).then_some(()));
    }
    daemon.edit_config(&second, "");
    daemon.reload();
    let state = daemon.state();
    assert!(state.is_ready() && state.executor("r1").is_none());
    let mut session = daemon.session();
    let error = session.model_open("lone").unwrap_err();
    assert!(error.to_string().contains("no gpulet of the config hosts it"), "{error}");
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

/// What waits for a model is answered as soon as no gpulet is left to run it.
#[test]
fn a_queue_that_loses_its_last_gpulet_is_answered_at_once() {
    let first = format!("{REPLAY}models = [\"echo\"]\n");
    let second = first.replace("r0", "r1").replace("echo", "lone");
    let gpulets = format!("{first}{second}");
    let daemon = Setup::builtin().model("lone", &ECHO).gpulets(&gpulets).start();
    let mut session = daemon.session();
    let lone = open(&mut session, "lone");
    let frozen = Frozen::new(daemon.executor_pid("r1"));
    submit(&mut session, lone, 1, 0);
    daemon.wait_for("one runs", |state| (state.count("lone", "running") == 1).then_some(()));
    for seed in 1..4 {
        submit(&mut session, lone, 1, seed);
    }
    daemon.wait_for("three wait", |state| (state.count("lone", "queued") == 3).then_some(()));
    daemon.edit_config(&second, "");
    daemon.reload();
    for answer in collect(&mut session, 3) {
        assert_eq!(status(&answer), Status::ModelFailed);
        assert_ne!(answer.user_data, 0);
    }
    drop(frozen);
    let answer = next(&mut session);
    assert_eq!(answer.user_data, 0);
    finish_echo(&mut session, &answer);
}

#[test]
fn a_config_or_model_that_is_wrong_changes_nothing() {
    let daemon = Setup::builtin().start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let pid = daemon.executor_pid("r0");
    daemon.edit_config("\"r0\"", "\"R0\"");
    daemon.reload();
    let log = daemon.log();
    assert!(
        log.contains("reload failed") && log.contains("gpulet[0].name: must be 1 to 63"),
        "{log}"
    );
    echo_once(&mut session, echo, 1, 1);

    daemon.edit_config("\"R0\"", "\"r0\"");
    let bad = daemon.folder().join("models/bad");
    Folder::of("builtin = \"parrot\"", 4).write(&bad);
    ECHO.write(&daemon.folder().join("models/fresh"));
    daemon.reload();
    let log = daemon.log();
    assert!(log.contains("bad/model.toml:1: builtin: must be \"null\""), "{log}");
    let refused = session.model_open("fresh").unwrap_err();
    assert_eq!(refused.status(), Status::NoSuchModel, "nothing of it was taken");
    echo_once(&mut session, echo, 1, 2);
    assert_eq!(daemon.executor_pid("r0"), pid);

    // Mended, all of it is taken.
    fs::remove_dir_all(bad).unwrap();
    daemon.reload();
    let fresh = open(&mut session, "fresh");
    echo_once(&mut session, fresh, 1, 3);
}

#[test]
fn a_model_that_failed_is_tried_again_once_it_changed() {
    let setup = Setup::builtin().slow("slow", MS_NS, 2);
    fs::remove_file(setup.path().join("profiles/slow.json")).unwrap();
    let daemon = setup.start();
    let mut session = daemon.session();
    assert_eq!(session.model_open("slow").unwrap_err().status(), Status::ModelFailed);
    write_profile(&daemon.folder().join("profiles"), "slow", MS_NS, 2);
    fs::write(daemon.folder().join("models/slow/model.pt"), "another archive").unwrap();
    daemon.reload();
    let slow = open(&mut session, "slow");
    submit(&mut session, slow, 1, 1);
    assert_eq!(status(&next(&mut session)), Status::Ok);
}

#[test]
fn limits_change_for_those_who_come() {
    let daemon = Setup::builtin().section("[limits]\nsessions_max = 1").start();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    let refused = Session::open(&daemon.options()).unwrap_err();
    assert_eq!(refused.status(), Status::SessionLimit);
    daemon.edit_config("sessions_max = 1", "sessions_max = 2");
    daemon.reload();
    let mut second = daemon.session();
    let same = open(&mut second, "echo");
    assert_eq!(same, echo);
    echo_once(&mut second, echo, 1, 1);
    echo_once(&mut session, echo, 1, 2);
}

#[test]
fn hundreds_of_models_are_not_too_much_for_an_executor_that_does_not_listen() {
    let daemon = Setup::builtin().start();
    let pid = daemon.executor_pid("r0");
    for number in 0..240 {
        ECHO.write(&daemon.folder().join(format!("models/fresh{number}")));
    }
    let frozen = Frozen::new(pid);
    daemon.signal(Signal::HUP);
    daemon.wait_for("the models are known", |state| state.model("fresh239").map(drop));
    drop(frozen);
    let ready = |name: &str| {
        daemon.wait_for("it is ready", |state| {
            state.model(name).filter(|it| it["state"] == "ready").map(drop)
        });
    };
    (0..240).for_each(|number| ready(&format!("fresh{number}")));
    assert_eq!(daemon.executor_pid("r0"), pid);
}
