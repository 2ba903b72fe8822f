//! Runs every kernel against its CPU twin on a GPU, and measures what gather and scatter reach.
//!
//!     cargo run --release -p gpulet-kernels --example selfcheck -- [OPTION]...
//!
//!     --rounds N     of each check that is random (60)
//!     --quick        no measurements
//!     --exhaustive   every f32 there is through both narrowing casts too
//!     --no-fault     leave out the write to nowhere, which under MPS hurts neighbours
//!
//! Needs libcuda and NVRTC (GPULET_NVRTC: the library, or a folder: CUDA's, or that of torch;
//! without it the system's). Takes the first GPU of CUDA_VISIBLE_DEVICES. A line a check; exits
//! with 1 if one fails.
#![allow(clippy::unwrap_used, reason = "a check may panic")]

mod casts;
mod device;
mod drills;
mod moves;
mod pictures;
mod speed;

use std::path::PathBuf;
use std::process::ExitCode;

use gpulet_kernels::cuda::{Cubin, Kernels};

use device::Gpu;

/// What a check has to say: what it did, or what went wrong.
type Outcome = Result<String, String>;

struct Report {
    failed: u32,
    rounds: u64,
}

impl Report {
    fn line(&mut self, name: &str, outcome: Outcome) {
        let (mark, text) = match &outcome {
            Ok(text) => ("ok  ", text),
            Err(text) => ("FAIL", text),
        };
        self.failed += u32::from(outcome.is_err());
        println!("{mark}  {name}: {text}");
    }
}

fn start() -> Result<(Gpu, Kernels), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let gpu = Gpu::open()?;
    let nvrtc = std::env::var_os("GPULET_NVRTC").map(PathBuf::from);
    let cache = tempfile::tempdir().map_err(|error| text(&error))?;
    let compile = || Cubin::compile(gpu.arch, cache.path(), nvrtc.as_deref());
    let begun = std::time::Instant::now();
    let cubin = compile().map_err(|error| text(&error))?;
    let compiled = begun.elapsed();
    compile().map_err(|error| text(&error))?;
    let cached = begun.elapsed() - compiled;
    println!(
        "{}, {}, {} multiprocessors; {} bytes of code compiled in {compiled:.0?}, from disk in \
         {cached:.1?}",
        gpu.name,
        gpu.arch,
        gpu.sm_count,
        cubin.code().len()
    );
    let kernels = Kernels::load(&cubin).map_err(|error| text(&error))?;
    Ok((gpu, kernels))
}

/// What to check.
pub struct Options {
    /// How often each check that is random.
    pub rounds: u64,
    /// Whether to measure too.
    pub measure: bool,
    /// Whether to convert every f32 there is.
    pub exhaustive: bool,
    /// Whether to end with a fault of the GPU.
    pub fault: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options { rounds: 60, measure: true, exhaustive: false, fault: true }
    }
}

/// Returns how many checks failed.
pub fn run(options: &Options) -> Result<u32, String> {
    let (gpu, kernels) = start()?;
    let mut report = Report { failed: 0, rounds: options.rounds };
    moves::check(&gpu, &kernels, &mut report);
    casts::check(&gpu, &kernels, options.exhaustive, &mut report);
    pictures::check(&gpu, &kernels, &mut report);
    drills::check(&gpu, &kernels, &mut report);
    if options.measure {
        speed::measure(&gpu, &kernels);
    }
    if options.fault {
        report.line("fault", drills::fault(&gpu, &kernels));
    }
    Ok(report.failed)
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        match word.as_str() {
            "--rounds" => {
                let count = words.next().and_then(|it| it.parse().ok());
                options.rounds = count.ok_or("--rounds: takes a number")?;
            }
            "--quick" => options.measure = false,
            "--exhaustive" => options.exhaustive = true,
            "--no-fault" => options.fault = false,
            other => return Err(format!("{other}: no option of this program")),
        }
    }
    Ok(options)
}

fn main() -> ExitCode {
    match options().and_then(|options| run(&options)) {
        Ok(0) => println!("all good"),
        Ok(failed) => {
            println!("{failed} failed");
            return ExitCode::FAILURE;
        }
        Err(error) => {
            eprintln!("selfcheck: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
