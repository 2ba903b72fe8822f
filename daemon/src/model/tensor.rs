//! Inputs and outputs of a model, checked.

use gpulet_abi::layout::{DIMS_MAX, TENSOR_NAME_BYTES, TENSORS_MAX};
use gpulet_abi::tensor::{Dtype, row_bytes};
use toml::Spanned;

use super::raw::RawTensor;
use super::{DtypeName, Normalise, Tensor};
use crate::document::Document;

/// Most channels of an image that is normalised.
const CHANNELS_MAX: i64 = 4;

/// Checks all inputs or all outputs.
pub(super) fn check(
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
            Some(mut tensor) => {
                if side == "input" {
                    tensor.range = range(&at, raw, &tensor, document);
                    tensor.normalise = normalise(&at, raw, &tensor, document);
                } else {
                    refuse_on_output(&at, raw, document);
                }
                tensors.push(tensor);
            }
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
    let name = raw.name.get_ref().clone();
    Some(Tensor { name, dtype, dims, row_bytes, range: None, normalise: None })
}

/// What is about what clients send says nothing about what they get.
fn refuse_on_output(at: &str, raw: &RawTensor, document: &mut Document<'_>) {
    let range = raw.range.as_ref().map(Spanned::span);
    let normalise = raw.normalise.as_ref().map(Spanned::span);
    for (key, span) in [("range", range), ("normalise", normalise)] {
        if span.is_some() {
            document.problem(format!("{at}.{key}"), span, "must be absent on an output");
        }
    }
}

fn range(
    at: &str,
    raw: &RawTensor,
    tensor: &Tensor,
    document: &mut Document<'_>,
) -> Option<(i64, i64)> {
    let value = raw.range.as_ref()?;
    let rule = match (tensor.dtype.0, value.get_ref().as_slice()) {
        (Dtype::I32, &[low, high])
            if low <= high && i32::try_from(low).is_ok() && i32::try_from(high).is_ok() =>
        {
            return Some((low, high));
        }
        (Dtype::I64, &[low, high]) if low <= high => return Some((low, high)),
        (Dtype::I64 | Dtype::I32, said) => format!(
            "must be the lowest and the highest {} allowed, is {said:?}",
            tensor.dtype.0.name()
        ),
        (other, _) => format!("must be absent with {}, is for i64 and i32", other.name()),
    };
    document.problem(format!("{at}.range"), Some(value.span()), rule);
    None
}

fn normalise(
    at: &str,
    raw: &RawTensor,
    tensor: &Tensor,
    document: &mut Document<'_>,
) -> Option<Normalise> {
    let value = raw.normalise.as_ref()?;
    let channels = tensor.dims.get(2).copied().unwrap_or(0);
    let is_image = tensor.dims.len() == 3 && (1..=CHANNELS_MAX).contains(&channels);
    let rule = if tensor.dtype.0 != Dtype::U8 {
        Some(format!("must be absent with {}, is for u8", tensor.dtype.0.name()))
    } else if !is_image {
        Some(format!("must be on shape [-1, H, W, C] with C = 1 to {CHANNELS_MAX}"))
    } else {
        None
    };
    if let Some(rule) = rule {
        document.problem(format!("{at}.normalise"), Some(value.span()), rule);
        return None;
    }
    let finite = |number: f32| number.is_finite();
    // What is divided by must have an inverse: no denormal does.
    let positive = |number: f32| number.is_normal() && number > 0.0;
    let at = |key: &str| format!("{at}.normalise.{key}");
    let raw = value.get_ref();
    let mean = per_channel(&at("mean"), &raw.mean, channels, "finite", finite, document);
    let std = per_channel(&at("std"), &raw.std, channels, "finite and above 0", positive, document);
    Some(Normalise { mean: mean?, std: std? })
}

/// One number for each channel, as a kernel has it.
fn per_channel(
    field: &str,
    value: &Spanned<Vec<f64>>,
    channels: i64,
    what: &str,
    good: impl Fn(f32) -> bool,
    document: &mut Document<'_>,
) -> Option<Vec<f32>> {
    // Rounded to single precision first: that may be zero or infinite where a double is not.
    let numbers: Vec<f32> = value.get_ref().iter().map(|number| *number as f32).collect();
    if numbers.len() as i64 == channels && numbers.iter().all(|number| good(*number)) {
        return Some(numbers);
    }
    let rule = format!("must be {channels} numbers, {what}, is {:?}", value.get_ref());
    document.problem(field, Some(value.span()), rule);
    None
}
