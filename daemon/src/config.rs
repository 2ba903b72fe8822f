//! `gpuletd.toml`, checked.
//!
//! What is written and what is used are different types: [`Config`] exists only if every rule
//! holds. All broken rules are reported together, each with its file, line and field. Relative
//! paths start from the directory of the file. Nothing here looks at models; see
//! [`crate::model::scan`] and [`Config::check_models`].

mod access;
mod cuda;
mod gpulet;
mod limits;
mod raw;

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

pub use self::access::Access;
pub use self::cuda::{Cuda, DEFAULT_KERNEL_CACHE, DEFAULT_MPS_CONTROL, DEFAULT_MPS_DIRECTORY, Mps};
pub use self::gpulet::{DeviceName, Gpulet, Mechanism, ModelSet};
use self::raw::RawConfig;
use crate::document::{self, Document, Problem};
use crate::limits::{DURATION_MAX_NS, Limits, MODEL_ROOTS_MAX, SOCKET_PATH_BYTES, SPIN_MAX_NS};
use crate::model::Model;

/// Where the configuration is, unless a flag says otherwise.
pub const DEFAULT_PATH: &str = "/etc/gpulet/gpuletd.toml";
/// Where clients connect, unless the configuration says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/gpulet/gpuletd.sock";
/// Where models are, unless the configuration says otherwise.
pub const DEFAULT_MODELS: &str = "/var/lib/gpulet/models";

const NS_PER_MS: u64 = 1_000_000;
const NS_PER_US: u64 = 1_000;
const DURATION_MAX_MS: u64 = DURATION_MAX_NS / NS_PER_MS;
const HANG_TIMEOUT_MIN_MS: u64 = 100;

/// Everything that `gpuletd` is told. Only checked ones exist.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The file this came from.
    pub path: PathBuf,
    /// Where clients connect, unless the socket was handed over by a supervisor.
    pub socket: PathBuf,
    /// Directories whose subdirectories with a `model.toml` are models.
    pub models: Vec<PathBuf>,
    /// Where libtorch is; `None`: as the shim was built.
    pub libtorch_dir: Option<PathBuf>,
    /// Where the shim is; `None`: beside the executable.
    pub torch_shim: Option<PathBuf>,
    /// How long requests in flight may take to finish when the daemon stops.
    pub drain_timeout_ns: u64,
    /// A batch that takes longer (and ten times its prediction) means a hung executor.
    pub hang_timeout_ns: u64,
    /// How long dispatcher and executors poll before they sleep.
    pub spin: Spin,
    /// Gpulets that are free wait for another row where that pays.
    pub defer: bool,
    /// Who may connect.
    pub access: Access,
    /// Maxima.
    pub limits: Limits,
    /// What executors on GPUs load.
    pub cuda: Cuda,
    /// How MPS is run, where a gpulet needs it.
    pub mps: Mps,
    /// At least one.
    pub gpulets: Vec<Gpulet>,
}

/// How long to poll before sleeping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spin {
    /// So long.
    For {
        /// At most [`SPIN_MAX_NS`].
        ns: u64,
    },
    /// Never sleep.
    Always,
}

