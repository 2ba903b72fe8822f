//! Values that a model may take for indexes or truth: checked in private memory before it sees them.

use gpulet_abi::tensor::Dtype;
use gpulet_kernels::{Part, normalise_bools};

use crate::model::Tensor;

/// Whether values of this type can be indexes or truth values for a model. Operators check such a
/// value and then read it again, so a client must not be able to write them meanwhile.
pub fn is_checked(dtype: Dtype) -> bool {
    match dtype {
        Dtype::I64 | Dtype::I32 | Dtype::Bool => true,
        Dtype::F32 | Dtype::F16 | Dtype::Bf16 | Dtype::U8 => false,
    }
}

/// Makes truth values 0 or 1, and checks that integers are in the input's range.
///
/// # Safety
/// `private` is readable and writable for its length, aligned for the tensor's type, and nothing
/// else touches it meanwhile: memory of this process, not a slot.
///
/// # Errors
/// For the client: which input, which value.
pub unsafe fn check_values(tensor: &Tensor, private: Part) -> Result<(), String> {
    if tensor.dtype.0 == Dtype::Bool {
        // SAFETY: the caller's.
        unsafe { normalise_bools(private) };
        return Ok(());
    }
    let Some((low, high)) = tensor.range else { return Ok(()) };
    // SAFETY: the caller's.
    let bytes = unsafe { std::slice::from_raw_parts(private.data.as_ptr(), private.bytes) };
    let wrong = match tensor.dtype.0 {
        Dtype::I64 => first_outside(bytes, |it: [u8; 8]| i64::from_le_bytes(it), low, high),
        Dtype::I32 => first_outside(bytes, |it: [u8; 4]| i32::from_le_bytes(it).into(), low, high),
        _ => None,
    };
    match wrong {
        None => Ok(()),
        Some(value) => {
            let name = &tensor.name;
            Err(format!("input {name}: values must be {low} to {high}, one is {value}"))
        }
    }
}

/// Fills an input with values that are allowed: zeros where they are.
///
/// # Safety
/// As [`check_values`].
pub unsafe fn make_harmless(tensor: &Tensor, private: Part) {
    // SAFETY: the caller's.
    let bytes = unsafe { std::slice::from_raw_parts_mut(private.data.as_ptr(), private.bytes) };
    let (low, high) = tensor.range.unwrap_or((0, 0));
    let value = 0.clamp(low, high);
    match tensor.dtype.0 {
        Dtype::I64 => bytes.as_chunks_mut().0.fill(value.to_le_bytes()),
        Dtype::I32 => bytes.as_chunks_mut().0.fill((value as i32).to_le_bytes()),
        _ => bytes.fill(0),
    }
}

fn first_outside<const BYTES: usize>(
    bytes: &[u8],
    value: impl Fn([u8; BYTES]) -> i64,
    low: i64,
    high: i64,
) -> Option<i64> {
    let (values, _) = bytes.as_chunks();
    values.iter().map(|bytes| value(*bytes)).find(|value| !(low..=high).contains(value))
}

#[cfg(test)]
mod tests {
    use std::ptr::NonNull;

    use super::*;
    use crate::model::DtypeName;

    fn tensor(dtype: Dtype, range: Option<(i64, i64)>) -> Tensor {
        Tensor {
            name: "ids".to_owned(),
            dtype: DtypeName(dtype),
            dims: vec![],
            row_bytes: 1,
            range,
            normalise: None,
        }
    }

    fn check(dtype: Dtype, range: Option<(i64, i64)>, bytes: &mut [u8]) -> Result<(), String> {
        let tensor = tensor(dtype, range);
        let part = Part { data: NonNull::from(&mut *bytes).cast(), bytes: bytes.len() };
        // SAFETY: borrowed for the call.
        unsafe { check_values(&tensor, part) }
    }

    #[test]
    fn integers_outside_the_range_are_named() {
        let mut ids: Vec<u8> = [3i64, 9, -1].iter().flat_map(|id| id.to_le_bytes()).collect();
        let error = check(Dtype::I64, Some((0, 8)), &mut ids).unwrap_err();
        assert_eq!(error, "input ids: values must be 0 to 8, one is 9");
        assert_eq!(check(Dtype::I64, Some((-1, 9)), &mut ids), Ok(()));
        assert_eq!(check(Dtype::I64, None, &mut ids), Ok(()));
        let mut small: Vec<u8> = [i32::MIN].iter().flat_map(|id| id.to_le_bytes()).collect();
        assert!(check(Dtype::I32, Some((0, 8)), &mut small).is_err());
    }

    #[test]
    fn harmless_values_are_in_the_range() {
        for (range, value) in
            [(None, 0), (Some((-5, 5)), 0), (Some((3, 5)), 3), (Some((-5, -3)), -3)]
        {
            let tensor = tensor(Dtype::I64, range);
            let mut bytes = [7; 16];
            // SAFETY: borrowed for the call.
            unsafe {
                let data = NonNull::from(&mut bytes[..]).cast();
                make_harmless(&tensor, Part { data, bytes: 16 });
            }
            assert_eq!(bytes[8..], i64::to_le_bytes(value));
        }
    }

    #[test]
    fn truth_is_one() {
        let mut truth = [0, 7, 1];
        check(Dtype::Bool, None, &mut truth).unwrap();
        assert_eq!(truth, [0, 1, 1]);
    }
}
