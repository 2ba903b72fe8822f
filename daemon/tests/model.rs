//! Every rule of model.toml and of directories of models.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use gpulet_abi::tensor::Dtype;
use gpulet_daemon::limits::Limits;
use gpulet_daemon::model::{self, Builtin, Model, ModelError, Normalise, Precision, Source};
use proptest::prelude::*;
use tempfile::TempDir;

const PATH: &str = "/models/m/model.toml";

const GOOD: &str = r#"builtin = "null"
slo_ms = 50.0
max_batch = 32
warmup_count = 3
[[input]]
name = "image"
dtype = "f32"
shape = [-1, 1, 8, 8]
[[output]]
name = "logits"
dtype = "f32"
shape = [-1, 10]
"#;

fn parse(text: &str) -> Result<Model, ModelError> {
    model::parse("m", Path::new(PATH), text, &Limits::default())
}

/// Asserts that GOOD with `from` replaced by `to` breaks exactly this rule.
fn refused(from: &str, to: &str, line: usize, field: &str, rule: &str) {
    assert!(GOOD.contains(from), "{from}");
    let message = parse(&GOOD.replacen(from, to, 1)).expect_err(to).to_string();
    let line = if line == 0 { String::new() } else { format!("{line}:") };
    assert_eq!(message, format!("{PATH}:{line} {field}: {rule}"), "for {to}");
}

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models")
}

#[test]
fn a_good_one_is_understood() {
    let model = parse(GOOD).unwrap();
    assert_eq!(model.name, "m");
    assert_eq!(model.source, Source::Builtin(Builtin::Null));
    assert_eq!((model.slo_ns, model.max_batch, model.warmup_count), (50_000_000, 32, 3));
    assert_eq!(model.inputs[0].dims, [1, 8, 8]);
    assert_eq!((model.inputs[0].row_bytes, model.outputs[0].row_bytes), (256, 40));
    let whole = parse(&GOOD.replace("50.0", "50")).unwrap();
    assert_eq!(whole.slo_ns, 50_000_000);
}

#[test]
fn the_shipped_models_are_good() {
    let models = model::scan(&[shipped()], &Limits::default()).unwrap();
    let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["digits", "echo", "null"]);
    let Source::File(archive) = &models[0].source else { panic!("digits has an archive") };
    assert_eq!(models[0].stamp.1, fs::metadata(archive).unwrap().len());
    assert!(models[0].stamp.0 > 0);
    assert_eq!(models[1].source, Source::Builtin(Builtin::Echo));
    assert_eq!(models[2].inputs[0].row_bytes, 64);
}

#[test]
fn numbers_have_ranges() {
    for number in ["0", "-1", "0.0009", "3600000.5", "nan", "inf", "-inf"] {
        let said = number.to_lowercase().replace("nan", "NaN");
        let rule = format!("must be 0.001 to 3600000 (one hour), is {said}");
        refused("50.0", number, 2, "slo_ms", &rule);
    }
    for (from, field, line, high) in
        [("32", "max_batch", 3, 1024), ("= 3\n", "warmup_count", 4, 100)]
    {
        for number in [-1, 0, high + 1] {
            let to = from.replace(|c: char| c.is_ascii_digit(), "").replacen('\n', "", 1);
            let to = format!("{to}{number}\n");
            let from = if field == "max_batch" { "32\n" } else { from };
            let rule = format!("must be 1 to {high}, is {number}");
            refused(from, &to, line, field, &rule);
        }
    }
}

#[test]
fn there_is_one_source() {
    let rule = "must be absent where file is given, exactly one of the two counts";
    refused("builtin = \"null\"", "file='x'\nbuiltin='echo'", 2, "builtin", rule);
    refused("builtin = \"null\"", "", 0, "file", "must be given, or builtin");
    let rule = "must be \"null\", \"echo\", \"fault\" or \"hang\", is \"other\"";
    refused("\"null\"", "'other'", 1, "builtin", rule);
    refused("builtin = \"null\"", "file = ''", 1, "file", "must name the archive, is empty");
    let message = parse(&GOOD.replace("builtin = \"null\"", "file = 'gone.pt'")).unwrap_err();
    let message = message.to_string();
    assert!(message.contains(":1: file: must be a file, /models/m/gone.pt: "), "{message}");
}

