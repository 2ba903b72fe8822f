//! Element types, and where the tensors of a request lie in its slot.

use crate::layout::{DIMS_MAX, ModelSpec, TENSOR_ALIGN, TENSORS_MAX, TensorSpec};

/// The type of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Dtype {
    /// IEEE 754 single precision.
    F32 = 1,
    /// IEEE 754 half precision.
    F16 = 2,
    /// The upper half of a single.
    Bf16 = 3,
    /// Signed, eight bytes.
    I64 = 4,
    /// Signed, four bytes.
    I32 = 5,
    /// Unsigned, one byte.
    U8 = 6,
    /// One byte, zero or one.
    Bool = 7,
}

impl Dtype {
    /// Every type, in the order of its number.
    pub const ALL: [Dtype; 7] =
        [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::I64, Dtype::I32, Dtype::U8, Dtype::Bool];

    /// The type of a number of abi.h.
    pub fn from_number(number: u32) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| *dtype as u32 == number)
    }

    /// The type of a name as it stands in a model.toml, such as `f32`.
    pub fn from_name(name: &str) -> Option<Dtype> {
        Dtype::ALL.into_iter().find(|dtype| dtype.name() == name)
    }

    /// The name as it stands in a model.toml.
    pub const fn name(self) -> &'static str {
        match self {
            Dtype::F32 => "f32",
            Dtype::F16 => "f16",
            Dtype::Bf16 => "bf16",
            Dtype::I64 => "i64",
            Dtype::I32 => "i32",
            Dtype::U8 => "u8",
            Dtype::Bool => "bool",
        }
    }

    /// Bytes of one element.
    pub const fn bytes(self) -> u64 {
        match self {
            Dtype::I64 => 8,
            Dtype::F32 | Dtype::I32 => 4,
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::U8 | Dtype::Bool => 1,
        }
    }
}

/// The smallest multiple of [`TENSOR_ALIGN`] not below `offset`; `None` on overflow.
pub fn align(offset: u64) -> Option<u64> {
    Some(offset.checked_add(TENSOR_ALIGN - 1)? & !(TENSOR_ALIGN - 1))
}

/// Bytes of one row of a tensor whose dimensions after the batch dimension are `dims`; `None` if a
/// dimension is below one or the product overflows.
pub fn row_bytes(dtype: Dtype, dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(dtype.bytes(), |bytes, dim| {
        u64::try_from(*dim).ok().filter(|dim| *dim > 0).and_then(|dim| bytes.checked_mul(dim))
    })
}

/// Where one tensor of a request lies, relative to the start of its slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extent {
    /// Bytes from the start of the slot; a multiple of [`TENSOR_ALIGN`].
    pub offset: u64,
    /// Bytes of all rows.
    pub bytes: u64,
}

/// Where all tensors of a request lie: inputs in order, then outputs.
///
/// Both sides compute this from the bytes of one row of each tensor and the rows of the request, so
/// no offset ever crosses the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlotLayout {
    extents: [Extent; 2 * TENSORS_MAX],
    input_count: usize,
    output_count: usize,
    bytes: u64,
}

impl SlotLayout {
    /// Lays out `rows` rows; `None` for more tensors than [`TENSORS_MAX`] a side, or on overflow.
    pub fn new(inputs: &[u64], outputs: &[u64], rows: u32) -> Option<SlotLayout> {
        if inputs.len() > TENSORS_MAX || outputs.len() > TENSORS_MAX {
            return None;
        }
        let mut extents = [Extent::default(); 2 * TENSORS_MAX];
        let mut end = 0u64;
        for (extent, row) in extents.iter_mut().zip(inputs.iter().chain(outputs)) {
            let bytes = row.checked_mul(u64::from(rows))?;
            *extent = Extent { offset: align(end)?, bytes };
            end = extent.offset.checked_add(bytes)?;
        }
        let (input_count, output_count) = (inputs.len(), outputs.len());
        Some(SlotLayout { extents, input_count, output_count, bytes: align(end)? })
    }

