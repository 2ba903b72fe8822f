//! NVIDIA MPS, kept running: its control daemon is started, watched, asked and stopped.
//!
//! One [`Supervisor`] looks after one control daemon, and so after the clients in one pipe
//! directory. Each device has a daemon of its own: after a fault an MPS server takes no new clients
//! on any of its devices until the broken ones are gone, and other devices are to notice nothing.
//!
//! The supervisor has a thread of its own, because MPS's control program is asked by starting it
//! and waiting for it; the daemon's one thread never waits. It sends commands, is woken by a closure
//! of its choice, and takes [`MpsEvent`]s.
//!
//! | module      | holds                                                            |
//! |-------------|------------------------------------------------------------------|
//! | [`control`] | commands to MPS's control program, each with a time limit         |
//! | `child`     | the control daemon as our process                                 |
//! | `directory` | its pipe and log directories, and who else lives there            |
//! | `watch`     | what the thread does                                              |

mod child;
pub mod control;
mod directory;
mod watch;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use gpulet_abi::doorbell::Doorbell;

use crate::config;

/// The variable that has a client's share of the multiprocessors, in percent; read when a process first
/// uses CUDA.
pub const SHARE_PCT: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";

/// The share that this process was started with, if it is a client with one.
pub fn own_share_pct() -> Option<u8> {
    std::env::var(SHARE_PCT).ok()?.trim().parse().ok()
}

/// One control daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The control program: a name to be found in `PATH`, or a path.
    pub control: PathBuf,
    /// `CUDA_MPS_PIPE_DIRECTORY`.
    pub pipe_dir: PathBuf,
    /// `CUDA_MPS_LOG_DIRECTORY`.
    pub log_dir: PathBuf,
    /// UUIDs of the devices that its clients may use.
    pub devices: Vec<String>,
    /// Somebody else runs the daemon: it is asked, never started or stopped.
    pub adopt: bool,
    /// How long to wait for what.
    pub times: Times,
}

/// How long to wait for what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Times {
    /// For the answer to one command.
    pub answer: Duration,
    /// From the daemon's start until it has a server that takes clients.
    pub start: Duration,
    /// Between looks at a daemon that is well.
    pub check: Duration,
    /// Between looks at one that is starting or recovering.
    pub poll: Duration,
    /// For a faulted server to recover by itself once its clients are ended; then it is shut down.
    pub fault: Duration,
    /// For a server that was shut down to be gone; then the daemon is started anew.
    pub shutdown: Duration,
    /// For the daemon to end when it is told to; then it is killed.
    pub stop: Duration,
    /// Before the first new start after a failure; doubled for each that follows.
    pub backoff_min: Duration,
    /// The most that comes of doubling.
    pub backoff_max: Duration,
}

impl Default for Times {
    fn default() -> Times {
        Times {
            answer: Duration::from_secs(2),
            start: Duration::from_secs(20),
            check: Duration::from_secs(1),
            poll: Duration::from_millis(50),
            fault: Duration::from_secs(1),
            shutdown: Duration::from_millis(500),
            stop: Duration::from_secs(2),
            backoff_min: Duration::from_millis(100),
            backoff_max: Duration::from_secs(5),
        }
    }
}

impl Settings {
    /// The daemons that `config` asks for, given the index and UUID of each device with clients: one
    /// a device, or the adopted one for all.
    pub fn of(config: &config::Mps, devices: &[(u32, String)]) -> Vec<Settings> {
        let settings = |directory: PathBuf, devices: Vec<String>| Settings {
            control: config.control.clone(),
            pipe_dir: directory.join("pipe"),
            log_dir: directory.join("log"),
            devices,
            adopt: config.adopt,
            times: Times::default(),
        };
        if config.adopt {
            let uuids = devices.iter().map(|(_, uuid)| uuid.clone()).collect();
            return vec![settings(config.directory.clone(), uuids)];
        }
        let own = |(index, uuid): &(u32, String)| {
            settings(config.directory.join(format!("gpu{index}")), vec![uuid.clone()])
        };
        devices.iter().map(own).collect()
    }

