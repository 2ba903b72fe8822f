//! Everything that can go wrong in a client, each with the status that C programs get for it.

use std::io;
use std::path::Path;

use gpulet_abi::layout::{NAME_BYTES, SLOTS_MAX};
use gpulet_abi::region::RegionError;
use gpulet_abi::status::Status;

/// Why a call failed. The text names the argument, the file or the peer, and the rule.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument breaks a rule that needs no numbers to tell.
    #[error("{argument}: {rule}")]
    Argument {
        /// Its name in the header.
        argument: &'static str,
        /// What is wrong with it.
        rule: &'static str,
    },
    /// `struct_bytes` fits no version of the struct.
    #[error("{name}.struct_bytes: {bytes} is not the size of any version (now {expected})")]
    StructBytes {
        /// The struct.
        name: &'static str,
        /// What the program says.
        bytes: u32,
        /// What this version has.
        expected: usize,
    },
    /// A tensor index beyond those of the model.
    #[error("index: {index}, but the model has {count} {side}")]
    TensorIndex {
        /// What was asked for.
        index: u32,
        /// What there is.
        count: usize,
        /// "inputs" or "outputs".
        side: &'static str,
    },
    /// A tensor of another element type was asked for.
    #[error("the tensor's element type is {actual}, not {wanted}")]
    ElementType {
        /// As the model has it.
        actual: &'static str,
        /// As it was asked for.
        wanted: &'static str,
    },
    /// No slot count that the ABI allows.
    #[error("slot_count: {0} is not from 1 to {SLOTS_MAX}")]
    SlotCount(u32),
    /// A request handle that can not be used so.
    #[error("request (slot {slot}, generation {generation}): {rule}")]
    Request {
        /// Invalid argument, stale or wrong state.
        status: Status,
        /// Of the handle.
        slot: u32,
        /// Of the handle.
        generation: u32,
        /// What it would have to be.
        rule: &'static str,
    },
    /// Nothing came in time.
    #[error("{0}: nothing came within the time given")]
    Timeout(&'static str),
    /// The session was inherited through fork.
    #[error("session: it was opened by the parent process; open another one here")]
    Forked,
    /// Nobody answers at the socket, or it may not be used.
    #[error("{path}: {source}")]
    Connect {
        /// What the kernel's answer means.
        status: Status,
        /// The socket.
        path: Box<Path>,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel refused this process something.
    #[error("{what}: {source}")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The daemon said no.
    #[error("the daemon refused {what}: {text}")]
    Refused {
        /// Which no.
        status: Status,
        /// "the session" or a model's name.
        what: Box<str>,
        /// Its reason.
        text: Box<str>,
    },
    /// The daemon's part of the handshake is no part of this ABI.
    #[error("handshake: {0}")]
    Handshake(&'static str),
    /// The daemon speaks another major version.
    #[error("handshake: the daemon speaks ABI version {theirs}, this library {ours}")]
    Version {
        /// The daemon's major version.
        theirs: u32,
        /// Ours.
        ours: u32,
    },
    /// The region that the daemon sent can not be used.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// No model with that number was opened in this session.
    #[error("model: number {0} was not opened in this session")]
    UnknownModel(u32),
    /// Too long, empty, or with a NUL.
    #[error("name: {0} bytes; a model's name has 1 to {max}, none of them NUL", max = NAME_BYTES - 1)]
    ModelName(usize),
    /// No rows, or more than a batch may have.
    #[error("rows: {rows}, but this model takes 1 to {max_batch}")]
    Rows {
        /// What was asked for.
        rows: u32,
        /// What there may be.
        max_batch: u32,
    },
    /// The slots are too small for so many rows.
    #[error(
        "rows: {rows} rows take {needed_bytes} bytes, but a slot has {slot_bytes}; \
         open the session with a larger slot_bytes"
    )]
    SlotTooSmall {
        /// What was asked for.
        rows: u32,
        /// What they take.
        needed_bytes: u64,
        /// What there is.
        slot_bytes: u64,
    },
    /// Every slot is in use.
    #[error("all {0} slots of the session are in use: reap and release, or open more")]
    NoFreeSlot(u32),
    /// The daemon has not yet taken what was submitted before.
    #[error("the submission ring is full: the daemon has not yet taken what it holds")]
    RingFull,
    /// The session is over.
    #[error("the session is over: {text}")]
    Ended {
        /// Of decade 7x or 9x.
        status: Status,
        /// Who said so and why.
        text: Box<str>,
    },
    /// Our own mistake.
    #[error("a defect of gpulet: {0}")]
    Defect(Box<str>),
}

impl Error {
    /// Shorthand for [`Error::Argument`].
    pub(crate) const fn argument(argument: &'static str, rule: &'static str) -> Error {
        Error::Argument { argument, rule }
    }

    /// The status that a C program gets.
    pub fn status(&self) -> Status {
        match self {
            Error::Argument { .. }
            | Error::StructBytes { .. }
            | Error::TensorIndex { .. }
            | Error::ElementType { .. }
            | Error::ModelName(_) => Status::InvalidArgument,
            Error::SlotCount(_) => Status::RegionLimit,
            Error::Request { status, .. }
            | Error::Connect { status, .. }
            | Error::Refused { status, .. }
            | Error::Ended { status, .. } => *status,
            Error::Timeout(_) => Status::Timeout,
            Error::Forked => Status::Forked,
            Error::Kernel { .. } => Status::OutOfMemory,
            Error::Handshake(_) => Status::BadHandshake,
            Error::Version { .. } => Status::VersionMismatch,
            Error::Region(RegionError::Io(_)) => Status::OutOfMemory,
            Error::Region(RegionError::Incompatible(status)) => *status,
            Error::Region(_) => Status::BadHandshake,
            Error::UnknownModel(_) => Status::NoSuchModel,
            Error::Rows { .. } => Status::TooManyRows,
            Error::SlotTooSmall { .. } => Status::SlotTooSmall,
            Error::NoFreeSlot(_) => Status::NoFreeSlot,
            Error::RingFull => Status::RingFull,
            Error::Defect(_) => Status::Internal,
        }
    }
}
