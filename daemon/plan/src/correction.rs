//! What recent batches say about a profile: a factor on the measured latency, per profile point.
//!
//! A factor is a ratio of an observed latency to the profile's p99, in 1/65536.

/// The factor that leaves the profile as it is.
pub(crate) const UNITY: u32 = 1 << 16;

/// Observations that may raise the prediction.
pub(crate) const RECENT_COUNT: usize = 16;

/// Observations it takes to lower the prediction: the largest of fewer than a hundred says
/// little about the 99th percentile, so a short run of fast batches proves nothing.
pub(crate) const HISTORY_COUNT: usize = 128;

/// Refusals in a row, with no batch run between, after which the past is no longer believed.
pub(crate) const REFUSED_MAX: u32 = 16;

/// Batches of other sizes in a row after which what a size took is no longer believed. A prediction
/// that keeps a size from running would otherwise keep itself.
pub(crate) const ELSEWHERE_MAX: u32 = 64;

/// The last observations near one profile point.
#[derive(Debug, Clone)]
pub(crate) struct Correction {
    ratios: [u32; HISTORY_COUNT],
    next: usize,
    len: usize,
    refused_count: u32,
    elsewhere_count: u32,
    /// Something was observed since the last look.
    fresh: bool,
}

impl Correction {
    pub(crate) const fn new() -> Self {
        let ratios = [0; HISTORY_COUNT];
        Self { ratios, next: 0, len: 0, refused_count: 0, elsewhere_count: 0, fresh: false }
    }

    /// `measured_ns / expected_ns`, rounded up, clamped to what a factor can hold.
    pub(crate) fn ratio(measured_ns: u64, expected_ns: u64) -> u32 {
        let scaled = u128::from(measured_ns) * u128::from(UNITY);
        let ratio = scaled.div_ceil(u128::from(expected_ns.max(1)));
        u32::try_from(ratio).unwrap_or(u32::MAX).max(1)
    }

    /// `latency_ns` times `factor`, rounded up, at least 1 ns, saturating.
    pub(crate) fn scale(latency_ns: u64, factor: u32) -> u64 {
        let scaled = (u128::from(latency_ns) * u128::from(factor)).div_ceil(u128::from(UNITY));
        u64::try_from(scaled).unwrap_or(u64::MAX).max(1)
    }

    pub(crate) fn observe(&mut self, ratio: u32) {
        self.ratios[self.next] = ratio;
        self.next = (self.next + 1) % HISTORY_COUNT;
        self.len = (self.len + 1).min(HISTORY_COUNT);
        self.refused_count = 0;
        self.elsewhere_count = 0;
        self.fresh = true;
    }

    /// A batch ran whose size is not near this point.
    pub(crate) fn pass(&mut self) {
        self.elsewhere_count = self.elsewhere_count.saturating_add(1);
        if self.elsewhere_count >= ELSEWHERE_MAX && self.factor() > UNITY {
            self.forget();
        }
    }

    /// Some time passed. Whether the observations went, as nothing was added to them meanwhile.
    pub(crate) fn fade(&mut self) -> bool {
        let fades = !std::mem::take(&mut self.fresh) && self.factor() > UNITY;
        if fades {
            self.forget();
        }
        fades
    }

    /// Counts one refusal; true when the limit is reached and the observations should go.
    pub(crate) fn refuse(&mut self) -> bool {
        self.refused_count += 1;
        self.refused_count >= REFUSED_MAX
    }

    pub(crate) fn forget(&mut self) {
        self.len = 0;
        self.next = 0;
        self.refused_count = 0;
    }

