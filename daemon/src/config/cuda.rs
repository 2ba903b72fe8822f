//! The sections `[cuda]` and `[mps]`, checked: what gpulets on GPUs need beside their device.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use toml::Spanned;

use super::path_from;
use super::raw::{RawCuda, RawMps};
use crate::document::Document;
use crate::limits::SOCKET_PATH_BYTES;

/// Where compiled kernels are kept, unless the configuration says otherwise.
pub const DEFAULT_KERNEL_CACHE: &str = "/var/cache/gpulet";
/// What starts MPS and talks to it, unless the configuration says otherwise.
pub const DEFAULT_MPS_CONTROL: &str = "nvidia-cuda-mps-control";
/// Where MPS keeps its sockets and logs, unless the configuration says otherwise.
pub const DEFAULT_MPS_DIRECTORY: &str = "/run/gpulet/mps";
/// The longest path of a socket below the directory.
const MPS_SOCKET: &str = "/gpu63/pipe/control_privileged";

/// What executors on GPUs load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuda {
    /// The shim built for a libtorch with CUDA; `None`: beside the executable.
    pub shim: Option<PathBuf>,
    /// A directory for compiled kernels.
    pub kernel_cache: PathBuf,
    /// The library that compiles kernels; `None`: found by the system's loader.
    pub nvrtc: Option<PathBuf>,
}

/// How MPS is run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mps {
    /// The control program: a name to be found in `PATH`, or an absolute path.
    pub control: PathBuf,
    /// Pipes and logs lie below it.
    pub directory: PathBuf,
    /// Somebody else runs the daemon of that directory: it is used, never started or stopped.
    pub adopt: bool,
    /// Executors of mechanism `green` are MPS clients too, at 100 %.
    pub green: bool,
}

impl Mps {
    /// `CUDA_MPS_PIPE_DIRECTORY` of the daemon that is adopted; our own have each a directory below.
    pub fn pipe_dir(&self) -> PathBuf {
        self.directory.join("pipe")
    }
}

pub(super) fn check_cuda(raw: &RawCuda, base: &Path, document: &mut Document<'_>) -> Cuda {
    let mut path = |field: &str, value: &Option<Spanned<String>>| {
        value.as_ref().map(|value| path_from(field, value, base, document))
    };
    Cuda {
        shim: path("cuda.shim", &raw.shim),
        kernel_cache: path("cuda.kernel_cache", &raw.kernel_cache)
            .unwrap_or_else(|| PathBuf::from(DEFAULT_KERNEL_CACHE)),
        nvrtc: path("cuda.nvrtc", &raw.nvrtc),
    }
}

pub(super) fn check_mps(raw: &RawMps, base: &Path, document: &mut Document<'_>) -> Mps {
    let control = match &raw.control {
        // A name alone is not beside the file but in PATH.
        Some(name) if !name.get_ref().is_empty() && !name.get_ref().contains(['/', '\0']) => {
            PathBuf::from(name.get_ref())
        }
        Some(path) => path_from("mps.control", path, base, document),
        None => PathBuf::from(DEFAULT_MPS_CONTROL),
    };
    let directory = match &raw.directory {
        Some(value) => mps_directory(value, base, document),
        None => PathBuf::from(DEFAULT_MPS_DIRECTORY),
    };
    Mps { control, directory, adopt: raw.adopt, green: raw.green }
}

fn mps_directory(value: &Spanned<String>, base: &Path, document: &mut Document<'_>) -> PathBuf {
    let directory = path_from("mps.directory", value, base, document);
    let bytes_max = SOCKET_PATH_BYTES - 1 - MPS_SOCKET.len();
    if directory.as_os_str().as_bytes().len() > bytes_max {
        let rule = format!(
            "must have at most {bytes_max} bytes as an absolute path, for MPS has sockets in it, \
             is {}",
            directory.display()
        );
        document.problem("mps.directory", Some(value.span()), rule);
    }
    directory
}
