//! From an archive to a model that is warm, captured and measured on every gpulet.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Instant;

use gpulet_kernels::ImageSpec;
use gpulet_plan::profile::{PROFILE_LATENCY_MAX_NS, ProfilePoint};
use gpulet_torch::cuda::{Graph, Placed, Precision};
use gpulet_torch::{Error, Module};

use super::accuracy::{self, Specs};
use super::builtin;
use super::driver::{CudaError, Event, Stream};
use super::gpu::{Cut, Gpu};
use super::loaded::{Forward, Lane, Layouts, Loaded, SETS, Set, Size, Times};

use crate::backend::buffer::RowBytes;
use crate::backend::torch::{ARCHIVE_BYTES_MAX, Spec, check_signature, specs_of};
use crate::backend::warmup::sizes;
use crate::backend::{LoadError, pictures};
use crate::execute::engine::{Load, Progress};
use crate::execute::foresight::Foresight;
use crate::model::{self, Model, Source};
use crate::store;

/// Forwards before a capture: libtorch compiles on the second at each shape, cuDNN chooses on the
/// first, and allocations settle.
const FORWARDS_MIN: u32 = 3;
/// Two answers that differ by less are the same: atomic sums have no order.
const MEMORY_ERROR_MAX: f64 = 1e-3;
/// Rows that a precision is checked with.
const SAMPLE_ROWS: u32 = 4;
/// Runs under the clock for each batch size, for whoever schedules by them.
const MEASURED_RUNS: usize = 10;

/// Loads models onto a GPU.
pub struct CudaLoad(pub Arc<Gpu>);

impl Load for CudaLoad {
    type Loaded = Loaded;

    fn load(&self, model: &Model, progress: Progress<'_>) -> Result<Loaded, LoadError> {
        load(&self.0, model, progress)
    }
}

/// Loads a model.
///
/// # Errors
/// [`LoadError`]; a context that is lost shows in the next call of the engine.
pub fn load(gpu: &Arc<Gpu>, model: &Model, progress: Progress<'_>) -> Result<Loaded, LoadError> {
    load_measured(gpu, model, progress, MEASURED_RUNS)
}

/// Loads a model, and times so many runs of each batch size, at least one.
///
/// # Errors
/// As [`load`].
pub(super) fn load_measured(
    gpu: &Arc<Gpu>,
    model: &Model,
    progress: Progress<'_>,
    measured_runs: usize,
) -> Result<Loaded, LoadError> {
    let begun = Instant::now();
    gpu.device.bind().map_err(|error| LoadError::model(model, error))?;
    let path = match &model.source {
        Source::File(path) => path,
        Source::Builtin(builtin) => return builtin::load(gpu, model, *builtin),
    };
    let refuse = |rule: String| LoadError::File { path: path.clone(), rule };
    let before = gpu.device.memory().map_or(0, |(free, _)| free);
    progress("reading".to_owned());
    let archive = store::read(path, ARCHIVE_BYTES_MAX)?;
    let mut module =
        Module::load_buffer(&gpu.torch, &archive).map_err(|error| refuse(error.to_string()))?;
    drop(archive);
    check_signature(model, &module).map_err(refuse)?;
    let frozen = module.freeze();
    let precision = precision_of(model.precision);
    let placed = gpu.cuda.place(&module, precision).map_err(|error| refuse(error.to_string()))?;
    let place_ns = ns_since(begun);
    let pictures = pictures_of(gpu, model)?;
    let maker = Maker {
        gpu,
        model,
        progress,
        placed: &placed,
        layouts: layouts(model, model.max_batch)?,
        inputs: specs_of(model, &model.inputs)?,
        outputs: specs_of(model, &model.outputs)?,
        measured_runs,
        warm_up_ns: Cell::new(0),
        capture_ns: Cell::new(0),
    };
    let error = maker.check_accuracy(&module).map_err(refuse)?;
    if module.signature().mutates {
        maker.check_memory().map_err(refuse)?;
    }
    drop(module);
    let mut lanes = Vec::new();
    let mut eager = None;
    for cut in &gpu.cuts {
        lanes.push(maker.lane(cut, &mut eager).map_err(refuse)?);
    }
    let Maker { inputs, outputs, warm_up_ns, capture_ns, .. } = maker;
    // Memory of the warm-up forwards; graphs have their own.
    gpu.cuda.trim().map_err(|error| refuse(error.to_string()))?;
    let after = gpu.device.memory().map_or(0, |(free, _)| free);
    let mut form = form_of(model.precision, error, eager);
    if let Err(error) = frozen {
        form = format!("{form}, not frozen: {error}");
    }
    Ok(Loaded {
        model: model.clone(),
        form,
        memory_bytes: before.saturating_sub(after),
        error,
        times: Times {
            load_ns: ns_since(begun),
            place_ns,
            warm_up_ns: warm_up_ns.get(),
            capture_ns: capture_ns.get(),
        },
        row_bytes: RowBytes::of(model)?,
        inputs,
        outputs,
        pictures,
        lanes,
        forward: Forward::Module(placed),
        gpu: Arc::clone(gpu),
    })
}

