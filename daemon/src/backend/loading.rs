//! From a description to a backend, and from a model's directory to a model that is warm.

use gpulet_kernels::ImageSpec;
use gpulet_plan::profile::ProfilePoint;

use super::buffer::{BatchBuffer, RowBytes};
use super::{Backend, Instance, LoadError, OpenError, Progress, echo, replay, torch, warmup};
use crate::model::{Builtin, Model, Source, Tensor};
use crate::wire;

/// A model that is warm and measured, with memory for its batches.
pub struct Loaded {
    /// What it is.
    pub model: Model,
    /// It runs batches.
    pub instance: Box<dyn Instance>,
    /// Room for `max_batch` rows of everything, as the model sees it.
    pub buffer: BatchBuffer,
    /// What a row takes in a slot.
    pub slot_rows: RowBytes,
    /// For each input that clients give as pictures what becomes of them.
    pub pictures: Vec<Option<ImageSpec>>,
    /// Latencies, rows ascending: what `LatencyProfile` takes.
    pub points: Vec<ProfilePoint>,
}

impl Loaded {
    /// Runs one row of zeros in a thread that has not run any model: its first forward costs some
    /// milliseconds more, for what libtorch and malloc keep for each thread.
    pub fn settle(&mut self) {
        let Loaded { model, instance, buffer, .. } = self;
        if instance.profile().is_some() {
            return;
        }
        for index in 0..model.inputs.len() {
            buffer.input_mut(index, 1).fill(0);
        }
        let tensors = buffer.tensors(1);
        if let Err(error) = instance.run(1, tensors.inputs(), tensors.outputs()) {
            tracing::debug!(model = model.name, "{error}");
        }
    }
}

/// Opens the backend that `backend` describes, with `thread_count` threads for one forward.
///
/// # Errors
/// [`OpenError`].
pub fn open(backend: &wire::Backend, thread_count: u32) -> Result<Box<dyn Backend>, OpenError> {
    Ok(match backend {
        wire::Backend::Torch { libtorch_dir, shim } => {
            Box::new(torch::Torch::open(libtorch_dir.clone(), shim.clone(), thread_count)?)
        }
        wire::Backend::Cuda(_) => return Err(OpenError::NotOnHost),
        wire::Backend::Replay { profiles_dir } => Box::new(replay::Replay::open(profiles_dir)?),
    })
}

/// Loads a model, warms it up and measures it.
///
/// # Errors
/// [`LoadError`].
pub fn load(
    backend: &dyn Backend,
    model: &Model,
    progress: Progress<'_>,
) -> Result<Loaded, LoadError> {
    progress("reading".to_owned());
    let mut instance: Box<dyn Instance> = match &model.source {
        Source::File(_) => backend.load_file(model)?,
        Source::Builtin(Builtin::Echo) => Box::new(echo::Echo::new(model)?),
        Source::Builtin(Builtin::Null) => {
            return Err(LoadError::model(model, "builtin:null is answered without an executor"));
        }
        Source::Builtin(Builtin::Fault | Builtin::Hang) => {
            return Err(LoadError::model(model, "builtin \"fault\" and \"hang\" need a GPU"));
        }
    };
    let mut buffer = BatchBuffer::new(model)?;
    let points = match instance.profile() {
        Some(points) => points,
        None => warmup::measure(model, instance.as_mut(), &mut buffer, progress)?,
    };
    let slot_rows = RowBytes::of(model)?;
    Ok(Loaded {
        model: model.clone(),
        instance,
        buffer,
        slot_rows,
        pictures: pictures(model)?,
        points,
    })
}

/// What becomes of pictures, for each input of a model.
pub(crate) fn pictures(model: &Model) -> Result<Vec<Option<ImageSpec>>, LoadError> {
    let spec = |tensor: &Tensor| {
        let failed = |error| LoadError::model(model, format!("{}: {error}", tensor.name));
        tensor.pictures().transpose().map_err(failed)
    };
    model.inputs.iter().map(spec).collect()
}
