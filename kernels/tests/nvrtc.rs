//! The kernels are compiled, cached and found again, without a GPU.
//!
//! GPULET_NVRTC names the NVRTC to compile by (the library, or a folder: CUDA's, or that of torch);
//! without it the system's is taken. GPULET_REQUIRE_NVRTC=1 makes its absence a failure.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use gpulet_kernels::cuda::{Arch, CompileError, Cubin, Kernel, Origin, driver};

const PATH_VARIABLE: &str = "GPULET_NVRTC";
const REQUIRE_VARIABLE: &str = "GPULET_REQUIRE_NVRTC";

const HOPPER: Arch = Arch { major: 9, minor: 0 };

fn nvrtc() -> Option<PathBuf> {
    std::env::var_os(PATH_VARIABLE).map(PathBuf::from)
}

/// The kernels for `arch`, or nothing (said loudly) where there is no NVRTC.
fn compile(arch: Arch, cache: &Path) -> Option<Cubin> {
    match Cubin::compile(arch, cache, nvrtc().as_deref()) {
        Ok(cubin) => Some(cubin),
        Err(error @ CompileError::Missing { .. }) => {
            let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
            assert!(!required, "{REQUIRE_VARIABLE}=1, but {error}");
            // Not by eprintln!, which is shown only for a test that fails.
            let _ = writeln!(io::stderr(), "SKIP: what compiles kernels: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn holds(code: &[u8], text: &str) -> bool {
    code.windows(text.len()).any(|it| it == text.as_bytes())
}

#[test]
fn every_kernel_compiles_for_every_architecture_without_a_warning() {
    let cache = tempfile::tempdir().unwrap();
    for (major, minor) in [(8, 0), (9, 0), (10, 0)] {
        let Some(cubin) = compile(Arch { major, minor }, cache.path()) else { return };
        assert_eq!(cubin.log(), "");
        assert_eq!(cubin.code()[..4], *b"\x7fELF");
        for kernel in Kernel::ALL {
            let section = format!(".text.{}\0", kernel.name().to_str().unwrap());
            assert!(holds(cubin.code(), &section), "no {section} for sm_{major}{minor}");
        }
    }
    assert_eq!(fs::read_dir(cache.path()).unwrap().count(), 3);
}

#[test]
fn what_was_compiled_once_is_taken_from_disk_unless_it_is_damaged() {
    let cache = tempfile::tempdir().unwrap();
    let Some(first) = compile(HOPPER, cache.path()) else { return };
    assert!(matches!(first.origin(), Origin::Compiled), "{:?}", first.origin());
    let again = compile(HOPPER, cache.path()).unwrap();
    assert!(matches!(again.origin(), Origin::Cache), "{:?}", again.origin());
    assert_eq!(again.code(), first.code());

    let file = fs::read_dir(cache.path()).unwrap().next().unwrap().unwrap().path();
    let mut whole = fs::read(&file).unwrap();
    *whole.last_mut().unwrap() ^= 1;
    fs::write(&file, &whole).unwrap();
    let damaged = compile(HOPPER, cache.path()).unwrap();
    assert!(matches!(damaged.origin(), Origin::Compiled), "{:?}", damaged.origin());
    assert_eq!(damaged.code(), first.code());
    let mended = compile(HOPPER, cache.path()).unwrap();
    assert!(matches!(mended.origin(), Origin::Cache), "{:?}", mended.origin());
}

#[test]
fn a_cache_that_cannot_be_written_is_done_without() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let Some(cubin) = compile(HOPPER, file.path()) else { return };
    assert!(matches!(cubin.origin(), Origin::NotKept(_)), "{:?}", cubin.origin());
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let cache = tempfile::tempdir().unwrap();
    let arch = Arch { major: 3, minor: 5 };
    let error = Cubin::compile(arch, cache.path(), nvrtc().as_deref()).unwrap_err();
    if matches!(error, CompileError::Missing { .. }) {
        return;
    }
    let error = error.to_string();
    assert!(error.contains("does not compile for sm_35, only for sm_"), "{error}");
    assert!(error.contains("sm_90"), "{error}");
}

#[test]
fn a_missing_library_is_said_to_be_missing_and_where() {
    let empty = tempfile::tempdir().unwrap();
    let torch = empty.path().join("torch");
    fs::create_dir(&torch).unwrap();
    let error = Cubin::compile(HOPPER, empty.path(), Some(&torch)).unwrap_err().to_string();
    assert!(error.starts_with("no NVRTC: libnvrtc.so.13 or "), "{error}");
    let beside = torch.join("../nvidia/cu13/lib");
    assert!(error.contains(beside.to_str().unwrap()), "{error}");
    assert!(error.contains("give the path of libnvrtc.so.13 or of the torch folder"), "{error}");
}

#[test]
fn a_library_that_is_none_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libnvrtc.so.13");
    fs::write(&path, "not a library").unwrap();
    for given in [path.as_path(), folder.path()] {
        let error = Cubin::compile(HOPPER, folder.path(), Some(given)).unwrap_err();
        assert!(matches!(error, CompileError::Unusable { .. }), "{error}");
        assert!(error.to_string().starts_with(path.to_str().unwrap()), "{error}");
    }
}

/// Asking for a GPU where there is none is answered, and so is asking before the driver is ready.
#[test]
fn a_missing_driver_is_an_error() {
    let error = Arch::of(0).unwrap_err();
    match driver() {
        Ok(()) => assert!(error.to_string().starts_with("cuDeviceGetAttribute of"), "{error}"),
        Err(missing) => {
            assert_eq!(error, missing);
            assert!(error.to_string().starts_with("no CUDA driver: libcuda.so.1"), "{error}");
        }
    }
}
