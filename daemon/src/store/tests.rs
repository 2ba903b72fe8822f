//! The same bytes, whichever way they were read.

use std::fs;

use super::*;

const ANY: u64 = 1 << 30;

/// Bytes of which no two stretches are alike.
fn bytes_of(count: usize) -> Vec<u8> {
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963);
        (state >> 56) as u8
    };
    (0..count).map(|_| next()).collect()
}

#[test]
fn contents_are_exact_at_every_size_and_by_both_ways() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    let mib = 1 << 20;
    for size in [0, 1, 4095, 4096, mib - 1, mib, mib + 1, 8 * mib, 21 * mib + 777] {
        let written = bytes_of(size);
        fs::write(&path, &written).unwrap();
        for method in [Method::Ring, Method::Plain] {
            let contents = read_by(method, &path, ANY, || {}).unwrap();
            assert!(*contents == *written, "{size} bytes by {method:?}");
            assert_eq!(contents.as_ptr().addr() % 4096, 0);
        }
    }
}

#[test]
fn a_file_that_changes_under_the_reader_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.pt");
    for method in [Method::Ring, Method::Plain] {
        for size in [0, 1 << 20, (5 << 20) + 1, 31 << 20] {
            fs::write(&path, bytes_of(5 << 20)).unwrap();
            let resize = || File::options().write(true).open(&path).unwrap().set_len(size).unwrap();
            let error = read_by(method, &path, ANY, resize).unwrap_err();
            assert!(matches!(error, StoreError::Changed { .. }), "{size} by {method:?}: {error}");
            assert!(error.to_string().contains("model.pt"));
        }
    }
}

#[test]
fn what_is_no_file_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = read(folder.path(), ANY).unwrap_err();
    assert!(matches!(error, StoreError::NotFile { .. }), "{error}");

    let missing = folder.path().join("missing.pt");
    let error = read(&missing, ANY).unwrap_err();
    assert!(error.to_string().contains("missing.pt"), "{error}");

    let path = folder.path().join("large.pt");
    fs::write(&path, [0; 11]).unwrap();
    assert_eq!(read(&path, 11).unwrap().len(), 11);
    let error = read(&path, 10).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { bytes: 11, limit_bytes: 10, .. }), "{error}");
}

#[test]
fn this_machine_reads_through_a_ring_if_it_can() {
    // Says which way the tests above went; both are correct.
    eprintln!("io_uring: {}", if open_ring().is_some() { "used" } else { "refused" });
    let mut chunk = Chunk { offset: 10, end: 20 };
    advance(&mut chunk, 4).unwrap();
    assert_eq!(chunk.offset, 14, "a short read goes on where it ended");
    advance(&mut chunk, -(Errno::INTR.raw_os_error())).unwrap();
    assert_eq!(chunk.offset, 14, "an interrupted read starts again");
    assert_eq!(advance(&mut chunk, 0).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    assert!(advance(&mut chunk, -(Errno::IO.raw_os_error())).is_err());
}
