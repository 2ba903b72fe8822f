//! Model files that are not what they should be: the daemon serves the others, and whoever asks for
//! a bad one is told the file, the field and the rule.

use std::fs;
use std::path::Path;

use gpulet_client::Status;
use rustix::process::Signal;

use crate::support::client::{echo_once, finish_echo, next, open, submit};
use crate::support::daemon::{Daemon, Setup};
use crate::support::models::{Folder, shipped};
use crate::support::process::{Frozen, signal};
use crate::support::state::State;

/// What the daemon says when a model is asked for that failed.
fn failure(daemon: &Daemon, model: &str) -> String {
    let mut session = daemon.session();
    let error = session.model_open(model).unwrap_err();
    assert_eq!(error.status(), Status::ModelFailed, "{error}");
    error.to_string()
}

fn assert_serves_echo(daemon: &Daemon) {
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
}

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn a_bad_model_toml_is_told_with_file_field_and_rule() {
    let setup = Setup::builtin();
    let models = setup.path().join("models");
    let tensors = "[[input]]\nname='x'\ndtype='f32'\nshape=[-1,4]\n\
                   [[output]]\nname='y'\ndtype='f32'\nshape=[-1,4]\n";
    let head = "slo_ms = 10.0\nmax_batch = 4\nwarmup_count = 1\n";
    write(&models.join("a/model.toml"), &format!("file = 'model.pt'\n{head}{tensors}"));
    let empty = format!("file = 'model.pt'\n{head}{tensors}");
    write(&models.join("b/model.toml"), &empty);
    write(&models.join("b/model.pt"), "");
    write(&models.join("c/model.toml"), "builtin = 'echo'\nmax_batch = \n");
    let shape = tensors.replace("shape=[-1,4]", "shape=[4]");
    write(&models.join("d/model.toml"), &format!("builtin = 'echo'\n{head}{shape}"));
    let daemon = setup.start();
    for (model, field, rule) in [
        ("a", "file", "must be a file"),
        ("b", "file", "must not be empty"),
        ("c", "model.toml", "no TOML"),
        ("d", "input[0].shape", "must start with -1"),
    ] {
        let text = failure(&daemon, model);
        assert!(text.contains(&format!("{model}/model.toml")), "{text}");
        assert!(text.contains(field) && text.contains(rule), "{text}");
        assert!(daemon.log().contains(rule), "it is in the log too");
    }
    let mut session = daemon.session();
    let error = session.model_open("nobody").unwrap_err();
    assert_eq!(error.status(), Status::NoSuchModel);
    assert!(error.to_string().contains("nobody"), "{error}");
    assert_serves_echo(&daemon);
}

#[test]
fn a_bad_profile_is_told_with_file_field_and_rule() {
    let setup = Setup::builtin().slow("none", 1000, 4).slow("zero", 1000, 4);
    fs::remove_file(setup.path().join("profiles/none.json")).unwrap();
    let zero = setup.path().join("profiles/zero.json");
    let text = fs::read_to_string(&zero).unwrap().replace("\"rows\": 1,", "\"rows\": 0,");
    fs::write(&zero, text).unwrap();
    let daemon = setup.start();
    let text = failure(&daemon, "none");
    assert!(text.contains("profiles/none.json"), "{text}");
    let text = failure(&daemon, "zero");
    assert!(text.contains("profiles/zero.json") && text.contains("points[0].rows"), "{text}");
    assert_serves_echo(&daemon);
}

#[test]
fn a_bad_archive_is_told_with_its_file_and_what_is_wrong() {
    let setup = Setup::with_digits();
    let archive = fs::read(shipped().join("digits/model.pt")).unwrap();
    let digits = Folder {
        inputs: &[("image", "f32", "[-1, 1, 8, 8]")],
        outputs: &[("logits", "f32", "[-1, 10]")],
        ..Folder::of("file = \"model.pt\"", 8)
    };
    let wide = Folder { outputs: &[("logits", "f32", "[-1, 11]")], ..digits.clone() };
    let whole = Folder { outputs: &[("logits", "i64", "[-1, 10]")], ..digits.clone() };
    let models = setup.path().join("models");
    for (name, model, bytes) in [
        ("cut", &digits, &archive[..archive.len() / 2]),
        ("text", &digits, &b"this is no archive\n"[..]),
        ("wide", &wide, &archive[..]),
        ("whole", &whole, &archive[..]),
    ] {
        model.write(&models.join(name));
        fs::write(models.join(name).join("model.pt"), bytes).unwrap();
    }
    let daemon = setup.start();
    if !daemon.has_torch() {
        return;
    }
    for (model, what) in
        [("cut", "model.pt"), ("text", "model.pt"), ("wide", "logits"), ("whole", "logits")]
    {
        let text = failure(&daemon, model);
        assert!(text.contains(&format!("{model}/model.pt")), "{text}");
        assert!(text.contains(what), "{text}");
    }
    assert_serves_echo(&daemon);
    let mut session = daemon.session();
    session.model_open("digits").unwrap();
    assert_eq!(daemon.state().executor("r0").unwrap()["restarts"], 0);
}

