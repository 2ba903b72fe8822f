//! What a bench found, as a table for people and as JSON for machines.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{Doing, Error};
use crate::stats::{Ratio, Round, Summary, clock_cost_ns};

/// Where it was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// As the kernel names it.
    pub cpu: String,
    /// CPUs that this process may use.
    pub cpu_count: usize,
    /// Release of the kernel.
    pub kernel: String,
    /// Load average over the last minute when the bench began: near zero, or the figures are noise.
    pub load: f64,
    /// What every latency holds because it takes two readings of the clock.
    pub clock_ns: u64,
}

impl Host {
    /// Looks.
    pub fn look() -> Host {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let info = read("/proc/cpuinfo");
        let model = info.lines().find(|line| line.starts_with("model name"));
        let model = model.and_then(|line| line.split(':').nth(1)).unwrap_or("unknown CPU");
        let load = read("/proc/loadavg");
        Host {
            cpu: model.trim().to_owned(),
            cpu_count: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            load: load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0),
            clock_ns: clock_cost_ns(),
        }
    }
}

/// Numbers by name, as [`crate::table`] reads them.
#[derive(Clone, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Adds one.
    pub fn add(&mut self, name: impl Into<String>, value: f64) {
        self.0.insert(name.into(), value);
    }
}

/// Everything that one run of a bench found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Which bench.
    pub bench: &'static str,
    /// Where.
    pub host: Host,
    /// How, such as the CPUs, the rounds and the sizes.
    pub settings: serde_json::Value,
    /// Who, in the order of the table.
    pub contenders: Vec<Summary>,
    /// Who against whom.
    pub ratios: Vec<Ratio>,
    /// What targets are set for.
    pub figures: Figures,
    /// What else was seen, a sentence each.
    pub notes: Vec<String>,
}

impl Report {
    /// One without results.
    pub fn new(bench: &'static str, host: Host, settings: serde_json::Value) -> Report {
        Report {
            bench,
            host,
            settings,
            contenders: Vec::new(),
            ratios: Vec::new(),
            figures: Figures::default(),
            notes: Vec::new(),
        }
    }

    /// Prints the table, and writes the JSON to `json` ("-": to standard output, in its
    /// place).
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn publish(&self, json: Option<&Path>) -> Result<(), Error> {
        let Some(path) = json else {
            print!("{}", self.table());
            return Ok(());
        };
        let mut text = serde_json::to_string_pretty(self)
            .map_err(|error| Error::failed("writing JSON", error))?;
        text.push('\n');
        if path == Path::new("-") {
            print!("{text}");
            return Ok(());
        }
        print!("{}", self.table());
        fs::write(path, text).doing(&format!("writing {}", path.display()))
    }

    /// The table, latencies in microseconds.
    pub fn table(&self) -> String {
        let Host { cpu, cpu_count, kernel, load, clock_ns } = &self.host;
        let mut text = format!(
            "{cpu}, {cpu_count} CPUs, Linux {kernel}, load {load:.2}; two clock readings (in every \
             latency): {clock_ns} ns\n"
        );
        let width = self.contenders.iter().map(|who| who.name.chars().count()).max().unwrap_or(0);
        let heads = ["p50", "p90", "p99", "p99.9", "max", "mean"];
        if width > 0 {
            text.push_str("medians of rounds, latencies in us\n\n");
            push_row(&mut text, width, "", heads.map(str::to_owned), "per second", "count");
        }
        for Summary { name, median, .. } in &self.contenders {
            let Round { p50_ns, p90_ns, p99_ns, p999_ns, max_ns, mean_ns, .. } = median;
            let micros = [*p50_ns, *p90_ns, *p99_ns, *p999_ns, *max_ns, mean_ns.round() as u64]
                .map(|ns| format!("{:.2}", ns as f64 / 1e3));
            let rate = format!("{:.0}", median.per_second);
            push_row(&mut text, width, name, micros, &rate, &median.count.to_string());
        }
        if !self.ratios.is_empty() {
            text.push_str("\nratios of p50, medians of rounds (lowest to highest)\n\n");
        }
        let width = self.ratios.iter().map(|ratio| ratio.name.chars().count()).max().unwrap_or(0);
        for ratio in &self.ratios {
            let (low, high) = ratio.range();
            let Ratio { name, median, .. } = ratio;
            push(&mut text, format_args!("{name:width$}  {median:6.3} ({low:.3} to {high:.3})\n"));
        }
        if !self.notes.is_empty() {
            push(&mut text, format_args!("\n{}\n", self.notes.join("\n")));
        }
        text
    }
}

fn push(text: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing to a String never fails.
    let _ = text.write_fmt(arguments);
}

fn push_row(
    text: &mut String,
    width: usize,
    name: &str,
    cells: [String; 6],
    rate: &str,
    count: &str,
) {
    push(text, format_args!("{name:width$}"));
    for cell in cells {
        push(text, format_args!(" {cell:>10}"));
    }
    push(text, format_args!(" {rate:>11} {count:>10}\n"));
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::stats::Recorder;

    #[test]
    fn the_table_tells_microseconds_and_ratios() {
        let summary = |name: &str, micros| {
            let mut recorder = Recorder::new();
            recorder.add(Duration::from_micros(micros), 10);
            Summary::new(name.into(), vec![recorder.finish(Duration::from_secs(1))]).unwrap()
        };
        let (fast, slow) = (summary("fast", 2), summary("slow", 6));
        let ratios = Ratio::of_p50("slow / fast", &slow, &fast).into_iter().collect();
        let report = Report {
            contenders: vec![fast, slow],
            ratios,
            notes: vec!["a note".to_owned()],
            ..Report::new("ring", Host::look(), serde_json::json!({ "rounds": 1 }))
        };
        let table = report.table();
        assert!(table.contains("fast       2.00"), "{table}");
        assert!(table.contains("slow / fast   3.00"), "{table}");
        assert!(table.ends_with("\na note\n"), "{table}");
    }
}
