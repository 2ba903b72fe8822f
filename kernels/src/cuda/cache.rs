//! Machine code on disk: one file a program, named by everything that makes it what it is.
//!
//! A file is written whole and then given its name, and carries a sum over itself: one that was cut
//! short, damaged, or that is another's is as good as none. The sum guards against accidents; who
//! may write to the folder is trusted with the GPU.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// First in each file; another format gets another mark.
const MARK: [u8; 8] = *b"gpulet\0\x01";
/// The mark, the key, and the sum over what follows.
const HEADER_BYTES: usize = MARK.len() + 16 + 16;

/// A sum of 128 bits over everything it was fed, in order: FNV-1a.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sum(u128);

impl Sum {
    /// Over nothing.
    pub const EMPTY: Sum = Sum(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);

    /// Over `bytes` too. Their number is fed with them, so that no two ways to cut the same bytes
    /// into pieces are alike.
    pub fn with(self, bytes: &[u8]) -> Sum {
        let length = (bytes.len() as u64).to_le_bytes();
        let step = |sum: u128, byte: &u8| {
            (sum ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
        };
        Sum(length.iter().chain(bytes).fold(self.0, step))
    }
}

fn place(folder: &Path, key: Sum) -> PathBuf {
    folder.join(format!("{:032x}.cubin", key.0))
}

/// What was stored under `key`, if it is there and whole.
pub fn load(folder: &Path, key: Sum) -> Option<Vec<u8>> {
    let mut file = fs::read(place(folder, key)).ok()?;
    if file.len() < HEADER_BYTES {
        return None;
    }
    let data = file.split_off(HEADER_BYTES);
    (file == header(key, &data)).then_some(data)
}

/// Stores `data` under `key`, instead of whatever is there. Makes the folder if there is none.
pub fn store(folder: &Path, key: Sum, data: &[u8]) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&header(key, data))?;
    file.write_all(data)?;
    file.persist(place(folder, key))?;
    Ok(())
}

fn header(key: Sum, data: &[u8]) -> Vec<u8> {
    let sum = Sum::EMPTY.with(data);
    [&MARK[..], &key.0.to_le_bytes(), &sum.0.to_le_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(number: u8) -> Sum {
        Sum::EMPTY.with(&[number])
    }

    #[test]
    fn what_was_stored_is_loaded_by_its_key_only() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("made/when/needed");
        assert_eq!(load(&inner, key(1)), None);
        store(&inner, key(1), b"code").unwrap();
        assert_eq!(load(&inner, key(1)).unwrap(), b"code");
        assert_eq!(load(&inner, key(2)), None);
        fs::rename(place(&inner, key(1)), place(&inner, key(2))).unwrap();
        assert_eq!(load(&inner, key(2)), None, "another's file under this name");
        store(&inner, key(2), b"").unwrap();
        store(&inner, key(2), b"newer").unwrap();
        assert_eq!(load(&inner, key(2)).unwrap(), b"newer");
        assert_eq!(fs::read_dir(&inner).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn pieces_are_told_apart() {
        let sum =
            |pieces: &[&str]| pieces.iter().fold(Sum::EMPTY, |sum, it| sum.with(it.as_bytes()));
        assert_ne!(sum(&["ab", "c"]), sum(&["a", "bc"]));
        assert_ne!(sum(&["ab", ""]), sum(&["ab"]));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(store(file.path(), key(1), b"code").is_err());
        assert_eq!(load(file.path(), key(1)), None);
    }

    proptest! {
        /// One bit over, or cut short, or longer: no such file is trusted.
        #[test]
        fn damage_is_noticed(
            data in proptest::collection::vec(any::<u8>(), 0..200),
            place_of in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<bool>(),
        ) {
            let folder = tempfile::tempdir().unwrap();
            store(folder.path(), key(1), &data).unwrap();
            let path = place(folder.path(), key(1));
            let mut file = fs::read(&path).unwrap();
            let at = place_of.index(file.len());
            if cut {
                file.truncate(at);
            } else {
                file[at] ^= 1u8 << bit;
            }
            fs::write(&path, &file).unwrap();
            prop_assert_eq!(load(folder.path(), key(1)), None);
            store(folder.path(), key(1), &data).unwrap();
            prop_assert_eq!(load(folder.path(), key(1)), Some(data));
        }
    }
}
