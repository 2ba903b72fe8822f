//! A model on a GPU: its weights once, and for each gpulet the memory and the graphs to run it.

use std::sync::Arc;

use gpulet_abi::tensor::{Extent, SlotLayout};
use gpulet_kernels::{ImageSpec, Part};
use gpulet_plan::profile::ProfilePoint;
use gpulet_torch::cuda::{DeviceTensor, Graph, Placed};

use super::driver::{CudaError, DeviceMemory, Pinned, Stream};
use super::gpu::Gpu;
use super::moves::HostPart;
use crate::backend::buffer::RowBytes;
use crate::backend::torch::Spec;
use crate::backend::values::make_harmless;
use crate::execute::foresight::Foresight;
use crate::model::Model;

/// Batches of one gpulet that can be under way: one computes while the next is copied in.
pub const SETS: usize = 2;

/// A model that is warm on every gpulet of its executor.
pub struct Loaded {
    /// What it is.
    pub model: Model,
    /// How it runs, for people.
    pub form: String,
    /// Device memory that it takes.
    pub memory_bytes: u64,
    /// What its precision costs against fp32, as [`Model::error_max`] is stated.
    pub error: f64,
    /// What the load took.
    pub times: Times,
    pub(super) row_bytes: RowBytes,
    pub(super) inputs: Vec<Spec>,
    pub(super) outputs: Vec<Spec>,
    /// For each input that clients give as pictures what becomes of them.
    pub(super) pictures: Vec<Option<ImageSpec>>,
    /// In the order of the gpulets. Before the weights, which its graphs use.
    pub(super) lanes: Vec<Lane>,
    pub(super) forward: Forward,
    pub(super) gpu: Arc<Gpu>,
}

/// What the steps of a load took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Times {
    /// All of it.
    pub load_ns: u64,
    /// Reading the archive, and bringing its weights to the device.
    pub place_ns: u64,
    /// The first forwards at every batch size on every gpulet, in which algorithms are chosen.
    pub warm_up_ns: u64,
    /// Captures of all of these.
    pub capture_ns: u64,
}

/// What computes where there is no graph.
pub(super) enum Forward {
    /// A TorchScript module.
    Module(Placed),
    /// Each output is the input of the same index.
    Echo,
    /// A write where no memory is.
    Fault,
    /// A kernel that runs until this word is not 0, which it never is.
    Hang(Pinned),
}

/// A model on one gpulet.
pub(super) struct Lane {
    /// Smallest first.
    pub sizes: Vec<Size>,
    pub sets: [Set; SETS],
    pub points: Vec<ProfilePoint>,
    /// What it was captured on; `None` only while it is dropped.
    pub capture: Option<Stream>,
}

/// A batch size that is ready to run.
pub(super) struct Size {
    pub rows: u32,
    /// One for each set; without, the model runs eagerly.
    pub graphs: Option<[Graph; SETS]>,
    /// When batches of this size end.
    pub foresight: Foresight,
}

/// Where the tensors of so many rows lie: on the device as the model sees them, on the host as clients
/// do.
#[derive(Clone, Copy)]
pub(super) struct Layouts {
    pub device: SlotLayout,
    pub host: SlotLayout,
}

/// Memory for one batch of `max_batch` rows, laid out as a slot would be.
pub(super) struct Set {
    pub device: DeviceMemory,
    /// For what cannot be copied straight from and to slots.
    pub host: Pinned,
    pub layouts: Layouts,
}

impl Set {
    pub(super) fn new(layouts: Layouts) -> Result<Set, CudaError> {
        // On a 64-bit machine; and more than there is memory for fails in the driver.
        let device = DeviceMemory::new(layouts.device.bytes() as usize)?;
        Ok(Set { device, host: Pinned::new(layouts.host.bytes() as usize)?, layouts })
    }

    /// A stretch of its host memory.
    pub(super) fn host_part(&self, offset: u64, bytes: usize) -> HostPart {
        assert!(offset as usize + bytes <= self.host.bytes(), "outside of the set's host memory");
        // SAFETY: inside, by the assert.
        let host = unsafe { self.host.data().add(offset as usize) };
        // Pinned memory has one address for host and device.
        HostPart { host, device: host.as_ptr() as u64, bytes }
    }

    /// Fills both memories' inputs with what a model may be given.
    pub(super) fn make_harmless(&self, model: &Model, stream: &Stream) -> Result<(), CudaError> {
        let places = self.layouts.device.inputs().iter().zip(self.layouts.host.inputs());
        for (tensor, (device, host)) in model.inputs.iter().zip(places) {
            if tensor.range.is_none() {
                continue;
            }
            // SAFETY: the places lie in both memories, which nothing else uses yet.
            unsafe {
                let data = self.host.data().add(host.offset as usize);
                let bytes = host.bytes as usize;
                make_harmless(tensor, Part { data, bytes });
                stream.copy_in(data, self.device.address() + device.offset, bytes)?;
            }
        }
        stream.wait()
    }

    pub(super) fn inputs(&self, specs: &[Spec], rows: u32) -> Vec<DeviceTensor> {
        self.tensors(specs, self.layouts.device.inputs(), rows)
    }

    pub(super) fn outputs(&self, specs: &[Spec], rows: u32) -> Vec<DeviceTensor> {
        self.tensors(specs, self.layouts.device.outputs(), rows)
    }

    fn tensors(&self, specs: &[Spec], places: &[Extent], rows: u32) -> Vec<DeviceTensor> {
        let tensor = |(spec, place): (&Spec, &Extent)| DeviceTensor {
            address: self.device.address() + place.offset,
            dtype: spec.dtype,
            dims: spec.dims(rows),
            rank: spec.rank,
        };
        specs.iter().zip(places).map(tensor).collect()
    }
}

impl Loaded {
    /// Whether every batch size is a graph on every gpulet.
    pub(super) fn is_captured(&self) -> bool {
        self.lanes.iter().flat_map(|lane| &lane.sizes).all(|size| size.graphs.is_some())
    }
}

impl Lane {
    /// The smallest size that holds `rows` rows.
    pub(super) fn size_for(&self, rows: u32) -> Option<usize> {
        self.sizes.iter().position(|size| size.rows >= rows)
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        // Only batches that are done let go of a model, so no launch is unfinished.
        for (lane, cut) in self.lanes.iter_mut().zip(&self.gpu.cuts) {
            lane.sizes.clear();
            if let Some(stream) = lane.capture.take() {
                cut.give_back(stream);
            }
        }
    }
}
