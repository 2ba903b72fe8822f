//! Profiles: reading, checking, predicting, correcting.

use gpulet_plan::profile::{
    LatencyProfile, PROFILE_LATENCY_MAX_NS, PROFILE_POINTS_MAX, ProfileError, ProfilePoint,
    RawProfile, padded,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config() -> ProptestConfig {
    ProptestConfig {
        rng_seed: RngSeed::Fixed(0x70_72_6f),
        failure_persistence: None,
        ..ProptestConfig::with_cases(512)
    }
}

fn point(rows: u32, p50_ns: u64, p99_ns: u64) -> ProfilePoint {
    ProfilePoint { rows, p50_ns, p99_ns }
}

fn profile(points: &[ProfilePoint]) -> LatencyProfile {
    LatencyProfile::new("m", points).expect("valid points")
}

fn ladder() -> LatencyProfile {
    profile(&[point(1, 1_000, 1_200), point(4, 2_000, 2_400), point(8, 3_000, 4_000)])
}

/// Valid points, latencies in no order at all.
fn any_points() -> impl Strategy<Value = Vec<ProfilePoint>> {
    prop::collection::vec((1_u32..40, 1_u64..1_000_000, 0_u64..500_000), 1..12).prop_map(|steps| {
        let mut rows = 0;
        let built = steps.into_iter().map(|(step, p50_ns, above_ns)| {
            rows += step;
            point(rows, p50_ns, p50_ns + above_ns)
        });
        built.collect()
    })
}

#[test]
fn predictions_that_are_kept_ready_are_those_made_when_asked() {
    let point = |rows: u32, ns: u64| ProfilePoint { rows, p50_ns: ns, p99_ns: ns };
    let mut profile = LatencyProfile::new("m", &[point(1, 1_000), point(100, 100_000)]).unwrap();
    let step_ns =
        |profile: &LatencyProfile, rows| profile.latency_ns(rows + 1) - profile.latency_ns(rows);
    // Up to 64 rows are kept ready; the line does not break there, whatever was learnt.
    for learnt_ns in [1_000, 3_000, 9_000] {
        profile.observe(1, learnt_ns);
        assert_eq!(profile.latency_ns(1), learnt_ns);
        let steps = [step_ns(&profile, 62), step_ns(&profile, 64), step_ns(&profile, 66)];
        let all_ns = (100_000 - learnt_ns) / 99;
        assert!(steps.iter().all(|&it| (all_ns..=all_ns + 1).contains(&it)), "{steps:?}");
    }
}

#[test]
fn interpolates_clamps_below_and_extrapolates_above() {
    let profile = ladder();
    assert_eq!(
        [0, 1, 2, 4, 6, 8].map(|rows| profile.p50_ns(rows)),
        [1_000, 1_000, 1_334, 2_000, 2_500, 3_000]
    );
    assert_eq!([1, 3, 8, 12].map(|rows| profile.latency_ns(rows)), [1_200, 2_000, 4_000, 5_600]);
    let late_start = self::profile(&[point(4, 2_000, 2_000), point(8, 4_000, 4_000)]);
    assert_eq!(late_start.latency_ns(1), 2_000);
}

#[test]
fn a_single_point_extrapolates_in_proportion() {
    let profile = profile(&[point(4, 1_000, 2_000)]);
    assert_eq!([1, 4, 8, 10].map(|rows| profile.latency_ns(rows)), [2_000, 2_000, 4_000, 5_000]);
}

#[test]
fn noise_cannot_make_a_larger_batch_faster() {
    let profile = profile(&[point(1, 10, 900), point(2, 20, 500), point(4, 30, 1_000)]);
    assert_eq!([1, 2, 3, 4].map(|rows| profile.latency_ns(rows)), [900, 900, 950, 1_000]);
}

#[test]
fn the_largest_batch_stops_at_the_budget_and_the_maximum() {
    let profile = ladder();
    assert_eq!(profile.largest_batch_within(1_199, 8), 0);
    assert_eq!(profile.largest_batch_within(1_200, 8), 1);
    assert_eq!(profile.largest_batch_within(3_999, 8), 7);
    assert_eq!(profile.largest_batch_within(u64::MAX, 8), 8);
    assert_eq!(profile.largest_batch_within(u64::MAX, 0), 0);
    assert_eq!(profile.largest_batch_within(4_400, u32::MAX), 9);
}

#[test]
fn reads_and_writes_the_file_format() {
    let text = r#"{"model":"digits","points":[{"rows":1,"p50_ns":5,"p99_ns":6},
        {"rows":2,"p50_ns":7,"p99_ns":9}]}"#;
    let mut profile: LatencyProfile = serde_json::from_str(text).unwrap();
    assert_eq!(profile.model(), "digits");
    assert_eq!(profile.points(), [point(1, 5, 6), point(2, 7, 9)]);
    profile.observe(1, 1_000);
    let raw: RawProfile = serde_json::from_str(text).unwrap();
    let written = serde_json::to_string(&profile).unwrap();
    assert_eq!(serde_json::from_str::<RawProfile>(&written).unwrap(), raw);
}

