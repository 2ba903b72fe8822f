//! What two processes of gpulet see of each other, and nothing else.
//!
//! This is the lowest crate: the daemon, its executors and the client library all stand on it, and
//! it imports none of ours. The contract itself is `include/gpulet/abi.h`; the structs in
//! [`layout`] are its twins, every size and offset asserted on both sides.
//!
//! | module       | holds                                                                  |
//! |--------------|------------------------------------------------------------------------|
//! | [`layout`]   | the structs of abi.h                                                   |
//! | [`status`]   | the numbers of status.h                                                |
//! | [`version`]  | magic, version, features, and who may talk to whom                     |
//! | [`tensor`]   | element types, and where the tensors of a request lie in its slot      |
//! | [`ring`]     | one writer, one reader: the only acquire/release pairs of the request path |
//! | [`region`]   | sealed memfds: the only mmap                                           |
//! | [`arena`]    | the client's slots: claim, submit, complete, release                   |
//! | [`doorbell`] | what wakes a sleeper: eventfds and pipes                               |
//! | [`frame`]    | messages and descriptors on a SOCK_SEQPACKET socket                    |
//!
//! Whatever another process can write is read once, copied, and only then looked at.

pub mod layout;
pub mod ring;
pub mod status;
pub mod sync;
pub mod tensor;
pub mod version;

// The model checker replaces the atomics by its own, which cannot lie in mapped memory.
#[cfg(not(loom))]
pub mod arena;
#[cfg(not(loom))]
pub mod doorbell;
#[cfg(not(loom))]
pub mod frame;
#[cfg(not(loom))]
pub mod region;
