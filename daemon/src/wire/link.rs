//! The region that a daemon and one executor share: commands one way, reports the other.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use gpulet_abi::region::{MappedRing, Mapping, RegionError};
use gpulet_abi::ring::{Consumer, Entry, Producer};
use gpulet_plan::policy::BATCH_REQUESTS_MAX;

/// Gpulets of one executor.
pub const EXECUTOR_GPULETS_MAX: usize = 32;
/// Batches that a gpulet may have: one that runs and one whose inputs are on their way.
pub const DEPTH_MAX: usize = 2;

/// Batches that may be under way in a link. The daemon counts on it: neither ring is ever full.
const LINK_CAPACITY: u32 = (EXECUTOR_GPULETS_MAX * DEPTH_MAX) as u32;
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
    /// Which session's region, as named by [`ToExecutor::Map`](super::ToExecutor::Map).
    pub region: u32,
    /// Which slot of it, below its `slot_count`.
    pub slot: u32,
    /// Rows of this request, at least one.
    pub rows: u32,
    /// Zero.
    pub reserved: u32,
}

/// Run this when the gpulet is done with what it was sent before.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct BatchCommand {
    /// Echoed in the report.
    pub batch: u64,
    /// Started later than this (CLOCK_MONOTONIC), it would miss: refuse it.
    pub latest_start_ns: u64,
    /// When the daemon expects it to end: until shortly before there is nothing to poll for.
    pub expected_end_ns: u64,
    /// Where: an index in [`Start::gpulets`](super::Start::gpulets).
    pub gpulet: u32,
    /// Which model, as named by [`ToExecutor::Load`](super::ToExecutor::Load).
    pub instance: u32,
    /// How many of `requests` count; at least one.
    pub request_count: u32,
    /// Rows of all requests.
    pub rows: u32,
    /// The requests, in the order their rows have in the batch.
    pub requests: [BatchRequest; BATCH_REQUESTS_MAX as usize],
}

/// How a batch went. Those of one gpulet come in the order of their commands.
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
    /// Of the command.
    pub gpulet: u32,
    /// Zero.
    pub reserved: u32,
    /// For each request of the command the number of its status (they all fit a byte).
    pub statuses: [u8; BATCH_REQUESTS_MAX as usize],
}

impl Entry for BatchCommand {}
impl Entry for BatchReport {}

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
