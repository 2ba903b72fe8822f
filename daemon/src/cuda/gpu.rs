//! The device of an executor, libtorch on it, and how it is divided among the executor's gpulets.

use std::collections::HashMap;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use gpulet_kernels::cuda::{Arch, Cubin, Kernels};
use gpulet_torch::cuda::{Cuda, CudaOpenError};

use super::courtesy::give_way;
use super::driver::{CudaError, Device, DeviceError, Stream};
use super::green::{Green, Split, places};

/// What opening needs to know.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where libtorch is; default: as the shim was built.
    pub libtorch_dir: Option<PathBuf>,
    /// Where our shim is; default: beside the executable.
    pub shim: Option<PathBuf>,
    /// Where its CUDA half is; default: beside the executable.
    pub cuda_shim: Option<PathBuf>,
    /// Where compiled kernels are kept; without, there are none, and every copy is a DMA copy.
    pub kernel_cache: Option<PathBuf>,
    /// NVRTC, or a folder that it is found from; default: torch's.
    pub nvrtc: Option<PathBuf>,
    /// The percentage of each gpulet where the device is to be cut into green contexts; empty for
    /// one gpulet that has everything this process sees, always.
    pub shares_pct: Vec<u8>,
    /// Somebody serves on this device meanwhile, and is not to be late for it.
    pub beside: bool,
}

/// Why there is no GPU to run models on.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// The device.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// A call into the driver.
    #[error(transparent)]
    Cuda(#[from] CudaError),
    /// libtorch or our shim.
    #[error("{0}")]
    Torch(#[from] gpulet_torch::OpenError),
    /// A setting of libtorch's.
    #[error("{0}")]
    Threads(#[from] gpulet_torch::Error),
    /// libtorch's CUDA half, or ours.
    #[error("{0}")]
    TorchCuda(#[from] CudaOpenError),
    /// More gpulets than parts.
    #[error("{gpulets} gpulets on a device that can be cut into {groups} parts")]
    TooManyGpulets {
        /// Asked for.
        gpulets: usize,
        /// What there is.
        groups: u32,
    },
}

/// A device with libtorch on it.
pub struct Gpu {
    /// The device.
    pub device: Device,
    /// libtorch.
    pub torch: gpulet_torch::Torch,
    /// Its CUDA half.
    pub cuda: Cuda,
    /// Our kernels, where there is a compiler for them.
    pub kernels: Option<Arc<Kernels>>,
    /// Where it can be divided in several ways.
    pub split: Option<Split>,
    /// A model was to be loaded.
    pub(super) has_loaded: AtomicBool,
    /// By first group and how many.
    cuts: Mutex<HashMap<(u32, u32), Arc<Cut>>>,
}

/// One division of a device among gpulets.
pub struct Division {
    /// Never given to another in this process.
    pub number: u64,
    /// What each gpulet has of the device.
    pub cuts: Vec<Arc<Cut>>,
}

/// The divisions on which models are to be ready: the present one first, then the next, if there is
/// one.
#[derive(Clone, Default)]
pub struct Divisions(Arc<Mutex<Vec<Arc<Division>>>>);

/// What one gpulet has of the device. It stays for the next who gets the same: the driver keeps 4 MiB
/// of a green context that goes.
pub struct Cut {
    /// Those that libtorch has worked on, for as long as the process: to unmap memory it waits for the
    /// stream that the memory was for, though nobody has used it for long.
    streams: Mutex<Vec<Arc<Stream>>>,
    green: Option<Green>,
    /// Multiprocessors.
    pub sm_count: u32,
}

/// A stream that libtorch may work on. For each that it has seen it keeps memory, which what was
/// captured on the stream uses; that can be given back when this is dropped. The stream stays, for the
/// next who wants one.
pub struct TorchStream {
    stream: Arc<Stream>,
    cuda: Cuda,
}

impl Gpu {
    /// Opens device 0 of those that this process sees, and divides it.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(options: &Options) -> Result<(Gpu, Division), GpuError> {
        let (libtorch_dir, shim) = (options.libtorch_dir.clone(), options.shim.clone());
        let how = gpulet_torch::Options { libtorch_dir, shim, cuda: true };
        // Each takes a quarter of a second: loading libraries, and making a context.
        let (device, torch) = thread::scope(|scope| {
            let torch = scope.spawn(|| {
                if options.beside {
                    give_way();
                }
                gpulet_torch::Torch::open(&how)
            });
            let device = Device::open(0);
            (device, torch.join().unwrap_or_else(|panic| resume_unwind(panic)))
        });
        let (device, torch) = (device?, torch?);
        // Models run on the device. What is done to them here before would take all CPUs from those who
        // serve.
        torch.set_threads(1)?;
        let cuda = Cuda::open(&torch, options.cuda_shim.as_deref(), 0)?;
        let splits = !options.shares_pct.is_empty();
        let split = splits.then(|| Split::new(&device)).transpose()?;
        let kernels = kernels(&device, &torch, options);
        let (has_loaded, cuts) = (AtomicBool::new(false), Mutex::default());
        let gpu = Gpu { device, torch, cuda, kernels, split, has_loaded, cuts };
        let division = gpu.divide(0, &options.shares_pct)?;
        Ok((gpu, division))
    }

    /// Cuts the device among gpulets of so many percent each. Takes a millisecond or two for each cut
    /// that there never was.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn divide(&self, number: u64, shares_pct: &[u8]) -> Result<Division, GpuError> {
        let Some(split) = &self.split else {
            let cuts = vec![Arc::new(Cut::of(None, self.device.sm_count))];
            return Ok(Division { number, cuts });
        };
        let places = self.places(split, shares_pct)?.into_iter();
        let cuts: Result<_, CudaError> = places.map(|place| self.cut(split, place)).collect();
        Ok(Division { number, cuts: cuts? })
    }

    fn cut(&self, split: &Split, (first, count): (u32, u32)) -> Result<Arc<Cut>, CudaError> {
        let mut cuts = self.cuts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cut) = cuts.get(&(first, count)) {
            return Ok(Arc::clone(cut));
        }
        let green = split.part(&self.device, first, count)?;
        let sm_count = green.sm_count;
        let cut = Arc::new(Cut::of(Some(green), sm_count));
        cuts.insert((first, count), Arc::clone(&cut));
        Ok(cut)
    }

    /// Which groups of a split gpulets of so many percent each get.
    ///
    /// # Errors
    /// [`GpuError::TooManyGpulets`].
    pub(super) fn places(
        &self,
        split: &Split,
        shares_pct: &[u8],
    ) -> Result<Vec<(u32, u32)>, GpuError> {
        let (gpulets, groups) = (shares_pct.len(), split.group_count());
        places(shares_pct, groups).ok_or(GpuError::TooManyGpulets { gpulets, groups })
    }

    /// For people.
    pub fn describe(&self, division: &Division) -> String {
        let cuts = division.cuts.iter();
        let counts: Vec<String> = cuts.map(|cut| cut.sm_count.to_string()).collect();
        let how = if self.split.is_some() { " in green contexts" } else { "" };
        format!("libtorch {} on CUDA, {} SMs{how}", self.torch.version(), counts.join(" + "))
    }
}

