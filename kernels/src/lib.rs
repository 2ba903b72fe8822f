//! Device kernels of gpulet and their CPU twins.
//!
//! A batch is put together from the slots of several requests ([`gather`]) and its results are
//! taken apart into them again ([`scatter`]). On the CPU that is one pass of plain copies; slots
//! may belong to hostile clients, so nothing in here looks at what it copies, except
//! [`normalise_bools`].
//!
//! Slots are memory that another process may write at any time. What a copy of such memory holds is
//! then open, byte by byte; that is the whole damage, as every value of a byte is a value.

use std::ptr::{self, NonNull};

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
    let mut filled = 0usize;
    for part in parts {
        assert!(part.bytes <= into.bytes - filled, "the parts do not fit");
        // SAFETY: readable, writable and apart by the contract; inside `into` by the assert.
        unsafe {
            ptr::copy_nonoverlapping(
                part.data.as_ptr(),
                into.data.as_ptr().add(filled),
                part.bytes,
            );
        }
        filled += part.bytes;
    }
    filled as u64
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
    let mut taken = 0usize;
    for part in parts {
        assert!(part.bytes <= from.bytes - taken, "the parts are too long");
        // SAFETY: readable, writable and apart by the contract; inside `from` by the assert.
        unsafe {
            ptr::copy_nonoverlapping(from.data.as_ptr().add(taken), part.data.as_ptr(), part.bytes);
        }
        taken += part.bytes;
    }
    taken as u64
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