    /// The layout of `rows` rows of a model as the wire describes it; `None` if that description is
    /// malformed.
    pub fn of_spec(spec: &ModelSpec, rows: u32) -> Option<SlotLayout> {
        let (inputs, outputs) = (spec.inputs()?, spec.outputs()?);
        let bytes = |specs: &[TensorSpec]| {
            let mut rows = [0; TENSORS_MAX];
            for (row, spec) in rows.iter_mut().zip(specs) {
                *row = spec.row_bytes;
            }
            rows
        };
        SlotLayout::new(&bytes(inputs)[..inputs.len()], &bytes(outputs)[..outputs.len()], rows)
    }

    /// Where the inputs lie, in the model's order.
    pub fn inputs(&self) -> &[Extent] {
        &self.extents[..self.input_count]
    }

    /// Where the outputs lie, in the model's order.
    pub fn outputs(&self) -> &[Extent] {
        &self.extents[self.input_count..self.input_count + self.output_count]
    }

    /// Bytes of slot that this takes, a multiple of [`TENSOR_ALIGN`].
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl TensorSpec {
    /// The element type, if the number is one.
    pub fn dtype(&self) -> Option<Dtype> {
        Dtype::from_number(self.dtype)
    }

    /// The dimensions, the batch dimension (-1) first; `None` if `rank` is impossible.
    pub fn dims(&self) -> Option<&[i64]> {
        self.dims.get(..self.rank as usize).filter(|dims| !dims.is_empty())
    }

    /// Whether element type, dimensions and row bytes agree with each other.
    pub fn is_consistent(&self) -> bool {
        let (Some(dtype), Some(dims)) = (self.dtype(), self.dims()) else { return false };
        dims[0] == -1 && row_bytes(dtype, &dims[1..]) == Some(self.row_bytes)
    }
}

impl ModelSpec {
    /// The inputs; `None` if `input_count` is impossible.
    pub fn inputs(&self) -> Option<&[TensorSpec]> {
        self.inputs.get(..self.input_count as usize)
    }

    /// The outputs; `None` if `output_count` is impossible.
    pub fn outputs(&self) -> Option<&[TensorSpec]> {
        self.outputs.get(..self.output_count as usize)
    }

    /// Whether a program can rely on every number in here.
    pub fn is_consistent(&self) -> bool {
        let (Some(inputs), Some(outputs)) = (self.inputs(), self.outputs()) else { return false };
        self.max_batch > 0
            && inputs.iter().chain(outputs).all(TensorSpec::is_consistent)
            && SlotLayout::of_spec(self, self.max_batch).is_some()
    }
}

const _: () = assert!(DIMS_MAX >= 1);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_and_numbers_come_back() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_number(dtype as u32), Some(dtype));
            assert_eq!(Dtype::from_name(dtype.name()), Some(dtype));
        }
        assert_eq!(Dtype::from_number(0), None);
    }

    #[test]
    fn impossible_rows_have_no_bytes() {
        assert_eq!(row_bytes(Dtype::F32, &[3, 224, 224]), Some(602_112));
        assert_eq!(row_bytes(Dtype::F32, &[]), Some(4));
        assert_eq!(row_bytes(Dtype::F32, &[0]), None);
        assert_eq!(row_bytes(Dtype::F32, &[-1]), None);
        assert_eq!(row_bytes(Dtype::I64, &[i64::MAX]), None);
    }

    proptest! {
        #[test]
        fn tensors_are_aligned_ordered_and_disjoint(
            inputs in prop::collection::vec(1u64..100_000, 0..=TENSORS_MAX),
            outputs in prop::collection::vec(1u64..100_000, 0..=TENSORS_MAX),
            rows in 1u32..100,
        ) {
            let layout = SlotLayout::new(&inputs, &outputs, rows).unwrap();
            let mut end = 0;
            for extent in layout.inputs().iter().chain(layout.outputs()) {
                prop_assert_eq!(extent.offset % TENSOR_ALIGN, 0);
                prop_assert!(extent.offset >= end && extent.offset - end < TENSOR_ALIGN);
                end = extent.offset + extent.bytes;
            }
            prop_assert!(layout.bytes() >= end && layout.bytes() - end < TENSOR_ALIGN);
        }

        #[test]
        fn no_numbers_make_it_panic(rows: u32, inputs: [u64; 8], outputs: [u64; 8]) {
            let _ = SlotLayout::new(&inputs, &outputs, rows);
        }
    }
}
