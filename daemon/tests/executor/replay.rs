//! The backend that answers after a profiled time.

use std::fs;
use std::path::{Path, PathBuf};

use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::model::{Model, Source};
use gpulet_daemon::wire::{Backend, FromExecutor, GpuletStart, ToExecutor};

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

#[test]
fn shares_change_when_they_were_prepared() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("under-test.json"), PROFILE).unwrap();
    let share = |share_pct| GpuletStart { name: "g".to_owned(), share_pct };
    let mut start = replay_of(folder.path().to_owned());
    start.gpulets = vec![share(25), share(75)];
    let mut executor = Executor::spawn(&start);
    assert!(matches!(executor.hear(), FromExecutor::Started { .. }));
    let instance = executor.load(&replayed());
    let session = executor.map(4096, 1);
    let took_ns = |executor: &mut Executor, gpulet| {
        let report = executor.run_on(gpulet, instance, &[(&session, 0, 1)]);
        report.finished_ns - report.started_ns
    };
    let shares_pct = vec![75, 25];
    executor.tell(&ToExecutor::Prepare { shares_pct: shares_pct.clone() });
    let FromExecutor::Remeasured { instance: of, shares_pct: on, points } = executor.hear() else {
        panic!()
    };
    assert_eq!((of, &on, points.len()), (instance, &shares_pct, 2));
    assert_eq!((points[0][0].p50_ns, points[1][0].p50_ns), (666_666, 6_000_000));
    let prepared = FromExecutor::Prepared { shares_pct: shares_pct.clone() };
    assert_eq!(executor.hear(), prepared);
    // Nothing changes until it is told to.
    assert!(took_ns(&mut executor, 0) >= 2_000_000);
    executor.tell(&ToExecutor::Switch { shares_pct: shares_pct.clone() });
    match executor.hear() {
        FromExecutor::Shared { shares_pct: shared, switched_ns } => {
            assert!(shared == shares_pct && switched_ns > 0);
        }
        other => panic!("{other:?}"),
    }
    assert!(took_ns(&mut executor, 1) >= 6_000_000);
    // What cannot be is refused, and everything stays.
    executor.tell(&ToExecutor::Prepare { shares_pct: vec![75, 26] });
    let FromExecutor::PrepareFailed { error, .. } = executor.hear() else { panic!() };
    assert!(error.contains("add up to 101"), "{error}");
    assert!(took_ns(&mut executor, 1) >= 6_000_000);
    // A switch to what was not prepared is none of a daemon of ours.
    executor.tell(&ToExecutor::Switch { shares_pct });
    assert_eq!(executor.ended().code(), Some(1));
}

#[test]
fn an_executor_that_splits_nothing_says_so() {
    let mut start = replay_of(std::env::temp_dir());
    start.backend = Backend::Torch { libtorch_dir: None, shim: None };
    let mut executor = Executor::spawn(&start);
    if let FromExecutor::StartFailed { .. } = executor.hear() {
        return;
    }
    executor.tell(&ToExecutor::Prepare { shares_pct: vec![50] });
    let FromExecutor::PrepareFailed { shares_pct, error } = executor.hear() else { panic!() };
    assert_eq!(shares_pct, [50]);
    assert!(error.contains("splits no device"), "{error}");
}
