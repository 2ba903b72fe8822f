//! gpuletctl without a daemon, or with one that misbehaves: usage, exit codes, run, check, pages.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::thread::JoinHandle;

use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{Goodbye, StateQuery, StateReply, put_text};
use gpulet_abi::status::Status;
use rustix::event::{PollFd, PollFlags, poll};

const DONE: i32 = 0;
const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NO_DAEMON: i32 = 3;
const BAD_CONFIG: i32 = 4;

fn ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpuletctl"))
        .args(arguments)
        .env_remove("GPULET_SOCKET")
        .output()
        .unwrap()
}

/// Asserts the exit code; returns standard output and standard error.
fn ends(arguments: &[&str], code: i32) -> (String, String) {
    let output = ctl(arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let (out, err) = (text(output.stdout), text(output.stderr));
    assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{out}\n{err}");
    (out, err)
}

fn resource(path: &str) -> String {
    let resource = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource");
    resource.join(path).to_str().unwrap().to_owned()
}

#[test]
fn wrong_usage_is_told_in_one_line() {
    for (arguments, said) in [
        (vec!["statsu"], "unrecognized subcommand 'statsu'"),
        (vec!["status", "--jsom"], "unexpected argument '--jsom'"),
        (vec!["run"], "<MODEL>"),
        (vec!["run", "x", "-n", "0"], "0 is not in 1..=10000000"),
        (vec!["run", "x", "--share", "101"], "101 is not in 1..=100"),
        (vec!["run", "x", "--interval", "-1"], "'-1'"),
        (vec!["run", "x", "--interval", "nan"], "must be 0 to 3600 seconds"),
        (vec!["infer", "x"], "<--input <FILE>|--fill <WHAT>|--zeros>"),
        (vec!["infer", "x", "--zeros", "--fill", "ones"], "cannot be used with"),
        (vec!["completions", "korn"], "korn"),
    ] {
        let (out, err) = ends(&arguments, USAGE);
        assert_eq!(out, "");
        assert_eq!(err.lines().count(), 1, "{err}");
        assert!(err.starts_with("gpuletctl: ") && err.contains(said), "{err}");
        assert!(err.ends_with("(--help says more)\n"), "{err}");
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let (out, _) = ends(&["--version"], DONE);
    assert_eq!(out, format!("gpuletctl {}\n", env!("CARGO_PKG_VERSION")));
    let (out, _) = ends(&["--help"], DONE);
    assert!(out.contains("Exit status:\n  0  done\n"), "{out}");
    assert!(!out.contains(" man "), "the hidden subcommand is shown");
    let (out, _) = ends(&["run", "--help"], DONE);
    assert!(out.contains("--share <PCT>"), "{out}");
}

#[test]
fn a_built_in_model_runs_without_a_daemon() {
    let echo = resource("models/echo");
    let (out, err) = ends(&["run", &echo, "-n", "7", "-b", "3", "--verbose"], DONE);
    assert!(out.contains("echo on built in"), "{out}");
    assert!(out.contains("latency    count"), "{out}");
    let lines: Vec<&str> = err.lines().collect();
    assert_eq!(lines.len(), 14, "{err}");
    for pair in lines.chunks(2) {
        let at = |line: &str, what: &str| -> f64 {
            line.strip_prefix(what).unwrap().trim().parse().unwrap()
        };
        assert!(at(pair[0], "START EXEC") <= at(pair[1], "END EXEC"));
    }
}

#[test]
fn a_run_can_be_read_by_programs() {
    let models = resource("models");
    let arguments = ["run", "echo", "--models", &models, "-n", "5", "--share", "1", "--json"];
    let (out, err) = ends(&arguments, DONE);
    assert_eq!(err, "");
    let report: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["model"], "echo");
    assert_eq!((&report["count"], &report["batch"]), (&5.into(), &1.into()));
    assert_eq!((&report["share_pct"], &report["threads"]), (&1.into(), &1.into()));
    assert_eq!(report["cpus"].as_array().unwrap().len(), 1);
    let latency = |field: &str| report["latency"][field].as_u64().unwrap();
    assert_eq!(latency("count"), 5);
    let ordered = ["min_ns", "p50_ns", "p90_ns", "p99_ns", "max_ns"].map(latency);
    assert!(ordered.is_sorted() && ordered[0] > 0, "{ordered:?}");
}

#[test]
fn what_cannot_run_is_told_apart() {
    let models = resource("models");
    let (_, err) = ends(&["run", "nowhere", "--models", &models], BAD_CONFIG);
    assert!(err.contains("nowhere: no directory with a model.toml, nor one in "), "{err}");
    let (_, err) = ends(&["run", "./nowhere"], BAD_CONFIG);
    assert!(err.contains("./nowhere: cannot be read"), "{err}");
    let (_, err) = ends(&["run", &resource("models/null")], BAD_CONFIG);
    assert!(err.contains("answered by the daemon itself"), "{err}");
    let (_, err) = ends(&["run", &resource("models/echo"), "-b", "65"], USAGE);
    assert!(err.contains("--batch 65: echo takes 1 to 64 rows"), "{err}");
    let digits = resource("models/digits");
    let (_, err) = ends(&["run", &digits, "--torch-shim", "/nowhere.so"], FAILED);
    // What is missing depends on what is installed here.
    assert!(err.starts_with("gpuletctl: backend torch: "), "{err}");
}

#[test]
fn good_configurations_and_models_are_good() {
    let (out, err) = ends(&["check", &resource("configs/replay.toml")], DONE);
    assert!(out.ends_with("good, with 3 models (digits, echo, null)\n"), "{out}");
    assert_eq!(err, "");
    let (out, _) = ends(&["check", &resource("models/digits")], DONE);
    assert!(out.ends_with("good, with 1 model (digits)\n"), "{out}");
    let (out, _) = ends(&["check", &resource("models"), "--json"], DONE);
    let findings: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(findings["models"], serde_json::json!(["digits", "echo", "null"]));
    assert_eq!(findings["problems"], serde_json::json!([]));
}

#[test]
fn check_prints_every_problem() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir_all(path("models/bad")).unwrap();
    let text = "file='gone.pt'\nslo_ms=0\nmax_batch=1\nwarmup_count=1\n\
                [[input]]\nname='x'\ndtype='f32'\nshape=[-1]\n\
                [[output]]\nname='x'\ndtype='f32'\nshape=[1]\n";
    fs::write(path("models/bad/model.toml"), text).unwrap();
    let text = "models = ['models', 'missing']\nlibtorch_dir = 'gone'\n[[gpulet]]\nname='a'\n\
                mechanism='replay'\nshare_pct=1\nprofiles='none'\nmodels=['other']\n";
    fs::write(path("gpuletd.toml"), text).unwrap();
    let config = path("gpuletd.toml").to_str().unwrap().to_owned();
    let (out, err) = ends(&["check", &config], BAD_CONFIG);
    assert_eq!(out, "");
    for said in [
        "models/bad/model.toml:1: file: must be a file",
        "models/bad/model.toml:2: slo_ms: must be",
        "models/bad/model.toml:12: output[0].shape: must start with -1",
        "missing: cannot be read",
        "gpulet[0].models: must name models there are, \"other\" is none",
        "libtorch_dir: must be there",
        "gpulet[0].profiles: backend replay: profiles_dir",
    ] {
        assert!(err.contains(said), "{said}\n in\n{err}");
    }
    assert_eq!(err.lines().count(), 7, "{err}");

    let (out, _) = ends(&["check", &config, "--json"], BAD_CONFIG);
    let findings: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(findings["problems"].as_array().unwrap().len(), 7);

    fs::write(&config, "drain_timeout_ms = -1\nspin_us = 'x'").unwrap();
    let (_, err) = ends(&["check", &config], BAD_CONFIG);
    assert_eq!(err.lines().count(), 2, "{err}");
    let (_, err) = ends(&["check", "/nowhere/gpuletd.toml"], BAD_CONFIG);
    assert!(err.contains("/nowhere/gpuletd.toml: cannot be read"), "{err}");
}

