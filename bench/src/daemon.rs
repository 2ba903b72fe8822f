//! A gpuletd of our own: private socket, private config, gone when the bench is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use gpulet_client::{Error as ClientError, ModelSpec, Options, Session, Status};
use gpulet_daemon::cli::control;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::error::{Doing, Error};
use crate::far::{kill, leashed, wait};
use crate::place::Place;
use crate::settings::{Gpulet, Settings};

const START_MAX: Duration = Duration::from_secs(30);
const LOAD_MAX: Duration = Duration::from_secs(300);
const STOP_MAX: Duration = Duration::from_secs(15);
/// Lines of the daemon's log that are shown when it failed.
const LOG_LINES: usize = 60;

/// The program that is told, else the one beside ours.
///
/// # Errors
/// When there is none.
pub fn program(given: Option<&Path>) -> Result<PathBuf, Error> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => {
            std::env::current_exe().doing("finding our own executable")?.with_file_name("gpuletd")
        }
    };
    match fs::canonicalize(&path) {
        Ok(path) => Ok(path),
        Err(source) => Err(Error::Io {
            what: format!("daemon {} (build it, or name it with --daemon)", path.display()),
            source,
        }),
    }
}

/// A running gpuletd. Dropped, it is killed if it was not stopped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    folder: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Daemon {
    /// Starts one in `place`, on one CPU or on all, and waits until it takes sessions.
    ///
    /// # Errors
    /// With the end of its log, when it does not.
    pub fn start(
        program: &Path,
        place: &Place,
        cpu: Option<u32>,
        settings: &Settings,
    ) -> Result<Daemon, Error> {
        let folder = place.folder().to_owned();
        let (socket, log) = (folder.join("gpuletd.sock"), place.log().to_owned());
        let config = settings.write(place)?;
        let log_file = File::create(&log).doing("making the daemon's log")?;
        let child = leashed(cpu, program)?
            .arg("--config")
            .arg(config)
            .env("GPULET_LOG", "info")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .doing("starting the daemon")?;
        let mut daemon = Daemon { child, folder, socket, log };
        daemon.await_session()?;
        Ok(daemon)
    }

    /// Has it read config and models again.
    ///
    /// # Errors
    /// When it is gone.
    pub fn reload(&self) -> Result<(), Error> {
        kill_process(Pid::from_child(&self.child), Signal::HUP).doing("having the daemon reload")
    }

    /// What `gpuletctl status` shows.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn state(&self) -> Result<Value, Error> {
        control::state(Some(&self.socket)).map_err(|why| self.complaint(&why.to_string()))
    }

    /// The process of the executor that has a gpulet, while it has one that is no successor.
    ///
    /// # Errors
    /// Those of [`state`](Self::state).
    pub fn executor_of(&self, gpulet: &str) -> Result<Option<u32>, Error> {
        let state = self.state()?;
        let executors = state["executors"].as_array().into_iter().flatten();
        let has = |it: &&Value| {
            let mut gpulets = it["gpulets"].as_array().into_iter().flatten();
            it["state"] == "running" && gpulets.any(|name| name == gpulet)
        };
        let pid = executors.filter(has).find_map(|it| it["pid"].as_u64());
        Ok(pid.and_then(|pid| u32::try_from(pid).ok()))
    }

    /// Waits until every gpulet can run all models that the settings name for it.
    ///
    /// # Errors
    /// With the end of its log, when that does not come.
    pub fn await_gpulets(&self, settings: &Settings) -> Result<(), Error> {
        let end = Instant::now() + LOAD_MAX;
        let is_ready = |state: &Value, gpulet: &Gpulet| {
            let wanted = gpulet.models.as_ref().map_or(0, Vec::len) as u64;
            let mut all = state["gpulets"].as_array().into_iter().flatten();
            all.any(|it| it["name"] == gpulet.name && it["models"].as_u64() >= Some(wanted))
        };
        loop {
            let state = self.state()?;
            if settings.gpulets.iter().all(|gpulet| is_ready(&state, gpulet)) {
                return Ok(());
            }
            if Instant::now() >= end {
                return Err(self.complaint("not every gpulet has its models"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Where its log is.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Where it has the pipes of the MPS that it runs for a device.
    pub fn mps_pipes(&self, device: u32) -> PathBuf {
        self.folder.join(format!("mps/gpu{device}/pipe"))
    }

    fn await_session(&mut self) -> Result<(), Error> {
        let end = Instant::now() + START_MAX;
        loop {
            let why = match Session::open(&Options::at(&self.socket)) {
                Ok(_) => return Ok(()),
                Err(error) => error,
            };
            let over = self.child.try_wait().doing("looking after the daemon")?;
            if let Some(status) = over {
                return Err(self.complaint(&format!("it ended ({status})")));
            }
            let patient = matches!(why.status(), Status::NoDaemon | Status::Timeout);
            if !patient || Instant::now() >= end {
                return Err(self.complaint(&why.to_string()));
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Opens a session.
    ///
    /// # Errors
    /// With the end of the daemon's log.
    pub fn session(&self, options: Options) -> Result<Session, Error> {
        let options = Options { socket: Some(self.socket.clone()), ..options };
        Session::open(&options).map_err(|why| self.complaint(&why.to_string()))
    }

    /// Opens a model, waiting for it to be loaded.
    ///
    /// # Errors
    /// With the end of the daemon's log.
    pub fn model(&self, session: &mut Session, name: &str) -> Result<ModelSpec, Error> {
        open_model(session, name, LOAD_MAX).map_err(|why| self.complaint(&why.to_string()))
    }

    /// Bytes of memory that it holds now.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kib << 10)
    }

    /// CPU time that it and its executors have used.
    pub fn cpu_time(&self) -> Option<Duration> {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        children.chain([pid]).map(cpu_time_of).sum()
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// When it ended badly, or not at all.
    pub fn stop(mut self) -> Result<(), Error> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::TERM).doing("stopping the daemon")?;
        match wait(&mut self.child, STOP_MAX).doing("stopping the daemon")? {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(self.complaint(&format!("it ended badly ({status})"))),
            None => Err(self.complaint("it did not end when asked to")),
        }
    }

    /// An error with the end of the daemon's log.
    pub fn complaint(&self, what: &str) -> Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
        Error::failed("gpuletd", format!("{what}\n{tail}"))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

/// User and system time of all threads of a process, to the nanosecond.
fn cpu_time_of(pid: u32) -> Option<Duration> {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let mut total_ns = 0;
    for thread in threads.flatten() {
        // The first number is the time on a CPU.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        total_ns += text.split_whitespace().next()?.parse::<u64>().ok()?;
    }
    Some(Duration::from_nanos(total_ns))
}

/// Opens a model, asking again for `limit` while it is being loaded.
///
/// # Errors
/// Those of the session; the last one when time is up.
pub fn open_model(
    session: &mut Session,
    name: &str,
    limit: Duration,
) -> Result<ModelSpec, ClientError> {
    let end = Instant::now() + limit;
    loop {
        match session.model_open(name) {
            Err(why) if why.status() == Status::ModelLoading && Instant::now() < end => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => return result,
        }
    }
}

impl From<ClientError> for Error {
    fn from(why: ClientError) -> Error {
        Error::failed("session", why)
    }
}

/// Errors of a request, told by the status of its answer.
///
/// # Errors
/// Any status but success.
pub fn answered(status: i32) -> Result<(), Error> {
    match Status::from_number(status) {
        Some(Status::Ok) => Ok(()),
        Some(status) => Err(Error::failed("request", status)),
        None => Err(Error::failed("request", format!("unknown status {status}"))),
    }
}
