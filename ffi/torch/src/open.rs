//! Finding and opening the shim and the libtorch it was compiled against.
//!
//! A process holds at most one libtorch: its operators register themselves globally, and two
//! versions side by side end in an abort. So which library belongs to a shim is written in the
//! shim's own file (`gtorch_marker` in `shim.cc`), and is read before anything is loaded.

use std::error::Error as _;
use std::ffi::{OsString, c_char};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{env, fs, io};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LOCAL, RTLD_NOW};

use crate::sys::{self, CudaFunctions, Functions};
use crate::{CONFIG_BYTES, text_from};

/// File name of the shim.
pub const SHIM_NAME: &str = "libgpulet_torch.so";
/// File name of the shim's CUDA half.
pub const CUDA_SHIM_NAME: &str = "libgpulet_torch_cuda.so";
/// Names the shim's file, and rules out every other place it might be.
pub const SHIM_VARIABLE: &str = "GPULET_TORCH_SHIM";
/// The same for the CUDA half.
pub const CUDA_SHIM_VARIABLE: &str = "GPULET_TORCH_CUDA_SHIM";
/// Names the libtorch folder, when building and when running.
pub const LIBTORCH_VARIABLE: &str = "LIBTORCH_DIR";

const LIBTORCH_CUDA: &str = "libtorch_cuda.so";

/// One of the two libraries that we compile: what tells it from the other.
#[derive(Debug)]
pub(crate) struct Kind {
    name: &'static str,
    variable: &'static str,
    marker: &'static [u8],
    abi: i32,
    built: &'static str,
}

static SHIM: Kind = Kind {
    name: SHIM_NAME,
    variable: SHIM_VARIABLE,
    marker: b"gpulet-torch-shim\n",
    abi: sys::ABI,
    built: env!("GPULET_TORCH_SHIM_BUILT"),
};

static CUDA_SHIM: Kind = Kind {
    name: CUDA_SHIM_NAME,
    variable: CUDA_SHIM_VARIABLE,
    marker: b"gpulet-torch-cuda-shim\n",
    abi: sys::CUDA_ABI,
    built: env!("GPULET_TORCH_CUDA_SHIM_BUILT"),
};

/// Where to look, before the usual places. The default looks only in those.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The `torch` folder (with `lib/`) to take libtorch from, or a folder that holds its
    /// libraries. Otherwise `$LIBTORCH_DIR`, otherwise where it was when the shim was compiled.
    pub libtorch_dir: Option<PathBuf>,
    /// The shim. Otherwise `$GPULET_TORCH_SHIM`, otherwise beside the running program, in
    /// `../lib/gpulet` from there, or where the build left it.
    pub shim: Option<PathBuf>,
    /// Open libtorch_cuda too, which lies beside libtorch_cpu. Afterwards is too late: libtorch looks
    /// for it once, at the first call that could need it.
    pub cuda: bool,
}

/// Why libtorch is not there.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No shim in any place.
    #[error(
        "no {name} in {}; it is built where libtorch is found: install libtorch-dev, or set \
         {LIBTORCH_VARIABLE} to a torch folder with include/ and lib/, and build again",
        list(tried)
    )]
    NoShim {
        /// The file's name.
        name: &'static str,
        /// Every path that was tried.
        tried: Vec<PathBuf>,
    },
    /// The shim's file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is something else.
    #[error("{}: not a gpulet torch shim", path.display())]
    NotShim {
        /// The file.
        path: PathBuf,
    },
    /// The shim belongs to another version of this program.
    #[error("{}: shim of ABI {found}, this program needs ABI {needed}; build both together",
        path.display())]
    Abi {
        /// The file.
        path: PathBuf,
        /// Its ABI number.
        found: String,
        /// The one that this program speaks.
        needed: i32,
    },
    /// The library the shim was compiled against is not there.
    #[error(
        "{} was compiled against libtorch {version} and needs {}, which is not in {}; set \
         {LIBTORCH_VARIABLE} to the torch folder of that version",
        shim.display(), Path::new(name).display(), list(tried)
    )]
    NoLibtorch {
        /// The shim.
        shim: PathBuf,
        /// The version it was compiled against.
        version: String,
        /// The file it needs.
        name: OsString,
        /// Every path that was tried.
        tried: Vec<PathBuf>,
    },
    /// The dynamic loader refused a library. Where it is the shim, another libtorch than the one
    /// it was compiled against may have been found.
    #[error("{} cannot be loaded: {reason}", path.display())]
    Load {
        /// The library.
        path: PathBuf,
        /// The loader's words.
        reason: String,
    },
    /// The libtorch that was opened is not the version the shim was compiled against.
    #[error(
        "{} was compiled against libtorch {wanted}, but {} is {found}",
        shim.display(), libtorch.display()
    )]
    Version {
        /// The shim.
        shim: PathBuf,
        /// The version it was compiled against.
        wanted: String,
        /// The library that was opened.
        libtorch: PathBuf,
        /// Its version.
        found: String,
    },
    /// This process has opened another one before.
    #[error("this process has already opened {}, so it cannot open {}", first.display(),
        asked.display())]
    OtherOpen {
        /// What is open.
        first: PathBuf,
        /// What was asked for.
        asked: PathBuf,
    },
}

