//! Compiles the C++ shim into a shared object of its own, where libtorch's headers are found.
//!
//! Nothing is linked into the crate and nothing is downloaded: with no libtorch or no C++ compiler
//! the crate still builds, and opening it at run time says what is missing. Only a shim that was
//! asked for (`LIBTORCH_DIR` set) or that fails to compile stops the build.

use std::env;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

const SHIM_NAME: &str = "libgpulet_torch.so";
const CUDA_SHIM_NAME: &str = "libgpulet_torch_cuda.so";
const SYSTEM_HEADERS: &str = "/usr/include/torch";

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Where one libtorch keeps what the compiler needs.
struct Libtorch {
    /// Extra compiler flags that find its headers.
    include_flags: Vec<String>,
    /// `torch/version.h`, watched so that an upgrade rebuilds the shim.
    version_header: PathBuf,
    /// `libtorch_cpu`, under the name a program without development files finds it by.
    library: PathBuf,
}

fn main() -> Result<()> {
    for path in ["build.rs", "shim.cc", "shim.h", "shim_cuda.cc", "shim_cuda.h", "shim"] {
        println!("cargo::rerun-if-changed={path}");
    }
    for variable in ["LIBTORCH_DIR", "CUDA_HOME"] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let built = build_shims()?;
    for (variable, shim) in [
        ("GPULET_TORCH_SHIM_BUILT", &built.shim),
        ("GPULET_TORCH_CUDA_SHIM_BUILT", &built.cuda_shim),
    ] {
        let baked = shim.as_deref().and_then(Path::to_str).unwrap_or_default();
        println!("cargo::rustc-env={variable}={baked}");
    }
    Ok(())
}

/// What could be built.
#[derive(Default)]
struct Built {
    shim: Option<PathBuf>,
    cuda_shim: Option<PathBuf>,
}

/// Builds the shim where there is a libtorch, and its CUDA half where that one is for CUDA too.
fn build_shims() -> Result<Built> {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++20").pic(true).opt_level(2).debug(false).warnings(true);
    let compiler = build.try_get_compiler()?;
    if let Err(error) = compiler.to_command().arg("--version").output() {
        let path = compiler.path().display();
        println!(
            "cargo::warning=no C++ compiler ({path}: {error}): models cannot run. Install g++"
        );
        return Ok(Built::default());
    }
    let Some(libtorch) = find_libtorch(&compiler)? else {
        println!(
            "cargo::warning=no libtorch found: models cannot run. Install libtorch-dev, or set \
             LIBTORCH_DIR to a torch folder with include/ and lib/, and build again"
        );
        return Ok(Built::default());
    };
    println!("cargo::rerun-if-changed={}", libtorch.version_header.display());

    let shim = compile(
        &compiler,
        &libtorch,
        &Source {
            file: "shim.cc",
            library: libtorch.library.clone(),
            include_flags: Vec::new(),
            also: vec![libtorch.library.with_file_name("libc10.so")],
            name: SHIM_NAME,
        },
    )?;
    Ok(Built { shim: Some(shim), cuda_shim: build_cuda_shim(&compiler, &libtorch)? })
}

fn build_cuda_shim(compiler: &cc::Tool, libtorch: &Libtorch) -> Result<Option<PathBuf>> {
    let beside = |name: &str| libtorch.library.with_file_name(name);
    let library = beside("libtorch_cuda.so");
    if !library.exists() {
        return Ok(None);
    }
    let Some((include, cudart)) = find_cuda(&libtorch.library) else {
        println!(
            "cargo::warning=no CUDA headers found: models cannot run on GPUs. Install CUDA's \
             runtime headers, or set CUDA_HOME to a folder with include/, and build again"
        );
        return Ok(None);
    };
    let shim = compile(
        compiler,
        libtorch,
        &Source {
            file: "shim_cuda.cc",
            include_flags: vec![format!("-isystem{}", include.display())],
            also: vec![
                beside("libc10_cuda.so"),
                libtorch.library.clone(),
                beside("libc10.so"),
                cudart,
            ],
            library,
            name: CUDA_SHIM_NAME,
        },
    )?;
    Ok(Some(shim))
}

/// CUDA's runtime: its headers, and the library that this libtorch itself loads.
fn find_cuda(libtorch_cpu: &Path) -> Option<(PathBuf, PathBuf)> {
    // Beside the wheel of libtorch lie the wheels that it needs.
    let wheels = libtorch_cpu.ancestors().nth(3)?.join("nvidia/cu13");
    let home = env::var_os("CUDA_HOME").map(PathBuf::from);
    let homes = home.into_iter().chain([wheels.clone(), PathBuf::from("/usr/local/cuda")]);
    // `crt/host_defines.h` is a package of its own, and the one that is left out.
    let include = homes
        .map(|home| home.join("include"))
        .find(|include| include.join("crt/host_defines.h").exists())?;
    let libraries = [wheels.join("lib"), include.parent()?.join("lib64")];
    let cudart = libraries.iter().map(|folder| folder.join("libcudart.so.13"));
    Some((include, cudart.into_iter().find(|library| library.exists())?))
}

