//! Real TorchScript, where there is a libtorch.

use std::fs;
use std::path::{Path, PathBuf};

use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::model::{Model, Source, Tensor};
use gpulet_daemon::wire::{Backend, FromExecutor, Manner, Start, ToExecutor};
use gpulet_torch::{Module, Options, Torch};
use tempfile::TempDir;

use crate::harness::{Executor, model, replay_of, statuses, tensor};

/// Set to 1 where a machine must have libtorch: its absence is then a failure.
const REQUIRE_VARIABLE: &str = "GPULET_REQUIRE_TORCH";

struct Bench {
    torch: Torch,
    folder: TempDir,
    executor: Executor,
}

fn torch_start() -> Start {
    let backend = Backend::Torch { libtorch_dir: None, shim: None };
    Start { backend, ..replay_of(PathBuf::new()) }
}

/// libtorch to make models with, a folder for them and an executor; nothing, said loudly, where
/// this machine has no libtorch.
fn bench() -> Option<Bench> {
    let torch = match Torch::open(&Options::default()) {
        Ok(torch) => torch,
        Err(error) => {
            let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
            assert!(!required, "{REQUIRE_VARIABLE}=1, but {error}");
            eprintln!("SKIP: {error}");
            return None;
        }
    };
    let mut executor = Executor::spawn(&torch_start());
    match executor.hear() {
        FromExecutor::Started { backend } => {
            assert_eq!(backend, format!("libtorch {}, 1 thread", torch.version()));
        }
        other => panic!("{other:?}"),
    }
    Some(Bench { torch, folder: tempfile::tempdir().unwrap(), executor })
}

impl Bench {
    /// A model of one method without weights.
    fn script(
        &self,
        signature: &str,
        body: &str,
        inputs: Vec<Tensor>,
        outputs: Vec<Tensor>,
    ) -> Model {
        let source = format!("def forward(self, {signature}:\n    {body}\n");
        let path = self.folder.path().join("model.pt");
        Module::define(&self.torch, &source, &[], &[]).unwrap().save(&path).unwrap();
        model(Source::File(path), inputs, outputs)
    }
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn integers(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn one(dtype: Dtype, width: i64) -> Vec<Tensor> {
    vec![tensor("x", dtype, &[width])]
}

#[test]
fn the_model_reads_and_writes_the_clients_own_slot() {
    let Some(mut bench) = bench() else { return };
    let body = "x.add_(1.0)\n    return x * 2";
    let model = bench.script("x: Tensor) -> Tensor", body, one(Dtype::F32, 3), one(Dtype::F32, 3));
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(4096, 2);
    session.put(0, &model, 2, 0, &floats(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 2)]);
    assert_eq!(statuses(&report, 1), [Status::Ok]);
    // No copy can do this: what the model did to its input is seen by the client.
    let seen = session.input(0, &model, 2, 0);
    assert_eq!(seen, floats(&[2.0, 3.0, 4.0, 5.0, 6.0, 7.0]));
    let answer = session.output(0, &model, 2, 0);
    assert_eq!(answer, floats(&[4.0, 6.0, 8.0, 10.0, 12.0, 14.0]));
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (0, 24));

    // Several requests are gathered, so their slots stay as they were.
    session.put(0, &model, 1, 0, &floats(&[1.0, 2.0, 3.0]));
    session.put(1, &model, 1, 0, &floats(&[4.0, 5.0, 6.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 1), (&session, 1, 1)]);
    assert_eq!(statuses(&report, 2), [Status::Ok; 2]);
    assert_eq!(session.input(1, &model, 1, 0), floats(&[4.0, 5.0, 6.0]));
    assert_eq!(session.output(0, &model, 1, 0), floats(&[4.0, 6.0, 8.0]));
    assert_eq!(session.output(1, &model, 1, 0), floats(&[10.0, 12.0, 14.0]));
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (24, 48));
}

