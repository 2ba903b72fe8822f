//! `gpuletd` itself, with a folder of its own.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use gpulet_client::{Options, Session};
use rustix::process::Signal;
use tempfile::TempDir;

use super::models::{Folder, ROW_BYTES, shipped, write_profile};
use super::state::State;
use super::{eventually, process, say_loudly};

/// Set to 1 where a machine must have libtorch: its absence is then a failure.
const REQUIRE_TORCH: &str = "GPULET_REQUIRE_TORCH";

/// What will be a daemon.
pub struct Setup {
    folder: TempDir,
    /// Lines before the first section, the sections, and the gpulets.
    top: String,
    sections: String,
    gpulets: String,
    /// As GPULET_LOG has it.
    log: &'static str,
    /// What is logged goes there, and stays if a test fails; else to the folder.
    kept_log: Option<PathBuf>,
    /// What is run.
    program: PathBuf,
}

/// A gpulet that needs no libtorch: it runs the built-in models, and others by their profiles.
pub const REPLAY: &str =
    "[[gpulet]]\nname = \"r0\"\nmechanism = \"replay\"\nshare_pct = 100\nprofiles = \"profiles\"\n";

impl Default for Setup {
    fn default() -> Setup {
        let folder = tempfile::tempdir().unwrap();
        // So that another user gets as far as the socket.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(folder.path().join("models")).unwrap();
        fs::create_dir(folder.path().join("profiles")).unwrap();
        let top = "socket = \"s\"\nmodels = [\"models\"]\n".to_owned();
        let (sections, gpulets) = (String::new(), REPLAY.to_owned());
        let program = PathBuf::from(env!("CARGO_BIN_EXE_gpuletd"));
        Setup { folder, top, sections, gpulets, log: "info", kept_log: None, program }
    }
}

impl Setup {
    /// A daemon of the built-in models `null` and `echo`.
    pub fn builtin() -> Setup {
        Setup::default()
            .model("null", &Folder::of("builtin = \"null\"", 64))
            .model("echo", &Folder::of("builtin = \"echo\"", 64))
    }

    /// A daemon that also has the shipped model `digits`, on the CPU, which needs libtorch.
    pub fn with_digits() -> Setup {
        Setup::builtin()
            .gpulets("[[gpulet]]\nname = \"r0\"\nmechanism = \"cpu\"\nshare_pct = 100\n")
            .digits("digits", "", ("image", "f32", "[-1, 1, 8, 8]"))
    }

    /// Adds the digits model under another name, with lines of its own before its tensors.
    pub fn digits(self, name: &str, lines: &str, input: (&str, &str, &str)) -> Setup {
        let source = format!("file = \"model.pt\"{lines}");
        let digits = Folder {
            inputs: &[input],
            outputs: &[("logits", "f32", "[-1, 10]")],
            ..Folder::of(&source, 32)
        };
        let folder = self.folder.path().join("models").join(name);
        digits.write(&folder);
        fs::copy(shipped().join("digits/model.pt"), folder.join("model.pt")).unwrap();
        self
    }

    /// Adds a line before the first section.
    pub fn top(mut self, line: &str) -> Setup {
        self.top += &format!("{line}\n");
        self
    }

    /// Adds a section.
    pub fn section(mut self, text: &str) -> Setup {
        self.sections += &format!("{text}\n");
        self
    }

    /// Says which gpulets there are, in the place of [`REPLAY`].
    pub fn gpulets(mut self, text: &str) -> Setup {
        text.clone_into(&mut self.gpulets);
        self
    }

    pub fn model(self, name: &str, model: &Folder<'_>) -> Setup {
        model.write(&self.folder.path().join("models").join(name));
        self
    }

    /// Adds a model that a replay gpulet answers after `batch_ns`.
    pub fn slow(self, name: &str, batch_ns: u64, max_batch: u32) -> Setup {
        let folder = self.folder.path().join("models").join(name);
        Folder::of("file = \"model.pt\"", max_batch).write(&folder);
        fs::write(folder.join("model.pt"), "a replay looks only at the profile").unwrap();
        write_profile(&self.folder.path().join("profiles"), name, batch_ns, max_batch);
        self
    }

    /// Adds a built-in model that breaks what plays a GPU.
    pub fn breaking(self, name: &str, builtin: &str) -> Setup {
        let folder = self.folder.path().join("models").join(name);
        Folder::of(&format!("builtin = \"{builtin}\""), 1).write(&folder);
        write_profile(&self.folder.path().join("profiles"), name, 1_000_000, 1);
        self
    }

    /// Logs errors only, for tests in which there is much to warn of.
    pub fn quiet(self) -> Setup {
        Setup { log: "error", ..self }
    }

    /// Logs warnings, more than anybody wants to see in a failure's message: it names the file instead,
    /// which is of this name.
    pub fn log_kept(self, name: &str) -> Setup {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_file(&path);
        Setup { log: "warn", kept_log: Some(path), ..self }
    }