pub(super) fn layouts(model: &Model, rows: u32) -> Result<Layouts, LoadError> {
    let layout = |row_bytes: RowBytes| {
        let overflow = || LoadError::model(model, "max_batch: the tensors overflow");
        row_bytes.layout(rows).ok_or_else(overflow)
    };
    let (device, host) = (RowBytes::seen_by_model(model)?, RowBytes::of(model)?);
    Ok(Layouts { device: layout(device)?, host: layout(host)? })
}

fn pictures_of(gpu: &Gpu, model: &Model) -> Result<Vec<Option<ImageSpec>>, LoadError> {
    let pictures = pictures(model)?;
    if gpu.kernels.is_none() && pictures.iter().any(Option::is_some) {
        return Err(LoadError::model(model, "normalise needs kernels, and NVRTC is missing"));
    }
    Ok(pictures)
}

fn precision_of(precision: model::Precision) -> Precision {
    use gpulet_torch::Dtype;
    let dtype = match precision {
        model::Precision::Fp32 | model::Precision::Tf32 => Dtype::F32,
        model::Precision::Fp16 => Dtype::F16,
        model::Precision::Bf16 => Dtype::Bf16,
    };
    Precision {
        dtype,
        tf32: precision == model::Precision::Tf32,
        // Tensor cores take halves with channels innermost; singles gain nothing from it.
        channels_last: dtype != Dtype::F32,
    }
}

fn form_of(precision: model::Precision, error: f64, eager: Option<String>) -> String {
    let maths = match precision {
        model::Precision::Fp32 => "fp32".to_owned(),
        other => format!("{} (error {error:.1e})", other.word()),
    };
    match eager {
        None => format!("{maths}, CUDA graphs"),
        Some(reason) => format!("{maths}, eager: {reason}"),
    }
}

fn ns_since(begun: Instant) -> u64 {
    u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

/// What the parts of a load share.
struct Maker<'a> {
    gpu: &'a Arc<Gpu>,
    model: &'a Model,
    progress: Progress<'a>,
    placed: &'a Placed,
    layouts: Layouts,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    measured_runs: usize,
    warm_up_ns: Cell<u64>,
    capture_ns: Cell<u64>,
}

