//! The supervisor of MPS, with a control program that behaves as the real one, or badly.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use gpulet_daemon::mps::control::{AskError, Control, ServerStatus, version};
use gpulet_daemon::mps::{MpsEvent, Outcome, Settings, Supervisor, Times};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use tempfile::TempDir;

const UUID: &str = "GPU-8f0e3a21-77b4-4c1d-9e52-0123456789ab";
/// More than anything here takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control program of our own, with its directories.
struct Fake {
    folder: TempDir,
    settings: Settings,
}

impl Fake {
    fn new() -> Fake {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        fs::create_dir(&state).unwrap();
        let script = include_str!("fixtures/mps-control.sh");
        let control = folder.path().join("control");
        fs::write(&control, script.replace("@STATE@", state.to_str().unwrap())).unwrap();
        fs::set_permissions(&control, PermissionsExt::from_mode(0o755)).unwrap();
        let settings = Settings {
            control,
            pipe_dir: folder.path().join("pipe"),
            log_dir: folder.path().join("log"),
            devices: vec![UUID.to_owned()],
            adopt: false,
            times: Times {
                answer: Duration::from_secs(20),
                start: Duration::from_secs(40),
                check: Duration::from_millis(50),
                poll: Duration::from_millis(5),
                fault: PATIENCE,
                shutdown: Duration::ZERO,
                stop: Duration::from_secs(10),
                backoff_min: Duration::from_millis(10),
                backoff_max: Duration::from_millis(50),
            },
        };
        let fake = Fake { folder, settings };
        fake.write("version", "CUDA MPS Control binary version: 13000\n");
        fake.write("servers", "");
        fake.write("status", "");
        fake.write("clients", "");
        fake
    }

    /// Changes what it does from now on.
    fn behave(self, how: &str) -> Fake {
        self.write(how, "");
        self
    }

    fn behave_no_more(&self, how: &str) {
        fs::remove_file(self.folder.path().join("state").join(how)).unwrap();
    }

    /// In one step, so that no answer is half of it.
    fn write(&self, name: &str, text: &str) {
        let state = self.folder.path().join("state");
        fs::write(state.join("next"), text).unwrap();
        fs::rename(state.join("next"), state.join(name)).unwrap();
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.folder.path().join("state").join(name)).unwrap_or_default()
    }

    fn starts(&self) -> usize {
        self.read("starts").lines().count()
    }

    /// Whether a command of just these words was given.
    fn was_told(&self, command: &str) -> bool {
        self.read("commands").lines().any(|line| line == command)
    }

    fn server(&self) -> i32 {
        self.read("servers").trim().parse().unwrap()
    }

    fn daemon(&self) -> i32 {
        let file = self.settings.pipe_dir.join("nvidia-cuda-mps-control.pid");
        fs::read_to_string(file).unwrap().trim().parse().unwrap()
    }

    fn control(&self) -> Control {
        Control {
            program: self.settings.control.clone(),
            pipe_dir: self.settings.pipe_dir.clone(),
            log_dir: self.settings.log_dir.clone(),
            limit: self.settings.times.answer,
        }
    }

    /// A daemon of somebody else.
    fn foreign(&self) -> Child {
        fs::create_dir_all(&self.settings.pipe_dir).unwrap();
        fs::set_permissions(&self.settings.pipe_dir, PermissionsExt::from_mode(0o700)).unwrap();
        let child = Command::new(&self.settings.control)
            .arg("-f")
            .env("CUDA_MPS_PIPE_DIRECTORY", &self.settings.pipe_dir)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while self.control().server_list().is_err() {}
        child
    }

    fn supervise(&self) -> Supervised {
        let (woken, wakes) = channel();
        let wake = move || woken.send(()).unwrap_or_default();
        Supervised { supervisor: Supervisor::start(self.settings.clone(), wake).unwrap(), wakes }
    }

    fn ready(&self) -> Supervised {
        let supervised = self.supervise();
        assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
        supervised
    }
}

struct Supervised {
    supervisor: Supervisor,
    wakes: Receiver<()>,
}

impl Supervised {
    /// The next event, for which there is exactly one wake-up.
    fn event(&self) -> MpsEvent {
        self.wakes.recv_timeout(PATIENCE).expect("an event");
        self.supervisor.event().expect("no event though it woke")
    }