    /// Runs this shell script in the place of its executors; `$EXECUTOR` is the real one, and
    /// `$FOLDER` the daemon's folder.
    pub fn executor(mut self, script: &str) -> Setup {
        let programs = self.folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let program = programs.join("gpuletd");
        // Where it is says where its executors are.
        if fs::hard_link(&self.program, &program).is_err() {
            fs::copy(&self.program, &program).unwrap();
        }
        let (real, folder) = (env!("CARGO_BIN_EXE_gpulet-executor"), self.folder.path().display());
        let text = format!("#!/bin/sh\nEXECUTOR='{real}'\nFOLDER='{folder}'\n{script}\n");
        let executor = programs.join("gpulet-executor");
        fs::write(&executor, text).unwrap();
        fs::set_permissions(executor, fs::Permissions::from_mode(0o755)).unwrap();
        self.program = program;
        self
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    fn config_path(&self) -> PathBuf {
        self.path().join("gpuletd.toml")
    }

    fn log_path(&self) -> PathBuf {
        self.kept_log.clone().unwrap_or_else(|| self.path().join("log"))
    }

    /// What was logged, or where, for a failure's message.
    fn logged(&self) -> String {
        let path = self.log_path();
        if self.kept_log.is_some() {
            return format!("its log: {}", path.display());
        }
        fs::read_to_string(path).unwrap_or_default()
    }

    /// Starts it, and waits until every model that will be warm is.
    pub fn start(self) -> Daemon {
        let mut daemon = self.launch();
        daemon.settle();
        daemon
    }

    /// Starts it, and waits for nothing.
    pub fn launch(self) -> Daemon {
        let config = self.config_path();
        fs::write(&config, format!("{}{}{}", self.top, self.sections, self.gpulets)).unwrap();
        let socket = self.folder.path().join("s");
        let child = spawn(&self);
        Daemon { child, socket, config, setup: self, ended: None }
    }
}

fn spawn(setup: &Setup) -> Child {
    let log = File::options().append(true).create(true).open(setup.log_path()).unwrap();
    Command::new(&setup.program)
        .arg("--config")
        .arg(setup.config_path())
        .env("GPULET_LOG", setup.log)
        .env_remove("NOTIFY_SOCKET")
        .env_remove("LISTEN_FDS")
        .env_remove("JOURNAL_STREAM")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// A daemon. Killed when it is dropped; its executors go with it.
pub struct Daemon {
    child: Child,
    pub socket: PathBuf,
    pub config: PathBuf,
    setup: Setup,
    ended: Option<ExitStatus>,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn folder(&self) -> &Path {
        self.setup.folder.path()
    }

    /// Everything that it and its executors logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.setup.log_path()).unwrap_or_default()
    }

    pub fn options(&self) -> Options {
        Options::at(&self.socket)
    }

    pub fn session(&self) -> Session {
        Session::open(&self.options())
            .unwrap_or_else(|error| panic!("{error}\n{}", self.setup.logged()))
    }

    /// A session whose slots hold 64 rows of a model of [`Folder::of`]; by default they hold one.
    pub fn wide_session(&self) -> Session {
        let slot_bytes = 2 * 64 * ROW_BYTES;
        Session::open(&Options { slot_bytes, ..self.options() }).unwrap()
    }

    pub fn state(&self) -> State {
        State::ask(&self.socket).unwrap_or_else(|| panic!("no state\n{}", self.setup.logged()))
    }

    /// Waits for a state in which there is what a test looks for.
    pub fn wait_for<T>(&self, what: &str, mut look: impl FnMut(&State) -> Option<T>) -> T {
        let mut last = None;
        let begin = std::time::Instant::now();
        while begin.elapsed() < super::PATIENCE {
            last = State::ask(&self.socket);
            if let Some(found) = last.as_ref().and_then(&mut look) {
                return found;
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
        panic!("never: {what}; state now: {last:#?}\n{}", self.setup.logged());
    }

    /// Waits until every model that will be warm is, and every executor runs.
    pub fn settle(&mut self) {
        let child = &mut self.child;
        let (socket, setup) = (&self.socket, &self.setup);
        eventually("the daemon settles", || {
            if let Some(status) = child.try_wait().unwrap() {
                panic!("the daemon ended with {status}\n{}", setup.logged());
            }
            State::ask(socket).filter(State::is_ready)
        });
    }

    /// The process of a gpulet's executor, once it runs.
    pub fn executor_pid(&self, gpulet: &str) -> u32 {
        self.wait_for("the executor runs", |state| state.executor_pid(gpulet))
    }

    /// Whether its executors found libtorch; if not, that is said loudly, or is a failure.
    pub fn has_torch(&self) -> bool {
        let state = self.state();
        let error = state.model("digits").and_then(|model| model["error"].as_str());
        let Some(error) = error.filter(|text| text.contains("backend torch")) else { return true };
        let required = std::env::var_os(REQUIRE_TORCH).is_some_and(|value| value == "1");
        assert!(!required, "{REQUIRE_TORCH}=1, but {error}");
        say_loudly(&format!("SKIP: tests of the daemon that run a model: {error}"));
        false
    }

    pub fn signal(&self, signal: Signal) {
        process::signal(self.pid(), signal);
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        if let Some(status) = self.ended {
            return status;
        }
        let child = &mut self.child;
        let status = eventually("the daemon ends", || child.try_wait().unwrap());
        self.ended = Some(status);
        status
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.ended();
    }

    /// Starts another one in the place of one that ended, with the same folder.
    pub fn start_again(&mut self) {
        self.ended();
        self.child = spawn(&self.setup);
        self.ended = None;
        self.settle();
    }

    /// Replaces a part of the config, which must be there.
    pub fn edit_config(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "no {from:?} in\n{text}");
        fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    /// SIGHUP, and waits until the log says what became of it: the models are settled again, or the
    /// old config stays.
    pub fn reload(&self) {
        let count =
            |log: &str| log.matches(" settled ").count() + log.matches("reload failed").count();
        let before = count(&self.log());
        self.signal(Signal::HUP);
        eventually("the reload is through", || (count(&self.log()) > before).then_some(()));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- {}\n{}", self.folder().display(), self.setup.logged());
        } else if let Some(path) = &self.setup.kept_log {
            let _ = fs::remove_file(path);
        }
        if self.ended.is_none() {
            // A stopped process dies of SIGKILL too.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
