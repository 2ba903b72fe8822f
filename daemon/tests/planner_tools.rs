//! `gpuletctl why`, `simulate`, `workload` and `fit`, on a problem in a file of our own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// One device type, two models.
fn problem(devices: u32, rate: f64) -> String {
    let mut text = format!(
        "[[device]]\nname = \"card\"\ncount = {devices}\nmemory_mb = 10000\ncontext_mb = 500\n\
         [[model]]\nname = \"quick\"\nrate = {rate:.1}\nslo_ms = 40.0\nmemory_mb = 300\n\
         [[model]]\nname = \"slow\"\nrate = 40.0\nslo_ms = 150.0\nmemory_mb = 2000\n"
    );
    for (model, row_ns) in [("quick", 400_000.0), ("slow", 2_500_000.0)] {
        for share_pct in [20, 40, 60, 80, 100] {
            write!(text, "[[profile]]\ndevice = \"card\"\nmodel = \"{model}\"\n").unwrap();
            write!(text, "share_pct = {share_pct}\npoints = [").unwrap();
            for rows in [1_u32, 4, 16, 32] {
                let ns =
                    1e6 + row_ns * f64::from(rows) / (f64::from(share_pct) / 100.0_f64).min(0.7);
                let p99_ns = ns as u64 + 1000;
                write!(text, "{{ rows = {rows}, p50_ns = {}, p99_ns = {p99_ns} }},", ns as u64)
                    .unwrap();
            }
            text.push_str("]\n");
        }
    }
    text
}

fn ctl(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpuletctl")).current_dir(dir).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn whoever_names_no_problem_or_one_without_end_is_told() {
    let dir = tempfile::tempdir().unwrap();
    for (arguments, told) in [
        (["schedule", "--gpus", "1"], "tasks.csv: No such file"),
        (["why", "--gpus", "1"], "name it by --task-config, or a --problem"),
        (["schedule", "--problem", "/dev/zero"], "/dev/zero: bytes: must be at most 67108864"),
    ] {
        let output = ctl(dir.path(), &arguments);
        assert!(!output.status.success());
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(told), "{arguments:?}: {said}");
    }
}

#[test]
fn plans_simulations_and_reasons_from_our_own_file() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), problem(6, 300.0)).unwrap();
    let from = ["--problem", "p.toml"];
    let run = |command: &str, more: &[&str]| {
        said(&ctl(dir.path(), &[&[command], &from[..], more].concat()))
    };
    assert!(run("schedule", &["--json", "plan.json"]).contains("policy packed"));
    assert!(run("plan-check", &["plan.json"]).contains("plan.json: good, with"));
    let again = run("schedule", &["--running", "plan.json", "--json", "next.json"]);
    assert!(again.contains("loads 0, unloads 0, resizes 0"), "{again}");
    fs::write(dir.path().join("more.toml"), problem(6, 900.0)).unwrap();
    let more = ["schedule", "--problem", "more.toml", "--running", "plan.json"];
    assert!(said(&ctl(dir.path(), &more)).contains(", unloads 0, "));
    let reasons = run("why", &["quick"]);
    assert!(reasons.starts_with("quick: asked 300.0/s, planned 342.0/s"), "{reasons}");
    let simulated = run("simulate", &["--plan", "plan.json", "--seconds", "20"]);
    assert!(simulated.contains("attainment 100.0000 %"), "{simulated}");
    let json = ["--seconds", "10", "--arrivals", "gamma", "--json"];
    assert_eq!(run("simulate", &json), run("simulate", &json));
    let read: serde_json::Value = serde_json::from_str(&run("simulate", &json)).unwrap();
    assert_eq!(read["models"][0]["name"], "quick");
    let renewing = ["--arrivals", "step", "--factor", "4", "--renew", "2", "--seconds", "20"];
    let renewed = run("simulate", &renewing);
    assert!(!renewed.contains(" 0 plans later"), "{renewed}");
    fs::write(dir.path().join("trace"), "1\n3\n").unwrap();
    run("simulate", &["--arrivals", "trace", "--trace", "trace", "--seconds", "4"]);
}

#[test]
fn a_solver_says_how_few_could_do() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), problem(6, 300.0)).unwrap();
    for bound in ["linear", "integer"] {
        let asked = ctl(dir.path(), &["schedule", "--problem", "p.toml", "--bound", bound]);
        if cfg!(feature = "solver") {
            assert!(said(&asked).contains(&format!("\n{bound} program: ")));
        } else {
            assert_eq!(asked.status.code(), Some(2));
            let told = String::from_utf8(asked.stderr).unwrap();
            assert!(told.contains("--bound needs a solver: cargo build"), "{told}");
        }
    }
}

#[test]
fn what_would_help_is_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), problem(1, 9000.0)).unwrap();
    let failed = ctl(dir.path(), &["why", "--problem", "p.toml"]);
    assert_eq!(failed.status.code(), Some(1));
    let help = String::from_utf8(failed.stdout).unwrap();
    assert!(help.contains("devices would do; ") && help.contains("% of the rates"), "{help}");
}

