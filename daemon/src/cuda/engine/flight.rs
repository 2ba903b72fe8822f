//! One batch on the device: queued whole, and taken apart when it is done.

use std::collections::HashMap;
use std::ptr::NonNull;

use gpulet_abi::status::Status;
use gpulet_abi::tensor::SlotLayout;
use gpulet_kernels::Part;
use gpulet_torch::cuda::DeviceTensor;

use super::{Flight, Gpulet, requests};
use crate::backend::put_text;
use crate::backend::values::{check_values, is_checked, make_harmless};
use crate::cuda::driver::{CudaError, Stream};
use crate::cuda::loaded::{Layouts, Loaded, Set};
use crate::cuda::regions::{Regions, Slot};
use crate::model::Tensor;
use crate::wire::BatchRequest;

/// Results up to so many bytes are copied on the stream that computes: an event and a second stream
/// would cost more than what they overlap.
const SMALL_OUTPUT_BYTES: u64 = 64 << 10;

/// Between seeing a batch run and seeing it done, at most, if its end was watched.
const WATCHED_NS: u64 = 15_000;

/// Why a batch was not queued.
pub(super) enum Refusal {
    /// Its requests' fault, or its time's.
    Status(Status),
    /// CUDA's.
    Cuda(CudaError),
}

impl Refusal {
    pub(super) fn status(&self) -> Status {
        match self {
            Refusal::Status(status) => *status,
            Refusal::Cuda(error) => {
                tracing::error!("batch refused: {error}");
                Status::ExecutorMemory
            }
        }
    }
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
    instances: &mut HashMap<u32, Box<Loaded>>,
    gpulet: &mut Gpulet,
    flight: &mut Flight,
) -> Result<(), Refusal> {
    let command = flight.command;
    let broken = |rule: &str| {
        tracing::error!(batch = command.batch, "a command of the daemon is broken: {rule}");
        Refusal::Status(Status::Internal)
    };
    let loaded = instances.get(&command.instance).ok_or_else(|| broken("unknown instance"))?;
    let requests = requests(&command).map_err(broken)?;
    let rows = requests.iter().try_fold(0u32, |rows, request| rows.checked_add(request.rows));
    if rows != Some(command.rows) || command.rows > loaded.model.max_batch {
        return Err(broken("rows do not add up, or are more than max_batch"));
    }
    let lane = &loaded.lanes[command.gpulet as usize];
    let set = &lane.sets[flight.set];
    flight.size = lane.size_for(command.rows).ok_or_else(|| broken("no such size"))?;

    let marks = &gpulet.marks[flight.set];
    let alone = gpulet.flights.is_empty();
    let inward = if alone { &gpulet.compute } else { &gpulet.copy_in };
    let mut first_row = 0;
    for (index, request) in requests.iter().enumerate() {
        let place = locate(regions, loaded, request, first_row).map_err(broken)?;
        copy_in(loaded, set, &place, index, flight, inward)?;
        first_row += place.rows;
    }
    copy_checked(loaded, set, u64::from(command.rows), inward)?;
    if !alone {
        marks.copied_in.record(inward)?;
        gpulet.compute.after(&marks.copied_in)?;
    }
    if let Some(graphs) = &lane.sizes[flight.size].graphs {
        // SAFETY: a live graph over this set, of which this is the only batch.
        unsafe { gpulet.compute.launch(graphs[flight.set].exec()) }?;
    } else {
        run_eagerly(regions, loaded, set, flight, &gpulet.compute)?;
    }
    let row_bytes: u64 = loaded.model.outputs.iter().map(|tensor| tensor.row_bytes).sum();
    let outward = if row_bytes * u64::from(command.rows) <= SMALL_OUTPUT_BYTES {
        &gpulet.compute
    } else {
        marks.computed.record(&gpulet.compute)?;
        gpulet.copy_out.after(&marks.computed)?;
        &gpulet.copy_out
    };
    let mut first_row = 0;
    for (index, request) in requests.iter().enumerate() {
        let place = locate(regions, loaded, request, first_row).map_err(broken)?;
        if flight.report.statuses[index] == ok() {
            copy_out(loaded, set, &place, index, flight, outward)?;
        }
        first_row += place.rows;
    }
    marks.done.record(outward)?;

    if let Some(last) = gpulet.flights.back() {
        flight.begin_ns = flight.begin_ns.max(last.due_ns);
    }
    flight.due_ns = flight.begin_ns + lane.sizes[flight.size].typical_ns;
    Ok(())
}

