//! `gpulet-bench table`: what was measured, beside what was aimed at.
//!
//! Reads the JSON that the benches wrote into a folder, each file named after what it holds, and prints
//! one line for each figure that has a target. What is not there was not measured.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::Value;

use crate::error::{Doing, Error};

#[derive(Debug, Args)]
pub struct Arguments {
    /// Where the JSON files are
    folder: PathBuf,
}

/// What a figure should be.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    /// A yardstick, or what goes with one.
    Known,
}

impl Target {
    fn is_met(self, value: f64) -> Option<bool> {
        match self {
            Target::AtMost(bound) => Some(value <= bound),
            Target::Below(bound) => Some(value < bound),
            Target::AtLeast(bound) => Some(value >= bound),
            Target::Known => None,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::AtMost(bound) => write!(f, "<= {bound}"),
            Target::Below(bound) => write!(f, "< {bound}"),
            Target::AtLeast(bound) => write!(f, ">= {bound}"),
            Target::Known => Ok(()),
        }
    }
}

/// A line of the table.
struct Row {
    title: String,
    /// Without `.json`.
    file: String,
    /// A JSON pointer.
    place: String,
    target: Target,
}

use Target::{AtLeast, AtMost, Below, Known};

/// Every figure that is to be shown on a GPU.
fn rows() -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    rows.add("answers", "largest error of an answer", "error_max", AtMost(0.01));
    rows.latency();
    rows.at("prove-share", "green: no SM in two gpulets", "/disjoint", AtLeast(1.0));
    let [adopted, left] = ["/answered", "/left_alone"];
    rows.at("adopt", "an MPS of somebody else's: models that answered", adopted, AtLeast(1.0));
    rows.at("adopt", "an MPS of somebody else's: left alone", left, AtLeast(1.0));
    rows.lending();
    rows.coexistence();
    for held in ["green", "mps"] {
        rows.change(held);
    }
    for held in ["mps", "green"] {
        rows.drill(held);
        rows.harm(held);
        rows.two_devices(held);
        rows.cold(held);
    }
    rows.0
}

struct Rows(Vec<Row>);

impl Rows {
    fn latency(&mut self) {
        for (file, what) in [("e2e-green-100", "resnet50"), ("e2e-u8", "raw pictures")] {
            let title = |figure: &str| format!("{what}: {figure}");
            self.add(file, &title("p50 over the shim alone"), "p50_ratio", AtMost(1.05));
            self.add(file, &title("p99 over the shim alone"), "p99_ratio", AtMost(1.15));
            self.add(file, &title("CPU time a request, us"), "cpu_us", AtMost(60.0));
            self.add(file, &title("p50, us"), "p50_us", Known);
        }
        let title = "green, a client of MPS: p50 over the shim so";
        self.add("e2e-green-mps-100", title, "p50_ratio", AtMost(1.1));
        for held in ["green", "mps"] {
            for share in [10, 20, 40, 60, 100] {
                let title = format!("{held} {share} %: p50 over the shim at that share");
                self.add(&format!("e2e-{held}-{share}"), &title, "p50_ratio", AtMost(1.1));
            }
        }
    }

    fn lending(&mut self) {
        let mut add = |what: &str, place: &str, target| {
            self.at("lend", &format!("too much for one of two gpulets: {what}"), place, target);
        };
        add("answered in time without lending, %", "/guest_alone_pct", Known);
        add("answered in time where the other lends, %", "/guest_lent_pct", Known);
        add("the lender's own in time, %", "/owner_lent_pct", AtLeast(99.0));
    }

