//! How to open a session.

use std::path::{Path, PathBuf};

use gpulet_abi::layout::SLOTS_MAX;

use crate::error::Error;

/// Where the daemon listens unless told otherwise.
pub const SOCKET_DEFAULT: &str = "/run/gpulet/gpuletd.sock";
/// The environment variable that overrides [`SOCKET_DEFAULT`].
pub const SOCKET_VARIABLE: &str = "GPULET_SOCKET";
/// Slots of a session unless told otherwise.
pub const SLOT_COUNT_DEFAULT: u32 = 64;
/// How long [`Wait::Hybrid`] spins unless told otherwise.
pub const SPIN_NS_DEFAULT: u64 = 20_000;
/// How long a handshake or a model query may take unless told otherwise.
pub const CONNECT_TIMEOUT_NS_DEFAULT: u64 = 5_000_000_000;

/// How [`Session::wait`](crate::Session::wait) waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Sleep in the kernel; wakes in about ten microseconds.
    #[default]
    Block,
    /// Never sleep: lowest latency, takes a whole core.
    Spin,
    /// Spin for so many nanoseconds, then sleep.
    Hybrid(u64),
}

/// How to open a session. The default is right for a first program.
#[derive(Clone, Debug)]
pub struct Options {
    /// The daemon's socket; `None`: `$GPULET_SOCKET`, else [`SOCKET_DEFAULT`].
    pub socket: Option<PathBuf>,
    /// How to wait for completions.
    pub wait: Wait,
    /// Bytes for all tensors of one request; 0 leaves it to the daemon.
    pub slot_bytes: u64,
    /// Requests that can be claimed or in flight at a time, 1 to [`SLOTS_MAX`].
    pub slot_count: u32,
    /// For the whole handshake, and for one model query.
    pub connect_timeout_ns: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            socket: None,
            wait: Wait::Block,
            slot_bytes: 0,
            slot_count: SLOT_COUNT_DEFAULT,
            connect_timeout_ns: CONNECT_TIMEOUT_NS_DEFAULT,
        }
    }
}

impl Options {
    /// The defaults, with another socket.
    pub fn at(socket: impl Into<PathBuf>) -> Options {
        Options { socket: Some(socket.into()), ..Options::default() }
    }

    /// The same, with another way to wait.
    pub fn wait(self, wait: Wait) -> Options {
        Options { wait, ..self }
    }

    /// The same, with another number of slots.
    pub fn slots(self, slot_count: u32) -> Options {
        Options { slot_count, ..self }
    }

    /// Where to connect to, and whether the rest is within what any daemon could grant.
    pub(crate) fn checked(&self) -> Result<PathBuf, Error> {
        if self.slot_count == 0 || self.slot_count > SLOTS_MAX {
            return Err(Error::SlotCount(self.slot_count));
        }
        match &self.socket {
            Some(path) if path.as_os_str().is_empty() => {
                Err(Error::argument("socket_path", "is empty"))
            }
            Some(path) => Ok(path.clone()),
            None => match std::env::var_os(SOCKET_VARIABLE) {
                Some(path) if path.is_empty() => {
                    Err(Error::argument("$GPULET_SOCKET", "is set but empty"))
                }
                Some(path) => Ok(path.into()),
                None => Ok(Path::new(SOCKET_DEFAULT).to_owned()),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gpulet_abi::status::Status;

    #[test]
    fn impossible_wishes_are_refused_before_anything_is_sent() {
        let status = |options: Options| options.checked().map_err(|error| error.status());
        assert_eq!(status(Options::at("")), Err(Status::InvalidArgument));
        assert_eq!(status(Options::at("/x").slots(0)), Err(Status::RegionLimit));
        assert_eq!(status(Options::at("/x").slots(SLOTS_MAX + 1)), Err(Status::RegionLimit));
        assert_eq!(status(Options::at("/x")), Ok(PathBuf::from("/x")));
    }
}
