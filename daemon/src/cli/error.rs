//! How a subcommand fails, and the exit codes.

use std::io;
use std::path::PathBuf;

use gpulet_abi::status::Status;
use gpulet_plan::input::InputError;
use gpulet_plan::search::Infeasible;

use crate::backend::{LoadError, OpenError, RunError};
use crate::model::ModelError;

/// The request or operation failed.
pub const FAILED: u8 = 1;
/// Wrong usage.
pub const USAGE: u8 = 2;
/// The daemon cannot be reached, or refused.
pub const NO_DAEMON: u8 = 3;
/// The configuration or a model is bad.
pub const BAD_CONFIG: u8 = 4;

/// Why a subcommand failed.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// The session with the daemon.
    #[error("{source} ({})", source.status().name())]
    Client {
        /// What the client library says.
        #[from]
        source: gpulet_client::Error,
    },
    /// The daemon's socket.
    #[error("{}: {rule}", socket.display())]
    Daemon {
        /// Which socket.
        socket: PathBuf,
        /// What was wrong with what came out of it.
        rule: String,
    },
    /// Requests that were answered by something else than outputs.
    #[error("{failed} of {count} requests failed, the first with {} ({text})", status.name())]
    Requests {
        /// How many.
        failed: u64,
        /// Of how many.
        count: u64,
        /// Of the first.
        status: Status,
        /// Of the first.
        text: String,
    },
    /// The GPU.
    #[error("GPU: {0}")]
    Gpu(#[from] crate::cuda::gpu::GpuError),
    /// A measurement failed, or found what must not be.
    #[error("{0}")]
    Measure(String),
    /// Arguments that contradict each other or the model.
    #[error("{0} (--help says more)")]
    Usage(String),
    /// A file that is read or written.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Standard output.
    #[error("standard output: {0}")]
    Output(io::Error),
    /// A system call for this process.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no such model, or it is bad.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// There is no model of that name.
    #[error("{}: no directory with a model.toml, nor one in {roots}", name.display())]
    NoModel {
        /// As it was given.
        name: PathBuf,
        /// Where it was looked for.
        roots: String,
    },
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing can run it.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It failed while running.
    #[error(transparent)]
    Run(#[from] RunError),
    /// An input of the planner is wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There is no plan.
    #[error("{place}: {source}")]
    Infeasible {
        /// File, and line where one asks for it.
        place: String,
        /// What is in the way.
        source: Infeasible,
    },
    /// Everything that `check` found, a line each.
    #[error("{}", .0.join("\n"))]
    Problems(Vec<String>),
}

impl CtlError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            CtlError::Client { source } => match source.status() as i32 / 10 {
                // Connecting, and the end of the session.
                2 | 7 => NO_DAEMON,
                _ if source.status() == Status::Timeout => NO_DAEMON,
                _ => FAILED,
            },
            CtlError::Daemon { .. } => NO_DAEMON,
            CtlError::Usage(_) => USAGE,
            CtlError::Model(_)
            | CtlError::NoModel { .. }
            | CtlError::Load(_)
            | CtlError::Input(_)
            | CtlError::Problems(_) => BAD_CONFIG,
            CtlError::Requests { .. }
            | CtlError::File { .. }
            | CtlError::Output(_)
            | CtlError::Kernel { .. }
            | CtlError::Infeasible { .. }
            | CtlError::Open(_)
            | CtlError::Gpu(_)
            | CtlError::Measure(_)
            | CtlError::Run(_) => FAILED,
        }
    }

    /// Prints it to standard error, each line with the program's name; what [`Problems`] found
    /// begins with its file, as compilers have it, for editors to follow.
    ///
    /// [`Problems`]: CtlError::Problems
    pub fn print(&self, program: &str) {
        if let CtlError::Problems(problems) = self {
            for problem in problems {
                eprintln!("{problem}");
            }
            return;
        }
        for line in self.to_string().lines() {
            eprintln!("{program}: {line}");
        }
    }
}
