//! One model directory, checked.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use gpulet_abi::layout::{DIMS_MAX, TENSOR_NAME_BYTES, TENSORS_MAX};
use gpulet_abi::tensor::{Dtype, SlotLayout, row_bytes};
use toml::Spanned;

use super::raw::{RawModel, RawTensor};
use super::{Builtin, DtypeName, Model, Source, Tensor};
use crate::document::Document;
use crate::limits::{DURATION_MAX_NS, Limits, MAX_BATCH_HARD_MAX, WARMUP_COUNT_MAX};

const NS_PER_MS: f64 = 1e6;
const SLO_MIN_MS: f64 = 0.001;

/// Checks the text of a model.toml at `path`; problems are noted in `document`.
pub(super) fn check(
    name: &str,
    path: &Path,
    limits: &Limits,
    document: &mut Document<'_>,
) -> Option<Model> {
    let raw: RawModel = document.parse()?;
    let source = source(&raw, path, document);
    let inputs = tensors("input", &raw.input, document);
    let outputs = tensors("output", &raw.output, document);
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
        stamp,
    };
    check_slot(&model, limits, document);
    if model.source == Source::Builtin(Builtin::Echo) {
        check_echo(&model, &raw, document);
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
        (None, Some(builtin)) => match builtin.get_ref().as_str() {
            "null" => Some((Source::Builtin(Builtin::Null), (0, 0))),
            "echo" => Some((Source::Builtin(Builtin::Echo), (0, 0))),
            other => {
                let rule = format!("must be \"null\" or \"echo\", is {other:?}");
                document.problem("builtin", Some(builtin.span()), rule);
                None
            }
        },
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

fn tensors(
    side: &str,
    list: &Spanned<Vec<Spanned<RawTensor>>>,
    document: &mut Document<'_>,
) -> Option<Vec<Tensor>> {
    let count = list.get_ref().len();
    if count == 0 || count > TENSORS_MAX {
        let rule = format!("must be 1 to {TENSORS_MAX}, are {count}");
        document.problem(side, Some(list.span()), rule);
        return None;
    }
    let mut tensors: Vec<Tensor> = Vec::new();
    let mut whole = true;
    for (index, raw) in list.get_ref().iter().enumerate() {
        let at = format!("{side}[{index}]");
        let raw = raw.get_ref();
        check_tensor_name(&at, &raw.name, &tensors, document);
        match tensor(&at, raw, document) {
            Some(tensor) => tensors.push(tensor),
            None => whole = false,
        }
    }
    whole.then_some(tensors)
}

fn check_tensor_name(
    at: &str,
    name: &Spanned<String>,
    before: &[Tensor],
    document: &mut Document<'_>,
) {
    let text = name.get_ref();
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let rule = if text.is_empty() || text.len() >= TENSOR_NAME_BYTES || !text.bytes().all(allowed) {
        let longest = TENSOR_NAME_BYTES - 1;
        format!("must be 1 to {longest} of letters, digits, '_', '.' and '-', is {text:?}")
    } else if before.iter().any(|tensor| tensor.name == *text) {
        format!("must be unique, {text:?} is taken")
    } else {
        return;
    };
    document.problem(format!("{at}.name"), Some(name.span()), rule);
}

fn tensor(at: &str, raw: &RawTensor, document: &mut Document<'_>) -> Option<Tensor> {
    let dtype = DtypeName::try_from(raw.dtype.get_ref().clone());
    if let Err(rule) = &dtype {
        document.problem(format!("{at}.dtype"), Some(raw.dtype.span()), rule);
    }
    let shape = raw.shape.get_ref();
    let rule = if shape.len() > DIMS_MAX {
        Some(format!("must have at most {DIMS_MAX} dimensions, has {}", shape.len()))
    } else if shape.first() != Some(&-1) {
        Some(format!("must start with -1, the batch dimension, is {shape:?}"))
    } else if shape[1..].iter().any(|dim| *dim < 1) {
        Some(format!("must have dimensions of at least 1 after the first, is {shape:?}"))
    } else if row_bytes(Dtype::I64, &shape[1..]).is_none() {
        Some(format!("must be a row that can be counted in bytes, is {shape:?}"))
    } else {
        None
    };
    if let Some(rule) = rule {
        document.problem(format!("{at}.shape"), Some(raw.shape.span()), rule);
        return None;
    }
    let (dtype, dims) = (dtype.ok()?, shape[1..].to_vec());
    let row_bytes = row_bytes(dtype.0, &dims)?;
    Some(Tensor { name: raw.name.get_ref().clone(), dtype, dims, row_bytes })
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

/// An output of echo is a copy of the input of the same index.
fn check_echo(model: &Model, raw: &RawModel, document: &mut Document<'_>) {
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
