//! Tensors over memory that the caller owns: a pointer, a dtype and up to eight dimensions.

use std::fmt;
use std::marker::PhantomData;

use crate::sys;

/// The most dimensions a tensor may have.
pub const RANK_MAX: usize = sys::RANK_MAX;

/// The element types that are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32 = 1,
    /// IEEE 754 binary16.
    F16 = 2,
    /// The upper half of a binary32.
    Bf16 = 3,
    /// Signed, 64 bits.
    I64 = 4,
    /// Signed, 32 bits.
    I32 = 5,
    /// Unsigned, 8 bits.
    U8 = 6,
    /// One byte, 0 or 1. Other values are the giver's fault: what a model makes of them is open.
    Bool = 7,
}

impl Dtype {
    /// Every dtype, in the order of their numbers.
    pub const ALL: [Self; 7] =
        [Self::F32, Self::F16, Self::Bf16, Self::I64, Self::I32, Self::U8, Self::Bool];

    /// Bytes of one element; it is also the alignment the memory must have.
    #[must_use]
    pub const fn size_bytes(self) -> usize {
        match self {
            Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::Bf16 => 2,
            Self::U8 | Self::Bool => 1,
        }
    }

    /// The name used in configuration files and messages: `f32`, `bf16`, ...
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::U8 => "u8",
            Self::Bool => "bool",
        }
    }

    pub(crate) fn from_raw(raw: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|dtype| *dtype as i32 == raw)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Rust types that are a dtype as they stand.
///
/// # Safety
/// The type has the size of `DTYPE`, no padding, and every bit pattern is a value of it.
pub unsafe trait Element: Copy {
    /// The dtype this type is stored as.
    const DTYPE: Dtype;
}

// SAFETY: plain numbers of the size of their dtype; all bit patterns are values.
unsafe impl Element for f32 {
    const DTYPE: Dtype = Dtype::F32;
}
// SAFETY: as above.
unsafe impl Element for i64 {
    const DTYPE: Dtype = Dtype::I64;
}
// SAFETY: as above.
unsafe impl Element for i32 {
    const DTYPE: Dtype = Dtype::I32;
}
// SAFETY: as above.
unsafe impl Element for u8 {
    const DTYPE: Dtype = Dtype::U8;
}

/// Why a piece of memory is not the tensor it was said to be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than [`RANK_MAX`].
    #[error("{rank} dimensions given, at most {RANK_MAX} are allowed")]
    Rank {
        /// Dimensions given.
        rank: usize,
    },
    /// The shape needs more bytes than can be addressed.
    #[error("shape {dims:?} is too large")]
    TooLarge {
        /// The shape given.
        dims: Vec<usize>,
    },
    /// The memory is not exactly as long as the shape and the dtype say.
    #[error("{dtype} {dims:?} takes {wanted_bytes} bytes, the memory has {given_bytes}")]
    Length {
        /// The dtype given.
        dtype: Dtype,
        /// The shape given.
        dims: Vec<usize>,
        /// Product of the dimensions times the dtype's size.
        wanted_bytes: usize,
        /// Length of the memory.
        given_bytes: usize,
    },
    /// The memory does not start at a multiple of the dtype's size.
    #[error("memory at {address:#x} is not aligned for {dtype}")]
    Misaligned {
        /// The dtype given.
        dtype: Dtype,
        /// Where the memory starts.
        address: usize,
    },
}

/// Bytes of a dense tensor.
///
/// # Errors
/// [`TensorError::Rank`] and [`TensorError::TooLarge`].
pub fn bytes_of(dtype: Dtype, dims: &[usize]) -> Result<usize, TensorError> {
    if dims.len() > RANK_MAX {
        return Err(TensorError::Rank { rank: dims.len() });
    }
    dims.iter()
        .try_fold(dtype.size_bytes(), |bytes, dim| bytes.checked_mul(*dim))
        .filter(|bytes| isize::try_from(*bytes).is_ok())
        .filter(|_| dims.iter().all(|dim| i64::try_from(*dim).is_ok()))
        .ok_or_else(|| TensorError::TooLarge { dims: dims.to_vec() })
}

fn raw_tensor(
    dtype: Dtype,
    dims: &[usize],
    data: *mut u8,
    len: usize,
) -> Result<sys::Tensor, TensorError> {
    let wanted_bytes = bytes_of(dtype, dims)?;
    if wanted_bytes != len {
        let dims = dims.to_vec();
        return Err(TensorError::Length { dtype, dims, wanted_bytes, given_bytes: len });
    }
    if !data.addr().is_multiple_of(dtype.size_bytes()) {
        return Err(TensorError::Misaligned { dtype, address: data.addr() });
    }
    let mut raw = sys::Tensor {
        data: data.cast(),
        bytes: len as u64,
        dtype: dtype as i32,
        rank: dims.len() as i32,
        dims: [0; RANK_MAX],
    };
    for (to, from) in raw.dims.iter_mut().zip(dims) {
        *to = *from as i64;
    }
    Ok(raw)
}

