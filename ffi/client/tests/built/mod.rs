//! The C library, built and installed once for all tests of a binary, and the tools to use it.
#![allow(dead_code, reason = "each test uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Flags that every compilation has to pass.
pub const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Werror", "-pedantic"];
/// C compilers and standards.
pub const C: [(&str, &str); 2] = [("gcc", "-std=c11"), ("clang", "-std=c11")];
/// C++ compilers and standards.
pub const CPP: [(&str, &str); 4] = [
    ("g++", "-std=c++17"),
    ("g++", "-std=c++20"),
    ("clang++", "-std=c++17"),
    ("clang++", "-std=c++20"),
];

/// This crate.
pub fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where a test may write.
pub fn scratch(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder with libgpulet.so.0 and libgpulet.a.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = scratch("lib");
        run(Command::new(here().join("build-lib.sh")).arg(&out));
        out
    })
}

/// A prefix with everything installed.
pub fn installed() -> &'static Path {
    static PREFIX: OnceLock<PathBuf> = OnceLock::new();
    PREFIX.get_or_init(|| {
        let prefix = scratch("prefix");
        let mut install = Command::new(here().join("install-lib.sh"));
        run(install.arg(library()).arg(&prefix).arg(prefix.join("lib")));
        prefix
    })
}

/// Runs a command that must succeed; what it printed.
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{out}\n{err}", output.status);
    out
}

/// Whether a tool is there. Where all of them have to be, GPULET_TEST_TOOLS=all makes a missing one
/// fail its test instead of leaving it out.
pub fn has(tool: &str) -> bool {
    let there = Command::new(tool).arg("--version").output().is_ok_and(|it| it.status.success());
    let all = std::env::var("GPULET_TEST_TOOLS").is_ok_and(|tools| tools == "all");
    assert!(there || !all, "{tool} is not installed");
    if !there {
        eprintln!("left out: {tool} is not installed");
    }
    there
}

/// Compiles and links a program of this crate against the shared library.
pub fn compile(compiler: &str, standard: &str, source: &Path, extra: &[&str]) -> PathBuf {
    let stem = source.file_name().unwrap().to_string_lossy().replace('.', "-");
    let flags = extra.join("").replace(['/', ','], "");
    let program = scratch("bin").join(format!("{stem}{standard}-{compiler}{flags}"));
    run(Command::new(compiler)
        .args([standard, "-g", "-O1"])
        .args(STRICT)
        .args(extra)
        .arg("-I")
        .arg(installed().join("include"))
        .arg(source)
        .args(["-o".as_ref(), program.as_os_str()])
        .arg(format!("-L{}", library().display()))
        .args(["-lgpulet", "-lpthread"])
        .arg(format!("-Wl,-rpath,{}", library().display())));
    program
}
