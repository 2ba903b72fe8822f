//! `resource/workloads` is what `gpuletctl workload` writes, and what its relatives read.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use gpulet_plan::published::{rates, trace};

const NAMES: [&str; 9] =
    ["scen1", "scen2", "scen3", "scen4", "scen5", "game", "traffic", "peak1", "peak2"];
const CASES: [&str; 4] = ["1", "9841", "15000", "19682"];
const PATTERNS: [&str; 5] = ["poisson", "gamma", "two-rates", "diurnal", "step"];

const OURS: &str = "h100-fp16.toml";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/workloads")
}

/// Every file, and what writes it.
fn files() -> Vec<(String, Vec<String>)> {
    let words = |text: String| text.split(' ').map(str::to_owned).collect();
    let mut files = Vec::new();
    for name in NAMES {
        files.push((format!("{name}.csv"), words(name.into())));
        files.push((format!("{name}-tight.csv"), words(format!("{name} --slo 0.5"))));
    }
    for case in CASES {
        let arguments = format!("schedulability --level {case}");
        files.push((format!("schedulability-{case}.csv"), words(arguments)));
    }
    for pattern in PATTERNS {
        let arguments = format!("scen1 --level 10 --seconds 120 --arrivals {pattern} --counts");
        files.push((format!("{pattern}.trace"), words(arguments)));
    }
    files
}

#[test]
fn they_are_written_anew_as_they_are() {
    let rewrite = std::env::var_os("GPULET_REWRITE").is_some();
    for (name, arguments) in files() {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
        let output = command.arg("workload").args(&arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        if rewrite {
            fs::write(folder().join(&name), &output.stdout).unwrap();
        }
        let there = fs::read(folder().join(&name)).unwrap();
        assert!(there == output.stdout, "{name}: GPULET_REWRITE=1 writes it anew");
    }
}

#[test]
fn all_of_them_are_read() {
    let mut expected: BTreeSet<String> = files().into_iter().map(|it| it.0).collect();
    expected.insert("README.md".into());
    expected.insert(OURS.into());
    let there = fs::read_dir(folder()).unwrap();
    let there: BTreeSet<String> =
        there.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, expected);
    for name in files().iter().map(|it| &it.0) {
        let text = fs::read_to_string(folder().join(name)).unwrap();
        if name.ends_with(".csv") {
            assert!(!rates(name, &text).unwrap().is_empty());
        } else {
            assert_eq!(trace(name, &text).unwrap().len(), 120);
        }
    }
}

#[test]
fn our_own_is_planned_from_the_profiles_in_the_repository() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
        let problem = folder().join(OURS);
        command.current_dir(dir.path()).args(arguments).arg("--problem").arg(problem);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let planned = run(&["schedule", "--json", "plan.json"]);
    assert!(planned.contains("policy packed: "), "{planned}");
    let plan = fs::read_to_string(dir.path().join("plan.json")).unwrap();
    let plan: gpulet_plan::plan::Plan = serde_json::from_str(&plan).unwrap();
    let gpulets = plan.devices.iter().flat_map(|device| &device.gpulets);
    let disturbed =
        gpulets.flat_map(|gpulet| &gpulet.instances).filter(|it| it.interference > 1.05);
    assert!(disturbed.count() > 3, "{planned}");
    assert!(run(&["plan-check", "plan.json"]).contains("plan.json: good, with"));
}

#[test]
fn a_profile_that_is_not_there_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let text = fs::read_to_string(folder().join(OURS)).unwrap();
    let there = folder().join("../profiles/nvidia-h100-80gb-hbm3");
    let there = there.canonicalize().unwrap().display().to_string();
    let text = text.replace("../profiles/nvidia-h100-80gb-hbm3", &there);
    let told = |text: &str| {
        fs::write(dir.path().join("p.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
        command.current_dir(dir.path()).args(["schedule", "--problem", "p.toml"]);
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let absent = told(&text.replace("ssd.fp16", "other.fp16"));
    assert!(absent.contains("other.fp16.json: No such file"), "{absent}");
    // fp32 has profiles, and no place among the tempers.
    let unknown = told(&text.replace("ssd.fp16", "ssd"));
    assert!(unknown.contains("p.toml: ssd: must have its interference given"), "{unknown}");
    let none = told(&text.replace(&format!("profiles = \"{there}\""), ""));
    assert!(none.contains(".fp16: memory_mb must be at least 1"), "{none}");
}
