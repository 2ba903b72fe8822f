//! From the config's gpulets to the executors that host them.

use crate::config::{Config, DeviceName, Gpulet, Mechanism, Spin};
use crate::share::{CpuShare, allowed_cpus, cpu_shares};
use crate::wire::{Backend, Cuda, GpuletStart, Start};

/// An executor that should be: what it hosts, what it is told at its start, and what it finds in its
/// environment.
#[derive(Debug)]
pub(super) struct Wanted {
    /// In the order of `start.gpulets`.
    pub gpulets: Vec<Gpulet>,
    pub start: Start,
    pub environment: Vec<(String, String)>,
}

/// One executor for each gpulet, but one for all of those that split a device inside a process.
pub(super) fn wanted(config: &Config) -> Vec<Wanted> {
    let on_cpu = |gpulet: &&Gpulet| gpulet.mechanism == Mechanism::Cpu;
    let percents: Vec<u8> = config.gpulets.iter().filter(on_cpu).map(|it| it.share_pct).collect();
    let allowed = allowed_cpus().unwrap_or_default();
    let mut shares = cpu_shares(&percents, &allowed).into_iter().peekable();
    let mut all: Vec<Wanted> = Vec::new();
    for gpulet in &config.gpulets {
        let entry = GpuletStart { name: gpulet.name.clone(), share_pct: gpulet.share_pct };
        let mechanism = &gpulet.mechanism;
        let name = match split_device(mechanism) {
            Some(device) => {
                if let Some(host) = all.iter_mut().find(|it| it.gpulets[0].mechanism == *mechanism)
                {
                    host.gpulets.push(gpulet.clone());
                    host.start.gpulets.push(entry);
                    continue;
                }
                format!("{}:{device}", mechanism.word())
            }
            None => gpulet.name.clone(),
        };
        let whole = CpuShare { threads: 1, cpus: Vec::new() };
        let is_cpu = *mechanism == Mechanism::Cpu;
        let share = shares.next_if(|_| is_cpu).unwrap_or(whole);
        let (backend, environment) = backend(config, gpulet);
        let start = Start {
            executor: name,
            gpulets: vec![entry],
            backend,
            thread_count: share.threads,
            cpus: share.cpus,
            spin_ns: match config.spin {
                Spin::Always => 0,
                Spin::For { ns } => ns,
            },
        };
        all.push(Wanted { gpulets: vec![gpulet.clone()], start, environment });
    }
    all
}

/// The device whose gpulets are all hosted by one executor.
fn split_device(mechanism: &Mechanism) -> Option<&DeviceName> {
    match mechanism {
        Mechanism::Green { device } | Mechanism::Replay { device: Some(device), .. } => {
            Some(device)
        }
        Mechanism::Cpu | Mechanism::Mps { .. } | Mechanism::Replay { device: None, .. } => None,
    }
}

fn backend(config: &Config, gpulet: &Gpulet) -> (Backend, Vec<(String, String)>) {
    match &gpulet.mechanism {
        Mechanism::Cpu => {
            let (libtorch_dir, shim) = (config.libtorch_dir.clone(), config.torch_shim.clone());
            (Backend::Torch { libtorch_dir, shim }, Vec::new())
        }
        Mechanism::Replay { profiles_dir, .. } => {
            (Backend::Replay { profiles_dir: profiles_dir.clone() }, Vec::new())
        }
        Mechanism::Mps { device } => {
            let mut environment = sees(device);
            environment.extend(mps_client(config, gpulet.share_pct));
            (Backend::Cuda(cuda(config, false)), environment)
        }
        Mechanism::Green { device } => {
            let mut environment = sees(device);
            if config.mps.green {
                environment.extend(mps_client(config, 100));
            }
            (Backend::Cuda(cuda(config, true)), environment)
        }
    }
}

fn cuda(config: &Config, split: bool) -> Cuda {
    Cuda {
        libtorch_dir: config.libtorch_dir.clone(),
        shim: config.torch_shim.clone(),
        cuda_shim: config.cuda.shim.clone(),
        split,
        kernel_cache: config.cuda.kernel_cache.clone(),
        nvrtc: config.cuda.nvrtc.clone(),
    }
}

/// The process sees this device alone, and counts it as 0.
fn sees(device: &DeviceName) -> Vec<(String, String)> {
    let name = match device {
        DeviceName::Index(index) => index.to_string(),
        DeviceName::Uuid(uuid) => uuid.clone(),
    };
    // In the order of the bus, as NVML counts, not fastest first.
    let order = ("CUDA_DEVICE_ORDER", "PCI_BUS_ID".to_owned());
    [order, ("CUDA_VISIBLE_DEVICES", name)].map(|(name, value)| (name.to_owned(), value)).into()
}

/// The process's work goes through MPS, on so many percent of the multiprocessors. MPS reads this
/// when the process first uses CUDA, and nothing changes it later.
fn mps_client(config: &Config, share_pct: u8) -> [(String, String); 2] {
    let pipes = config.mps.pipe_dir().display().to_string();
    [("CUDA_MPS_PIPE_DIRECTORY", pipes), (PERCENTAGE, share_pct.to_string())]
        .map(|(name, value)| (name.to_owned(), value))
}

const PERCENTAGE: &str = "CUDA_MPS_ACTIVE_THREAD_PERCENTAGE";
