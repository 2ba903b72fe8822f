//! The benches of several gpulets, with batches that only take time in the place of a GPU: whether they
//! see what happens, never how fast anything is.

#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]
#![allow(dead_code, reason = "the support is for all tests")]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::{bench, daemon, json_of, stderr};

fn digits() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models/digits")
}

/// A bench of gpulets that play a GPU; none where there is no daemon.
fn replayed(name: &str, mechanism: &str) -> Option<Command> {
    let daemon = daemon(name)?;
    let mut command = bench();
    command.args([name, "--mechanism", mechanism, "--model"]).arg(digits());
    command.arg("--daemon").arg(daemon);
    Some(command)
}

fn figure(report: &Value, name: &str) -> f64 {
    report["figures"][name].as_f64().unwrap_or_else(|| panic!("{name}: {}", report["figures"]))
}

#[test]
fn gpulets_of_two_devices_are_busy_at_once() {
    let Some(mut command) = replayed("coexist", "replay-split") else { return };
    let report = json_of(
        command
            .args(["--devices", "0,1", "--gpulets", "2", "--rows", "4", "--replay-ms", "2"])
            .args(["--rounds", "1", "--seconds", "0.2"]),
    );
    assert_eq!(report["contenders"].as_array().unwrap().len(), 2);
    assert!(figure(&report, "rows_per_s_in_all") > figure(&report, "rows_per_s"));
}

/// Executors that split a device change shares themselves; others are succeeded.
#[test]
fn a_change_of_shares_is_seen_from_the_config_to_the_first_batch() {
    for mechanism in ["replay", "replay-split"] {
        let Some(mut command) = replayed("change", mechanism) else { return };
        let folder = tempfile::tempdir().unwrap();
        let timeline = folder.path().join("timeline.csv");
        let report = json_of(
            command.args(["--times", "2", "--quiet-ms", "50", "--timeline"]).arg(&timeline),
        );
        assert_eq!(figure(&report, "changes"), 2.0);
        assert_eq!(figure(&report, "failed"), 0.0);
        let courses = report["settings"]["courses"].as_array().unwrap();
        assert_eq!(courses.len(), 4, "two gpulets, twice: {courses:?}");
        for course in courses {
            assert!(course["ready_ns"].as_u64().unwrap() > 0, "{course}");
            assert!(course["first_begun_ns"].as_u64().unwrap() < 10_000_000_000, "{course}");
            assert!(course["first_answered_ns"].as_u64() >= course["first_begun_ns"].as_u64());
            assert!(course["gap_ns"].as_u64().unwrap() > 0, "{course}");
        }
        let text = fs::read_to_string(timeline).unwrap();
        for event in ["config", "decided", "switched", "over", "answer"] {
            assert!(text.contains(&format!(",{event},")), "{event}: {text}");
        }
    }
}

#[test]
fn a_change_that_is_refused_is_said() {
    let Some(mut command) = replayed("change", "replay-split") else { return };
    let output = command.args(["--times", "1", "--shares", "90,90"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the change is refused"), "{}", stderr(&output));
}

#[test]
fn harm_is_done_to_one_device_and_not_noticed_on_the_other() {
    let Some(mut command) = replayed("drill", "replay-split") else { return };
    let report = json_of(
        command
            .args(["--devices", "0,1", "--harm", "fault,executor,hang,memory", "--times", "1"])
            .args(["--quiet-ms", "50"]),
    );
    for harm in ["fault", "executor", "hang", "memory"] {
        let gap = |what: &str| figure(&report, &format!("{harm}_{what}_ms_max"));
        assert_eq!(figure(&report, &format!("{harm}_times")), 1.0);
        assert!(gap("recover") > 0.0 && gap("elsewhere") > 0.0, "{harm}: {}", report["figures"]);
    }
    // Twice until it is known to hang.
    assert!(figure(&report, "hang_recover_ms_max") >= 500.0, "{}", report["figures"]);
    assert!(figure(&report, "requests") > 100.0);
    assert_eq!((figure(&report, "failed"), figure(&report, "failed_elsewhere")), (0.0, 0.0));
}

#[test]
fn harm_that_cannot_be_done_is_refused() {
    for (mechanism, harm) in [("replay", "mps"), ("cpu", "fault"), ("replay", "batch")] {
        let Some(mut command) = replayed("drill", mechanism) else { return };
        let output = command.args(["--harm", harm]).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(&format!("--harm {harm}")), "{}", stderr(&output));
    }
}

#[test]
fn a_model_comes_and_goes() {
    let Some(mut command) = replayed("cold", "replay") else { return };
    let report = json_of(command.args(["--times", "3"]));
    assert_eq!(figure(&report, "times"), 3.0);
    assert!(figure(&report, "answer_s_median") > 0.0);
    assert!(figure(&report, "allowed_s_median") > 0.5);
    assert_eq!(report["settings"]["cycles"].as_array().unwrap().len(), 3);
}

#[test]
fn the_table_takes_what_the_benches_write() {
    let Some(mut command) = replayed("coexist", "replay") else { return };
    let folder = tempfile::tempdir().unwrap();
    command.args(["--rounds", "1", "--seconds", "0.1", "--replay-ms", "2"]);
    let output =
        command.arg("--json").arg(folder.path().join("coexist-mps.json")).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let output = bench().arg("table").arg(folder.path()).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.contains("four at 25 %, mps: images/s")).unwrap();
    assert!(line.contains(">= 9500") && !line.contains("not measured"), "{line}");
}
