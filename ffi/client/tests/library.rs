//! The C library as it is built and installed: what it exports, that the headers and Rust agree,
//! and that pkg-config, CMake and a foreign parser of the headers find what they need.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod built;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::mem::offset_of;
use std::process::Command;

use built::{C, CPP, STRICT, has, here, installed, library, run, scratch};
use gpulet_abi::layout::*;
use gpulet_client::capi::{SessionOptions, SubmitOptions};
use gpulet_client::{Dtype, Request, SessionInfo, Status, Tensor, options};

fn words(text: &str) -> BTreeSet<String> {
    text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_')
        .filter(|word| word.starts_with("gpulet_"))
        .map(str::to_owned)
        .collect()
}

/// The functions that client.h declares.
fn declared() -> BTreeSet<String> {
    let header = std::fs::read_to_string(here().join("../../include/gpulet/client.h")).unwrap();
    let found = header.split("GPULET_API ").skip(1).filter_map(|rest| {
        let name = rest.split('(').next()?.split([' ', '*']).next_back()?;
        name.starts_with("gpulet_").then(|| name.to_owned())
    });
    found.collect()
}

#[test]
fn the_library_exports_client_h_and_nothing_else() {
    let declared = declared();
    assert!(declared.len() > 20, "{declared:?}");
    let map = std::fs::read_to_string(here().join("client.map")).unwrap();
    assert_eq!(words(&map), declared);

    let shared = library().join("libgpulet.so.0");
    let dynamic = run(Command::new("nm").args(["-D", "--defined-only"]).arg(&shared));
    for line in dynamic.lines() {
        assert!(line.ends_with("@@GPULET_0.1") || line.ends_with(" A GPULET_0.1"), "{line}");
    }
    let names = dynamic.lines().filter_map(|line| line.split_once(" T ")?.1.split('@').next());
    assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), declared);

    let archive = library().join("libgpulet.a");
    let symbols = run(Command::new("nm").args(["-g", "--defined-only"]).arg(archive));
    let names = symbols.lines().filter_map(|line| line.split(' ').nth(2));
    assert_eq!(names.map(str::to_owned).collect::<BTreeSet<_>>(), declared);
}

#[test]
fn the_shared_library_says_who_it_is_and_is_small() {
    let shared = library().join("libgpulet.so.0");
    let dynamic = run(Command::new("readelf").args(["-dW"]).arg(&shared));
    assert!(dynamic.contains("Library soname: [libgpulet.so.0]"), "{dynamic}");
    assert!(dynamic.contains("BIND_NOW") || dynamic.contains("NOW"), "{dynamic}");
    assert!(!dynamic.contains("TEXTREL") && !dynamic.contains("RUNPATH"), "{dynamic}");
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    for line in needed {
        let known = ["libc.so", "libgcc_s.so", "ld-linux", "libm.so", "libpthread", "libdl"];
        assert!(known.iter().any(|name| line.contains(name)), "{line}");
    }
    assert!(std::fs::metadata(&shared).unwrap().len() < 600_000);
    assert!(std::fs::metadata(library().join("libgpulet.a")).unwrap().len() < 2_000_000);
    let link = std::fs::read_link(library().join("libgpulet.so")).unwrap();
    assert_eq!(link.to_str(), Some("libgpulet.so.0"));
}

