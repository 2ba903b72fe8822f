//! What was found, and what is wrong with it.

use serde::Serialize;

use super::super::gauge::{Held, Opened, Pace};
use super::super::table::{duration, table};
use crate::device::{Device, Inventory, Version};
use gpulet_kernels::cuda::SmSet;

/// MPS gives whole texture processing clusters, of two multiprocessors.
const MPS_ROUNDING: u32 = 2;

/// What was found.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    device: String,
    driver: Option<String>,
    cuda_version: Option<Version>,
    libtorch: String,
    sm_count: Option<u32>,
    held: Held,
    load: String,
    /// Whether no two gpulets share a multiprocessor; unknown where MPS holds the shares, for there
    /// each process numbers those that it has from 0 on.
    disjoint: Option<bool>,
    /// Multiprocessors that any of them runs on; unknown there too.
    union_sm_count: Option<usize>,
    per_s: f64,
    pub gpulets: Vec<Gpulet>,
}

/// One gpulet.
#[derive(Debug, Serialize)]
pub(super) struct Gpulet {
    pub share_pct: u8,
    pub seen: Seen,
    alone_per_s: f64,
    alone_p50_ns: u64,
    alone_p99_ns: u64,
    /// While all others ran.
    busy_per_s: f64,
    busy_p50_ns: u64,
    busy_p99_ns: u64,
    /// Of the batches of all.
    of_total_pct: f64,
    /// Times that a batch takes longer beside the others.
    slowdown: f64,
}

/// Where a gpulet runs.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Seen {
    /// Those that it should have: of its context, or as MPS tells its process.
    own_sm_count: u32,
    /// Those that the probe saw.
    sm_count: usize,
    sms: Vec<u32>,
}

impl Seen {
    pub(super) fn new(mut sms: Vec<u32>, own_sm_count: u32) -> Seen {
        sms.sort_unstable();
        sms.dedup();
        Seen { own_sm_count, sm_count: sms.len(), sms }
    }

    /// As ranges.
    fn show(&self) -> String {
        ranges(&self.sms)
    }
}

fn ranges(numbers: &[u32]) -> String {
    let mut bytes = [0; SmSet::BYTES];
    for number in numbers.iter().filter(|number| **number < SmSet::BYTES as u32 * 8) {
        // As words of 32 bits, the lowest first, on machines that have the lowest byte first.
        bytes[*number as usize / 8] |= 1 << (number % 8);
    }
    SmSet::from_bytes(&bytes).to_string()
}

impl Gpulet {
    pub(super) fn new(
        share_pct: u8,
        seen: Seen,
        alone: &Pace,
        together: &Pace,
        total_per_s: f64,
    ) -> Gpulet {
        Gpulet {
            share_pct,
            seen,
            alone_per_s: alone.per_s,
            alone_p50_ns: alone.latency.p50_ns,
            alone_p99_ns: alone.latency.p99_ns,
            busy_per_s: together.per_s,
            busy_p50_ns: together.latency.p50_ns,
            busy_p99_ns: together.latency.p99_ns,
            of_total_pct: 100.0 * together.per_s / total_per_s,
            slowdown: alone.per_s / together.per_s,
        }
    }
}

impl Report {
    pub(super) fn new(
        inventory: &Inventory,
        device: &Device,
        held: Held,
        load: String,
        opened: &[Opened],
        gpulets: Vec<Gpulet>,
    ) -> Report {
        let mut union: Vec<u32> = gpulets.iter().flat_map(|it| it.seen.sms.clone()).collect();
        let sum = union.len();
        union.sort_unstable();
        union.dedup();
        let numbered = held == Held::Green;
        Report {
            device: device.name.clone(),
            driver: inventory.driver.clone(),
            cuda_version: inventory.cuda_version,
            libtorch: opened.first().map(|it| it.libtorch.clone()).unwrap_or_default(),
            sm_count: device.sm_count,
            held,
            load,
            disjoint: numbered.then_some(sum == union.len()),
            union_sm_count: numbered.then_some(union.len()),
            per_s: gpulets.iter().map(|it| it.busy_per_s).sum(),
            gpulets,
        }
    }

    pub(super) fn show(&self) -> String {
        let of = self.sm_count.map_or(String::new(), |count| format!(" of {count}"));
        let together = match (self.union_sm_count, self.disjoint) {
            (Some(count), Some(true)) => format!("{count} SMs{of} in use, no two share one"),
            (Some(count), _) => format!("{count} SMs{of} in use, some are shared"),
            (None, _) => "MPS limits how many SMs, and each process numbers its own".to_owned(),
        };
        let mut text =
            format!("{}, libtorch {}: {}\n{together}\n\n", self.device, self.libtorch, self.load);
        let header = [
            "gpulet",
            "share",
            "SMs",
            "alone/s",
            "alone p50",
            "all/s",
            "all p50",
            "all p99",
            "of all",
            "slowdown",
        ];
        let row = |(index, it): (usize, &Gpulet)| {
            vec![
                index.to_string(),
                format!("{} %", it.share_pct),
                it.seen.sm_count.to_string(),
                format!("{:.1}", it.alone_per_s),
                duration(it.alone_p50_ns),
                format!("{:.1}", it.busy_per_s),
                duration(it.busy_p50_ns),
                duration(it.busy_p99_ns),
                format!("{:.1} %", it.of_total_pct),
                format!("{:.3}", it.slowdown),
            ]
        };
        let rows: Vec<Vec<String>> = self.gpulets.iter().enumerate().map(row).collect();
        text.push_str(&table(&header, &rows));
        text.push_str(&format!("\n{:.1} batches/s in all\n\n", self.per_s));
        for (index, it) in self.gpulets.iter().enumerate() {
            text.push_str(&format!("gpulet {index} runs on SMs {}\n", it.seen.show()));
        }
        text
    }
}

