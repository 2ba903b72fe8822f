//! What gpulets do, alone and beside each other: which multiprocessors they run on, how long their
//! batches take, and how hard they press on what they share.
//!
//! One [`Bench`] is one process on one device. Who measures with several shares held by MPS has a
//! process for each.
//!
//! | module       | holds                                                               |
//! |--------------|---------------------------------------------------------------------|
//! | [`laps`]     | closed loops, all at once; no GPU in it                             |
//! | [`pressure`] | a kernel that presses on cache or memory                            |

pub mod laps;
pub mod pressure;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use gpulet_kernels::cuda::{self, Kernels, SmSet};
use serde::{Deserialize, Serialize};

use self::laps::{Lap, Runner, Until, together};
use self::pressure::{Memory, Pressing, Pressure, working_set_bytes};
use super::capture::{Extent, Runs};
use super::driver::{CudaError, Device, Event, Stream};
use super::gpu::{Cut, Division, Divisions, Gpu, GpuError, Options};
use super::loaded::Times;
use super::memory::DeviceMemory;
use super::{accuracy, load, local};
use crate::backend::buffer::BatchBuffer;
use crate::backend::{Instance, LoadError};
use crate::clock::now_ns;
use crate::model::{Model, Source};

/// Long enough for every multiprocessor of a device to get a block of the probe.
const PROBE_STAY_NS: u32 = 50_000;
/// Another kernel may fill a multiprocessor once, hardly each time.
const PROBES: usize = 3;
/// Work of one busy batch, whatever the share: half a millisecond of a whole H100.
const BUSY_BLOCKS: u32 = 4224;
const BUSY_ROUNDS: u32 = 4096;
/// A batch of nothing.
const IDLE: Duration = Duration::from_millis(5);
/// Inputs are the same at every start.
const SEED: u64 = 0x6c61_7073;

/// One gpulet's part in a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// Which gpulet.
    pub gpulet: usize,
    /// What it does.
    pub what: What,
}

/// What a gpulet does in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// Computes, and touches no memory.
    Busy,
    /// Batches of a model that was loaded, copies included.
    Model {
        /// As it was loaded.
        id: u32,
        /// Of each batch.
        rows: u32,
    },
    /// Reads memory as fast as it is told to.
    Pressure(Pressure),
}

/// What one part did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spell {
    /// Its batches.
    Laps(Vec<Lap>),
    /// What it had read, at which time in ns.
    Bytes(Vec<(u64, u64)>),
}

/// What is known of a model that was loaded.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Facts {
    /// How it runs, for people.
    pub form: String,
    /// Whether all its batch sizes are CUDA graphs.
    pub captured: bool,
    /// What its precision costs; `None` where that is no number.
    pub error: Option<f64>,
    /// Device memory that it takes on all gpulets together.
    pub memory_bytes: u64,
    /// All of the load.
    pub load_ns: u64,
    /// Reading the archive and bringing its weights to the device.
    pub place_ns: u64,
    /// First forwards.
    pub warm_up_ns: u64,
    /// Captures.
    pub capture_ns: u64,
}

/// A model on one gpulet, with memory for its batches.
struct Placed {
    instance: Box<dyn Instance>,
    // After the instance, which has pinned it.
    buffer: BatchBuffer,
    rows_max: u32,
}

/// A device that is measured.
pub struct Bench {
    /// By the model's id and the gpulet.
    placed: HashMap<(u32, usize), Placed>,
    working_sets: HashMap<Memory, DeviceMemory>,
    division: Arc<Division>,
    gpu: Arc<Gpu>,
}

impl Bench {
    /// Opens device 0 of those that this process sees, and cuts it.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(options: &Options) -> Result<Bench, GpuError> {
        let (gpu, division) = Gpu::open(options)?;
        let (gpu, division) = (Arc::new(gpu), Arc::new(division));
        Ok(Bench { placed: HashMap::new(), working_sets: HashMap::new(), division, gpu })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Its gpulets.
    pub fn division(&self) -> &Division {
        &self.division
    }

    /// The multiprocessors that each gpulet runs on.
    ///
    /// # Errors
    /// What CUDA says, or that there are no kernels.
    pub fn probe(&self) -> Result<Vec<SmSet>, String> {
        let probe = |index| self.probe_one(index).map_err(|error: CudaError| error.to_string());
        (0..self.division.cuts.len()).map(probe).collect()
    }

