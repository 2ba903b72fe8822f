//! Failing: each kind of bad file, input, output and model has its own class and a clear text,
//! and the module works on.

#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::path::Path;

use gpulet_torch::{Error, Module, TensorMut, TensorRef, Torch};
use support::{input, lenet, mlp, numbers, output, script, torch};

fn load_error(torch: &Torch, path: &Path) -> Error {
    Module::load_path(torch, path).unwrap_err()
}

#[test]
fn a_bad_path_is_named() {
    let Some(torch) = torch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pt");
    let error = load_error(&torch, &missing);
    let wanted = format!("{}: No such file or directory", missing.display());
    assert!(matches!(error, Error::BadPath { .. }), "{error:?}");
    assert_eq!(error.to_string(), wanted);
    let error = load_error(&torch, folder.path());
    assert_eq!(error.to_string(), format!("{}: not a regular file", folder.path().display()));
    let error = load_error(&torch, Path::new("a\0b"));
    assert!(matches!(error, Error::BadPath { .. }), "{error:?}");
    let error = lenet(&torch).save(&folder.path().join("none/lenet.pt")).unwrap_err();
    assert!(matches!(error, Error::BadPath { .. }), "{error:?}");
}

#[test]
fn what_is_no_archive_is_refused_from_a_file_and_from_memory() {
    let Some(torch) = torch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    lenet(&torch).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut broken = vec![
        Vec::new(),
        b"hello".to_vec(),
        vec![0; 4096],
        // A state dict of the old kind starts like this.
        [&[0x80, 0x02][..], &[0; 4096]].concat(),
    ];
    // Truncated everywhere: in the head, in a record, in the directory at the end.
    for keep in [1, 30, 1000, whole.len() / 2, whole.len() - 200, whole.len() - 1] {
        broken.push(whole[..keep].to_vec());
    }
    for bytes in broken {
        std::fs::write(&path, &bytes).unwrap();
        let len = bytes.len();
        for error in [load_error(&torch, &path), Module::load_buffer(&torch, &bytes).unwrap_err()] {
            assert!(matches!(error, Error::BadArchive { .. }), "{len} bytes: {error:?}");
            assert!(!error.to_string().contains('\n'), "{error}");
        }
    }
    assert!(Module::load_buffer(&torch, &whole).is_ok());
}

