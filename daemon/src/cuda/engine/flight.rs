//! One batch on the device: queued whole, and taken apart when it is done.

use std::collections::HashMap;
use std::ptr::NonNull;
use std::sync::Arc;

use gpulet_abi::status::Status;
use gpulet_abi::tensor::{Extent, SlotLayout};
use gpulet_torch::cuda::{DeviceTensor, Placed};

use super::{Flight, Gpulet, Held, requests};
use crate::backend::put_text;
use crate::backend::values::{check_values, is_checked, make_harmless};
use crate::cuda::builtin;
use crate::cuda::driver::{CudaError, Stream};
use crate::cuda::lane::{Fit, Layouts, Set};
use crate::cuda::moves::{HostPart, HostParts, Moves, part_of};
use crate::cuda::regions::{Regions, Slot};
use crate::cuda::weights::{Forward, Weights};
use crate::execute::foresight::Foresight;
use crate::wire::BatchRequest;

/// Results up to so many bytes are copied on the stream that computes: an event and a second stream
/// would cost more than what they overlap.
const SMALL_OUTPUT_BYTES: u64 = 64 << 10;

/// Why a batch was not queued.
pub(super) enum Refusal {
    /// Its requests' fault, or its time's; nothing of it was queued.
    Status(Status),
    /// CUDA's; half of it may be queued.
    Cuda(CudaError),
}

impl From<CudaError> for Refusal {
    fn from(error: CudaError) -> Refusal {
        Refusal::Cuda(error)
    }
}

/// One request of a batch, found and checked.
struct Place {
    slot: Slot,
    layout: SlotLayout,
    /// Rows of the batch before its own.
    first_row: u64,
    rows: u64,
}

/// Queues everything that a batch takes, from slots to slots.
pub(super) fn launch(
    regions: &Regions,
    models: &HashMap<u32, Vec<Held>>,
    gpulet: &mut Gpulet,
    flight: &mut Flight,
) -> Result<(), Refusal> {
    let command = flight.command;
    let broken = |rule: &str| {
        tracing::error!(batch = command.batch, "a command of the daemon is broken: {rule}");
        Refusal::Status(Status::Internal)
    };
    let held = models.get(&command.instance).ok_or_else(|| broken("unknown instance"))?;
    let held = &held[command.gpulet as usize];
    let (lane, weights) = (&held.lane, &*held.lane.weights);
    let requests = requests(&command).map_err(broken)?;
    let rows = requests.iter().try_fold(0u32, |rows, request| rows.checked_add(request.rows));
    if rows != Some(command.rows) || command.rows > weights.model.max_batch {
        return Err(broken("rows do not add up, or are more than max_batch"));
    }
    let set = &lane.sets[flight.set];
    let fit = lane.fit(command.rows).ok_or_else(|| broken("no such size"))?;

    let marks = &gpulet.marks[flight.set];
    let alone = gpulet.flights.is_empty();
    let inward = if alone { &gpulet.compute } else { &gpulet.copy_in };
    let batch = Batch { regions, weights, set, requests };
    // Before anything is queued, so that a broken command leaves nothing behind.
    batch.check().map_err(broken)?;
    batch.take_in(&gpulet.moves, flight, inward)?;
    if !alone {
        marks.copied_in.record(inward)?;
        gpulet.compute.after(&marks.copied_in)?;
    }
    compute(&batch, held, fit, flight, &gpulet.compute)?;
    let row_bytes: u64 = weights.model.outputs.iter().map(|tensor| tensor.row_bytes).sum();
    let outward = if row_bytes * u64::from(command.rows) <= SMALL_OUTPUT_BYTES {
        &gpulet.compute
    } else {
        marks.computed.record(&gpulet.compute)?;
        gpulet.copy_out.after(&marks.computed)?;
        &gpulet.copy_out
    };
    batch.give_out(&gpulet.moves, flight, outward)?;
    marks.done.record(outward)?;

    if let Some(last) = gpulet.flights.back() {
        flight.begin_ns = flight.begin_ns.max(last.look_ns);
    }
    let foresight = held.foresights.get(lane.measured_of(fit));
    flight.look_ns = flight.begin_ns + foresight.map_or(0, Foresight::look_ns);
    flight.soonest_ns = flight.begin_ns + foresight.map_or(0, Foresight::soonest_ns);
    flight.runs = Some((Arc::clone(lane), fit));
    Ok(())
}

