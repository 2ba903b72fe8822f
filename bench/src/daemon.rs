//! A gpuletd of our own: private socket, private config, gone when the bench is.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use gpulet_client::{Error as ClientError, ModelSpec, Options, Session, Status};
use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;
use tempfile::TempDir;

use crate::error::{Doing, Error};
use crate::far::{kill, leashed, wait};

const START_MAX: Duration = Duration::from_secs(30);
const LOAD_MAX: Duration = Duration::from_secs(300);
const STOP_MAX: Duration = Duration::from_secs(15);
/// Lines of the daemon's log that are shown when it failed.
const LOG_LINES: usize = 60;

/// How long the daemon polls before it sleeps.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Spin {
    /// So many microseconds; zero: it sleeps at once.
    Micros(u32),
    /// Spelt "always": it never sleeps.
    Word(&'static str),
}

/// Never sleep.
pub const ALWAYS: Spin = Spin::Word("always");

/// How gpulets of a GPU hold their shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Held {
    /// Percentages of the GPU's MPS.
    Mps,
    /// Green contexts of the GPU.
    Green,
}

impl Held {
    /// As gpuletd.toml has it.
    pub fn word(self) -> &'static str {
        match self {
            Held::Mps => "mps",
            Held::Green => "green",
        }
    }
}

/// What runs the models.
#[derive(Clone, Debug)]
pub enum Gpulet {
    /// Nothing has to: built-in null models are answered by the dispatcher.
    Idle,
    /// libtorch, on so many percent of the CPUs.
    Cpu {
        /// 1 to 100.
        share_pct: u8,
        /// The only one that is loaded.
        model: String,
    },
    /// libtorch, on so many percent of the first GPU.
    Gpu {
        /// "mps" or "green".
        mechanism: &'static str,
        /// How many such gpulets.
        count: u32,
        /// Of each, 1 to 100.
        share_pct: u8,
        /// The only one that is loaded; all there are, without.
        model: Option<String>,
        /// Where the MPS that runs already has its pipes; without, the daemon starts its own.
        mps: Option<PathBuf>,
    },
}

impl Gpulet {
    /// As gpuletd.toml has them.
    fn raw<'a>(&'a self, folder: &'a Path) -> Vec<RawGpulet<'a>> {
        let raw = RawGpulet {
            name: "gpulet0".to_owned(),
            mechanism: "replay",
            share_pct: 1,
            device: None,
            profiles: None,
            models: None,
        };
        match self {
            Gpulet::Idle => vec![RawGpulet { profiles: Some(folder), ..raw }],
            Gpulet::Cpu { share_pct, model } => vec![RawGpulet {
                mechanism: "cpu",
                share_pct: *share_pct,
                models: Some([model]),
                ..raw
            }],
            Gpulet::Gpu { mechanism, count, share_pct, model, mps: _ } => {
                let one = |index| RawGpulet {
                    name: format!("gpulet{index}"),
                    mechanism,
                    share_pct: *share_pct,
                    device: Some(0),
                    models: model.as_deref().map(|model| [model]),
                    ..raw.clone()
                };
                (0..*count).map(one).collect()
            }
        }
    }
}

#[derive(Debug, Serialize)]
struct Config<'a> {
    socket: &'a Path,
    models: [&'a Path; 1],
    spin_us: Spin,
    limits: Limits,
    mps: RawMps<'a>,
    cuda: RawCuda<'a>,
    gpulet: Vec<RawGpulet<'a>>,
}

#[derive(Debug, Serialize)]
struct RawMps<'a> {
    directory: &'a Path,
    adopt: bool,
}

#[derive(Debug, Serialize)]
struct RawCuda<'a> {
    kernel_cache: &'a Path,
}

#[derive(Debug, Serialize)]
struct Limits {
    slot_bytes_max: u64,
    region_bytes_max: u64,
    region_bytes_total_max: u64,
}

#[derive(Clone, Debug, Serialize)]
struct RawGpulet<'a> {
    name: String,
    mechanism: &'static str,
    share_pct: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profiles: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<[&'a str; 1]>,
}

/// A folder with a place for models and one for a daemon's socket, config and log.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
}

