//! What laps amount to. Of loops that ran side by side only that time counts in which all ran.

use super::super::latency::Summary;
use crate::cuda::measure::Spell;
use crate::cuda::measure::laps::Lap;

/// A stretch of CLOCK_MONOTONIC.
pub(crate) type Window = (u64, u64);

/// A closed loop in numbers.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Pace {
    /// Batches a second.
    pub per_s: f64,
    /// What each took.
    pub latency: Summary,
}

/// The time in which all ran, from the start of the last that began its first batch to the end of
/// the first that ended its last. `None` if there is no such time, or somebody ran nothing.
pub(crate) fn window(spells: &[Spell]) -> Option<Window> {
    let (mut begin_ns, mut end_ns) = (0, u64::MAX);
    for spell in spells {
        let (first_ns, last_ns) = match spell {
            Spell::Laps(laps) => (laps.first()?.begin_ns, laps.last()?.end_ns),
            Spell::Bytes(samples) => (samples.first()?.0, samples.last()?.0),
        };
        (begin_ns, end_ns) = (begin_ns.max(first_ns), end_ns.min(last_ns));
    }
    (begin_ns < end_ns && !spells.is_empty()).then_some((begin_ns, end_ns))
}

/// The laps that lie wholly inside.
pub(crate) fn within(laps: &[Lap], (begin_ns, end_ns): Window) -> &[Lap] {
    let first = laps.partition_point(|lap| lap.begin_ns < begin_ns);
    let end = laps.partition_point(|lap| lap.end_ns <= end_ns);
    laps.get(first..end).unwrap_or_default()
}

/// `None` of nothing.
pub(crate) fn pace(laps: &[Lap]) -> Option<Pace> {
    let elapsed_ns = laps.last()?.end_ns.saturating_sub(laps.first()?.begin_ns);
    let latency = Summary::of(laps.iter().map(Lap::ns).collect())?;
    Some(Pace { per_s: laps.len() as f64 / (elapsed_ns.max(1) as f64 / 1e9), latency })
}

/// Bytes a second inside a window. `None` where fewer than two samples lie there.
pub(crate) fn rate(samples: &[(u64, u64)], (begin_ns, end_ns): Window) -> Option<f64> {
    let inside = || samples.iter().filter(|(ns, _)| (begin_ns..=end_ns).contains(ns));
    let (first, last) = (inside().next()?, inside().next_back()?);
    let bytes = last.1.saturating_sub(first.1) as f64;
    (last.0 > first.0).then(|| bytes / ((last.0 - first.0) as f64 / 1e9))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn laps(from: u64, count: u64, ns: u64) -> Vec<Lap> {
        let lap = |index| Lap { begin_ns: from + index * ns, end_ns: from + (index + 1) * ns };
        (0..count).map(lap).collect()
    }

    #[test]
    fn only_the_time_counts_in_which_all_ran() {
        let (early, late) = (laps(0, 10, 10), laps(25, 10, 20));
        let window = window(&[Spell::Laps(early.clone()), Spell::Laps(late.clone())]).unwrap();
        assert_eq!(window, (25, 100));
        assert_eq!(within(&early, window), &laps(30, 7, 10)[..]);
        assert_eq!(within(&late, window), &laps(25, 3, 20)[..]);
        assert_eq!(within(&early, (1000, 2000)), &[]);
        assert_eq!(within(&early, (95, 96)), &[], "a lap around the window is not inside");
    }

    #[test]
    fn there_may_be_no_such_time() {
        assert_eq!(window(&[]), None);
        assert_eq!(window(&[Spell::Laps(vec![])]), None);
        let apart = [Spell::Laps(laps(0, 2, 10)), Spell::Bytes(vec![(50, 1), (60, 2)])];
        assert_eq!(window(&apart), None);
    }

    #[test]
    fn a_pace_is_what_was_done_in_the_time_it_took() {
        let pace = pace(&laps(1_000, 100, 10_000_000)).unwrap();
        assert_eq!(pace.per_s, 100.0);
        assert_eq!((pace.latency.count, pace.latency.p50_ns), (100, 10_000_000));
        assert_eq!(super::pace(&[]), None);
        let samples = [(0, 0), (1_000_000_000, 500), (3_000_000_000, 2500), (4_000_000_000, 9999)];
        assert_eq!(rate(&samples, (1_000_000_000, 3_500_000_000)), Some(1000.0));
        assert_eq!(rate(&samples, (1, 2)), None);
        assert_eq!(rate(&samples, (0, 999)), None);
    }
}