    fn probe_one(&self, index: usize) -> Result<SmSet, CudaError> {
        let kernels = self.gpu.kernels.as_deref().ok_or_else(CudaError::no_kernels)?;
        let (stream, bitmap) =
            (self.division.cuts[index].stream()?, DeviceMemory::new(SmSet::BYTES)?);
        // As many blocks as the device holds: a gpulet that had more than it should would show it.
        let on = cuda::Stream { raw: stream.raw().cast(), sm_count: self.gpu.device.sm_count };
        for _ in 0..PROBES {
            // SAFETY: zeroed memory of this function, which waits for the end.
            unsafe { kernels.probe(on, bitmap.address(), PROBE_STAY_NS) }
                .map_err(CudaError::of_kernel)?;
            stream.wait()?;
        }
        let mut bytes = [0; SmSet::BYTES];
        stream.copy_out_now(bitmap.address(), &mut bytes)?;
        Ok(SmSet::from_bytes(&bytes))
    }

    /// Puts a model on every gpulet, under a number of the caller's choice.
    ///
    /// # Errors
    /// [`LoadError`].
    pub fn load(&mut self, id: u32, model: &Model) -> Result<Facts, LoadError> {
        if let Source::Builtin(_) = model.source {
            return Err(LoadError::model(model, "is built in: only archives are measured"));
        }
        let divisions = Divisions::of(Arc::clone(&self.division));
        let how = (Extent::Whole, Runs::alone(1));
        let loaded = load::load(&self.gpu, &divisions, model, &|_| (), how)?;
        let Times { load_ns, place_ns, warm_up_ns, capture_ns } = loaded.times;
        let facts = Facts {
            form: loaded.form(),
            captured: loaded.is_captured(),
            error: Some(loaded.weights.error).filter(|error| error.is_finite()),
            memory_bytes: loaded.memory_bytes,
            load_ns,
            place_ns,
            warm_up_ns,
            capture_ns,
        };
        for (gpulet, mut instance) in local::on_each(loaded)?.into_iter().enumerate() {
            let mut buffer = BatchBuffer::new(model)?;
            fill(model, &mut buffer);
            // SAFETY: the buffer is dropped after the instance, in `Placed`.
            unsafe { instance.pin(buffer.whole()) };
            let rows_max = model.max_batch;
            self.placed.insert((id, gpulet), Placed { instance, buffer, rows_max });
        }
        Ok(facts)
    }

    /// Takes a model off again.
    pub fn unload(&mut self, id: u32) {
        self.placed.retain(|(placed, _), _| *placed != id);
        // What is left in libtorch's pools would be counted as another model's.
        if let Err(error) = self.gpu.cuda.trim() {
            tracing::warn!("{error}");
        }
    }

    /// Runs all parts at once.
    ///
    /// # Errors
    /// What is wrong with a part, or went wrong.
    pub fn run(&mut self, parts: &[Part], until: &Until) -> Result<Vec<Spell>, String> {
        let text = |error: CudaError| error.to_string();
        if let Some(part) = parts.iter().find(|part| part.gpulet >= self.division.cuts.len()) {
            return Err(format!("there is no gpulet {}", part.gpulet));
        }
        self.allocate_working_sets(parts).map_err(text)?;
        let (gpu, division) = (Arc::clone(&self.gpu), Arc::clone(&self.division));
        let mut runners: Vec<Box<dyn Runner + '_>> = Vec::new();
        let mut placed: HashMap<(u32, usize), &mut Placed> =
            self.placed.iter_mut().map(|(key, placed)| (*key, placed)).collect();
        for part in parts {
            match part.what {
                What::Busy => {
                    let busy = Busy::new(&gpu, &division.cuts[part.gpulet]);
                    runners.push(Box::new(busy.map_err(text)?));
                }
                What::Model { id, rows } => {
                    let missing = || format!("model {id} is not on gpulet {}", part.gpulet);
                    let placed = placed.remove(&(id, part.gpulet)).ok_or_else(missing)?;
                    if rows == 0 || rows > placed.rows_max {
                        return Err(format!("model {id} takes 1 to {} rows", placed.rows_max));
                    }
                    runners.push(Box::new(Batches { device: &gpu.device, placed, rows }));
                }
                What::Pressure(_) => {}
            }
        }
        let mut pressing = Vec::new();
        for part in parts {
            if let What::Pressure(pressure) = &part.what {
                let it = Pressing::new(&division.cuts[part.gpulet], pressure).map_err(text)?;
                pressing.push((it, *pressure, Vec::new()));
            }
        }
        // From here on nothing allocates on the device: that would wait for these to end.
        for (it, pressure, _) in &pressing {
            let kernels = gpu.kernels.as_deref().ok_or_else(CudaError::no_kernels).map_err(text)?;
            let working_set = &self.working_sets[&pressure.memory];
            // SAFETY: `pressing` is gone when this function is left, the sets stay.
            unsafe { it.launch(kernels, pressure, working_set) }.map_err(text)?;
        }
        if runners.is_empty() {
            runners.push(Box::new(Idle));
        }
        let laps = together(&mut runners, until, || {
            for (pressing, _, samples) in &mut pressing {
                samples.push((now_ns(), pressing.bytes()));
            }
        });
        drop(runners);
        let mut laps = laps?.into_iter();
        let mut bytes = pressing.into_iter().map(|(_, _, samples)| samples);
        let spell = |part: &Part| match part.what {
            What::Pressure(_) => Spell::Bytes(bytes.next().unwrap_or_default()),
            _ => Spell::Laps(laps.next().unwrap_or_default()),
        };
        Ok(parts.iter().map(spell).collect())
    }

