//! gpuletctl with a real gpuletd whose one gpulet replays profiles, so that no libtorch is needed.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Far longer than a daemon with replayed models takes to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon {
    process: Child,
    socket: PathBuf,
    folder: TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Daemon {
    /// Started, and with all its models ready.
    fn start() -> Daemon {
        let folder = tempfile::tempdir().unwrap();
        let resource = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource");
        let config = folder.path().join("gpuletd.toml");
        let resource = resource.canonicalize().unwrap();
        let text = format!(
            "socket = 'gpuletd.sock'\nmodels = ['{0}/models']\n\
             [[gpulet]]\nname = 'played'\nmechanism = 'replay'\nshare_pct = 100\n\
             profiles = '{0}/configs/profiles'\n",
            resource.display()
        );
        fs::write(&config, text).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_gpuletd"))
            .arg("--config")
            .arg(&config)
            .env_remove("NOTIFY_SOCKET")
            .stderr(fs::File::create(folder.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let daemon = Daemon { process, socket: folder.path().join("gpuletd.sock"), folder };
        let begin = Instant::now();
        while !daemon.is_ready() {
            assert!(begin.elapsed() < PATIENCE, "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(20));
        }
        daemon
    }

    fn is_ready(&self) -> bool {
        let output = self.ctl(&["status", "--json"]);
        let state: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let ready = |model: &Value| model["state"] == "ready";
        state["models"].as_array().is_some_and(|it| it.len() == 3 && it.iter().all(ready))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_gpuletctl"));
        command.args(arguments).env("GPULET_SOCKET", &self.socket);
        command
    }

    fn ctl(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Asserts the exit code; returns standard output and standard error.
    fn ends(&self, arguments: &[&str], code: i32) -> (Vec<u8>, String) {
        let output = self.ctl(arguments);
        let err = String::from_utf8(output.stderr).unwrap();
        let log = self.log();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}\n{err}\n{log}");
        (output.stdout, err)
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_slice(&self.ends(arguments, 0).0).unwrap()
    }

    fn text(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.ends(arguments, 0).0).unwrap()
    }
}

fn floats(values: impl IntoIterator<Item = f32>) -> Vec<u8> {
    values.into_iter().flat_map(f32::to_le_bytes).collect()
}

#[test]
fn state_and_models_are_shown() {
    let daemon = Daemon::start();
    let text = daemon.text(&["status"]);
    assert!(text.starts_with(&format!("gpuletd {}, up ", env!("CARGO_PKG_VERSION"))), "{text}");
    for said in ["models", "executors", "played", "no sessions"] {
        assert!(text.contains(said), "{text}");
    }
    let text = daemon.text(&["models"]);
    assert!(text.contains("image f32 [-1, 1, 8, 8]  logits f32 [-1, 10]"), "{text}");
    let models = daemon.json(&["models", "--json"]);
    let names: Vec<_> = models.as_array().unwrap().iter().map(|model| &model["name"]).collect();
    assert_eq!(names, ["digits", "echo", "null"]);
    assert_eq!(models[0]["slo_ns"], 50_000_000);
    let shape = json!([-1, 1, 8, 8]);
    let image = json!({ "name": "image", "dtype": "f32", "shape": shape, "row_bytes": 256 });
    assert_eq!(models[0]["inputs"], json!([image]));
}

#[test]
fn what_goes_in_comes_out() {
    let daemon = Daemon::start();
    let path = |name: &str| daemon.folder.path().join(name).to_str().unwrap().to_owned();
    let rows = floats((0..3 * 256).map(|element| element as f32 / 8.0));
    fs::write(path("in"), &rows).unwrap();

    let (out, _) = daemon.ends(&["infer", "echo", "--input", &path("in"), "--output", "-"], 0);
    assert_eq!(out, rows, "three rows, found from the file's length");
    let to_file = ["infer", "echo", "--input", &path("in"), "--output", &path("out"), "-n", "2"];
    assert!(daemon.text(&to_file).contains("round trip      2"));
    assert_eq!(fs::read(path("out")).unwrap(), rows);

    let report = daemon.json(&["infer", "echo", "--input", &path("in"), "--json"]);
    assert_eq!((&report["rows"], &report["count"]), (&json!(3), &json!(1)));
    assert_eq!(report["outputs"][0]["shape"], json!([3, 256]));
    let values = report["outputs"][0]["values"].as_array().unwrap();
    assert_eq!((values.len(), &values[3], &values[767]), (768, &json!(0.375), &json!(95.875)));

    let mut child = daemon
        .command(&["infer", "echo", "--input", "-", "--output", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&rows[..1024]).unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, &rows[..1024]);
}

#[test]
fn made_up_inputs_will_do() {
    let daemon = Daemon::start();
    let text = daemon.text(&["infer", "echo", "--fill", "ones", "--rows", "2"]);
    assert!(text.contains("output: f32 [2, 256]\n"), "{text}");
    assert!(text.contains("row 1: largest of 256: [0] 1.0000, "), "{text}");
    daemon.text(&["infer", "null", "--zeros", "-n", "50"]);
    let patient = ["infer", "digits", "--zeros", "--rows", "32", "--deadline-ms", "60000"];
    let text = daemon.text(&patient);
    assert!(text.contains("logits: f32 [32, 10]"), "{text}");
    let state = daemon.json(&["status", "--json"]);
    let answers = |index: usize| &state["models"][index]["answers"]["GPULET_OK"];
    assert_eq!((answers(0), answers(1), answers(2)), (&json!(1), &json!(1), &json!(50)));
}

#[test]
fn what_fails_says_why() {
    let daemon = Daemon::start();
    let input = daemon.folder.path().join("in");
    fs::write(&input, [0; 1025]).unwrap();
    let input = input.to_str().unwrap();
    for (arguments, code, said) in [
        (vec!["infer", "none", "--zeros"], 1, "GPULET_NO_SUCH_MODEL"),
        (vec!["infer", "echo", "--zeros", "--rows", "65"], 1, "GPULET_TOO_MANY_ROWS"),
        (
            vec!["infer", "echo", "--input", input],
            2,
            "--input: must have 1 to 64 rows of 1024 bytes, has 1025 bytes",
        ),
        (
            vec!["infer", "echo", "--input", input, "--rows", "1"],
            2,
            "--input: 1 rows of echo take 1024 bytes, the file has 1025",
        ),
        (vec!["infer", "echo", "--input", "/nowhere"], 1, "/nowhere: "),
        (vec!["infer", "echo", "--zeros", "--output", "/nowhere/out"], 1, "/nowhere/out: "),
        // The profile says 1.5 ms for so many rows.
        (
            vec!["infer", "digits", "--zeros", "--rows", "32", "--deadline-ms", "1", "-n", "2"],
            1,
            "2 of 2 requests failed, the first with GPULET_DEADLINE_HOPELESS",
        ),
    ] {
        let (_, err) = daemon.ends(&arguments, code);
        assert!(err.starts_with("gpuletctl: ") && err.contains(said), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}
