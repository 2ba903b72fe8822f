//! NVRTC, CUDA's compiler as a library: found, opened, asked.
//!
//! The functions are declared here and not taken from a crate of bindings: the library must be
//! opened where the caller says it is, its absence must be an error, and its result codes must be
//! plain numbers, as a newer one may have more of them.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use libloading::Library;

use super::cubin::Arch;

/// Why there is no machine code.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// No NVRTC was found.
    #[error(
        "no NVRTC: {} is in none of {}. It is part of CUDA, and of the Python package \
         nvidia-cuda-nvrtc beside torch; give the path of libnvrtc.so.13 or of the torch folder",
        NAMES.join(" or "),
        list(.folders)
    )]
    Missing {
        /// Where it was looked for. An empty path stands for the system's library path.
        folders: Vec<PathBuf>,
    },
    /// A file is there, and is no NVRTC that can be used.
    #[error("{path}: {reason}")]
    Unusable {
        /// The library, or a library that it needs.
        path: PathBuf,
        /// The dynamic loader's words.
        reason: libloading::Error,
    },
    /// This NVRTC does not know the device's architecture.
    #[error("{path}: NVRTC {version} does not compile for {arch}, only for {}", archs(.known))]
    Arch {
        /// The library.
        path: PathBuf,
        /// Its version.
        version: Version,
        /// What was wanted.
        arch: Arch,
        /// What it compiles for.
        known: Vec<Arch>,
    },
    /// A call failed.
    #[error("{path}: {call}: {name}{}{log}", if .log.is_empty() { "" } else { ":\n" })]
    Call {
        /// The library.
        path: PathBuf,
        /// The function.
        call: &'static str,
        /// NVRTC's name of the error.
        name: String,
        /// What the compiler wrote, if it was it that failed.
        log: String,
    },
}

fn list(folders: &[PathBuf]) -> String {
    let name = |it: &PathBuf| match it.to_str() {
        Some("") => "the system's library path".to_owned(),
        _ => it.display().to_string(),
    };
    folders.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn archs(archs: &[Arch]) -> String {
    archs.iter().map(Arch::to_string).collect::<Vec<_>>().join(", ")
}

/// The version of an NVRTC, which is the version of CUDA that it came with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version {
    /// For example 13.
    pub major: i32,
    /// For example 0.
    pub minor: i32,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A file that sources can include.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// What they include it as.
    pub name: &'static str,
    /// What is in it.
    pub text: &'static str,
}

const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
/// Where libraries lie in a given folder: there, in one of CUDA's, and beside the folder of torch.
const FOLDERS: [&str; 5] = ["", "lib64", "lib", "../nvidia/cu13/lib", "../nvidia/cuda_nvrtc/lib"];
const SYSTEM_FOLDER: &str = "/usr/local/cuda/lib64";

/// Where NVRTC may be. In an empty path the dynamic loader looks for it.
fn folders(given: Option<&Path>) -> Vec<PathBuf> {
    match given {
        Some(path) => FOLDERS.iter().map(|it| path.join(it)).collect(),
        None => vec![PathBuf::new(), PathBuf::from(SYSTEM_FOLDER)],
    }
}

type Program = *mut c_void;

/// An opened NVRTC. Closed when dropped.
pub struct Nvrtc {
    path: PathBuf,
    version: Version,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    arch_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    /// What the functions above are of.
    _library: Library,
    /// What it opens by name when it compiles.
    _builtins: Option<Library>,
}

impl Nvrtc {
    /// Opens the NVRTC at `given` (the library, or a folder that it is found from: its own, CUDA's,
    /// or that of torch), or else the system's.
    pub fn open(given: Option<&Path>) -> Result<Nvrtc, CompileError> {
        if let Some(path) = given.filter(|it| it.is_file()) {
            return Nvrtc::open_file(path);
        }
        let folders = folders(given);
        for folder in &folders {
            for path in NAMES.map(|name| folder.join(name)) {
                // A bare name is no file here, but the dynamic loader may know it.
                let bare = folder.as_os_str().is_empty();
                match Nvrtc::open_file(&path) {
                    Err(CompileError::Unusable { .. }) if bare || !path.is_file() => {}
                    other => return other,
                }
            }
        }
        Err(CompileError::Missing { folders })
    }

    fn open_file(path: &Path) -> Result<Nvrtc, CompileError> {
        // SAFETY: NVRTC's initialisers are made to be run at any time.
        match unsafe { Library::new(path) } {
            Ok(library) => Nvrtc::of(library, path),
            Err(reason) => Err(CompileError::Unusable { path: path.to_owned(), reason }),
        }
    }