/// What is open: once, for the rest of the process.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) functions: Functions,
    pub(crate) shim: PathBuf,
    pub(crate) libtorch: PathBuf,
    pub(crate) version: String,
}

static OPENED: Mutex<Option<&'static Opened>> = Mutex::new(None);

/// Where the build left the shim, if it built one.
#[must_use]
pub fn built_shim() -> Option<&'static Path> {
    built(&SHIM)
}

fn built(kind: &Kind) -> Option<&'static Path> {
    Some(Path::new(kind.built)).filter(|path| !path.as_os_str().is_empty())
}

pub(crate) fn open(options: &Options) -> Result<&'static Opened, OpenError> {
    let shim = find_shim(&SHIM, options.shim.as_deref())?;
    let marker = read_marker(&SHIM, &shim)?;
    let libtorch = find_libtorch(options, &shim, &marker)?;

    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(first) = *opened {
        for (first, asked) in [(&first.shim, &shim), (&first.libtorch, &libtorch)] {
            if first != asked {
                return Err(OpenError::OtherOpen { first: first.clone(), asked: asked.clone() });
            }
        }
        return Ok(first);
    }
    let functions = load(&shim, &libtorch, options.cuda)?;
    let found = version_in(&functions);
    if release(&found) != release(&marker.version) {
        return Err(OpenError::Version { shim, wanted: marker.version, libtorch, found });
    }
    // Leaked on purpose: libtorch starts threads and cannot be unloaded.
    let fresh: &'static Opened =
        Box::leak(Box::new(Opened { functions, shim, libtorch, version: marker.version }));
    *opened = Some(fresh);
    Ok(fresh)
}

static CUDA_OPENED: Mutex<Option<&'static CudaFunctions>> = Mutex::new(None);

/// Opens the CUDA half, after the other one was opened with [`Options::cuda`].
pub(crate) fn open_cuda(
    opened: &Opened,
    shim: Option<&Path>,
) -> Result<&'static CudaFunctions, OpenError> {
    let mut cuda = CUDA_OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(functions) = *cuda {
        return Ok(functions);
    }
    let shim = find_shim(&CUDA_SHIM, shim)?;
    let marker = read_marker(&CUDA_SHIM, &shim)?;
    if marker.version != opened.version {
        let (wanted, found) = (marker.version, opened.version.clone());
        return Err(OpenError::Version { shim, wanted, libtorch: opened.libtorch.clone(), found });
    }
    let library = open_library(&shim, RTLD_NOW | RTLD_LOCAL)?;
    // SAFETY: as for the first half.
    let functions = unsafe { CudaFunctions::load(library) };
    let functions: &'static CudaFunctions =
        Box::leak(Box::new(functions.map_err(|error| load_error(&shim, &error))?));
    *cuda = Some(functions);
    Ok(functions)
}

fn load(shim: &Path, libtorch: &Path, cuda: bool) -> Result<Functions, OpenError> {
    // By absolute path, all symbols at once and for everyone: the shim's own dependency on it is
    // then met by what is already loaded, whatever LD_LIBRARY_PATH and the loader's cache hold.
    let _ = open_library(libtorch, RTLD_NOW | RTLD_GLOBAL)?;
    if cuda {
        let _ = open_library(&libtorch.with_file_name(LIBTORCH_CUDA), RTLD_NOW | RTLD_GLOBAL)?;
    }
    let library = open_library(shim, RTLD_NOW | RTLD_LOCAL)?;
    // SAFETY: the marker said that the shim has this ABI, and the library is leaked, so it is
    // never closed.
    let functions = unsafe { Functions::load(library) };
    functions.map_err(|error| load_error(shim, &error))
}

