//! The backend that answers after a profiled time.

use std::fs;
use std::path::{Path, PathBuf};

use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::model::{Model, Source};
use gpulet_daemon::wire::FromExecutor;

use crate::harness::{Executor, model, replay_of, statuses, tensor};

fn start(folder: &Path) -> Executor {
    let mut executor = Executor::spawn(&replay_of(folder.to_owned()));
    assert!(matches!(executor.hear(), FromExecutor::Started { .. }));
    executor
}

fn replayed() -> Model {
    model(
        Source::File(PathBuf::from("/nowhere/model.pt")),
        vec![tensor("in", Dtype::F32, &[4])],
        vec![tensor("out", Dtype::F32, &[2])],
    )
}

const PROFILE: &str = r#"{ "model": "under-test", "points": [
    { "rows": 1, "p50_ns": 2000000, "p99_ns": 2500000 },
    { "rows": 8, "p50_ns": 9000000, "p99_ns": 9900000 } ] }"#;

#[test]
fn answers_are_zeros_and_take_their_time() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("under-test.json"), PROFILE).unwrap();
    let mut executor = start(folder.path());
    let model = replayed();
    let instance = executor.load(&model);
    let session = executor.map(4096, 2);
    for (slots, least_ns) in [
        (vec![(&session, 0, 1)], 2_000_000),
        (vec![(&session, 0, 4)], 5_000_000),
        (vec![(&session, 0, 4), (&session, 1, 4)], 9_000_000),
    ] {
        session.write(0, 0, &[0xff; 4096]);
        let report = executor.run(instance, &slots);
        assert_eq!(statuses(&report, slots.len()), vec![Status::Ok; slots.len()]);
        assert!(report.finished_ns - report.started_ns >= least_ns);
        let rows = slots[0].2;
        assert!(session.output(0, &model, rows, 0).iter().all(|byte| *byte == 0));
        assert!(session.input(0, &model, rows, 0).iter().all(|byte| *byte == 0xff));
    }
}

#[test]
fn a_profile_that_breaks_a_rule_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("under-test.json");
    let mut executor = start(folder.path());
    let model = replayed();
    let mut error_of = |text: Option<&str>| {
        if let Some(text) = text {
            fs::write(&path, text).unwrap();
        }
        let error = executor.load_error(&model);
        assert!(error.contains("under-test.json"), "{error}");
        error
    };
    error_of(None);
    assert!(error_of(Some("{")).contains("line 1"));
    assert!(error_of(Some(r#"{ "model": "other", "points": [] }"#)).contains("model: must be"));
    assert!(error_of(Some(r#"{ "model": "under-test", "points": [] }"#)).contains("points"));
    let zero = PROFILE.replace("2000000", "0");
    assert!(error_of(Some(&zero)).contains("points[0].p50_ns"));
}
