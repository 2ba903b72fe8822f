//! The pieces that host memory is registered and copied in.
//!
//! The driver takes each registration for memory of its own and refuses copies that go on in another,
//! so borders are where an address says, for all memory: no copy crosses one.

use std::iter;
use std::ops::Range;

/// Addresses that are multiples of it are the borders of pieces.
const PIECE_BYTES: usize = 4 << 20;

/// The pieces of `bytes` bytes at `address`, as offsets in them.
pub(super) fn pieces(address: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = 0;
    iter::from_fn(move || {
        let piece = start..bytes.min(start + PIECE_BYTES - (address + start) % PIECE_BYTES);
        start = piece.end;
        (!piece.is_empty()).then_some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_end_at_their_borders_and_leave_nothing_out() {
        let of = |address, bytes| -> Vec<(usize, usize)> {
            pieces(address, bytes).map(|piece| (piece.start, piece.end)).collect()
        };
        assert_eq!(of(0, 0), []);
        assert_eq!(of(0, PIECE_BYTES), [(0, PIECE_BYTES)]);
        assert_eq!(of(PIECE_BYTES - 1, 1), [(0, 1)]);
        assert_eq!(of(PIECE_BYTES - 1, 2), [(0, 1), (1, 2)]);
        let (first, second) = (PIECE_BYTES - 10, 2 * PIECE_BYTES - 10);
        let whole = of(3 * PIECE_BYTES + 10, 2 * PIECE_BYTES);
        assert_eq!(whole, [(0, first), (first, second), (second, 2 * PIECE_BYTES)]);
    }
}
