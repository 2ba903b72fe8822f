//! Number formats, and conversions between them: the twin of `cuda/float.cuh`.
//!
//! To the nearest, ties to even, subnormals kept; a NaN keeps its sign and the top of its payload
//! and becomes quiet.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// A format of real numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Float {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16.
    F16 = 1,
    /// The upper half of a binary32.
    Bf16 = 2,
}

impl Float {
    /// How many bytes a number takes.
    pub const fn bytes(self) -> usize {
        match self {
            Float::F32 => 4,
            Float::F16 | Float::Bf16 => 2,
        }
    }
}

/// What happens to each element on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Cast {
    /// Nothing: bytes are copied, and an element is a byte.
    None = 0,
    /// f32 becomes f16.
    F32ToF16 = 1,
    /// f32 becomes bf16.
    F32ToBf16 = 2,
    /// f16 becomes f32.
    F16ToF32 = 3,
    /// bf16 becomes f32.
    Bf16ToF32 = 4,
}

impl Cast {
    /// Every cast there is.
    pub const ALL: [Cast; 5] =
        [Cast::None, Cast::F32ToF16, Cast::F32ToBf16, Cast::F16ToF32, Cast::Bf16ToF32];

    /// The cast that turns `from` into `to`; between the two halves there is none.
    pub const fn between(from: Float, to: Float) -> Option<Cast> {
        match (from, to) {
            (Float::F32, Float::F32) | (Float::F16, Float::F16) | (Float::Bf16, Float::Bf16) => {
                Some(Cast::None)
            }
            (Float::F32, Float::F16) => Some(Cast::F32ToF16),
            (Float::F32, Float::Bf16) => Some(Cast::F32ToBf16),
            (Float::F16, Float::F32) => Some(Cast::F16ToF32),
            (Float::Bf16, Float::F32) => Some(Cast::Bf16ToF32),
            (Float::F16, Float::Bf16) | (Float::Bf16, Float::F16) => None,
        }
    }

    /// How many bytes an element takes before the cast.
    pub const fn bytes_before(self) -> usize {
        match self {
            Cast::None => 1,
            Cast::F32ToF16 | Cast::F32ToBf16 => 4,
            Cast::F16ToF32 | Cast::Bf16ToF32 => 2,
        }
    }

    /// How many bytes an element takes after the cast.
    pub const fn bytes_after(self) -> usize {
        match self {
            Cast::None => 1,
            Cast::F32ToF16 | Cast::F32ToBf16 => 2,
            Cast::F16ToF32 | Cast::Bf16ToF32 => 4,
        }
    }
}

/// How many elements are converted at a time, on the stack.
pub(crate) const RUN: usize = 256;

/// A 16-bit format, and the conversions of it.
pub(crate) trait Half: Copy {
    fn narrow(from: &[f32], to: &mut [Self]);
    fn widen(from: &[Self], to: &mut [f32]);
}

impl Half for f16 {
    fn narrow(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }

    fn widen(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}

impl Half for bf16 {
    fn narrow(from: &[f32], to: &mut [bf16]) {
        to.convert_from_f32_slice(from);
    }

    fn widen(from: &[bf16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }
}