/// One of our two sources, and what it is compiled and linked with.
struct Source {
    file: &'static str,
    /// The library of libtorch that the shim names to be opened first.
    library: PathBuf,
    include_flags: Vec<String>,
    also: Vec<PathBuf>,
    name: &'static str,
}

fn compile(compiler: &cc::Tool, libtorch: &Libtorch, source: &Source) -> Result<PathBuf> {
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let shim = out_dir.join(source.name);
    let mut command = compiler.to_command();
    command
        .args(["-shared", "-fvisibility=hidden", "-DAT_PER_OPERATOR_HEADERS"])
        .arg(format!("-DGTORCH_LIBTORCH=\"{}\"", source.library.display()))
        .args(&libtorch.include_flags)
        .args(&source.include_flags)
        .arg(source.file)
        .arg("-o")
        .arg(&shim)
        .arg(format!("-Wl,-soname,{}", source.name))
        .arg("-Wl,-z,defs")
        .arg(&source.library)
        .args(&source.also);
    if !command.status()?.success() {
        return Err(format!("the C++ compiler failed on {}: {command:?}", source.file).into());
    }
    publish(&shim, &out_dir)?;
    Ok(shim)
}

fn find_libtorch(compiler: &cc::Tool) -> Result<Option<Libtorch>> {
    match env::var_os("LIBTORCH_DIR").filter(|dir| !dir.is_empty()) {
        Some(dir) => {
            if Path::new(&dir).is_relative() {
                return Err(format!("LIBTORCH_DIR={dir:?}: must be an absolute path").into());
            }
            let dir = fs::canonicalize(PathBuf::from(&dir))
                .map_err(|error| format!("LIBTORCH_DIR={dir:?}: {error}"))?;
            from_folder(&dir).map(Some)
        }
        None => from_system(compiler),
    }
}

/// A `torch` folder as the wheel or the plain archive has it: `include/` and `lib/`.
fn from_folder(dir: &Path) -> Result<Libtorch> {
    let include = dir.join("include");
    let api = include.join("torch/csrc/api/include");
    let version_header = api.join("torch/version.h");
    let library = dir.join("lib/libtorch_cpu.so");
    for needed in [&version_header, &library] {
        if !needed.exists() {
            let missing = needed.display();
            return Err(format!("LIBTORCH_DIR={}: {missing} is missing", dir.display()).into());
        }
    }
    // As system headers: they are not ours to warn about, and they come before /usr/include.
    let include_flags = [include, api].iter().map(|d| format!("-isystem{}", d.display())).collect();
    Ok(Libtorch { include_flags, version_header, library })
}

/// The distribution's package: headers straight in `/usr/include`.
fn from_system(compiler: &cc::Tool) -> Result<Option<Libtorch>> {
    let headers = Path::new(SYSTEM_HEADERS);
    // A missing path makes cargo look again at the next build, when libtorch may be there.
    println!("cargo::rerun-if-changed={}/script.h", headers.display());
    let api = headers.join("csrc/api/include");
    let version_header = api.join("torch/version.h");
    if !version_header.exists() {
        return Ok(None);
    }
    let answer = compiler.to_command().arg("-print-file-name=libtorch_cpu.so").output()?;
    let link = PathBuf::from(String::from_utf8(answer.stdout)?.trim());
    if !link.is_absolute() {
        return Ok(None);
    }
    let link = fs::canonicalize(link.parent().ok_or("a library with no folder")?)?
        .join(link.file_name().ok_or("a library with no name")?);
    // The unversioned link is a development file: follow it once, to the name users have.
    let library = fs::read_link(&link).map_or(link.clone(), |target| link.with_file_name(target));
    let include_flags = vec![format!("-isystem{}", api.display())];
    Ok(Some(Libtorch { include_flags, version_header, library }))
}

/// Copies the shim beside the programs of this profile (`target/<profile>/`), whole or not at all:
/// a running program may have the old one mapped.
fn publish(shim: &Path, out_dir: &Path) -> Result<()> {
    // OUT_DIR is target/<profile>/build/<crate>-<hash>/out.
    let profile_dir = out_dir.ancestors().nth(3).ok_or("OUT_DIR is not inside a target folder")?;
    let name = shim.file_name().ok_or("a shim with no name")?.to_string_lossy();
    let fresh = profile_dir.join(format!(".{name}.{}", std::process::id()));
    fs::copy(shim, &fresh)?;
    fs::rename(&fresh, profile_dir.join(&*name))?;
    Ok(())
}
