//! How a batch is run: on the clients' own slots where that can be, on one gathered copy otherwise.
//!
//! One request alone is computed where it lies: the model reads the slot and its results go there.
//! Several are gathered into a batch buffer, once, and their results are scattered. Nothing of this
//! allocates; what a model allocates inside libtorch is its own affair.
//!
//! A slot may be written by its client at any time, also while a model reads it. Floating point
//! numbers and bytes (`u8`) are read in place nevertheless: whatever they turn into, a computation
//! on them stays in bounds. (A model that counts the elements of its own input that are not zero,
//! and then lists them, would be none to serve to clients you do not trust.) Integers (`i64`,
//! `i32`) and truth values (`bool`) are what indexes and masks are made of, and operators check
//! such a value and then read it again. So they are copied into memory of this process first, truth
//! values made 0 or 1, ranges checked, and the copy counts as input bytes copied. Outputs of these
//! types that the model itself works on (`out` arguments) stay out of the slot until they are final.

use std::collections::HashMap;
use std::ptr::NonNull;

use bytemuck::Zeroable;
use gpulet_abi::region::Region;
use gpulet_abi::status::Status;
use gpulet_kernels::{ImageSpec, Part, gather, gather_image, scatter};
use gpulet_plan::policy::BATCH_REQUESTS_MAX;

use crate::backend::buffer::Tensors;
use crate::backend::loading::Loaded;
use crate::backend::values::{check_values, is_checked};
use crate::backend::{Copied, RunError, View, put_text};
use crate::clock::now_ns;
use crate::model::Tensor;
use crate::wire::{BatchCommand, BatchReport, BatchRequest};

const REQUESTS_MAX: usize = BATCH_REQUESTS_MAX as usize;

/// What commands may name.
#[derive(Default)]
pub struct Holdings {
    regions: HashMap<u32, Region>,
    instances: HashMap<u32, Box<Loaded>>,
}

/// One request of a batch, found and checked.
#[derive(Clone, Copy)]
struct Place<'a> {
    slot: NonNull<u8>,
    slot_bytes: usize,
    rows: u32,
    tensors: Tensors<'a>,
}

impl Holdings {
    /// Adds a session's region.
    pub fn map(&mut self, region: u32, mapped: Region) {
        self.regions.insert(region, mapped);
    }

    /// Drops a session's region.
    pub fn unmap(&mut self, region: u32) {
        self.regions.remove(&region);
    }

    /// Adds a model.
    pub fn load(&mut self, instance: u32, loaded: Box<Loaded>) {
        self.instances.insert(instance, loaded);
    }

    /// Takes a model out, if it is there.
    pub fn unload(&mut self, instance: u32) -> Option<Box<Loaded>> {
        self.instances.remove(&instance)
    }

    /// Whether no model is loaded.
    pub fn is_empty(&self) -> bool {
        self.instances.is_empty()
    }

    /// Whether `command` names what is not here.
    pub fn lacks(&self, command: &BatchCommand) -> bool {
        let requests = requests(command).unwrap_or_default();
        !self.instances.contains_key(&command.instance)
            || requests.iter().any(|request| !self.regions.contains_key(&request.region))
    }

    /// Runs a batch and says how it went. Never fails: each request gets its own status.
    pub fn run(&mut self, command: &BatchCommand) -> BatchReport {
        let started_ns = now_ns();
        let mut report = BatchReport { batch: command.batch, started_ns, ..BatchReport::zeroed() };
        let outcome = if started_ns > command.latest_start_ns {
            Err(Status::DeadlineExpired)
        } else {
            self.perform(command, &mut report)
        };
        if let Err(status) = outcome {
            let count = (command.request_count as usize).min(REQUESTS_MAX);
            report.statuses[..count].fill(number(status));
        }
        report.finished_ns = now_ns();
        report
    }

