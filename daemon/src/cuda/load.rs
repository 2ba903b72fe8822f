//! From an archive to a model that can run on every gpulet.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use gpulet_kernels::ImageSpec;
use gpulet_torch::Module;
use gpulet_torch::cuda::{Placed, Precision};

use super::accuracy::{self, Specs};
use super::builtin;
use super::capture::{Extent, Maker, PIECE_ROWS, Runs};
use super::gpu::{Divisions, Gpu};
use super::lane::Layouts;
use super::loaded::{Loaded, Times};
use super::weights::{Forward, Weights};

use super::courtesy::give_way;
use crate::backend::buffer::RowBytes;
use crate::backend::loading::pictures;
use crate::backend::torch::{ARCHIVE_BYTES_MAX, check_signature, specs_of};
use crate::backend::warmup::sizes;
use crate::backend::{LoadError, Progress};
use crate::clock::ns_since;
use crate::execute::loader::Load;
use crate::model::{self, Model, Source};
use crate::mps;
use crate::store;
use crate::wire::Manner;

/// Two answers that differ by less are the same: atomic sums have no order.
const MEMORY_ERROR_MAX: f64 = 1e-3;
/// Runs under the clock for each batch size, for whoever schedules by them.
const MEASURED_RUNS: usize = 10;
/// The same where somebody waits for an answer, and more are made later.
const FIRST_RUNS: usize = 3;
/// The same beside an executor that serves: each run takes multiprocessors from its batches. So the
/// two quickest count, and what the load of both is, the first batches tell.
const BESIDE_RUNS: usize = 5;

/// Loads models onto a GPU.
pub struct CudaLoad {
    /// The GPU.
    pub gpu: Arc<Gpu>,
    /// Where models are to be ready.
    pub divisions: Divisions,
}

impl Load for CudaLoad {
    type Loaded = Loaded;

    fn load(
        &self,
        model: &Model,
        manner: Manner,
        progress: Progress<'_>,
    ) -> Result<Loaded, LoadError> {
        let how = match manner {
            Manner::Whole => (Extent::Whole, Runs::alone(MEASURED_RUNS)),
            Manner::Soon => (Extent::Piece, Runs::crowded(FIRST_RUNS)),
            Manner::Beside => {
                give_way();
                (Extent::Whole, Runs::beside(BESIDE_RUNS))
            }
        };
        load(&self.gpu, &self.divisions, model, progress, how)
    }
}

/// Loads a model onto every division: as much as `extent` says, timed in so many runs.
///
/// # Errors
/// [`LoadError`]; a context that is lost shows in the next call of the engine.
pub(super) fn load(
    gpu: &Arc<Gpu>,
    divisions: &Divisions,
    model: &Model,
    progress: Progress<'_>,
    (extent, runs): (Extent, Runs),
) -> Result<Loaded, LoadError> {
    let begun = Instant::now();
    gpu.has_loaded.store(true, Ordering::Relaxed);
    gpu.device.bind().map_err(|error| LoadError::model(model, error))?;
    let before = gpu.device.memory().map_or(0, |(free, _)| free);
    let weights = match &model.source {
        Source::File(_) => place(gpu, divisions, model, progress, runs)?,
        Source::Builtin(builtin) => builtin::weights(gpu, model, *builtin)?,
    };
    let (weights, place_ns) = (Arc::new(weights), ns_since(begun));
    let failed = |rule: String| match &model.source {
        Source::File(path) => LoadError::File { path: path.clone(), rule },
        Source::Builtin(_) => LoadError::model(model, rule),
    };
    let maker = Maker::new(&weights, progress, &|| true, runs).map_err(failed)?;
    let mut lanes = Vec::new();
    for division in divisions.all() {
        lanes.push((division.number, maker.lanes(&division, extent).map_err(failed)?));
    }
    let (warm_up_ns, capture_ns) = maker.times();
    // Memory of the warm-up forwards; graphs have their own.
    gpu.cuda.trim().map_err(|error| failed(error.to_string()))?;
    let after = gpu.device.memory().map_or(0, |(free, _)| free);
    let times = Times { load_ns: ns_since(begun), place_ns, warm_up_ns, capture_ns };
    let (whole, memory_bytes) = (extent == Extent::Whole, before.saturating_sub(after));
    Ok(Loaded { weights, lanes, whole, memory_bytes, times })
}

