//! Every subcommand, small: whether it measures what it says, never how fast anything is.

#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use support::{Daemon, bench, children_of, daemon, json_of, runs, skip, stderr};

fn names(report: &Value, list: &str) -> Vec<String> {
    let list = report[list].as_array().unwrap();
    list.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
}

fn assert_measured(report: &Value, rounds: usize) {
    for contender in report["contenders"].as_array().unwrap() {
        assert_eq!(contender["rounds"].as_array().unwrap().len(), rounds, "{contender}");
        for round in contender["rounds"].as_array().unwrap() {
            assert!(round["count"].as_u64().unwrap() > 0, "{contender}");
            let figures = ["p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"];
            let figures = figures.map(|figure| round[figure].as_u64().unwrap());
            assert!(figures[0] > 0 && figures.is_sorted(), "{contender}");
            assert!(round["per_second"].as_f64().unwrap() > 0.0, "{contender}");
        }
    }
}

#[test]
fn floors_are_measured_between_two_processes() {
    let report =
        json_of(bench().args(["ring", "--floors-only", "--rounds", "2", "--round-ms", "5"]));
    assert_measured(&report, 2);
    let names = names(&report, "contenders");
    let floors = ["spinning cache line", "futex", "eventfd", "Unix socket, 64 B"];
    assert_eq!(names[..4], floors);
    assert_eq!(names[4], "TCP loopback, 64 B");
    assert_eq!(names.len(), if cfg!(feature = "iceoryx2") { 6 } else { 5 });
}

#[test]
fn ring_measures_every_way_of_waiting_beside_the_floors() {
    let Some(daemon) = daemon("ring") else { return };
    let report = json_of(
        bench()
            .args(["ring", "--rounds", "1", "--round-ms", "5", "--payloads", "64,8192", "--touch"])
            .args(["--in-flight", "1,8"])
            .arg("--daemon")
            .arg(daemon),
    );
    assert_measured(&report, 1);
    let contenders = names(&report, "contenders");
    for wake in ["busy", "blocking"] {
        for rest in ["1 in flight, 64 B", "1 in flight, 8 KiB", "8 in flight, 64 B"] {
            let name = format!("{wake}, {rest}, written");
            assert!(contenders.contains(&name), "{name} is not in {contenders:?}");
        }
    }
    let ratios = names(&report, "ratios");
    let wanted = [
        "busy round trip / spinning cache line",
        "blocking round trip / futex floor",
        "busy round trip, 8 KiB / 64 B",
    ];
    assert!(wanted.iter().all(|name| ratios.iter().any(|ratio| ratio == name)), "{ratios:?}");
    assert!(report["settings"]["daemon_resident_bytes_max"].as_u64().unwrap() > 0);
}

#[test]
fn e2e_gets_the_same_answer_both_ways() {
    let Some(daemon) = daemon("e2e") else { return };
    if gpulet_torch::built_shim().is_none() {
        return skip("e2e", "there is no libtorch here");
    }
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models/digits");
    let report = json_of(
        bench()
            .args(["e2e", "--rounds", "2", "--requests", "3", "--rows", "2", "--model"])
            .arg(model)
            .arg("--daemon")
            .arg(daemon),
    );
    // Different outputs are an error, so there is a report only if they are equal.
    assert_measured(&report, 2);
    assert_eq!(report["contenders"][0]["median"]["count"], 6);
    let ratio = "through the daemon / the shim alone";
    assert_eq!(names(&report, "ratios"), [ratio.to_owned(), format!("{ratio}, p99")]);
}

#[test]
fn load_accounts_for_every_request() {
    let Some(program) = daemon("load") else { return };
    let daemon = Daemon::start(&program);
    for arrivals in ["poisson", "uniform"] {
        let report = json_of(
            bench()
                .args(["load", "null", "--rate", "2000", "--duration", "0.2", "--rows", "2"])
                .args(["--arrivals", arrivals, "--slots", "4", "--socket"])
                .arg(daemon.socket()),
        );
        assert_measured(&report, 1);
        let outcome = &report["settings"]["outcome"];
        let count = |what: &str| outcome[what].as_u64().unwrap();
        let refused: u64 =
            outcome["refused"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
        assert!((300..500).contains(&count("due")), "{outcome}");
        assert_eq!(count("due"), count("answered") + refused + count("lost"), "{outcome}");
        assert!(count("good") <= count("answered") && count("answered") > 0, "{outcome}");
    }
}

#[test]
fn load_counts_what_came_too_late_as_such() {
    let Some(program) = daemon("load, too late") else { return };
    let daemon = Daemon::start(&program);
    // No request can be answered within a microsecond of when it was due on top of two wake-ups.
    let output = bench()
        .args(["load", "null", "--rate", "500", "--duration", "0.2", "--slo-ms", "0.001"])
        .args(["--json", "-", "--socket"])
        .arg(daemon.socket())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let settings = &report["settings"];
    assert!(settings["outcome"]["due"].as_u64().unwrap() > 50, "{settings}");
    assert!(settings["attainment_pct"].as_f64().unwrap() < 100.0, "{settings}");
}

#[test]
fn what_is_missing_is_named() {
    let fails = |arguments: &[&str], words: &[&str]| {
        let output = bench().args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = stderr(&output);
        assert!(words.iter().all(|word| text.contains(word)), "{arguments:?}: {text}");
    };
    fails(&["ring", "--daemon", "/nowhere/gpuletd"], &["/nowhere/gpuletd", "--daemon"]);
    fails(&["e2e", "--model", "/nowhere", "--daemon", "/bin/true"], &["/nowhere"]);
    fails(&["load", "null", "--rate", "1", "--socket", "/nowhere/socket"], &["/nowhere/socket"]);
    fails(&["ring", "--floors-only", "--far-cpu", "1023"], &["CPU 1023"]);
    let output = bench().args(["load", "null", "--rate", "0"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_daemon_that_ends_at_once_is_an_error_and_not_a_wait() {
    let mut command = bench();
    command.args(["ring", "--rounds", "1", "--round-ms", "1", "--daemon", "/bin/false"]);
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("it ended"), "{}", stderr(&output));
}

#[test]
fn the_other_process_does_not_outlive_a_killed_bench() {
    let mut command = bench();
    command.args(["ring", "--floors-only", "--rounds", "1", "--round-ms", "60000"]);
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    let wait_for = |done: &dyn Fn() -> bool, what: &str| {
        while !done() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let pid = child.id();
    wait_for(&|| !children_of(pid).is_empty(), "there is no other process");
    let other = children_of(pid)[0];
    child.kill().unwrap();
    child.wait().unwrap();
    wait_for(&|| !runs(other), "the other process lives on");
}