/// Queues the forward of a batch whose inputs are in its set.
fn compute(
    batch: &Batch<'_>,
    held: &Held,
    fit: Fit,
    flight: &mut Flight,
    stream: &Stream,
) -> Result<(), CudaError> {
    let (lane, weights, rows) = (&held.lane, batch.weights, flight.command.rows);
    let size = match (fit, &lane.piece) {
        (Fit::Pieces(_), Some(piece)) => return piece.run(weights, batch.set, rows, stream),
        (Fit::Pieces(_), None) => None,
        (Fit::Size(index), _) => lane.sizes.get(index),
    };
    if let Some(graphs) = size.and_then(|size| size.graphs.as_ref()) {
        // SAFETY: a live graph over this set, of which this is the only batch.
        return unsafe { stream.launch(graphs[flight.set].exec()) };
    }
    match &weights.forward {
        Forward::Module(placed) => run_eagerly(batch, placed, flight, stream),
        _ => builtin::run(weights, batch.set, rows, stream),
    }
}

/// A batch is done: what was staged goes to slots, and what its end taught is remembered.
pub(super) fn finish(
    regions: &Regions,
    models: &mut HashMap<u32, Vec<Held>>,
    flight: &mut Flight,
    now_ns: u64,
) {
    let command = flight.command;
    let Some((lane, fit)) = flight.runs.take() else { return };
    let weights = &*lane.weights;
    let set = &lane.sets[flight.set];
    let mut first_row = 0;
    for (index, request) in requests(&command).unwrap_or_default().iter().enumerate() {
        // Its region is mapped as long as a request of it is under way.
        let Ok(place) = locate(regions, weights, request, first_row) else { continue };
        first_row += place.rows;
        if flight.staged & (1 << index) == 0 || flight.report.statuses[index] != ok() {
            continue;
        }
        let slots = place.layout.outputs().iter().zip(set.layouts.host.outputs());
        for (tensor, (slot, host)) in weights.model.outputs.iter().zip(slots) {
            let offset = host.offset + place.first_row * tensor.row_bytes;
            // SAFETY: both places lie in their memories; the device has written the one and is done.
            unsafe {
                let from = set.host.data().add(offset as usize);
                let to = place.slot.data.add(slot.offset as usize);
                to.copy_from_nonoverlapping(from, slot.bytes as usize);
            }
        }
    }
    let held = models.get_mut(&command.instance).and_then(|it| it.get_mut(command.gpulet as usize));
    // Unless another lane has replaced it meanwhile.
    let held = held.filter(|held| Arc::ptr_eq(&held.lane, &lane));
    let Some(foresight) = held.and_then(|it| it.foresights.get_mut(lane.measured_of(fit))) else {
        return;
    };
    if flight.awaited {
        foresight.awaited(now_ns - flight.begin_ns, flight.late_ns);
    } else {
        foresight.missed();
    }
}

fn ok() -> u8 {
    Status::Ok as i32 as u8
}

fn locate(
    regions: &Regions,
    weights: &Weights,
    request: &BatchRequest,
    first_row: u64,
) -> Result<Place, &'static str> {
    let slot = regions.slot(request.region, request.slot)?;
    if request.rows == 0 {
        return Err("a request of no rows");
    }
    let layout = weights.row_bytes.layout(request.rows).ok_or("rows overflow")?;
    if layout.bytes() > slot.bytes as u64 {
        return Err("the tensors do not fit the slot");
    }
    Ok(Place { slot, layout, first_row, rows: u64::from(request.rows) })
}

/// A batch that is being queued.
struct Batch<'a> {
    regions: &'a Regions,
    weights: &'a Weights,
    set: &'a Set,
    requests: &'a [BatchRequest],
}

