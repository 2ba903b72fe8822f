//! Slots as a program sees them: requests and their tensors.

use std::ptr::NonNull;

use bytemuck::Pod;
use gpulet_abi::arena::{SlotHandle, SlotPool, SlotState};
use gpulet_abi::layout::{Completion, DIMS_MAX, TensorSpec};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::{Dtype, Extent, SlotLayout};

use super::Session;
use crate::catalog::Model;
use crate::error::Error;

/// One use of one slot: a value, recognised as stale after its release. `#[repr(C)]`: it is
/// `gpulet_request`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Request {
    /// Which slot.
    pub slot: u32,
    /// Which use of it; never zero.
    pub generation: u32,
}

impl From<&Completion> for Request {
    /// The request that a completion answers.
    fn from(answer: &Completion) -> Request {
        Request { slot: answer.slot, generation: answer.generation }
    }
}

impl Request {
    #[inline]
    pub(super) fn handle(self) -> SlotHandle {
        SlotHandle { index: self.slot, generation: self.generation }
    }

    #[cold]
    fn refused(self, status: Status, rule: &'static str) -> Error {
        Error::Request { status, slot: self.slot, generation: self.generation, rule }
    }
}

/// Memory in a slot. `#[repr(C)]`: it is `struct gpulet_tensor`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Tensor {
    /// Aligned to 256 bytes; valid until the session is closed.
    pub data: NonNull<u8>,
    /// Rows times the bytes of one.
    pub bytes: u64,
    /// A number of [`Dtype`].
    pub dtype: u32,
    /// Dimensions that count.
    pub rank: u32,
    /// The first is the rows of the request.
    pub dims: [i64; DIMS_MAX],
}

/// Rust types that tensors can be read and written as.
pub trait Element: Pod {
    /// The element type of such tensors.
    const DTYPE: Dtype;
}

macro_rules! elements {
    ($($kind:ty = $dtype:ident,)*) => {
        $(impl Element for $kind { const DTYPE: Dtype = Dtype::$dtype; })*
    };
}
elements! { f32 = F32, i64 = I64, i32 = I32, u8 = U8, }

/// Which tensors of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Input,
    Output,
}

/// What a slot is used for. Kept after its release: the next use is mostly the same.
#[derive(Clone, Copy, Debug)]
struct Use {
    model: u32,
    rows: u32,
    /// Of the completion; meaningful once completed.
    status: i32,
    layout: SlotLayout,
}

/// All slots of a session. Allocates only when it is made.
#[derive(Debug)]
pub(super) struct Slots {
    pool: SlotPool,
    uses: Vec<Use>,
}

impl Slots {
    pub(super) fn new(slot_count: u32) -> Slots {
        // No claim is for zero rows, so this use is the same as none to come.
        let nothing = SlotLayout::new(&[], &[], 0).expect("no tensors take no memory");
        let unused = Use { model: 0, rows: 0, status: 0, layout: nothing };
        Slots { pool: SlotPool::new(slot_count), uses: vec![unused; slot_count as usize] }
    }

    #[inline]
    fn claim(&mut self, number: u32, model: &Model, rows: u32) -> Result<Option<Request>, Error> {
        let Some(SlotHandle { index, generation }) = self.pool.claim() else { return Ok(None) };
        let slot = &mut self.uses[index as usize];
        if slot.model != number || slot.rows != rows {
            let layout = model.layout(rows);
            let layout =
                layout.ok_or_else(|| Error::Defect("rows that fit have no layout".into()))?;
            (slot.model, slot.rows, slot.layout) = (number, rows, layout);
        }
        Ok(Some(Request { slot: index, generation }))
    }

    /// Where in its life a request is.
    #[inline]
    pub(super) fn state(&self, request: Request) -> Result<SlotState, Error> {
        self.pool.state(request.handle()).map_err(|status| {
            let rule = match status {
                Status::Stale => "it was released before",
                _ => "there is no such slot",
            };
            request.refused(status, rule)
        })
    }

    /// A request that has to be where `wanted` says; `rule` tells people.
    #[inline]
    pub(super) fn expect(
        &self,
        request: Request,
        wanted: SlotState,
        rule: &'static str,
    ) -> Result<(), Error> {
        if self.state(request)? == wanted {
            Ok(())
        } else {
            Err(request.refused(Status::WrongState, rule))
        }
    }

    /// Model number and rows of a live request.
    #[inline]
    pub(super) fn content(&self, request: Request) -> (u32, u32) {
        let slot = &self.uses[request.slot as usize];
        (slot.model, slot.rows)
    }

