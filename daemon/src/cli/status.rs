//! `gpuletctl status`: the daemon's state. What a newer daemon adds is in the JSON at least.

use std::path::Path;

use clap::Args;
use serde_json::Value;

use super::table::{bytes, duration, table, uptime};
use super::{CtlError, Output, control, print, print_json};

/// Show what the daemon is doing: models, gpulets, executors and sessions
#[derive(Debug, Args)]
pub(super) struct Status {
    #[command(flatten)]
    output: Output,
}

impl Status {
    pub(super) fn run(&self, socket: Option<&Path>) -> Result<(), CtlError> {
        let state = control::state(socket)?;
        if self.output.json { print_json(&state) } else { print(&show(&state)) }
    }
}

fn show(state: &Value) -> String {
    let flag = |field: &str| state[field].as_bool().unwrap_or(false);
    let mood = match (flag("draining"), flag("ready")) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let mut text = format!(
        "gpuletd {}, up {}, {mood}\n",
        text_of(&state["version"]),
        uptime(number(&state["uptime_ns"]))
    );
    section(&mut text, "models", models(state), "no models");
    section(&mut text, "gpulets", gpulets(state), "no gpulets");
    section(&mut text, "executors", executors(state), "no executors");
    section(&mut text, "sessions", sessions(state), "no sessions");
    text
}

fn section(text: &mut String, name: &str, rows: (Vec<&str>, Vec<Vec<String>>), none: &str) {
    text.push('\n');
    if rows.1.is_empty() {
        text.push_str(none);
        text.push('\n');
        return;
    }
    let mut header = rows.0;
    header[0] = name;
    text.push_str(&table(&header, &rows.1));
}

fn models(state: &Value) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec!["", "state", "queued", "running", "batches", "ok", "p50", "p99", "other"];
    let rows = list(&state["models"]).iter().map(|model| {
        let (ok, other) = answers(&model["answers"]);
        let error = model["error"].as_str().unwrap_or_default();
        vec![
            text_of(&model["name"]),
            text_of(&model["state"]),
            count(&model["queued"]),
            count(&model["running"]),
            count(&model["batches"]),
            ok.to_string(),
            duration(number(&model["p50_ns"])),
            duration(number(&model["p99_ns"])),
            if error.is_empty() { other } else { error.replace('\n', "; ") },
        ]
    });
    (header, rows.collect())
}

/// How many requests were answered with outputs, and the other answers by their name.
fn answers(answers: &Value) -> (u64, String) {
    let mut ok = 0;
    let mut other = Vec::new();
    for (name, count) in answers.as_object().into_iter().flatten() {
        if name == gpulet_abi::status::Status::Ok.name() {
            ok = number(count);
        } else {
            other.push(format!("{name} {}", number(count)));
        }
    }
    (ok, if other.is_empty() { "-".to_owned() } else { other.join(", ") })
}

fn gpulets(state: &Value) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec![
        "",
        "mechanism",
        "device",
        "share",
        "state",
        "models",
        "running",
        "batches",
        "executor",
    ];
    let rows = list(&state["gpulets"]).iter().map(|gpulet| {
        vec![
            text_of(&gpulet["name"]),
            text_of(&gpulet["mechanism"]),
            text_of(&gpulet["device"]),
            share(gpulet),
            text_of(&gpulet["state"]),
            count(&gpulet["models"]),
            count(&gpulet["running"]),
            count(&gpulet["batches"]),
            text_of(&gpulet["executor"]),
        ]
    });
    (header, rows.collect())
}

/// What it has, and what it is to have if that is something else.
fn share(gpulet: &Value) -> String {
    let (share, wanted) = (&gpulet["share_pct"], &gpulet["wanted_pct"]);
    if wanted.is_number() && wanted != share {
        format!("{} -> {} %", count(share), count(wanted))
    } else {
        format!("{} %", count(share))
    }
}

fn executors(state: &Value) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec!["", "pid", "state", "threads", "cpus", "restarts", "loading", "backend"];
    let rows = list(&state["executors"]).iter().map(|executor| {
        let cpus: Vec<String> = list(&executor["cpus"]).iter().map(count).collect();
        vec![
            text_of(&executor["name"]),
            count(&executor["pid"]),
            text_of(&executor["state"]),
            count(&executor["threads"]),
            if cpus.is_empty() { "any".to_owned() } else { cpus.join(",") },
            count(&executor["restarts"]),
            text_of(&executor["loading"]),
            text_of(&executor["backend"]),
        ]
    });
    (header, rows.collect())
}

fn sessions(state: &Value) -> (Vec<&'static str>, Vec<Vec<String>>) {
    let header = vec!["", "uid", "pid", "slots", "in flight", "submitted", "completed"];
    let rows = list(&state["sessions"]).iter().map(|session| {
        let slots = format!(
            "{} x {}",
            count(&session["slot_count"]),
            bytes(number(&session["slot_bytes"]))
        );
        vec![
            count(&session["id"]),
            count(&session["uid"]),
            count(&session["pid"]),
            slots,
            count(&session["in_flight"]),
            count(&session["submitted"]),
            count(&session["completed"]),
        ]
    });
    (header, rows.collect())
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

/// A number, or a dash where there is none.
pub(super) fn count(value: &Value) -> String {
    if value.is_number() { value.to_string() } else { "-".to_owned() }
}

/// A text, or a dash where there is none.
pub(super) fn text_of(value: &Value) -> String {
    value.as_str().filter(|text| !text.is_empty()).unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_state_is_shown_and_an_odd_one_too() {
        let state = json!({
            "version": "0.1.0", "uptime_ns": 61_000_000_000u64, "ready": true,
            "models": [{ "name": "digits", "state": "ready", "queued": 2, "running": 1,
                "batches": 3, "answers": { "GPULET_OK": 5, "GPULET_DEADLINE_HOPELESS": 7 },
                "p50_ns": 1_500_000, "p99_ns": 2_000_000 }],
            "gpulets": [{ "name": "cpu0", "executor": "cpu0", "state": "running",
                "mechanism": "cpu", "device": null, "share_pct": 90, "wanted_pct": 50,
                "models": 1, "running": 1, "batches": 3 }],
            "executors": [{ "name": "cpu0", "gpulets": ["cpu0"], "pid": 42, "state": "running",
                "threads": 2, "cpus": [0, 1], "restarts": 0, "loading": "crepe",
                "backend": "libtorch" }],
            "sessions": [],
        });
        assert_eq!(
            show(&state),
            "gpuletd 0.1.0, up 1 min 1 s, ready\n\n\
             models  state  queued  running  batches  ok      p50      p99  other\n\
             digits  ready       2        1        3   5  1.50 ms  2.00 ms  \
             GPULET_DEADLINE_HOPELESS 7\n\n\
             gpulets  mechanism  device       share  state    models  running  batches  executor\n\
             cpu0     cpu        -       90 -> 50 %  running       1        1        3  cpu0\n\n\
             executors  pid  state    threads  cpus  restarts  loading  backend\n\
             cpu0        42  running        2   0,1         0  crepe    libtorch\n\n\
             no sessions\n"
        );
        for odd in [json!(null), json!([]), json!({ "models": [3], "executors": {} })] {
            assert!(show(&odd).starts_with("gpuletd -, up 0 s, not ready"), "{odd}");
        }
    }
}