    fn recent(&self) -> impl Iterator<Item = u32> + '_ {
        (1..=self.len.min(RECENT_COUNT))
            .map(|age| self.ratios[(self.next + HISTORY_COUNT - age) % HISTORY_COUNT])
    }

    /// The smallest of the recent ratios; `None` when nothing was observed.
    pub(crate) fn smallest(&self) -> Option<u32> {
        self.recent().min()
    }

    /// The largest of the recent ratios where it is above one; below one only on a full history.
    pub(crate) fn factor(&self) -> u32 {
        let recent = self.recent().max().unwrap_or(UNITY);
        if recent > UNITY {
            return recent;
        }
        if self.len < HISTORY_COUNT {
            return UNITY;
        }
        self.ratios.iter().copied().max().unwrap_or(UNITY).min(UNITY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(ratios: impl IntoIterator<Item = u32>) -> Correction {
        let mut correction = Correction::new();
        ratios.into_iter().for_each(|ratio| correction.observe(ratio));
        correction
    }

    #[test]
    fn nothing_observed_changes_nothing() {
        assert_eq!(Correction::new().factor(), UNITY);
    }

    #[test]
    fn one_slow_batch_raises_and_leaves_after_the_recent_ones() {
        let mut correction = observed([3 * UNITY]);
        for _ in 1..RECENT_COUNT {
            correction.observe(UNITY / 2);
            assert_eq!(correction.factor(), 3 * UNITY);
        }
        correction.observe(UNITY / 2);
        assert_eq!(correction.factor(), UNITY);
    }

    #[test]
    fn the_smallest_is_of_the_recent_ones() {
        assert_eq!(observed([]).smallest(), None);
        let mut correction = observed([UNITY / 4, 3 * UNITY]);
        assert_eq!(correction.smallest(), Some(UNITY / 4));
        (1..RECENT_COUNT).for_each(|_| correction.observe(2 * UNITY));
        assert_eq!(correction.smallest(), Some(2 * UNITY));
    }

    #[test]
    fn only_a_full_history_lowers() {
        let mut correction = observed(vec![UNITY / 2; HISTORY_COUNT - 1]);
        assert_eq!(correction.factor(), UNITY);
        correction.observe(UNITY / 4);
        assert_eq!(correction.factor(), UNITY / 2);
    }

    #[test]
    fn a_slow_batch_in_the_history_forbids_lowering() {
        let fast = vec![UNITY / 2; HISTORY_COUNT - 1];
        assert_eq!(observed([2 * UNITY].into_iter().chain(fast)).factor(), UNITY);
    }

    #[test]
    fn an_observation_starts_the_count_of_refusals_again() {
        let mut correction = observed([2 * UNITY]);
        assert!((1..REFUSED_MAX).all(|_| !correction.refuse()));
        correction.observe(2 * UNITY);
        assert!((1..REFUSED_MAX).all(|_| !correction.refuse()));
        assert!(correction.refuse());
        correction.forget();
        assert_eq!(correction.factor(), UNITY);
    }

    #[test]
    fn a_slow_batch_is_forgotten_where_only_others_run() {
        let mut correction = observed([3 * UNITY]);
        (1..ELSEWHERE_MAX).for_each(|_| correction.pass());
        assert_eq!(correction.factor(), 3 * UNITY);
        correction.pass();
        assert_eq!(correction.factor(), UNITY);
    }

    #[test]
    fn fast_batches_are_remembered_wherever_others_run() {
        let mut correction = observed(vec![UNITY / 2; HISTORY_COUNT]);
        (0..2 * ELSEWHERE_MAX).for_each(|_| correction.pass());
        assert_eq!(correction.factor(), UNITY / 2);
    }

    #[test]
    fn a_slow_batch_fades_once_nothing_was_observed_for_a_while() {
        let mut correction = observed([3 * UNITY]);
        assert!(!correction.fade(), "it was observed since the last time");
        assert_eq!(correction.factor(), 3 * UNITY);
        assert!(correction.fade());
        assert_eq!(correction.factor(), UNITY);
        assert!(!correction.fade(), "there is nothing left");
        let mut fast = observed(vec![UNITY / 2; HISTORY_COUNT]);
        assert!(!fast.fade() && !fast.fade(), "it keeps nothing from running");
        assert_eq!(fast.factor(), UNITY / 2);
    }

    #[test]
    fn extremes_saturate() {
        assert_eq!(Correction::ratio(u64::MAX, 1), u32::MAX);
        assert_eq!(Correction::ratio(0, u64::MAX), 1);
        assert_eq!(Correction::ratio(7, 0), 7 * UNITY);
        assert_eq!(Correction::scale(u64::MAX, u32::MAX), u64::MAX);
        assert_eq!(Correction::scale(1, 1), 1);
    }
}
