//! Running: answers, copies, dtypes, several inputs and outputs, threads.

#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use gpulet_torch::{
    Dtype, Error, InputKind, Module, Optimised, RunReport, TensorMut, TensorRef, Torch,
};
use support::{define, input, lenet, mlp, numbers, output, script, torch};

fn scores(model: &Module, images: &mut [f32]) -> Vec<f32> {
    let count = images.len() / 784;
    let mut scores = vec![f32::NAN; count * 10];
    let given = [input(&[count, 1, 28, 28], images)];
    model.run(&given, &mut [output(&[count, 10], &mut scores)]).unwrap();
    scores
}

fn close(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-4)
}

#[test]
fn lenet_answers_alike_however_it_was_loaded_and_rewritten() {
    let Some(torch) = torch() else { return };
    let made = lenet(&torch);
    let mut images = numbers(77, 2 * 784);
    let wanted = scores(&made, &mut images);
    assert!(wanted.iter().all(|x| x.is_finite()));
    assert!(!close(&wanted[..10], &wanted[10..]), "the answer does not depend on the image");

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lenet.pt");
    made.save(&path).unwrap();
    let archive = std::fs::read(&path).unwrap();
    let from_path = Module::load_path(&torch, &path).unwrap();
    let mut from_buffer = Module::load_buffer(&torch, &archive).unwrap();
    drop(archive);
    assert_eq!(scores(&from_path, &mut images), wanted);
    assert_eq!(scores(&from_buffer, &mut images), wanted);
    assert_eq!(from_path.signature().weight_bytes, 4 * 61_706);

    from_buffer.freeze().unwrap();
    assert!(close(&scores(&from_buffer, &mut images), &wanted));
    let mut optimised = from_path;
    assert_eq!(optimised.optimise_for_inference(), Optimised::Optimised);
    assert!(close(&scores(&optimised, &mut images), &wanted));
    assert!(matches!(optimised.save(&path), Err(Error::BadArgument { .. })));
    from_buffer.save(&path).unwrap();
    let frozen = Module::load_path(&torch, &path).unwrap();
    assert!(close(&scores(&frozen, &mut images), &wanted));
}

#[test]
fn a_batch_is_its_images_one_by_one() {
    let Some(torch) = torch() else { return };
    let model = lenet(&torch);
    let mut images = numbers(5, 3 * 784);
    let together = scores(&model, &mut images);
    let apart: Vec<f32> = images.chunks_mut(784).flat_map(|image| scores(&model, image)).collect();
    assert!(close(&together, &apart));
}

#[test]
fn a_tuple_comes_out_as_several_outputs() {
    let Some(torch) = torch() else { return };
    let model = mlp(&torch);
    assert_eq!(model.signature().output_count, Some(2));
    let (mut x, mut y) = (numbers(1, 8), numbers(2, 6));
    let (mut hidden, mut best) = ([0f32; 16], [-1i64; 2]);
    let report = model
        .run(
            &[input(&[2, 4], &mut x), input(&[2, 3], &mut y)],
            &mut [output(&[2, 8], &mut hidden), TensorMut::from_slice(&[2], &mut best).unwrap()],
        )
        .unwrap();
    assert!(hidden.iter().all(|h| *h != 0.0 && h.abs() < 1.0));
    assert!(best.iter().all(|b| (0..5).contains(b)));
    assert_eq!(report.output_bytes_copied, 16 * 4 + 2 * 8);
    assert_eq!(report.input_bytes_copied, 0);
}

#[test]
fn lists_dicts_and_nests_come_out_flattened() {
    let Some(torch) = torch() else { return };
    let signatures = [
        ("x: Tensor) -> List[Tensor]", "return [x + 1, x + 2]"),
        ("x: Tensor) -> Dict[str, Tensor]", "return {'b': x + 1, 'a': x + 2}"),
        ("x: Tensor) -> Tuple[List[Tensor], Tensor]", "return [x + 1], x + 2"),
    ];
    for (signature, body) in signatures {
        let model = script(&torch, signature, body);
        assert_eq!(model.signature().output_count, None, "{signature}");
        let (mut x, mut one, mut two) = ([5f32], [0f32], [0f32]);
        let mut outputs = [output(&[1], &mut one), output(&[1], &mut two)];
        model.run(&[input(&[1], &mut x)], &mut outputs).unwrap();
        assert_eq!((one, two), ([6.0], [7.0]), "{signature}");
    }
}

