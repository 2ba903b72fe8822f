//! gpuletctl prove-share where there is no GPU: usage, and what is said then.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::Write;
use std::process::{Command, Stdio};

const FAILED: i32 = 1;
const USAGE: i32 = 2;

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
fn a_device_that_is_not_there_is_said() {
    let (code, out, err) = ctl(&["prove-share", "--device", "999"]);
    assert_eq!((code, out.as_str()), (FAILED, ""), "{err}");
    assert!(err.starts_with("gpuletctl: device 999 is not there"), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
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
