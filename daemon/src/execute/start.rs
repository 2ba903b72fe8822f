//! What an executor does before its first batch.

use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};

use gpulet_abi::doorbell::Doorbell;
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::control::{self, Control, Heard};
use super::{Daemon, ExecuteError, io_error};
use crate::backend::replay::Replay;
use crate::backend::{Backend, loading};
use crate::cuda::gpu::{Division, Gpu, Options};
use crate::wire::{self, EXECUTOR_GPULETS_MAX, FromExecutor, Link, Start, ToExecutor};

static NAME: OnceLock<String> = OnceLock::new();

/// The executor's name once it is known, for logs.
pub fn name() -> &'static str {
    NAME.get().map_or("-", String::as_str)
}

/// What an executor's models will run on.
pub enum Ready {
    /// This host.
    Host(Box<dyn Backend>),
    /// Nothing.
    Replay(Replay),
    /// A GPU.
    Cuda(Arc<Gpu>, Arc<Division>),
}

impl Ready {
    fn describe(&self) -> String {
        match self {
            Ready::Host(backend) => backend.describe(),
            Ready::Replay(replay) => replay.describe(),
            Ready::Cuda(gpu, division) => gpu.describe(division),
        }
    }
}

/// An executor that has told its daemon that it started.
pub struct Started {
    /// Commands come through it, reports go.
    pub link: Link,
    /// Rung by the daemon for commands.
    pub command_bell: Doorbell,
    /// Rung for the daemon for reports.
    pub report_bell: Doorbell,
    /// Gpulets that commands may name.
    pub gpulet_count: u32,
    /// The share of each.
    pub shares_pct: Vec<u8>,
    /// How long to poll before sleeping.
    pub spin_ns: u64,
}

/// Ties this process to its daemon, waits for [`Start`] and does as it says; `None` if the daemon
/// is gone. Call it before other threads exist.
///
/// # Errors
/// [`ExecuteError`].
pub fn start(control: &Control) -> Result<Option<(Started, Ready)>, ExecuteError> {
    outlive_nobody()?;
    let heard = control.wait().map_err(|error| match error.raw_os_error() {
        Some(code) if code == rustix::io::Errno::NOTSOCK.raw_os_error() => ExecuteError::NoDaemon,
        _ => ExecuteError::Io { what: "control socket", source: error },
    })?;
    let (start, fds) = match heard {
        Heard::Message(ToExecutor::Start(start), fds) => (start, fds),
        Heard::HangUp => return Ok(None),
        other => {
            return Err(ExecuteError::Protocol(format!("{other:?} came before the start")));
        }
    };
    let Ok([link, command_bell, report_bell]) = <[OwnedFd; 3]>::try_from(fds) else {
        return Err(ExecuteError::Protocol("start: three descriptors must come with it".into()));
    };
    let _ = NAME.set(start.executor.clone());
    let link = Link::attach(link)?;
    let ready = match prepare(&start) {
        Ok(ready) => ready,
        Err(error) => {
            let message = FromExecutor::StartFailed { error: control::cut(error.clone()) };
            control.send(&message).map_err(io_error("control socket"))?;
            return Err(ExecuteError::Start(error));
        }
    };
    let started = FromExecutor::Started { backend: ready.describe() };
    tracing::info!(backend = ready.describe(), "executor started");
    if control.send(&started).map_err(io_error("control socket"))? == Daemon::Gone {
        return Ok(None);
    }
    let started = Started {
        link,
        command_bell: command_bell.into(),
        report_bell: report_bell.into(),
        gpulet_count: start.gpulets.len() as u32,
        shares_pct: start.gpulets.iter().map(|gpulet| gpulet.share_pct).collect(),
        spin_ns: start.spin_ns,
    };
    Ok(Some((started, ready)))
}

/// The kernel kills this process when its daemon dies, even while a model runs.
fn outlive_nobody() -> Result<(), ExecuteError> {
    // A daemon that died before this line is not noticed by the kernel, but it hung up: `wait` sees
    // that, as sockets are closed before children are given to another parent.
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| io_error("prctl")(errno.into()))?;
    Ok(())
}

/// CPUs first: threads that libtorch starts inherit them.
fn prepare(start: &Start) -> Result<Ready, String> {
    let count = start.gpulets.len();
    if count == 0 || count > EXECUTOR_GPULETS_MAX {
        return Err(format!("gpulets: must be 1 to {EXECUTOR_GPULETS_MAX}, are {count}"));
    }
    if start.thread_count == 0 {
        return Err("thread_count: must be at least 1, is 0".to_owned());
    }
    if !start.cpus.is_empty() {
        let mut cpus = CpuSet::new();
        for &cpu in &start.cpus {
            if cpu as usize >= CpuSet::MAX_CPU {
                return Err(format!("cpus: must be below {}, one is {cpu}", CpuSet::MAX_CPU));
            }
            cpus.set(cpu as usize);
        }
        sched_setaffinity(None, &cpus)
            .map_err(|errno| format!("cpus: {:?}: {errno}", start.cpus))?;
    }
    if let wire::Backend::Cuda(cuda) = &start.backend {
        let shares_pct = start.gpulets.iter().map(|gpulet| gpulet.share_pct);
        let options = Options {
            libtorch_dir: cuda.libtorch_dir.clone(),
            shim: cuda.shim.clone(),
            cuda_shim: cuda.cuda_shim.clone(),
            kernel_cache: Some(cuda.kernel_cache.clone()),
            nvrtc: cuda.nvrtc.clone(),
            shares_pct: if cuda.split { shares_pct.collect() } else { Vec::new() },
            beside: start.beside,
        };
        let (gpu, division) = Gpu::open(&options).map_err(|error| error.to_string())?;
        return Ok(Ready::Cuda(Arc::new(gpu), Arc::new(division)));
    }
    if let wire::Backend::Replay { profiles_dir } = &start.backend {
        return Ok(Ready::Replay(Replay::open(profiles_dir).map_err(|error| error.to_string())?));
    }
    let backend = loading::open(&start.backend, start.thread_count);
    Ok(Ready::Host(backend.map_err(|error| error.to_string())?))
}
