//! Gather, scatter and cast on the CPU: the twin of `cuda/move.cu` and `cuda/bools.cu`.

use std::ptr::{self, NonNull};

use half::{bf16, f16};

use crate::cast::{Cast, Half, RUN};

/// A stretch of memory: one tensor of one request, or of a batch.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// Where it starts.
    pub data: NonNull<u8>,
    /// Its length in bytes.
    pub bytes: usize,
}

impl Part {
    /// No memory at all.
    pub const EMPTY: Part = Part { data: NonNull::dangling(), bytes: 0 };
}

/// Copies `parts` one after another to the start of `into`, and returns how many bytes that was.
///
/// # Panics
/// If they do not fit.
///
/// # Safety
/// Every part is readable and `into` is writable for its length; `into` overlaps none of the parts,
/// and no other thread of this process writes to any of them meanwhile.
pub unsafe fn gather(parts: &[Part], into: Part) -> u64 {
    // SAFETY: the same contract.
    unsafe { gather_cast(parts, into, Cast::None) }
}

/// Copies the start of `from` to `parts`, one after another, and returns how many bytes that was.
///
/// # Panics
/// If they are longer than `from`.
///
/// # Safety
/// `from` is readable and every part is writable for its length; `from` overlaps none of the parts,
/// and no other thread of this process writes to any of them meanwhile.
pub unsafe fn scatter(from: Part, parts: &[Part]) -> u64 {
    // SAFETY: the same contract.
    unsafe { scatter_cast(from, parts, Cast::None) }
}

/// [`gather`], casting each element; returns how many bytes of `into` were written.
///
/// # Panics
/// If they do not fit, or a part is no whole number of elements.
///
/// # Safety
/// As of [`gather`].
pub unsafe fn gather_cast(parts: &[Part], into: Part, cast: Cast) -> u64 {
    let mut filled = 0usize;
    for part in parts {
        let elements = part.bytes / cast.bytes_before();
        assert!(part.bytes.is_multiple_of(cast.bytes_before()), "a part of broken elements");
        assert!(elements <= (into.bytes - filled) / cast.bytes_after(), "the parts do not fit");
        // SAFETY: readable, writable and apart by the contract; inside `into` by the assert.
        unsafe { run(part.data.as_ptr(), into.data.as_ptr().add(filled), elements, cast) };
        filled += elements * cast.bytes_after();
    }
    filled as u64
}

/// [`scatter`], casting each element; returns how many bytes of `from` were read.
///
/// # Panics
/// If the parts are longer than `from`, or one is no whole number of elements.
///
/// # Safety
/// As of [`scatter`].
pub unsafe fn scatter_cast(from: Part, parts: &[Part], cast: Cast) -> u64 {
    let mut taken = 0usize;
    for part in parts {
        let elements = part.bytes / cast.bytes_after();
        assert!(part.bytes.is_multiple_of(cast.bytes_after()), "a part of broken elements");
        assert!(elements <= (from.bytes - taken) / cast.bytes_before(), "the parts are too long");
        // SAFETY: readable, writable and apart by the contract; inside `from` by the assert.
        unsafe { run(from.data.as_ptr().add(taken), part.data.as_ptr(), elements, cast) };
        taken += elements * cast.bytes_before();
    }
    taken as u64
}

/// Casts all of `from` to the start of `into`, and returns how many bytes were written.
///
/// # Panics
/// If it does not fit, or is no whole number of elements.
///
/// # Safety
/// As of [`gather`].
pub unsafe fn cast(from: Part, into: Part, cast: Cast) -> u64 {
    // SAFETY: the same contract.
    unsafe { gather_cast(&[from], into, cast) }
}

/// Makes every byte that is not 0 a 1, as C++ demands of a `bool`.
///
/// # Safety
/// `part` is readable and writable for its length, and nothing else touches it meanwhile: private
/// memory, not a slot.
pub unsafe fn normalise_bools(part: Part) {
    // SAFETY: valid and unshared by the contract.
    let bytes = unsafe { std::slice::from_raw_parts_mut(part.data.as_ptr(), part.bytes) };
    for byte in bytes {
        *byte = u8::from(*byte != 0);
    }
}