#[test]
fn a_model_that_takes_out_writes_into_the_slot_itself() {
    let Some(mut bench) = bench() else { return };
    let model = bench.script(
        "x: Tensor, out: Tensor) -> Tensor",
        "return torch.mul(x, 3.0, out=out)",
        one(Dtype::F32, 2),
        one(Dtype::F32, 2),
    );
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(4096, 1);
    session.put(0, &model, 1, 0, &floats(&[1.0, 2.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(session.output(0, &model, 1, 0), floats(&[3.0, 6.0]));
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (0, 0));

    // Integers could be read again by the model as indexes: they come into the slot when final.
    let model = bench.script(
        "x: Tensor, out: Tensor) -> Tensor",
        "return torch.add(x, 5, out=out)",
        one(Dtype::I64, 2),
        one(Dtype::I64, 2),
    );
    let instance = bench.executor.load(&model);
    session.put(0, &model, 1, 0, &integers(&[1, 2]));
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(session.output(0, &model, 1, 0), integers(&[6, 7]));
    assert_eq!((report.input_bytes_copied, report.output_bytes_copied), (16, 16));
}

#[test]
fn an_index_cannot_be_changed_by_the_client_any_more() {
    let Some(mut bench) = bench() else { return };
    let body = "table = torch.arange(10.0, 20.0)\n    y = table[x]\n    x.add_(100)\n    return y";
    let model = bench.script("x: Tensor) -> Tensor", body, one(Dtype::I64, 3), one(Dtype::F32, 3));
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(4096, 1);
    let asked = integers(&[7, 0, 9]);
    session.put(0, &model, 1, 0, &asked);
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(session.output(0, &model, 1, 0), floats(&[17.0, 10.0, 19.0]));
    // The model changed what it was given, and the slot shows that it was not the slot.
    assert_eq!(session.input(0, &model, 1, 0), asked);
    assert_eq!(report.input_bytes_copied, 24);

    session.put(0, &model, 1, 0, &integers(&[7, 10, 9]));
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(statuses(&report, 1), [Status::ModelError]);
    let text = session.text(0, &model, 1);
    assert!(text.contains("out of"), "{text}");
}

#[test]
fn of_a_batch_only_the_guilty_request_fails() {
    let Some(mut bench) = bench() else { return };
    let body = "assert bool((x >= 0).all()), 'négatif'\n    return x.sqrt()";
    let model = bench.script("x: Tensor) -> Tensor", body, one(Dtype::F32, 2), one(Dtype::F32, 2));
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(1024, 3);
    session.put(0, &model, 1, 0, &floats(&[1.0, 4.0]));
    session.put(1, &model, 2, 0, &floats(&[1.0, 1.0, -1.0, 1.0]));
    session.put(2, &model, 1, 0, &floats(&[9.0, 16.0]));
    let slots = [(&session, 0, 1), (&session, 1, 2), (&session, 2, 1)];
    let report = bench.executor.run(instance, &slots);
    assert_eq!(statuses(&report, 3), [Status::Ok, Status::ModelError, Status::Ok]);
    assert_eq!(session.output(0, &model, 1, 0), floats(&[1.0, 2.0]));
    assert_eq!(session.output(2, &model, 1, 0), floats(&[3.0, 4.0]));
    let text = session.text(1, &model, 2);
    assert!(text.contains("AssertionError") && text.contains("négatif"), "{text}");

    let report = bench.executor.run(instance, &[(&session, 0, 1), (&session, 2, 1)]);
    assert_eq!(statuses(&report, 2), [Status::Ok; 2]);
}

#[test]
fn an_error_text_stays_inside_its_slot() {
    let Some(mut bench) = bench() else { return };
    // Long enough to be cut in the middle of a character of two bytes, wherever the cut is.
    let body = format!("assert bool(x.sum() >= 0), '{}'\n    return x", "é".repeat(200));
    let model = bench.script("x: Tensor) -> Tensor", &body, one(Dtype::F32, 1), one(Dtype::F32, 1));
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(512, 2);
    session.put(0, &model, 1, 0, &floats(&[-1.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(statuses(&report, 1), [Status::ModelError]);
    let text = session.text(0, &model, 1);
    assert!((254..=255).contains(&text.len()), "{} bytes: {text}", text.len());
    assert!(session.slot(1).iter().all(|byte| *byte == 0), "the next slot was touched");
}

#[test]
fn memory_that_is_not_there_is_its_own_status() {
    let Some(mut bench) = bench() else { return };
    let body = "n = int(x.max().item())\n    return torch.zeros([n, 1000000]).sum() + x";
    let model = bench.script("x: Tensor) -> Tensor", body, one(Dtype::F32, 1), one(Dtype::F32, 1));
    let instance = bench.executor.load(&model);
    let session = bench.executor.map(4096, 2);
    session.put(0, &model, 1, 0, &floats(&[1e9]));
    session.put(1, &model, 1, 0, &floats(&[3.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 1), (&session, 1, 1)]);
    let text = session.text(0, &model, 1);
    assert_eq!(statuses(&report, 2), [Status::ExecutorMemory, Status::Ok], "{text}");
    assert!(text.contains("memory"), "{text}");
    assert_eq!(session.output(1, &model, 1, 0), floats(&[3.0]));
}

#[test]
fn an_archive_that_is_not_what_model_toml_says_is_refused() {
    let Some(mut bench) = bench() else { return };
    let (f, i) = (Dtype::F32, Dtype::I64);
    let double = ("x: Tensor) -> Tensor", "return x * 2");
    let out = ("x: Tensor, out: Tensor) -> Tensor", "return torch.mul(x, 2, out=out)");
    let pair = ("x: Tensor) -> Tuple[Tensor, Tensor]", "return x, x");
    let list = ("x: Tensor) -> List[Tensor]", "return [x, x]");
    let fixed = ("x: Tensor) -> Tensor", "return x.view([1, 2])");
    let raises = ("x: Tensor) -> Tensor", "return torch.matmul(x, torch.zeros([7, 7]))");
    let number = ("x: Tensor, n: int) -> Tensor", "return x * n");
    let (x, xs) = (one(f, 2), || [one(f, 2), one(f, 2)].concat());
    let cases = [
        (double, x.clone(), one(f, 3), "output 0 (x) of one row is f32 [1, 2]"),
        (double, x.clone(), one(i, 2), "output 0 (x) of one row is f32 [1, 2]"),
        (double, xs(), one(f, 2), "forward takes 1 to 1 inputs, model.toml states 2"),
        (double, x.clone(), xs(), "forward gives 1 outputs, model.toml states 2"),
        (pair, x.clone(), one(f, 2), "forward gives 2 outputs, model.toml states 1"),
        (list, x.clone(), one(f, 2), "forward gave 2 outputs, model.toml states 1"),
        (out, x.clone(), one(f, 3), "one row of zeros"),
        (fixed, x.clone(), one(f, 2), "batch of 2 rows of zeros failed"),
        (raises, x.clone(), one(f, 2), "shapes cannot be multiplied"),
        (number, xs(), one(f, 2), "input 1 (x) is Int for forward, where it is called n"),
    ];
    for ((signature, body), inputs, outputs, rule) in cases {
        let model = bench.script(signature, body, inputs, outputs);
        let error = bench.executor.load_error(&model);
        assert!(error.contains(rule), "{error}");
        assert!(error.contains("/model.pt: "), "{error}");
    }

    let path = bench.folder.path().join("broken.pt");
    let broken = model(Source::File(path.clone()), one(f, 1), one(f, 1));
    assert!(bench.executor.load_error(&broken).contains("broken.pt"));
    fs::write(&path, "no archive").unwrap();
    let error = bench.executor.load_error(&broken);
    assert!(error.contains("broken.pt") && error.contains("not a TorchScript archive"), "{error}");
    fs::write(&path, "").unwrap();
    assert!(bench.executor.load_error(&broken).contains("broken.pt"));
}

#[test]
fn handwritten_digits_are_read() {
    let Some(mut bench) = bench() else { return };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models/digits");
    let digits = Model {
        max_batch: 32,
        ..model(
            Source::File(folder.join("model.pt")),
            vec![tensor("image", Dtype::F32, &[1, 8, 8])],
            vec![tensor("logits", Dtype::F32, &[10])],
        )
    };
    let instance = bench.executor.load(&digits);
    let session = bench.executor.map(64 << 10, 3);
    let images: Vec<f32> = (0..6 * 64).map(|index| (index % 17) as f32 / 16.0).collect();
    let slots = [(&session, 0, 1), (&session, 1, 3), (&session, 2, 2)];
    let mut first = 0;
    for (session, slot, rows) in slots {
        session.put(slot, &digits, rows, 0, &floats(&images[first * 64..][..rows as usize * 64]));
        first += rows as usize;
    }
    let together = bench.executor.run(instance, &slots);
    assert_eq!(statuses(&together, 3), [Status::Ok; 3]);
    assert_eq!(together.input_bytes_copied, 6 * 256);
    for (session, slot, rows) in slots {
        let batched = session.output(slot, &digits, rows, 0);
        session.write(slot, crate::harness::layout(&digits, rows).outputs()[0].offset, &[0; 40]);
        let alone = bench.executor.run(instance, &[(session, slot, rows)]);
        assert_eq!(
            (alone.input_bytes_copied, alone.output_bytes_copied),
            (0, u64::from(rows) * 40)
        );
        let scores = |bytes: &[u8]| -> Vec<f32> {
            bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
        };
        let (batched, alone) = (scores(&batched), scores(&session.output(slot, &digits, rows, 0)));
        assert!(alone.iter().any(|score| score.abs() > 0.1), "{alone:?}");
        for (batched, alone) in batched.iter().zip(&alone) {
            assert!((batched - alone).abs() < 1e-3, "{batched} {alone}");
        }
    }
}

#[test]
fn a_loaded_model_runs_while_another_loads_and_the_daemon_may_go() {
    let Some(mut bench) = bench() else { return };
    let quick = bench.script(
        "x: Tensor) -> Tensor",
        "return x + 1",
        one(Dtype::F32, 1),
        one(Dtype::F32, 1),
    );
    let instance = bench.executor.load(&quick);
    // Some 10^12 additions: the test would never end if it had to wait for them.
    let body = "y = x\n    for i in range(1000000000000):\n        y = y + 1\n    return y";
    let slow = bench.script("x: Tensor) -> Tensor", body, one(Dtype::F32, 1), one(Dtype::F32, 1));
    let loading = bench.executor.name();
    bench.executor.tell(&ToExecutor::Load {
        instance: loading,
        model: Box::new(slow),
        manner: Manner::Whole,
    });
    let session = bench.executor.map(4096, 1);
    session.put(0, &quick, 1, 0, &floats(&[41.0]));
    let report = bench.executor.run(instance, &[(&session, 0, 1)]);
    assert_eq!(statuses(&report, 1), [Status::Ok]);
    assert_eq!(session.output(0, &quick, 1, 0), floats(&[42.0]));
    assert_eq!(bench.executor.hang_up().code(), Some(0));
}

#[test]
fn a_libtorch_that_is_not_there_fails_the_start() {
    let shim = PathBuf::from("/nowhere/libgpulet_torch.so");
    let backend = Backend::Torch { libtorch_dir: None, shim: Some(shim) };
    let mut executor = Executor::spawn(&Start { backend, ..torch_start() });
    match executor.hear() {
        FromExecutor::StartFailed { error } => {
            assert!(error.contains("/nowhere/libgpulet_torch.so"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(executor.ended().code(), Some(1));
}