#[test]
fn a_model_sees_the_callers_own_memory() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor) -> Tensor", "return x.add_(1.0)");
    let (mut x, mut y) = ([1f32, 2.0, 3.0], [0f32; 3]);
    let start = x.as_ptr().addr();
    let report = model.run(&[input(&[3], &mut x)], &mut [output(&[3], &mut y)]).unwrap();
    // No copy can do this: what the model did in place is seen by its caller.
    assert_eq!(x, [2.0, 3.0, 4.0]);
    assert_eq!(y, x);
    let wanted = RunReport {
        input_bytes_copied: 0,
        output_bytes_copied: 12,
        outputs_in_place: 0,
        input_span: (start, start + 12),
    };
    assert_eq!(report, wanted);
}

#[test]
fn a_model_that_takes_out_writes_where_the_caller_wants() {
    let Some(torch) = torch() else { return };
    let source = "
def forward(self, x: Tensor, out: Tensor) -> Tensor:
    return torch.matmul(x, self.w, out=out)
";
    let model = define(&torch, source, &[("w", &[3, 2])]);
    let signature = model.signature();
    assert!(signature.takes_out);
    assert_eq!((signature.inputs.len(), signature.output_count), (1, Some(1)));
    let (mut x, mut y) = (numbers(9, 6), [f32::NAN; 4]);
    let report = model.run(&[input(&[2, 3], &mut x)], &mut [output(&[2, 2], &mut y)]).unwrap();
    assert_eq!((report.output_bytes_copied, report.outputs_in_place), (0, 1));

    let plain = script(&torch, "x: Tensor, w: Tensor) -> Tensor", "return torch.matmul(x, w)");
    let mut w: Vec<f32> = numbers(0, 6).iter().map(|v| v / 2f32.sqrt()).collect();
    let mut wanted = [0f32; 4];
    let inputs = [input(&[2, 3], &mut x), input(&[3, 2], &mut w)];
    plain.run(&inputs, &mut [output(&[2, 2], &mut wanted)]).unwrap();
    assert!(close(&y, &wanted));
}

#[test]
fn a_list_of_out_tensors_is_filled_in_place() {
    let Some(torch) = torch() else { return };
    let body = "torch.add(x, 1.0, out=out[0])\n    torch.add(x, 2.0, out=out[1])";
    let model = script(&torch, "x: Tensor, out: List[Tensor])", body);
    let (mut x, mut one, mut two) = ([1f32, 2.0], [0f32; 2], [0f32; 2]);
    let mut outputs = [output(&[2], &mut one), output(&[2], &mut two)];
    let report = model.run(&[input(&[2], &mut x)], &mut outputs).unwrap();
    assert_eq!((one, two), ([2.0, 3.0], [3.0, 4.0]));
    assert_eq!((report.output_bytes_copied, report.outputs_in_place), (0, 2));
}

#[test]
fn an_out_that_is_ignored_is_still_answered() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor, out: Tensor) -> Tensor", "return x + 1.0");
    let (mut x, mut y) = ([1f32], [0f32]);
    let report = model.run(&[input(&[1], &mut x)], &mut [output(&[1], &mut y)]).unwrap();
    assert_eq!(y, [2.0]);
    assert_eq!((report.output_bytes_copied, report.outputs_in_place), (4, 0));
}

