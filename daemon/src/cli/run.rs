//! `gpuletctl run`: a model in this process, without a daemon, as a gpulet of that share would run
//! it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::{Args, value_parser};
use indicatif::{ProgressBar, ProgressStyle};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

use super::gauge::Held;
use super::latency::{Summary, summaries};
use super::table::{bytes, duration};
use super::values::Fill;
use super::{CtlError, Output, print, print_json};
use crate::backend::buffer::BatchBuffer;
use crate::backend::echo::Echo;
use crate::backend::loading;
use crate::backend::{Backend, Copied, Instance, LoadError, RunError, View};
use crate::config::{DEFAULT_KERNEL_CACHE, DEFAULT_MODELS};
use crate::cuda::gpu::Options;
use crate::cuda::local::Local;
use crate::limits::{Limits, SLOT_BYTES_HARD_MAX};
use crate::model::{self, Builtin, MODEL_FILE, Model, Source};
use crate::share::{CpuShare, allowed_cpus, cpu_shares};
use crate::{mps, wire};

/// Executions of one run; each is kept until the end.
const COUNT_MAX: i64 = 10_000_000;
const INTERVAL_MAX_S: f64 = 3600.0;

/// Run a model here, without a daemon, and show how long it takes
#[derive(Debug, Args)]
pub(super) struct Run {
    /// A model's directory, or its name in one of the roots
    model: PathBuf,
    /// Executions that are measured
    #[arg(short = 'n', long, default_value_t = 100)]
    #[arg(value_parser = value_parser!(u32).range(1..=COUNT_MAX))]
    count: u32,
    /// Rows of each execution, up to the model's max_batch
    #[arg(short, long, default_value_t = 1, value_parser = value_parser!(u32).range(1..))]
    batch: u32,
    /// Seconds to wait after each execution
    #[arg(short, long, value_name = "S", default_value_t = 0.0, value_parser = interval)]
    interval: f64,
    /// Run on the GPU that this process sees first, not on the CPU
    #[arg(short, long)]
    gpu: bool,
    /// How a GPU's share is held: a green context, or a percentage of the MPS that is running
    #[arg(long, value_enum, default_value_t = Held::Green, requires = "gpu")]
    held: Held,
    /// Percent of the GPU, or of the CPUs that this process may use, as in a gpulet's share_pct
    #[arg(short, long, value_name = "PCT", default_value_t = 100)]
    #[arg(value_parser = value_parser!(u8).range(1..=100))]
    share: u8,
    /// Threads for one execution [default: one for each CPU of the share]
    #[arg(short, long, value_name = "N", value_parser = value_parser!(u32).range(1..=1024))]
    threads: Option<u32>,
    /// Executions before those that are measured [default: the model's warmup_count]
    #[arg(long, value_name = "N", value_parser = value_parser!(u32).range(0..=1000))]
    warmup: Option<u32>,
    /// What the inputs are
    #[arg(long, value_enum, default_value_t = Fill::Ones)]
    input: Fill,
    /// Where models are looked up by name; can be given several times
    #[arg(long, value_name = "ROOT", default_value = DEFAULT_MODELS)]
    models: Vec<PathBuf>,
    /// Where libtorch is [default: as the shim was built]
    #[arg(long, value_name = "DIR")]
    libtorch_dir: Option<PathBuf>,
    /// Where the shim is [default: beside this program]
    #[arg(long, value_name = "FILE")]
    torch_shim: Option<PathBuf>,
    /// Where the shim's CUDA half is [default: beside this program]
    #[arg(long, value_name = "FILE")]
    torch_cuda_shim: Option<PathBuf>,
    /// Where compiled kernels are kept, which models that take pictures need
    #[arg(long, value_name = "DIR", default_value = DEFAULT_KERNEL_CACHE)]
    kernel_cache: PathBuf,
    /// Say when each execution starts and ends, in seconds since 1970, on standard error
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    output: Output,
}

/// What came out.
#[derive(Debug, Serialize)]
struct Report {
    model: String,
    backend: String,
    form: String,
    batch: u32,
    count: u32,
    interval_s: f64,
    share_pct: u8,
    threads: u32,
    cpus: Vec<u32>,
    load_ns: u64,
    warmup_count: u32,
    warmup_ns: u64,
    input_bytes_copied: u64,
    output_bytes_copied: u64,
    rows_per_s: f64,
    latency: Summary,
}

fn interval(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (0.0..=INTERVAL_MAX_S).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("must be 0 to {INTERVAL_MAX_S} seconds"))
    }
}

