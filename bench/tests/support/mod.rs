//! Runs the bench as a person would, beside a real daemon where one was built.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

/// The program under test.
pub fn bench() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_gpulet-bench"));
    command.stdin(Stdio::null());
    command
}

/// Runs it, and takes the JSON that it prints.
pub fn json_of(command: &mut Command) -> Value {
    let output = command.args(["--json", "-"]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What it said to people.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The daemon beside the program under test. Without one the test is skipped, which is said past
/// the test harness's capture.
pub fn daemon(test: &str) -> Option<PathBuf> {
    let daemon = Path::new(env!("CARGO_BIN_EXE_gpulet-bench")).with_file_name("gpuletd");
    let executor = daemon.with_file_name("gpulet-executor");
    for program in [&daemon, &executor] {
        if !program.is_file() {
            skip(test, &format!("{} is not built", program.display()));
            return None;
        }
    }
    Some(daemon)
}

/// Says that a test was skipped.
pub fn skip(test: &str, why: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// A daemon with one null model, killed when dropped.
pub struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    pub fn start(program: &Path) -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("models/null");
        fs::create_dir_all(&model).unwrap();
        let text = "builtin = \"null\"\nslo_ms = 1000.0\nmax_batch = 4\nwarmup_count = 1\n\
                    [[input]]\nname = \"in\"\ndtype = \"f32\"\nshape = [-1, 16]\n\
                    [[output]]\nname = \"out\"\ndtype = \"u8\"\nshape = [-1, 1]\n";
        fs::write(model.join("model.toml"), text).unwrap();
        let config = folder.path().join("gpuletd.toml");
        let text = "socket = \"gpuletd.sock\"\nmodels = [\"models\"]\n\
                    [[gpulet]]\nname = \"idle\"\nmechanism = \"replay\"\nshare_pct = 1\n\
                    profiles = \".\"\n";
        fs::write(&config, text).unwrap();
        let mut command = Command::new(program);
        command.arg("--config").arg(&config).stdin(Stdio::null()).stderr(Stdio::null());
        let daemon = Daemon { child: command.spawn().unwrap(), folder };
        let end = Instant::now() + Duration::from_secs(30);
        while !daemon.socket().exists() {
            assert!(Instant::now() < end, "the daemon does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("gpuletd.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a process runs; one that only waits to be forgotten does not.
pub fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, fields)| fields.split_whitespace().next());
    state.is_some_and(|state| state != "Z" && state != "X")
}

/// Processes whose parent is `pid`.
pub fn children_of(pid: u32) -> Vec<u32> {
    let parent = |stat: &str| {
        // The program's name, in brackets, may hold anything.
        let fields = stat.rsplit_once(')')?.1;
        fields.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    numbers
        .filter(|number| {
            let stat = fs::read_to_string(format!("/proc/{number}/stat")).unwrap_or_default();
            parent(&stat) == Some(pid)
        })
        .collect()
}
