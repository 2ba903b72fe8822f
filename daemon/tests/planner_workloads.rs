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
    let there = fs::read_dir(folder()).unwrap();
    let there: BTreeSet<String> =
        there.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(there, expected);
    for name in expected.iter().filter(|name| *name != "README.md") {
        let text = fs::read_to_string(folder().join(name)).unwrap();
        if name.ends_with(".csv") {
            assert!(!rates(name, &text).unwrap().is_empty());
        } else {
            assert_eq!(trace(name, &text).unwrap().len(), 120);
        }
    }
}