    fn coexistence(&mut self) {
        for held in ["mps", "green"] {
            let (file, who) = (format!("coexist-{held}"), format!("four at 25 %, {held}"));
            self.add(&file, &format!("{who}: images/s"), "rows_per_s", AtLeast(9500.0));
            self.add(&file, &format!("{who}: p99 over p50"), "p99_over_p50", AtMost(1.25));
        }
        for precision in ["fp32", "fp16"] {
            let (file, who) =
                (format!("plain-{precision}"), format!("four processes, {precision}"));
            self.at(&file, &format!("{who}: images/s"), "/rows_per_s", Known);
            self.at(&file, &format!("{who}: p99 over p50"), "/p99_over_p50", Known);
        }
        let title = "four at 25 % on each of two GPUs, mps: images/s";
        self.add("two-coexist", title, "rows_per_s_in_all", AtLeast(2.0 * 9500.0));
    }

    fn change(&mut self, held: &str) {
        let file = format!("change-{held}");
        let first = if held == "green" { Below(2.0) } else { Known };
        let mut add = |title: &str, figure: &str, target| {
            self.add(&file, &format!("share change, {held}: {title}"), figure, target);
        };
        add("changes", "changes", Known);
        add("decision to first batch, ms, most", "first_batch_ms_max", first);
        add("requests lost or failed", "failed", AtMost(0.0));
        add("late by more than a batch", "late", AtMost(0.0));
        add("the same when nothing changes", "late_when_quiet", Known);
        add("longest without an answer, in batches", "gap_batches_max", AtMost(2.0));
    }

    fn drill(&mut self, held: &str) {
        let file = format!("drill-{held}");
        let times = if held == "mps" { AtLeast(50.0) } else { Known };
        let mut add = |title: &str, figure: &str, target| {
            self.add(&file, &format!("GPU fault, {held}: {title}"), figure, target);
        };
        add("times", "fault_times", times);
        add("recovered in ms, most", "fault_recover_ms_max", Below(3000.0));
        add("recovered in ms, median", "fault_recover_ms_median", Below(3000.0));
        add("requests lost or failed", "failed", AtMost(0.0));
    }

    fn harm(&mut self, held: &str) {
        let file = format!("harm-{held}");
        for harm in ["executor", "hang", "memory", "batch", "mps"] {
            if held == "green" && harm == "mps" {
                continue;
            }
            let title = |figure: &str| format!("{harm}, {held}: {figure}");
            let figure = |who: &str| format!("{harm}_{who}_ms_max");
            self.add(&file, &title("recovered in ms, most"), &figure("recover"), Below(3000.0));
            if held == "mps" && harm != "mps" {
                let what = "longest without an answer beside it, ms";
                self.add(&file, &title(what), &figure("beside"), Known);
            }
        }
        self.add(&file, &format!("these, {held}: requests lost or failed"), "failed", AtMost(0.0));
    }

    fn two_devices(&mut self, held: &str) {
        let file = format!("two-drill-{held}");
        let mut add = |title: &str, figure: &str, target| {
            self.add(&file, &format!("fault on GPU 0, {held}: GPU 1, {title}"), figure, target);
        };
        add("requests lost or failed", "failed_elsewhere", AtMost(0.0));
        add("p99 when quiet, us", "elsewhere_quiet_p99_us", Known);
        add("p99 meanwhile, us", "elsewhere_meanwhile_p99_us", Known);
        add("longest without an answer, ms", "fault_elsewhere_ms_max", Known);
    }

    fn cold(&mut self, held: &str) {
        let file = format!("cold-{held}");
        let times = if held == "mps" { AtLeast(50.0) } else { Known };
        let mut add = |title: &str, figure: &str, target| {
            self.add(&file, &format!("cold model, {held}: {title}"), figure, target);
        };
        add("first answer over what is allowed", "answer_over_allowed_median", AtMost(1.0));
        add("first answer, s", "answer_s_median", Known);
        add("times loaded and unloaded", "times", times);
        add("memory that stays, MiB", "drift_most_mib", AtMost(8.0));
    }

    fn add(&mut self, file: &str, title: &str, figure: &str, target: Target) {
        self.at(file, title, &format!("/figures/{figure}"), target);
    }

