//! The shim's CUDA half: modules placed on a GPU, run on the caller's streams, captured as graphs.
//!
//! Streams, contexts and device memory are the caller's (see `shim_cuda.h`); this module only
//! carries them across, as the raw values that the CUDA driver gave.

use std::ffi::{CStr, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};

use crate::error::Error;
use crate::open::{self, OpenError};
use crate::sys::{self, CudaFunctions};
use crate::tensor::{Dtype, RANK_MAX};
use crate::{Module, Torch};

/// How a forward computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Precision {
    /// What floating weights become: [`Dtype::F32`], [`Dtype::F16`] or [`Dtype::Bf16`].
    pub dtype: Dtype,
    /// Products of f32 may round their operands to TF32.
    pub tf32: bool,
    /// Images and their filters are kept with channels innermost.
    pub channels_last: bool,
}

impl Precision {
    fn raw(self) -> sys::Precision {
        sys::Precision {
            dtype: self.dtype as i32,
            tf32: self.tf32.into(),
            channels_last: self.channels_last.into(),
        }
    }
}

/// A dense row-major tensor in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceTensor {
    /// Device address; 0 only where there are no bytes.
    pub address: u64,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; the first `rank` count.
    pub dims: [usize; RANK_MAX],
    /// How many dimensions, at most [`RANK_MAX`].
    pub rank: usize,
}

impl DeviceTensor {
    /// Bytes of all elements, `None` on overflow.
    #[must_use]
    pub fn bytes(&self) -> Option<u64> {
        let dims = self.dims.get(..self.rank)?;
        let size = self.dtype.size_bytes() as u64;
        dims.iter().try_fold(size, |bytes, dim| bytes.checked_mul(*dim as u64))
    }

    fn raw(&self) -> sys::Tensor {
        let mut dims = [0; RANK_MAX];
        for (to, from) in dims.iter_mut().zip(self.dims) {
            *to = i64::try_from(from).unwrap_or(i64::MAX);
        }
        sys::Tensor {
            data: self.address as usize as *mut c_void,
            // A length that overflows matches no shape, so the shim refuses it.
            bytes: self.bytes().unwrap_or(u64::MAX),
            dtype: self.dtype as i32,
            rank: i32::try_from(self.rank).unwrap_or(-1),
            dims,
        }
    }
}

/// Memory that graphs share which never run at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool([u64; 2]);

/// Bytes of libtorch's allocator on one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Taken from the device.
    pub reserved_bytes: u64,
    /// Of these, in use.
    pub allocated_bytes: u64,
}

/// libtorch's CUDA half, ready for one device of this process.
#[derive(Debug, Clone, Copy)]
pub struct Cuda {
    functions: &'static CudaFunctions,
    device: i32,
}

impl Cuda {
    /// Opens the CUDA half and makes it ready for device `device`, as this process counts them.
    /// Creates the device's primary context. `torch` was opened with
    /// [`Options::cuda`](crate::Options::cuda).
    ///
    /// # Errors
    /// [`CudaOpenError`].
    pub fn open(torch: &Torch, shim: Option<&Path>, device: i32) -> Result<Self, CudaOpenError> {
        let cuda = Self { functions: open::open_cuda(torch.opened, shim)?, device };
        // SAFETY: no pointers.
        cuda.check(unsafe { (cuda.functions.open)(device) })?;
        Ok(cuda)
    }

    /// A copy of `module` with its weights on the device. Freeze it before.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Internal`].
    pub fn place(&self, module: &Module, precision: Precision) -> Result<Placed, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: the module is live for the call and not changed by it, the others are valid.
        let code = unsafe {
            (self.functions.place)(module.raw().as_ptr(), self.device, &precision.raw(), &mut raw)
        };
        self.check(code)?;
        let raw = NonNull::new(raw).ok_or_else(null)?;
        Ok(Placed { cuda: *self, free: module.free_function(), raw, precision })
    }

    /// A name for memory that graphs share.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn pool(&self) -> Result<Pool, Error> {
        let mut pool = [0; 2];
        // SAFETY: room for two numbers.
        self.check(unsafe { (self.functions.pool)(pool.as_mut_ptr()) })?;
        Ok(Pool(pool))
    }

    /// What libtorch has of the device's memory.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn memory(&self) -> Result<Memory, Error> {
        let (mut reserved_bytes, mut allocated_bytes) = (0, 0);
        // SAFETY: both out-parameters are valid.
        let code = unsafe {
            (self.functions.memory)(self.device, &mut reserved_bytes, &mut allocated_bytes)
        };
        self.check(code)?;
        Ok(Memory { reserved_bytes, allocated_bytes })
    }

    /// Lets go of the memory that libtorch keeps for work on `stream`, before that is destroyed.
    ///
    /// # Safety
    /// None of that work is unfinished, and no [`Graph`] that was captured on it is left.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub unsafe fn forget(&self, stream: *mut c_void) -> Result<(), Error> {
        // SAFETY: only the value of the pointer is looked at; the rest is the caller's.
        self.check(unsafe { (self.functions.forget)(stream) })
    }

    /// Gives memory that libtorch does not use back to the device. Waits for the device.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn trim(&self) -> Result<(), Error> {
        // SAFETY: no arguments.
        self.check(unsafe { (self.functions.trim)() })
    }

    fn check(&self, code: i32) -> Result<(), Error> {
        if code == sys::status::OK {
            return Ok(());
        }
        // SAFETY: the text is NUL-terminated and stays until this thread's next call.
        let text = unsafe { CStr::from_ptr((self.functions.error_text)()) };
        Err(Error::new(code, text.to_string_lossy().into_owned()))
    }
}