/// C that does not compile unless it agrees with Rust.
fn agreement() -> String {
    let mut text = String::from("#include <gpulet.h>\n#include <gpulet.h>\n");
    let mut equal = |left: &str, right: u64| {
        writeln!(text, "GPULET_STATIC_ASSERT({left} == {right}, \"{left}\");").unwrap();
    };
    for status in Status::ALL {
        equal(status.name(), *status as u64);
    }
    for dtype in Dtype::ALL {
        equal(&format!("GPULET_{}", dtype.name().to_uppercase()), u64::from(dtype as u32));
    }
    macro_rules! same {
        ($rust:ty, $c:literal: $($field:ident)*) => {
            equal(concat!("sizeof(", $c, ")"), size_of::<$rust>() as u64);
            $(equal(
                concat!("offsetof(", $c, ", ", stringify!($field), ")"),
                offset_of!($rust, $field) as u64,
            );)*
        };
    }
    same!(SessionOptions, "struct gpulet_session_options": struct_bytes wait socket_path slot_bytes
        slot_count reserved0 spin_ns connect_timeout_ns);
    same!(SubmitOptions, "struct gpulet_submit_options": struct_bytes flags deadline_ns user_data);
    same!(SessionInfo, "struct gpulet_grant": session slot_bytes slot_count abi_version features);
    same!(Tensor, "struct gpulet_tensor": data bytes dtype rank dims);
    same!(Request, "gpulet_request": slot generation);
    same!(Completion, "struct gpulet_completion": status flags slot generation rows model user_data
        queue_ns exec_ns finished_ns batch_rows epoch);
    same!(ModelSpec, "struct gpulet_model_spec": status model max_batch input_count output_count
        slo_ns name text inputs outputs);
    same!(TensorSpec, "struct gpulet_tensor_spec": name dtype rank dims row_bytes);
    equal("GPULET_ABI_VERSION", u64::from(gpulet_abi::version::VERSION));
    equal("GPULET_ABI_MAGIC", u64::from(gpulet_abi::version::MAGIC));
    equal("GPULET_FEATURES", gpulet_abi::version::FEATURES);
    equal("GPULET_NAME_BYTES", NAME_BYTES as u64);
    equal("GPULET_TEXT_BYTES", TEXT_BYTES as u64);
    equal("GPULET_DIMS_MAX", DIMS_MAX as u64);
    equal("GPULET_TENSORS_MAX", TENSORS_MAX as u64);
    equal("GPULET_SLOTS_MAX", u64::from(SLOTS_MAX));
    equal("GPULET_TENSOR_ALIGN", TENSOR_ALIGN);
    equal("GPULET_COMPLETION_LATE", u64::from(COMPLETION_LATE));
    text.push_str("int main(void) { return GPULET_WAIT_BLOCK + GPULET_OK; }\n");
    text
}

#[test]
fn the_headers_agree_with_rust_in_c_and_cpp() {
    let text = agreement();
    for (suffix, compilers) in [("c", &C[..]), ("cpp", &CPP[..])] {
        let source = scratch("agreement").join(format!("agreement.{suffix}"));
        std::fs::write(&source, &text).unwrap();
        for (compiler, standard) in compilers.iter().filter(|(compiler, _)| has(compiler)) {
            let include = installed().join("include");
            let mut command = Command::new(compiler);
            command.args([standard, "-fsyntax-only", "-Wshadow", "-Wconversion"]).args(STRICT);
            run(command.arg("-I").arg(include).arg(&source));
        }
    }
}

