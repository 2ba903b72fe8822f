//! The shim alone: a thread of this process that does what an executor does, without any of it.

use std::fs;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use gpulet_abi::region::Mapping;
use gpulet_abi::tensor::{Extent, SlotLayout};
use gpulet_client::{Dtype, ModelSpec, TensorSpec};
use gpulet_torch::{Module, TensorMut, TensorRef, Torch};
use rustix::thread::CpuSet;

use super::{Contender, round_of};
use crate::error::{Doing, Error};
use crate::input::fill;
use crate::stats::Round;

/// As many as an executor makes before a model is ready, by the model.toml of every model here.
const WARMUP_COUNT: usize = 3;

enum Order {
    Outputs,
    Round(u32),
}

enum Done {
    Outputs(Vec<Vec<u8>>),
    Round(Round),
}

/// The thread, seen from outside.
pub struct Alone {
    orders: Sender<Order>,
    done: Receiver<Result<Done, Error>>,
}

impl Alone {
    /// Loads the model in `folder` on a thread bound to `cpus`, with as many threads, and warms
    /// it up.
    ///
    /// # Errors
    /// The first order returns what went wrong.
    pub fn start(
        folder: &Path,
        spec: &ModelSpec,
        rows: u32,
        cpus: Vec<u32>,
    ) -> Result<Alone, Error> {
        let archive = archive(folder)?;
        let (orders, received) = channel();
        let (sender, done) = channel();
        let spec = *spec;
        thread::Builder::new()
            .name("alone".to_owned())
            .spawn(move || {
                let result = Bench::new(&archive, &spec, rows, &cpus)
                    .and_then(|mut bench| serve(&mut bench, &received, &sender));
                if let Err(error) = result {
                    // Nobody listens only when the bench has ended.
                    let _ = sender.send(Err(error));
                }
            })
            .doing("starting a thread")?;
        Ok(Alone { orders, done })
    }

    fn ask(&self, order: Order) -> Result<Done, Error> {
        // A thread that ended has sent its error before, so only the answer counts.
        let _ = self.orders.send(order);
        self.done.recv().map_err(|_| Error::failed("the shim alone", "its thread ended"))?
    }
}

impl Contender for Alone {
    fn outputs(&mut self) -> Result<Vec<Vec<u8>>, Error> {
        match self.ask(Order::Outputs)? {
            Done::Outputs(outputs) => Ok(outputs),
            Done::Round(_) => Err(Error::failed("the shim alone", "answered something else")),
        }
    }

    fn round(&mut self, count: u32) -> Result<Round, Error> {
        match self.ask(Order::Round(count))? {
            Done::Round(round) => Ok(round),
            Done::Outputs(_) => Err(Error::failed("the shim alone", "answered something else")),
        }
    }
}

fn serve(
    bench: &mut Bench,
    orders: &Receiver<Order>,
    done: &Sender<Result<Done, Error>>,
) -> Result<(), Error> {
    while let Ok(order) = orders.recv() {
        let answer = match order {
            Order::Outputs => {
                bench.run()?;
                Done::Outputs(bench.outputs())
            }
            Order::Round(count) => Done::Round(round_of(count, || bench.run())?),
        };
        if done.send(Ok(answer)).is_err() {
            break;
        }
    }
    Ok(())
}

#[derive(serde::Deserialize)]
struct ModelFile {
    file: String,
}

/// The bytes of the archive that the model.toml in `folder` names.
fn archive(folder: &Path) -> Result<Vec<u8>, Error> {
    let path = folder.join("model.toml");
    let text = fs::read_to_string(&path).doing(&format!("reading {}", path.display()))?;
    let model: ModelFile = toml::from_str(&text)
        .map_err(|why| Error::failed(path.display().to_string(), why.message()))?;
    let path = folder.join(model.file);
    fs::read(&path).doing(&format!("reading {}", path.display()))
}

/// The model with its memory.
struct Bench {
    module: Module,
    memory: Mapping,
    layout: SlotLayout,
    spec: ModelSpec,
    rows: u32,
}