#[test]
fn a_model_that_no_gpulet_hosts_is_noted() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("gpuletd.toml");
    let text = format!(
        "models = ['{}']\n[[gpulet]]\nname='a'\nmechanism='cpu'\nshare_pct=1\nmodels=['digits']",
        resource("models")
    );
    fs::write(&config, text).unwrap();
    let (_, err) = ends(&["check", config.to_str().unwrap()], DONE);
    assert!(err.ends_with("gpulet: none hosts model \"echo\"\n"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn a_model_for_gpus_is_noted_where_none_hosts_it() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("models/breaker");
    fs::create_dir_all(&model).unwrap();
    let echo = fs::read_to_string(format!("{}/echo/model.toml", resource("models"))).unwrap();
    fs::write(model.join("model.toml"), echo.replace("\"echo\"", "\"fault\"")).unwrap();
    let config = folder.path().join("gpuletd.toml");
    let text = "models = ['models']\n[[gpulet]]\nname='a'\nshare_pct=1\nmechanism=";
    fs::write(&config, format!("{text}'cpu'")).unwrap();
    let (_, err) = ends(&["check", config.to_str().unwrap()], DONE);
    assert!(err.ends_with("none on a GPU hosts model \"breaker\", which needs one\n"), "{err}");
    // Which devices there are is another machine's matter, and so is noted at most.
    fs::write(&config, format!("{text}'mps'\ndevice=63")).unwrap();
    let (_, err) = ends(&["check", config.to_str().unwrap()], DONE);
    assert!(err.contains("gpulet \"a\": device 63 is not there"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
}

#[test]
fn devices_are_listed_or_their_absence_explained() {
    let (out, _) = ends(&["devices"], DONE);
    assert!(out.starts_with("no devices: ") || out.starts_with("driver "), "{out}");
    let (out, _) = ends(&["devices", "--json"], DONE);
    let found: serde_json::Value = serde_json::from_str(&out).unwrap();
    let none = found["devices"].as_array().unwrap().is_empty();
    assert_eq!(none, found["reason_if_none"].is_string(), "{out}");
}

#[test]
fn pages_and_completions_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let pages = folder.path().join("man");
    ends(&["man", pages.to_str().unwrap()], DONE);
    for subcommand in ["run", "infer", "status", "models", "devices", "check", "completions"] {
        let page = fs::read_to_string(pages.join(format!("gpuletctl-{subcommand}.1"))).unwrap();
        assert!(page.contains(".SH \"EXIT STATUS\""), "{subcommand}");
    }
    assert!(fs::read_to_string(pages.join("gpuletctl.1")).unwrap().contains("gpuletctl\\-run(1)"));
    assert!(fs::read_to_string(pages.join("gpuletd.8")).unwrap().contains(".SH \"SIGNALS\""));
    assert!(!pages.join("gpuletctl-man.1").exists());
    for (shell, said) in [("bash", "complete -F _gpuletctl"), ("zsh", "#compdef gpuletctl")] {
        let (out, _) = ends(&["completions", shell], DONE);
        assert!(out.contains(said), "{shell}");
    }
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    ends(&["man", file.to_str().unwrap()], FAILED);
}

#[test]
fn no_daemon_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("no.sock");
    let socket = socket.to_str().unwrap();
    for arguments in [vec!["status"], vec!["models", "--json"], vec!["infer", "digits", "--zeros"]]
    {
        let (_, err) = ends(&[&arguments[..], &["--socket", socket]].concat(), NO_DAEMON);
        assert!(err.starts_with("gpuletctl: ") && err.contains("no.sock"), "{err}");
    }
}

/// A daemon that answers one connection's first packet with `answer` and hangs up.
fn daemon_that(answer: impl FnOnce(&OwnedFd, &[u8]) + Send + 'static) -> FakeDaemon {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("fake.sock");
    let listener = frame::listen(&socket, 1).unwrap();
    let thread = std::thread::spawn(move || {
        let ready = |fd: &OwnedFd| poll(&mut [PollFd::new(fd, PollFlags::IN)], None).unwrap();
        ready(&listener);
        let client = rustix::net::accept(&listener).unwrap();
        ready(&client);
        let mut packet = [0; 256];
        let received = frame::receive(&client, &mut packet).unwrap();
        answer(&client, &packet[..received.bytes]);
    });
    FakeDaemon { socket, thread, _folder: folder }
}

struct FakeDaemon {
    socket: PathBuf,
    thread: JoinHandle<()>,
    _folder: tempfile::TempDir,
}

impl FakeDaemon {
    /// Asserts that `status` ends so; returns what it says.
    fn status_ends(self, code: i32) -> String {
        let (out, err) = ends(&["status", "--socket", self.socket.to_str().unwrap()], code);
        self.thread.join().unwrap();
        out + &err
    }
}

fn send<F: Frame>(client: &OwnedFd, frame: &F) {
    frame::send(client, bytemuck::bytes_of(frame), &[]).unwrap();
}

#[test]
fn a_daemon_that_refuses_is_understood() {
    let said = daemon_that(|client, packet| {
        assert!(StateQuery::parse(packet).is_some());
        send(client, &StateReply { status: Status::AccessDenied as i32, ..StateReply::blank() });
    })
    .status_ends(NO_DAEMON);
    assert!(said.contains("on no allow list of the daemon (GPULET_ACCESS_DENIED)"), "{said}");

    let said = daemon_that(|client, _| {
        let mut goodbye = Goodbye { status: Status::Draining as i32, ..Goodbye::blank() };
        put_text(&mut goodbye.text, "closing time");
        send(client, &goodbye);
    })
    .status_ends(NO_DAEMON);
    assert!(said.contains("refused: closing time (GPULET_DRAINING)"), "{said}");
}

#[test]
fn a_daemon_that_talks_nonsense_is_no_daemon() {
    let said = daemon_that(|_, _| ()).status_ends(NO_DAEMON);
    assert!(said.contains("the daemon hung up"), "{said}");
    let said = daemon_that(|client, _| frame::send(client, b"hello there", &[]).unwrap())
        .status_ends(NO_DAEMON);
    assert!(said.contains("no part of this ABI"), "{said}");
    let said = daemon_that(|client, _| send(client, &StateReply::blank())).status_ends(NO_DAEMON);
    assert!(said.contains("came without its file"), "{said}");
}

/// A reply that says `json_bytes` about a file with this content.
fn reply(content: &'static [u8], json_bytes: u64) -> FakeDaemon {
    daemon_that(move |client, _| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        let frame = StateReply { json_bytes, ..StateReply::blank() };
        frame::send(client, bytemuck::bytes_of(&frame), &[file.as_fd()]).unwrap();
    })
}

#[test]
fn a_state_is_believed_only_as_far_as_it_goes() {
    let said = reply(b"{\"version\":\"9\"}", 15).status_ends(DONE);
    assert!(said.starts_with("gpuletd 9, up 0 s, not ready\n"), "{said}");
    for json_bytes in [16, u64::MAX] {
        let said = reply(b"{\"version\":\"9\"}", json_bytes).status_ends(NO_DAEMON);
        assert!(said.contains("not as long as it should be"), "{said}");
    }
    let said = reply(b"{\"version\":\"9\"}", 14).status_ends(NO_DAEMON);
    assert!(said.contains("the state is no JSON"), "{said}");
}