impl Run {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let (_, model) = find_model(&self.model, &self.models)?;
        if self.batch > model.max_batch {
            let (batch, max) = (self.batch, model.max_batch);
            return Err(CtlError::Usage(format!(
                "--batch {batch}: {} takes 1 to {max} rows",
                model.name
            )));
        }
        let share = if self.gpu { CpuShare::default() } else { self.confine()? };
        let begin = Instant::now();
        let backend = self.open(&model, share.threads)?;
        let mut buffer = BatchBuffer::new(&Model { max_batch: self.batch, ..model.clone() })?;
        let mut instance = load(backend.as_deref(), &model)?;
        // SAFETY: the buffer is dropped after the instance, which is declared after it.
        unsafe { instance.pin(buffer.whole()) };
        let load_ns = elapsed_ns(begin);
        self.fill(&model, &mut buffer);

        let begin = Instant::now();
        let warmup_count = self.warmup.unwrap_or(model.warmup_count);
        for _ in 0..warmup_count {
            execute(instance.as_mut(), self.batch, &mut buffer)?;
        }
        let warmup_ns = elapsed_ns(begin);
        let (times_ns, copied) = self.measure(instance.as_mut(), &mut buffer)?;
        let busy_s = times_ns.iter().map(|ns| *ns as f64).sum::<f64>() / 1e9;
        let rows = f64::from(self.batch) * f64::from(self.count);
        let latency = Summary::of(times_ns).ok_or(CtlError::Usage("--count is 0".into()))?;
        let report = Report {
            model: model.name,
            backend: backend.map_or("built in".to_owned(), |backend| backend.describe()),
            form: instance.form(),
            batch: self.batch,
            count: self.count,
            interval_s: self.interval,
            share_pct: self.share,
            threads: share.threads,
            cpus: share.cpus,
            load_ns,
            warmup_count,
            warmup_ns,
            input_bytes_copied: copied.input_bytes,
            output_bytes_copied: copied.output_bytes,
            rows_per_s: rows / busy_s,
            latency,
        };
        if self.output.json { print_json(&report) } else { print(&report.show()) }
    }

    /// What runs archives; built-in models need nothing.
    fn open(&self, model: &Model, threads: u32) -> Result<Option<Box<dyn Backend>>, CtlError> {
        if matches!(model.source, Source::Builtin(_)) {
            return Ok(None);
        }
        let (libtorch_dir, shim) = (self.libtorch_dir.clone(), self.torch_shim.clone());
        if !self.gpu {
            return Ok(Some(loading::open(&wire::Backend::Torch { libtorch_dir, shim }, threads)?));
        }
        let mut shares_pct = Vec::new();
        match self.held {
            Held::Mps => {
                // SAFETY: no other thread of this process exists yet that could read it.
                unsafe { std::env::set_var(mps::SHARE_PCT, self.share.to_string()) }
            }
            Held::Green if self.share < 100 => shares_pct.push(self.share),
            Held::Green => {}
        }
        let cuda_shim = self.torch_cuda_shim.clone();
        let options = Options { libtorch_dir, shim, cuda_shim, shares_pct, ..Options::default() };
        Ok(Some(Box::new(Local::open(&options)?)))
    }

    /// Keeps this process, and every thread that it starts, on the CPUs of the share.
    fn confine(&self) -> Result<CpuShare, CtlError> {
        let kernel = |what| move |source| CtlError::Kernel { what, source };
        let allowed = allowed_cpus().map_err(kernel("sched_getaffinity"))?;
        let mut shares = cpu_shares(&[self.share], &allowed);
        let mut share = shares.pop().unwrap_or(CpuShare { threads: 1, cpus: Vec::new() });
        if !share.cpus.is_empty() {
            let mut set = CpuSet::new();
            share.cpus.iter().for_each(|cpu| set.set(*cpu as usize));
            sched_setaffinity(None, &set)
                .map_err(|errno| kernel("sched_setaffinity")(errno.into()))?;
        }
        share.threads = self.threads.unwrap_or(share.threads);
        Ok(share)
    }

    fn fill(&self, model: &Model, buffer: &mut BatchBuffer) {
        let tensors = buffer.tensors(self.batch);
        for (seed, (view, tensor)) in tensors.inputs().iter().zip(&model.inputs).enumerate() {
            let (dtype, _) = tensor.seen_by_model();
            with_memory(view, |memory| self.input.write(dtype, seed as u64, memory));
        }
    }

    fn measure(
        &self,
        instance: &mut dyn Instance,
        buffer: &mut BatchBuffer,
    ) -> Result<(Vec<u64>, Copied), CtlError> {
        // Drawn on standard error, and only where that is a terminal.
        let bar = if self.verbose || self.output.json {
            ProgressBar::hidden()
        } else {
            ProgressBar::new(u64::from(self.count))
        };
        if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}") {
            bar.set_style(style);
        }
        let pause = Duration::from_secs_f64(self.interval);
        let mut times_ns = Vec::with_capacity(self.count as usize);
        let mut copied = Copied::default();
        for _ in 0..self.count {
            self.mark("START EXEC");
            let begin = Instant::now();
            copied = execute(instance, self.batch, buffer)?;
            times_ns.push(elapsed_ns(begin));
            self.mark("END EXEC");
            bar.inc(1);
            if !pause.is_zero() {
                std::thread::sleep(pause);
            }
        }
        bar.finish_and_clear();
        Ok((times_ns, copied))
    }

    fn mark(&self, what: &str) {
        if self.verbose {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            eprintln!("{what} {}.{:09}", now.as_secs(), now.subsec_nanos());
        }
    }
}

