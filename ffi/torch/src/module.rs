//! One loaded model.

use std::ffi::{CString, c_char};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::sync::{Mutex, PoisonError};

use crate::error::Error;
use crate::sys;
use crate::tensor::{Dtype, TensorMut, TensorRef, TensorSpec, raw_inputs, raw_outputs};
use crate::{Torch, text_from};

/// The most outputs that [`Module::probe`] describes.
pub const OUTPUT_COUNT_MAX: usize = 32;

/// A TorchScript module on the CPU.
///
/// Threads: `Send` and `Sync`. Calls of [`run`](Self::run) from several threads overlap, except on
/// a module whose forward changes the module ([`Signature::mutates`]), where they take turns.
#[derive(Debug)]
pub struct Module {
    torch: Torch,
    raw: NonNull<sys::Module>,
    signature: Signature,
    profiling: bool,
    optimised: bool,
    /// Held during a run of a module that mutates itself.
    turn: Mutex<()>,
}

// SAFETY: the shim allows any thread to use a module, one call at a time where it changes.
unsafe impl Send for Module {}
// SAFETY: what changes the module takes `&mut self`; what forward itself changes is under `turn`.
unsafe impl Sync for Module {}

/// What forward takes and gives, as the archive's schema states it. Shapes are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    /// The arguments in order, without `self` and without `out`.
    pub inputs: Vec<Input>,
    /// How many of the inputs have to be given: the leading ones with no default.
    pub required_count: usize,
    /// How many tensors come back; nothing where only a run can tell (a list, say).
    pub output_count: Option<usize>,
    /// Whether the last argument is an `out` tensor (or list of them) that the model fills.
    pub takes_out: bool,
    /// Whether forward may change the module: it assigns an attribute, or writes into one.
    pub mutates: bool,
    /// Parameters and buffers as loaded, in bytes.
    pub weight_bytes: u64,
}

/// One argument of forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Input {
    /// Its name in the model's source.
    pub name: String,
    /// What has to be given for it.
    pub kind: InputKind,
}

/// What one argument of forward is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputKind {
    /// A tensor; which dtypes and shapes is the model's secret.
    Tensor,
    /// An int, given as an `i64` tensor of shape `[]`.
    Int,
    /// A float, given as an `f32` tensor of shape `[]`.
    Float,
    /// A bool, given as a `bool` tensor of shape `[]`.
    Bool,
    /// Something that cannot be given (a string, a dict): a run that gives it fails.
    Other,
}

/// How far [`Module::optimise_for_inference`] got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Optimised {
    /// Frozen, and rewritten for this CPU.
    Optimised,
    /// Frozen only; optimising failed for the reason given.
    Frozen {
        /// Why it was not optimised.
        reason: String,
    },
    /// Left as loaded; both failed for the reasons given. It still runs.
    AsLoaded {
        /// Why it was not optimised.
        optimise: String,
        /// Why it was not frozen.
        freeze: String,
    },
}

/// What one run did, as libtorch's own tensors showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RunReport {
    /// Input bytes that were copied on the host: 0, but for single values ([`InputKind::Int`] and
    /// its like) and for inputs that the model keeps a reference to, which get memory of their own.
    pub input_bytes_copied: u64,
    /// Output bytes that were copied into the caller's memory: all, once; 0 where the model wrote
    /// there itself.
    pub output_bytes_copied: u64,
    /// How many outputs lay in the caller's memory when forward returned.
    pub outputs_in_place: usize,
    /// The addresses the model's input tensors span: lowest, and one past the highest. Both 0
    /// where there was no input.
    pub input_span: (usize, usize),
}

impl Module {
    /// Loads an archive from memory: a mapped file, or one read by other means.
    ///
    /// The archive is read where it lies, record by record; it may go when the call is over.
    /// TorchScript is code: load only what you would run.
    ///
    /// # Errors
    /// [`Error::BadArchive`], [`Error::OutOfMemory`].
    pub fn load_buffer(torch: &Torch, archive: &[u8]) -> Result<Self, Error> {
        Self::adopt(torch, |module| {
            // SAFETY: the slice is readable for the call, `module` is a valid out-parameter.
            unsafe {
                (torch.functions().load_buffer)(archive.as_ptr().cast(), archive.len(), module)
            }
        })
    }

