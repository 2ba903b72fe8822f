//! gpuletctl prove-share and profile where there is no GPU: usage, and what is said then.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::process::{Command, Stdio};

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const BAD_CONFIG: i32 = 4;

fn ctl(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
    let output = command.args(arguments).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[test]
fn wrong_shares_are_refused_before_anything_is_started() {
    for (shares, said) in [
        ("50,60", "--shares: add up to 110, at most 100"),
        ("0", "0 is not in 1..=100"),
        ("ten", "invalid digit"),
    ] {
        let (code, out, err) = ctl(&["prove-share", "--shares", shares]);
        assert_eq!((code, out.as_str()), (USAGE, ""), "{err}");
        assert!(err.contains(said), "{err}");
    }
}

#[test]
fn a_wrong_grid_is_refused_before_anything_is_started() {
    for (arguments, said) in [
        (&["--shares", "0"][..], "0 is not in 1..=100"),
        (&["--batches", "1,0"], "0 is not in 1..=1024"),
        (&["--precisions", "half"], "known: fp32, tf32, fp16, bf16"),
        (&["--budget", "-1"], "unexpected argument"),
        (&["--sets", "3"], "--interference"),
        (&["--interference", "--held", "mps"], "--held green"),
    ] {
        let (code, out, err) = ctl(&[&["profile", "--out", "/nowhere"], arguments].concat());
        assert_eq!((code, out.as_str()), (USAGE, ""), "{arguments:?}: {err}");
        assert!(err.contains(said), "{arguments:?}: {err}");
    }
}

#[test]
fn a_model_that_is_not_there_is_said() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../resource/models");
    let arguments = ["profile", "--out", "/nowhere", "--models", models, "--only", "digits,none"];
    let (code, _, err) = ctl(&arguments);
    assert_eq!(code, BAD_CONFIG, "{err}");
    assert!(err.contains("none: no directory with a model.toml, nor one in "), "{err}");
}

#[test]
fn a_device_that_is_not_there_is_said() {
    let models = concat!(env!("CARGO_MANIFEST_DIR"), "/../resource/models");
    for arguments in [
        &["prove-share", "--device", "999"][..],
        &["profile", "--out", "/nowhere", "--models", models, "--device", "999"],
    ] {
        let (code, out, err) = ctl(arguments);
        assert_eq!((code, out.as_str()), (FAILED, ""), "{err}");
        assert!(err.starts_with("gpuletctl: device 999 is not there"), "{err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

/// What a process that measures answers to lines, one each.
fn answers(orders: &str) -> Vec<serde_json::Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
    command.arg("measure-gpulets").stdin(Stdio::piped()).stdout(Stdio::piped());
    // No GPU is opened by this test where there is one.
    command.env("CUDA_VISIBLE_DEVICES", "");
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(orders.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{:?}", output.status);
    let lines = String::from_utf8(output.stdout).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_process_that_measures_answers_whatever_it_is_asked() {
    let open = r#"{"open":{"gpu":{"device":0,"libtorch_dir":null,"torch_shim":null,
        "torch_cuda_shim":null,"kernel_cache":"/nowhere","nvrtc":null},"shares_pct":[50,50]}}"#;
    let orders = format!("\"probe\"\nnonsense\n{{\"unload\":{{}}}}\n{}\n", open.replace('\n', ""));
    let answers = answers(&orders);
    assert_eq!(answers.len(), 4, "{answers:?}");
    assert_eq!(answers[0]["failed"], "no device is open");
    for answer in &answers[1..3] {
        assert!(answer["failed"].as_str().unwrap().starts_with("standard input: "), "{answer}");
    }
    assert!(answers[3]["failed"].is_string(), "{}", answers[3]);
}
