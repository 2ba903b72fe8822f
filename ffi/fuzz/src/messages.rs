//! JSON of executors and of profile files: what is accepted comes back the same, and a profile that
//! is accepted predicts without ever contradicting itself.

use std::fmt::Debug;

use gpulet_abi::region::Geometry;
use gpulet_daemon::wire::{FromExecutor, ToExecutor};
use gpulet_plan::profile::{LatencyProfile, ProfilePoint, RawProfile};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Batch sizes that predictions are asked for.
const ROWS: [u32; 9] = [0, 1, 2, 3, 7, 8, 64, 4096, u32::MAX];

/// Parses the input as every message there is.
pub fn run(input: &[u8]) {
    if let Some(FromExecutor::Loaded { points, .. }) = parse(input) {
        points.iter().for_each(|points| check_profile(points));
    }
    if let Some(ToExecutor::Map { geometry, .. }) = parse(input) {
        let _ = Geometry::new(geometry.slot_bytes, geometry.slot_count);
    }
    if let Some(raw) = parse::<RawProfile>(input) {
        check_profile(&raw.points);
        let whole = serde_json::from_slice::<LatencyProfile>(input);
        assert_eq!(LatencyProfile::try_from(raw).is_ok(), whole.is_ok());
    }
}

fn parse<M: DeserializeOwned + Serialize + PartialEq + Debug>(input: &[u8]) -> Option<M> {
    let message: M = match serde_json::from_slice(input) {
        Ok(message) => message,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return None;
        }
    };
    let json = serde_json::to_vec(&message).expect("it came from JSON");
    assert_eq!(serde_json::from_slice::<M>(&json).ok().as_ref(), Some(&message));
    Some(message)
}

fn check_profile(points: &[ProfilePoint]) {
    let mut profile = match LatencyProfile::new("model", points) {
        Ok(profile) => profile,
        Err(error) => return assert!(error.to_string().starts_with("points")),
    };
    check_predictions(&profile);
    // The points themselves are what was measured as good as anything.
    for point in points {
        profile.observe(point.rows, point.p50_ns);
        profile.observe(point.rows.wrapping_mul(3), point.p99_ns.saturating_mul(2));
        profile.note_refused(point.rows, point.p99_ns);
        check_predictions(&profile);
    }
}

fn check_predictions(profile: &LatencyProfile) {
    let mut before_ns = 0;
    for rows in ROWS {
        let latency_ns = profile.latency_ns(rows);
        assert!(latency_ns >= before_ns, "a larger batch is predicted to be faster");
        assert!(profile.p99_ns(rows) >= profile.p50_ns(rows));
        before_ns = latency_ns;
        let fitting = profile.largest_batch_within(latency_ns, u32::MAX);
        assert!(
            fitting >= rows
                && profile.latency_ns(fitting.max(1)) <= latency_ns.max(profile.latency_ns(1))
        );
    }
}