/// Why there is no libtorch for the GPU.
#[derive(Debug, thiserror::Error)]
pub enum CudaOpenError {
    /// A library is missing or is another one.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// CUDA itself.
    #[error("{0}")]
    Cuda(#[from] Error),
}

fn null() -> Error {
    Error::Internal { detail: "a call succeeded and gave a null".to_owned() }
}

/// A module on the device.
///
/// Threads: any, one call at a time where forward changes the module; captures and runs on
/// different streams may overlap otherwise.
#[derive(Debug)]
pub struct Placed {
    cuda: Cuda,
    free: unsafe extern "C" fn(*mut sys::Module),
    raw: NonNull<sys::Module>,
    precision: Precision,
}

// SAFETY: the shim allows any thread to use a module.
unsafe impl Send for Placed {}
// SAFETY: `&self` calls do not change the module; forwards that do are refused by the backend.
unsafe impl Sync for Placed {}

impl Placed {
    /// Queues a forward on `stream`, and returns when it is queued.
    ///
    /// # Safety
    /// `stream` is a live CUstream of the device. The memory of all tensors is on the device,
    /// valid until the work is done, and what else touches it is ordered with `stream`.
    ///
    /// # Errors
    /// As [`Module::run`]; nothing is known of the outputs then.
    pub unsafe fn run(
        &self,
        stream: *mut c_void,
        inputs: &[DeviceTensor],
        outputs: &[DeviceTensor],
    ) -> Result<(), Error> {
        let (inputs, outputs) = (raw_tensors(inputs), raw_tensors(outputs));
        // SAFETY: the module is live, the arrays have the lengths given; the rest is the caller's.
        let code = unsafe {
            (self.cuda.functions.run)(
                self.raw.as_ptr(),
                self.cuda.device,
                stream,
                &self.precision.raw(),
                inputs.as_ptr(),
                inputs.len(),
                outputs.as_ptr(),
                outputs.len(),
            )
        };
        self.cuda.check(code)
    }

    /// Captures a forward over exactly this memory; run it on `stream` a few times before.
    ///
    /// # Safety
    /// As [`run`](Self::run), and the memory stays valid for as long as the graph lives.
    ///
    /// # Errors
    /// [`Error::ModelRaised`] where it cannot be captured, else as [`run`](Self::run).
    pub unsafe fn capture(
        &self,
        stream: *mut c_void,
        pool: Pool,
        inputs: &[DeviceTensor],
        outputs: &[DeviceTensor],
    ) -> Result<Graph, Error> {
        let (inputs, outputs) = (raw_tensors(inputs), raw_tensors(outputs));
        let mut raw = ptr::null_mut();
        // SAFETY: as in `run`; `raw` is a valid out-parameter.
        let code = unsafe {
            (self.cuda.functions.capture)(
                self.raw.as_ptr(),
                self.cuda.device,
                stream,
                pool.0.as_ptr(),
                &self.precision.raw(),
                inputs.as_ptr(),
                inputs.len(),
                outputs.as_ptr(),
                outputs.len(),
                &mut raw,
            )
        };
        self.cuda.check(code)?;
        let raw = NonNull::new(raw).ok_or_else(null)?;
        let mut graph = Graph { cuda: self.cuda, raw, captured: NonNull::dangling() };
        // SAFETY: a graph that was just captured.
        let captured = unsafe { (self.cuda.functions.graph_raw)(raw.as_ptr()) };
        graph.captured = NonNull::new(captured).ok_or_else(null)?;
        Ok(graph)
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        // SAFETY: made by `place`, and freed once.
        unsafe { (self.free)(self.raw.as_ptr()) }
    }
}

/// A captured forward, with the memory that it runs in. It is dropped after everything that was
/// instantiated of it.
#[derive(Debug)]
pub struct Graph {
    cuda: Cuda,
    raw: NonNull<sys::Graph>,
    captured: NonNull<c_void>,
}

// SAFETY: nothing of it is bound to a thread.
unsafe impl Send for Graph {}
// SAFETY: it only tells its handle.
unsafe impl Sync for Graph {}

impl Graph {
    /// The `CUgraph`, valid as long as this is.
    #[must_use]
    pub fn raw(&self) -> *mut c_void {
        self.captured.as_ptr()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, and freed once.
        unsafe { (self.cuda.functions.graph_free)(self.raw.as_ptr()) }
    }
}

fn raw_tensors(tensors: &[DeviceTensor]) -> Vec<sys::Tensor> {
    tensors.iter().map(DeviceTensor::raw).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tensor_that_cannot_be_counted_matches_no_shape() {
        let dims = [usize::MAX, 4, 0, 0, 0, 0, 0, 0];
        let huge = DeviceTensor { address: 0, dtype: Dtype::F32, dims, rank: 2 };
        assert_eq!(huge.bytes(), None);
        assert_eq!(huge.raw().bytes, u64::MAX);
        let small = DeviceTensor { rank: 0, ..huge };
        assert_eq!(small.bytes(), Some(4));
    }
}
