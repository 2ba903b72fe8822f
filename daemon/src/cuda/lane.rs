//! A model on one gpulet: memory for its batches, and the graphs that run them.

use std::sync::Arc;

use gpulet_abi::tensor::{Extent, SlotLayout};
use gpulet_kernels::Part;
use gpulet_plan::profile::{PROFILE_LATENCY_MAX_NS, ProfilePoint};
use gpulet_torch::cuda::DeviceTensor;

use super::driver::{CudaError, Stream};
use super::gpu::{Division, TorchStream};
use super::graph::Graph;
use super::memory::{DeviceMemory, Pinned};
use super::moves::HostPart;
use super::weights::Weights;
use crate::backend::LoadError;
use crate::backend::buffer::RowBytes;
use crate::backend::torch::Spec;
use crate::backend::values::make_harmless;
use crate::model::Model;

/// Batches of one gpulet that can be under way: one computes while the next is copied in.
pub const SETS: usize = 2;

/// A model on one gpulet. It is dropped in the order of its fields: graphs use what comes after them.
pub(super) struct Lane {
    /// Smallest first; none while there are only pieces.
    pub sizes: Vec<Size>,
    /// What runs while the sizes are being made.
    pub piece: Option<Piece>,
    pub sets: [Set; SETS],
    pub points: Vec<ProfilePoint>,
    /// Why it has no graphs.
    pub eager: Option<String>,
    /// What it was captured on.
    pub stream: Option<TorchStream>,
    pub weights: Arc<Weights>,
    pub division: Arc<Division>,
}

/// A batch size that is ready to run.
pub(super) struct Size {
    pub rows: u32,
    /// One for each set; without, the model runs eagerly.
    pub graphs: Option<[Graph; SETS]>,
}

/// A graph that runs batches of any size, so many rows after so many.
pub(super) struct Piece {
    pub rows: u32,
    pub graph: Graph,
    /// Memory for its rows alone.
    pub set: Set,
}

/// How a batch runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fit {
    /// In that size.
    Size(usize),
    /// In so many pieces.
    Pieces(u32),
}

/// Where the tensors of so many rows lie: on the device as the model sees them, on the host as clients
/// do.
#[derive(Clone, Copy)]
pub(super) struct Layouts {
    pub device: SlotLayout,
    pub host: SlotLayout,
}

impl Layouts {
    /// Those of so many rows of a model.
    ///
    /// # Errors
    /// More bytes than can be counted.
    pub(super) fn of(model: &Model, rows: u32) -> Result<Layouts, LoadError> {
        let layout = |row_bytes: RowBytes| {
            let overflow = || LoadError::model(model, "max_batch: the tensors overflow");
            row_bytes.layout(rows).ok_or_else(overflow)
        };
        let (device, host) = (RowBytes::seen_by_model(model)?, RowBytes::of(model)?);
        Ok(Layouts { device: layout(device)?, host: layout(host)? })
    }
}

/// Memory for one batch, laid out as a slot would be.
pub(super) struct Set {
    pub device: DeviceMemory,
    /// For what cannot be copied straight from and to slots.
    pub host: Pinned,
    pub layouts: Layouts,
}

impl Lane {
    /// How a batch of so many rows runs; `None` where it is more than `max_batch`.
    pub(super) fn fit(&self, rows: u32) -> Option<Fit> {
        let piece_rows = self.piece.as_ref().map(|piece| piece.rows);
        fit(self.sizes.iter().map(|size| size.rows), piece_rows, rows)
    }

    /// What batches take, as it was measured: of each size, or in one piece, two and so on.
    pub(super) fn measured_ns(&self) -> Vec<u64> {
        let of_points = self.points.iter().map(|point| point.p50_ns);
        let Some(piece) = &self.piece else { return of_points.collect() };
        let count = self.weights.model.max_batch.div_ceil(piece.rows);
        let piece_ns = self.points.first().map_or(0, |point| point.p50_ns);
        (1..=u64::from(count)).map(|times| piece_ns.saturating_mul(times)).collect()
    }

    /// Which of [`measured_ns`](Self::measured_ns) is of a batch that runs so.
    pub(super) fn measured_of(&self, fit: Fit) -> usize {
        match fit {
            Fit::Size(index) => index,
            Fit::Pieces(count) => (count as usize).saturating_sub(1),
        }
    }
}