    /// Loads an archive from a file.
    ///
    /// # Errors
    /// [`Error::BadPath`], [`Error::BadArchive`], [`Error::OutOfMemory`].
    pub fn load_path(torch: &Torch, path: &Path) -> Result<Self, Error> {
        let name = path_text(path)?;
        Self::adopt(torch, |module| {
            // SAFETY: `name` is NUL-terminated and outlives the call, `module` is a valid
            // out-parameter.
            unsafe { (torch.functions().load_path)(name.as_ptr(), module) }
        })
    }

    /// Makes a module from TorchScript source: the methods of a class, `forward` among them. The
    /// buffers are copied in as attributes of the names given; children are shared with it.
    ///
    /// # Errors
    /// [`Error::BadArgument`] with the compiler's words, or where a child changes itself
    /// ([`Signature::mutates`]): it could not know of runs of the other.
    pub fn define(
        torch: &Torch,
        source: &str,
        buffers: &[(&str, TensorRef<'_>)],
        children: &[(&str, &Self)],
    ) -> Result<Self, Error> {
        if let Some((name, _)) = children.iter().find(|(_, child)| child.signature.mutates) {
            let detail = format!("child `{name}` changes itself, so it cannot be shared");
            return Err(Error::BadArgument { detail });
        }
        let source = CString::new(source).map_err(|_| Error::nul_byte("the source"))?;
        let names = c_names(buffers.iter().map(|(name, _)| *name))?;
        let names = pointers(&names);
        let values: Vec<sys::Tensor> = buffers.iter().map(|(_, value)| value.raw()).collect();
        let child_names = c_names(children.iter().map(|(name, _)| *name))?;
        let child_names = pointers(&child_names);
        let children: Vec<_> =
            children.iter().map(|(_, child)| child.raw.as_ptr().cast_const()).collect();
        Self::adopt(torch, |module| {
            // SAFETY: each array of names has as many elements as its values; names, source,
            // children and the memory the values describe outlive the call; `module` is a valid
            // out-parameter.
            unsafe {
                (torch.functions().define)(
                    source.as_ptr(),
                    names.as_ptr(),
                    values.as_ptr(),
                    values.len(),
                    child_names.as_ptr(),
                    children.as_ptr(),
                    children.len(),
                    module,
                )
            }
        })
    }

    fn adopt(
        torch: &Torch,
        load: impl FnOnce(*mut *mut sys::Module) -> i32,
    ) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        torch.check(load(&mut raw))?;
        let Some(raw) = NonNull::new(raw) else {
            return Err(Error::Internal { detail: "a module was loaded but is null".into() });
        };
        let mut module = Self {
            torch: *torch,
            raw,
            signature: Signature::default(),
            profiling: false,
            optimised: false,
            turn: Mutex::new(()),
        };
        module.signature = module.read_signature()?;
        Ok(module)
    }

    /// Writes the module as an archive.
    ///
    /// # Errors
    /// [`Error::BadPath`]; [`Error::BadArgument`] for an optimised module, of which libtorch would
    /// write an archive that it cannot read.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        if self.optimised {
            let detail = "an optimised module cannot be saved: save it before".to_owned();
            return Err(Error::BadArgument { detail });
        }
        let name = path_text(path)?;
        let _turn = self.take_turn();
        // SAFETY: `raw` is a live module, `name` is NUL-terminated and outlives the call.
        self.torch.check(unsafe { (self.torch.functions().save)(self.raw.as_ptr(), name.as_ptr()) })
    }

    /// Folds parameters and constant attributes into the graph.
    ///
    /// # Errors
    /// [`Error::Internal`]; the module is then as it was.
    pub fn freeze(&mut self) -> Result<(), Error> {
        // SAFETY: `raw` is a live module, and `&mut self` keeps every other call away.
        self.torch.check(unsafe { (self.torch.functions().freeze)(self.raw.as_ptr()) })
    }

    /// Freezes and rewrites the module for this CPU, or does as much of it as works.
    pub fn optimise_for_inference(&mut self) -> Optimised {
        // SAFETY: `raw` is a live module, and `&mut self` keeps every other call away.
        let code = unsafe { (self.torch.functions().optimise)(self.raw.as_ptr()) };
        let Err(optimise) = self.torch.check(code) else {
            self.optimised = true;
            return Optimised::Optimised;
        };
        match self.freeze() {
            Ok(()) => Optimised::Frozen { reason: optimise.to_string() },
            Err(freeze) => {
                Optimised::AsLoaded { optimise: optimise.to_string(), freeze: freeze.to_string() }
            }
        }
    }

    /// Lets libtorch watch the first two runs of every input shape and recompile for it: later
    /// runs may be faster, those two are up to four times slower. Off unless asked for; with it
    /// on, warm up every shape before time counts.
    pub fn set_profiling(&mut self, on: bool) {
        self.profiling = on;
    }

    /// What forward takes and gives, as it was when the module was loaded.
    #[must_use]
    pub fn signature(&self) -> &Signature {
        &self.signature
    }

    /// Runs forward on `inputs` where they lie, and puts its answer into `outputs`.
    ///
    /// Tensors in a tuple, list or dict come out flattened, in order. All outputs are checked
    /// before the first is written. Allocates nothing itself; libtorch does.
    ///
    /// # Errors
    /// [`Error::BadArgument`] where inputs do not fit forward, [`Error::BadOutput`] where
    /// `outputs` do not fit the answer, [`Error::ModelRaised`], [`Error::OutOfMemory`].
    pub fn run(
        &self,
        inputs: &[TensorRef<'_>],
        outputs: &mut [TensorMut<'_>],
    ) -> Result<RunReport, Error> {
        let mut report = sys::Report::default();
        let _turn = self.take_turn();
        // SAFETY: `raw` is a live module that nothing changes (`&self`, and `turn` where forward
        // does); both arrays have the lengths given; the memory they describe is valid for the
        // call by the contract of their constructors; the shim keeps no pointer to it.
        let code = unsafe {
            (self.torch.functions().run)(
                self.raw.as_ptr(),
                raw_inputs(inputs),
                inputs.len(),
                raw_outputs(outputs),
                outputs.len(),
                if self.profiling { sys::RUN_PROFILE } else { 0 },
                &mut report,
            )
        };
        self.torch.check(code)?;
        Ok(RunReport {
            input_bytes_copied: report.input_bytes_copied,
            output_bytes_copied: report.output_bytes_copied,
            outputs_in_place: report.outputs_in_place as usize,
            input_span: (report.input_lowest as usize, report.input_highest as usize),
        })
    }

    /// Runs `count` times, so that libtorch's lazy parts are in place before time counts.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub fn warm_up(
        &self,
        inputs: &[TensorRef<'_>],
        outputs: &mut [TensorMut<'_>],
        count: usize,
    ) -> Result<(), Error> {
        (0..count).try_for_each(|_| self.run(inputs, outputs).map(drop))
    }

    /// Runs forward and says what came out, for callers that do not know the shapes yet.
    ///
    /// # Errors
    /// As [`Self::run`]; [`Error::BadArgument`] for a model that takes `out`, and
    /// [`Error::BadOutput`] for more than [`OUTPUT_COUNT_MAX`] outputs.
    pub fn probe(&self, inputs: &[TensorRef<'_>]) -> Result<Vec<TensorSpec>, Error> {
        let empty =
            sys::Tensor { data: ptr::null_mut(), bytes: 0, dtype: 0, rank: 0, dims: [0; 8] };
        let mut specs = [empty; OUTPUT_COUNT_MAX];
        let mut count = 0;
        let _turn = self.take_turn();
        // SAFETY: as in `run`; `specs` has the length given and `count` is a valid out-parameter.
        let code = unsafe {
            (self.torch.functions().probe)(
                self.raw.as_ptr(),
                raw_inputs(inputs),
                inputs.len(),
                specs.as_mut_ptr(),
                specs.len(),
                &mut count,
            )
        };
        self.torch.check(code)?;
        let Some(specs) = specs.get(..count) else {
            let detail =
                format!("the model gave {count} outputs, at most {OUTPUT_COUNT_MAX} are served");
            return Err(Error::BadOutput { detail });
        };
        specs.iter().map(spec_of).collect()
    }

    pub(crate) fn raw(&self) -> NonNull<sys::Module> {
        self.raw
    }

    /// Frees what the shim made, in either of its halves.
    pub(crate) fn free_function(&self) -> unsafe extern "C" fn(*mut sys::Module) {
        self.torch.functions().free
    }

    fn take_turn(&self) -> Option<std::sync::MutexGuard<'_, ()>> {
        // The lock guards no data of ours, so a panic elsewhere leaves nothing broken behind.
        self.signature.mutates.then(|| self.turn.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn read_signature(&self) -> Result<Signature, Error> {
        let functions = self.torch.functions();
        let mut raw = sys::Signature::default();
        // SAFETY: `raw` is a live module and the out-parameter is valid.
        self.torch.check(unsafe { (functions.signature)(self.raw.as_ptr(), &mut raw) })?;
        let input_count = usize::try_from(raw.input_count).unwrap_or(0);
        let inputs = (0..input_count).map(|i| self.read_input(i)).collect::<Result<_, _>>()?;
        Ok(Signature {
            inputs,
            required_count: usize::try_from(raw.input_required).unwrap_or(0),
            output_count: usize::try_from(raw.output_count).ok(),
            takes_out: raw.takes_out != 0,
            mutates: raw.mutates != 0,
            weight_bytes: raw.weight_bytes,
        })
    }

    fn read_input(&self, index: usize) -> Result<Input, Error> {
        let mut kind = 0;
        let mut name: [c_char; 128] = [0; 128];
        // SAFETY: `raw` is a live module; `name` has the length given, and both out-parameters
        // are valid.
        self.torch.check(unsafe {
            (self.torch.functions().input)(
                self.raw.as_ptr(),
                index,
                &mut kind,
                name.as_mut_ptr(),
                name.len(),
            )
        })?;
        let kind = match kind {
            1 => InputKind::Tensor,
            2 => InputKind::Int,
            3 => InputKind::Float,
            4 => InputKind::Bool,
            _ => InputKind::Other,
        };
        Ok(Input { name: text_from(&name), kind })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: `raw` is a live module, freed here and nowhere else.
        unsafe { (self.torch.functions().free)(self.raw.as_ptr()) }
    }
}

impl Default for Signature {
    /// A forward that takes and gives nothing; it mutates, which is the careful assumption.
    fn default() -> Self {
        Self {
            inputs: Vec::new(),
            required_count: 0,
            output_count: None,
            takes_out: false,
            mutates: true,
            weight_bytes: 0,
        }
    }
}

fn spec_of(raw: &sys::Tensor) -> Result<TensorSpec, Error> {
    let dims = usize::try_from(raw.rank).ok().and_then(|rank| raw.dims.get(..rank));
    match (Dtype::from_raw(raw.dtype), dims) {
        (Some(dtype), Some(dims)) => {
            Ok(TensorSpec { dtype, dims: dims.iter().map(|dim| *dim as usize).collect() })
        }
        _ => Err(Error::Internal { detail: format!("a tensor came back as {raw:?}") }),
    }
}

fn c_names<'a>(names: impl Iterator<Item = &'a str>) -> Result<Vec<CString>, Error> {
    names.map(|name| CString::new(name).map_err(|_| Error::nul_byte("a name"))).collect()
}

fn pointers(names: &[CString]) -> Vec<*const c_char> {
    names.iter().map(|name| name.as_ptr()).collect()
}

fn path_text(path: &Path) -> Result<CString, Error> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Error::path_nul_byte(path))
}
