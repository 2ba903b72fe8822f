//! A model on a GPU in this process, one batch after the other: what `gpuletctl run` and the benches
//! use, and what serving is compared with.

use std::sync::Arc;

use gpulet_kernels::Part;

use super::capture::{Extent, Runs};
use super::driver::{CudaError, Event};
use super::gpu::{Divisions, Gpu, GpuError, Options, TorchStream};
use super::lane::{Fit, Lane};
use super::load;
use super::loaded::Loaded;
use super::registration::Registration;
use super::weights::{Forward, Weights};
use crate::backend::{
    Backend, Copied, Instance, LoadError, RunError, View, check_views, memory_error,
};
use crate::model::Model;

/// The GPU of this process.
pub struct Local {
    gpu: Arc<Gpu>,
    divisions: Divisions,
}

/// Runs under the clock for each batch size.
const MEASURED_RUNS: usize = 10;

impl Local {
    /// Opens device 0 of those that this process sees.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(options: &Options) -> Result<Local, GpuError> {
        let (gpu, division) = Gpu::open(options)?;
        Ok(Local { gpu: Arc::new(gpu), divisions: Divisions::of(Arc::new(division)) })
    }
}

impl Backend for Local {
    fn describe(&self) -> String {
        let all = self.divisions.all();
        all.first().map(|division| self.gpu.describe(division)).unwrap_or_default()
    }

    fn load_file(&self, model: &Model) -> Result<Box<dyn Instance>, LoadError> {
        let how = (Extent::Whole, Runs::alone(MEASURED_RUNS));
        let loaded = load::load(&self.gpu, &self.divisions, model, &|_| (), how)?;
        let missing = || LoadError::model(model, "there is no gpulet");
        on_each(loaded)?.into_iter().next().ok_or_else(missing)
    }
}

/// A model on every gpulet of this process, in their order; the weights are shared.
///
/// # Errors
/// [`LoadError::Model`] where there are no more streams.
pub(super) fn on_each(loaded: Loaded) -> Result<Vec<Box<dyn Instance>>, LoadError> {
    let form = loaded.form();
    let lanes = loaded.lanes.into_iter().next().map(|(_, lanes)| lanes).unwrap_or_default();
    let lanes = lanes.into_iter().enumerate();
    let one = |(gpulet, lane)| {
        let instance = LocalInstance::new(lane, gpulet, form.clone())?;
        Ok(Box::new(instance) as Box<dyn Instance>)
    };
    lanes.map(one).collect()
}

/// A model on one gpulet of this process.
struct LocalInstance {
    pinned: Option<Registration>,
    // Waits for its work, which uses the lane.
    stream: TorchStream,
    done: Event,
    lane: Lane,
    form: String,
}

impl LocalInstance {
    fn new(lane: Lane, gpulet: usize, form: String) -> Result<LocalInstance, LoadError> {
        let weights = &lane.weights;
        let failed = |error: CudaError| LoadError::model(&weights.model, error);
        let cut = &lane.division.cuts[gpulet];
        let stream = cut.torch_stream(&weights.gpu.cuda).map_err(failed)?;
        let done = Event::new().map_err(failed)?;
        Ok(LocalInstance { pinned: None, stream, done, lane, form })
    }

    fn queue(&self, rows: u32, inputs: &[View<'_>], outputs: &[View<'_>]) -> Result<(), String> {
        let text = |error: CudaError| error.to_string();
        let Weights { inputs: taken, outputs: given, forward, .. } = &*self.lane.weights;
        let set = &self.lane.sets[0];
        let Some(Fit::Size(size)) = self.lane.fit(rows) else {
            return Err("more than max_batch rows".to_owned());
        };
        for (view, place) in inputs.iter().zip(set.layouts.device.inputs()) {
            let to = set.device.address() + place.offset;
            // SAFETY: the view is valid for the call, which waits; the place has room for it.
            unsafe { self.stream.copy_in(view.data(), to, view.bytes()) }.map_err(text)?;
        }
        match &self.lane.sizes[size].graphs {
            // SAFETY: a live graph over the set, which is this call's alone.
            Some(graphs) => unsafe { self.stream.launch(graphs[0].exec()) }.map_err(text)?,
            None => {
                let (taken, given) = (set.inputs(taken, rows), set.outputs(given, rows));
                let Forward::Module(placed) = forward else {
                    return Err("a built-in model runs in an executor only".to_owned());
                };
                // SAFETY: memory of the set, and a live stream.
                let run = unsafe { placed.run(self.stream.raw(), &taken, &given) };
                run.map_err(|error| error.to_string())?;
            }
        }
        for (view, place) in outputs.iter().zip(set.layouts.device.outputs()) {
            let from = set.device.address() + place.offset;
            // SAFETY: as for the inputs.
            unsafe { self.stream.copy_out(from, view.data(), view.bytes()) }.map_err(text)?;
        }
        self.done.record(&self.stream).map_err(text)
    }
}

impl Instance for LocalInstance {
    fn run(
        &mut self,
        rows: u32,
        inputs: &[View<'_>],
        outputs: &[View<'_>],
    ) -> Result<Copied, RunError> {
        let model = &self.lane.weights.model;
        check_views(&model.inputs, rows, inputs);
        check_views(&model.outputs, rows, outputs);
        let queued = self.queue(rows, inputs, outputs);
        // Also after an error: what was queued before it still reads and writes the views.
        loop {
            match self.done.is_done() {
                Ok(true) => break,
                Ok(false) => std::hint::spin_loop(),
                Err(error) => return Err(memory_error(error.to_string())),
            }
        }
        queued.map_err(memory_error)?;
        Ok(Copied::default())
    }

    fn form(&self) -> String {
        self.form.clone()
    }

    fn profile(&self) -> Option<Vec<gpulet_plan::profile::ProfilePoint>> {
        Some(self.lane.points.clone())
    }

    unsafe fn pin(&mut self, memory: Part) {
        // SAFETY: the caller's.
        match unsafe { Registration::new(memory.data, memory.bytes) } {
            Ok(registration) => self.pinned = Some(registration),
            Err(error) => tracing::warn!("the batch stays in pageable memory: {error}"),
        }
    }
}