    fn of(library: Library, path: &Path) -> Result<Nvrtc, CompileError> {
        let unusable = |reason| CompileError::Unusable { path: path.to_owned(), reason };
        // SAFETY: the types are those of nvrtc.h, which have not changed since CUDA 11.1.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int =
                function(&library, c"nvrtcVersion").map_err(unusable)?;
            let mut nvrtc = Nvrtc {
                path: path.to_owned(),
                version: Version { major: 0, minor: 0 },
                error_string: function(&library, c"nvrtcGetErrorString").map_err(unusable)?,
                create: function(&library, c"nvrtcCreateProgram").map_err(unusable)?,
                destroy: function(&library, c"nvrtcDestroyProgram").map_err(unusable)?,
                compile: function(&library, c"nvrtcCompileProgram").map_err(unusable)?,
                log_size: function(&library, c"nvrtcGetProgramLogSize").map_err(unusable)?,
                log: function(&library, c"nvrtcGetProgramLog").map_err(unusable)?,
                cubin_size: function(&library, c"nvrtcGetCUBINSize").map_err(unusable)?,
                cubin: function(&library, c"nvrtcGetCUBIN").map_err(unusable)?,
                arch_count: function(&library, c"nvrtcGetNumSupportedArchs").map_err(unusable)?,
                archs: function(&library, c"nvrtcGetSupportedArchs").map_err(unusable)?,
                _library: library,
                _builtins: None,
            };
            let Version { major, minor } = &mut nvrtc.version;
            let result = version(major, minor);
            nvrtc.check(result, "nvrtcVersion")?;
            nvrtc._builtins = nvrtc.open_builtins()?;
            Ok(nvrtc)
        }
    }

    /// Opens the library that NVRTC opens by its bare name when it compiles. It lies beside NVRTC,
    /// where the dynamic loader may not look; what is open already, it finds.
    fn open_builtins(&self) -> Result<Option<Library>, CompileError> {
        let name = format!("libnvrtc-builtins.so.{}", self.version);
        let path = self.path.with_file_name(name);
        if !path.is_file() {
            return Ok(None);
        }
        // SAFETY: it holds nothing but data and functions for NVRTC.
        match unsafe { Library::new(&path) } {
            Ok(library) => Ok(Some(library)),
            Err(reason) => Err(CompileError::Unusable { path, reason }),
        }
    }

    /// The version of this NVRTC.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The architectures that it compiles for.
    pub fn known_archs(&self) -> Result<Vec<Arch>, CompileError> {
        let mut count = 0;
        // SAFETY: writes one number.
        self.check(unsafe { (self.arch_count)(&mut count) }, "nvrtcGetNumSupportedArchs")?;
        let mut numbers = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: writes as many numbers as it has just said.
        self.check(unsafe { (self.archs)(numbers.as_mut_ptr()) }, "nvrtcGetSupportedArchs")?;
        let arch = |it: &c_int| Arch { major: *it as u32 / 10, minor: *it as u32 % 10 };
        Ok(numbers.iter().map(arch).collect())
    }

    /// Compiles `main`, which may include `sources`, and returns machine code and what the compiler
    /// wrote: nothing, if it had nothing to warn of.
    pub fn compile(
        &self,
        main: &CStr,
        sources: &[Source],
        options: &[String],
        arch: Arch,
    ) -> Result<(Vec<u8>, String), CompileError> {
        let known = self.known_archs()?;
        if !known.contains(&arch) {
            let (path, version) = (self.path.clone(), self.version);
            return Err(CompileError::Arch { path, version, arch, known });
        }
        let program = self.program(main, sources)?;
        let options = owned(options.iter().map(String::as_str));
        let options = pointers(&options);
        // SAFETY: a program, and as many strings as it is told.
        let result =
            unsafe { (self.compile)(program.handle, options.len() as c_int, options.as_ptr()) };
        let log = program.read(self.log_size, self.log, "nvrtcGetProgramLog")?;
        let log = String::from_utf8_lossy(&log).trim_matches(['\0', '\n']).to_owned();
        self.check_with(result, "nvrtcCompileProgram", &log)?;
        let cubin = program.read(self.cubin_size, self.cubin, "nvrtcGetCUBIN")?;
        Ok((cubin, log))
    }

    fn program(&self, main: &CStr, sources: &[Source]) -> Result<Compilation<'_>, CompileError> {
        let names = owned(sources.iter().map(|it| it.name));
        let texts = owned(sources.iter().map(|it| it.text));
        let (names, texts) = (pointers(&names), pointers(&texts));
        let mut handle = ptr::null_mut();
        // SAFETY: ended strings, which NVRTC copies, and as many of them as it is told.
        let result = unsafe {
            (self.create)(
                &mut handle,
                main.as_ptr(),
                c"gpulet.cu".as_ptr(),
                sources.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check(result, "nvrtcCreateProgram")?;
        Ok(Compilation { nvrtc: self, handle })
    }

    fn check(&self, result: c_int, call: &'static str) -> Result<(), CompileError> {
        self.check_with(result, call, "")
    }

    fn check_with(&self, result: c_int, call: &'static str, log: &str) -> Result<(), CompileError> {
        if result == 0 {
            return Ok(());
        }
        // SAFETY: it gives a constant string for every number.
        let name = unsafe { CStr::from_ptr((self.error_string)(result)) };
        let (name, log) = (name.to_string_lossy().into_owned(), log.to_owned());
        Err(CompileError::Call { path: self.path.clone(), call, name, log })
    }
}

/// A program of NVRTC, destroyed when dropped.
struct Compilation<'a> {
    nvrtc: &'a Nvrtc,
    handle: Program,
}

impl Compilation<'_> {
    /// Reads a text or machine code, whichever the two functions are about.
    fn read(
        &self,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
        call: &'static str,
    ) -> Result<Vec<u8>, CompileError> {
        let mut bytes = 0;
        // SAFETY: writes one number.
        self.nvrtc.check(unsafe { size(self.handle, &mut bytes) }, call)?;
        let mut data = vec![0u8; bytes];
        // SAFETY: writes as many bytes as it has just said.
        self.nvrtc.check(unsafe { get(self.handle, data.as_mut_ptr().cast()) }, call)?;
        Ok(data)
    }
}

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: a program of this NVRTC, destroyed once.
        let _ = unsafe { (self.nvrtc.destroy)(&mut self.handle) };
    }
}

/// # Safety
/// The function of that name is of this type, and is not called after the library is closed.
unsafe fn function<F: Copy>(library: &Library, name: &CStr) -> Result<F, libloading::Error> {
    // SAFETY: by the contract.
    unsafe { library.get::<F>(name).map(|it| *it) }
}

fn owned<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<CString> {
    texts
        .map(|it| CString::new(it).expect("our own sources and options hold no zero byte"))
        .collect()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|it| it.as_ptr()).collect()
}