#[test]
fn archives_are_regular_files_with_content() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.toml");
    let parse = |file: &str| {
        let text = GOOD.replace("builtin = \"null\"", &format!("file = '{file}'"));
        model::parse("m", &path, &text, &Limits::default())
    };
    fs::write(folder.path().join("model.pt"), "x").unwrap();
    fs::write(folder.path().join("empty.pt"), "").unwrap();
    let model = parse("model.pt").unwrap();
    assert_eq!(model.source, Source::File(folder.path().join("model.pt")));
    assert_eq!(model.stamp.1, 1);
    assert!(parse("empty.pt").unwrap_err().to_string().contains("must not be empty"));
    assert!(parse(".").unwrap_err().to_string().contains("must be a regular file"));
}

#[test]
fn tensors_have_rules() {
    let rule =
        |shape: &str| format!("must have dimensions of at least 1 after the first, is {shape}");
    refused("[-1, 10]", "[-1, 0]", 12, "output[0].shape", &rule("[-1, 0]"));
    refused("[-1, 10]", "[-1, -1]", 12, "output[0].shape", &rule("[-1, -1]"));
    let rule = |shape: &str| format!("must start with -1, the batch dimension, is {shape}");
    refused("[-1, 1, 8, 8]", "[1, 8]", 8, "input[0].shape", &rule("[1, 8]"));
    refused("[-1, 1, 8, 8]", "[]", 8, "input[0].shape", &rule("[]"));
    let nine = "[-1, 1, 1, 1, 1, 1, 1, 1, 1]";
    let rule = "must have at most 8 dimensions, has 9";
    refused("[-1, 10]", nine, 12, "output[0].shape", rule);
    let huge = "[-1, 9223372036854775807]";
    let rule = format!("must be a row that can be counted in bytes, is {huge}");
    refused("[-1, 10]", huge, 12, "output[0].shape", &rule);
    let rule = "\"f33\" is no element type (known: f32, f16, bf16, i64, i32, u8, bool)";
    refused("f32", "f33", 7, "input[0].dtype", rule);
    let rule = "must be 1 to 47 of letters, digits, '_', '.' and '-', is \"a b\"";
    refused("image", "a b", 6, "input[0].name", rule);
    let long = "x".repeat(48);
    let rule = rule.replace("a b", &long);
    refused("image", &long, 6, "input[0].name", &rule);
    let twice = "[-1, 10]\n[[output]]\nname='logits'\ndtype='u8'\nshape=[-1]";
    refused("[-1, 10]", twice, 14, "output[1].name", "must be unique, \"logits\" is taken");
}

#[test]
fn there_are_one_to_eight_tensors_a_side() {
    let one = "[[output]]\nname = \"logits\"\ndtype = \"f32\"\nshape = [-1, 10]\n";
    let nine: String = (0..9)
        .map(|index| format!("[[output]]\nname = 't{index}'\ndtype = 'u8'\nshape = [-1]\n"))
        .collect();
    let message = parse(&GOOD.replace(one, &nine)).unwrap_err().to_string();
    assert!(message.contains("output: must be 1 to 8, are 9"), "{message}");
    let message = parse(&GOOD.replace(one, "")).unwrap_err().to_string();
    assert!(message.contains("missing field `output`"), "{message}");
    let empty = GOOD.replace(one, "").replace("slo_ms", "output = []\nslo_ms");
    let message = parse(&empty).unwrap_err().to_string();
    assert!(message.contains(":2: output: must be 1 to 8, are 0"), "{message}");
}

#[test]
fn one_row_fits_a_slot() {
    let rule = "one row must fit limits.slot_bytes_max = 67108864, takes 80000256";
    refused("[-1, 10]", "[-1, 20000000]", 0, "shape", rule);
    let limits = Limits { slot_bytes_max: 512, ..Limits::default() };
    model::parse("m", Path::new(PATH), GOOD, &limits).unwrap();
    let limits = Limits { slot_bytes_max: 511, ..Limits::default() };
    let message = model::parse("m", Path::new(PATH), GOOD, &limits).unwrap_err().to_string();
    assert!(message.contains("must fit limits.slot_bytes_max = 511, takes 512"), "{message}");
}

