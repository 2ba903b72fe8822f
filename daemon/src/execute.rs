//! The executor process: runs the batches it is told to run, within the window it is told.
//!
//! [`serve`] is all of `gpulet-executor`. One thread takes commands from the link, has its engine run
//! them and reports; in between it listens to the control socket. A second one loads models, so that
//! a load does not keep loaded models waiting. The executor goes when its daemon does.
//!
//! | module     | holds                                                              |
//! |------------|--------------------------------------------------------------------|
//! | [`start`]  | what a process does before its first batch                         |
//! | `turns`    | the thread that takes commands and reports                         |
//! | [`control`]| the control socket                                                 |
//! | [`loader`] | the thread that loads models                                       |
//! | [`engine`] | what batches are run on: [`host`], [`replay`], [`crate::cuda::engine`] |
//! | [`batch`]  | how the host runs a batch                                          |
//! | [`foresight`] | when to look for the end of one on a device                     |

pub mod batch;
pub mod control;
pub mod engine;
pub mod foresight;
pub mod host;
pub mod loader;
pub mod replay;
pub mod start;
mod turns;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use gpulet_abi::region::RegionError;
use gpulet_abi::ring::CursorOutOfRange;

use crate::cuda;
use crate::cuda::gpu::Divisions;
use crate::cuda::load::CudaLoad;

use control::Control;
use engine::Fault;
use host::{Host, HostLoad};
use replay::{ReplayLoad, Replayer};
use start::Ready;

/// Why an executor gave up.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// Nobody gave it a control socket.
    #[error(
        "standard input must be a control socket: gpulet-executor is started by \
         gpuletd, not by hand"
    )]
    NoDaemon,
    /// It was told to start with what is not there; the daemon has been told.
    #[error("cannot start: {0}")]
    Start(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The link cannot be mapped.
    #[error("link: {0}")]
    Link(#[from] RegionError),
    /// The device is lost; the daemon has been told.
    #[error("device: {0}")]
    Fault(#[from] Fault),
    /// The daemon sent what it never sends: another version, or a defect.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
}

impl From<CursorOutOfRange> for ExecuteError {
    fn from(error: CursorOutOfRange) -> ExecuteError {
        ExecuteError::Protocol(error.to_string())
    }
}

/// Whether the daemon is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Here,
    Gone,
}

/// Runs an executor on its control socket until the daemon hangs up.
///
/// # Errors
/// [`ExecuteError`].
pub fn serve(control: OwnedFd) -> Result<(), ExecuteError> {
    let control = Control::new(control);
    let Some((started, ready)) = start::start(&control)? else { return Ok(()) };
    match ready {
        Ready::Host(backend) => {
            let engine = Host::new(started.gpulet_count);
            turns::run(control, started, engine, HostLoad(backend))
        }
        Ready::Replay(replay) => {
            let engine = Replayer::new(started.shares_pct.clone());
            turns::run(control, started, engine, ReplayLoad(replay))
        }
        Ready::Cuda(gpu, division) => {
            let divisions = Divisions::of(Arc::clone(&division));
            let load = CudaLoad { gpu: Arc::clone(&gpu), divisions: divisions.clone() };
            let engine = cuda::engine::Engine::new(gpu, division, divisions);
            turns::run(control, started, engine.map_err(io_error("CUDA"))?, load)
        }
    }
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> ExecuteError {
    move |source| ExecuteError::Io { what, source }
}
