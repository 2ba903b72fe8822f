//! C and C++ programs against a daemon made of gpulet-abi: compiled by each compiler, and run
//! plainly, under sanitizers and under valgrind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod built;
mod fake;

use std::path::Path;
use std::process::Command;

use built::{C, CPP, compile, has, here, run};
use fake::Service;

const SANITIZED: [&str; 2] = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"];

fn source(name: &str) -> std::path::PathBuf {
    here().join(name)
}

fn exercise(service: &Service, program: &Path) {
    let mut command = Command::new(program);
    command.env("ASAN_OPTIONS", "detect_leaks=1").env("UBSAN_OPTIONS", "print_stacktrace=1");
    assert!(run(command.arg(&service.path)).ends_with("exercise: ok\n"));
}

#[test]
fn every_compiler_makes_working_clients() {
    let service = Service::start();
    let c = C.iter().map(|it| (it, "tests/c/exercise.c"));
    let cpp = CPP.iter().map(|it| (it, "tests/c/exercise.cpp"));
    for (&(compiler, standard), name) in c.chain(cpp) {
        if has(compiler) {
            exercise(&service, &compile(compiler, standard, &source(name), &[]));
        }
    }
}

#[test]
fn clients_are_clean_under_sanitizers() {
    let service = Service::start();
    for (compiler, standard, name) in [
        ("gcc", "-std=c11", "tests/c/exercise.c"),
        ("clang", "-std=c11", "tests/c/exercise.c"),
        ("g++", "-std=c++17", "tests/c/exercise.cpp"),
    ] {
        if has(compiler) {
            exercise(&service, &compile(compiler, standard, &source(name), &SANITIZED));
        }
    }
}

#[test]
fn clients_are_clean_under_valgrind() {
    if !has("valgrind") {
        return;
    }
    let service = Service::start();
    for (compiler, standard, name) in
        [("gcc", "-std=c11", "tests/c/exercise.c"), ("g++", "-std=c++17", "tests/c/exercise.cpp")]
    {
        let program = compile(compiler, standard, &source(name), &[]);
        let mut command = Command::new("valgrind");
        command.args(["--quiet", "--error-exitcode=9", "--leak-check=full", "--track-fds=no"]);
        // A spinning client must let the others run.
        command.args(["--show-leak-kinds=definite,indirect", "--fair-sched=yes"]);
        assert!(run(command.arg(&program).arg(&service.path)).ends_with("exercise: ok\n"));
    }
}

#[test]
fn the_examples_run() {
    let service = Service::start();
    let mut ran = 0;
    let c = C.iter().flat_map(|it| [(it, "examples/first.c"), (it, "examples/pipeline.c")]);
    let cpp = CPP.iter().map(|it| (it, "examples/first.cpp"));
    for (&(compiler, standard), name) in c.chain(cpp) {
        if !has(compiler) {
            continue;
        }
        let mut command = Command::new(compile(compiler, standard, &source(name), &[]));
        let text = run(command.env("GPULET_SOCKET", &service.path).arg("echo"));
        let expected = if name.contains("pipeline") { "1000 answers, " } else { "x: 0" };
        assert!(text.contains(expected), "{name}: {text}");
        ran += 1;
    }
    assert!(ran > 0);
}

#[test]
fn an_example_says_what_is_wrong() {
    let service = Service::start();
    let program = compile("cc", "-std=c11", &source("examples/first.c"), &[]);
    let mut command = Command::new(program);
    let output = command.env("GPULET_SOCKET", &service.path).arg("absent").output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains("absent") && text.contains("no model.toml"), "{text}");
}