impl Place {
    /// A fresh one, removed when dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> Result<Place, Error> {
        let folder = tempfile::Builder::new().prefix("gpulet-bench-").tempdir();
        let place = Place { folder: folder.doing("making a temporary folder")? };
        fs::create_dir(place.models()).doing("making a folder for models")?;
        Ok(place)
    }

    fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// Adds a built-in null model: one input of `payload_bytes` bytes, one output of one byte.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_null(&self, name: &str, payload_bytes: u64) -> Result<(), Error> {
        let folder = self.models().join(name);
        let text = format!(
            "builtin = \"null\"\nslo_ms = 1000.0\nmax_batch = 1\nwarmup_count = 1\n\n\
             [[input]]\nname = \"payload\"\ndtype = \"u8\"\nshape = [-1, {payload_bytes}]\n\n\
             [[output]]\nname = \"answer\"\ndtype = \"u8\"\nshape = [-1, 1]\n"
        );
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join("model.toml"), text))
            .doing("writing a null model")
    }

    /// Adds a built-in model that faults the GPU it runs on.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_fault(&self, name: &str) -> Result<(), Error> {
        let folder = self.models().join(name);
        let text = "builtin = \"fault\"\nslo_ms = 60000.0\nmax_batch = 1\nwarmup_count = 1\n\n\
                    [[input]]\nname = \"x\"\ndtype = \"u8\"\nshape = [-1, 1]\n\n\
                    [[output]]\nname = \"y\"\ndtype = \"u8\"\nshape = [-1, 1]\n";
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join("model.toml"), text))
            .doing("writing a model that faults")
    }

    /// Adds the model in `folder` with another `max_batch`; it keeps its name.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_with_batch(&self, folder: &Path, max_batch: u32) -> Result<String, Error> {
        let path = folder.join("model.toml");
        let reading = format!("reading {}", path.display());
        let text = fs::read_to_string(&path).doing(&reading)?;
        let mut model: toml::Table =
            toml::from_str(&text).map_err(|why| Error::failed(reading, why.message()))?;
        model.insert("max_batch".to_owned(), i64::from(max_batch).into());
        let file = model.get("file").and_then(|file| file.as_str());
        let file = file.ok_or_else(|| Error::failed("model", "has no file"))?;
        let archive = fs::canonicalize(folder.join(file)).doing("finding the archive")?;
        let archive = archive.to_string_lossy().into_owned();
        model.insert("file".to_owned(), archive.into());
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or("model").to_owned();
        let text = toml::to_string(&model).map_err(|why| Error::failed("model", why))?;
        let folder = self.models().join(&name);
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join("model.toml"), text))
            .doing("writing a model")?;
        Ok(name)
    }

    /// Adds the model in `folder`, which keeps its name.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add(&self, folder: &Path) -> Result<String, Error> {
        let folder = fs::canonicalize(folder).doing(&format!("model {}", folder.display()))?;
        let name = folder.file_name().and_then(|name| name.to_str());
        let name = name.ok_or_else(|| Error::failed("model", "its folder has no name"))?;
        std::os::unix::fs::symlink(&folder, self.models().join(name)).doing("linking a model")?;
        Ok(name.to_owned())
    }
}

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
        spin: Spin,
        gpulet: &Gpulet,
    ) -> Result<Daemon, Error> {
        let folder = place.folder.path();
        let (socket, log) = (folder.join("gpuletd.sock"), folder.join("gpuletd.log"));
        let models = place.models();
        let gpulets = gpulet.raw(folder);
        let mps = match gpulet {
            Gpulet::Gpu { mps: Some(directory), .. } => RawMps { directory, adopt: true },
            // Its own, where it needs one.
            _ => RawMps { directory: &folder.join("mps"), adopt: false },
        };
        let config = Config {
            socket: &socket,
            models: [&models],
            spin_us: spin,
            limits: Limits {
                slot_bytes_max: 1 << 30,
                region_bytes_max: 4 << 30,
                region_bytes_total_max: 8 << 30,
            },
            mps,
            cuda: RawCuda { kernel_cache: &folder.join("kernels") },
            gpulet: gpulets,
        };
        let text = toml::to_string(&config).map_err(|why| Error::failed("daemon config", why))?;
        let path = folder.join("gpuletd.toml");
        fs::write(&path, text).doing("writing the daemon's config")?;
        let mut command = leashed(cpu, program)?;
        let log_file = File::create(&log).doing("making the daemon's log")?;
        let child = command
            .arg("--config")
            .arg(&path)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .doing("starting the daemon")?;
        let mut daemon = Daemon { child, socket, log };
        daemon.await_session()?;
        Ok(daemon)
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