impl Batch<'_> {
    fn check(&self) -> Result<(), &'static str> {
        self.requests
            .iter()
            .try_for_each(|request| locate(self.regions, self.weights, request, 0).map(drop))
    }

    /// Its requests' places, in order.
    fn places(&self) -> impl Iterator<Item = (usize, Place)> + '_ {
        let mut first_row = 0;
        self.requests.iter().enumerate().filter_map(move |(index, request)| {
            let place = locate(self.regions, self.weights, request, first_row).ok()?;
            first_row += place.rows;
            Some((index, place))
        })
    }

    /// Queues all inputs to the device. What the device cannot read in its slot, and what is to be
    /// checked, is copied to the set's host memory first.
    fn take_in(
        &self,
        moves: &Moves,
        flight: &mut Flight,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Layouts { device, host } = &self.set.layouts;
        for (index, tensor) in self.weights.model.inputs.iter().enumerate() {
            let mut parts = HostParts::new();
            for (request, place) in self.places() {
                let extent = place.layout.inputs()[index];
                let checked = is_checked(tensor.dtype.0);
                let part = match place.slot_part(&extent) {
                    Some(part) if !checked => part,
                    _ => {
                        let before = place.first_row * tensor.row_bytes;
                        let offset = host.inputs()[index].offset + before;
                        let part = self.set.host_part(offset, extent.bytes as usize);
                        flight.report.input_bytes_copied += extent.bytes;
                        // SAFETY: the extents lie in the slot and, for rows below `max_batch`, in
                        // the set's host memory, which nothing else uses until the batch is done.
                        let right = unsafe {
                            let from = place.slot.data.add(extent.offset as usize);
                            part.host.copy_from_nonoverlapping(from, part.bytes);
                            check_values(tensor, part_of(&part))
                        };
                        if let Err(text) = right {
                            // SAFETY: as above.
                            unsafe { make_harmless(tensor, part_of(&part)) };
                            flight.report.statuses[request] = Status::ModelError as i32 as u8;
                            write_error(&place, &text);
                        }
                        part
                    }
                };
                parts.push(part);
            }
            let into = self.set.device.address() + device.inputs()[index].offset;
            // SAFETY: slots stay mapped and the set stays this batch's until it is done; the place on
            // the device has room for `max_batch` rows.
            unsafe {
                match &self.weights.pictures[index] {
                    Some(spec) => moves.pictures(stream, &parts, into, spec)?,
                    None => moves.inward(stream, &parts, into)?,
                }
            }
        }
        Ok(())
    }

    /// Queues all results: to slots, or to the set's host memory where the device cannot write the
    /// slot or the request has failed already.
    fn give_out(
        &self,
        moves: &Moves,
        flight: &mut Flight,
        stream: &Stream,
    ) -> Result<(), CudaError> {
        let Layouts { device, host } = &self.set.layouts;
        for (index, tensor) in self.weights.model.outputs.iter().enumerate() {
            let mut parts = HostParts::new();
            for (request, place) in self.places() {
                let extent = place.layout.outputs()[index];
                let failed = flight.report.statuses[request] != ok();
                let part = match place.slot_part(&extent) {
                    Some(part) if !failed => part,
                    slot => {
                        if slot.is_none() && !failed {
                            flight.report.output_bytes_copied += extent.bytes;
                            flight.staged |= 1 << request;
                        }
                        let before = place.first_row * tensor.row_bytes;
                        let offset = host.outputs()[index].offset + before;
                        self.set.host_part(offset, extent.bytes as usize)
                    }
                };
                parts.push(part);
            }
            let from = self.set.device.address() + device.outputs()[index].offset;
            // SAFETY: as in `take_in`.
            unsafe { moves.outward(stream, from, &parts) }?;
        }
        Ok(())
    }
}

impl Place {
    /// A tensor in the slot, if the device can reach it there.
    fn slot_part(&self, extent: &Extent) -> Option<HostPart> {
        // SAFETY: the layout lies inside the slot.
        let host = unsafe { self.slot.data.add(extent.offset as usize) };
        let device = self.slot.device? + extent.offset;
        Some(HostPart { host, device, bytes: extent.bytes as usize })
    }
}

fn run_eagerly(
    batch: &Batch<'_>,
    placed: &Placed,
    flight: &mut Flight,
    stream: &Stream,
) -> Result<(), CudaError> {
    let Batch { weights, set, .. } = batch;
    let rows = flight.command.rows;
    let all = (set.inputs(&weights.inputs, rows), set.outputs(&weights.outputs, rows));
    // SAFETY: live device memory of this set, and a live stream.
    if unsafe { placed.run(stream.raw(), &all.0, &all.1) }.is_ok() {
        return Ok(());
    }
    stream.is_idle()?;
    // One bad request fails them all, so each is asked on its own, where it lies in the batch.
    for (index, place) in batch.places() {
        let part = |tensor: &DeviceTensor| {
            let mut part = *tensor;
            part.address += place.first_row * (tensor.bytes().unwrap_or(0) / u64::from(rows));
            part.dims[0] = place.rows as usize;
            part
        };
        let inputs: Vec<DeviceTensor> = all.0.iter().map(part).collect();
        let outputs: Vec<DeviceTensor> = all.1.iter().map(part).collect();
        // SAFETY: parts of the above.
        if let Err(error) = unsafe { placed.run(stream.raw(), &inputs, &outputs) } {
            stream.is_idle()?;
            tracing::debug!(model = weights.model.name, "{error}");
            flight.report.statuses[index] = Status::ModelError as i32 as u8;
            write_error(&place, &error.to_string());
        }
    }
    Ok(())
}

fn write_error(place: &Place, text: &str) {
    let Some(output) = place.layout.outputs().first() else { return };
    let room = place.slot.bytes - output.offset as usize;
    // SAFETY: the layout put at least one byte of output at `offset`, inside the slot.
    unsafe { put_text(NonNull::add(place.slot.data, output.offset as usize), room, text) };
}