#[test]
fn answers_that_are_not_contiguous_come_out_row_by_row() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor) -> Tensor", "return x.t()");
    let (mut x, mut y) = ([1f32, 2.0, 3.0, 4.0, 5.0, 6.0], [0f32; 6]);
    let report = model.run(&[input(&[2, 3], &mut x)], &mut [output(&[3, 2], &mut y)]).unwrap();
    assert_eq!(y, [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert_eq!(report.output_bytes_copied, 24);
}

#[test]
fn every_dtype_goes_in_and_comes_out() {
    let Some(torch) = torch() else { return };
    let echo = script(&torch, "x: Tensor) -> Tensor", "return x.clone()");
    for dtype in Dtype::ALL {
        #[repr(align(8))]
        struct Aligned([u8; 16]);
        let count = 16 / dtype.size_bytes();
        let mut given = Aligned([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0]);
        let mut taken = Aligned([9; 16]);
        let copy = given.0;
        let x = TensorRef::new(dtype, &[count], &mut given.0).unwrap();
        assert_eq!(echo.probe(&[x]).unwrap()[0].to_string(), format!("{dtype} [{count}]"));
        let x = TensorRef::new(dtype, &[count], &mut given.0).unwrap();
        let y = TensorMut::new(dtype, &[count], &mut taken.0).unwrap();
        echo.run(&[x], &mut [y]).unwrap();
        assert_eq!(taken.0, copy, "{dtype}");
    }
}

#[test]
fn half_precision_numbers_mean_what_they_should() {
    let Some(torch) = torch() else { return };
    let double = script(&torch, "x: Tensor) -> Tensor", "return x * 2");
    // 1.5 as binary16 and as bfloat16; doubled, only the exponent goes up by one.
    for (dtype, bits, doubled) in
        [(Dtype::F16, 0x3e00u16, 0x4200u16), (Dtype::Bf16, 0x3fc0, 0x4040)]
    {
        #[repr(align(2))]
        struct Aligned([u8; 2]);
        let (mut x, mut y) = (Aligned(bits.to_ne_bytes()), Aligned([0; 2]));
        let given = TensorRef::new(dtype, &[1], &mut x.0).unwrap();
        let taken = TensorMut::new(dtype, &[1], &mut y.0).unwrap();
        double.run(&[given], &mut [taken]).unwrap();
        assert_eq!(u16::from_ne_bytes(y.0), doubled, "{dtype}");
    }
}

#[test]
fn empty_and_single_tensors_are_tensors() {
    let Some(torch) = torch() else { return };
    let sum = script(&torch, "x: Tensor) -> Tuple[Tensor, Tensor]", "return x.sum(), x + 1");
    let (mut none, mut total, mut plus): ([f32; 0], _, [f32; 0]) = ([], [7f32], []);
    let mut outputs = [output(&[], &mut total), output(&[0, 3], &mut plus)];
    let report = sum.run(&[input(&[0, 3], &mut none)], &mut outputs).unwrap();
    assert_eq!(total, [0.0]);
    assert_eq!((report.input_span, report.output_bytes_copied), ((0, 0), 4));
}

#[test]
fn single_values_are_given_as_tensors_of_one() {
    let Some(torch) = torch() else { return };
    let signature = "x: Tensor, n: int, scale: float, on: bool, rest: int = 3) -> Tensor";
    let model = script(&torch, signature, "return x * n * scale + (rest if on else 0)");
    let kinds: Vec<_> = model.signature().inputs.iter().map(|input| input.kind).collect();
    use InputKind::{Bool, Float, Int, Tensor};
    assert_eq!(kinds, [Tensor, Int, Float, Bool, Int]);
    assert_eq!(model.signature().inputs[2].name, "scale");
    assert_eq!(model.signature().required_count, 4);
    let (mut x, mut n, mut scale, mut on, mut y) = ([2f32], [5i64], [0.5f32], [1u8], [0f32]);
    let inputs = [
        input(&[1], &mut x),
        TensorRef::from_slice(&[], &mut n).unwrap(),
        input(&[], &mut scale),
        TensorRef::new(Dtype::Bool, &[], &mut on).unwrap(),
    ];
    let report = model.run(&inputs, &mut [output(&[1], &mut y)]).unwrap();
    assert_eq!(y, [8.0]);
    assert_eq!(report.input_bytes_copied, 8 + 4 + 1);
}

/// A model whose forward leaves something behind for the next.
fn keeper(torch: &Torch) -> Module {
    let source = "
def forward(self, x: Tensor) -> Tensor:
    before = self.last
    self.last = x
    return before + 0
";
    let mut zeros = [0f32; 2];
    Module::define(torch, source, &[("last", input(&[2], &mut zeros))], &[]).unwrap()
}

#[test]
fn an_input_that_the_model_keeps_is_copied_and_the_report_says_so() {
    let Some(torch) = torch() else { return };
    let model = keeper(&torch);
    assert!(model.signature().mutates);
    let mut answers = Vec::new();
    for round in 1..=3 {
        let (mut x, mut y) = (vec![round as f32; 2], [0f32; 2]);
        let report = model.run(&[input(&[2], &mut x)], &mut [output(&[2], &mut y)]).unwrap();
        assert_eq!(report.input_bytes_copied, 8);
        // Had the model a pointer to x, it would answer with this.
        x.fill(-1.0);
        answers.push(y[0]);
    }
    assert_eq!(answers, [0.0, 1.0, 2.0]);
}

#[test]
fn models_that_change_themselves_are_told_from_those_that_do_not() {
    let Some(torch) = torch() else { return };
    let counter = "
def forward(self, x: Tensor) -> Tensor:
    self.bump(1)
    return x + self.count
def bump(self, n: int):
    view = self.count[0]
    view.add_(n)
";
    let counter = define(&torch, counter, &[("count", &[1, 1])]);
    assert!(counter.signature().mutates);
    assert!(!lenet(&torch).signature().mutates);
    // In place on what is its own is no change of the module.
    let own = define(
        &torch,
        "def forward(self, x: Tensor) -> Tensor:\n    return (x * self.w).add_(1.0)\n",
        &[("w", &[1, 1])],
    );
    assert!(!own.signature().mutates);
}

#[test]
fn threads_share_one_module() {
    let Some(torch) = torch() else { return };
    let model = lenet(&torch);
    let wanted: Vec<_> = (0..4).map(|seed| scores(&model, &mut numbers(seed, 784))).collect();
    let model = &model;
    std::thread::scope(|scope| {
        for (seed, wanted) in wanted.iter().enumerate() {
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(&scores(model, &mut numbers(seed as u32, 784)), wanted);
                }
            });
        }
    });
}

