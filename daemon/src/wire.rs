//! What `gpuletd` and its executors say to each other.
//!
//! Two paths, as with clients. Rare things (start, map, load) are JSON on a SOCK_SEQPACKET pair whose
//! far end is the executor's standard input. Batches travel in a shared region, the *link*: commands
//! one way, reports the other, one ring each. The executor never decides: it runs what it is told,
//! within the window it is told.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use gpulet_abi::frame;
use gpulet_abi::region::{Geometry, MappedRing, Mapping, RegionError};
use gpulet_abi::ring::{Consumer, Entry, Producer};
use gpulet_plan::policy::BATCH_REQUESTS_MAX;
use gpulet_plan::profile::ProfilePoint;
use serde::{Deserialize, Serialize};

use crate::model::Model;

/// Bytes of the longest control message.
pub const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Batches that may be under way in a link: one running, the rest in case depths grow.
const LINK_CAPACITY: u32 = 16;
const COMMAND_CONTROL_OFFSET: usize = 0;
const REPORT_CONTROL_OFFSET: usize = 384;
const COMMANDS_OFFSET: usize = 4096;
const REPORTS_OFFSET: usize =
    COMMANDS_OFFSET + (LINK_CAPACITY as usize * size_of::<BatchCommand>()).next_multiple_of(4096);
const LINK_BYTES: u64 = (REPORTS_OFFSET + LINK_CAPACITY as usize * size_of::<BatchReport>())
    .next_multiple_of(4096) as u64;

/// One request of a batch: where its slot is.
#[derive(Clone, Copy, Debug, Default, Pod, Zeroable)]
#[repr(C)]
pub struct BatchRequest {
    /// Which session's region, as named by [`ToExecutor::Map`].
    pub region: u32,
    /// Which slot of it, below its `slot_count`.
    pub slot: u32,
    /// Rows of this request, at least one.
    pub rows: u32,
    /// Zero.
    pub reserved: u32,
}

/// Run this now.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BatchCommand {
    /// Echoed in the report.
    pub batch: u64,
    /// Started later than this (CLOCK_MONOTONIC), it would miss: refuse it.
    pub latest_start_ns: u64,
    /// Which model, as named by [`ToExecutor::Load`].
    pub instance: u32,
    /// How many of `requests` count; at least one.
    pub request_count: u32,
    /// Rows of all requests.
    pub rows: u32,
    /// Zero.
    pub reserved: u32,
    /// The requests, in the order their rows have in the batch.
    pub requests: [BatchRequest; BATCH_REQUESTS_MAX as usize],
}

/// How a batch went.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BatchReport {
    /// Of the command.
    pub batch: u64,
    /// When the executor took it (CLOCK_MONOTONIC).
    pub started_ns: u64,
    /// When its outputs were all in place.
    pub finished_ns: u64,
    /// Host bytes copied to put the batch's inputs together; 0 when the model read the slot itself.
    pub input_bytes_copied: u64,
    /// Host bytes copied from the model's results into slots; 0 when the model wrote there itself.
    pub output_bytes_copied: u64,
    /// For each request of the command the number of its status (they all fit a byte).
    pub statuses: [u8; BATCH_REQUESTS_MAX as usize],
}

impl Entry for BatchCommand {}
impl Entry for BatchReport {}

/// Daemon to executor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToExecutor {
    /// First. Carries the link's memfd, the command doorbell and the report doorbell.
    Start(Start),
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
    },
    /// No command names this instance any more.
    Unload {
        /// As in `Load`.
        instance: u32,
    },
}

/// What an executor is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The gpulet's name, for logs.
    pub gpulet: String,
    /// What runs the models.
    pub backend: Backend,
    /// Threads for one forward.
    pub thread_count: u32,
    /// The CPUs it may run on; empty: any.
    pub cpus: Vec<u32>,
    /// How long to poll for the next command before sleeping.
    pub spin_ns: u64,
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
    /// Nothing: answers after the time that `<profiles_dir>/<model>.json` says, outputs zeroed.
    Replay {
        /// Directory of [`gpulet_plan::profile::RawProfile`] files.
        profiles_dir: PathBuf,
    },
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
    /// The answer to `Load`: warm, and measured.
    Loaded {
        /// As in `Load`.
        instance: u32,
        /// Latencies measured in the warm-up, rows ascending up to `max_batch`.
        points: Vec<ProfilePoint>,
        /// From the message to here.
        load_ns: u64,
        /// How the model runs, such as "optimised for inference" or "frozen".
        form: String,
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

/// The shared region of one executor.
#[derive(Debug)]
pub struct Link {
    mapping: Arc<Mapping>,
}

impl Link {
    /// A fresh link and its descriptor, for the daemon.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn create() -> io::Result<(Link, OwnedFd)> {
        let (mapping, fd) = Mapping::create("gpulet-link", LINK_BYTES, LINK_BYTES)?;
        Ok((Link { mapping: Arc::new(mapping) }, fd))
    }

    /// The link that the daemon sent, for the executor.
    ///
    /// # Errors
    /// As [`Mapping::attach`].
    pub fn attach(fd: OwnedFd) -> Result<Link, RegionError> {
        Ok(Link { mapping: Arc::new(Mapping::attach(fd, LINK_BYTES, LINK_BYTES)?) })
    }

    fn commands(&self) -> MappedRing {
        MappedRing::new::<BatchCommand>(
            &self.mapping,
            COMMAND_CONTROL_OFFSET,
            COMMANDS_OFFSET,
            LINK_CAPACITY,
        )
    }

    fn reports(&self) -> MappedRing {
        MappedRing::new::<BatchReport>(
            &self.mapping,
            REPORT_CONTROL_OFFSET,
            REPORTS_OFFSET,
            LINK_CAPACITY,
        )
    }

    /// The daemon's ends: commands out, reports in.
    pub fn daemon_ends(
        &self,
    ) -> (Producer<MappedRing, BatchCommand>, Consumer<MappedRing, BatchReport>) {
        (Producer::new(self.commands()), Consumer::new(self.reports()))
    }

    /// The executor's ends: commands in, reports out.
    pub fn executor_ends(
        &self,
    ) -> (Consumer<MappedRing, BatchCommand>, Producer<MappedRing, BatchReport>) {
        (Consumer::new(self.commands()), Producer::new(self.reports()))
    }
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
    fn a_command_and_its_report_cross_the_link() {
        let (daemon, fd) = Link::create().unwrap();
        let executor = Link::attach(fd).unwrap();
        let (mut commands_out, mut reports_in) = daemon.daemon_ends();
        let (mut commands_in, mut reports_out) = executor.executor_ends();
        commands_out.push(&BatchCommand { batch: 3, ..Zeroable::zeroed() }).unwrap();
        assert!(!commands_out.commit());
        let command = commands_in.pop().unwrap().unwrap();
        assert!(reports_in.prepare_sleep().unwrap());
        let report = BatchReport { batch: command.batch, ..Zeroable::zeroed() };
        reports_out.push(&report).unwrap();
        assert!(reports_out.commit());
        assert_eq!(reports_in.pop().unwrap().unwrap().batch, 3);
    }
}