/// Casts `elements` elements.
///
/// # Safety
/// So many are readable at `from` and writable at `to`, at any alignment, and do not overlap.
unsafe fn run(from: *const u8, to: *mut u8, elements: usize, cast: Cast) {
    // SAFETY: the same contract.
    unsafe {
        match cast {
            Cast::None => ptr::copy_nonoverlapping(from, to, elements),
            Cast::F32ToF16 => convert(from, to, elements, 0.0, f16::ZERO, f16::narrow),
            Cast::F32ToBf16 => convert(from, to, elements, 0.0, bf16::ZERO, bf16::narrow),
            Cast::F16ToF32 => convert(from, to, elements, f16::ZERO, 0.0, f16::widen),
            Cast::Bf16ToF32 => convert(from, to, elements, bf16::ZERO, 0.0, bf16::widen),
        }
    }
}

/// Converts `elements` elements, a run at a time through the stack: the source may change
/// meanwhile and neither side need be aligned, so that no reference to either is made.
///
/// # Safety
/// As of [`run`]; every value of the bytes of `From` is one of `From`.
unsafe fn convert<From: Copy, To: Copy>(
    from: *const u8,
    to: *mut u8,
    elements: usize,
    from_zero: From,
    to_zero: To,
    function: fn(&[From], &mut [To]),
) {
    let (mut before, mut after) = ([from_zero; RUN], [to_zero; RUN]);
    for start in (0..elements).step_by(RUN) {
        let count = RUN.min(elements - start);
        // SAFETY: inside both by the contract, and inside the arrays; any bytes are a number.
        unsafe {
            let source = from.add(start * size_of::<From>());
            let target = before.as_mut_ptr().cast::<u8>();
            ptr::copy_nonoverlapping(source, target, count * size_of::<From>());
        }
        function(&before[..count], &mut after[..count]);
        // SAFETY: as above.
        unsafe {
            let target = to.add(start * size_of::<To>());
            ptr::copy_nonoverlapping(after.as_ptr().cast(), target, count * size_of::<To>());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(memory: &mut [u8]) -> Part {
        Part { data: NonNull::from(&mut *memory).cast(), bytes: memory.len() }
    }

    #[test]
    fn what_is_gathered_is_scattered_back() {
        let (mut one, mut two, mut batch) = ([1, 2, 3], [4u8], [9; 5]);
        // SAFETY: four arrays of this function.
        let copied = unsafe { gather(&[part(&mut one), part(&mut two)], part(&mut batch)) };
        assert_eq!((copied, batch), (4, [1, 2, 3, 4, 9]));

        let (mut first, mut rest) = ([0], [0; 3]);
        // SAFETY: as above.
        let copied = unsafe { scatter(part(&mut batch), &[part(&mut first), part(&mut rest)]) };
        assert_eq!((copied, first, rest), (4, [1], [2, 3, 4]));
    }

    #[test]
    fn nothing_is_copied_from_no_parts() {
        // SAFETY: no memory is touched.
        unsafe {
            assert_eq!(gather(&[], Part::EMPTY), 0);
            assert_eq!(scatter(Part::EMPTY, &[Part::EMPTY]), 0);
        }
    }

    #[test]
    #[should_panic = "do not fit"]
    fn parts_longer_than_the_batch_are_refused() {
        let (mut one, mut batch) = ([1, 2, 3], [0; 2]);
        // SAFETY: two arrays of this function.
        unsafe { gather(&[part(&mut one)], part(&mut batch)) };
    }

    #[test]
    fn bools_become_zero_or_one() {
        let mut bytes = [0, 1, 2, 255];
        // SAFETY: an array of this function.
        unsafe { normalise_bools(part(&mut bytes)) };
        assert_eq!(bytes, [0, 1, 1, 1]);
    }
}