/// A daemon of a model that takes seconds to load, between two that do not, while it does.
fn loading_heavy(top: &str) -> (Daemon, u32) {
    let later = Folder::of("builtin = \"echo\"", 1);
    let setup = Setup::builtin().top(top).model("later", &later);
    // A megabyte a row, and many rounds of warming up.
    let tensor =
        |side: &str| format!("[[{side}]]\nname = '{side}'\ndtype = 'f32'\nshape = [-1, 262144]\n");
    let text = format!(
        "builtin = 'echo'\nslo_ms = 60000.0\nmax_batch = 32\nwarmup_count = 100\n{}{}",
        tensor("input"),
        tensor("output")
    );
    write(&setup.path().join("models/heavy/model.toml"), &text);
    let daemon = setup.launch();
    let pid = daemon.wait_for("echo is warm and heavy is being loaded", |state| {
        state.executor_pid("r0").filter(|_| is_loading_heavy(state))
    });
    (daemon, pid)
}

fn is_loading_heavy(state: &State) -> bool {
    let echo = state.model("echo").is_some_and(|it| it["state"] == "ready");
    echo && state.executor("r0").is_some_and(|it| it["loading"] == "heavy")
}

/// The executor `pid` was replaced, and all but the model that was to blame is served.
fn assert_heavy_alone_failed(daemon: &Daemon, pid: u32, why: &str) {
    daemon.wait_for("everything is settled", |state| {
        let restarted = state.executor_pid("r0").is_some_and(|other| other != pid);
        (restarted && state.is_ready()).then_some(())
    });
    let text = failure(daemon, "heavy");
    assert!(text.contains(why), "{text}");
    assert_serves_echo(daemon);
    daemon.session().model_open("later").unwrap();
    assert_eq!(daemon.state().executor("r0").unwrap()["restarts"], 1);
}

/// A model that takes its executor with it while it is loaded is not tried again; the others are.
#[test]
fn a_model_whose_load_kills_its_executor_stops_no_other() {
    let (daemon, pid) = loading_heavy("");
    signal(pid, Signal::KILL);
    assert_heavy_alone_failed(&daemon, pid, "died while it loaded");
}

#[test]
fn a_model_whose_load_hangs_stops_no_other() {
    let (daemon, pid) = loading_heavy("hang_timeout_ms = 200");
    let _frozen = Frozen::new(pid);
    assert_heavy_alone_failed(&daemon, pid, "said nothing more while it loaded");
}

/// The first time that an executor dies with both a load and a batch, the batch may be to blame.
#[test]
fn a_model_whose_load_kills_busy_executors_is_found_out() {
    let (daemon, pid) = loading_heavy("");
    let mut session = daemon.session();
    let echo = session.model_open("echo").unwrap().model;
    let mut before = pid;
    for round in 0..2 {
        let pid = daemon.wait_for("heavy is being loaded", |state| {
            let pid = state.executor_pid("r0").filter(|pid| round == 0 || *pid != before);
            pid.filter(|_| is_loading_heavy(state))
        });
        let frozen = Frozen::new(pid);
        submit(&mut session, echo, 1, round);
        daemon.wait_for("it has a batch", |state| {
            (state.count("echo", "running") == 1).then_some(())
        });
        signal(pid, Signal::KILL);
        drop(frozen);
        before = pid;
        let answer = next(&mut session);
        finish_echo(&mut session, &answer);
    }
    daemon.wait_for("it is given up", |state| {
        (state.model("heavy")?["state"] == "failed" && state.is_ready()).then_some(())
    });
    assert_serves_echo(&daemon);
    daemon.session().model_open("later").unwrap();
}
