//! One model directory, checked.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gpulet_abi::tensor::SlotLayout;
use toml::Spanned;

use super::raw::RawModel;
use super::{Builtin, Model, Precision, Source, Tensor, tensor};
use crate::document::Document;
use crate::limits::{DURATION_MAX_NS, Limits, MAX_BATCH_HARD_MAX, WARMUP_COUNT_MAX};

const NS_PER_MS: f64 = 1e6;
const SLO_MIN_MS: f64 = 0.001;
const ERROR_MAX_DEFAULT: f64 = 0.05;

/// Checks the text of a model.toml at `path`; problems are noted in `document`.
pub(super) fn check(
    name: &str,
    path: &Path,
    limits: &Limits,
    document: &mut Document<'_>,
) -> Option<Model> {
    let raw: RawModel = document.parse()?;
    let source = source(&raw, path, document);
    let inputs = tensor::check("input", &raw.input, document);
    let outputs = tensor::check("output", &raw.output, document);
    let (precision, error_max) = precision(&raw, document);
    let max_batch =
        document.integer_u32("max_batch", Some(&raw.max_batch), 1, 1..=MAX_BATCH_HARD_MAX);
    let warmup_count =
        document.integer_u32("warmup_count", Some(&raw.warmup_count), 1, 1..=WARMUP_COUNT_MAX);
    let slo_ns = slo_ns(&raw.slo_ms, document);
    let (source, stamp) = source?;
    let model = Model {
        name: name.to_owned(),
        source,
        slo_ns,
        max_batch,
        warmup_count,
        inputs: inputs?,
        outputs: outputs?,
        precision,
        error_max,
        stamp,
    };
    check_slot(&model, limits, document);
    if let Source::Builtin(builtin) = model.source {
        check_builtin(builtin, &model, &raw, document);
    }
    Some(model)
}

fn slo_ns(slo_ms: &Spanned<f64>, document: &mut Document<'_>) -> u64 {
    let max_ms = DURATION_MAX_NS as f64 / NS_PER_MS;
    let ms = *slo_ms.get_ref();
    if !(SLO_MIN_MS..=max_ms).contains(&ms) {
        let rule = format!("must be {SLO_MIN_MS} to {max_ms} (one hour), is {ms}");
        document.problem("slo_ms", Some(slo_ms.span()), rule);
        return 0;
    }
    (ms * NS_PER_MS).round() as u64
}

fn source(
    raw: &RawModel,
    path: &Path,
    document: &mut Document<'_>,
) -> Option<(Source, (u64, u64))> {
    match (&raw.file, &raw.builtin) {
        (Some(file), None) => archive(file, path, document),
        (None, Some(builtin)) => {
            let word = builtin.get_ref();
            let found = Builtin::ALL.into_iter().find(|it| it.word() == word);
            if found.is_none() {
                let rule =
                    format!("must be {}, is {word:?}", one_of(&Builtin::ALL.map(Builtin::word)));
                document.problem("builtin", Some(builtin.span()), rule);
            }
            found.map(|builtin| (Source::Builtin(builtin), (0, 0)))
        }
        (Some(_), Some(builtin)) => {
            let rule = "must be absent where file is given, exactly one of the two counts";
            document.problem("builtin", Some(builtin.span()), rule);
            None
        }
        (None, None) => {
            document.problem("file", None, "must be given, or builtin");
            None
        }
    }
}

/// Words to choose from, for a message.
fn one_of(words: &[&str]) -> String {
    let mut words: Vec<String> = words.iter().map(|word| format!("{word:?}")).collect();
    let last = words.pop().unwrap_or_default();
    format!("{} or {last}", words.join(", "))
}

