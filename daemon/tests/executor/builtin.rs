//! Batches, by way of the model that answers what it was asked.

use bytemuck::Zeroable;
use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::clock::now_ns;
use gpulet_daemon::model::{Builtin, Source};
use gpulet_daemon::wire::{BatchCommand, BatchRequest, ToExecutor};

use crate::harness::{Executor, bytes, echo, model, statuses, tensor};

/// A batch of one request.
fn command_of(instance: u32, request: BatchRequest) -> BatchCommand {
    let mut command = BatchCommand {
        latest_start_ns: u64::MAX,
        instance,
        request_count: 1,
        rows: request.rows,
        ..BatchCommand::zeroed()
    };
    command.requests[0] = request;
    command
}

#[test]
fn a_single_request_is_read_where_it_lies() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[5]);
    let instance = executor.load(&model);
    let session = executor.map(4096, 4);
    let asked = bytes(1, 3 * 20);
    session.put(2, &model, 3, 0, &asked);
    let report = executor.run(instance, &[(&session, 2, 3)]);
    assert_eq!(statuses(&report, 1), [Status::Ok]);
    assert_eq!(session.output(2, &model, 3, 0), asked);
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (0, 60));
    assert!(session.slot(1).iter().all(|byte| *byte == 0), "another slot was touched");
}

#[test]
fn several_requests_are_gathered_once_and_scattered() {
    let mut executor = Executor::builtin();
    let source = Source::Builtin(Builtin::Echo);
    let tensors = || vec![tensor("a", Dtype::F32, &[3]), tensor("b", Dtype::U8, &[7])];
    let model = model(source, tensors(), tensors());
    let instance = executor.load(&model);
    let (one, two) = (executor.map(4096, 2), executor.map(8192, 3));
    let slots = [(&one, 1, 2), (&two, 0, 1), (&two, 2, 4)];
    for (seed, (session, slot, rows)) in slots.into_iter().enumerate() {
        session.put(slot, &model, rows, 0, &bytes(seed as u8, rows as usize * 12));
        session.put(slot, &model, rows, 1, &bytes(100 + seed as u8, rows as usize * 7));
    }
    let report = executor.run(instance, &slots);
    assert_eq!(statuses(&report, 3), [Status::Ok; 3]);
    for (seed, (session, slot, rows)) in slots.into_iter().enumerate() {
        let (a, b) =
            (bytes(seed as u8, rows as usize * 12), bytes(100 + seed as u8, rows as usize * 7));
        assert_eq!(session.output(slot, &model, rows, 0), a);
        assert_eq!(session.output(slot, &model, rows, 1), b);
        assert_eq!(session.input(slot, &model, rows, 0), a, "an input was changed");
    }
    let all = 7 * (12 + 7);
    // Once into the batch; from there the echo's own copy, and one into the slots.
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (all, 2 * all));
}

#[test]
fn integers_and_truth_values_are_taken_out_of_the_clients_reach() {
    let mut executor = Executor::builtin();
    let session = executor.map(4096, 1);
    for (dtype, copied) in [
        (Dtype::I64, 32),
        (Dtype::I32, 16),
        (Dtype::Bool, 4),
        (Dtype::U8, 0),
        (Dtype::F16, 0),
        (Dtype::Bf16, 0),
    ] {
        let model = echo(dtype, &[4]);
        let instance = executor.load(&model);
        let mut asked = bytes(0, 4 * dtype.bytes() as usize);
        session.put(0, &model, 1, 0, &asked);
        let report = executor.run(instance, &[(&session, 0, 1)]);
        assert_eq!(report.input_bytes_copied, copied, "{dtype:?}");
        if dtype == Dtype::Bool {
            assert_eq!(asked, [0, 7, 14, 21]);
            asked = vec![0, 1, 1, 1];
        }
        assert_eq!(session.output(0, &model, 1, 0), asked, "{dtype:?}");
    }
}

#[test]
fn what_comes_too_late_is_refused() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[1]);
    let instance = executor.load(&model);
    let session = executor.map(4096, 2);
    session.write(0, 0, &[1, 2, 3, 4]);
    let slots = [(&session, 0, 1), (&session, 1, 1)];
    let report = executor.run_until(now_ns() - 1, instance, &slots);
    assert_eq!(statuses(&report, 3)[..2], [Status::DeadlineExpired; 2]);
    assert_eq!(report.statuses[2], 0);
    assert_eq!(session.output(0, &model, 1, 0), [0; 4]);
    let report = executor.run_until(now_ns() + 60_000_000_000, instance, &slots);
    assert_eq!(statuses(&report, 2), [Status::Ok; 2]);
}