fn load_error(path: &Path, error: &libloading::Error) -> OpenError {
    // The outer error says which call failed, the inner one why.
    let reason = error.source().map_or_else(|| error.to_string(), ToString::to_string);
    let own_name = format!("{}: ", path.display());
    let reason = reason.strip_prefix(&own_name).unwrap_or(&reason).to_owned();
    OpenError::Load { path: path.to_owned(), reason }
}

/// The version libtorch itself gives among its build settings.
fn version_in(functions: &Functions) -> String {
    let mut text: [c_char; CONFIG_BYTES] = [0; CONFIG_BYTES];
    // SAFETY: `text` has the length given.
    let _ = unsafe { (functions.config)(text.as_mut_ptr(), text.len()) };
    let text = text_from(&text);
    let version = text.split("TORCH_VERSION=").nth(1).and_then(|rest| rest.split(',').next());
    version.unwrap_or("of no version").to_owned()
}

/// Major and minor: what the C++ interface may change with.
fn release(version: &str) -> Vec<&str> {
    version.split('.').take(2).collect()
}

fn open_library(path: &Path, flags: i32) -> Result<&'static Library, OpenError> {
    // SAFETY: the initialisers of libtorch and of the shim do nothing that other threads could
    // see; the library is leaked, so no terminator runs while its threads live.
    let library = unsafe { Library::open(Some(path), flags) };
    match library {
        Ok(library) => Ok(Box::leak(Box::new(library))),
        Err(error) => Err(load_error(path, &error)),
    }
}

fn find_shim(kind: &Kind, named: Option<&Path>) -> Result<PathBuf, OpenError> {
    let named = named.map(Path::to_owned).or_else(|| variable(kind.variable));
    let candidates = match named {
        Some(path) => vec![path],
        None => usual_places(kind),
    };
    // Absolute and without links, so that two names of one file are one file.
    match candidates.iter().find_map(|path| fs::canonicalize(path).ok()) {
        Some(path) => Ok(path),
        None => Err(OpenError::NoShim { name: kind.name, tried: candidates }),
    }
}

fn usual_places(kind: &Kind) -> Vec<PathBuf> {
    let mut places = Vec::new();
    if let Some(folder) = env::current_exe().ok().as_deref().and_then(Path::parent) {
        places.push(folder.join(kind.name));
        if let Some(prefix) = folder.parent() {
            places.push(prefix.join("lib/gpulet").join(kind.name));
        }
    }
    places.extend(built(kind).map(Path::to_owned));
    places
}

fn find_libtorch(options: &Options, shim: &Path, marker: &Marker) -> Result<PathBuf, OpenError> {
    let name = marker.libtorch.file_name().unwrap_or_default();
    let named = options.libtorch_dir.clone().or_else(|| variable(LIBTORCH_VARIABLE));
    let candidates = match named {
        Some(dir) => vec![dir.join("lib").join(name), dir.join(name)],
        None => vec![marker.libtorch.clone()],
    };
    // Without links: libtorch finds its own dependencies relative to the path it is opened by.
    match candidates.iter().find_map(|path| fs::canonicalize(path).ok()) {
        Some(path) => Ok(path),
        None => Err(OpenError::NoLibtorch {
            shim: shim.to_owned(),
            version: marker.version.clone(),
            name: name.to_owned(),
            tried: candidates,
        }),
    }
}

/// What a shim's file says about itself.
#[derive(Debug, PartialEq, Eq)]
struct Marker {
    version: String,
    libtorch: PathBuf,
}

fn read_marker(kind: &Kind, shim: &Path) -> Result<Marker, OpenError> {
    let path = || shim.to_owned();
    let bytes = fs::read(shim).map_err(|source| OpenError::Read { path: path(), source })?;
    let fields = marker_fields(kind, &bytes).ok_or_else(|| OpenError::NotShim { path: path() })?;
    let field = |key: &str| {
        let found = fields.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.ok_or_else(|| OpenError::NotShim { path: path() })
    };
    let abi = field("abi")?;
    if abi.parse() != Ok(kind.abi) {
        return Err(OpenError::Abi { path: path(), found: abi.to_owned(), needed: kind.abi });
    }
    Ok(Marker { version: field("version")?.to_owned(), libtorch: field("libtorch")?.into() })
}

fn marker_fields<'a>(kind: &Kind, file: &'a [u8]) -> Option<&'a str> {
    let start = file.windows(kind.marker.len()).position(|window| window == kind.marker)?;
    let fields = &file[start + kind.marker.len()..];
    let end = fields.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&fields[..end]).ok()
}

fn variable(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

fn list(paths: &[PathBuf]) -> String {
    let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
    if paths.is_empty() { "any of the usual places".to_owned() } else { paths.join(", ") }
}