/// A batch is done: what was staged goes to slots, and its time is remembered.
pub(super) fn finish(
    regions: &Regions,
    instances: &mut HashMap<u32, Box<Loaded>>,
    flight: &mut Flight,
    now_ns: u64,
) {
    let command = flight.command;
    let Some(loaded) = instances.get_mut(&command.instance) else { return };
    let lane = &loaded.lanes[command.gpulet as usize];
    let set = &lane.sets[flight.set];
    let mut first_row = 0;
    for (index, request) in requests(&command).unwrap_or_default().iter().enumerate() {
        // Its region is mapped as long as a request of it is under way.
        let Ok(place) = locate(regions, loaded, request, first_row) else { continue };
        first_row += place.rows;
        if flight.staged & (1 << index) == 0 || flight.report.statuses[index] != ok() {
            continue;
        }
        let slots = place.layout.outputs().iter().zip(set.layouts.host.outputs());
        for (tensor, (slot, host)) in loaded.model.outputs.iter().zip(slots) {
            let offset = host.offset + place.first_row * tensor.row_bytes;
            // SAFETY: both places lie in their memories; the device has written the one and is done.
            unsafe {
                let from = set.host.data().add(offset as usize);
                let to = place.slot.data.add(slot.offset as usize);
                to.copy_from_nonoverlapping(from, slot.bytes as usize);
            }
        }
    }
    let typical_ns = &mut loaded.lanes[command.gpulet as usize].sizes[flight.size].typical_ns;
    let seen_ns = (flight.running_ns > flight.begin_ns).then_some(flight.running_ns);
    *typical_ns = estimate(*typical_ns, flight.begin_ns, seen_ns, now_ns);
}

/// What batches of a size take, after one that began at `begin_ns`, was last seen running at `seen_ns`
/// and was seen done at `now_ns`.
fn estimate(typical_ns: u64, begin_ns: u64, seen_ns: Option<u64>, now_ns: u64) -> u64 {
    match seen_ns {
        // A nap that was too long would confirm itself: only an end that was watched tells the time.
        Some(seen_ns) if now_ns - seen_ns <= WATCHED_NS => {
            typical_ns - typical_ns / 8 + now_ns.saturating_sub(begin_ns) / 8
        }
        _ => typical_ns - typical_ns / 16,
    }
}

fn ok() -> u8 {
    Status::Ok as i32 as u8
}

fn locate(
    regions: &Regions,
    loaded: &Loaded,
    request: &BatchRequest,
    first_row: u64,
) -> Result<Place, &'static str> {
    let slot = regions.slot(request.region, request.slot)?;
    if request.rows == 0 {
        return Err("a request of no rows");
    }
    let layout = loaded.row_bytes.layout(request.rows).ok_or("rows overflow")?;
    if layout.bytes() > slot.bytes as u64 {
        return Err("the tensors do not fit the slot");
    }
    Ok(Place { slot, layout, first_row, rows: u64::from(request.rows) })
}

/// Queues the copies of one request's inputs; those that are to be checked only go to the set's
/// host memory.
fn copy_in(
    loaded: &Loaded,
    set: &Set,
    place: &Place,
    index: usize,
    flight: &mut Flight,
    stream: &Stream,
) -> Result<(), CudaError> {
    let Layouts { device, host } = &set.layouts;
    let batch = device.inputs().iter().zip(host.inputs());
    let slots = place.layout.inputs().iter().zip(batch);
    for (tensor, (slot, (device, host))) in loaded.model.inputs.iter().zip(slots) {
        let before = place.first_row * tensor.row_bytes;
        let to = set.device.address() + device.offset + before;
        let bytes = slot.bytes as usize;
        let checked = is_checked(tensor.dtype.0);
        // SAFETY: the extents lie in the slot and, for rows below `max_batch`, in the set's two
        // memories; nothing else uses this set until the batch is done.
        unsafe {
            let from = place.slot.data.add(slot.offset as usize);
            if place.slot.device.is_some() && !checked {
                stream.copy_in(from, to, bytes)?;
                continue;
            }
            let host = set.host.data().add((host.offset + before) as usize);
            host.copy_from_nonoverlapping(from, bytes);
            flight.report.input_bytes_copied += slot.bytes;
            if !checked {
                stream.copy_in(host, to, bytes)?;
                continue;
            }
            let private = Part { data: host, bytes };
            if let Err(text) = check_values(tensor, private) {
                make_harmless(tensor, private);
                flight.report.statuses[index] = Status::ModelError as i32 as u8;
                write_error(place, &text);
            }
        }
    }
    Ok(())
}

