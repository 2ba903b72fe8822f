//! Which measurements are not to be trusted.

use super::super::gauge::{Held, Pace, pace};
use crate::cuda::measure::laps::Lap;
use crate::device::Reader;

/// How far the medians of the two halves of a run may lie apart.
const DRIFT_PCT_MAX: f64 = 3.0;
/// But less than this is no drift: a launch alone varies by so much.
const DRIFT_NS_MIN: u64 = 3_000;
/// Batches that make a median.
pub(super) const LAPS_MIN: usize = 10;
/// How often a run is tried.
pub(super) const TRIES: usize = 4;

/// The numbers of a run, and its drift in percent.
///
/// # Errors
/// The rule that it breaks, and by how much.
pub(super) fn judge(laps: &[Lap]) -> Result<(Pace, f64), String> {
    let count = laps.len();
    let Some(pace) = pace(laps).filter(|_| count >= LAPS_MIN) else {
        return Err(format!(
            "{count} batches in the time there was, at least {LAPS_MIN} are needed"
        ));
    };
    let (early, late) = laps.split_at(count / 2);
    let (early_ns, late_ns) = (median(early), median(late));
    let apart_ns = early_ns.abs_diff(late_ns);
    let drift_pct = 100.0 * apart_ns as f64 / early_ns.min(late_ns).max(1) as f64;
    if drift_pct > DRIFT_PCT_MAX && apart_ns > DRIFT_NS_MIN {
        return Err(format!(
            "medians of the two halves are {drift_pct:.1} % apart ({early_ns} and {late_ns} ns), \
             at most {DRIFT_PCT_MAX} % is trusted"
        ));
    }
    Ok((pace, drift_pct))
}

fn median(laps: &[Lap]) -> u64 {
    let mut taken: Vec<u64> = laps.iter().map(Lap::ns).collect();
    taken.sort_unstable();
    taken.get(taken.len() / 2).copied().unwrap_or(0)
}

/// Who else computes on the device, by NVML.
pub(super) struct Others {
    reader: Option<Reader>,
    uuid: String,
    held: Held,
}

impl Others {
    /// Looks at the device with this UUID; never sees anybody where `look` is false.
    pub(super) fn new(uuid: String, held: Held, look: bool) -> Others {
        let reader = if look { Reader::open().ok() } else { None };
        Others { reader, uuid, held }
    }

    /// Says who, if there is anybody beside so many processes of ours.
    pub(super) fn see(&self, ours: usize) -> Option<String> {
        let usage = self.reader.as_ref()?.usage(&self.uuid).ok()?;
        let pids: Vec<u32> = usage.processes.iter().map(|process| process.pid).collect();
        others(&pids, ours, self.held)
    }
}

/// NVML has process ids of the host, which are not ours in a container; so they are counted. MPS has
/// a server there.
fn others(pids: &[u32], ours: usize, held: Held) -> Option<String> {
    let expected = ours + usize::from(held == Held::Mps);
    let pids_said: Vec<String> = pids.iter().map(u32::to_string).collect();
    (pids.len() > expected).then(|| {
        format!(
            "{} processes compute on the device (pids {}), {expected} of them for this measurement",
            pids.len(),
            pids_said.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laps(ns: impl Iterator<Item = u64>) -> Vec<Lap> {
        let mut now = 0;
        let lap = |ns| {
            now += ns;
            Lap { begin_ns: now - ns, end_ns: now }
        };
        ns.map(lap).collect()
    }

    #[test]
    fn a_steady_run_is_trusted() {
        let (pace, drift_pct) = judge(&laps((0..100).map(|at| 1_000_000 + at % 7))).unwrap();
        assert_eq!(pace.latency.count, 100);
        assert!(drift_pct < 0.1, "{drift_pct}");
    }

    #[test]
    fn a_run_that_drifts_is_not() {
        let drifting = |by: u64| laps((0..100).map(move |at| 1_000_000 + at / 50 * by));
        assert!(judge(&drifting(29_000)).is_ok());
        let said = judge(&drifting(50_000)).unwrap_err();
        assert!(said.contains("5.0 % apart (1000000 and 1050000 ns), at most 3 %"), "{said}");
        // Down as well as up.
        assert!(judge(&laps((0..100).map(|at| 2_000_000 - at / 50 * 90_000))).is_err());
        // Two microseconds more or less are a launch.
        assert!(judge(&laps((0..100).map(|at| 40_000 + at / 50 * 2_000))).is_ok());
    }

    #[test]
    fn a_run_of_few_batches_is_not() {
        let said = judge(&laps((0..9).map(|_| 1_000))).unwrap_err();
        assert!(said.starts_with("9 batches in the time there was, at least 10"), "{said}");
        assert!(judge(&[]).is_err());
    }

    #[test]
    fn others_are_counted() {
        assert_eq!(others(&[], 1, Held::Green), None);
        assert_eq!(others(&[7], 1, Held::Green), None);
        assert_eq!(others(&[7, 8], 1, Held::Mps), None);
        let said = others(&[7, 8], 1, Held::Green).unwrap();
        assert!(said.starts_with("2 processes compute on the device (pids 7, 8), 1 of"), "{said}");
        assert!(others(&[7], 0, Held::Green).is_some());
    }
}
