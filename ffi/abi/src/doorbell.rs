//! Doorbells: what wakes a sleeping reader of a ring.
//!
//! An eventfd is one file, however many descriptors lead to it: whoever has one can fill its
//! counter, take its O_NONBLOCK away, and so have the next to signal it block for ever. Where the one
//! that is woken is not trusted by the one that wakes, the doorbell is a pipe, whose ends are two
//! files.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;
use rustix::pipe::PipeFlags;

/// Signals that one [`Doorbell::clear`] takes from a pipe. There is hardly ever more than one: who
/// signals takes the announcement of sleep back first.
const CLEARED_MAX: usize = 8;

/// An eventfd, or one end of a pipe. One [`clear`](Self::clear) takes the signals that there are.
#[derive(Debug)]
pub struct Doorbell {
    fd: OwnedFd,
}

impl Doorbell {
    /// A new doorbell that never blocks its caller.
    ///
    /// # Errors
    /// What the kernel says, such as too many descriptors.
    pub fn new() -> io::Result<Doorbell> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Doorbell { fd })
    }

    /// A new doorbell for a reader that is not trusted: what signals it, and never blocks whatever
    /// the reader does, and what the reader gets, which can only be read.
    ///
    /// # Errors
    /// What the kernel says, such as too many descriptors.
    pub fn one_way() -> io::Result<(Doorbell, OwnedFd)> {
        let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
        let (reader, writer) = rustix::pipe::pipe_with(flags)?;
        Ok((Doorbell { fd: writer }, reader))
    }

    /// Wakes whoever sleeps on it.
    ///
    /// # Errors
    /// What the kernel says, such as that a pipe's reader is gone. A bell that is full counts as
    /// success: the sleeper is awake.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the signals; without any it does nothing.
    pub fn clear(&self) {
        // An error here means only that there was nothing to take.
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8 * CLEARED_MAX]);
    }

    /// A second descriptor of the same doorbell, to be sent to another process.
    ///
    /// # Errors
    /// What the kernel says, such as too many descriptors.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }
}

impl From<OwnedFd> for Doorbell {
    /// Adopts a doorbell that another process sent.
    fn from(fd: OwnedFd) -> Doorbell {
        Doorbell { fd }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn rings(bell: &Doorbell) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        poll(&mut [PollFd::new(bell, PollFlags::IN)], Some(&now)) == Ok(1)
    }

    #[test]
    fn signals_are_seen_and_taken() {
        let eventfd = || {
            let bell = Doorbell::new().unwrap();
            let same = Doorbell::from(bell.try_clone().unwrap());
            (bell, same)
        };
        let pipe = || {
            let (bell, reader) = Doorbell::one_way().unwrap();
            (bell, Doorbell::from(reader))
        };
        for (far, near) in [eventfd(), pipe()] {
            near.clear();
            assert!(!rings(&near));
            for count in [1, CLEARED_MAX] {
                (0..count).for_each(|_| far.signal().unwrap());
                assert!(rings(&near));
                near.clear();
                assert!(!rings(&near));
            }
        }
    }

    #[test]
    fn a_reader_can_neither_ring_nor_block_a_one_way_bell() {
        let (bell, reader) = Doorbell::one_way().unwrap();
        let reader = Doorbell::from(reader);
        assert!(reader.signal().is_err());
        rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::empty()).unwrap();
        // More than any pipe holds.
        (0..100_000).for_each(|_| bell.signal().unwrap());
        drop(reader);
        assert!(bell.signal().is_err());
    }
}