#[test]
fn wrong_documents_are_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    for (good, bad, told) in [
        ("count = 6", "count = 0", "p.toml: device.count: must be 1 to"),
        ("slo_ms", "slo", "p.toml:9: document: unknown field `slo`"),
        ("share_pct = 20", "share_pct = 200", "share_pct must be 1 to 100"),
    ] {
        fs::write(dir.path().join("p.toml"), problem(6, 300.0).replace(good, bad)).unwrap();
        let failed = ctl(dir.path(), &["schedule", "--problem", "p.toml"]);
        assert_eq!(failed.status.code(), Some(4));
        let text = String::from_utf8(failed.stderr).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.contains(told), "{text:?} should have {told:?}");
    }
}

#[test]
fn workloads_are_written_as_published() {
    let dir = tempfile::tempdir().unwrap();
    let text = said(&ctl(dir.path(), &["workload", "traffic", "--level", "150"]));
    assert_eq!(text, "3\n6,150,112,\n8,150,90,\n9,150,112,\n");
    assert!(said(&ctl(dir.path(), &["workload"])).contains("game: lenet1 1/s 108 ms"));
    let more = ["workload", "schedulability", "--level", "5", "--output", "case.csv"];
    said(&ctl(dir.path(), &more));
    let text = fs::read_to_string(dir.path().join("case.csv")).unwrap();
    assert!(text.starts_with("9\n0,200,5,\n6,100,66,\n7,0,108,\n"), "{text}");
}

#[test]
fn interference_is_fitted() {
    let dir = tempfile::tempdir().unwrap();
    let mut meetings = Vec::new();
    for (own, other, factor) in
        [("a", "b", 1.2), ("b", "a", 1.1), ("a", "a", 1.15), ("b", "b", 1.05)]
    {
        for share in [20, 40] {
            let factor = 1.0 + (factor - 1.0) * f64::from(share) / 40.0;
            meetings.push(format!(
                "{{\"sufferer\": [\"{own}\", 8, 40], \"neighbours\": [[\"{other}\", 8, {share}]], \
                 \"factor\": {factor}}}"
            ));
        }
    }
    fs::write(dir.path().join("m.json"), format!("[{}]", meetings.join(","))).unwrap();
    let fitted = said(&ctl(dir.path(), &["fit", "m.json"]));
    let read: serde_json::Value = serde_json::from_str(&fitted).unwrap();
    let sensitivity = |model: &str| read["models"][model]["sensitivity_many"].as_f64().unwrap();
    assert!(sensitivity("a") > sensitivity("b"), "{fitted}");
    fs::write(
        dir.path().join("m.json"),
        "[{\"sufferer\": [\"a\", 0, 40], \"neighbours\": [], \"factor\": 1}]",
    )
    .unwrap();
    let failed = ctl(dir.path(), &["fit", "m.json"]);
    assert!(
        String::from_utf8(failed.stderr).unwrap().contains("m.json: [0]: must have neighbours")
    );
}

#[test]
fn measurements_are_fitted_and_judged_as_they_are_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../resource/profiles/nvidia-h100-80gb-hbm3/interference.json");
    let text = fs::read_to_string(shipped).unwrap();
    fs::write(dir.path().join("i.json"), &text).unwrap();
    let judged = ctl(dir.path(), &["fit", "i.json", "--output", "t.json", "--folds", "2"]);
    assert!(judged.status.success());
    let judged = String::from_utf8(judged.stderr).unwrap();
    for part in ["90 sets, 270 meetings", "held out (2 parts, seed 1): error ", "; fours "] {
        assert!(judged.contains(part), "{judged}");
    }
    assert!(judged.contains("the published linear one: error "), "{judged}");
    for (good, bad, told) in [
        ("\"sm_count\": 132", "\"sm_count\": null", "stamp.sm_count: must be given"),
        ("\"format\": 1", "\"format\": 7", "i.json: format: "),
        ("\"rows\": 8", "\"rows\": 0", "must have neighbours, batches from 1"),
        ("\"sm_count\": 32", "\"sm_count\": 4294967295", ""),
        ("\"sm_count\": 32", "\"sm_count\": -1", "i.json:"),
    ] {
        assert!(text.contains(good), "{good}");
        fs::write(dir.path().join("i.json"), text.replace(good, bad)).unwrap();
        let failed = ctl(dir.path(), &["fit", "i.json", "--output", "t.json"]);
        let said = String::from_utf8(failed.stderr).unwrap();
        assert!(failed.status.code().is_some() && said.contains(told), "{bad}: {said}");
        assert_eq!(failed.status.success(), told.is_empty(), "{bad}: {said}");
    }
}

#[test]
fn policies_are_compared_on_one_page() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("p.toml"), problem(6, 300.0)).unwrap();
    let arguments = ["report", "--problem", "p.toml", "--seconds", "2", "--output", "r.html"];
    assert_eq!(said(&ctl(dir.path(), &arguments)), "r.html: written\n");
    let page = fs::read_to_string(dir.path().join("r.html")).unwrap();
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(page.contains("<tr><td>elastic"), "{page}");
    assert!(page.contains("of 6 GPUs") && page.contains("(Poisson) for 2 s"), "{page}");
    assert!(!page.contains("http://") || page.contains("http://www.w3.org"), "self-contained");
}
