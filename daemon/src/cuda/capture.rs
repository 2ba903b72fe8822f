//! From weights to lanes: warmed up, captured and measured on every gpulet of a division.
//!
//! A model that is to answer soon is captured in one size first, in which batches of any size run piece
//! by piece. All sizes follow the same way while it is in use, in memory of their own: nothing that
//! is made here is touched by batches before it is whole, and nothing here touches theirs.

use std::cell::Cell;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use gpulet_plan::profile::{PROFILE_LATENCY_MAX_NS, ProfilePoint};
use gpulet_torch::Error;
use gpulet_torch::cuda::{Placed, Pool};

use super::builtin;
use super::driver::{CudaError, Event, Stream};
use super::gpu::{Cut, Division};
use super::graph::Graph;
use super::lane::{Lane, Layouts, Piece, SETS, Set, Size, points_in_pieces};
use super::weights::{Forward, Weights};
use crate::backend::Progress;
use crate::backend::warmup::sizes;
use crate::clock::ns_since;

/// Forwards before a capture: libtorch compiles on the second at each shape, cuDNN chooses on the
/// first, and allocations settle.
const FORWARDS_MIN: u32 = 3;
/// Where others are to have most of the time, nothing follows a forward for so many times what it took.
const PAUSES: u32 = 2;
/// But not longer: what takes longer has compiled.
const PAUSE_MAX: Duration = Duration::from_millis(50);
/// Rows of the pieces that a model runs in first: single requests lose little, batches not much.
pub(super) const PIECE_ROWS: u32 = 4;

/// What of a model is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Extent {
    /// Every batch size.
    Whole,
    /// What any batch can run with, piece by piece.
    Piece,
}

/// How batches are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Runs {
    /// So often.
    count: usize,
    /// Others run on the same multiprocessors meanwhile.
    crowded: bool,
    /// And are to have most of the time.
    pauses: bool,
}

impl Runs {
    /// So many runs, with nobody else there.
    pub(super) fn alone(count: usize) -> Runs {
        Runs { count: count.max(1), crowded: false, pauses: false }
    }

    /// So many runs while batches go on.
    pub(super) fn crowded(count: usize) -> Runs {
        Runs { count: count.max(1), crowded: true, pauses: false }
    }

    /// The same, where those batches are not to be late.
    pub(super) fn beside(count: usize) -> Runs {
        Runs { pauses: true, ..Runs::crowded(count) }
    }

    /// After what began then.
    pub(super) fn pause(self, begun: Instant) {
        if self.pauses {
            thread::sleep((begun.elapsed() * PAUSES).min(PAUSE_MAX));
        }
    }

    /// Median and slowest; of runs that others slowed down, what the undisturbed ones tell.
    fn point(self, rows: u32, mut taken_ns: Vec<u64>) -> ProfilePoint {
        taken_ns.sort_unstable();
        let (middle, last) = (taken_ns.len() / 2, taken_ns.len() - 1);
        let (p50, p99) = if self.crowded { (0, middle / 2) } else { (middle, last) };
        ProfilePoint { rows, p50_ns: taken_ns[p50], p99_ns: taken_ns[p99] }
    }
}

/// Makes a model's lanes.
pub(super) struct Maker<'a> {
    weights: &'a Arc<Weights>,
    progress: Progress<'a>,
    /// Whether what is made is still wanted.
    wanted: &'a dyn Fn() -> bool,
    layouts: Layouts,
    runs: Runs,
    warm_up_ns: Cell<u64>,
    capture_ns: Cell<u64>,
}

