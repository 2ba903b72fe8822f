//! Start and end.

use std::process::{Command, Stdio};

use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::wire::{FromExecutor, GpuletStart, Manner, ToExecutor};

use crate::harness::{Executor, echo, replay_of, statuses};

#[test]
fn an_executor_goes_when_its_daemon_hangs_up() {
    let asleep = Executor::builtin();
    assert_eq!(asleep.hang_up().code(), Some(0));

    let mut polling = Executor::spawn(&gpulet_daemon::wire::Start {
        spin_ns: u64::MAX,
        beside: false,
        ..replay_of(std::env::temp_dir())
    });
    assert!(matches!(polling.hear(), FromExecutor::Started { .. }));
    assert_eq!(polling.hang_up().code(), Some(0));

    let mut loading = Executor::builtin();
    let model = echo(Dtype::F32, &[1 << 18]);
    let instance = loading.name();
    loading.tell(&ToExecutor::Load { instance, model: Box::new(model), manner: Manner::Whole });
    assert_eq!(loading.hang_up().code(), Some(0));
}

#[test]
fn a_polling_executor_answers_and_loads() {
    let mut executor = Executor::spawn(&gpulet_daemon::wire::Start {
        spin_ns: u64::MAX,
        beside: false,
        ..replay_of(std::env::temp_dir())
    });
    assert!(matches!(executor.hear(), FromExecutor::Started { .. }));
    let instance = executor.load(&echo(Dtype::F32, &[1]));
    let session = executor.map(1024, 1);
    assert_eq!(statuses(&executor.run(instance, &[(&session, 0, 1)]), 1), [Status::Ok]);
    assert_eq!(executor.hang_up().code(), Some(0));
}

#[test]
fn a_load_says_how_far_it_is() {
    let mut executor = Executor::builtin();
    let (model, instance) = (echo(Dtype::F32, &[1]), executor.name());
    executor.tell(&ToExecutor::Load { instance, model: Box::new(model), manner: Manner::Whole });
    let mut steps = Vec::new();
    loop {
        match executor.hear_step() {
            FromExecutor::Loading { instance: named, step } if named == instance => {
                steps.push(step);
            }
            FromExecutor::Loaded { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(steps, ["reading", "1 rows", "2 rows", "4 rows", "8 rows"]);
}

#[test]
fn batches_name_one_of_its_gpulets() {
    let mut start = replay_of(std::env::temp_dir());
    start.gpulets.push(GpuletStart { name: "other".to_owned(), share_pct: 50 });
    let mut executor = Executor::spawn(&start);
    assert!(matches!(executor.hear(), FromExecutor::Started { .. }));
    let instance = executor.load(&echo(Dtype::F32, &[1]));
    let session = executor.map(1024, 1);
    let requests = [(&session, 0, 1)];
    for gpulet in [1, 0] {
        let report = executor.run_on(gpulet, instance, &requests);
        assert_eq!((report.gpulet, statuses(&report, 1)), (gpulet, vec![Status::Ok]));
    }
}

#[test]
fn it_runs_on_the_cpus_it_was_given() {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cpu = (0..1024).find(|cpu| allowed.is_set(*cpu)).unwrap();
    let mut start = replay_of(std::env::temp_dir());
    start.cpus = vec![cpu as u32];
    let mut executor = Executor::spawn(&start);
    assert!(matches!(executor.hear(), FromExecutor::Started { .. }));
    // Threads that it starts afterwards inherit them.
    let pid = rustix::process::Pid::from_child(&executor.child);
    let given = rustix::thread::sched_getaffinity(Some(pid)).unwrap();
    assert_eq!((given.count(), given.is_set(cpu)), (1, true));
}

#[test]
fn a_start_that_cannot_be_is_answered() {
    let mut no_cpu = replay_of(std::env::temp_dir());
    no_cpu.cpus = vec![1023];
    let mut far_cpu = no_cpu.clone();
    far_cpu.cpus = vec![70_000];
    let mut no_thread = replay_of(std::env::temp_dir());
    no_thread.thread_count = 0;
    let mut no_gpulet = replay_of(std::env::temp_dir());
    no_gpulet.gpulets.clear();
    let no_profiles = replay_of("/nowhere/profiles".into());
    for (start, named) in [
        (no_cpu, "1023"),
        (far_cpu, "70000"),
        (no_thread, "thread_count"),
        (no_gpulet, "gpulets"),
        (no_profiles, "/nowhere/profiles"),
    ] {
        let mut executor = Executor::spawn(&start);
        match executor.hear() {
            FromExecutor::StartFailed { error } => assert!(error.contains(named), "{error}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(executor.ended().code(), Some(1));
    }
}

#[test]
fn by_hand_it_says_who_starts_it() {
    let output =
        Command::new(env!("CARGO_BIN_EXE_gpulet-executor")).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("started by gpuletd"));
}

#[test]
fn an_unloaded_model_that_is_still_loading_is_answered_once() {
    let mut executor = Executor::builtin();
    let (slow, quick) = (echo(Dtype::F32, &[1 << 20]), echo(Dtype::F32, &[1]));
    let dropped = executor.name();
    executor.tell(&ToExecutor::Load {
        instance: dropped,
        model: Box::new(slow),
        manner: Manner::Whole,
    });
    executor.tell(&ToExecutor::Unload { instance: dropped });
    match executor.hear() {
        FromExecutor::LoadFailed { instance, error } => {
            assert_eq!(instance, dropped);
            assert!(error.contains("unloaded"), "{error}");
        }
        // The load was quicker than the message.
        FromExecutor::Loaded { instance, .. } => assert_eq!(instance, dropped),
        other => panic!("{other:?}"),
    }
    executor.load(&quick);
}