    /// What a client is started with, so that it is one of this daemon: on that device, with so many
    /// percent of its multiprocessors, and at most so many bytes of its memory.
    pub fn client_env(
        &self,
        device: &str,
        share_pct: u8,
        memory_bytes: Option<u64>,
    ) -> Vec<(String, String)> {
        let pair = |name: &str, value: String| (name.to_owned(), value);
        let mut env = vec![
            pair("CUDA_MPS_PIPE_DIRECTORY", self.pipe_dir.display().to_string()),
            pair("CUDA_VISIBLE_DEVICES", device.to_owned()),
            pair(SHARE_PCT, share_pct.to_string()),
        ];
        if let Some(bytes) = memory_bytes {
            // Devices are counted among those that the client sees, which is one.
            let mib = (bytes >> 20).max(1);
            env.push(pair("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", format!("0={mib}M")));
        }
        env
    }
}

/// What a supervisor tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MpsEvent {
    /// Clients can come: at the start, and after [`DaemonDied`](MpsEvent::DaemonDied).
    Ready {
        /// The control program's version, such as 13000 for CUDA 13.0, where it tells.
        version: Option<u32>,
    },
    /// It cannot be had. It is tried again; this is not said again until the reason is another.
    Failed {
        /// For people: which file or program, and what is wrong.
        reason: String,
    },
    /// The control daemon is gone, and so are its servers and every client's context.
    DaemonDied,
    /// A server faulted or is gone. Its clients must end before it takes new ones.
    ServerFaulted {
        /// The device, where there is only one that it can be.
        device: Option<String>,
    },
    /// Clients can come again: after [`ServerFaulted`](MpsEvent::ServerFaulted), and as the answer to
    /// [`Supervisor::check`].
    Recovered,
    /// The answer to [`Supervisor::terminate_client`].
    ClientTerminated {
        /// Which process.
        pid: u32,
        /// How it went.
        outcome: Outcome,
    },
}

/// How the end of a client's work on the device went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has none any more: its process can be killed, and its neighbours notice nothing.
    Terminated,
    /// No server knows it as a client.
    NoClient,
    /// MPS did not do it: killing the process may take its neighbours down.
    Failed {
        /// What MPS said, or did not.
        reason: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Terminated => f.write_str("terminated"),
            Outcome::NoClient => f.write_str("is no client"),
            Outcome::Failed { reason } => f.write_str(reason),
        }
    }
}

/// What the thread is told.
enum Order {
    Terminate { pid: u32 },
    Check,
    Stop,
}

/// Looks after one control daemon. When it is dropped the daemon is stopped, unless it was adopted.
pub struct Supervisor {
    settings: Settings,
    orders: Sender<Order>,
    bell: Doorbell,
    events: Receiver<MpsEvent>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Supervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Supervisor").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Supervisor {
    /// Starts the thread. `wake` is called by it after every event.
    ///
    /// # Errors
    /// What the kernel says to a thread and an eventfd.
    pub fn start(settings: Settings, wake: impl Fn() + Send + 'static) -> io::Result<Supervisor> {
        let (orders, ordered) = channel();
        let (told, events) = channel();
        let bell = Doorbell::new()?;
        let tell = move |event| {
            // Nobody listens any more while it is being dropped.
            let _ = told.send(event);
            wake();
        };
        let watch = watch::Watch::new(settings.clone(), ordered, bell.try_clone()?.into(), tell);
        let thread = std::thread::Builder::new().name("mps".to_owned()).spawn(|| watch.run())?;
        Ok(Supervisor { settings, orders, bell, events, thread: Some(thread) })
    }

    /// What it was started with.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The next event, if there is one.
    pub fn event(&self) -> Option<MpsEvent> {
        self.events.try_recv().ok()
    }

    /// Ends what the client with this process id has on its device, so that killing it harms nobody.
    /// Answered by [`MpsEvent::ClientTerminated`].
    pub fn terminate_client(&self, pid: u32) {
        self.order(Order::Terminate { pid });
    }

    /// Looks at once, because a client failed, and not only when the next look is due. Answered by
    /// [`MpsEvent::Recovered`] as soon as new clients can come; the old ones must end for that.
    pub fn check(&self) {
        self.order(Order::Check);
    }

