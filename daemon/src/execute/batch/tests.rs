//! What needs a look from inside: the rest is tested on the real process.

use std::path::Path;

use gpulet_abi::region::Geometry;
use gpulet_abi::tensor::row_bytes;

use gpulet_abi::tensor::Dtype;

use super::*;
use crate::backend::{loading, replay::Replay};
use crate::model::{Builtin, DtypeName, Model, Precision, Source, Tensor};

const INSTANCE: u32 = 3;
const REGION: u32 = 5;

fn echo(dtype: Dtype) -> Model {
    let row_bytes = row_bytes(dtype, &[4]).unwrap();
    let tensor = Tensor {
        name: "x".into(),
        dtype: DtypeName(dtype),
        dims: vec![4],
        row_bytes,
        range: None,
        normalise: None,
    };
    Model {
        name: "echo".into(),
        source: Source::Builtin(Builtin::Echo),
        slo_ns: 1,
        max_batch: 64,
        warmup_count: 1,
        inputs: vec![tensor.clone()],
        outputs: vec![tensor],
        precision: Precision::Fp32,
        error_max: 0.0,
        stamp: (0, 0),
    }
}

/// A region of 64 slots and an echo.
fn holdings(dtype: Dtype) -> Holdings {
    let backend = Replay::open(Path::new("/")).unwrap();
    let loaded = loading::load(&backend, &echo(dtype), &|_| {}).unwrap();
    let geometry = Geometry::new(4096, 64).unwrap();
    let (_, fd) = Region::create(geometry).unwrap();
    let region = Region::attach(fd, geometry.region_bytes).unwrap();
    let mut holdings = Holdings::default();
    holdings.load(INSTANCE, Box::new(loaded));
    holdings.map(REGION, region);
    holdings
}

/// A batch of the first `count` slots, one row each.
fn command(count: u32) -> BatchCommand {
    let mut command = BatchCommand {
        latest_start_ns: u64::MAX,
        instance: INSTANCE,
        request_count: count,
        rows: count,
        ..BatchCommand::zeroed()
    };
    for slot in 0..count {
        command.requests[slot as usize] =
            BatchRequest { region: REGION, slot, rows: 1, ..BatchRequest::zeroed() };
    }
    command
}

#[test]
fn no_batch_allocates() {
    for dtype in [Dtype::F32, Dtype::I64, Dtype::Bool] {
        let mut holdings = holdings(dtype);
        for count in [1, 2, 64] {
            let command = command(count);
            let mut report = None;
            let allocated = allocation_counter::measure(|| {
                assert!(!holdings.lacks(&command));
                report = Some(holdings.run(&command));
            });
            assert_eq!(allocated.count_total, 0, "{count} requests of {dtype:?}");
            let report = report.unwrap();
            assert!(report.statuses.iter().all(|status| *status == number(Status::Ok)));
            assert!(report.output_bytes_copied > 0);
        }
    }
}

#[test]
fn the_counter_of_the_test_above_counts() {
    let mut holdings = holdings(Dtype::F32);
    let mut other = command(1);
    other.instance = 99;
    let allocated = allocation_counter::measure(|| {
        drop(holdings.run(&command(1)).batch.to_string());
        assert!(holdings.lacks(&other));
    });
    assert_eq!(allocated.count_total, 1);
}

#[test]
fn every_status_fits_a_report() {
    for status in Status::ALL {
        assert_eq!(i32::from(number(*status)), *status as i32);
    }
}