#[test]
fn echo_answers_what_it_was_asked() {
    let rule = "must have the dtype and shape of input[0] with echo";
    refused("null", "echo", 9, "output[0]", rule);
    parse(&GOOD.replace("null", "echo").replace("[-1, 10]", "[-1, 1, 8, 8]")).unwrap();
}

/// GOOD with an archive instead of the built-in: lines stay where they are.
fn from_archive(folder: &TempDir, from: &str, to: &str) -> Result<Model, ModelError> {
    fs::write(folder.path().join("model.pt"), "x").unwrap();
    let text = GOOD.replace("builtin = \"null\"", "file = 'model.pt'");
    assert!(text.contains(from), "{from}");
    let text = text.replacen(from, to, 1);
    model::parse("m", &folder.path().join("model.toml"), &text, &Limits::default())
}

/// Asserts that it breaks exactly this rule.
fn archive_refused(from: &str, to: &str, said: &str) {
    let folder = tempfile::tempdir().unwrap();
    let message = from_archive(&folder, from, to).expect_err(to).to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.ends_with(&format!("/model.toml:{said}")), "for {to}: {message}");
}

#[test]
fn precision_has_a_bound_on_its_error() {
    let folder = tempfile::tempdir().unwrap();
    let with = |keys: &str| {
        from_archive(&folder, "slo_ms", &format!("{keys}\nslo_ms"))
            .map(|it| (it.precision, it.error_max))
    };
    assert_eq!(with("").unwrap(), (Precision::Fp32, 0.0));
    assert_eq!(with("precision = 'fp32'").unwrap(), (Precision::Fp32, 0.0));
    assert_eq!(with("precision = 'tf32'").unwrap(), (Precision::Tf32, 0.05));
    assert_eq!(with("precision = 'fp16'\nerror_max = 0.02").unwrap(), (Precision::Fp16, 0.02));
    assert_eq!(with("precision = 'bf16'\nerror_max = 1.0").unwrap(), (Precision::Bf16, 1.0));
    let refused = |keys: &str, said: &str| {
        archive_refused("slo_ms", &format!("{keys}\nslo_ms"), said);
    };
    let rule = "2: precision: must be \"fp32\", \"tf32\", \"fp16\" or \"bf16\", is \"int8\"";
    refused("precision = 'int8'\nerror_max = 0.1", rule);
    let rule = "must be absent with precision fp32, against which errors are measured";
    refused("error_max = 0.1", &format!("2: error_max: {rule}"));
    for (number, said) in [("0.0", "0"), ("1.01", "1.01"), ("-0.5", "-0.5"), ("nan", "NaN")] {
        let rule = format!("3: error_max: must be above 0 and at most 1, is {said}");
        refused(&format!("precision = 'fp16'\nerror_max = {number}"), &rule);
    }
}

#[test]
fn indexes_have_a_range() {
    let folder = tempfile::tempdir().unwrap();
    let with = |dtype: &str, range: &str| format!("\"{dtype}\"\nrange = {range}");
    for (dtype, range, read) in [
        ("i64", "[0, 30521]", (0, 30521)),
        ("i64", "[-9223372036854775808, 9223372036854775807]", (i64::MIN, i64::MAX)),
        ("i32", "[7, 7]", (7, 7)),
    ] {
        let model = from_archive(&folder, "\"f32\"", &with(dtype, range)).unwrap();
        assert_eq!(model.inputs[0].range, Some(read));
    }
    for (dtype, range, said) in [
        ("i64", "[1, 0]", "must be the lowest and the highest i64 allowed, is [1, 0]"),
        ("i64", "[1]", "must be the lowest and the highest i64 allowed, is [1]"),
        (
            "i32",
            "[0, 2147483648]",
            "must be the lowest and the highest i32 allowed, is [0, 2147483648]",
        ),
        ("f32", "[0, 1]", "must be absent with f32, is for i64 and i32"),
    ] {
        archive_refused("\"f32\"", &with(dtype, range), &format!("8: input[0].range: {said}"));
    }
    let rule = "13: output[0].range: must be absent on an output";
    archive_refused("[-1, 10]", "[-1, 10]\nrange = [0, 1]", rule);
}