#[test]
fn a_damaged_archive_never_loads_as_the_same_model() {
    let Some(torch) = torch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    lenet(&torch).save(&path).unwrap();
    let whole = std::fs::read(&path).unwrap();
    // The directory at the end says where every record is: spoil each of its bytes in turn.
    let mut refused = 0;
    for at in (whole.len() - 600..whole.len()).step_by(7) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0xff;
        match Module::load_buffer(&torch, &bytes) {
            Ok(module) => assert!(module.signature().inputs.len() == 1),
            Err(error) => {
                assert!(
                    matches!(error, Error::BadArchive { .. } | Error::OutOfMemory { .. }),
                    "{error:?}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 10, "{refused}");
}

#[test]
fn source_that_does_not_compile_is_refused() {
    let Some(torch) = torch() else { return };
    let error = Module::define(&torch, "def forward(self, x):\n    return nothing\n", &[], &[]);
    let error = error.unwrap_err();
    assert!(matches!(error, Error::BadArgument { .. }), "{error:?}");
    assert!(error.to_string().contains("undefined value nothing"), "{error}");
    let error =
        Module::define(&torch, "def other(self, x):\n    return x\n", &[], &[]).unwrap_err();
    assert!(error.to_string().contains("the model has no forward"), "{error}");
}

#[test]
fn a_child_that_changes_itself_is_not_shared() {
    let Some(torch) = torch() else { return };
    let source = "def forward(self, x: Tensor) -> Tensor:\n    return self.sum.add_(x)\n";
    let mut zero = [0f32];
    let child = Module::define(&torch, source, &[("sum", input(&[1], &mut zero))], &[]).unwrap();
    let parent = "def forward(self, x: Tensor) -> Tensor:\n    return self.child.forward(x)\n";
    let error = Module::define(&torch, parent, &[], &[("child", &child)]).unwrap_err();
    assert_eq!(error.to_string(), "child `child` changes itself, so it cannot be shared");
}

#[test]
fn a_wrong_input_shape_or_dtype_is_told_in_the_operators_words() {
    let Some(torch) = torch() else { return };
    let model = mlp(&torch);
    let run = |x: TensorRef<'_>, rows: usize| {
        let (mut y, mut hidden, mut best) = (numbers(2, rows * 3), [0f32; 16], [0i64; 2]);
        let best = TensorMut::from_slice(&[2], &mut best).unwrap();
        let outputs = &mut [output(&[2, 8], &mut hidden), best];
        model.run(&[x, input(&[rows, 3], &mut y)], outputs)
    };
    let (mut wide, mut right, mut whole) = ([0f32; 10], [0f32; 8], [0i64; 8]);

    let error = run(input(&[2, 5], &mut wide), 2).unwrap_err();
    assert!(matches!(error, Error::ModelRaised { .. }), "{error:?}");
    assert!(error.to_string().contains("cannot be multiplied (2x5 and 4x8)"), "{error}");

    let error = run(TensorRef::from_slice(&[2, 4], &mut whole).unwrap(), 2).unwrap_err();
    assert!(matches!(error, Error::ModelRaised { .. }), "{error:?}");
    assert!(error.to_string().to_lowercase().contains("long"), "{error}");

    let error = run(input(&[2, 4], &mut right), 3).unwrap_err();
    assert_eq!(error.to_string(), "the model raised AssertionError: x and y need as many rows");
    let Error::ModelRaised { raised } = &error else { panic!("{error:?}") };
    assert!(raised.trace.contains("assert x.size(0) == y.size(0)"), "{}", raised.trace);

    run(input(&[2, 4], &mut right), 2).unwrap();
}

#[test]
fn an_assert_and_a_failed_inner_call_keep_their_texts() {
    let Some(torch) = torch() else { return };
    let source = "
def forward(self, x: Tensor) -> Tensor:
    assert x.sum() < 0, 'the sum is ' + str(x.sum().item())
    return self.deeper(x)
def deeper(self, x: Tensor) -> Tensor:
    return x.view([7])
";
    let model = Module::define(&torch, source, &[], &[]).unwrap();
    let error = model.probe(&[input(&[1], &mut [1.0])]).unwrap_err();
    assert!(error.to_string().contains("AssertionError: the sum is 1"), "{error}");
    let error = model.probe(&[input(&[1], &mut [-1.0])]).unwrap_err();
    assert!(error.to_string().contains("shape '[7]' is invalid"), "{error}");
}

#[test]
fn outputs_that_do_not_fit_are_refused_before_any_is_written() {
    let Some(torch) = torch() else { return };
    let model = mlp(&torch);
    let (mut x, mut y) = (numbers(1, 8), numbers(2, 6));
    let inputs = [input(&[2, 4], &mut x), input(&[2, 3], &mut y)];
    let (mut hidden, mut best, mut small) = ([-1f32; 16], [0i64; 2], [0i32; 2]);

    let error = model.run(&inputs, &mut [output(&[2, 8], &mut hidden)]).unwrap_err();
    assert!(matches!(error, Error::BadOutput { .. }), "{error:?}");
    assert_eq!(error.to_string(), "the model gave 2 outputs, the caller has room for 1");

    let last = TensorMut::from_slice(&[2], &mut small).unwrap();
    let error = model.run(&inputs, &mut [output(&[2, 8], &mut hidden), last]).unwrap_err();
    let wanted = "output 1: the model gave i64 [2], the caller has room for i32 [2]";
    assert_eq!(error.to_string(), wanted);

    let last = TensorMut::from_slice(&[1, 2], &mut best).unwrap();
    let error = model.run(&inputs, &mut [output(&[2, 8], &mut hidden), last]).unwrap_err();
    let wanted = "output 1: the model gave i64 [2], the caller has room for i64 [1, 2]";
    assert_eq!(error.to_string(), wanted);

    assert_eq!(hidden, [-1.0; 16]);
    let last = TensorMut::from_slice(&[2], &mut best).unwrap();
    model.run(&inputs, &mut [output(&[2, 8], &mut hidden), last]).unwrap();
}

#[test]
fn an_out_of_the_wrong_shape_is_refused() {
    let Some(torch) = torch() else { return };
    let body = "return torch.add(x, 1.0, out=out)";
    let model = script(&torch, "x: Tensor, out: Tensor) -> Tensor", body);
    let mut x = [1f32; 4];
    for dims in [&[2usize][..], &[8], &[2, 2]] {
        let mut y = vec![-1f32; dims.iter().product()];
        let error = model.run(&[input(&[4], &mut x)], &mut [output(dims, &mut y)]).unwrap_err();
        assert!(
            matches!(error, Error::BadOutput { .. } | Error::ModelRaised { .. }),
            "{dims:?}: {error:?}"
        );
    }
    let mut y = [0f32; 4];
    model.run(&[input(&[4], &mut x)], &mut [output(&[4], &mut y)]).unwrap();
    let error = model.probe(&[input(&[4], &mut x)]).unwrap_err();
    assert!(matches!(error, Error::BadArgument { .. }), "{error:?}");
}

#[test]
fn answers_that_are_no_tensors_are_refused() {
    let Some(torch) = torch() else { return };
    let cases = [
        ("x: Tensor) -> int", "return x.size(0)", "output 0: the model gave a Int"),
        ("x: Tensor)", "return None", "output 0: the model gave a None"),
        ("x: Tensor) -> Tensor", "return x.to_sparse()", "no dense tensor"),
    ];
    for (signature, body, words) in cases {
        let model = script(&torch, signature, body);
        let (mut x, mut y) = ([1f32], [0f32]);
        let error = model.run(&[input(&[1], &mut x)], &mut [output(&[1], &mut y)]).unwrap_err();
        assert!(matches!(error, Error::BadOutput { .. }), "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
    }
}

#[test]
fn dtypes_outside_the_seven_are_refused_by_name() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor) -> Tensor", "return x.double()");
    let mut x = [1f32];
    let error = model.probe(&[input(&[1], &mut x)]).unwrap_err();
    assert!(error.to_string().contains("Double [1]"), "{error}");
    let mut y = [0f32];
    let error = model.run(&[input(&[1], &mut x)], &mut [output(&[1], &mut y)]).unwrap_err();
    assert!(error.to_string().contains("Double [1]"), "{error}");
}

#[test]
fn the_number_of_inputs_is_checked() {
    let Some(torch) = torch() else { return };
    let model = mlp(&torch);
    let error = model.probe(&[]).unwrap_err();
    assert!(matches!(error, Error::BadArgument { .. }), "{error:?}");
    assert_eq!(error.to_string(), "forward takes 2 inputs, 0 were given");
    let optional = script(&torch, "x: Tensor, n: int = 3) -> Tensor", "return x + n");
    assert_eq!(
        optional.probe(&[]).unwrap_err().to_string(),
        "forward takes 1 to 2 inputs, 0 were given"
    );
}

#[test]
fn a_single_value_of_the_wrong_kind_is_refused() {
    let Some(torch) = torch() else { return };
    let model = script(&torch, "x: Tensor, n: int) -> Tensor", "return x + n");
    let (mut x, mut n) = ([1f32], [1f32]);
    let error = model.probe(&[input(&[1], &mut x), input(&[], &mut n)]).unwrap_err();
    assert!(matches!(error, Error::BadArgument { .. }), "{error:?}");
    assert!(error.to_string().contains("`n`"), "{error}");
    let text = script(&torch, "x: Tensor, n: str) -> Tensor", "return x");
    let error = text.probe(&[input(&[1], &mut x), input(&[], &mut n)]).unwrap_err();
    assert!(error.to_string().contains("`n` is a str in forward"), "{error}");
}

#[test]
fn out_of_memory_is_a_class_of_its_own_and_the_module_works_on() {
    let Some(torch) = torch() else { return };
    let body = "return torch.zeros([x.size(0), 1000000000, 1000])";
    let model = script(&torch, "x: Tensor) -> Tensor", body);
    let error = model.probe(&[input(&[1000], &mut [0.0; 1000])]).unwrap_err();
    assert!(matches!(error, Error::OutOfMemory { .. }), "{error:?}");
    assert!(error.to_string().contains("4000000000000000 bytes"), "{error}");
    let specs = model.probe(&[input(&[0], &mut [])]).unwrap();
    assert_eq!(specs[0].dims, [0, 1_000_000_000, 1000]);
}

#[test]
fn threads_are_set_and_their_limits_checked() {
    let Some(torch) = torch() else { return };
    assert!(matches!(torch.set_threads(0), Err(Error::BadArgument { .. })));
    assert!(matches!(torch.set_interop_threads(0), Err(Error::BadArgument { .. })));
    // Each test has a thread of its own, and the first number is that thread's.
    torch.set_threads(2).unwrap();
    assert_eq!(torch.threads().unwrap().0, 2);
    let later = std::thread::spawn(move || torch.threads().unwrap().0);
    assert_eq!(later.join().unwrap(), 2);
    torch.set_threads(1).unwrap();
    assert_eq!(torch.threads().unwrap().0, 1);
    torch.set_interop_threads(1).unwrap();
    assert_eq!(torch.threads().unwrap().1, 1);
    let error = torch.set_interop_threads(1).unwrap_err();
    assert!(matches!(error, Error::BadArgument { .. }), "{error:?}");
}
