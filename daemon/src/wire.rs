//! What `gpuletd` and its executors say to each other.
//!
//! Two paths, as with clients. Rare things (start, map, load) are JSON on a SOCK_SEQPACKET pair whose
//! far end is the executor's standard input. Batches travel in a shared region, the *link*: commands
//! one way, reports the other, one ring each. The executor never decides: it runs what it is told,
//! within the window it is told.
//!
//! One executor process has one gpulet or several, each named by its index in [`Start::gpulets`].
//! They share what is mapped and what is loaded; batches of different gpulets run side by side, those
//! of one gpulet one after the other. A gpulet may be sent a batch while it runs one ([`DEPTH_MAX`]).

mod link;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use gpulet_abi::frame;
use gpulet_abi::region::Geometry;
use gpulet_plan::profile::ProfilePoint;
use serde::{Deserialize, Serialize};

use crate::model::Model;

pub use link::{BatchCommand, BatchReport, BatchRequest, DEPTH_MAX, EXECUTOR_GPULETS_MAX, Link};

/// Bytes of the longest control message: a profile for every gpulet fits.
pub const MESSAGE_BYTES_MAX: usize = 128 << 10;

/// With this an executor exits whose device faulted. All executors on that device are lost then.
pub const FAULT_EXIT_CODE: i32 = 70;

/// Daemon to executor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToExecutor {
    /// First. Carries the link's memfd, the command doorbell and the report doorbell.
    Start(Box<Start>),
    /// A session's region; carries its memfd.
    Map {
        /// How commands name it; never reused.
        region: u32,
        /// Where everything lies; not to be read from the region, which a client can write over.
        geometry: RegionGeometry,
    },
    /// No command names this region any more.
    Unmap {
        /// As in `Map`.
        region: u32,
    },
    /// Load and warm up a model.
    Load {
        /// How commands name it; never reused.
        instance: u32,
        /// What it is.
        model: Box<Model>,
        /// What matters meanwhile.
        manner: Manner,
    },
    /// No command names this instance any more.
    Unload {
        /// As in `Load`.
        instance: u32,
    },
    /// Make ready for other shares while batches go on: every loaded model is warmed and measured
    /// on them. Answered by a `Remeasured` for each, then `Prepared`; or by `PrepareFailed`. No
    /// `Load` follows before `Switch` was answered. Only to executors that split a device.
    Prepare {
        /// One a gpulet.
        shares_pct: Vec<u8>,
    },
    /// Batches that come after this run on the shares prepared last. Answered by `Shared`.
    Switch {
        /// As in `Prepare`.
        shares_pct: Vec<u8>,
    },
}

/// How a model is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Manner {
    /// It is as fast as it will be when the load is answered, and nobody else matters.
    Whole,
    /// The load is answered as soon as batches of any size can run, however: they get faster while
    /// others run, and a `Remeasured` says when.
    Soon,
    /// As `Whole`, beside another executor that serves on the same multiprocessors, and whose batches
    /// are not to be late for it: this load waits instead.
    Beside,
}

/// What an executor is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The executor's name, for logs.
    pub executor: String,
    /// What it hosts, 1 to [`EXECUTOR_GPULETS_MAX`]; commands name them by index.
    pub gpulets: Vec<GpuletStart>,
    /// What runs the models.
    pub backend: Backend,
    /// Threads for one forward.
    pub thread_count: u32,
    /// The CPUs it may run on; empty: any.
    pub cpus: Vec<u32>,
    /// How long to poll for the next command before sleeping; `u64::MAX`: never sleep, not even while a
    /// batch is under way.
    pub spin_ns: u64,
    /// Until it is ready another one serves in its place, whose batches are not to be late for it.
    pub beside: bool,
}

/// A gpulet, as its executor knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuletStart {
    /// For logs.
    pub name: String,
    /// Share of the device, 1 to 100; a [`ToExecutor::Switch`] can change it.
    pub share_pct: u8,
}

/// What runs the models.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Backend {
    /// libtorch on the CPU.
    Torch {
        /// Where libtorch is; default: as the shim was built.
        libtorch_dir: Option<PathBuf>,
        /// Where our shim is; default: beside the executable.
        shim: Option<PathBuf>,
    },
    /// libtorch on the first GPU that the process sees.
    Cuda(Cuda),
    /// Nothing: answers after the time that `<profiles_dir>/<model>.json` says, outputs zeroed.
    Replay {
        /// Directory of [`gpulet_plan::profile::RawProfile`] files.
        profiles_dir: PathBuf,
    },
}

/// See [`Backend::Cuda`]. Which GPU the process sees is in its environment, and so is its percentage
/// where MPS holds its share.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cuda {
    /// Where libtorch is; default: as the shim was built.
    pub libtorch_dir: Option<PathBuf>,
    /// Where our shim is; default: beside the executable.
    pub shim: Option<PathBuf>,
    /// Where its CUDA half is; default: beside the executable.
    pub cuda_shim: Option<PathBuf>,
    /// Cut the GPU among the gpulets by their shares; otherwise the one gpulet has all of it.
    pub split: bool,
    /// Directory of compiled kernels.
    pub kernel_cache: PathBuf,
    /// The compiler of kernels; default: where the loader finds it.
    pub nvrtc: Option<PathBuf>,
}

