//! TorchScript archives through libtorch, on the CPU.

use std::array;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;

use gpulet_abi::layout::TENSORS_MAX;
use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_torch::{Error, InputKind, Module, Optimised, RANK_MAX, TensorMut, TensorRef};

use super::buffer::BatchBuffer;
use super::{Backend, Copied, Instance, LoadError, OpenError, RunError, View, check_views};
use crate::model::{Model, Precision, Source, Tensor};
use crate::store;

/// More than any model that a host's memory holds twice: file and weights.
pub(crate) const ARCHIVE_BYTES_MAX: u64 = 64 << 30;

/// An opened libtorch.
#[derive(Debug)]
pub struct Torch {
    torch: gpulet_torch::Torch,
    thread_count: u32,
}

impl Torch {
    /// Opens libtorch for this process, and has each forward use `thread_count` threads.
    ///
    /// # Errors
    /// [`OpenError::Torch`], [`OpenError::Threads`].
    pub fn open(
        libtorch_dir: Option<PathBuf>,
        shim: Option<PathBuf>,
        thread_count: u32,
    ) -> Result<Torch, OpenError> {
        let torch =
            gpulet_torch::Torch::open(&gpulet_torch::Options { libtorch_dir, shim, cuda: false })?;
        torch.set_threads(thread_count).map_err(OpenError::Threads)?;
        // Parallel branches of a model take turns: a gpulet has the threads of one operator, no
        // more. It can be set once in a process, and a second backend in it finds it done.
        if let Err(error) = torch.set_interop_threads(1) {
            tracing::debug!("{error}");
        }
        Ok(Torch { torch, thread_count })
    }
}

impl Backend for Torch {
    fn describe(&self) -> String {
        let threads = if self.thread_count == 1 { "thread" } else { "threads" };
        format!("libtorch {}, {} {threads}", self.torch.version(), self.thread_count)
    }

    fn load_file(&self, model: &Model) -> Result<Box<dyn Instance>, LoadError> {
        let Source::File(path) = &model.source else {
            return Err(LoadError::model(model, "has no file"));
        };
        let refuse = |rule: String| LoadError::File { path: path.clone(), rule };
        let archive = store::read(path, ARCHIVE_BYTES_MAX)?;
        let mut module = Module::load_buffer(&self.torch, &archive)
            .map_err(|error| refuse(error.to_string()))?;
        drop(archive);
        check_signature(model, &module).map_err(refuse)?;
        let form = match module.optimise_for_inference() {
            Optimised::Optimised => "optimised for inference".to_owned(),
            Optimised::Frozen { reason } => format!("frozen only: {reason}"),
            Optimised::AsLoaded { freeze, .. } => format!("as loaded: {freeze}"),
        };
        let form = match model.precision {
            Precision::Fp32 => form,
            other => format!("fp32 ({} is for GPUs), {form}", other.word()),
        };
        let inputs = specs_of(model, &model.inputs)?;
        let outputs = specs_of(model, &model.outputs)?;
        let writes_in_place = module.signature().takes_out;
        let mut instance =
            TorchInstance { module, model: model.clone(), inputs, outputs, form, writes_in_place };
        check_answer(model, path, &mut instance)?;
        Ok(Box::new(instance))
    }
}

/// What can be said without running the model.
pub(crate) fn check_signature(model: &Model, module: &Module) -> Result<(), String> {
    let signature = module.signature();
    let (given, taken) = (model.inputs.len(), signature.inputs.len());
    if given > taken || given < signature.required_count {
        return Err(format!(
            "forward takes {} to {taken} inputs, model.toml states {given}",
            signature.required_count
        ));
    }
    for (index, (tensor, input)) in model.inputs.iter().zip(&signature.inputs).enumerate() {
        if input.kind != InputKind::Tensor {
            return Err(format!(
                "input {index} ({}) is {:?} for forward, where it is called {}; it must be a \
                 tensor",
                tensor.name, input.kind, input.name
            ));
        }
    }
    match signature.output_count {
        Some(count) if count != model.outputs.len() => {
            Err(format!("forward gives {count} outputs, model.toml states {}", model.outputs.len()))
        }
        _ => Ok(()),
    }
}

/// Runs the model on one row of zeros, and compares its answer with what model.toml promises.
fn check_answer(model: &Model, path: &Path, instance: &mut TorchInstance) -> Result<(), LoadError> {
    let refuse = |rule: String| LoadError::File { path: path.to_owned(), rule };
    let failed = |error: String| refuse(format!("one row of zeros: {error}"));
    let mut buffer = BatchBuffer::new(&Model { max_batch: 1, ..model.clone() })?;
    let tensors = buffer.tensors(1);
    if instance.writes_in_place {
        let run = instance.run(1, tensors.inputs(), tensors.outputs());
        return run.map(drop).map_err(|error| failed(error.text));
    }
    let inputs = instance.inputs(1, tensors.inputs());
    let answer = instance.module.probe(&inputs[..model.inputs.len()]);
    let answer = answer.map_err(|error| failed(error.to_string()))?;
    if answer.len() != model.outputs.len() {
        let (given, stated) = (answer.len(), model.outputs.len());
        return Err(refuse(format!("forward gave {given} outputs, model.toml states {stated}")));
    }
    for (index, (given, stated)) in answer.iter().zip(&instance.outputs).enumerate() {
        let stated_dims = stated.dims(1);
        if given.dtype != stated.dtype || given.dims != stated_dims[..stated.rank] {
            return Err(refuse(format!(
                "output {index} ({}) of one row is {given}, model.toml states {} {:?}",
                model.outputs[index].name,
                stated.dtype,
                &stated_dims[..stated.rank]
            )));
        }
    }
    Ok(())
}