#[test]
fn refuses_files_naming_the_field_and_the_rule() {
    let cases = [
        (r#"{"model":"","points":[{"rows":1,"p50_ns":1,"p99_ns":1}]}"#, "model: must not be empty"),
        (r#"{"model":"m","points":[]}"#, "points: must hold 1 to 64 entries, holds 0"),
        (r#"{"model":"m","points":[{"rows":0,"p50_ns":1,"p99_ns":1}]}"#, "points[0].rows: must be"),
        (r#"{"model":"m","points":[{"rows":1,"p50_ns":1,"p99_ns":1,"x":1}]}"#, "unknown field `x`"),
        (r#"{"model":"m","points":[],"x":1}"#, "unknown field `x`"),
        (r#"{"model":"m","points":[{"rows":1,"p99_ns":1}]}"#, "missing field `p50_ns`"),
        (r#"{"model":"m","points":[{"rows":1,"p50_ns":-1,"p99_ns":1}]}"#, "invalid value"),
        (r#"{"model":"m","points":[{"rows":1,"p50_ns":1.5,"p99_ns":2}]}"#, "invalid type"),
        (r#"{"model":"m","points":[{"rows":1,"p50_ns":1e999,"p99_ns":2}]}"#, "out of range"),
    ];
    for (text, rule) in cases {
        let error = serde_json::from_str::<LatencyProfile>(text).unwrap_err().to_string();
        assert!(error.contains(rule), "{text}: {error}");
    }
}

#[test]
fn refuses_points_that_break_a_rule() {
    let new = |points: &[ProfilePoint]| LatencyProfile::new("m", points).unwrap_err();
    let one = point(1, 5, 5);
    assert_eq!(new(&[one, one]), ProfileError::Rows { index: 1, above: 1, rows: 1 });
    assert_eq!(new(&[one, point(2, 0, 5)]), ProfileError::P50 { index: 1, p50_ns: 0 });
    assert_eq!(new(&[point(1, 5, 4)]), ProfileError::P99 { index: 0, p50_ns: 5, p99_ns: 4 });
    let p99_ns = PROFILE_LATENCY_MAX_NS + 1;
    assert_eq!(new(&[point(1, 5, p99_ns)]), ProfileError::P99 { index: 0, p50_ns: 5, p99_ns });
    assert_eq!(new(&[point(1, p99_ns, 5)]), ProfileError::P50 { index: 0, p50_ns: p99_ns });
    let many: Vec<_> = (1..=65).map(|rows| point(rows, 5, 5)).collect();
    assert_eq!(new(&many), ProfileError::PointCount { count: PROFILE_POINTS_MAX + 1 });
    assert!(LatencyProfile::new("m", &many[..PROFILE_POINTS_MAX]).is_ok());
}

#[test]
fn one_slow_batch_raises_its_own_size_and_leaves_smaller_ones() {
    let mut profile = ladder();
    profile.observe(8, 8_000);
    assert_eq!([1, 4, 8].map(|rows| profile.latency_ns(rows)), [1_200, 2_400, 8_000]);
    assert!(profile.latency_ns(16) >= 8_000 + 3_200);
    assert_eq!(profile.p99_ns(8), 4_000);
    (0..16).for_each(|_| profile.observe(8, 3_000));
    assert_eq!(profile.latency_ns(8), 4_000);
}

#[test]
fn the_soonest_end_is_the_least_of_late() {
    let mut profile = ladder();
    assert_eq!([1, 4, 8, 12].map(|rows| profile.soonest_ns(rows)), [1_000, 2_000, 3_000, 4_000]);
    profile.observe(8, 9_000);
    assert_eq!(profile.soonest_ns(8), 9_000);
    profile.observe(8, 2_500);
    assert_eq!([1, 6, 8].map(|rows| profile.soonest_ns(rows)), [1_000, 2_250, 2_500]);
    (0..16).for_each(|_| profile.observe(8, 3_500));
    assert_eq!(profile.soonest_ns(8), 3_500);
}

#[test]
fn a_raised_smaller_batch_does_not_flatten_what_lies_above_the_points() {
    let mut profile = ladder();
    profile.observe(4, 12_000);
    assert_eq!([4, 8, 12].map(|rows| profile.latency_ns(rows)), [12_000, 12_000, 13_600]);
}

#[test]
fn a_long_run_of_fast_batches_lowers_the_prediction() {
    let mut profile = ladder();
    (0..127).for_each(|_| profile.observe(8, 2_800));
    assert_eq!(profile.latency_ns(8), 4_000);
    profile.observe(8, 3_000);
    assert!((3_000..=3_001).contains(&profile.latency_ns(8)), "{}", profile.latency_ns(8));
    assert_eq!(profile.latency_ns(4), 2_400);
}

#[test]
fn a_model_shut_out_by_its_correction_is_tried_again() {
    let mut profile = ladder();
    profile.observe(1, 50_000);
    assert!(profile.latency_ns(6) >= 50_000, "running maximum");
    for _ in 0..15 {
        profile.note_refused(6, 5_000);
    }
    assert!(profile.latency_ns(6) >= 50_000);
    profile.note_refused(6, 5_000);
    assert_eq!(profile.latency_ns(6), profile.p99_ns(6));
    assert_eq!(profile.latency_ns(1), 1_200);
}

#[test]
fn a_size_shut_out_by_its_correction_is_tried_again() {
    let mut profile = ladder();
    profile.observe(8, 50_000);
    assert_eq!(profile.largest_batch_within(5_000, 8), 4);
    (0..63).for_each(|_| profile.observe(1, 1_000));
    assert_eq!(profile.largest_batch_within(5_000, 8), 4);
    profile.observe(1, 1_000);
    assert_eq!(profile.largest_batch_within(5_000, 8), 8);
}

#[test]
fn refusals_that_are_not_the_corrections_fault_change_nothing() {
    let mut profile = ladder();
    profile.observe(1, 50_000);
    for _ in 0..100 {
        profile.note_refused(1, 0);
        profile.note_refused(1, 1_199);
        profile.note_refused(1, 60_000);
    }
    assert!(profile.latency_ns(1) >= 50_000);
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn predictions_grow_with_rows_whatever_was_observed(
        points in any_points(),
        observed in prop::collection::vec((0_u32..600, any::<u64>()), 0..200),
    ) {
        let mut profile = profile(&points);
        for (rows, measured_ns) in observed {
            profile.observe(rows, measured_ns);
        }
        for rows in 0..600 {
            prop_assert!(profile.latency_ns(rows) <= profile.latency_ns(rows + 1));
            prop_assert!(profile.p50_ns(rows) <= profile.p99_ns(rows));
            prop_assert!(profile.latency_ns(rows) >= 1);
            prop_assert!(profile.soonest_ns(rows) <= profile.latency_ns(rows));
        }
        prop_assert!(profile.latency_ns(u32::MAX - 1) <= profile.latency_ns(u32::MAX));
    }

    #[test]
    fn a_slower_batch_is_predicted_at_once(
        points in any_points(), rows in 0_u32..600, slower in 1_u64..50,
    ) {
        let mut profile = profile(&points);
        let measured_ns = profile.p99_ns(rows).saturating_mul(slower);
        profile.observe(rows, measured_ns);
        let slack_ns = measured_ns / 10_000 + slower;
        prop_assert!(profile.latency_ns(rows) + slack_ns >= measured_ns);
    }

    #[test]
    fn the_largest_batch_fits_and_one_more_does_not(
        points in any_points(),
        observed in prop::collection::vec((1_u32..600, 1_u64..3_000_000), 0..40),
        budget_ns in 0_u64..4_000_000,
        max_rows in 0_u32..600,
    ) {
        let mut profile = profile(&points);
        observed.into_iter().for_each(|(rows, ns)| profile.observe(rows, ns));
        let rows = profile.largest_batch_within(budget_ns, max_rows);
        prop_assert!(rows <= max_rows);
        prop_assert!(rows == 0 || profile.latency_ns(rows) <= budget_ns);
        prop_assert!(rows == max_rows || profile.latency_ns(rows + 1) > budget_ns);
    }
}

#[test]
fn a_padded_batch_takes_what_its_size_takes() {
    let size = |(rows, ns)| ProfilePoint { rows, p50_ns: ns, p99_ns: ns + 1 };
    let sizes = [(1, 10), (2, 15), (4, 20), (6, 50)].map(size);
    let expected = [(1, 10), (2, 15), (3, 20), (4, 20), (5, 50), (6, 50)].map(size);
    assert_eq!(padded(&sizes), expected);
    assert_eq!(padded(&[size((4, 20))]), [(1, 20), (4, 20)].map(size));
}
