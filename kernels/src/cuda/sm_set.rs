//! Which multiprocessors a probe has seen.

use std::fmt;

/// How many words the bitmap of a probe has: room for twice the multiprocessors of the largest GPU.
const WORDS: usize = 16;

/// A set of multiprocessors of one device, by the device's own numbers.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct SmSet {
    words: [u32; WORDS],
}

impl SmSet {
    /// How many bytes a probe writes to; they are words of 32 bits, the lowest first.
    pub const BYTES: usize = WORDS * 4;

    /// The set in the bytes that a probe wrote.
    pub fn from_bytes(bytes: &[u8; SmSet::BYTES]) -> SmSet {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.as_chunks::<4>().0) {
            *word = u32::from_ne_bytes(*bytes);
        }
        SmSet { words }
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.words.iter().map(|it| it.count_ones()).sum()
    }

    /// Their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0..WORDS as u32 * 32).filter(|it| self.words[*it as usize / 32] >> (it % 32) & 1 == 1)
    }

    /// Whether the two have none in both.
    pub fn is_disjoint(&self, other: &SmSet) -> bool {
        self.words.iter().zip(&other.words).all(|(a, b)| a & b == 0)
    }
}

/// As ranges: `{0-15, 18, 20-21}`.
impl fmt::Display for SmSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{")?;
        let mut numbers = self.iter().peekable();
        let mut comma = "";
        while let Some(first) = numbers.next() {
            let mut last = first;
            while let Some(next) = numbers.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{comma}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            comma = ", ";
        }
        write!(f, "}}")
    }
}

impl fmt::Debug for SmSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(numbers: &[u32]) -> SmSet {
        let mut bytes = [0; SmSet::BYTES];
        for number in numbers {
            bytes[*number as usize / 8] |= 1 << (number % 8);
        }
        SmSet::from_bytes(&bytes)
    }

    #[test]
    fn what_was_seen_is_told() {
        let seen = set(&[0, 1, 2, 31, 32, 131, 511]);
        assert_eq!(seen.count(), 7);
        assert_eq!(seen.to_string(), "{0-2, 31-32, 131, 511}");
        assert_eq!(seen.iter().collect::<Vec<_>>(), [0, 1, 2, 31, 32, 131, 511]);
        assert_eq!(set(&[]).to_string(), "{}");
    }

    #[test]
    fn sets_that_share_nothing_are_disjoint() {
        assert!(set(&[0, 64]).is_disjoint(&set(&[1, 65])));
        assert!(!set(&[0, 64]).is_disjoint(&set(&[1, 64])));
        assert!(set(&[]).is_disjoint(&set(&[])));
    }
}