/// A tensor in libtorch's terms; its first dimension is the batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) dtype: gpulet_torch::Dtype,
    dims: [usize; RANK_MAX],
    pub(crate) rank: usize,
}

impl Spec {
    pub(crate) fn dims(&self, rows: u32) -> [usize; RANK_MAX] {
        let mut dims = self.dims;
        dims[0] = rows as usize;
        dims
    }
}

pub(crate) fn specs_of(model: &Model, tensors: &[Tensor]) -> Result<Vec<Spec>, LoadError> {
    let spec = |tensor: &Tensor| {
        let (dtype, dims) = tensor.seen_by_model();
        let rank = dims.len() + 1;
        let mut spec = Spec { dtype: dtype_of(dtype), dims: [0; RANK_MAX], rank };
        let room = spec.dims[1..].get_mut(..dims.len())?;
        for (to, from) in room.iter_mut().zip(&dims) {
            *to = usize::try_from(*from).ok()?;
        }
        Some(spec)
    };
    let bad = |tensor: &Tensor| {
        let rule = format!("shape of {}: {RANK_MAX} dimensions of at least 1 at most", tensor.name);
        LoadError::model(model, rule)
    };
    tensors.iter().map(|tensor| spec(tensor).ok_or_else(|| bad(tensor))).collect()
}

fn dtype_of(dtype: Dtype) -> gpulet_torch::Dtype {
    match dtype {
        Dtype::F32 => gpulet_torch::Dtype::F32,
        Dtype::F16 => gpulet_torch::Dtype::F16,
        Dtype::Bf16 => gpulet_torch::Dtype::Bf16,
        Dtype::I64 => gpulet_torch::Dtype::I64,
        Dtype::I32 => gpulet_torch::Dtype::I32,
        Dtype::U8 => gpulet_torch::Dtype::U8,
        Dtype::Bool => gpulet_torch::Dtype::Bool,
    }
}

#[derive(Debug)]
struct TorchInstance {
    module: Module,
    model: Model,
    inputs: Vec<Spec>,
    outputs: Vec<Spec>,
    form: String,
    writes_in_place: bool,
}

impl TorchInstance {
    fn inputs<'a>(&self, rows: u32, views: &[View<'a>]) -> [TensorRef<'a>; TENSORS_MAX] {
        array::from_fn(|index| {
            let (dtype, dims, rank, data, bytes) = raw(&self.inputs, rows, views, index);
            // SAFETY: a view is readable and writable for its length; what other processes may
            // write meanwhile is no index and no truth value, by the contract of views.
            let tensor = unsafe { TensorRef::from_raw(dtype, &dims[..rank], data.as_ptr(), bytes) };
            tensor.expect("views were checked, dimensions when the model was loaded")
        })
    }

    fn outputs<'a>(&self, rows: u32, views: &[View<'a>]) -> [TensorMut<'a>; TENSORS_MAX] {
        array::from_fn(|index| {
            let (dtype, dims, rank, data, bytes) = raw(&self.outputs, rows, views, index);
            // SAFETY: as in `inputs`.
            let tensor = unsafe { TensorMut::from_raw(dtype, &dims[..rank], data.as_ptr(), bytes) };
            tensor.expect("views were checked, dimensions when the model was loaded")
        })
    }
}

/// The parts of tensor `index`; of an empty one where there is none, so that arrays can be filled.
fn raw(
    specs: &[Spec],
    rows: u32,
    views: &[View<'_>],
    index: usize,
) -> (gpulet_torch::Dtype, [usize; RANK_MAX], usize, NonNull<u8>, usize) {
    match (specs.get(index), views.get(index)) {
        (Some(spec), Some(view)) => {
            (spec.dtype, spec.dims(rows), spec.rank, view.data(), view.bytes())
        }
        _ => (gpulet_torch::Dtype::U8, [0; RANK_MAX], 1, NonNull::dangling(), 0),
    }
}

impl Instance for TorchInstance {
    fn run(
        &mut self,
        rows: u32,
        inputs: &[View<'_>],
        outputs: &[View<'_>],
    ) -> Result<Copied, RunError> {
        check_views(&self.model.inputs, rows, inputs);
        check_views(&self.model.outputs, rows, outputs);
        let given = self.inputs(rows, inputs);
        let mut room = self.outputs(rows, outputs);
        let report = self.module.run(&given[..inputs.len()], &mut room[..outputs.len()]);
        let report = report.map_err(run_error)?;
        Ok(Copied {
            input_bytes: report.input_bytes_copied,
            output_bytes: report.output_bytes_copied,
        })
    }

    fn form(&self) -> String {
        self.form.clone()
    }

    fn writes_in_place(&self) -> bool {
        self.writes_in_place
    }
}

fn run_error(error: Error) -> RunError {
    let status = match &error {
        Error::OutOfMemory { .. } => Status::ExecutorMemory,
        Error::ModelRaised { raised } => {
            tracing::debug!("the model raised: {}", raised.trace);
            Status::ModelError
        }
        _ => Status::ModelError,
    };
    RunError { status, text: error.to_string() }
}
