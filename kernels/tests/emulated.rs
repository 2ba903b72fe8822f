//! The selfcheck, and so every kernel against its CPU twin, on an emulation of a GPU: the same
//! sources, compiled for the host.
//!
//! Needs NVRTC (see tests/nvrtc.rs) and a C++ compiler.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{self, Write};
use std::path::Path;
use std::process::Command;

use gpulet_kernels::cuda::driver;

#[allow(dead_code, reason = "its own main, and what measures")]
#[path = "../examples/selfcheck/main.rs"]
mod selfcheck;

const REQUIRE_VARIABLE: &str = "GPULET_REQUIRE_NVRTC";

fn skip(reason: &str) {
    let required = std::env::var_os(REQUIRE_VARIABLE).is_some_and(|value| value == "1");
    assert!(!required, "{REQUIRE_VARIABLE}=1, but {reason}");
    let _ = writeln!(io::stderr(), "SKIP: kernels on an emulated GPU: {reason}");
}

/// Compiles the emulation. It stops at an access that is not aligned to its word, as a GPU would.
fn build(library: &Path) -> Result<(), String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/emulator");
    let compiler = std::env::var_os("CXX").unwrap_or("c++".into());
    let built = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-shared", "-fPIC", "-pthread"])
        .args(["-fsanitize=alignment", "-fsanitize-undefined-trap-on-error"])
        .args(["-Wl,-soname,libcuda.so", "-I"])
        .arg(&source)
        .arg(source.join("cuda.cc"))
        .arg("-o")
        .arg(library)
        .status();
    match built {
        Ok(status) => {
            assert!(status.success(), "the emulation does not compile");
            Ok(())
        }
        Err(error) => Err(format!("no C++ compiler {}: {error}", compiler.display())),
    }
}

#[test]
fn every_kernel_does_what_its_twin_does() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libcuda.so");
    if let Err(reason) = build(&library) {
        return skip(&reason);
    }
    // SAFETY: our own library. It has the name that the driver is opened by, and what is open under
    // a name is what that name opens.
    let library = unsafe { libloading::Library::new(&library) }.unwrap();
    driver().unwrap();
    let options = selfcheck::Options { rounds: 12, measure: false, ..Default::default() };
    match selfcheck::run(&options) {
        Ok(failed) => assert_eq!(failed, 0, "see the lines with FAIL"),
        Err(reason) => skip(&reason),
    }
    // It stays: the driver's functions are looked up once and kept.
    std::mem::forget(library);
}