/// A [`Geometry`] in numbers from which it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionGeometry {
    /// Bytes of a slot.
    pub slot_bytes: u64,
    /// Slots.
    pub slot_count: u32,
}

impl From<&Geometry> for RegionGeometry {
    fn from(geometry: &Geometry) -> RegionGeometry {
        RegionGeometry { slot_bytes: geometry.slot_bytes, slot_count: geometry.slot_count }
    }
}

/// Executor to daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum FromExecutor {
    /// The answer to `Start`: commands can come.
    Started {
        /// Such as "libtorch 1.13.0, 1 thread".
        backend: String,
    },
    /// A load goes on, or what is made of a model later: for shares that are prepared, or because it
    /// was loaded [`Manner::Soon`]. Said at its start and, while it goes on, before every step that may
    /// take long: an executor that says nothing for too long hangs, and the model it named is to blame.
    /// Ends with `Loaded`, `LoadFailed` or `Remeasured`.
    Loading {
        /// As in `Load`.
        instance: u32,
        /// What it does now, such as "8 rows".
        step: String,
    },
    /// The answer to `Load`: warm, and measured.
    Loaded {
        /// As in `Load`.
        instance: u32,
        /// For each gpulet the latencies measured in the warm-up, rows ascending up to `max_batch`.
        points: Vec<Vec<ProfilePoint>>,
        /// From the message to here.
        load_ns: u64,
        /// How the model runs, such as "optimised for inference" or "frozen".
        form: String,
        /// Device memory it took; 0 where there is no device, or where that is not known. What a model
        /// that was loaded [`Manner::Soon`] gets later is not in it: the executor logs it when it is
        /// there.
        memory_bytes: u64,
    },
    /// The answer to a `Load` that failed.
    LoadFailed {
        /// As in `Load`.
        instance: u32,
        /// Names the file, the field and the rule.
        error: String,
    },
    /// The answer to `Start` when it failed; the executor exits next.
    StartFailed {
        /// What is missing and where it was looked for.
        error: String,
    },
    /// What a model's batches take, on the shares that are being prepared, or from now on on those
    /// that are: then it was loaded [`Manner::Soon`], and is whole now.
    Remeasured {
        /// As in `Load`.
        instance: u32,
        /// Those that it was measured on, one a gpulet.
        shares_pct: Vec<u8>,
        /// As in `Loaded`.
        points: Vec<Vec<ProfilePoint>>,
    },
    /// The answer to `Prepare`: a `Switch` takes effect at once.
    Prepared {
        /// As in `Prepare`.
        shares_pct: Vec<u8>,
    },
    /// The answer to a `Prepare` that failed; everything is as it was before.
    PrepareFailed {
        /// As in `Prepare`.
        shares_pct: Vec<u8>,
        /// What the device does not give.
        error: String,
    },
    /// The answer to `Switch`: commands taken from now on run on the new shares.
    Shared {
        /// As in `Switch`.
        shares_pct: Vec<u8>,
        /// When (CLOCK_MONOTONIC).
        switched_ns: u64,
    },
    /// The device faulted, and with it every process on it; this one exits next, with
    /// [`FAULT_EXIT_CODE`].
    Faulted {
        /// What the driver said.
        error: String,
    },
}

/// Sends one message with its descriptors.
///
/// # Errors
/// What the kernel says; `InvalidInput` if the message is over [`MESSAGE_BYTES_MAX`].
pub fn send<M: Serialize>(
    socket: impl AsFd,
    message: &M,
    descriptors: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let packet = serde_json::to_vec(message)?;
    if packet.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "control message is too long"));
    }
    frame::send(socket, &packet, descriptors)
}

/// Receives one message with its descriptors; `None` when the other side hung up.
///
/// # Errors
/// `WouldBlock` if there is none, `InvalidData` for what is no message, else what the kernel says.
pub fn receive<M: for<'de> Deserialize<'de>>(
    socket: impl AsFd,
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let mut packet = vec![0; MESSAGE_BYTES_MAX];
    let received = frame::receive(socket, &mut packet)?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let message = serde_json::from_slice(&packet[..received.bytes])?;
    Ok(Some((message, received.descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_cross_the_socket() {
        let (near, far) = frame::pair().unwrap();
        let message = ToExecutor::Unload { instance: 7 };
        let bell = gpulet_abi::doorbell::Doorbell::new().unwrap();
        send(&near, &message, &[bell.as_fd()]).unwrap();
        let (received, descriptors): (ToExecutor, _) = receive(&far).unwrap().unwrap();
        assert_eq!(received, message);
        assert_eq!(descriptors.len(), 1);
        drop(near);
        assert!(receive::<ToExecutor>(&far).unwrap().is_none());
    }

    #[test]
    fn profiles_of_all_gpulets_fit_a_message() {
        let (near, far) = frame::pair().unwrap();
        let point = |rows| ProfilePoint { rows, p50_ns: 987_654_321, p99_ns: 987_654_321 };
        let points = vec![(1_000..1_064).map(point).collect(); EXECUTOR_GPULETS_MAX];
        let shares_pct = vec![100; EXECUTOR_GPULETS_MAX];
        let message = FromExecutor::Remeasured { instance: u32::MAX, shares_pct, points };
        send(&near, &message, &[]).unwrap();
        let (received, _): (FromExecutor, _) = receive(&far).unwrap().unwrap();
        assert_eq!(received, message);
    }
}
