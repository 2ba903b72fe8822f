//! A process that measures gpulets for another one, which asks it over pipes.
//!
//! CUDA fixes at a process's start which device it sees and which percentage of it MPS gives, and a
//! GPU's fault ends the process that it happens in. So whoever measures has processes of its own
//! program for that, and itself never touches the GPU. An order is a line of JSON on the process's
//! standard input, the answer a line on its standard output.

mod child;
mod orders;
mod pace;

use std::io::{self, BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use clap::Args;
use serde::{Deserialize, Serialize};

pub(super) use self::child::MeasureGpulets;
pub(super) use self::orders::{Answer, Load, Opened, Order};
pub(super) use self::pace::{Pace, pace, rate, window, within};
use super::CtlError;
use crate::config::DEFAULT_KERNEL_CACHE;
use crate::device::{Device, Inventory};
use crate::mps;

/// The subcommand of `gpuletctl` that is such a process.
const SUBCOMMAND: &str = "measure-gpulets";
/// For libtorch and CUDA to start, or a model to be loaded.
pub(super) const PATIENCE: Duration = Duration::from_secs(180);

/// Where what runs on a GPU is found.
#[derive(Clone, Debug, Args, Serialize, Deserialize)]
pub(super) struct GpuArguments {
    /// Which device, as nvidia-smi counts
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    pub device: u32,
    /// Where libtorch is [default: as the shim was built]
    #[arg(long, value_name = "DIR")]
    pub libtorch_dir: Option<PathBuf>,
    /// Where the shim is [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub torch_shim: Option<PathBuf>,
    /// Where the shim's CUDA half is [default: beside this program]
    #[arg(long, value_name = "FILE")]
    pub torch_cuda_shim: Option<PathBuf>,
    /// Where compiled kernels are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_KERNEL_CACHE)]
    pub kernel_cache: PathBuf,
    /// What compiles kernels: NVRTC, or a folder that it is in [default: torch's]
    #[arg(long, value_name = "PATH")]
    pub nvrtc: Option<PathBuf>,
}

impl GpuArguments {
    /// The device, by NVML.
    ///
    /// # Errors
    /// [`CtlError::Measure`] where there is none.
    pub fn find(&self, inventory: &Inventory) -> Result<Device, CtlError> {
        let named = crate::config::DeviceName::Index(self.device);
        let device = inventory.find(&named);
        device.cloned().map_err(|refusal| CtlError::Measure(refusal.to_string()))
    }
}

/// How shares of a GPU are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Held {
    /// By green contexts of one process.
    Green,
    /// By MPS's active thread percentage, a process each.
    Mps,
}

/// Somebody who answers orders.
pub(super) trait Gauge {
    /// Gives an order, and waits for the answer, but no longer than `patience`.
    ///
    /// # Errors
    /// [`CtlError::Measure`]: the process is gone or does not answer. What is wrong with the order
    /// itself is an [`Answer::Failed`].
    fn ask(&mut self, order: &Order, patience: Duration) -> Result<Answer, CtlError>;
}

/// A process of ours that measures. It is killed when this is dropped.
pub(super) struct Process {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<io::Result<String>>,
}

impl Process {
    /// Starts this program again, with more variables in its environment.
    ///
    /// # Errors
    /// [`CtlError::Kernel`].
    pub fn start(environment: &[(String, String)]) -> Result<Process, CtlError> {
        let kernel = |what| move |source| CtlError::Kernel { what, source };
        let program = std::env::current_exe().map_err(kernel("this program"))?;
        let mut command = Command::new(program);
        command.arg(SUBCOMMAND).stdin(Stdio::piped()).stdout(Stdio::piped());
        command.envs(environment.iter().map(|(name, value)| (name, value)));
        let mut child = command.spawn().map_err(kernel("starting a process that measures"))?;
        let missing = || kernel("a pipe")(io::ErrorKind::BrokenPipe.into());
        let orders = child.stdin.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let (tell, answers) = channel();
        // It ends with the pipe, and so with the process.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                if tell.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Process { child, orders, answers })
    }

    /// Gives an order, and does not wait.
    ///
    /// # Errors
    /// [`CtlError::Measure`].
    pub fn order(&mut self, order: &Order) -> Result<(), CtlError> {
        let mut line = serde_json::to_string(order).map_err(|error| broken(&error))?;
        line.push('\n');
        self.orders.write_all(line.as_bytes()).map_err(|error| broken(&error))
    }

    /// The next answer.
    ///
    /// # Errors
    /// [`CtlError::Measure`].
    pub fn answer(&mut self, patience: Duration) -> Result<Answer, CtlError> {
        match self.answers.recv_timeout(patience) {
            Ok(Ok(line)) => serde_json::from_str(&line).map_err(|error| broken(&error)),
            Ok(Err(error)) => Err(broken(&error)),
            Err(RecvTimeoutError::Timeout) => {
                Err(broken(&format!("no answer within {} s", patience.as_secs())))
            }
            Err(RecvTimeoutError::Disconnected) => Err(match self.child.wait() {
                Ok(status) => broken(&format!("it ended ({status})")),
                Err(error) => broken(&error),
            }),
        }
    }
}

fn broken(why: &dyn std::fmt::Display) -> CtlError {
    CtlError::Measure(format!("the process that measures: {why}"))
}

impl Gauge for Process {
    fn ask(&mut self, order: &Order, patience: Duration) -> Result<Answer, CtlError> {
        self.order(order)?;
        self.answer(patience)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may hang in the driver. Where it has ended already these do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The environment of a process that measures `device`, with a percentage of it under the MPS whose
/// directory is `mps`.
pub(super) fn environment(
    device: &Device,
    mps: Option<(&std::path::Path, u8)>,
) -> Vec<(String, String)> {
    let pair = |name: &str, value: String| (name.to_owned(), value);
    let mut environment = vec![pair("CUDA_VISIBLE_DEVICES", device.uuid.clone())];
    if let Some((directory, share_pct)) = mps {
        let pipe = directory.join("pipe").display().to_string();
        environment.push(pair("CUDA_MPS_PIPE_DIRECTORY", pipe));
        environment.push(pair(mps::SHARE_PCT, share_pct.to_string()));
    }
    environment
}
