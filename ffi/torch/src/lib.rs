//! A minimal, run-time loaded libtorch: one C++ shim behind a safe Rust face.
//!
//! The crate never links libtorch. `build.rs` compiles `shim.cc` into `libgpulet_torch.so` where
//! it finds a libtorch (`$LIBTORCH_DIR`, else the distribution's package; any version from 1.13
//! on), and [`Torch::open`] opens that library and its libtorch in the process that runs models.
//! Everything else builds and runs without either.
//!
//! ```no_run
//! use gpulet_torch::{Module, Options, TensorMut, TensorRef, Torch};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let torch = Torch::open(&Options::default())?;
//! torch.set_threads(1)?;
//! let mut module = Module::load_path(&torch, "model.pt".as_ref())?;
//! module.optimise_for_inference();
//!
//! let (mut image, mut scores) = ([0f32; 784], [0f32; 10]);
//! let input = TensorRef::from_slice(&[1, 1, 28, 28], &mut image)?;
//! let output = TensorMut::from_slice(&[1, 10], &mut scores)?;
//! let report = module.run(&[input], &mut [output])?;
//! assert_eq!(report.input_bytes_copied, 0);
//! # Ok(())
//! # }
//! ```

pub mod cuda;
mod error;
mod module;
mod open;
mod sys;
mod tensor;

use std::ffi::{CStr, c_char};
use std::path::Path;

pub use error::{Error, Raised};
pub use module::{Input, InputKind, Module, OUTPUT_COUNT_MAX, Optimised, RunReport, Signature};
pub use open::{
    CUDA_SHIM_NAME, CUDA_SHIM_VARIABLE, LIBTORCH_VARIABLE, OpenError, Options, SHIM_NAME,
    SHIM_VARIABLE, built_shim,
};
pub use tensor::{
    Dtype, Element, RANK_MAX, TensorError, TensorMut, TensorRef, TensorSpec, bytes_of,
};

/// The environment variable, and its value, that a process that runs models should be started with
/// unless its user set it.
///
/// OpenMP's threads spin between the loops of a forward before they sleep: by default for
/// milliseconds, which takes CPUs from whoever needs them, and stretches a forward a hundredfold where
/// CPUs are shared. At this value they spin long enough to bridge the gaps within a forward:
/// mobilenet_v2 on eight CPUs of its own took 6.2 ms, 5.7 with the default and 10.9 without spinning.
pub const OPENMP_SPIN: (&str, &str) = ("GOMP_SPINCOUNT", "10000");

/// As [`OPENMP_SPIN`], for a process that gives device memory back while it runs batches.
///
/// libtorch's memory is then mapped and unmapped, which waits only for the stream that it was for; what
/// is allocated in the usual way is freed when the whole device is idle, and nobody launches until
/// then. Each pool of each stream takes addresses for more than all of the device: on an H100 there are
/// enough for 1,455 pools.
/// It grows by 20 MiB at a time, so that a forward which wants more than there is learns of it after
/// 0.4 s.
pub const MAPPED_MEMORY: (&str, &str) = ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True");

/// Room for libtorch's description of itself, which takes some 2 kB.
const CONFIG_BYTES: usize = 8192;

/// An opened libtorch. A process opens one, once, and keeps it; this is a handle to it.
///
/// Threads: any thread may use it and copies of it at any time.
#[derive(Debug, Clone, Copy)]
pub struct Torch {
    opened: &'static open::Opened,
}

impl Torch {
    /// Finds and opens the shim and its libtorch; opening the same again gives the same.
    ///
    /// Takes 0.3 to 1 s the first time, and about 100 MB of memory.
    ///
    /// # Errors
    /// [`OpenError`], which names the files and says what to do.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        let torch = Self { opened: open::open(options)? };
        Ok(torch)
    }

    /// The libtorch version the shim was compiled against, such as `2.11.0`.
    #[must_use]
    pub fn version(&self) -> &'static str {
        &self.opened.version
    }

    /// The shim's file.
    #[must_use]
    pub fn shim(&self) -> &'static Path {
        &self.opened.shim
    }

    /// libtorch's file.
    #[must_use]
    pub fn libtorch(&self) -> &'static Path {
        &self.opened.libtorch
    }

    /// libtorch's own description of its build, several lines: maths libraries, threading.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn config(&self) -> Result<String, Error> {
        let mut text: [c_char; CONFIG_BYTES] = [0; CONFIG_BYTES];
        // SAFETY: `text` has the length given.
        self.check(unsafe { (self.functions().config)(text.as_mut_ptr(), text.len()) })?;
        Ok(text_from(&text))
    }

    /// Sets how many threads one operator may use, in this thread and in those that run their
    /// first operator later. Call it before other threads run models.
    ///
    /// # Errors
    /// [`Error::BadArgument`] for 0.
    pub fn set_threads(&self, count: u32) -> Result<(), Error> {
        // SAFETY: no pointers.
        self.check(unsafe { (self.functions().set_threads)(clamp(count)) })
    }

    /// Sets how many threads run parallel parts of one model (`torch.jit.fork`).
    ///
    /// # Errors
    /// [`Error::BadArgument`] for 0, and when it is too late: set before, or a model ran.
    pub fn set_interop_threads(&self, count: u32) -> Result<(), Error> {
        // SAFETY: no pointers.
        self.check(unsafe { (self.functions().set_interop_threads)(clamp(count)) })
    }

    /// The two numbers in force: threads of one operator in this thread, and of parallel parts.
    ///
    /// # Errors
    /// [`Error::Internal`].
    pub fn threads(&self) -> Result<(u32, u32), Error> {
        let (mut intra, mut interop) = (0, 0);
        // SAFETY: both out-parameters are valid.
        self.check(unsafe { (self.functions().threads)(&mut intra, &mut interop) })?;
        Ok((u32::try_from(intra).unwrap_or(0), u32::try_from(interop).unwrap_or(0)))
    }

    fn functions(&self) -> &'static sys::Functions {
        &self.opened.functions
    }

    /// Turns a status into a result; must come right after the call, on the same thread.
    fn check(&self, code: i32) -> Result<(), Error> {
        if code == sys::status::OK {
            return Ok(());
        }
        // SAFETY: the text is NUL-terminated and stays until this thread's next call.
        let text = unsafe { CStr::from_ptr((self.functions().error_text)()) };
        Err(Error::new(code, text.to_string_lossy().into_owned()))
    }
}

fn clamp(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The text up to the NUL in a buffer that the shim filled.
fn text_from(buffer: &[c_char]) -> String {
    let bytes: Vec<u8> =
        buffer.iter().map(|byte| *byte as u8).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
