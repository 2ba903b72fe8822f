//! Doorbells: eventfds that wake a sleeping reader of a ring.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::EventfdFlags;

/// An eventfd. Signals add up, and one [`clear`](Self::clear) takes them all.
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

    /// Wakes whoever sleeps on it.
    ///
    /// # Errors
    /// What the kernel says. A counter that is full counts as success: the sleeper is awake.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes all signals; without any it does nothing.
    pub fn clear(&self) {
        // An error here means only that there was nothing to take.
        let _ = rustix::io::read(&self.fd, &mut [0u8; 8]);
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
    /// Adopts an eventfd that another process sent.
    fn from(fd: OwnedFd) -> Doorbell {
        Doorbell { fd }
    }
}

impl AsFd for Doorbell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