/// The directory of a model that is named or meant by its path, and what it says.
pub(super) fn find_model(name: &Path, roots: &[PathBuf]) -> Result<(PathBuf, Model), CtlError> {
    // Nothing is shared here, so a slot may be as large as any.
    let limits = Limits { slot_bytes_max: SLOT_BYTES_HARD_MAX, ..Limits::default() };
    let read = |place: PathBuf| Ok((place.clone(), model::load(&place, &limits)?));
    let is_name = name.components().count() == 1;
    if !is_name || name.join(MODEL_FILE).exists() {
        return read(name.to_owned());
    }
    let mut places = roots.iter().map(|root| root.join(name));
    match places.find(|place| place.join(MODEL_FILE).exists()) {
        Some(place) => read(place),
        None => {
            let roots: Vec<String> = roots.iter().map(|root| root.display().to_string()).collect();
            Err(CtlError::NoModel { name: name.to_owned(), roots: roots.join(", ") })
        }
    }
}

fn load(backend: Option<&dyn Backend>, model: &Model) -> Result<Box<dyn Instance>, LoadError> {
    let rule = |rule: &str| LoadError::Model { model: model.name.clone(), rule: rule.to_owned() };
    match (&model.source, backend) {
        (Source::File(_), Some(backend)) => backend.load_file(model),
        (Source::File(_), None) => Err(rule("needs a backend")),
        (Source::Builtin(Builtin::Echo), _) => Ok(Box::new(Echo::new(model)?)),
        (Source::Builtin(Builtin::Null), _) => {
            Err(rule("builtin \"null\" is answered by the daemon itself: there is nothing to run"))
        }
        (Source::Builtin(Builtin::Fault | Builtin::Hang), _) => {
            Err(rule("builtin \"fault\" and \"hang\" are for executors on a GPU"))
        }
    }
}

fn execute(
    instance: &mut dyn Instance,
    rows: u32,
    buffer: &mut BatchBuffer,
) -> Result<Copied, RunError> {
    let tensors = buffer.tensors(rows);
    instance.run(rows, tensors.inputs(), tensors.outputs())
}

/// Lends the memory of one tensor of a batch buffer.
fn with_memory(view: &View<'_>, borrow: impl FnOnce(&mut [u8])) {
    // SAFETY: the view is of a batch buffer, whose memory is private to this process, initialised,
    // and borrowed exclusively by the tensors that the view is taken from; views do not overlap,
    // and this slice is gone before another is made.
    borrow(unsafe { std::slice::from_raw_parts_mut(view.data().as_ptr(), view.bytes()) });
}

fn elapsed_ns(begin: Instant) -> u64 {
    u64::try_from(begin.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Report {
    fn show(&self) -> String {
        let cpus: Vec<String> = self.cpus.iter().map(u32::to_string).collect();
        let where_ = match self.threads {
            0 => String::new(),
            threads => format!(": {threads} threads on CPUs {}", cpus.join(",")),
        };
        format!(
            "{} on {}, {}\n\
             batch {}, share {} %{where_}\n\
             load {}, warm-up {} ({} executions)\n\
             copied for each execution: {} in, {} out\n\n\
             {}\n\
             {:.1} rows/s while executing\n",
            self.model,
            self.backend,
            self.form,
            self.batch,
            self.share_pct,
            duration(self.load_ns),
            duration(self.warmup_ns),
            self.warmup_count,
            bytes(self.input_bytes_copied),
            bytes(self.output_bytes_copied),
            summaries(&[("execution", &self.latency)]),
            self.rows_per_s,
        )
    }
}

#[cfg(test)]
mod tests {
    use gpulet_abi::tensor::Dtype;

    use super::*;

    #[test]
    fn intervals_are_seconds() {
        assert_eq!(interval("0.5"), Ok(0.5));
        for wrong in ["-1", "nan", "inf", "3601", "x"] {
            assert!(interval(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn inputs_are_filled_whole() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models/echo");
        let model = model::load(&root, &Limits::default()).unwrap();
        let mut buffer = BatchBuffer::new(&model).unwrap();
        let tensors = buffer.tensors(2);
        let fill = |memory: &mut [u8]| Fill::Ones.write(Dtype::F32, 0, memory);
        with_memory(&tensors.inputs()[0], fill);
        let mut instance = load(None, &model).unwrap();
        instance.run(2, tensors.inputs(), tensors.outputs()).unwrap();
        with_memory(&tensors.outputs()[0], |output| {
            assert_eq!(output.len(), 2 * 256 * 4);
            assert!(output.chunks(4).all(|element| *element == 1f32.to_le_bytes()));
        });
    }
}