impl Divisions {
    /// That one alone.
    pub fn of(division: Arc<Division>) -> Divisions {
        Divisions(Arc::new(Mutex::new(vec![division])))
    }

    /// All of them.
    pub fn all(&self) -> Vec<Arc<Division>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether models are to be ready on it.
    pub fn contains(&self, number: u64) -> bool {
        self.all().iter().any(|division| division.number == number)
    }

    /// One more.
    pub fn add(&self, division: Arc<Division>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(division);
    }

    /// One less.
    pub fn remove(&self, number: u64) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Not under the lock: its streams and contexts may end with it.
        let gone = all.iter().position(|it| it.number == number).map(|index| all.remove(index));
        drop(all);
        drop(gone);
    }
}

impl Deref for TorchStream {
    type Target = Stream;

    fn deref(&self) -> &Stream {
        &self.stream
    }
}

impl Drop for TorchStream {
    fn drop(&mut self) {
        // After an error there is no work any more.
        let _ = self.stream.wait();
        // SAFETY: its work is done, and graphs are dropped before what they were captured on.
        if let Err(error) = unsafe { self.cuda.forget(self.stream.raw()) } {
            tracing::warn!("a stream's workspaces: {error}");
        }
    }
}

/// Compiles our kernels, or says why there are none: all but pictures works without.
fn kernels(
    device: &Device,
    torch: &gpulet_torch::Torch,
    options: &Options,
) -> Option<Arc<Kernels>> {
    let cache = options.kernel_cache.as_deref()?;
    let torch = torch.libtorch().parent().and_then(Path::parent);
    let nvrtc = options.nvrtc.as_deref().or(torch);
    let load = || -> Result<Kernels, String> {
        let arch = Arch::of(device.handle).map_err(|error| error.to_string())?;
        let cubin = Cubin::compile(arch, cache, nvrtc).map_err(|error| error.to_string())?;
        tracing::info!(%arch, origin = ?cubin.origin(), "kernels");
        Kernels::load(&cubin).map_err(|error| error.to_string())
    };
    match load() {
        Ok(kernels) => Some(Arc::new(kernels)),
        Err(error) => {
            tracing::warn!("no kernels of our own: {error}");
            None
        }
    }
}

impl Cut {
    fn of(green: Option<Green>, sm_count: u32) -> Cut {
        Cut { streams: Mutex::default(), green, sm_count }
    }

    /// A stream whose work runs on this cut alone.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn stream(&self) -> Result<Stream, CudaError> {
        match &self.green {
            Some(green) => green.stream(),
            None => Stream::new(),
        }
    }

    /// A stream of it that libtorch may work on, one that nobody has.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn torch_stream(&self, cuda: &Cuda) -> Result<TorchStream, CudaError> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let mut all = streams.iter_mut();
        let idle = all.find_map(|it| Arc::get_mut(it).is_some().then(|| Arc::clone(it)));
        let stream = match idle {
            Some(stream) => stream,
            None => {
                let stream = Arc::new(self.stream()?);
                streams.push(Arc::clone(&stream));
                stream
            }
        };
        Ok(TorchStream { stream, cuda: *cuda })
    }
}