    /// Hands a claimed request to the daemon.
    #[inline]
    pub(super) fn submitted(&mut self, request: Request) {
        let moved = self.pool.advance(request.handle(), SlotState::Claimed, SlotState::Submitted);
        assert!(moved.is_ok(), "the request was found claimed just before");
    }

    /// Takes a request back; `false` if the daemon does not have it.
    #[inline]
    pub(super) fn answered(&mut self, answer: &Completion) -> bool {
        let handle = Request::from(answer).handle();
        let moved = self.pool.advance(handle, SlotState::Submitted, SlotState::Completed);
        if moved.is_ok() {
            self.uses[handle.index as usize].status = answer.status;
        }
        moved.is_ok()
    }
}

impl Session {
    /// Takes a slot for `rows` rows of a model that was opened in this session, by its number.
    ///
    /// # Errors
    /// [`Status::NoFreeSlot`], [`Status::SlotTooSmall`], [`Status::TooManyRows`],
    /// [`Status::NoSuchModel`], [`Error::Ended`], [`Error::Forked`].
    #[inline]
    pub fn claim(&mut self, model: u32, rows: u32) -> Result<Request, Error> {
        self.usable()?;
        let Some(known) = self.models.find(model) else { return Err(Error::UnknownModel(model)) };
        // No rows wrap around to more than any model takes.
        if rows.wrapping_sub(1) >= known.fitting_rows() {
            return Err(self.rows_refused(known, rows));
        }
        match self.slots.claim(model, known, rows)? {
            Some(request) => Ok(request),
            None => Err(Error::NoFreeSlot(self.info.slot_count)),
        }
    }

    #[cold]
    fn rows_refused(&self, model: &Model, rows: u32) -> Error {
        match model.layout(rows) {
            Some(layout) if rows > 0 => Error::SlotTooSmall {
                rows,
                needed_bytes: layout.bytes(),
                slot_bytes: self.info.slot_bytes,
            },
            _ => Error::Rows { rows, max_batch: model.max_batch() },
        }
    }

    /// Where an input of the request lies. Write it only before submission.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for no such input, [`Status::Stale`], [`Error::Forked`].
    #[inline]
    pub fn input_tensor(&self, request: Request, index: u32) -> Result<Tensor, Error> {
        self.tensor(request, index, Side::Input)
    }

    /// Where an output of the request lies. Read it only after completion.
    ///
    /// # Errors
    /// [`Status::InvalidArgument`] for no such output, [`Status::Stale`], [`Error::Forked`].
    #[inline]
    pub fn output_tensor(&self, request: Request, index: u32) -> Result<Tensor, Error> {
        self.tensor(request, index, Side::Output)
    }

    #[inline]
    fn tensor(&self, request: Request, index: u32, side: Side) -> Result<Tensor, Error> {
        self.same_process()?;
        self.slots.state(request)?;
        let slot = &self.slots.uses[request.slot as usize];
        let (specs, extents): (&[TensorSpec], &[Extent]) = match self.models.find(slot.model) {
            Some(model) if side == Side::Input => (model.inputs(), slot.layout.inputs()),
            Some(model) => (model.outputs(), slot.layout.outputs()),
            None => (&[], &[]),
        };
        let (Some(spec), Some(extent)) = (specs.get(index as usize), extents.get(index as usize))
        else {
            let side = if side == Side::Input { "inputs" } else { "outputs" };
            return Err(Error::TensorIndex { index, count: extents.len(), side });
        };
        let mut dims = spec.dims;
        dims[0] = i64::from(slot.rows);
        let data = self.inside(request.slot, extent.offset, extent.bytes);
        Ok(Tensor { data, bytes: extent.bytes, dtype: spec.dtype, rank: spec.rank, dims })
    }

    /// Memory of a slot.
    fn inside(&self, slot: u32, offset: u64, bytes: u64) -> NonNull<u8> {
        let end = offset.checked_add(bytes);
        assert!(end.is_some_and(|end| end <= self.info.slot_bytes), "a tensor beyond its slot");
        // SAFETY: `slot` returns the start of `slot_bytes` mapped bytes, and the assert keeps us
        // inside of them.
        unsafe { self.region.slot(slot).add(offset as usize) }
    }