/// An image of two channels.
const IMAGE: &str = "dtype = 'u8'\nshape = [-1, 4, 6, 2]";

fn image(normalise: &str) -> String {
    format!("{IMAGE}\nnormalise = {normalise}")
}

#[test]
fn images_are_normalised() {
    let folder = tempfile::tempdir().unwrap();
    let tensor = "dtype = \"f32\"\nshape = [-1, 1, 8, 8]";
    let given = image("{ mean = [0.5, 0], std = [0.25, 1] }");
    let model = from_archive(&folder, tensor, &given).unwrap();
    let input = &model.inputs[0];
    let normalise = Normalise { mean: vec![0.5, 0.0], std: vec![0.25, 1.0] };
    assert_eq!(input.normalise, Some(normalise));
    assert_eq!((input.dtype.0, &input.dims[..], input.row_bytes), (Dtype::U8, &[4, 6, 2][..], 48));
    assert_eq!(input.seen_by_model(), (Dtype::F32, vec![2, 4, 6]));
    assert_eq!(model.outputs[0].seen_by_model(), (Dtype::F32, vec![10]));
    let text = serde_json::to_string(&model).unwrap();
    assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model);

    let refused = |to: &str, said: &str| archive_refused(tensor, to, said);
    let good = "{ mean = [0.5, 0.5], std = [1.0, 1.0] }";
    let of_f32 = image(good).replace("'u8'", "'f32'");
    refused(&of_f32, "9: input[0].normalise: must be absent with f32, is for u8");
    for shape in ["[-1, 4, 6, 5]", "[-1, 4, 6]", "[-1, 1, 4, 6, 2]"] {
        let rule = "9: input[0].normalise: must be on shape [-1, H, W, C] with C = 1 to 4";
        refused(&image(good).replace("[-1, 4, 6, 2]", shape), rule);
    }
    let rule = "9: input[0].normalise.mean: must be 2 numbers, finite, is [0.5]";
    refused(&image("{ mean = [0.5], std = [1, 1] }"), rule);
    let rule = "9: input[0].normalise.mean: must be 2 numbers, finite, is [1e39, 0.0]";
    refused(&image("{ mean = [1e39, 0], std = [1, 1] }"), rule);
    for std in ["[0.0, 1.0]", "[-1.0, 1.0]", "[1e-40, 1.0]"] {
        let rule = "9: input[0].normalise.std: must be 2 numbers, finite and above 0, is";
        refused(&image(&format!("{{ mean = [0, 0], std = {std} }}")), &format!("{rule} {std}"));
    }
    let rule = "13: output[0].normalise: must be absent on an output";
    archive_refused("[-1, 10]", &format!("[-1, 10]\nnormalise = {good}"), rule);
}

#[test]
fn built_in_models_compute_nothing() {
    for (word, builtin) in [("fault", Builtin::Fault), ("hang", Builtin::Hang)] {
        let model = parse(&GOOD.replace("null", word)).unwrap();
        assert_eq!(model.source, Source::Builtin(builtin));
        assert!(builtin.needs_gpu());
    }
    let rule = "must be absent with builtin, which computes nothing";
    refused("slo_ms", "precision = 'fp32'\nslo_ms", 2, "precision", rule);
    let rule = "must be absent with builtin, which takes bytes as they are";
    let given = image("{ mean = [0, 0], std = [1, 1] }");
    let tensor = "dtype = \"f32\"\nshape = [-1, 1, 8, 8]";
    refused(tensor, &given, 9, "input[0].normalise", rule);
}

/// What was said of a model before these keys came still reads, and says the same.
#[test]
fn defaults_are_not_written() {
    let model = parse(GOOD).unwrap();
    let text = serde_json::to_string(&model).unwrap();
    for key in ["precision", "error_max", "range", "normalise"] {
        assert!(!text.contains(key), "{text}");
    }
    assert_eq!(serde_json::from_str::<Model>(&text).unwrap(), model);
}

#[test]
fn keys_are_known_and_typed() {
    for (from, to, said) in [
        ("slo_ms", "slo", ":2: slo: unknown field `slo`"),
        ("dtype", "type", ":7: input[0].type: unknown field `type`"),
        ("32", "'a'", ":3: max_batch: invalid type: string \"a\""),
        ("[-1, 10]", "[-1, 1.5]", ":12: output[0].shape"),
        ("max_batch = 32", "", "missing field `max_batch`"),
    ] {
        let message = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(message.contains(said), "{message}");
    }
}

