//! Machine code of all kernels, for one architecture.

use std::ffi::CStr;
use std::io;
use std::path::Path;

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute};

use super::cache::{self, Sum};
use super::driver::{Error, check, driver};
use super::nvrtc::{CompileError, Nvrtc, Source};

macro_rules! sources {
    ($($name:literal),*) => {
        [$(Source { name: $name, text: include_str!(concat!("../../cuda/", $name)) }),*]
    };
}

const SOURCES: [Source; 11] = sources![
    "ptx.cuh",
    "gpulet.cuh",
    "float.cuh",
    "move.cu",
    "image.cu",
    "bools.cu",
    "fill.cu",
    "probe.cu",
    "pressure.cu",
    "busy.cu",
    "drill.cu"
];

/// All kernels are one program: one compilation, one file in the cache, one thing to load.
const MAIN: &CStr = c"#include \"move.cu\"
#include \"image.cu\"
#include \"bools.cu\"
#include \"fill.cu\"
#include \"probe.cu\"
#include \"pressure.cu\"
#include \"busy.cu\"
#include \"drill.cu\"
";

/// The architecture of a GPU: its compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Arch {
    /// 9 for Hopper.
    pub major: u32,
    /// 0 for an H100.
    pub minor: u32,
}

impl Arch {
    /// The architecture of a device. The driver has been initialised (`cuInit`).
    pub fn of(device: CUdevice) -> Result<Arch, Error> {
        driver()?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: writes one number, and refuses what is no device.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) };
            check(result, "cuDeviceGetAttribute", "the compute capability")?;
            Ok(value as u32)
        };
        let major = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        let minor = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR;
        Ok(Arch { major: attribute(major)?, minor: attribute(minor)? })
    }
}

impl std::fmt::Display for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "sm_{}{}", self.major, self.minor)
    }
}

/// Where machine code came from.
#[derive(Debug)]
pub enum Origin {
    /// From the cache: an earlier start compiled it.
    Cache,
    /// Compiled now, and kept for the next start.
    Compiled,
    /// Compiled now, and to be compiled again at the next start, as it could not be kept.
    NotKept(io::Error),
}

/// Machine code of all kernels.
#[derive(Debug)]
pub struct Cubin {
    code: Vec<u8>,
    origin: Origin,
    log: String,
}

impl Cubin {
    /// Compiles all kernels for `arch`, or takes them from `cache_dir`, which is made if it is not
    /// there, and holds one file of about 100 KiB for each architecture, version of NVRTC and
    /// version of the kernels.
    ///
    /// `nvrtc` is the library, or a folder that it is found from: its own, CUDA's, or that of torch;
    /// without one it is the system's.
    ///
    /// Takes 1 to 2 s to compile, and a few milliseconds to load.
    pub fn compile(
        arch: Arch,
        cache_dir: &Path,
        nvrtc: Option<&Path>,
    ) -> Result<Cubin, CompileError> {
        let nvrtc = Nvrtc::open(nvrtc)?;
        let options = [format!("--gpu-architecture={arch}"), "--std=c++17".to_owned()];
        let key = key(&nvrtc, &options);
        if let Some(code) = cache::load(cache_dir, key) {
            return Ok(Cubin { code, origin: Origin::Cache, log: String::new() });
        }
        let (code, log) = nvrtc.compile(MAIN, &SOURCES, &options, arch)?;
        let origin = match cache::store(cache_dir, key, &code) {
            Ok(()) => Origin::Compiled,
            Err(error) => Origin::NotKept(error),
        };
        Ok(Cubin { code, origin, log })
    }

    /// The machine code: an ELF file that `cuLibraryLoadData` takes.
    pub fn code(&self) -> &[u8] {
        &self.code
    }

    /// Where it came from.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// What the compiler warned of. Empty, unless a new NVRTC sees what others did not.
    pub fn log(&self) -> &str {
        &self.log
    }
}

fn key(nvrtc: &Nvrtc, options: &[String]) -> Sum {
    let sum = Sum::EMPTY.with(nvrtc.version().to_string().as_bytes()).with(MAIN.to_bytes());
    let sum = options.iter().fold(sum, |sum, option| sum.with(option.as_bytes()));
    SOURCES.iter().fold(sum, |sum, it| sum.with(it.name.as_bytes()).with(it.text.as_bytes()))
}
