//! The device of an executor, libtorch on it, and how it is cut among the executor's gpulets.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gpulet_kernels::cuda::{Arch, Cubin, Kernels};
use gpulet_torch::cuda::{Cuda, CudaOpenError};

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
    /// one gpulet that has everything this process sees.
    pub shares_pct: Vec<u8>,
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
    /// What each gpulet has of the device.
    pub cuts: Vec<Cut>,
}

/// What one gpulet has of the device.
pub struct Cut {
    green: Option<Green>,
    /// Multiprocessors.
    pub sm_count: u32,
    /// Streams for loading models. cuBLAS keeps a workspace a stream for ever, and what was captured
    /// on a stream uses it, so a model has a stream of its own while it is loaded, and then
    /// another model gets it.
    spare: Mutex<Vec<Stream>>,
}

impl Gpu {
    /// Opens device 0 of those that this process sees.
    ///
    /// # Errors
    /// [`GpuError`].
    pub fn open(options: &Options) -> Result<Gpu, GpuError> {
        let device = Device::open(0)?;
        let (libtorch_dir, shim) = (options.libtorch_dir.clone(), options.shim.clone());
        let torch =
            gpulet_torch::Torch::open(&gpulet_torch::Options { libtorch_dir, shim, cuda: true })?;
        let cuda = Cuda::open(&torch, options.cuda_shim.as_deref(), 0)?;
        let cuts = cut(&device, &options.shares_pct)?;
        let kernels = kernels(&device, &torch, options);
        Ok(Gpu { device, torch, cuda, kernels, cuts })
    }

    /// For people.
    pub fn describe(&self) -> String {
        let counts: Vec<String> = self.cuts.iter().map(|cut| cut.sm_count.to_string()).collect();
        let how = if self.cuts[0].green.is_some() { " in green contexts" } else { "" };
        format!("libtorch {} on CUDA, {} SMs{how}", self.torch.version(), counts.join(" + "))
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

fn cut(device: &Device, shares_pct: &[u8]) -> Result<Vec<Cut>, GpuError> {
    let cut = |green: Option<Green>, sm_count| Cut { green, sm_count, spare: Mutex::default() };
    if shares_pct.is_empty() {
        return Ok(vec![cut(None, device.sm_count)]);
    }
    let split = Split::new(device)?;
    let (gpulets, groups) = (shares_pct.len(), split.group_count());
    let places = places(shares_pct, groups).ok_or(GpuError::TooManyGpulets { gpulets, groups })?;
    let mut cuts = Vec::new();
    for (first, count) in places {
        let green = split.part(device, first, count)?;
        let sm_count = green.sm_count;
        cuts.push(cut(Some(green), sm_count));
    }
    Ok(cuts)
}

impl Cut {
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

    /// A stream for loading one model, to be [given back](Self::give_back) when it is unloaded.
    pub(super) fn borrow_stream(&self) -> Result<Stream, CudaError> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.map_or_else(|| self.stream(), Ok)
    }

    pub(super) fn give_back(&self, stream: Stream) {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
    }
}