impl Spin {
    /// How long; `u64::MAX` for ever.
    pub fn ns(self) -> u64 {
        match self {
            Spin::For { ns } => ns,
            Spin::Always => u64::MAX,
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It breaks rules; the message has a line for each.
    #[error("{}", document::lines(.0))]
    Invalid(Vec<Problem>),
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`], which names everything that is wrong.
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let text = document::read_text(path).map_err(read)?;
        Config::parse(path, &text)
    }

    /// Checks the text of a file; `path` is for messages and for what relative paths start from.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let read = |source| ConfigError::Read { path: path.to_owned(), source };
        let absolute = std::path::absolute(path).map_err(read)?;
        let base = absolute.parent().unwrap_or(Path::new("/"));
        let mut document = Document::new(path, text);
        let config = document.parse().map(|raw| check(&raw, path, base, &mut document));
        match (config, document.into_problems()) {
            (Some(config), problems) if problems.is_empty() => Ok(config),
            (_, problems) => Err(ConfigError::Invalid(problems)),
        }
    }

    /// Checks that the models which gpulets name are there.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] with every name that no model has.
    pub fn check_models(&self, models: &[Model]) -> Result<(), ConfigError> {
        let mut problems = Vec::new();
        for (index, gpulet) in self.gpulets.iter().enumerate() {
            let own = match &gpulet.models {
                ModelSet::All => &[],
                ModelSet::Named(names) => names.as_slice(),
            };
            let own = own.iter().map(|name| ("models", name));
            for (field, name) in own.chain(gpulet.guests.iter().map(|name| ("guests", name))) {
                if !models.iter().any(|model| model.name == *name) {
                    problems.push(Problem {
                        file: self.path.clone(),
                        line: None,
                        field: format!("gpulet[{index}].{field}"),
                        rule: format!("must name models there are, {name:?} is none"),
                    });
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(ConfigError::Invalid(problems)) }
    }
}

fn check(raw: &RawConfig, path: &Path, base: &Path, document: &mut Document<'_>) -> Config {
    let optional_path = |field: &str, value: &Option<Spanned<String>>, document: &mut _| {
        value.as_ref().map(|value| path_from(field, value, base, document))
    };
    let socket = socket(raw, base, document);
    let milliseconds = |field: &str, value, default, min, document: &mut Document<'_>| {
        document.integer(field, value, default, min..=DURATION_MAX_MS) * NS_PER_MS
    };
    Config {
        path: path.to_owned(),
        socket,
        models: model_roots(raw, base, document),
        libtorch_dir: optional_path("libtorch_dir", &raw.libtorch_dir, document),
        torch_shim: optional_path("torch_shim", &raw.torch_shim, document),
        drain_timeout_ns: milliseconds(
            "drain_timeout_ms",
            raw.drain_timeout_ms.as_ref(),
            10_000,
            0,
            document,
        ),
        hang_timeout_ns: milliseconds(
            "hang_timeout_ms",
            raw.hang_timeout_ms.as_ref(),
            30_000,
            HANG_TIMEOUT_MIN_MS,
            document,
        ),
        spin: spin(raw.spin_us.as_ref(), document),
        defer: raw.defer,
        access: access::check(&raw.access, document),
        limits: limits::check(&raw.limits, document),
        cuda: cuda::check_cuda(&raw.cuda, base, document),
        mps: cuda::check_mps(&raw.mps, base, document),
        gpulets: gpulet::check(&raw.gpulet, base, document),
    }
}

fn path_from(
    field: &str,
    value: &Spanned<String>,
    base: &Path,
    document: &mut Document<'_>,
) -> PathBuf {
    let text = value.get_ref();
    if text.is_empty() || text.contains('\0') {
        document.problem(field, Some(value.span()), "must be a path, is empty or has a NUL");
    }
    base.join(text)
}

fn socket(raw: &RawConfig, base: &Path, document: &mut Document<'_>) -> PathBuf {
    let Some(value) = &raw.socket else { return PathBuf::from(DEFAULT_SOCKET) };
    let socket = path_from("socket", value, base, document);
    if socket.as_os_str().as_bytes().len() >= SOCKET_PATH_BYTES {
        let rule = format!(
            "must have at most {} bytes as an absolute path, is {}",
            SOCKET_PATH_BYTES - 1,
            socket.display()
        );
        document.problem("socket", Some(value.span()), rule);
    }
    socket
}

fn model_roots(raw: &RawConfig, base: &Path, document: &mut Document<'_>) -> Vec<PathBuf> {
    let Some(list) = &raw.models else { return vec![PathBuf::from(DEFAULT_MODELS)] };
    let count = list.get_ref().len();
    if count == 0 || count > MODEL_ROOTS_MAX {
        let rule = format!("must have 1 to {MODEL_ROOTS_MAX} directories, has {count}");
        document.problem("models", Some(list.span()), rule);
        return Vec::new();
    }
    let mut roots: Vec<PathBuf> = Vec::new();
    for (index, value) in list.get_ref().iter().enumerate() {
        let field = format!("models[{index}]");
        let root = path_from(&field, value, base, document);
        if roots.contains(&root) {
            let rule = format!("must be named once, {} is there twice", root.display());
            document.problem(field, Some(value.span()), rule);
        }
        roots.push(root);
    }
    roots
}

fn spin(value: Option<&Spanned<Value>>, document: &mut Document<'_>) -> Spin {
    const DEFAULT_US: u64 = 20;
    const MAX_US: u64 = SPIN_MAX_NS / NS_PER_US;
    let Some(value) = value else { return Spin::For { ns: DEFAULT_US * NS_PER_US } };
    match value.get_ref() {
        Value::String(word) if word == "always" => return Spin::Always,
        Value::Integer(us) => {
            if let Some(us) = u64::try_from(*us).ok().filter(|us| *us <= MAX_US) {
                return Spin::For { ns: us * NS_PER_US };
            }
        }
        _ => {}
    }
    let rule = format!("must be 0 to {MAX_US} or \"always\", is {}", value.get_ref());
    document.problem("spin_us", Some(value.span()), rule);
    Spin::Always
}
