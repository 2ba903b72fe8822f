//! Style that a machine can check, so that no review has to: lengths, words, leftovers.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
/// rustfmt holds code to 100; a line of prose may overhang a little.
const COLUMNS_MAX: usize = 104;

/// Words that the ancestors gave several meanings each.
const BANNED: [&str; 8] = ["task", "node", "job", "proxy", "worker", "manager", "util", "common"];
/// Names that others gave, and that we cannot but use.
const FOREIGN: [&str; 13] = [
    "util-linux",
    "c10/util",
    "tracing_subscriber::util",
    "/task",
    "XXXXXX",
    // Published files of the planner, and their options.
    "interference_util_file",
    "UTIL.CSV",
    "task-config",
    "task_config",
    "tasks.csv",
    "proxy-config",
    "proxy_config",
    "proxy_id",
];
/// Files about a library whose own word is banned here: iceoryx2's, and the graph nodes of TorchScript
/// and CUDA.
const ABOUT_NODES: [&str; 5] = [
    "bench/src/floor/iceoryx.rs",
    "daemon/src/cuda/graph.rs",
    "ffi/torch/shim/place.h",
    "ffi/torch/shim/signature.h",
    "kernels/src/cuda/steps.rs",
];
/// Marks of unfinished work; put together here so that this file does not carry them.
const LEFTOVERS: [&str; 5] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("XX", "X"),
    concat!("todo", "!("),
    concat!("dbg", "!("),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Files that we wrote, by what git knows, or by walking where there is no git.
fn files(extensions: &[&str]) -> Vec<PathBuf> {
    let mut git = Command::new("git");
    let output = git.args(["ls-files", "-co", "--exclude-standard"]).current_dir(root()).output();
    let output = output.unwrap();
    assert!(output.status.success(), "git ls-files failed");
    let names = String::from_utf8(output.stdout).unwrap();
    let ours = |name: &&str| extensions.iter().any(|it| name.ends_with(&format!(".{it}")));
    let files: Vec<PathBuf> = names.lines().filter(ours).map(|name| root().join(name)).collect();
    let files: Vec<PathBuf> = files.into_iter().filter(|path| path.is_file()).collect();
    assert!(files.len() > 5, "the walk found next to nothing");
    files
}

const CODE: [&str; 9] = ["rs", "h", "hpp", "c", "cc", "cpp", "cu", "py", "sh"];

fn complain(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn name(path: &Path) -> String {
    path.strip_prefix(root()).unwrap().display().to_string()
}

#[test]
fn files_are_short_and_lines_fit() {
    let mut problems = Vec::new();
    for path in files(&CODE) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = text.lines().count();
        if lines > FILE_LINES_MAX {
            problems.push(format!("{}: {lines} lines, at most {FILE_LINES_MAX}", name(&path)));
        }
        for (number, line) in text.lines().enumerate() {
            let columns = line.chars().count();
            if columns > COLUMNS_MAX + usize::from(path.extension().is_some_and(|it| it == "h")) * 4
            {
                problems.push(format!("{}:{}: {columns} columns", name(&path), number + 1));
            }
        }
    }
    complain(&problems);
}

#[test]
fn rust_functions_are_short() {
    let mut problems = Vec::new();
    for path in files(&["rs"]) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (start, line) in lines.iter().enumerate() {
            let indent = line.len() - line.trim_start().len();
            let declares = line.trim_start().split("(").next().is_some_and(|head| {
                head.split_whitespace().any(|word| word == "fn") && !head.starts_with("//")
            });
            let ends = |line: &&&str| line.trim_end().ends_with(['{', ';']);
            let has_body = lines[start..].iter().find(ends).is_none_or(|it| it.ends_with('{'));
            if !declares || !has_body {
                continue;
            }
            // rustfmt puts a function's closing brace at its own indent.
            let closing = format!("{}}}", " ".repeat(indent));
            let length = lines[start..].iter().position(|line| **line == closing).unwrap_or(0) + 1;
            if length > FUNCTION_LINES_MAX {
                problems.push(format!("{}:{}: {length} lines", name(&path), start + 1));
            }
        }
    }
    complain(&problems);
}

#[test]
fn banned_words_and_leftovers_are_absent() {
    let mut problems = Vec::new();
    let this_file = Path::new(file!()).file_name().unwrap();
    for path in files(&[&CODE[..], &["toml", "md", "in", "mk"]].concat()) {
        if path.file_name() == Some(this_file) {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            let place = || format!("{}:{}", name(&path), number + 1);
            let line = FOREIGN.iter().fold(line.to_owned(), |line, it| line.replace(it, ""));
            for leftover in LEFTOVERS {
                if line.contains(leftover) {
                    problems.push(format!("{}: {leftover}", place()));
                }
            }
            // An identifier is as many words as it has parts.
            let words = line.split(|letter: char| !letter.is_ascii_alphabetic());
            for word in words {
                let word = word.to_ascii_lowercase();
                let plural = word.strip_suffix('s').unwrap_or(&word);
                if plural == "node" && ABOUT_NODES.contains(&name(&path).as_str()) {
                    continue;
                }
                if BANNED.contains(&word.as_str()) || BANNED.contains(&plural) {
                    problems.push(format!("{}: the word {word:?}", place()));
                }
            }
        }
    }
    complain(&problems);
}

/// Every status has the same number and name in Rust and in C.
#[test]
fn statuses_are_twins() {
    let header = std::fs::read_to_string(root().join("include/gpulet/status.h")).unwrap();
    let mut numbers = Vec::new();
    for line in header.lines().filter(|line| line.contains("((int32_t)")) {
        let mut words = line.split_whitespace().skip(1);
        let name = words.next().unwrap().to_owned();
        let number = words.next().unwrap().trim_start_matches("((int32_t)").trim_end_matches(')');
        numbers.push((name, number.parse::<i32>().unwrap()));
    }
    let twins: Vec<(String, i32)> = gpulet_abi::status::Status::ALL
        .iter()
        .map(|status| (status.name().to_owned(), *status as i32))
        .collect();
    assert_eq!(numbers, twins);
}

/// Every test runs: none is switched off.
#[test]
fn no_test_is_ignored() {
    let mark = concat!("#[ign", "ore");
    let carries = |path: &PathBuf| std::fs::read_to_string(path).unwrap().contains(mark);
    let ignored: Vec<String> =
        files(&["rs"]).iter().filter(|it| carries(it)).map(|it| name(it)).collect();
    complain(&ignored);
}
