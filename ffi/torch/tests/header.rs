//! `shim.h` is C11 and C++17, whatever is included before or after it.

use std::io::{self, Write};
use std::process::{Command, Stdio};

const PROGRAM: &str = r#"
#include "shim.h"
#include "shim.h"
#include <stddef.h>

typedef char size_of_tensor[sizeof(gtorch_tensor) == 88 ? 1 : -1];
typedef char place_of_dims[offsetof(gtorch_tensor, dims) == 24 ? 1 : -1];
typedef char size_of_signature[sizeof(gtorch_signature) == 32 ? 1 : -1];
typedef char size_of_report[sizeof(gtorch_report) == 40 ? 1 : -1];

int32_t use(gtorch_module *module, gtorch_tensor *tensor);
int32_t use(gtorch_module *module, gtorch_tensor *tensor) {
  gtorch_report report;
  return gtorch_module_run(module, tensor, 1, tensor, 1, 0, &report);
}
"#;

fn compile(compiler: &str, language: &str, standard: &str) -> io::Result<bool> {
    let mut child = Command::new(compiler)
        .args(["-x", language, standard, "-fsyntax-only", "-Wall", "-Wextra", "-Werror"])
        .args(["-pedantic", "-I", env!("CARGO_MANIFEST_DIR"), "-"])
        .stdin(Stdio::piped())
        .spawn()?;
    if let Some(stdin) = child.stdin.as_mut() {
        stdin.write_all(PROGRAM.as_bytes())?;
    }
    Ok(child.wait()?.success())
}

#[test]
fn the_header_is_c11_and_cpp17() {
    let mut compiled = 0;
    for compiler in ["gcc", "g++", "clang", "clang++"] {
        for (language, standard) in [("c", "-std=c11"), ("c++", "-std=c++17")] {
            match compile(compiler, language, standard) {
                Ok(clean) => {
                    assert!(clean, "{compiler} {standard}");
                    compiled += 1;
                }
                Err(error) => eprintln!("SKIP: {compiler}: {error}"),
            }
        }
    }
    if compiled == 0 {
        eprintln!("SKIP: no C compiler at all");
    }
}