/// Queues the copies of inputs that were checked, each in one piece.
fn copy_checked(loaded: &Loaded, set: &Set, rows: u64, stream: &Stream) -> Result<(), CudaError> {
    let Layouts { device, host } = &set.layouts;
    let batch = device.inputs().iter().zip(host.inputs());
    for (tensor, (device, host)) in loaded.model.inputs.iter().zip(batch) {
        if is_checked(tensor.dtype.0) {
            let bytes = (tensor.row_bytes * rows) as usize;
            // SAFETY: as in `copy_in`.
            unsafe {
                let from = set.host.data().add(host.offset as usize);
                stream.copy_in(from, set.device.address() + device.offset, bytes)?;
            }
        }
    }
    Ok(())
}

fn run_eagerly(
    regions: &Regions,
    loaded: &Loaded,
    set: &Set,
    flight: &mut Flight,
    stream: &Stream,
) -> Result<(), CudaError> {
    let rows = flight.command.rows;
    let all = (set.inputs(&loaded.inputs, rows), set.outputs(&loaded.outputs, rows));
    // SAFETY: live device memory of this set, and a live stream.
    if unsafe { loaded.placed.run(stream.raw(), &all.0, &all.1) }.is_ok() {
        return Ok(());
    }
    stream.is_idle()?;
    // One bad request fails them all, so each is asked on its own, where it lies in the batch.
    let mut first_row = 0;
    let command = flight.command;
    for (index, request) in requests(&command).unwrap_or_default().iter().enumerate() {
        let part = |tensors: &[DeviceTensor], of: &[Tensor]| -> Vec<DeviceTensor> {
            let shift = |(tensor, of): (&DeviceTensor, &Tensor)| {
                let mut part = *tensor;
                part.address += first_row * of.row_bytes;
                part.dims[0] = request.rows as usize;
                part
            };
            tensors.iter().zip(of).map(shift).collect()
        };
        let inputs = part(&all.0, &loaded.model.inputs);
        let outputs = part(&all.1, &loaded.model.outputs);
        // SAFETY: parts of the above.
        if let Err(error) = unsafe { loaded.placed.run(stream.raw(), &inputs, &outputs) } {
            stream.is_idle()?;
            tracing::debug!(model = loaded.model.name, "{error}");
            flight.report.statuses[index] = Status::ModelError as i32 as u8;
            if let Ok(place) = locate(regions, loaded, request, first_row) {
                write_error(&place, &error.to_string());
            }
        }
        first_row += u64::from(request.rows);
    }
    Ok(())
}

/// Queues the copies of one request's results, to its slot or to the set's host memory.
fn copy_out(
    loaded: &Loaded,
    set: &Set,
    place: &Place,
    index: usize,
    flight: &mut Flight,
    stream: &Stream,
) -> Result<(), CudaError> {
    let Layouts { device, host } = &set.layouts;
    let batch = device.outputs().iter().zip(host.outputs());
    let slots = place.layout.outputs().iter().zip(batch);
    for (tensor, (slot, (device, host))) in loaded.model.outputs.iter().zip(slots) {
        let before = place.first_row * tensor.row_bytes;
        let from = set.device.address() + device.offset + before;
        // SAFETY: as in `copy_in`.
        unsafe {
            let to = match place.slot.device {
                Some(_) => place.slot.data.add(slot.offset as usize),
                None => {
                    flight.report.output_bytes_copied += slot.bytes;
                    flight.staged |= 1 << index;
                    set.host.data().add((host.offset + before) as usize)
                }
            };
            stream.copy_out(from, to, slot.bytes as usize)?;
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

#[cfg(test)]
mod tests {
    use super::estimate;

    #[test]
    fn an_end_that_was_slept_through_shortens_the_estimate() {
        let mut typical_ns = 4_000_000;
        for _ in 0..100 {
            // Done after 800 us; woken 25 us before the estimate, 40 us late.
            let woken_ns = typical_ns + 15_000;
            typical_ns = if woken_ns > 800_000 {
                estimate(typical_ns, 0, None, woken_ns)
            } else {
                estimate(typical_ns, 0, Some(795_000), 801_000)
            };
        }
        assert!((700_000..820_000).contains(&typical_ns), "{typical_ns}");
    }
}