    fn allocate_working_sets(&mut self, parts: &[Part]) -> Result<(), CudaError> {
        for part in parts {
            let What::Pressure(Pressure { memory, .. }) = part.what else { continue };
            if !self.working_sets.contains_key(&memory) {
                let bytes = working_set_bytes(memory, self.gpu.device.l2_bytes()?);
                self.working_sets.insert(memory, DeviceMemory::new(bytes as usize)?);
            }
        }
        Ok(())
    }
}

fn fill(model: &Model, buffer: &mut BatchBuffer) {
    let mut random = fastrand::Rng::with_seed(SEED);
    for (index, tensor) in model.inputs.iter().enumerate() {
        let room = buffer.input_mut(index, model.max_batch);
        let (dtype, dims) = (tensor.dtype.0, &tensor.dims);
        let sample = accuracy::sample(dtype, dims, tensor.range, model.max_batch, &mut random);
        room.copy_from_slice(&sample);
    }
}

/// Batches of a model.
struct Batches<'a> {
    device: &'a Device,
    placed: &'a mut Placed,
    rows: u32,
}

impl Runner for Batches<'_> {
    fn enter(&mut self) -> Result<(), String> {
        self.device.bind().map_err(|error| error.to_string())
    }

    fn batch(&mut self) -> Result<(), String> {
        let tensors = self.placed.buffer.tensors(self.rows);
        let run = self.placed.instance.run(self.rows, tensors.inputs(), tensors.outputs());
        run.map(drop).map_err(|error| error.text)
    }
}

/// Keeps the time where there is nothing but pressure.
struct Idle;

impl Runner for Idle {
    fn enter(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn batch(&mut self) -> Result<(), String> {
        std::thread::sleep(IDLE);
        Ok(())
    }
}

/// Batches that only compute.
struct Busy<'a> {
    device: &'a Device,
    kernels: Arc<Kernels>,
    stream: Stream,
    done: Event,
    sm_count: u32,
}

impl Busy<'_> {
    fn new<'a>(gpu: &'a Gpu, cut: &Cut) -> Result<Busy<'a>, CudaError> {
        Ok(Busy {
            device: &gpu.device,
            kernels: gpu.kernels.clone().ok_or_else(CudaError::no_kernels)?,
            stream: cut.stream()?,
            done: Event::new()?,
            sm_count: cut.sm_count,
        })
    }

    fn queue(&self) -> Result<(), CudaError> {
        let on = cuda::Stream { raw: self.stream.raw().cast(), sm_count: self.sm_count };
        // SAFETY: a stream of ours.
        unsafe { self.kernels.busy(on, BUSY_BLOCKS, BUSY_ROUNDS) }.map_err(CudaError::of_kernel)?;
        self.done.record(&self.stream)
    }
}

impl Runner for Busy<'_> {
    fn enter(&mut self) -> Result<(), String> {
        self.device.bind().map_err(|error| error.to_string())
    }

    fn batch(&mut self) -> Result<(), String> {
        self.queue().map_err(|error| error.to_string())?;
        while !self.done.is_done().map_err(|error| error.to_string())? {
            std::hint::spin_loop();
        }
        Ok(())
    }
}
