//! The numbers of `include/gpulet/status.h`.

use std::fmt;

macro_rules! statuses {
    ($($name:ident = $number:literal, $c:literal, $text:literal;)*) => {
        /// Where in its life a request or a call ended, and how. `#[repr(i32)]`, as in C.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum Status {
            $(#[doc = $text] $name = $number,)*
        }

        impl Status {
            /// Every status there is, in the order of its number.
            pub const ALL: &[Status] = &[$(Status::$name),*];

            /// The status of a number, if it is one.
            pub const fn from_number(number: i32) -> Option<Status> {
                match number {
                    $($number => Some(Status::$name),)*
                    _ => None,
                }
            }

            /// One sentence for people.
            pub const fn text(self) -> &'static str {
                match self { $(Status::$name => $text,)* }
            }

            /// The macro's name in status.h.
            pub const fn name(self) -> &'static str {
                match self { $(Status::$name => $c,)* }
            }
        }
    };
}

statuses! {
    Ok = 0, "GPULET_OK", "success";
    InvalidArgument = 10, "GPULET_INVALID_ARGUMENT", "invalid argument";
    WrongState = 11, "GPULET_WRONG_STATE", "the request is not in a state that allows this";
    Stale = 12, "GPULET_STALE", "the request handle is of an earlier use of its slot";
    Timeout = 13, "GPULET_TIMEOUT", "nothing came within the time given";
    OutOfMemory = 14, "GPULET_OUT_OF_MEMORY", "this process could not get memory or descriptors";
    Forked = 15, "GPULET_FORKED", "the session belongs to the parent process";
    NoDaemon = 20, "GPULET_NO_DAEMON", "no daemon listens on the socket";
    AccessDenied = 21, "GPULET_ACCESS_DENIED", "this user is on no allow list of the daemon";
    VersionMismatch = 22, "GPULET_VERSION_MISMATCH",
        "library and daemon speak different major versions";
    SessionLimit = 23, "GPULET_SESSION_LIMIT", "the daemon has as many sessions as it may";
    RegionLimit = 24, "GPULET_REGION_LIMIT", "slot_count or slot_bytes is over the limits";
    BadHandshake = 25, "GPULET_BAD_HANDSHAKE", "the other side sent what is no part of this ABI";
    NoSuchModel = 30, "GPULET_NO_SUCH_MODEL", "the daemon serves no model of that name";
    ModelLoading = 31, "GPULET_MODEL_LOADING", "the model is being loaded";
    ModelFailed = 32, "GPULET_MODEL_FAILED", "the model could not be loaded";
    ModelRetired = 33, "GPULET_MODEL_RETIRED", "the model was unloaded or replaced";
    NoFreeSlot = 40, "GPULET_NO_FREE_SLOT", "every slot is in use";
    SlotTooSmall = 41, "GPULET_SLOT_TOO_SMALL", "the tensors of so many rows do not fit a slot";
    TooManyRows = 42, "GPULET_TOO_MANY_ROWS", "more rows than the model's max_batch, or none";
    QueueFull = 43, "GPULET_QUEUE_FULL", "the model's queue is full";
    RingFull = 44, "GPULET_RING_FULL", "the submission ring is full";
    DeadlineHopeless = 50, "GPULET_DEADLINE_HOPELESS",
        "on arrival the deadline could not be met";
    DeadlineExpired = 51, "GPULET_DEADLINE_EXPIRED",
        "in the queue the deadline could not be met any more";
    Cancelled = 52, "GPULET_CANCELLED", "the client cancelled the request before it ran";
    ModelError = 60, "GPULET_MODEL_ERROR", "the model raised an error";
    ExecutorMemory = 61, "GPULET_EXECUTOR_MEMORY", "the executor ran out of memory";
    ExecutorLost = 62, "GPULET_EXECUTOR_LOST", "executors died on the request twice";
    ProtocolViolation = 70, "GPULET_PROTOCOL_VIOLATION", "one side wrote what the ABI forbids";
    DaemonGone = 71, "GPULET_DAEMON_GONE", "the daemon died or hung up";
    Draining = 72, "GPULET_DRAINING", "the daemon is stopping and takes nothing new";
    Internal = 90, "GPULET_INTERNAL", "a defect of gpulet";
}

impl fmt::Display for Status {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.text())
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn numbers_and_texts_are_unique_and_come_back() {
        for (index, status) in Status::ALL.iter().enumerate() {
            assert_eq!(Status::from_number(*status as i32), Some(*status));
            for other in &Status::ALL[..index] {
                assert!((*other as i32) < (*status as i32));
                assert_ne!(other.text(), status.text());
            }
        }
        assert_eq!(Status::from_number(1), None);
    }
}