    /// Begins to stop the daemon, whose clients should have ended. See [`is_stopped`].
    ///
    /// [`is_stopped`]: Supervisor::is_stopped
    pub fn stop(&self) {
        self.order(Order::Stop);
    }

    /// Whether the daemon is stopped: dropping the supervisor then waits for nothing.
    pub fn is_stopped(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    fn order(&self, order: Order) {
        // A thread that has stopped takes no orders, and needs none.
        let _ = self.orders.send(order);
        let _ = self.bell.signal();
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // It has a time limit for everything.
            let _ = thread.join();
        }
    }
}

/// Where the control program is: `program` itself if it is a path, else looked up in `PATH`.
///
/// # Errors
/// Why there is none, for people.
pub fn find_control(program: &Path) -> Result<PathBuf, String> {
    find_in(program, std::env::var_os("PATH").as_deref())
}

fn find_in(program: &Path, path: Option<&OsStr>) -> Result<PathBuf, String> {
    let is_program = |file: &Path| {
        let executable = |meta: std::fs::Metadata| meta.permissions().mode() & 0o111 != 0;
        file.is_file() && file.metadata().is_ok_and(executable)
    };
    if program.components().count() > 1 {
        let missing = || format!("{} is no program", program.display());
        return is_program(program).then(|| program.to_owned()).ok_or_else(missing);
    }
    let path = path.unwrap_or_default();
    std::env::split_paths(path)
        .map(|directory| directory.join(program))
        .find(|file| is_program(file))
        .ok_or_else(|| format!("{} is in no directory of PATH", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "GPU-8f0e3a21-77b4-4c1d-9e52-0123456789ab";

    fn config(adopt: bool) -> config::Mps {
        let (control, directory) = ("nvidia-cuda-mps-control".into(), "/run/gpulet/mps".into());
        config::Mps { control, directory, adopt, green: false }
    }

    #[test]
    fn each_device_has_a_daemon_of_its_own_unless_one_is_adopted() {
        let devices = [(0, UUID.to_owned()), (3, UUID.replace('8', "9"))];
        let own = Settings::of(&config(false), &devices);
        assert_eq!(own.len(), 2);
        assert_eq!(own[1].pipe_dir, Path::new("/run/gpulet/mps/gpu3/pipe"));
        assert_eq!(own[1].log_dir, Path::new("/run/gpulet/mps/gpu3/log"));
        assert_eq!(own[0].devices, [UUID]);
        let adopted = Settings::of(&config(true), &devices);
        assert_eq!(adopted.len(), 1);
        assert_eq!(adopted[0].pipe_dir, Path::new("/run/gpulet/mps/pipe"));
        assert_eq!(adopted[0].devices.len(), 2);
    }

    #[test]
    fn clients_are_told_by_their_environment() {
        let settings = Settings::of(&config(false), &[(0, UUID.to_owned())]).remove(0);
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let mut expected = vec![
            pair("CUDA_MPS_PIPE_DIRECTORY", "/run/gpulet/mps/gpu0/pipe"),
            pair("CUDA_VISIBLE_DEVICES", UUID),
            pair(SHARE_PCT, "25"),
        ];
        assert_eq!(settings.client_env(UUID, 25, None), expected);
        expected.push(pair("CUDA_MPS_PINNED_DEVICE_MEM_LIMIT", "0=16384M"));
        assert_eq!(settings.client_env(UUID, 25, Some(16 << 30)), expected);
    }

    #[test]
    fn the_control_program_is_found_or_its_absence_said() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("control");
        let path = std::env::join_paths([Path::new("/nowhere"), folder.path()]).unwrap();
        let find = |name: &Path| find_in(name, Some(&path));
        let said = find(Path::new("control")).unwrap_err();
        assert_eq!(said, "control is in no directory of PATH");
        std::fs::write(&program, "#!/bin/sh\n").unwrap();
        assert!(find(Path::new("control")).is_err(), "a file that cannot be run is no program");
        std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
        assert_eq!(find(Path::new("control")), Ok(program.clone()));
        assert_eq!(find(&program), Ok(program.clone()));
        assert!(find(&folder.path().join("other")).unwrap_err().ends_with("other is no program"));
        assert!(find_in(Path::new("control"), None).is_err());
    }
}