    fn perform(&mut self, command: &BatchCommand, report: &mut BatchReport) -> Result<(), Status> {
        let broken = |rule: &str| {
            tracing::error!(batch = command.batch, "a command of the daemon is broken: {rule}");
            Status::Internal
        };
        let Some(loaded) = self.instances.get_mut(&command.instance) else {
            return Err(broken("unknown instance"));
        };
        let requests = requests(command).map_err(broken)?;
        let rows = requests.iter().try_fold(0u32, |rows, request| rows.checked_add(request.rows));
        if rows != Some(command.rows) || command.rows > loaded.model.max_batch {
            return Err(broken("rows do not add up, or are more than max_batch"));
        }
        let regions = &self.regions;
        match requests {
            [request] => {
                let place = locate(regions, loaded, request).map_err(broken)?;
                run_alone(loaded, &[place], report);
            }
            many => {
                let nowhere = locate(regions, loaded, &many[0]).map_err(broken)?;
                let mut places = [nowhere; REQUESTS_MAX];
                for (place, request) in places.iter_mut().zip(many).skip(1) {
                    *place = locate(regions, loaded, request).map_err(broken)?;
                }
                let places = &places[..many.len()];
                match run_together(loaded, places, command.rows, report) {
                    Ok(()) => report.statuses[..places.len()].fill(number(Status::Ok)),
                    // One bad request fails them all, so each is asked on its own.
                    Err(_) => run_alone(loaded, places, report),
                }
            }
        }
        Ok(())
    }
}

fn number(status: Status) -> u8 {
    // Every status has a number below 256; the report's layout relies on it.
    status as i32 as u8
}

fn requests(command: &BatchCommand) -> Result<&[BatchRequest], &'static str> {
    match command.requests.get(..command.request_count as usize) {
        Some(requests) if !requests.is_empty() => Ok(requests),
        _ => Err("request_count is out of range"),
    }
}

/// Finds the tensors of a request. The regions stay mapped for as long as the result lives.
fn locate<'a>(
    regions: &'a HashMap<u32, Region>,
    loaded: &Loaded,
    request: &BatchRequest,
) -> Result<Place<'a>, &'static str> {
    let region = regions.get(&request.region).ok_or("unknown region")?;
    let geometry = region.geometry();
    if request.slot >= geometry.slot_count {
        return Err("slot is outside of the arena");
    }
    if request.rows == 0 {
        return Err("a request of no rows");
    }
    let layout = loaded.slot_rows.layout(request.rows).ok_or("rows overflow")?;
    if layout.bytes() > geometry.slot_bytes {
        return Err("the tensors do not fit the slot");
    }
    let slot = region.slot(request.slot);
    // SAFETY: the layout lies inside the slot, which `slot` found inside the mapping; the region is
    // borrowed for 'a; in this process only this thread touches slots. Inputs that could be indexes
    // are replaced before a model sees them (`run_one`).
    let tensors = unsafe { Tensors::in_slot(slot, &layout) };
    Ok(Place { slot, slot_bytes: geometry.slot_bytes as usize, rows: request.rows, tensors })
}