fn fit(mut sizes: impl Iterator<Item = u32>, piece_rows: Option<u32>, rows: u32) -> Option<Fit> {
    match piece_rows {
        Some(piece_rows) => Some(Fit::Pieces(rows.div_ceil(piece_rows))),
        None => sizes.position(|size| size >= rows).map(Fit::Size),
    }
}

/// What batches take that run in pieces of so many rows, of `piece_ns` each. Between these points and
/// above, nothing is faster than they say by more than a piece.
pub(super) fn points_in_pieces(
    sizes: impl Iterator<Item = u32>,
    piece: ProfilePoint,
) -> Vec<ProfilePoint> {
    let mut points = vec![piece];
    for rows in sizes.filter(|rows| *rows > piece.rows) {
        let last = points.last().map_or(0, |point| point.rows);
        // The first row of the piece after the last point, then the size itself.
        for rows in [last + 1, rows] {
            if points.last().is_none_or(|point| point.rows < rows) {
                let times = u64::from(rows.div_ceil(piece.rows));
                let scale = |ns: u64| ns.saturating_mul(times).min(PROFILE_LATENCY_MAX_NS);
                let (p50_ns, p99_ns) = (scale(piece.p50_ns), scale(piece.p99_ns));
                points.push(ProfilePoint { rows, p50_ns, p99_ns });
            }
        }
    }
    points
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

impl Piece {
    /// Queues a batch of `rows` rows whose inputs are in `batch`, and whose results go there.
    pub(super) fn run(
        &self,
        weights: &Weights,
        batch: &Set,
        rows: u32,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let model = &weights.model;
        let (whole, own) = (&batch.layouts.device, &self.set.layouts.device);
        let (base, own_base) = (batch.device.address(), self.set.device.address());
        for first in (0..rows).step_by(self.rows as usize) {
            let count = u64::from(self.rows.min(rows - first));
            let before = u64::from(first);
            // SAFETY: rows of the batch and of the piece, in memory that is theirs; all of it happens
            // on one stream, one piece after the other. The graph is live.
            unsafe {
                for ((from, to), tensor) in
                    whole.inputs().iter().zip(own.inputs()).zip(&model.inputs)
                {
                    let bytes = tensor.seen_row_bytes();
                    let from = base + from.offset + before * bytes;
                    stream.copy_over(from, own_base + to.offset, (count * bytes) as usize)?;
                }
                stream.launch(self.graph.exec())?;
                let pairs = own.outputs().iter().zip(whole.outputs());
                for ((from, to), tensor) in pairs.zip(&model.outputs) {
                    let bytes = tensor.row_bytes;
                    let to = base + to.offset + before * bytes;
                    stream.copy_over(own_base + from.offset, to, (count * bytes) as usize)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_padded_to_the_next_size_or_cut_into_pieces() {
        let of = |rows| fit([1, 2, 4, 6].into_iter(), None, rows);
        let all: Vec<_> = (1..=6).map(of).collect();
        assert_eq!(all, [0, 1, 2, 2, 3, 3].map(|index| Some(Fit::Size(index))));
        assert_eq!(of(7), None);
        let of = |rows| fit([].into_iter(), Some(4), rows);
        assert_eq!([1, 4, 5, 8, 9].map(of), [1, 1, 2, 2, 3].map(|count| Some(Fit::Pieces(count))));
    }

    #[test]
    fn what_pieces_take_is_never_said_too_low_at_a_size() {
        let piece = ProfilePoint { rows: 4, p50_ns: 100, p99_ns: 110 };
        let points = points_in_pieces([1, 2, 4, 8, 16, 20].into_iter(), piece);
        let of: Vec<_> = points.iter().map(|it| (it.rows, it.p50_ns, it.p99_ns)).collect();
        let expected = [(4, 1), (5, 2), (8, 2), (9, 3), (16, 4), (17, 5), (20, 5)]
            .map(|(rows, times)| (rows, 100 * times, 110 * times));
        assert_eq!(of, expected);
        let one = ProfilePoint { rows: 1, ..piece };
        assert_eq!(points_in_pieces([1].into_iter(), one), [one]);
        let of_one: Vec<_> =
            points_in_pieces([1, 2, 4].into_iter(), one).iter().map(|it| it.rows).collect();
        assert_eq!(of_one, [1, 2, 3, 4]);
    }
}