    fn at(&mut self, file: &str, title: &str, place: &str, target: Target) {
        let [title, file, place] = [title, file, place].map(str::to_owned);
        self.0.push(Row { title, file, place, target });
    }
}

/// Prints the table.
///
/// # Errors
/// A file that is no JSON, once the rest is printed.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let (mut lines, mut broken) = (Vec::new(), None);
    for row in rows() {
        match line(&row, &arguments.folder) {
            Ok(line) => lines.push(line),
            Err(error) => broken = Some(error),
        }
    }
    println!("| figure | target | measured | |\n| --- | --- | --- | --- |");
    lines.iter().for_each(|line| println!("{line}"));
    let count = |what: &str| lines.iter().filter(|line| line.ends_with(what)).count();
    let (met, missed, rest) = (count("| met |"), count("| MISSED |"), count("| - |"));
    println!("\n{met} met, {missed} missed, {rest} not measured");
    broken.map_or(Ok(()), Err)
}

fn line(row: &Row, folder: &Path) -> Result<String, Error> {
    let Row { title, target, .. } = row;
    let measured = measured(row, folder)?;
    let (value, verdict) = match measured {
        None => ("not measured".to_owned(), "-"),
        Some(value) => {
            let verdict = match target.is_met(value) {
                Some(true) => "met",
                Some(false) => "MISSED",
                None => "",
            };
            (digits(value), verdict)
        }
    };
    Ok(format!("| {title} | {target} | {value} | {verdict} |"))
}

fn measured(row: &Row, folder: &Path) -> Result<Option<f64>, Error> {
    let path = folder.join(format!("{}.json", row.file));
    if !path.exists() {
        return Ok(None);
    }
    let what = format!("reading {}", path.display());
    let text = fs::read_to_string(path).doing(&what)?;
    let value: Value = serde_json::from_str(&text).map_err(|why| Error::failed(what, why))?;
    Ok(match value.pointer(&row.place) {
        Some(Value::Bool(yes)) => Some(f64::from(u8::from(*yes))),
        Some(value) => value.as_f64(),
        None => None,
    })
}

/// Four significant digits, or all before the point.
fn digits(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 1000.0 => format!("{value:.0}"),
        size if size >= 0.01 => {
            let behind = (3 - size.log10().floor() as i32).clamp(0, 5) as usize;
            let text = format!("{value:.behind$}");
            if text.contains('.') {
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            } else {
                text
            }
        }
        _ => format!("{value:.1e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_met_missed_or_not_there() {
        let folder = tempfile::tempdir().unwrap();
        let text = r#"{"figures": {"p50_ratio": 1.05, "p99_ratio": 1.3}}"#;
        fs::write(folder.path().join("e2e-green-100.json"), text).unwrap();
        fs::write(folder.path().join("prove-share.json"), r#"{"disjoint": true}"#).unwrap();
        let lines: Vec<String> =
            rows().iter().map(|row| line(row, folder.path()).unwrap()).collect();
        let has = |text: &str| assert!(lines.iter().any(|line| line == text), "{text}: {lines:#?}");
        has("| resnet50: p50 over the shim alone | <= 1.05 | 1.05 | met |");
        has("| resnet50: p99 over the shim alone | <= 1.15 | 1.3 | MISSED |");
        has("| resnet50: CPU time a request, us | <= 60 | not measured | - |");
        has("| green: no SM in two gpulets | >= 1 | 1 | met |");
        fs::write(folder.path().join("answers.json"), "no JSON").unwrap();
        assert!(line(&rows()[0], folder.path()).unwrap_err().to_string().contains("answers.json"));
    }

    #[test]
    fn numbers_have_as_many_digits_as_matter() {
        let numbers = [0.0, 10204.4, 141.26, 1.0171, 0.0131, 0.00042, 2.0];
        let shown = numbers.map(digits);
        assert_eq!(shown, ["0", "10204", "141.3", "1.017", "0.0131", "4.2e-4", "2"]);
    }
}