#[test]
fn the_documented_defaults_are_the_real_ones() {
    let header = std::fs::read_to_string(here().join("../../include/gpulet/client.h")).unwrap();
    let said = |text: &str| assert!(header.contains(text), "client.h does not say: {text}");
    said(&format!("${}, else {}", options::SOCKET_VARIABLE, options::SOCKET_DEFAULT));
    said(&format!("default {}", options::SLOT_COUNT_DEFAULT));
    assert_eq!(
        (options::SPIN_NS_DEFAULT, options::CONNECT_TIMEOUT_NS_DEFAULT / 1_000_000_000),
        (20_000, 5)
    );
    said("default 20,000");
    said("default 5 s");
    let umbrella = std::fs::read_to_string(here().join("../../include/gpulet.h")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(umbrella.contains(&format!("#define GPULET_VERSION \"{version}\"")));
    for (name, part) in ["MAJOR", "MINOR", "PATCH"].iter().zip(version.split('.')) {
        assert!(umbrella.contains(&format!("#define GPULET_VERSION_{name} {part}\n")));
    }
}

const PROGRAM: &str = r#"#include <gpulet.h>
#include <string.h>
int main(void) {
  gpulet_session *session;
  if (gpulet_abi_version() != GPULET_ABI_VERSION) return 1;
  if (gpulet_session_open(NULL, &session) != GPULET_NO_DAEMON) return 2;
  return strstr(gpulet_error_text(), "nobody.sock") == NULL;
}
"#;

fn program() -> std::path::PathBuf {
    let source = scratch("program").join("main.c");
    std::fs::write(&source, PROGRAM).unwrap();
    source
}

fn nobody(command: &mut Command) -> &mut Command {
    command.env("GPULET_SOCKET", "/nowhere/nobody.sock")
}

#[test]
fn pkg_config_builds_a_program_with_either_library() {
    if !has("pkg-config") {
        return;
    }
    let path = installed().join("lib/pkgconfig");
    let asked = |kind: &[&str]| {
        let mut command = Command::new("pkg-config");
        run(command
            .env("PKG_CONFIG_PATH", &path)
            .args(["--cflags", "--libs"])
            .args(kind)
            .arg("gpulet"))
    };
    let lib = installed().join("lib");
    for (name, kind) in [("shared", &[][..]), ("static", &["--static"][..])] {
        let target = scratch("program").join(name);
        let mut flags = asked(kind);
        if name == "static" {
            flags = flags.replace("-lgpulet", "-l:libgpulet.a");
        }
        let mut command = Command::new("cc");
        command.arg("-std=c11").args(STRICT).arg(program()).arg("-o").arg(&target);
        run(command.args(flags.split_whitespace()));
        run(nobody(&mut Command::new(&target)).env("LD_LIBRARY_PATH", &lib));
        let needed = run(Command::new("readelf").arg("-dW").arg(&target));
        assert_eq!(needed.contains("[libgpulet.so.0]"), name == "shared", "{needed}");
    }
}

#[test]
fn cmake_finds_the_package() {
    if !has("cmake") {
        return;
    }
    let folder = scratch("cmake");
    program();
    let lists = "cmake_minimum_required(VERSION 3.18)\nproject(user C)\n\
                 find_package(gpulet 0.1 REQUIRED)\nfind_package(gpulet 9.0 QUIET)\n\
                 if(gpulet_FOUND)\nmessage(FATAL_ERROR \"9.0 is not there\")\nendif()\n\
                 add_executable(shared ../program/main.c)\nadd_executable(static ../program/main.c)\n\
                 target_link_libraries(shared gpulet::gpulet)\n\
                 target_link_libraries(static gpulet::gpulet_static)\n";
    std::fs::write(folder.join("CMakeLists.txt"), lists).unwrap();
    let build = folder.join("build");
    let _ = std::fs::remove_dir_all(&build);
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(&folder).arg("-B").arg(&build);
    run(configure.arg(format!("-DCMAKE_PREFIX_PATH={}", installed().display())));
    run(Command::new("cmake").arg("--build").arg(&build));
    for name in ["shared", "static"] {
        run(nobody(&mut Command::new(build.join(name))));
    }
}

#[test]
fn a_foreign_parser_reads_the_headers() {
    const PYTHON: &str = "/usr/bin/python3";
    let cffi = Command::new(PYTHON).args(["-c", "import cffi, pycparser"]).output();
    if !has(PYTHON) || !cffi.is_ok_and(|it| it.status.success()) {
        eprintln!("left out: Python's cffi is not installed");
        let all = std::env::var("GPULET_TEST_TOOLS").is_ok_and(|tools| tools == "all");
        assert!(!all, "Python's cffi is not installed");
        return;
    }
    let mut command = Command::new(PYTHON);
    command.arg(here().join("tests/c/foreign.py")).arg(installed().join("include"));
    assert_eq!(run(command.arg(library().join("libgpulet.so.0"))).trim(), "parsed");
}