/// Brings a model's weights to the device, and checks how it computes there.
fn place(
    gpu: &Arc<Gpu>,
    divisions: &Divisions,
    model: &Model,
    progress: Progress<'_>,
    runs: Runs,
) -> Result<Weights, LoadError> {
    let Source::File(path) = &model.source else {
        return Err(LoadError::model(model, "has no archive"));
    };
    let refuse = |rule: String| LoadError::File { path: path.clone(), rule };
    let begun = Instant::now();
    let stage = |what| {
        tracing::debug!(model = model.name, what, us = ns_since(begun) / 1_000, "loading");
    };
    progress("reading".to_owned());
    let archive = store::read(path, ARCHIVE_BYTES_MAX)?;
    stage("read");
    let mut module =
        Module::load_buffer(&gpu.torch, &archive).map_err(|error| refuse(error.to_string()))?;
    drop(archive);
    stage("parsed");
    check_signature(model, &module).map_err(refuse)?;
    let frozen = module.freeze();
    stage("frozen");
    let precision = precision_of(model.precision);
    let placed = gpu.cuda.place(&module, precision).map_err(|error| refuse(error.to_string()))?;
    stage("placed");
    let (inputs, outputs) = (specs_of(model, &model.inputs)?, specs_of(model, &model.outputs)?);
    let specs = Specs { inputs: &inputs, outputs: &outputs };
    let check = Check { gpu, divisions, model, specs, placed: &placed, progress, runs };
    let error = check.accuracy(&module).map_err(refuse)?;
    if module.signature().mutates {
        check.memory().map_err(refuse)?;
    }
    stage("checked");
    let mut maths = match model.precision {
        model::Precision::Fp32 => "fp32".to_owned(),
        other => format!("{} (error {error:.1e})", other.word()),
    };
    if let Err(error) = frozen {
        maths = format!("{maths}, not frozen: {error}");
    }
    Ok(Weights {
        model: model.clone(),
        maths,
        error,
        row_bytes: RowBytes::of(model)?,
        inputs,
        outputs,
        pictures: pictures_of(gpu, model)?,
        forward: Forward::Module(placed),
        released: AtomicBool::new(false),
        gpu: Arc::clone(gpu),
    })
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

/// What an operator can do about halves that are wrong because of their share.
fn mps_hint(precision: model::Precision) -> String {
    let halves = matches!(precision, model::Precision::Fp16 | model::Precision::Bf16);
    match mps::own_share_pct().filter(|share_pct| halves && *share_pct < 100) {
        Some(share_pct) => format!(
            "; at {share_pct} % of MPS, cuBLAS's kernels for halves may be wrong, whoever calls them: \
             on an H100 they are right at 25, 50 and 100 %, and under green contexts"
        ),
        None => String::new(),
    }
}

/// What a model must be before anybody is answered by it.
struct Check<'a> {
    gpu: &'a Arc<Gpu>,
    divisions: &'a Divisions,
    model: &'a Model,
    specs: Specs<'a>,
    placed: &'a Placed,
    progress: Progress<'a>,
    runs: Runs,
}

impl Check<'_> {
    /// The error that the precision brings; refuses more of it than the model allows. Libraries choose
    /// a kernel for each batch size, and one that is right says nothing about the next. Some they
    /// compile at their first use: depthwise convolutions in halves take 2 s for each batch size.
    fn accuracy(&self, module: &Module) -> Result<f64, String> {
        let exact = precision_of(model::Precision::Fp32);
        if self.model.precision == model::Precision::Fp32 {
            return Ok(0.0);
        }
        let text = |error: gpulet_torch::Error| error.to_string();
        let reference = self.gpu.cuda.place(module, exact).map_err(text)?;
        let (word, bound) = (self.model.precision.word(), self.model.error_max);
        let mut worst = 0f64;
        for rows in sizes(self.model.max_batch) {
            (self.progress)(format!("{rows} rows in {word} against fp32"));
            let error = self.difference([&reference, self.placed], rows)?;
            if error > bound {
                return Err(format!(
                    "{word} changes outputs by {error:.2e} of their largest value with {rows} rows, \
                     error_max is {bound}{}",
                    mps_hint(self.model.precision)
                ));
            }
            worst = worst.max(error);
        }
        Ok(worst)
    }

    /// Refuses a model that answers the same question in two ways: a GPU's graphs would not remember
    /// what it remembers. Whether forward changes the model cannot be told for sure by looking at it.
    fn memory(&self) -> Result<(), String> {
        // As many rows as the pieces in which a model runs first: these need no more warming up.
        let rows = self.model.max_batch.min(PIECE_ROWS);
        let error = self.difference([self.placed, self.placed], rows)?;
        if error > MEMORY_ERROR_MAX {
            let rule = "forward changes the model, which is not served on GPUs: the same question \
                        again had an answer that differs by";
            return Err(format!("{rule} {error:.1e}"));
        }
        Ok(())
    }

    /// How far two answers to the same made-up question of so many rows are apart.
    fn difference(&self, both: [&Placed; 2], rows: u32) -> Result<f64, String> {
        let layouts = Layouts::of(self.model, rows).map_err(|error| error.to_string())?;
        let all = self.divisions.all();
        let cut = all.first().and_then(|division| division.cuts.first()).ok_or("no gpulet")?;
        let stream = cut.torch_stream(&self.gpu.cuda).map_err(|error| error.to_string())?;
        let begun = Instant::now();
        let error = accuracy::error(self.model, &self.specs, layouts, rows, both, &stream);
        self.runs.pause(begun);
        error
    }
}
