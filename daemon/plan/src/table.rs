//! Latency tables: model x share x batch -> latency of a batch that runs alone on its share.

use std::collections::BTreeMap;

/// Largest batch that a table may hold.
pub const TABLE_BATCH_MAX: u32 = 1024;
/// Longest latency a table may hold: one hour.
pub const TABLE_LATENCY_MAX_MS: f64 = 3_600_000.0;

/// The measured points of one model at one share: batch -> milliseconds.
type Points = BTreeMap<u32, f64>;

/// Measured latencies of the models of one device type.
///
/// Between batches and between shares a latency is interpolated linearly. Latency falls with
/// the share and flattens, so between shares that errs on the long side. Outside of what was
/// measured nothing is assumed: no latency beyond the largest batch, nor beyond the smallest
/// and largest share; below the smallest batch that batch's latency holds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LatencyTable {
    models: BTreeMap<String, BTreeMap<u32, Points>>,
}

impl LatencyTable {
    /// A table without any point.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a point; false if there is one at that place already.
    ///
    /// # Panics
    /// When the share is not 1 to 100, the batch not 1 to [`TABLE_BATCH_MAX`], or the latency
    /// not above 0 and at most [`TABLE_LATENCY_MAX_MS`]: readers check that.
    pub fn insert(&mut self, model: &str, share_pct: u32, batch: u32, latency_ms: f64) -> bool {
        assert!((1..=100).contains(&share_pct), "share {share_pct} %");
        assert!((1..=TABLE_BATCH_MAX).contains(&batch), "batch {batch}");
        assert!(latency_ms > 0.0 && latency_ms <= TABLE_LATENCY_MAX_MS, "{latency_ms} ms");
        if !self.models.contains_key(model) {
            self.models.insert(model.to_owned(), BTreeMap::new());
        }
        let Some(shares) = self.models.get_mut(model) else { return false };
        let points = shares.entry(share_pct).or_default();
        points.insert(batch, latency_ms).is_none()
    }

    /// The models, in order of their names.
    pub fn models(&self) -> impl Iterator<Item = &str> {
        self.models.keys().map(String::as_str)
    }

    /// Whether anything is known of `model`.
    #[must_use]
    pub fn contains(&self, model: &str) -> bool {
        self.models.contains_key(model)
    }

    /// Every share measured for any model, ascending, in percent.
    #[must_use]
    pub fn shares_pct(&self) -> Vec<u32> {
        let mut shares: Vec<u32> =
            self.models.values().flat_map(|shares| shares.keys().copied()).collect();
        shares.sort_unstable();
        shares.dedup();
        shares
    }

    /// Largest batch measured at any share of `model`; 0 for an unknown one.
    #[must_use]
    pub fn batch_max(&self, model: &str) -> u32 {
        let shares = self.models.get(model).into_iter().flat_map(BTreeMap::values);
        shares.filter_map(|points| points.keys().next_back().copied()).max().unwrap_or(0)
    }

    /// Milliseconds that a batch takes alone; `None` outside of what was measured.
    #[must_use]
    pub fn latency_ms(&self, model: &str, share_pct: u32, batch: u32) -> Option<f64> {
        let shares = self.models.get(model)?;
        let (&below_pct, below) = shares.range(..=share_pct).next_back()?;
        let at_below = at_batch(below, batch)?;
        if below_pct == share_pct {
            return Some(at_below);
        }
        let (&above_pct, above) = shares.range(share_pct..).next()?;
        let at_above = at_batch(above, batch)?;
        let part = f64::from(share_pct - below_pct) / f64::from(above_pct - below_pct);
        Some(at_below + part * (at_above - at_below))
    }

    /// Every point, in order of model, share and batch.
    pub fn points(&self) -> impl Iterator<Item = (&str, u32, u32, f64)> {
        self.models.iter().flat_map(|(model, shares)| {
            shares.iter().flat_map(move |(&share, points)| {
                points.iter().map(move |(&batch, &ms)| (model.as_str(), share, batch, ms))
            })
        })
    }
}

fn at_batch(points: &Points, batch: u32) -> Option<f64> {
    let (&above_batch, &above) = points.range(batch..).next()?;
    if above_batch == batch {
        return Some(above);
    }
    let Some((&below_batch, &below)) = points.range(..batch).next_back() else {
        return Some(above);
    };
    let part = f64::from(batch - below_batch) / f64::from(above_batch - below_batch);
    Some(below + part * (above - below))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> LatencyTable {
        let mut table = LatencyTable::new();
        for (share, batch, ms) in [(20, 1, 10.0), (20, 9, 90.0), (60, 1, 4.0), (60, 9, 20.0)] {
            assert!(table.insert("m", share, batch, ms));
        }
        table
    }

    #[test]
    fn between_points_it_is_linear() {
        let table = table();
        assert_eq!(table.latency_ms("m", 20, 5), Some(50.0));
        assert_eq!(table.latency_ms("m", 40, 1), Some(7.0));
        assert_eq!(table.latency_ms("m", 60, 9), Some(20.0));
        assert_eq!(table.shares_pct(), [20, 60]);
        assert_eq!(table.batch_max("m"), 9);
    }

    #[test]
    fn outside_there_is_nothing() {
        let table = table();
        assert_eq!(table.latency_ms("m", 20, 10), None);
        assert_eq!(table.latency_ms("m", 10, 1), None);
        assert_eq!(table.latency_ms("m", 80, 1), None);
        assert_eq!(table.latency_ms("other", 20, 1), None);
    }

    #[test]
    fn a_point_is_given_once() {
        assert!(!table().insert("m", 20, 1, 11.0));
    }
}