    /// An input of a claimed request, to be written, as elements of its type.
    ///
    /// # Errors
    /// Those of [`input_tensor`](Session::input_tensor), [`Status::WrongState`] once submitted,
    /// [`Error::ElementType`].
    pub fn input_mut<T: Element>(
        &mut self,
        request: Request,
        index: u32,
    ) -> Result<&mut [T], Error> {
        let tensor = self.input_tensor(request, index)?;
        self.slots.expect(request, SlotState::Claimed, "inputs are written before submission")?;
        let count = elements::<T>(&tensor)?;
        // SAFETY: mapped and 256-byte aligned (`inside`), every bit pattern is a T (Pod); the slot
        // is the program's while claimed, nobody else touches it, and `self` is borrowed meanwhile.
        Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data.as_ptr().cast(), count) })
    }

    /// An input of a claimed request, to be written, as bytes.
    ///
    /// # Errors
    /// Those of [`input_mut`](Session::input_mut) but for the element type.
    pub fn input_bytes_mut(&mut self, request: Request, index: u32) -> Result<&mut [u8], Error> {
        let tensor = self.input_tensor(request, index)?;
        self.slots.expect(request, SlotState::Claimed, "inputs are written before submission")?;
        // SAFETY: as in `input_mut`.
        Ok(unsafe { std::slice::from_raw_parts_mut(tensor.data.as_ptr(), tensor.bytes as usize) })
    }

    /// An output of a completed request, as elements of its type.
    ///
    /// # Errors
    /// Those of [`output_tensor`](Session::output_tensor), [`Status::WrongState`] before
    /// completion, [`Error::ElementType`].
    pub fn output<T: Element>(&self, request: Request, index: u32) -> Result<&[T], Error> {
        let tensor = self.output_tensor(request, index)?;
        self.slots.expect(request, SlotState::Completed, "outputs are read after completion")?;
        let count = elements::<T>(&tensor)?;
        // SAFETY: mapped and 256-byte aligned (`inside`), every bit pattern is a T (Pod); the slot
        // is the program's once completed, and can not be written through `self` meanwhile.
        Ok(unsafe { std::slice::from_raw_parts(tensor.data.as_ptr().cast(), count) })
    }

    /// An output of a completed request, as bytes.
    ///
    /// # Errors
    /// Those of [`output`](Session::output) but for the element type.
    pub fn output_bytes(&self, request: Request, index: u32) -> Result<&[u8], Error> {
        let tensor = self.output_tensor(request, index)?;
        self.slots.expect(request, SlotState::Completed, "outputs are read after completion")?;
        // SAFETY: as in `output`.
        Ok(unsafe { std::slice::from_raw_parts(tensor.data.as_ptr(), tensor.bytes as usize) })
    }

    /// What the model or the executor said about a request that failed with a status of decade 6x.
    ///
    /// It stands, with a final NUL, where the first output would start, up to the end of the slot
    /// at most. Where no executor lived to write it, the status speaks.
    ///
    /// # Errors
    /// [`Status::WrongState`] for any other request, [`Status::Stale`], [`Error::Forked`].
    pub fn request_error(&self, request: Request) -> Result<String, Error> {
        self.same_process()?;
        let rule = "only a request that failed with a status of decade 6x has an error";
        self.slots.expect(request, SlotState::Completed, rule)?;
        let slot = &self.slots.uses[request.slot as usize];
        if !(60..70).contains(&slot.status) {
            return Err(request.refused(Status::WrongState, rule));
        }
        if slot.status == Status::ExecutorLost as i32 {
            return Ok(Status::ExecutorLost.text().into());
        }
        let end = slot.layout.inputs().last().map_or(0, |last| last.offset + last.bytes);
        let first = slot.layout.outputs().first().map(|first| first.offset);
        let offset = first.or(gpulet_abi::tensor::align(end)).unwrap_or(self.info.slot_bytes);
        let room = self.info.slot_bytes.saturating_sub(offset);
        let start = self.inside(request.slot, self.info.slot_bytes - room, room);
        // SAFETY: mapped (`inside`); the slot is the program's once completed.
        let bytes = unsafe { std::slice::from_raw_parts(start.as_ptr(), room as usize) };
        let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// Gives the slot of a claimed or completed request back.
    ///
    /// # Errors
    /// [`Status::WrongState`] while it is submitted, [`Status::Stale`], [`Error::Forked`].
    #[inline]
    pub fn release(&mut self, request: Request) -> Result<(), Error> {
        self.same_process()?;
        if self.slots.state(request)? == SlotState::Submitted {
            let rule = "the daemon has it: cancel it and reap its completion first";
            return Err(request.refused(Status::WrongState, rule));
        }
        let released = self.slots.pool.release(request.handle());
        assert!(released.is_ok(), "the request was found releasable just before");
        Ok(())
    }
}

fn elements<T: Element>(tensor: &Tensor) -> Result<usize, Error> {
    if tensor.dtype != T::DTYPE as u32 {
        let actual = Dtype::from_number(tensor.dtype).map_or("unknown", Dtype::name);
        return Err(Error::ElementType { actual, wanted: T::DTYPE.name() });
    }
    Ok(tensor.bytes as usize / size_of::<T>())
}
