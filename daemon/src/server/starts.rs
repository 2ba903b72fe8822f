//! From the config's gpulets to the executors that host them.

use super::devices::{Devices, needs_cuda};
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
    /// Its fault domain.
    pub device: Option<String>,
}

/// One executor for each gpulet, but one for all of those that split a device inside a process.
pub(super) fn wanted(config: &Config, devices: &Devices) -> Vec<Wanted> {
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
        let backend = backend(config, gpulet);
        let environment = devices.environment(config, gpulet);
        let start = Start {
            executor: name,
            gpulets: vec![entry],
            backend,
            thread_count: share.threads,
            cpus: share.cpus,
            spin_ns: match config.spin {
                // A CPU's models need the CPU that would be polling.
                Spin::Always if !needs_cuda(mechanism) => 0,
                spin => spin.ns(),
            },
            beside: false,
        };
        let device = devices.domain(gpulet);
        all.push(Wanted { gpulets: vec![gpulet.clone()], start, environment, device });
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

fn backend(config: &Config, gpulet: &Gpulet) -> Backend {
    match &gpulet.mechanism {
        Mechanism::Cpu => Backend::Torch {
            libtorch_dir: config.libtorch_dir.clone(),
            shim: config.torch_shim.clone(),
        },
        Mechanism::Replay { profiles_dir, .. } => {
            Backend::Replay { profiles_dir: profiles_dir.clone() }
        }
        Mechanism::Mps { .. } => Backend::Cuda(cuda(config, false)),
        Mechanism::Green { .. } => Backend::Cuda(cuda(config, true)),
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