fn root(names: &[&str]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for name in names {
        fs::create_dir(root.path().join(name)).unwrap();
        fs::write(root.path().join(name).join("model.toml"), GOOD).unwrap();
    }
    root
}

#[test]
fn models_come_sorted_from_all_roots() {
    let (one, two) = (root(&["b", "a.1"]), root(&["a", "c"]));
    fs::create_dir(one.path().join("no-model")).unwrap();
    fs::write(one.path().join("file"), "").unwrap();
    let roots = [one.path().to_owned(), two.path().to_owned()];
    let models = model::scan(&roots, &Limits::default()).unwrap();
    let names: Vec<_> = models.iter().map(|model| model.name.as_str()).collect();
    assert_eq!(names, ["a", "a.1", "b", "c"]);
}

#[test]
fn a_bad_model_does_not_stop_the_others() {
    let (one, two) = (root(&["good", "Bad Name", "broken", "dangling"]), root(&["good"]));
    fs::write(one.path().join("broken/model.toml"), GOOD.replace("32", "0")).unwrap();
    fs::remove_file(one.path().join("dangling/model.toml")).unwrap();
    symlink("nowhere", one.path().join("dangling/model.toml")).unwrap();
    let missing = one.path().join("missing");
    let roots = [one.path().to_owned(), two.path().to_owned(), missing.clone()];
    let found = model::scan_each(&roots, &Limits::default());
    assert_eq!(found.models.len(), 1);
    let errors: Vec<_> =
        found.errors.iter().map(|(name, error)| (name.as_deref(), error.to_string())).collect();
    let expected: [(Option<&str>, PathBuf, &str); 5] = [
        (Some("Bad Name"), one.path().join("Bad Name/model.toml"), "the directory's name: must"),
        (Some("broken"), one.path().join("broken/model.toml"), "max_batch: must be 1 to 1024"),
        (Some("dangling"), one.path().join("dangling/model.toml"), "cannot be read"),
        (None, two.path().join("good/model.toml"), "must be unique"),
        (None, missing, "cannot be read"),
    ];
    assert_eq!(errors.len(), expected.len(), "{errors:?}");
    for ((name, message), (expected_name, file, rule)) in errors.iter().zip(expected) {
        assert_eq!(*name, expected_name);
        assert!(message.starts_with(file.to_str().unwrap()), "{message}");
        assert!(message.contains(rule), "{message}");
    }
    let message = model::scan(&roots[..1], &Limits::default()).unwrap_err().to_string();
    assert!(message.contains("dangling"), "{message}");
}

#[test]
fn there_are_not_more_models_than_allowed() {
    let root = root(&["a", "b", "c"]);
    let limits = Limits { models_max: 2, ..Limits::default() };
    let found = model::scan_each(&[root.path().to_owned()], &limits);
    assert_eq!(found.models.len(), 2);
    let (name, error) = &found.errors[0];
    assert_eq!(name.as_deref(), Some("c"));
    assert!(error.to_string().contains("is one more model than limits.models_max = 2"));
}

#[test]
fn one_directory_can_be_loaded_by_itself() {
    let root = root(&["a"]);
    let limits = Limits::default();
    assert_eq!(model::load(&root.path().join("a"), &limits).unwrap().name, "a");
    assert_eq!(model::load(&root.path().join("a/../a/."), &limits).unwrap().name, "a");
    let message = model::load(&root.path().join("b"), &limits).unwrap_err().to_string();
    assert!(message.contains("/b: cannot be read"), "{message}");
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_mutation_makes_it_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = GOOD.as_bytes().to_vec();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            match byte % 3 {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        if let Err(error) = parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert!(error.to_string().starts_with(PATH));
        }
    }

    #[test]
    fn no_shape_makes_it_panic(shape in prop::collection::vec(any::<i64>(), 0..10)) {
        let mut shape = shape;
        if let Some(first) = shape.first_mut() {
            *first = -1;
        }
        let _ = parse(&GOOD.replace("[-1, 10]", &format!("{shape:?}")));
    }
}