/// Declares one of the two tensor types; they differ in what a model does with them.
macro_rules! tensor_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        pub struct $name<'a> {
            raw: sys::Tensor,
            memory: PhantomData<&'a mut [u8]>,
        }

        // SAFETY: the value stands for an exclusive borrow of plain bytes, which may change
        // threads; it is not Clone and not Sync, so the borrow stays with one thread at a time.
        unsafe impl Send for $name<'_> {}

        impl<'a> $name<'a> {
            /// A dense, row-major tensor over `data`. Allocates nothing unless it fails.
            ///
            /// # Errors
            /// [`TensorError`] where `data` is not aligned for `dtype`, or not exactly as long as
            /// `dims` and `dtype` say, or where there are more than [`RANK_MAX`] dimensions.
            pub fn new(
                dtype: Dtype,
                dims: &[usize],
                data: &'a mut [u8],
            ) -> Result<Self, TensorError> {
                let raw = raw_tensor(dtype, dims, data.as_mut_ptr(), data.len())?;
                Ok(Self { raw, memory: PhantomData })
            }

            /// The same over a slice of numbers.
            ///
            /// # Errors
            /// As [`Self::new`].
            pub fn from_slice<T: Element>(
                dims: &[usize],
                data: &'a mut [T],
            ) -> Result<Self, TensorError> {
                let len = size_of_val(data);
                let raw = raw_tensor(T::DTYPE, dims, data.as_mut_ptr().cast(), len)?;
                Ok(Self { raw, memory: PhantomData })
            }

            /// The same over `len` bytes at `data`, memory that no Rust reference covers: a slot
            /// of a shared region, say.
            ///
            /// # Errors
            /// As [`Self::new`].
            ///
            /// # Safety
            /// For as long as `'a`, the memory is mapped readable and writable, and this process
            /// does not write to it while a call uses the tensor. Where another process might,
            /// the numbers a model computes are open, and an integer tensor that the model uses
            /// as indexes must not lie there: operators check an index and read it again.
            pub unsafe fn from_raw(
                dtype: Dtype,
                dims: &[usize],
                data: *mut u8,
                len: usize,
            ) -> Result<Self, TensorError> {
                Ok(Self { raw: raw_tensor(dtype, dims, data, len)?, memory: PhantomData })
            }

            /// The element type.
            #[must_use]
            pub fn dtype(&self) -> Dtype {
                // Only raw_tensor writes the field, from a Dtype.
                Dtype::from_raw(self.raw.dtype).unwrap_or(Dtype::U8)
            }

            /// The shape, outermost dimension first.
            pub fn dims(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
                self.raw.dims[..self.raw.rank as usize].iter().map(|dim| *dim as usize)
            }

            #[allow(dead_code, reason = "only inputs are described one by one")]
            pub(crate) fn raw(&self) -> sys::Tensor {
                self.raw
            }

            /// Address and length in bytes of the memory.
            #[must_use]
            pub fn memory(&self) -> (*mut u8, usize) {
                (self.raw.data.cast(), self.raw.bytes as usize)
            }
        }

        impl fmt::Debug for $name<'_> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let dims: Vec<usize> = self.dims().collect();
                write!(f, "{}({} {:?} at {:p})", stringify!($name), self.dtype(), dims,
                    self.raw.data)
            }
        }
    };
}

tensor_type! {
    /// An input: memory that a model reads where it lies.
    ///
    /// A model that works in place (`x.add_(1)`) changes it, hence the exclusive borrow.
    /// `Send`, not `Sync`: one thread at a time.
    TensorRef
}

tensor_type! {
    /// An output: memory that one answer of a model is written to, once.
    ///
    /// `Send`, not `Sync`: one thread at a time.
    TensorMut
}

/// The raw descriptions of a slice of inputs or outputs, with no copy.
pub(crate) fn raw_inputs(inputs: &[TensorRef<'_>]) -> *const sys::Tensor {
    // repr(transparent): a slice of the one is a slice of the other.
    inputs.as_ptr().cast()
}

pub(crate) fn raw_outputs(outputs: &mut [TensorMut<'_>]) -> *const sys::Tensor {
    outputs.as_ptr().cast()
}

/// Dtype and shape of an answer that no memory was given for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// The element type.
    pub dtype: Dtype,
    /// The shape, outermost dimension first.
    pub dims: Vec<usize>,
}

impl fmt::Display for TensorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?}", self.dtype, self.dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_is_as_long_as_its_shape_says() {
        let mut data = [0f32; 6];
        let tensor = TensorRef::from_slice(&[2, 3], &mut data).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32);
        assert_eq!(tensor.dims().collect::<Vec<_>>(), [2, 3]);
        assert_eq!(tensor.memory().1, 24);
        let error = TensorRef::from_slice(&[2, 4], &mut data).unwrap_err();
        assert_eq!(error.to_string(), "f32 [2, 4] takes 32 bytes, the memory has 24");
    }

    #[test]
    fn shapes_that_cannot_be_are_refused() {
        assert_eq!(bytes_of(Dtype::F32, &[]), Ok(4));
        assert_eq!(bytes_of(Dtype::F16, &[0, 7]), Ok(0));
        assert_eq!(bytes_of(Dtype::U8, &[1; 9]), Err(TensorError::Rank { rank: 9 }));
        // A dimension beyond i64 is too large even where another one is zero.
        for huge in [[usize::MAX / 2, 3], [0, usize::MAX]] {
            let refused = TensorError::TooLarge { dims: huge.to_vec() };
            assert_eq!(bytes_of(Dtype::U8, &huge), Err(refused));
        }
    }

    #[test]
    fn memory_must_be_aligned() {
        #[repr(align(8))]
        struct Aligned([u8; 16]);
        let mut memory = Aligned([0; 16]);
        let error = TensorMut::new(Dtype::I32, &[2], &mut memory.0[2..10]).unwrap_err();
        assert!(matches!(error, TensorError::Misaligned { dtype: Dtype::I32, .. }));
        assert!(TensorMut::new(Dtype::I32, &[2], &mut memory.0[4..12]).is_ok());
    }

    #[test]
    fn dtypes_come_back_from_their_numbers() {
        for dtype in Dtype::ALL {
            assert_eq!(Dtype::from_raw(dtype as i32), Some(dtype));
        }
        assert_eq!(Dtype::from_raw(0), None);
        assert_eq!(Dtype::from_raw(8), None);
    }
}