#[test]
fn a_broken_command_is_answered_and_nothing_else_happens() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[1]);
    let instance = executor.load(&model);
    let session = executor.map(1024, 2);
    let request = BatchRequest { region: session.region, slot: 0, rows: 1, reserved: 0 };
    let good = command_of(instance, request);
    let with = |request| command_of(instance, request);
    let broken = [
        BatchCommand { instance: 99, ..good },
        BatchCommand { request_count: 0, ..good },
        BatchCommand { request_count: 65, ..good },
        BatchCommand { request_count: u32::MAX, ..good },
        BatchCommand { rows: 2, ..good },
        with(BatchRequest { region: 99, ..request }),
        with(BatchRequest { slot: 2, ..request }),
        with(BatchRequest { rows: 0, ..request }),
        with(BatchRequest { rows: 9, ..request }),
        with(BatchRequest { rows: u32::MAX, ..request }),
    ];
    for command in broken {
        let report = executor.command(command);
        let count = command.request_count.min(64) as usize;
        assert_eq!(statuses(&report, count), vec![Status::Internal; count], "{command:?}");
    }
    assert_eq!(statuses(&executor.command(good), 1), [Status::Ok]);

    // Rows that the model takes but the slot does not hold.
    let large = echo(Dtype::F32, &[100]);
    let instance = executor.load(&large);
    let report = executor.run(instance, &[(&session, 0, 2)]);
    assert_eq!(statuses(&report, 1), [Status::Internal]);
    assert_eq!(statuses(&executor.run(instance, &[(&session, 0, 1)]), 1), [Status::Ok]);
}

#[test]
fn what_was_unmapped_or_unloaded_is_unknown() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[1]);
    let (kept, dropped) = (executor.load(&model), executor.load(&model));
    let (near, far) = (executor.map(1024, 1), executor.map(1024, 1));
    assert_eq!(statuses(&executor.run(dropped, &[(&far, 0, 1)]), 1), [Status::Ok]);
    executor.tell(&ToExecutor::Unmap { region: far.region });
    executor.tell(&ToExecutor::Unload { instance: dropped });
    // A message behind them shows that they were read.
    executor.load(&model);
    assert_eq!(statuses(&executor.run(dropped, &[(&near, 0, 1)]), 1), [Status::Internal]);
    assert_eq!(statuses(&executor.run(kept, &[(&far, 0, 1)]), 1), [Status::Internal]);
    assert_eq!(statuses(&executor.run(kept, &[(&near, 0, 1)]), 1), [Status::Ok]);
}

#[test]
fn a_region_is_found_however_closely_its_first_request_follows() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[1]);
    let instance = executor.load(&model);
    for _ in 0..200 {
        let session = executor.map(1024, 1);
        assert_eq!(statuses(&executor.run(instance, &[(&session, 0, 1)]), 1), [Status::Ok]);
        executor.tell(&ToExecutor::Unmap { region: session.region });
    }
}

#[test]
fn commands_can_be_posted_ahead_and_reports_left_lying() {
    let mut executor = Executor::builtin();
    let model = echo(Dtype::F32, &[1]);
    let instance = executor.load(&model);
    let session = executor.map(1024, 1);
    let request = BatchRequest { region: session.region, slot: 0, rows: 1, reserved: 0 };
    let command = command_of(instance, request);
    // More than both rings hold, so that the executor has to wait for its reports to be read.
    let mut posted = 0;
    while posted < 40 {
        if executor.room() > 0 {
            posted = executor.post(command);
        } else if posted >= 30 {
            break;
        }
    }
    for batch in 1..=posted {
        let report = executor.report();
        assert_eq!((report.batch, statuses(&report, 1)), (batch, vec![Status::Ok]));
    }
}

#[test]
fn an_echo_of_another_shape_is_refused() {
    let mut executor = Executor::builtin();
    let source = || Source::Builtin(Builtin::Echo);
    let input = || vec![tensor("asked", Dtype::F32, &[2, 3])];
    let other = model(source(), input(), vec![tensor("answer", Dtype::F32, &[3, 2])]);
    let error = executor.load_error(&other);
    assert!(error.contains("under-test") && error.contains("answer"), "{error}");
    let none = model(source(), input(), vec![]);
    assert!(executor.load_error(&none).contains("0 outputs for 1 inputs"));
    let null = model(Source::Builtin(Builtin::Null), input(), input());
    assert!(executor.load_error(&null).contains("builtin:null"));
    executor.load(&echo(Dtype::F32, &[1]));
}
