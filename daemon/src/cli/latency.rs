//! What many measured times amount to.

use serde::Serialize;

use super::table::{duration, table};

/// Exact quantiles (nearest rank) of measured times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Summary {
    pub count: usize,
    pub p50_ns: u64,
    pub p90_ns: u64,
    pub p99_ns: u64,
    pub mean_ns: u64,
    pub min_ns: u64,
    pub max_ns: u64,
}

impl Summary {
    /// `None` of nothing.
    pub(super) fn of(mut times_ns: Vec<u64>) -> Option<Summary> {
        times_ns.sort_unstable();
        let (min_ns, max_ns) = (*times_ns.first()?, *times_ns.last()?);
        let quantile = |percent: usize| {
            let rank = (times_ns.len() * percent).div_ceil(100);
            times_ns[rank.max(1) - 1]
        };
        let sum: u128 = times_ns.iter().map(|ns| u128::from(*ns)).sum();
        let mean_ns = u64::try_from(sum / times_ns.len() as u128).unwrap_or(u64::MAX);
        let (p50_ns, p90_ns, p99_ns) = (quantile(50), quantile(90), quantile(99));
        Some(Summary { count: times_ns.len(), p50_ns, p90_ns, p99_ns, mean_ns, min_ns, max_ns })
    }
}

/// A table with a line for each.
pub(super) fn summaries(rows: &[(&str, &Summary)]) -> String {
    let cells: Vec<Vec<String>> = rows
        .iter()
        .map(|(name, summary)| {
            let times = [
                summary.p50_ns,
                summary.p90_ns,
                summary.p99_ns,
                summary.mean_ns,
                summary.min_ns,
                summary.max_ns,
            ];
            let mut row = vec![(*name).to_owned(), summary.count.to_string()];
            row.extend(times.map(duration));
            row
        })
        .collect();
    table(&["latency", "count", "p50", "p90", "p99", "mean", "min", "max"], &cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        assert_eq!(Summary::of(vec![]), None);
        let one = Summary::of(vec![7]).unwrap();
        assert_eq!((one.p50_ns, one.p99_ns, one.mean_ns, one.min_ns, one.max_ns), (7, 7, 7, 7, 7));
        let hundred = Summary::of((1..=100).rev().collect()).unwrap();
        assert_eq!((hundred.p50_ns, hundred.p90_ns, hundred.p99_ns), (50, 90, 99));
        assert_eq!((hundred.mean_ns, hundred.min_ns, hundred.max_ns), (50, 1, 100));
        assert_eq!(Summary::of(vec![u64::MAX, u64::MAX]).unwrap().mean_ns, u64::MAX);
    }
}