impl<'a> Maker<'a> {
    pub(super) fn new(
        weights: &'a Arc<Weights>,
        progress: Progress<'a>,
        wanted: &'a dyn Fn() -> bool,
        runs: Runs,
    ) -> Result<Maker<'a>, String> {
        let model = &weights.model;
        let layouts = Layouts::of(model, model.max_batch).map_err(|error| error.to_string())?;
        let (warm_up_ns, capture_ns) = (Cell::new(0), Cell::new(0));
        Ok(Maker { weights, progress, wanted, layouts, runs, warm_up_ns, capture_ns })
    }

    /// What warming up and capturing took so far.
    pub(super) fn times(&self) -> (u64, u64) {
        (self.warm_up_ns.get(), self.capture_ns.get())
    }

    /// Its lanes on a division, in the order of the gpulets.
    ///
    /// # Errors
    /// What went wrong, for people.
    pub(super) fn lanes(
        &self,
        division: &Arc<Division>,
        extent: Extent,
    ) -> Result<Vec<Lane>, String> {
        let Forward::Module(placed) = &self.weights.forward else {
            let lane = |_: &Arc<Cut>| builtin::lane(self.weights, division, self.layouts);
            let lanes: Result<_, CudaError> = division.cuts.iter().map(lane).collect();
            return lanes.map_err(|error| error.to_string());
        };
        let mut lanes: Vec<Lane> = Vec::new();
        for cut in &division.cuts {
            let eager = lanes.last().and_then(|lane| lane.eager.clone());
            let mut lane = self.lane(division, cut, eager)?;
            match extent {
                Extent::Whole => self.make_sizes(placed, &mut lane)?,
                Extent::Piece => self.make_piece(placed, &mut lane)?,
            }
            lanes.push(lane);
        }
        Ok(lanes)
    }

    /// A lane that can run nothing yet.
    fn lane(
        &self,
        division: &Arc<Division>,
        cut: &Cut,
        eager: Option<String>,
    ) -> Result<Lane, String> {
        let text = |error: CudaError| error.to_string();
        let stream = cut.torch_stream(&self.weights.gpu.cuda).map_err(text)?;
        let [first, second] = [(); SETS].map(|()| self.set(self.layouts, &stream));
        Ok(Lane {
            sizes: Vec::new(),
            piece: None,
            sets: [first?, second?],
            points: Vec::new(),
            eager,
            stream: Some(stream),
            weights: Arc::clone(self.weights),
            division: Arc::clone(division),
        })
    }

    fn set(&self, layouts: Layouts, stream: &Stream) -> Result<Set, String> {
        let text = |error: CudaError| error.to_string();
        let set = Set::new(layouts).map_err(text)?;
        set.make_harmless(&self.weights.model, stream).map_err(text)?;
        Ok(set)
    }

    /// Every batch size, the largest first: what it leaves in the pool is enough for the others.
    fn make_sizes(&self, placed: &Placed, lane: &mut Lane) -> Result<(), String> {
        let pool = self.weights.gpu.cuda.pool().map_err(|error| error.to_string())?;
        let mut made = Vec::new();
        let all: Vec<u32> = sizes(self.weights.model.max_batch).collect();
        for rows in all.into_iter().rev() {
            if !(self.wanted)() {
                return Err("not wanted any more".to_owned());
            }
            (self.progress)(format!("{rows} rows"));
            self.warm_up(placed, lane, &lane.sets[0], rows)?;
            let [first, second] = &lane.sets;
            let both = match self.capture(placed, lane, pool, first, rows)? {
                Ok(graph) => match self.capture(placed, lane, pool, second, rows)? {
                    Ok(other) => Ok([graph, other]),
                    Err(reason) => Err(reason),
                },
                Err(reason) => Err(reason),
            };
            lane.eager = lane.eager.take().or(both.as_ref().err().cloned());
            made.push(Size { rows, graphs: both.ok() });
        }
        made.reverse();
        lane.sizes = made;
        if lane.eager.is_some() {
            lane.sizes.iter_mut().for_each(|size| size.graphs = None);
        }
        let begun = Instant::now();
        for index in 0..lane.sizes.len() {
            let point = self.measure(placed, lane, lane.sizes[index].rows)?;
            lane.points.push(point);
        }
        let us = ns_since(begun) / 1_000;
        tracing::debug!(model = self.weights.model.name, us, "measured");
        Ok(())
    }

    /// One graph for all; a model that cannot be captured needs none to run in any size.
    fn make_piece(&self, placed: &Placed, lane: &mut Lane) -> Result<(), String> {
        let model = &self.weights.model;
        let rows = model.max_batch.min(PIECE_ROWS);
        (self.progress)(format!("pieces of {rows} rows"));
        let layouts = Layouts::of(model, rows).map_err(|error| error.to_string())?;
        let stream = lane.stream.as_ref().ok_or("no stream")?;
        let set = self.set(layouts, stream)?;
        let pool = self.weights.gpu.cuda.pool().map_err(|error| error.to_string())?;
        self.warm_up(placed, lane, &set, rows)?;
        match self.capture(placed, lane, pool, &set, rows)? {
            Ok(graph) => lane.piece = Some(Piece { rows, graph, set }),
            Err(reason) => {
                lane.eager = Some(reason);
                lane.sizes = vec![Size { rows: model.max_batch, graphs: None }];
            }
        }
        let point = self.measure(placed, lane, rows)?;
        lane.points = points_in_pieces(sizes(model.max_batch), point);
        Ok(())
    }

    fn warm_up(&self, placed: &Placed, lane: &Lane, set: &Set, rows: u32) -> Result<(), String> {
        let begun = Instant::now();
        let stream = lane.stream.as_ref().ok_or("no stream")?;
        let Weights { inputs, outputs, model, .. } = &**self.weights;
        let (inputs, outputs) = (set.inputs(inputs, rows), set.outputs(outputs, rows));
        for _ in 0..model.warmup_count.max(FORWARDS_MIN) {
            let begun = Instant::now();
            // SAFETY: the stream is live, and the set's memory is used by it alone.
            let run = unsafe { placed.run(stream.raw(), &inputs, &outputs) };
            // Also after an error: nothing uses the set when this is over.
            let waited = stream.wait();
            run.map_err(|error| format!("{rows} rows of zeros: {error}"))?;
            waited.map_err(|error| format!("{rows} rows of zeros: {error}"))?;
            self.runs.pause(begun);
        }
        self.warm_up_ns.update(|ns| ns + ns_since(begun));
        tracing::debug!(model = model.name, rows, us = ns_since(begun) / 1_000, "warm");
        Ok(())
    }

    /// A graph, or why there can be none.
    fn capture(
        &self,
        placed: &Placed,
        lane: &Lane,
        pool: Pool,
        set: &Set,
        rows: u32,
    ) -> Result<Result<Graph, String>, String> {
        if let Some(reason) = &lane.eager {
            return Ok(Err(reason.clone()));
        }
        let begun = Instant::now();
        let stream = lane.stream.as_ref().ok_or("no stream")?;
        let inputs = set.inputs(&self.weights.inputs, rows);
        let outputs = set.outputs(&self.weights.outputs, rows);
        // SAFETY: the set and the weights outlive the graph in `Lane`, and the engine runs one batch at
        // a time on a set.
        let captured = unsafe { placed.capture(stream.raw(), pool, &inputs, &outputs) };
        let kernels = self.weights.gpu.kernels.as_deref();
        let made = captured.map(|captured| Graph::new(captured, stream, kernels));
        stream.wait().map_err(|error| format!("capture of {rows} rows: {error}"))?;
        self.capture_ns.update(|ns| ns + ns_since(begun));
        tracing::debug!(
            model = self.weights.model.name,
            rows,
            us = ns_since(begun) / 1_000,
            "captured"
        );
        self.runs.pause(begun);
        match made {
            Ok(made) => made.map(Ok).map_err(|error| format!("capture of {rows} rows: {error}")),
            Err(Error::ModelRaised { raised }) => Ok(Err(raised.summary)),
            Err(error) => Err(format!("capture of {rows} rows: {error}")),
        }
    }

    /// Times whole batches, copies included.
    fn measure(&self, placed: &Placed, lane: &Lane, rows: u32) -> Result<ProfilePoint, String> {
        let text = |error: CudaError| error.to_string();
        let stream = lane.stream.as_ref().ok_or("no stream")?;
        let event = Event::new().map_err(text)?;
        let mut taken_ns = Vec::with_capacity(self.runs.count);
        for _ in 0..self.runs.count {
            let start = Instant::now();
            let queued = self.whole(placed, lane, stream, rows);
            event.record(stream).map_err(text)?;
            while !event.is_done().map_err(text)? {
                std::hint::spin_loop();
            }
            queued?;
            taken_ns.push(ns_since(start).clamp(1, PROFILE_LATENCY_MAX_NS));
            self.runs.pause(start);
        }
        Ok(self.runs.point(rows, taken_ns))
    }

    fn whole(
        &self,
        placed: &Placed,
        lane: &Lane,
        stream: &Stream,
        rows: u32,
    ) -> Result<(), String> {
        let text = |error: CudaError| error.to_string();
        let Weights { model, .. } = &**self.weights;
        let (set, count) = (&lane.sets[0], u64::from(rows));
        let base = set.host.data();
        let pairs = set.layouts.device.inputs().iter().zip(set.layouts.host.inputs());
        for ((device, host), tensor) in pairs.zip(&model.inputs) {
            let bytes = (tensor.row_bytes * count) as usize;
            // SAFETY: the places lie in both memories, which nothing else uses now.
            unsafe {
                let from = base.add(host.offset as usize);
                stream.copy_in(from, set.device.address() + device.offset, bytes).map_err(text)?;
            }
        }
        let size = lane.sizes.iter().find(|size| size.rows == rows);
        match (&lane.piece, size.and_then(|size| size.graphs.as_ref())) {
            (Some(piece), _) => piece.run(self.weights, set, rows, stream).map_err(text)?,
            // SAFETY: a live graph over this set.
            (None, Some(graphs)) => unsafe { stream.launch(graphs[0].exec()) }.map_err(text)?,
            (None, None) => {
                let inputs = set.inputs(&self.weights.inputs, rows);
                let outputs = set.outputs(&self.weights.outputs, rows);
                // SAFETY: as in `warm_up`.
                let run = unsafe { placed.run(stream.raw(), &inputs, &outputs) };
                run.map_err(|error| error.to_string())?;
            }
        }
        let pairs = set.layouts.device.outputs().iter().zip(set.layouts.host.outputs());
        for ((device, host), tensor) in pairs.zip(&model.outputs) {
            let bytes = (tensor.row_bytes * count) as usize;
            // SAFETY: as above.
            unsafe {
                let to = base.add(host.offset as usize);
                stream.copy_out(set.device.address() + device.offset, to, bytes).map_err(text)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_that_others_slow_down_count_less() {
        let taken_ns = vec![90, 30, 10, 20, 80];
        let point = Runs::alone(5).point(8, taken_ns.clone());
        assert_eq!((point.rows, point.p50_ns, point.p99_ns), (8, 30, 90));
        let point = Runs::crowded(5).point(8, taken_ns);
        assert_eq!((point.p50_ns, point.p99_ns), (10, 20));
        assert_eq!(Runs::crowded(0).point(1, vec![7]).p99_ns, 7);
    }
}