/// Shares that do not hold, a line each.
pub(super) fn problems(held: Held, sm_count: Option<u32>, gpulets: &[Gpulet]) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, it) in gpulets.iter().enumerate() {
        let Seen { own_sm_count, sm_count: seen, sms } = &it.seen;
        if *seen == 0 {
            problems.push(format!("gpulet {index}: the probe saw no SM"));
        }
        if *seen > *own_sm_count as usize {
            problems.push(format!("gpulet {index}: runs on {seen} SMs, it has {own_sm_count}"));
        }
        let others = gpulets.iter().enumerate().skip(index + 1);
        for (other, that) in others.filter(|_| held == Held::Green) {
            let shared: Vec<u32> =
                sms.iter().filter(|sm| that.seen.sms.contains(sm)).copied().collect();
            if !shared.is_empty() {
                let shared = ranges(&shared);
                problems.push(format!("gpulets {index} and {other}: both run on SMs {shared}"));
            }
        }
        if let (Held::Mps, Some(all)) = (held, sm_count) {
            let most = (u32::from(it.share_pct) * all).div_ceil(100) + MPS_ROUNDING;
            if *own_sm_count > most {
                let pct = it.share_pct;
                problems.push(format!(
                    "gpulet {index}: MPS gives it {own_sm_count} SMs, {pct} % of {all} are at \
                     most {most}: does its daemon listen there?"
                ));
            }
        }
    }
    problems
}

#[cfg(test)]
mod tests {
    use super::super::super::latency::Summary;
    use super::*;

    fn gpulet(share_pct: u8, own: u32, sms: impl Iterator<Item = u32>) -> Gpulet {
        let pace = |per_s: f64| {
            let latency = Summary::of(vec![(1e9 / per_s) as u64]).unwrap();
            Pace { per_s, latency }
        };
        Gpulet::new(share_pct, Seen::new(sms.collect(), own), &pace(100.0), &pace(80.0), 160.0)
    }

    #[test]
    fn green_shares_that_hold_have_no_problems() {
        let gpulets = [gpulet(50, 64, 0..64), gpulet(50, 64, 64..128)];
        assert_eq!(problems(Held::Green, Some(132), &gpulets), Vec::<String>::new());
        assert_eq!(gpulets[0].of_total_pct, 50.0);
        assert_eq!(gpulets[0].slowdown, 1.25);
    }

    #[test]
    fn sets_that_overlap_or_are_too_large_are_problems() {
        let gpulets = [gpulet(50, 64, 0..66), gpulet(50, 64, 64..128), gpulet(1, 2, 0..0)];
        let said = problems(Held::Green, Some(132), &gpulets);
        let expected = [
            "gpulet 0: runs on 66 SMs, it has 64",
            "gpulets 0 and 1: both run on SMs {64-65}",
            "gpulet 2: the probe saw no SM",
        ];
        assert_eq!(said, expected);
    }

    #[test]
    fn mps_limits_how_many_and_not_which() {
        let gpulets = [gpulet(5, 8, 0..8), gpulet(10, 12, 0..12), gpulet(20, 26, 4..30)];
        assert_eq!(problems(Held::Mps, Some(132), &gpulets), Vec::<String>::new());
        let whole = [gpulet(25, 132, 0..132)];
        let said = problems(Held::Mps, Some(132), &whole);
        assert_eq!(said.len(), 1);
        assert!(said[0].contains("MPS gives it 132 SMs, 25 % of 132 are at most 35"), "{said:?}");
    }

    #[test]
    fn a_report_is_for_people_and_programs() {
        let inventory = Inventory::default();
        let device = Device {
            index: 0,
            uuid: "GPU-0".to_owned(),
            name: "NVIDIA H100".to_owned(),
            memory_bytes: 80 << 30,
            sm_count: Some(132),
            compute_capability: Version::new(9, 0),
            mig: false,
            compute_mode: crate::device::ComputeMode::Default,
            usage: crate::device::Usage::default(),
        };
        let opened = Opened {
            describe: String::new(),
            libtorch: "2.11.0".to_owned(),
            sm_count: 132,
            gpulets: vec![64, 64],
        };
        let report_of = |held| {
            let gpulets = vec![gpulet(50, 64, 0..64), gpulet(50, 64, 64..128)];
            let opened = std::slice::from_ref(&opened);
            Report::new(&inventory, &device, held, "arithmetic alone".to_owned(), opened, gpulets)
        };
        let report = report_of(Held::Green);
        let text = report.show();
        for said in [
            "NVIDIA H100, libtorch 2.11.0: arithmetic alone",
            "128 SMs of 132 in use, no two share one",
            "gpulet 1 runs on SMs {64-127}",
            "160.0 batches/s in all",
        ] {
            assert!(text.contains(said), "{text}");
        }
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["gpulets"][1]["seen"]["sms"][0], 64);
        assert_eq!((&json["held"], &json["disjoint"]), (&"green".into(), &true.into()));
        let report = report_of(Held::Mps);
        assert!(report.show().contains("each process numbers its own"), "{}", report.show());
        assert!(serde_json::to_value(&report).unwrap()["disjoint"].is_null());
    }
}
