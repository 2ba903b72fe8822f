//! What a precision costs in accuracy: the model's answers to made-up inputs, against its answers in
//! single precision.

use gpulet_abi::tensor::Dtype;
use gpulet_torch::cuda::Placed;
use half::{bf16, f16};

use super::driver::{CudaError, Stream};
use super::lane::{Layouts, Set};
use crate::backend::torch::Spec;
use crate::model::Model;

/// The same inputs at every load.
const SEED: u64 = 0x6770_756c_6574;

/// The tensors of a model in libtorch's terms.
pub(super) struct Specs<'a> {
    pub inputs: &'a [Spec],
    pub outputs: &'a [Spec],
}

/// The largest absolute difference over the largest absolute value of the reference's answer, the
/// worst over all outputs of floating point. Others must be equal to count as no error.
///
/// # Errors
/// What went wrong, for people.
pub(super) fn error(
    model: &Model,
    specs: &Specs<'_>,
    layouts: Layouts,
    rows: u32,
    [reference, placed]: [&Placed; 2],
    stream: &Stream,
) -> Result<f64, String> {
    let set = Set::new(layouts).map_err(|error| error.to_string())?;
    let expected = answer(model, specs, &set, rows, reference, stream)?;
    let given = answer(model, specs, &set, rows, placed, stream)?;
    let mut worst = 0f64;
    for (one, other) in expected.iter().zip(&given) {
        let scale = one.iter().fold(0f64, |scale, value| scale.max(value.abs()));
        let pairs = one.iter().zip(other);
        let difference = pairs.fold(0f64, |worst, (one, other)| {
            let difference = (one - other).abs();
            // Not a number in one of them only is as wrong as can be.
            if difference.is_nan() && one.is_nan() != other.is_nan() {
                f64::INFINITY
            } else {
                worst.max(difference)
            }
        });
        if difference > 0.0 {
            worst = worst.max(difference / scale.max(f64::MIN_POSITIVE));
        }
    }
    Ok(worst)
}

fn answer(
    model: &Model,
    specs: &Specs<'_>,
    set: &Set,
    rows: u32,
    placed: &Placed,
    stream: &Stream,
) -> Result<Vec<Vec<f64>>, String> {
    let text = |error: CudaError| error.to_string();
    let mut random = fastrand::Rng::with_seed(SEED);
    let layout = &set.layouts.device;
    for (place, tensor) in layout.inputs().iter().zip(&model.inputs) {
        let (dtype, dims) = tensor.seen_by_model();
        let sample = sample(dtype, &dims, tensor.range, rows, &mut random);
        let to = set.device.address() + place.offset;
        stream.copy_in_now(&sample, to).map_err(text)?;
    }
    let (inputs, outputs) = (set.inputs(specs.inputs, rows), set.outputs(specs.outputs, rows));
    // SAFETY: the stream is live, and the set's memory is this function's alone.
    let run = unsafe { placed.run(stream.raw(), &inputs, &outputs) };
    // Also after an error: nothing uses the set when this is over.
    let waited = stream.wait();
    run.map_err(|error| error.to_string())?;
    waited.map_err(text)?;
    let mut answers = Vec::new();
    for (place, tensor) in layout.outputs().iter().zip(&model.outputs) {
        let mut bytes = vec![0; (tensor.row_bytes * u64::from(rows)) as usize];
        stream.copy_out_now(set.device.address() + place.offset, &mut bytes).map_err(text)?;
        answers.push(values(tensor.dtype.0, &bytes));
    }
    Ok(answers)
}

/// Values that a model may well be given: floats around 0, indexes that are allowed.
pub(super) fn sample(
    dtype: Dtype,
    dims: &[i64],
    range: Option<(i64, i64)>,
    rows: u32,
    random: &mut fastrand::Rng,
) -> Vec<u8> {
    let row: i64 = dims.iter().product();
    let count = usize::try_from(row).unwrap_or(0) * rows as usize;
    let (low, high) = range.unwrap_or((0, 1));
    let mut bytes = Vec::new();
    for _ in 0..count {
        let float = 2.0 * random.f32() - 1.0;
        match dtype {
            Dtype::F32 => bytes.extend(float.to_le_bytes()),
            Dtype::F16 => bytes.extend(f16::from_f32(float).to_le_bytes()),
            Dtype::Bf16 => bytes.extend(bf16::from_f32(float).to_le_bytes()),
            Dtype::I64 => bytes.extend(random.i64(low..=high).to_le_bytes()),
            Dtype::I32 => bytes.extend((random.i64(low..=high) as i32).to_le_bytes()),
            Dtype::U8 => bytes.push(random.u8(..)),
            Dtype::Bool => bytes.push(u8::from(random.bool())),
        }
    }
    bytes
}

fn values(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    let of = |size: usize, value: fn(&[u8]) -> Option<f64>| {
        bytes.chunks_exact(size).filter_map(value).collect()
    };
    match dtype {
        Dtype::F32 => of(4, |it| Some(f32::from_le_bytes(it.try_into().ok()?).into())),
        Dtype::F16 => of(2, |it| Some(f16::from_le_bytes(it.try_into().ok()?).into())),
        Dtype::Bf16 => of(2, |it| Some(bf16::from_le_bytes(it.try_into().ok()?).into())),
        Dtype::I64 => of(8, |it| Some(i64::from_le_bytes(it.try_into().ok()?) as f64)),
        Dtype::I32 => of(4, |it| Some(i32::from_le_bytes(it.try_into().ok()?).into())),
        Dtype::U8 | Dtype::Bool => bytes.iter().map(|byte| f64::from(*byte)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_keep_to_the_range() {
        let mut random = fastrand::Rng::with_seed(1);
        let bytes = sample(Dtype::I64, &[3], Some((5, 7)), 50, &mut random);
        let ids = values(Dtype::I64, &bytes);
        assert_eq!(ids.len(), 150);
        assert!(ids.iter().all(|id| (5.0..=7.0).contains(id)));
    }
}