impl Maker<'_> {
    /// The error that the precision brings; refuses more of it than the model allows.
    fn check_accuracy(&self, module: &Module) -> Result<f64, String> {
        let exact = precision_of(model::Precision::Fp32);
        if self.model.precision == model::Precision::Fp32 {
            return Ok(0.0);
        }
        let text = |error: gpulet_torch::Error| error.to_string();
        let reference = self.gpu.cuda.place(module, exact).map_err(text)?;
        let error = self.difference([&reference, self.placed])?;
        let (word, bound) = (self.model.precision.word(), self.model.error_max);
        if error > bound {
            return Err(format!(
                "{word} changes outputs by {error:.2e} of their largest value, error_max is {bound}"
            ));
        }
        Ok(error)
    }

    /// Refuses a model that answers the same question in two ways: a GPU's graphs would not remember
    /// what it remembers. Whether forward changes the model cannot be told for sure by looking at it.
    fn check_memory(&self) -> Result<(), String> {
        let error = self.difference([self.placed, self.placed])?;
        if error > MEMORY_ERROR_MAX {
            let rule = "forward changes the model, which is not served on GPUs: the same question \
                        again had an answer that differs by";
            return Err(format!("{rule} {error:.1e}"));
        }
        Ok(())
    }

    /// How far two answers to the same made-up question are apart.
    fn difference(&self, both: [&Placed; 2]) -> Result<f64, String> {
        let rows = self.model.max_batch.min(SAMPLE_ROWS);
        let layouts = layouts(self.model, rows).map_err(|error| error.to_string())?;
        let specs = Specs { inputs: &self.inputs, outputs: &self.outputs };
        let cut = &self.gpu.cuts[0];
        let stream = cut.borrow_stream().map_err(|error| error.to_string())?;
        let error = accuracy::error(self.model, &specs, layouts, rows, both, &stream)?;
        cut.give_back(stream);
        Ok(error)
    }

    fn lane(&self, cut: &Cut, eager: &mut Option<String>) -> Result<Lane, String> {
        let text = |error: CudaError| error.to_string();
        let capture = cut.borrow_stream().map_err(text)?;
        let sets = [Set::new(self.layouts), Set::new(self.layouts)];
        let [first, second] = sets.map(|set| set.map_err(text));
        let sets = [first?, second?];
        for set in &sets {
            set.make_harmless(self.model, &capture).map_err(text)?;
        }
        let pool = self.gpu.cuda.pool().map_err(|error| error.to_string())?;
        let mut made = Vec::new();
        // The largest first: what it leaves in the pool is enough for the others.
        let all: Vec<u32> = sizes(self.model.max_batch).collect();
        for rows in all.into_iter().rev() {
            (self.progress)(format!("{rows} rows"));
            let begun = Instant::now();
            self.warm_up(&capture, &sets[0], rows)?;
            self.warm_up_ns.update(|ns| ns + ns_since(begun));
            let begun = Instant::now();
            let mut graphs = None;
            if eager.is_none() {
                match self.capture(&capture, pool, &sets, rows) {
                    Ok(both) => graphs = Some(both),
                    Err(Error::ModelRaised { raised }) => *eager = Some(raised.summary),
                    Err(error) => return Err(format!("capture of {rows} rows: {error}")),
                }
            }
            self.capture_ns.update(|ns| ns + ns_since(begun));
            made.push(Size { rows, graphs, foresight: Foresight::new(0) });
        }
        made.reverse();
        let mut lane = Lane { sizes: made, sets, points: Vec::new(), capture: Some(capture) };
        if eager.is_some() {
            lane.sizes.iter_mut().for_each(|size| size.graphs = None);
        }
        self.measure(&mut lane)?;
        Ok(lane)
    }

    fn warm_up(&self, stream: &Stream, set: &Set, rows: u32) -> Result<(), String> {
        let (inputs, outputs) = (set.inputs(&self.inputs, rows), set.outputs(&self.outputs, rows));
        for _ in 0..self.model.warmup_count.max(FORWARDS_MIN) {
            // SAFETY: the stream is live, and the set's memory is used by it alone.
            let run = unsafe { self.placed.run(stream.raw(), &inputs, &outputs) };
            run.map_err(|error| format!("{rows} rows of zeros: {error}"))?;
        }
        stream.wait().map_err(|error| format!("{rows} rows of zeros: {error}"))
    }

    fn capture(
        &self,
        stream: &Stream,
        pool: gpulet_torch::cuda::Pool,
        sets: &[Set; SETS],
        rows: u32,
    ) -> Result<[Graph; SETS], Error> {
        let capture = |set: &Set| {
            let inputs = set.inputs(&self.inputs, rows);
            let outputs = set.outputs(&self.outputs, rows);
            // SAFETY: the sets and the weights outlive the graphs in `Loaded`, and the engine runs
            // one batch at a time on a set.
            unsafe { self.placed.capture(stream.raw(), pool, &inputs, &outputs) }
        };
        Ok([capture(&sets[0])?, capture(&sets[1])?])
    }

    /// Times whole batches, copies included.
    fn measure(&self, lane: &mut Lane) -> Result<(), String> {
        let stream = lane.capture.as_ref().ok_or("no stream")?;
        let event = Event::new().map_err(|error| error.to_string())?;
        for size in &mut lane.sizes {
            let mut taken_ns = Vec::with_capacity(self.measured_runs);
            for _ in 0..self.measured_runs.max(1) {
                let start = Instant::now();
                self.whole(stream, &lane.sets[0], size)?;
                event.record(stream).map_err(|error| error.to_string())?;
                while !event.is_done().map_err(|error| error.to_string())? {
                    std::hint::spin_loop();
                }
                taken_ns.push(ns_since(start).clamp(1, PROFILE_LATENCY_MAX_NS));
            }
            taken_ns.sort_unstable();
            let (p50_ns, p99_ns) = (taken_ns[taken_ns.len() / 2], taken_ns[taken_ns.len() - 1]);
            size.foresight = Foresight::new(p50_ns);
            lane.points.push(ProfilePoint { rows: size.rows, p50_ns, p99_ns });
        }
        Ok(())
    }

    fn whole(&self, stream: &Stream, set: &Set, size: &Size) -> Result<(), String> {
        let text = |error: CudaError| error.to_string();
        let rows = u64::from(size.rows);
        let base = set.host.data();
        let pairs = set.layouts.device.inputs().iter().zip(set.layouts.host.inputs());
        for ((device, host), tensor) in pairs.zip(&self.model.inputs) {
            let bytes = (tensor.row_bytes * rows) as usize;
            // SAFETY: the places lie in both memories, which nothing else uses now.
            unsafe {
                let from = base.add(host.offset as usize);
                stream.copy_in(from, set.device.address() + device.offset, bytes).map_err(text)?;
            }
        }
        match &size.graphs {
            // SAFETY: a live graph over this set.
            Some(graphs) => unsafe { stream.launch(graphs[0].exec()) }.map_err(text)?,
            None => {
                let inputs = set.inputs(&self.inputs, size.rows);
                let outputs = set.outputs(&self.outputs, size.rows);
                // SAFETY: as in `warm_up`.
                let run = unsafe { self.placed.run(stream.raw(), &inputs, &outputs) };
                run.map_err(|error| error.to_string())?;
            }
        }
        let pairs = set.layouts.device.outputs().iter().zip(set.layouts.host.outputs());
        for ((device, host), tensor) in pairs.zip(&self.model.outputs) {
            let bytes = (tensor.row_bytes * rows) as usize;
            // SAFETY: as above.
            unsafe {
                let to = base.add(host.offset as usize);
                stream.copy_out(set.device.address() + device.offset, to, bytes).map_err(text)?;
            }
        }
        Ok(())
    }
}
