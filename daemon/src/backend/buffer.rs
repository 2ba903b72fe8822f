//! Memory for whole batches: inputs of several requests put together, and their results.

use std::ptr::NonNull;

use gpulet_abi::layout::TENSORS_MAX;
use gpulet_abi::tensor::{Extent, SlotLayout};
use gpulet_kernels::Part;
use memmap2::MmapMut;

use super::{LoadError, View};
use crate::model::{Model, Tensor};

/// Bytes of one row of each tensor of a model.
#[derive(Clone, Copy, Debug)]
pub struct RowBytes {
    inputs: [u64; TENSORS_MAX],
    input_count: usize,
    outputs: [u64; TENSORS_MAX],
    output_count: usize,
}

impl RowBytes {
    /// Those of `model`.
    ///
    /// # Errors
    /// [`LoadError::Model`] for more than [`TENSORS_MAX`] inputs or outputs.
    pub fn of(model: &Model) -> Result<RowBytes, LoadError> {
        RowBytes::with(model, |tensor| tensor.row_bytes)
    }

    /// Those of the tensors that the model itself sees.
    ///
    /// # Errors
    /// As [`of`](Self::of).
    pub fn seen_by_model(model: &Model) -> Result<RowBytes, LoadError> {
        RowBytes::with(model, Tensor::seen_row_bytes)
    }

    fn with(model: &Model, bytes_of: impl Fn(&Tensor) -> u64) -> Result<RowBytes, LoadError> {
        let fill = |tensors: &[Tensor], what: &str| {
            let mut bytes = [0; TENSORS_MAX];
            if tensors.len() > TENSORS_MAX {
                let rule = format!("{} {what}s, at most {TENSORS_MAX} are served", tensors.len());
                return Err(LoadError::model(model, rule));
            }
            for (bytes, tensor) in bytes.iter_mut().zip(tensors) {
                *bytes = bytes_of(tensor);
            }
            Ok(bytes)
        };
        Ok(RowBytes {
            inputs: fill(&model.inputs, "input")?,
            input_count: model.inputs.len(),
            outputs: fill(&model.outputs, "output")?,
            output_count: model.outputs.len(),
        })
    }

    /// Where the tensors of `rows` rows lie in a slot; `None` on overflow.
    pub fn layout(&self, rows: u32) -> Option<SlotLayout> {
        let inputs = &self.inputs[..self.input_count];
        SlotLayout::new(inputs, &self.outputs[..self.output_count], rows)
    }
}

/// Room for `max_batch` rows of every tensor of a model as the model sees them, page-aligned: laid
/// out as a slot for so many rows would be. The kernel gives the pages when they are first written,
/// which the warm-up does.
#[derive(Debug)]
pub struct BatchBuffer {
    memory: MmapMut,
    layout: SlotLayout,
    row_bytes: RowBytes,
}

impl BatchBuffer {
    /// Room for batches of `model`, zeroed.
    ///
    /// # Errors
    /// [`LoadError::Model`] if there is no memory for so much.
    pub fn new(model: &Model) -> Result<BatchBuffer, LoadError> {
        let row_bytes = RowBytes::seen_by_model(model)?;
        let rows = model.max_batch;
        let too_large = |reason: &str| {
            let rule = format!("max_batch: no memory for the tensors of {rows} rows: {reason}");
            LoadError::model(model, rule)
        };
        let layout = row_bytes.layout(rows).ok_or_else(|| too_large("they overflow"))?;
        let bytes = usize::try_from(layout.bytes()).map_err(|_| too_large("they overflow"))?;
        let memory = MmapMut::map_anon(bytes).map_err(|error| too_large(&error.to_string()))?;
        Ok(BatchBuffer { memory, layout, row_bytes })
    }

    /// All of its memory.
    pub fn whole(&mut self) -> Part {
        let bytes = self.memory.len();
        Part { data: NonNull::from(&mut self.memory[..]).cast(), bytes }
    }

    /// The memory of the first `rows` rows of an input, to be filled.
    ///
    /// # Panics
    /// If that is more than `max_batch`, or there is no such input.
    pub fn input_mut(&mut self, index: usize, rows: u32) -> &mut [u8] {
        let place = self.layout.inputs()[index];
        let bytes = self.row_bytes.inputs[index] * u64::from(rows);
        assert!(bytes <= place.bytes, "more than max_batch rows");
        &mut self.memory[place.offset as usize..][..bytes as usize]
    }

    /// The tensors of the first `rows` rows.
    ///
    /// # Panics
    /// If that is more than `max_batch`.
    pub fn tensors(&mut self, rows: u32) -> Tensors<'_> {
        let lengths = self.row_bytes.layout(rows).expect("fewer rows than were laid out");
        assert!(lengths.bytes() <= self.layout.bytes(), "more than max_batch rows");
        // SAFETY: the layout of `max_batch` rows lies in the memory, fewer rows are shorter, and
        // the memory is borrowed exclusively for as long as the views are.
        unsafe { Tensors::at(NonNull::from(&mut self.memory[..]).cast(), &self.layout, &lengths) }
    }
}

/// Views of all tensors of a batch or of one request.
#[derive(Clone, Copy, Debug)]
pub struct Tensors<'a> {
    inputs: [View<'a>; TENSORS_MAX],
    input_count: usize,
    outputs: [View<'a>; TENSORS_MAX],
    output_count: usize,
}

impl<'a> Tensors<'a> {
    /// The tensors of one request in its slot.
    ///
    /// # Safety
    /// The contract of [`View::from_raw`] for `layout.bytes()` bytes at `slot`.
    pub unsafe fn in_slot(slot: NonNull<u8>, layout: &SlotLayout) -> Tensors<'a> {
        // SAFETY: the caller's.
        unsafe { Tensors::at(slot, layout, layout) }
    }

    /// Tensors that start where `places` says and are as long as `lengths` says.
    ///
    /// # Safety
    /// The contract of [`View::from_raw`] for all of them, relative to `base`; both layouts are of
    /// one model, and no tensor of `lengths` is longer than that of `places`.
    unsafe fn at(base: NonNull<u8>, places: &SlotLayout, lengths: &SlotLayout) -> Tensors<'a> {
        let fill = |places: &[Extent], lengths: &[Extent]| {
            let mut views = [View::EMPTY; TENSORS_MAX];
            for ((view, place), length) in views.iter_mut().zip(places).zip(lengths) {
                // SAFETY: inside the memory at `base` by the contract.
                let data = unsafe { base.add(place.offset as usize) };
                // SAFETY: the caller's.
                *view = unsafe { View::from_raw(Part { data, bytes: length.bytes as usize }) };
            }
            views
        };
        Tensors {
            inputs: fill(places.inputs(), lengths.inputs()),
            input_count: places.inputs().len(),
            outputs: fill(places.outputs(), lengths.outputs()),
            output_count: places.outputs().len(),
        }
    }

    /// The inputs, in the model's order.
    pub fn inputs(&self) -> &[View<'a>] {
        &self.inputs[..self.input_count]
    }

    /// The outputs, in the model's order.
    pub fn outputs(&self) -> &[View<'a>] {
        &self.outputs[..self.output_count]
    }

    /// The inputs, to be replaced.
    pub fn inputs_mut(&mut self) -> &mut [View<'a>] {
        &mut self.inputs[..self.input_count]
    }

    /// The outputs, to be replaced.
    pub fn outputs_mut(&mut self) -> &mut [View<'a>] {
        &mut self.outputs[..self.output_count]
    }
}
