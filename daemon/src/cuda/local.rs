//! A model on a GPU in this process, one batch after the other: what `gpuletctl run` and the benches
//! use, and what serving is compared with.

use std::sync::Arc;

use gpulet_kernels::Part;

use super::driver::{CudaError, Event, Registration, Stream};
use super::gpu::{Gpu, GpuError, Options};
use super::load;
use super::loaded::{Forward, Loaded};
use crate::backend::{
    Backend, Copied, Instance, LoadError, RunError, View, check_views, memory_error,
};
use crate::model::Model;

/// The GPU of this process.
pub struct Local {
    gpu: Arc<Gpu>,
}

impl Local {
    /// Opens device 0 of those that this process sees.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(options: &Options) -> Result<Local, GpuError> {
        Ok(Local { gpu: Arc::new(Gpu::open(options)?) })
    }

    /// The device.
    pub fn gpu(&self) -> &Arc<Gpu> {
        &self.gpu
    }
}

impl Backend for Local {
    fn describe(&self) -> String {
        self.gpu.describe()
    }

    fn load_file(&self, model: &Model) -> Result<Box<dyn Instance>, LoadError> {
        let loaded = Arc::new(load::load(&self.gpu, model, &|_| ())?);
        Ok(Box::new(LocalInstance::new(&loaded, 0)?))
    }
}

/// A model on every gpulet of this process, in their order; the weights are shared.
///
/// # Errors
/// [`LoadError::Model`] where there are no more streams.
pub(super) fn on_each(loaded: Loaded) -> Result<Vec<Box<dyn Instance>>, LoadError> {
    let loaded = Arc::new(loaded);
    let one = |lane| Ok(Box::new(LocalInstance::new(&loaded, lane)?) as Box<dyn Instance>);
    (0..loaded.lanes.len()).map(one).collect()
}

/// A model on one gpulet of this process. No other has that lane of it.
struct LocalInstance {
    pinned: Option<Registration>,
    stream: Stream,
    done: Event,
    lane: usize,
    loaded: Arc<Loaded>,
}

impl LocalInstance {
    fn new(loaded: &Arc<Loaded>, lane: usize) -> Result<LocalInstance, LoadError> {
        let failed = |error: CudaError| LoadError::model(&loaded.model, error);
        Ok(LocalInstance {
            pinned: None,
            stream: loaded.gpu.cuts[lane].stream().map_err(failed)?,
            done: Event::new().map_err(failed)?,
            lane,
            loaded: Arc::clone(loaded),
        })
    }

    fn queue(&self, rows: u32, inputs: &[View<'_>], outputs: &[View<'_>]) -> Result<(), String> {
        let text = |error: CudaError| error.to_string();
        let lane = &self.loaded.lanes[self.lane];
        let (set, size) = (&lane.sets[0], lane.size_for(rows).ok_or("more than max_batch rows")?);
        for (view, place) in inputs.iter().zip(set.layouts.device.inputs()) {
            let to = set.device.address() + place.offset;
            // SAFETY: the view is valid for the call, which waits; the place has room for it.
            unsafe { self.stream.copy_in(view.data(), to, view.bytes()) }.map_err(text)?;
        }
        match &lane.sizes[size].graphs {
            // SAFETY: a live graph over the set, which is this call's alone.
            Some(graphs) => unsafe { self.stream.launch(graphs[0].exec()) }.map_err(text)?,
            None => {
                let given = set.inputs(&self.loaded.inputs, rows);
                let room = set.outputs(&self.loaded.outputs, rows);
                let Forward::Module(placed) = &self.loaded.forward else {
                    return Err("a built-in model runs in an executor only".to_owned());
                };
                // SAFETY: memory of the set, and a live stream.
                let run = unsafe { placed.run(self.stream.raw(), &given, &room) };
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
        check_views(&self.loaded.model.inputs, rows, inputs);
        check_views(&self.loaded.model.outputs, rows, outputs);
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
        self.loaded.form.clone()
    }

    fn profile(&self) -> Option<Vec<gpulet_plan::profile::ProfilePoint>> {
        Some(self.loaded.lanes[self.lane].points.clone())
    }

    unsafe fn pin(&mut self, memory: Part) {
        // SAFETY: the caller's.
        match unsafe { Registration::new(memory.data, memory.bytes) } {
            Ok(registration) => self.pinned = Some(registration),
            Err(error) => tracing::warn!("the batch stays in pageable memory: {error}"),
        }
    }
}