/// What to compute in, and the error that may come of it.
fn precision(raw: &RawModel, document: &mut Document<'_>) -> (Precision, f64) {
    let mut precision = Precision::default();
    if let Some(value) = &raw.precision {
        let word = value.get_ref();
        match Precision::ALL.into_iter().find(|it| it.word() == word) {
            Some(found) => precision = found,
            None => {
                let words = one_of(&Precision::ALL.map(Precision::word));
                let rule = format!("must be {words}, is {word:?}");
                document.problem("precision", Some(value.span()), rule);
                // Which one is meant is not known, so error_max may be right.
                return (precision, 0.0);
            }
        }
    }
    let Some(value) = &raw.error_max else {
        let default = if precision == Precision::Fp32 { 0.0 } else { ERROR_MAX_DEFAULT };
        return (precision, default);
    };
    let error_max = *value.get_ref();
    let rule = if precision == Precision::Fp32 {
        "must be absent with precision fp32, against which errors are measured".to_owned()
    } else if !(error_max > 0.0 && error_max <= 1.0) {
        format!("must be above 0 and at most 1, is {error_max}")
    } else {
        return (precision, error_max);
    };
    document.problem("error_max", Some(value.span()), rule);
    (precision, 0.0)
}

fn archive(
    file: &Spanned<String>,
    path: &Path,
    document: &mut Document<'_>,
) -> Option<(Source, (u64, u64))> {
    let archive = path.parent().unwrap_or(Path::new("/")).join(file.get_ref());
    let rule = match std::fs::metadata(&archive) {
        _ if file.get_ref().is_empty() => "must name the archive, is empty".to_owned(),
        Ok(found) if !found.is_file() => {
            format!("must be a regular file, {} is none", archive.display())
        }
        Ok(found) if found.len() == 0 => format!("must not be empty, {} is", archive.display()),
        Ok(found) => {
            let seconds = u64::try_from(found.mtime()).unwrap_or(0);
            let nanoseconds = u64::try_from(found.mtime_nsec()).unwrap_or(0);
            let modified_ns = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
            return Some((Source::File(archive), (modified_ns, found.len())));
        }
        Err(error) => format!("must be a file, {}: {error}", archive.display()),
    };
    document.problem("file", Some(file.span()), rule);
    None
}

fn check_slot(model: &Model, limits: &Limits, document: &mut Document<'_>) {
    let rows = |tensors: &[Tensor]| tensors.iter().map(|tensor| tensor.row_bytes).collect();
    let (inputs, outputs): (Vec<u64>, Vec<u64>) = (rows(&model.inputs), rows(&model.outputs));
    let one = SlotLayout::new(&inputs, &outputs, 1).map(|layout| layout.bytes());
    if one.is_none_or(|bytes| bytes > limits.slot_bytes_max) {
        let bytes = one.map_or("more bytes than can be counted".to_owned(), |b| b.to_string());
        let max = limits.slot_bytes_max;
        let rule = format!("one row must fit limits.slot_bytes_max = {max}, takes {bytes}");
        document.problem("shape", None, rule);
    } else if SlotLayout::new(&inputs, &outputs, model.max_batch).is_none() {
        let rule = format!("{} rows must be countable in bytes", model.max_batch);
        document.problem("max_batch", None, rule);
    }
}

/// A built-in model computes nothing, so that there is nothing to compute it in, and it takes its
/// inputs as they come. An output of echo is a copy of the input of the same index.
fn check_builtin(builtin: Builtin, model: &Model, raw: &RawModel, document: &mut Document<'_>) {
    if let Some(precision) = &raw.precision {
        let rule = "must be absent with builtin, which computes nothing";
        document.problem("precision", Some(precision.span()), rule);
    }
    for (index, input) in raw.input.get_ref().iter().enumerate() {
        if let Some(normalise) = &input.get_ref().normalise {
            let rule = "must be absent with builtin, which takes bytes as they are";
            document.problem(format!("input[{index}].normalise"), Some(normalise.span()), rule);
        }
    }
    if builtin != Builtin::Echo {
        return;
    }
    for (index, output) in model.outputs.iter().enumerate() {
        let same = model
            .inputs
            .get(index)
            .is_some_and(|input| input.dtype == output.dtype && input.dims == output.dims);
        if !same {
            let rule = format!("must have the dtype and shape of input[{index}] with echo");
            let span = raw.output.get_ref().get(index).map(Spanned::span);
            document.problem(format!("output[{index}]"), span, rule);
        }
    }
}