    fn failure(&self) -> String {
        match self.event() {
            MpsEvent::Failed { reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    /// The first failure that says so; a slow machine may have others before it.
    fn failure_with(&self, words: &str) -> String {
        loop {
            let said = self.failure();
            if said.contains(words) {
                return said;
            }
        }
    }

    fn terminated(&self, pid: u32) -> Outcome {
        self.supervisor.terminate_client(pid);
        match self.event() {
            MpsEvent::ClientTerminated { pid: of, outcome } if of == pid => outcome,
            other => panic!("{other:?}"),
        }
    }
}

fn signal(pid: i32, signal: Signal) {
    kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Whether there is such a process; one that nobody waited for has ended all the same.
fn lives(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z'));
    test_kill_process(Pid::from_raw(pid).unwrap()).is_ok() && !zombie
}

/// Until it is so; the test's own time limit ends it otherwise.
fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn fault() -> MpsEvent {
    MpsEvent::ServerFaulted { device: Some(UUID.to_owned()) }
}

#[test]
fn it_is_started_with_a_server_and_stopped() {
    let fake = Fake::new();
    let supervised = fake.ready();
    let log = fake.settings.log_dir.display();
    assert_eq!(fake.read("starts"), format!("-f devices={UUID} log={log}\n"));
    let uid = rustix::process::geteuid().as_raw();
    assert!(fake.was_told(&format!("start_server -uid {uid}")));
    let (daemon, server) = (fake.daemon(), fake.server());
    assert!(lives(daemon) && lives(server));
    assert!(!supervised.supervisor.is_stopped());
    supervised.supervisor.stop();
    until(|| supervised.supervisor.is_stopped());
    assert!(fake.was_told("quit -t 10"));
    assert!(!lives(daemon) && !lives(server));
    assert!(fs::read_dir(&fake.settings.pipe_dir).unwrap().next().is_none());
    assert_eq!(supervised.supervisor.event(), None);
}

#[test]
fn one_that_is_dropped_is_stopped() {
    let fake = Fake::new();
    let supervised = fake.ready();
    let (daemon, server) = (fake.daemon(), fake.server());
    drop(supervised);
    assert!(!lives(daemon));
    until(|| !lives(server));
    // One that does not listen is killed.
    let mut fake = Fake::new();
    fake.settings.times.stop = Duration::from_millis(50);
    fake.settings.times.answer = Duration::from_secs(2);
    let supervised = fake.ready();
    let (daemon, server) = (fake.daemon(), fake.server());
    signal(daemon, Signal::STOP);
    drop(supervised);
    assert!(!lives(daemon));
    until(|| !lives(server));
}

#[test]
fn slow_answers_and_missing_versions_are_no_failures() {
    let fake = Fake::new().behave("slow");
    fake.write("version", "");
    let supervised = fake.supervise();
    assert_eq!(supervised.event(), MpsEvent::Ready { version: None });
}

#[test]
fn without_a_server_to_begin_with_the_first_client_starts_it() {
    let fake = Fake::new().behave("no_server");
    fake.ready();
    assert_eq!(fake.starts(), 1);
}

#[test]
fn what_cannot_start_is_said_once_and_tried_again() {
    let fake = Fake::new().behave("dying");
    let supervised = fake.supervise();
    let said = supervised.failure();
    assert!(said.contains("the control daemon ended: all devices are busy"), "{said}");
    until(|| fake.starts() > 2);
    fake.behave_no_more("dying");
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
}

#[test]
fn a_program_that_is_not_there_is_named() {
    let mut fake = Fake::new();
    fake.settings.control = fake.folder.path().join("none");
    let said = fake.supervise().failure();
    assert!(said.ends_with("/none is no program"), "{said}");
}

#[test]
fn one_that_never_answers_is_given_up() {
    let mut fake = Fake::new().behave("hang");
    fake.settings.times.answer = Duration::from_millis(300);
    fake.settings.times.start = Duration::from_millis(300);
    let supervised = fake.supervise();
    let said = supervised.failure_with("\"get_server_list\" was not answered within 300 ms");
    assert!(said.contains("; Starting control daemon using socket"), "{said}");
}

#[test]
fn one_that_talks_nonsense_is_given_up() {
    let mut fake = Fake::new().behave("garbage");
    fake.settings.times.start = Duration::from_millis(200);
    let supervised = fake.supervise();
    supervised.failure_with("\"get_server_list\" was answered by \"?!? garbage\"");
}

#[test]
fn a_program_without_a_foreground_runs_in_the_background() {
    let fake = Fake::new().behave("no_foreground");
    let supervised = fake.ready();
    assert!(fake.read("starts").starts_with("-d "));
    let daemon = fake.daemon();
    assert!(lives(daemon));
    signal(daemon, Signal::KILL);
    assert_eq!(supervised.event(), MpsEvent::DaemonDied);
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
    let daemon = fake.daemon();
    drop(supervised);
    assert!(!lives(daemon));
}

#[test]
fn a_daemon_that_dies_is_started_again_and_its_server_does_not_stay() {
    let fake = Fake::new();
    let supervised = fake.ready();
    let (daemon, server) = (fake.daemon(), fake.server());
    // Only what was seen is ended: let it be looked at.
    until(|| fake.was_told(&format!("get_server_status {server}")));
    signal(daemon, Signal::KILL);
    assert_eq!(supervised.event(), MpsEvent::DaemonDied);
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
    until(|| !lives(server));
    assert_ne!(fake.daemon(), daemon);
    assert!(lives(fake.daemon()));
}

#[test]
fn a_daemon_that_hangs_is_ended_and_started_again() {
    let mut fake = Fake::new();
    fake.settings.times.answer = Duration::from_secs(1);
    let supervised = fake.ready();
    let daemon = fake.daemon();
    fake.write("hang", "");
    assert_eq!(supervised.event(), MpsEvent::DaemonDied);
    assert!(!lives(daemon));
    fake.behave_no_more("hang");
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
}

#[test]
fn a_fault_is_told_and_so_is_recovery() {
    let fake = Fake::new();
    let supervised = fake.ready();
    fake.write("status", "FAULT\n");
    assert_eq!(supervised.event(), fault());
    fake.write("status", "INITIALIZING\n");
    fake.write("status", "ACTIVE\n");
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    assert!(!fake.read("commands").contains("shutdown_server"));
    assert_eq!(fake.starts(), 1);
}

#[test]
fn a_server_that_stays_faulted_is_shut_down() {
    let mut fake = Fake::new();
    fake.settings.times.fault = Duration::ZERO;
    fake.settings.times.shutdown = PATIENCE;
    let supervised = fake.ready();
    let server = fake.server();
    fake.write("status", "FAULT\n");
    assert_eq!(supervised.event(), fault());
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    assert!(fake.was_told(&format!("shutdown_server {server} -f")));
    assert_ne!(fake.server(), server);
    assert_eq!(fake.starts(), 1);
}

/// Making contexts takes its time, on a device that nobody used for a while.
#[test]
fn a_server_that_initializes_is_waited_for() {
    let mut fake = Fake::new();
    fake.settings.times.fault = Duration::ZERO;
    fake.settings.times.check = PATIENCE;
    let supervised = fake.ready();
    fake.write("commands", "");
    fake.write("status", "INITIALIZING\n");
    supervised.supervisor.check();
    until(|| fake.read("commands").lines().count() > 8);
    fake.write("status", "ACTIVE\n");
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    assert!(!fake.read("commands").contains("shutdown_server"));
}

#[test]
fn one_that_cannot_be_shut_down_takes_its_daemon_along() {
    let mut fake = Fake::new().behave("stubborn");
    fake.settings.times.fault = Duration::ZERO;
    let supervised = fake.ready();
    let (daemon, server) = (fake.daemon(), fake.server());
    fake.write("status", "FAULT\n");
    assert_eq!(supervised.event(), fault());
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    assert_eq!(fake.starts(), 2);
    assert!(!lives(daemon));
    until(|| !lives(server));
}

#[test]
fn a_server_that_is_gone_is_a_fault() {
    let fake = Fake::new();
    let supervised = fake.ready();
    let server = fake.server();
    until(|| fake.was_told(&format!("get_server_status {server}")));
    fake.write("servers", "");
    assert_eq!(supervised.event(), fault());
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    assert_ne!(fake.server(), server);
    signal(server, Signal::KILL);
}

#[test]
fn a_look_that_is_asked_for_is_answered() {
    let mut fake = Fake::new();
    fake.settings.times.check = PATIENCE;
    let supervised = fake.ready();
    supervised.supervisor.check();
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    fake.write("status", "FAULT\n");
    supervised.supervisor.check();
    assert_eq!(supervised.event(), fault());
    fake.write("status", "ACTIVE\n");
    assert_eq!(supervised.event(), MpsEvent::Recovered);
}

#[test]
fn clients_are_terminated_by_server_and_client() {
    let fake = Fake::new();
    let supervised = fake.ready();
    fake.write("clients", "4001\n4002\n");
    assert_eq!(supervised.terminated(4002), Outcome::Terminated);
    assert!(fake.was_told(&format!("terminate_client {} 4002", fake.server())));
    assert_eq!(supervised.terminated(4003), Outcome::NoClient);
    assert!(!fake.read("commands").contains("4003"));
    fake.write("refusing", "");
    let Outcome::Failed { reason } = supervised.terminated(4001) else { panic!("it refuses") };
    assert!(reason.contains("was answered by \"Failed to terminate client 4001\""), "{reason}");
}

#[test]
fn an_adopted_daemon_is_used_and_left_alone() {
    let mut fake = Fake::new();
    fake.settings.adopt = true;
    let supervised = fake.supervise();
    let said = supervised.failure();
    assert!(said.starts_with("mps.adopt: nobody runs MPS there: "), "{said}");
    assert!(said.contains("Cannot find MPS control daemon process"), "{said}");
    let mut foreign = fake.foreign();
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
    assert!(fake.control().server_list().unwrap().is_empty());
    fake.write("servers", &format!("{}\n", std::process::id()));
    fake.write("status", "FAULT\n");
    assert_eq!(supervised.event(), fault());
    fake.write("status", "ACTIVE\n");
    assert_eq!(supervised.event(), MpsEvent::Recovered);
    fake.write("servers", "");
    fake.write("hang", "");
    drop(supervised);
    fake.behave_no_more("hang");
    assert!(foreign.try_wait().unwrap().is_none(), "it was stopped");
    for command in ["quit", "start_server", "shutdown_server"] {
        assert!(!fake.read("commands").contains(command), "{command}");
    }
    let supervised = fake.ready();
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    assert_eq!(supervised.event(), MpsEvent::DaemonDied);
}

#[test]
fn a_daemon_of_somebody_else_is_named_and_left_alone() {
    let fake = Fake::new();
    let mut foreign = fake.foreign();
    let supervised = fake.supervise();
    let said = supervised.failure();
    assert!(said.contains(&format!("process {} (", foreign.id())), "{said}");
    assert!(said.contains("runs MPS there, which gpulet did not start"), "{said}");
    assert_eq!(fake.starts(), 1);
    foreign.kill().unwrap();
    foreign.wait().unwrap();
    assert_eq!(supervised.event(), MpsEvent::Ready { version: Some(13000) });
}

#[test]
fn every_command_is_asked_as_mps_understands_it() {
    let fake = Fake::new();
    let mut foreign = fake.foreign();
    let control = fake.control();
    control.start_server(1000).unwrap();
    let server = control.server_list().unwrap()[0];
    assert_eq!(control.server_status(server).unwrap(), ServerStatus::Active);
    assert_eq!(control.active_thread_percentage(server).unwrap(), 25.0);
    fake.write("clients", "7\n8\n");
    assert_eq!(control.client_list(server).unwrap(), [7, 8]);
    control.terminate_client(server, 7).unwrap();
    control.shutdown_server(server).unwrap();
    let told = [
        "start_server -uid 1000".to_owned(),
        format!("get_server_status {server}"),
        format!("get_active_thread_percentage {server}"),
        format!("get_client_list {server}"),
        format!("terminate_client {server} 7"),
        format!("shutdown_server {server} -f"),
    ];
    for command in &told {
        assert!(fake.was_told(command), "{command}");
    }
    control.quit(Duration::from_secs(1)).unwrap();
    foreign.wait().unwrap();
    assert!(matches!(control.server_list(), Err(AskError::Failed { .. })));
    assert_eq!(version(&control.program, control.limit).unwrap(), Some(13000));
    assert!(matches!(version(Path::new("/none"), control.limit), Err(AskError::Run { .. })));
}