impl Bench {
    fn new(archive: &[u8], spec: &ModelSpec, rows: u32, cpus: &[u32]) -> Result<Bench, Error> {
        let mut set = CpuSet::new();
        cpus.iter().for_each(|cpu| set.set(*cpu as usize));
        // First of all, so that the threads that libtorch starts inherit it.
        rustix::thread::sched_setaffinity(None, &set).doing("binding to CPUs")?;
        let torch = Torch::open(&gpulet_torch::Options::default())
            .map_err(|why| Error::failed("libtorch", why))?;
        torch.set_threads(cpus.len() as u32).map_err(failed)?;
        let mut module = Module::load_buffer(&torch, archive).map_err(failed)?;
        let _ = module.optimise_for_inference();
        let layout = SlotLayout::of_spec(spec, rows)
            .ok_or_else(|| Error::failed("the shim alone", "so many rows have no layout"))?;
        // The same kind of memory as a slot's.
        let (memory, _) = Mapping::create("gpulet-bench", layout.bytes(), layout.bytes())
            .doing("making memory")?;
        let mut bench = Bench { module, memory, layout, spec: *spec, rows };
        for index in 0..bench.layout.inputs().len() {
            let extent = bench.layout.inputs()[index];
            let dtype = bench.spec.inputs[index].dtype();
            fill(bench.bytes_mut(extent), dtype, index as u64);
        }
        for _ in 0..WARMUP_COUNT {
            bench.run()?;
        }
        Ok(bench)
    }

    fn bytes_mut(&mut self, extent: Extent) -> &mut [u8] {
        let data = self.memory.payload(extent.offset as usize, extent.bytes as usize);
        // SAFETY: `payload` checked that it is mapped; the memfd was never handed to anyone, and
        // `self` is borrowed meanwhile.
        unsafe { std::slice::from_raw_parts_mut(data.as_ptr(), extent.bytes as usize) }
    }

    fn outputs(&mut self) -> Vec<Vec<u8>> {
        let extents = self.layout.outputs().to_vec();
        extents.into_iter().map(|extent| self.bytes_mut(extent).to_vec()).collect()
    }

    fn run(&mut self) -> Result<(), Error> {
        let tensors = |specs: &[TensorSpec], extents: &[Extent]| {
            let pairs = specs.iter().zip(extents);
            pairs.map(|(spec, extent)| self.parts(spec, *extent)).collect::<Result<Vec<_>, _>>()
        };
        let inputs = tensors(&self.spec.inputs, self.layout.inputs())?;
        let outputs = tensors(&self.spec.outputs, self.layout.outputs())?;
        let inputs = inputs.iter().map(|(dtype, dims, data, len)| {
            // SAFETY: mapped as long as `self`, and only this thread knows of it.
            unsafe { TensorRef::from_raw(*dtype, dims, *data, *len) }
        });
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        let outputs = outputs.iter().map(|(dtype, dims, data, len)| {
            // SAFETY: as above; outputs do not overlap inputs in a layout.
            unsafe { TensorMut::from_raw(*dtype, dims, *data, *len) }
        });
        let mut outputs = outputs.collect::<Result<Vec<_>, _>>().map_err(failed)?;
        self.module.run(&inputs, &mut outputs).map(drop).map_err(failed)
    }

    fn parts(&self, spec: &TensorSpec, extent: Extent) -> Result<Parts, Error> {
        let bad = || Error::failed("the shim alone", "the model's description is malformed");
        let dtype = spec.dtype().ok_or_else(bad)?;
        let mut dims: Vec<usize> = spec
            .dims()
            .ok_or_else(bad)?
            .iter()
            .map(|dim| usize::try_from(*dim).unwrap_or_default())
            .collect();
        dims[0] = self.rows as usize;
        let len = extent.bytes as usize;
        let data = self.memory.payload(extent.offset as usize, len);
        Ok((torch_dtype(dtype), dims, data.as_ptr(), len))
    }
}

type Parts = (gpulet_torch::Dtype, Vec<usize>, *mut u8, usize);

fn torch_dtype(dtype: Dtype) -> gpulet_torch::Dtype {
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

fn failed(why: impl std::fmt::Display) -> Error {
    Error::failed("libtorch", why)
}
