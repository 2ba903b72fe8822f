//! The measurements in the repository, and what the models of interference make of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use gpulet_plan::input::InputError;
use gpulet_plan::interference::{Errors, LinearConstants, Meeting, Predictor, Tempers, held_out};
use gpulet_plan::measured::beside::MeasuredBeside;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resource/profiles/nvidia-h100-80gb-hbm3")
}

fn measured() -> MeasuredBeside {
    let text = std::fs::read_to_string(folder().join("interference.json")).unwrap();
    let file: MeasuredBeside = serde_json::from_str(&text).unwrap();
    file.check().unwrap();
    file
}

fn judged(errors: &[(usize, f64)]) -> Errors {
    Errors::of(errors.iter().map(|it| it.1)).unwrap()
}

#[test]
fn sets_are_predicted_by_what_was_fitted_without_them() {
    let file = measured();
    let sets = file.meetings().unwrap();
    let used = file.utilisations("interference.json");
    for (folds, seed) in [(2, 1), (5, 1), (5, 2)] {
        let ours = held_out(&sets, folds, seed, |known| -> Result<Predictor<'_>, InputError> {
            let fitted = Tempers::fit(known);
            Ok(Box::new(move |it: &Meeting| fitted.predicted(it)))
        });
        let ours = judged(&ours.unwrap());
        assert_eq!(ours.count, 270);
        assert!(ours.p50 <= 0.03 && ours.p90 <= 0.08, "{folds} parts: {ours:?}");
        let linear = held_out(&sets, folds, seed, |known| -> Result<Predictor<'_>, InputError> {
            let fitted = LinearConstants::fit(known, &used)?;
            let used = &used;
            Ok(Box::new(move |it: &Meeting| fitted.predicted(it, used).ok()))
        });
        let linear = judged(&linear.unwrap());
        assert!(linear.p50 > ours.p50 && linear.p90 > ours.p90, "{linear:?}, {ours:?}");
    }
}

#[test]
fn shares_are_parts_of_the_whole_device() {
    let file = measured();
    let sets = file.meetings().unwrap();
    for (set, run) in sets.iter().zip(&file.sets) {
        for (meeting, member) in set.iter().zip(&run.members) {
            let (model, rows, share_pct) = &meeting.sufferer;
            assert_eq!((model, *rows), (&member.member.name(), member.member.rows));
            assert_eq!(*share_pct, member.sm_count * 100 / 132);
            assert_eq!(meeting.neighbours.len() + 1, run.members.len());
        }
    }
}

#[test]
fn the_fitted_model_is_of_these_measurements() {
    let text = std::fs::read_to_string(folder().join("tempers.json")).unwrap();
    let shipped: Tempers = serde_json::from_str(&text).unwrap();
    assert_eq!(shipped.check(), Ok(()));
    let sets = measured().meetings().unwrap();
    let all: Vec<Meeting> = sets.into_iter().flatten().collect();
    let fitted = Tempers::fit(&all);
    assert_eq!(shipped.models.len(), fitted.models.len());
    for meeting in &all {
        let apart = shipped.predicted(meeting).unwrap() - fitted.predicted(meeting).unwrap();
        assert!(apart.abs() < 1e-6, "{apart} {meeting:?}");
    }
}