#[test]
fn threads_take_turns_on_a_module_that_changes_itself() {
    let Some(torch) = torch() else { return };
    let source = "
def forward(self, x: Tensor) -> Tensor:
    self.count = self.count + 1
    return self.count + 0 * x
";
    let mut zero = [0f32];
    let model = Module::define(&torch, source, &[("count", input(&[1], &mut zero))], &[]).unwrap();
    let next = || {
        let (mut x, mut y) = ([0f32], [0f32]);
        model.run(&[input(&[1], &mut x)], &mut [output(&[1], &mut y)]).unwrap();
        y[0] as usize
    };
    let mut seen: Vec<usize> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..4).map(|_| scope.spawn(|| (0..50).map(|_| next()).collect::<Vec<_>>())).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    seen.sort_unstable();
    assert_eq!(seen, (1..=200).collect::<Vec<_>>());
}

#[test]
fn a_model_with_a_grandchild_is_frozen_after_a_run() {
    let Some(torch) = torch() else { return };
    let child = "def forward(self, x: Tensor) -> Tensor:\n    return x * self.w\n";
    let child = define(&torch, child, &[("w", &[1, 1])]);
    // What a run sets for its thread must not reach what is loaded and frozen after it.
    child.probe(&[input(&[1, 1], &mut [1.0])]).unwrap();
    let parent =
        "def forward(self, x: Tensor) -> Tensor:\n    return self.child.forward(x) + 1.0\n";
    let child = Module::define(&torch, parent, &[], &[("child", &child)]).unwrap();
    for optimise in [false, true] {
        let mut model = Module::define(&torch, parent, &[], &[("child", &child)]).unwrap();
        assert_eq!((model.signature().weight_bytes, model.signature().mutates), (4, false));
        let mut answers = Vec::new();
        for round in 0..4 {
            let (mut x, mut y) = ([3f32], [0f32]);
            model.run(&[input(&[1, 1], &mut x)], &mut [output(&[1, 1], &mut y)]).unwrap();
            answers.push(y[0]);
            if round > 0 {
                continue;
            }
            if optimise {
                assert_eq!(model.optimise_for_inference(), Optimised::Optimised);
            } else {
                model.freeze().unwrap();
            }
            // The profiling executor is the one that notices a call left in the graph.
            model.set_profiling(true);
        }
        assert_eq!(answers, [answers[0]; 4]);
    }
}

#[test]
fn profiling_changes_speed_and_not_answers() {
    let Some(torch) = torch() else { return };
    let mut model = lenet(&torch);
    let mut images = numbers(3, 784);
    let wanted = scores(&model, &mut images);
    model.set_profiling(true);
    for _ in 0..4 {
        assert!(close(&scores(&model, &mut images), &wanted));
    }
}

#[test]
fn warming_up_is_running() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor) -> Tensor", "return x.add_(1.0)");
    let (mut x, mut y) = ([0f32], [0f32]);
    model.warm_up(&[input(&[1], &mut x)], &mut [output(&[1], &mut y)], 5).unwrap();
    assert_eq!((x, y), ([5.0], [5.0]));
}