/// Runs each request as a batch of its own, in its slot.
fn run_alone(loaded: &mut Loaded, places: &[Place<'_>], report: &mut BatchReport) {
    for (place, status) in places.iter().zip(&mut report.statuses) {
        let mut copied = Copied::default();
        *status = match run_one(loaded, place, &mut copied) {
            Ok(()) => number(Status::Ok),
            Err(error) => {
                tracing::debug!(model = loaded.model.name, "{error}");
                place.write_text(&error.text);
                number(error.status)
            }
        };
        report.input_bytes_copied += copied.input_bytes;
        report.output_bytes_copied += copied.output_bytes;
    }
}

fn run_one(loaded: &mut Loaded, place: &Place<'_>, copied: &mut Copied) -> Result<(), RunError> {
    let Loaded { model, instance, buffer, pictures, .. } = loaded;
    let private = buffer.tensors(place.rows);
    let (mut inputs, mut outputs) = (private, private);
    for (index, slot) in place.tensors.inputs().iter().enumerate() {
        let tensor = &model.inputs[index];
        let private = inputs.inputs()[index];
        if let Some(spec) = &pictures[index] {
            copied.input_bytes += take_pictures(spec, &[slot.part()], private);
        } else if is_checked(tensor.dtype.0) {
            copied.input_bytes += take(tensor, &[slot.part()], private)?;
        } else {
            inputs.inputs_mut()[index] = *slot;
        }
    }
    let in_place = instance.writes_in_place();
    let is_private = |index: usize| in_place && is_checked(model.outputs[index].dtype.0);
    for (index, slot) in place.tensors.outputs().iter().enumerate() {
        if !is_private(index) {
            outputs.outputs_mut()[index] = *slot;
        }
    }
    let ran = instance.run(place.rows, inputs.inputs(), outputs.outputs())?;
    for (index, slot) in place.tensors.outputs().iter().enumerate() {
        if is_private(index) {
            // SAFETY: a private tensor and a slot, both valid, and of one length.
            copied.output_bytes +=
                unsafe { scatter(private.outputs()[index].part(), &[slot.part()]) };
        }
    }
    copied.input_bytes += ran.input_bytes;
    copied.output_bytes += ran.output_bytes;
    Ok(())
}

/// Gathers all requests, runs them as one batch, and scatters the results.
fn run_together(
    loaded: &mut Loaded,
    places: &[Place<'_>],
    rows: u32,
    report: &mut BatchReport,
) -> Result<(), RunError> {
    let Loaded { model, instance, buffer, pictures, .. } = loaded;
    let batch = buffer.tensors(rows);
    let mut parts = [Part::EMPTY; REQUESTS_MAX];
    let parts = &mut parts[..places.len()];
    for (index, whole) in batch.inputs().iter().enumerate() {
        for (part, place) in parts.iter_mut().zip(places) {
            *part = place.tensors.inputs()[index].part();
        }
        report.input_bytes_copied += match &pictures[index] {
            Some(spec) => take_pictures(spec, parts, *whole),
            None => take(&model.inputs[index], parts, *whole)?,
        };
    }
    let ran = instance.run(rows, batch.inputs(), batch.outputs())?;
    report.input_bytes_copied += ran.input_bytes;
    report.output_bytes_copied += ran.output_bytes;
    for (index, whole) in batch.outputs().iter().enumerate() {
        for (part, place) in parts.iter_mut().zip(places) {
            *part = place.tensors.outputs()[index].part();
        }
        // SAFETY: a tensor of the batch buffer and tensors in slots: all valid, none overlap.
        report.output_bytes_copied += unsafe { scatter(whole.part(), parts) };
    }
    Ok(())
}

/// Makes what the model takes of pictures in slots, and returns the bytes of the pictures.
fn take_pictures(spec: &ImageSpec, parts: &[Part], private: View<'_>) -> u64 {
    // SAFETY: tensors in slots and one in the batch buffer: all valid, none overlap.
    unsafe { gather_image(parts, private.part(), spec) };
    parts.iter().map(|part| part.bytes as u64).sum()
}

/// Copies inputs out of slots into memory of this process, and checks their values there.
fn take(tensor: &Tensor, parts: &[Part], private: View<'_>) -> Result<u64, RunError> {
    // SAFETY: tensors in slots and one in the batch buffer: all valid, none overlap.
    let bytes = unsafe { gather(parts, private.part()) };
    // SAFETY: the batch buffer is memory of this process, page-aligned, and borrowed here alone.
    match unsafe { check_values(tensor, private.part()) } {
        Ok(()) => Ok(bytes),
        Err(text) => Err(RunError { status: Status::ModelError, text }),
    }
}

impl Place<'_> {
    /// Puts an error's text where the first output would be, NUL-terminated, cut at the slot's end.
    fn write_text(&self, text: &str) {
        let Some(output) = self.tensors.outputs().first() else { return };
        let offset = output.data().addr().get() - self.slot.addr().get();
        // SAFETY: the layout put at least one byte of output behind `offset`, inside the slot.
        unsafe { put_text(output.data(), self.slot_bytes - offset, text) };
    }
}

#[cfg(test)]
mod tests;
