//! The control socket, as the executor sees it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::Daemon;
use crate::wire::{self, FromExecutor, MESSAGE_BYTES_MAX, ToExecutor};

/// How long a wait for the other side lasts before what it waits for is looked at again.
const WAIT: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000 };
const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

/// What there is to hear.
#[derive(Debug)]
pub enum Heard {
    /// A message with its descriptors.
    Message(ToExecutor, Vec<OwnedFd>),
    /// Nothing at the moment.
    Nothing,
    /// The daemon is gone.
    HangUp,
}

/// The executor's end; may block or not, as its calls poll before.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Adopts the socket.
    pub fn new(socket: OwnedFd) -> Control {
        Control { socket }
    }

    /// What there is to hear now.
    ///
    /// # Errors
    /// `InvalidData` for what is no message, else what the kernel says.
    pub fn hear(&self) -> io::Result<Heard> {
        if self.poll(PollFlags::IN, Some(&NOW))?.is_empty() {
            return Ok(Heard::Nothing);
        }
        match wire::receive(self) {
            Ok(Some((message, descriptors))) => Ok(Heard::Message(message, descriptors)),
            Ok(None) => Ok(Heard::HangUp),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => Ok(Heard::Nothing),
                io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Ok(Heard::HangUp),
                _ => Err(error),
            },
        }
    }

    /// Waits for a message or for the hang-up.
    ///
    /// # Errors
    /// As [`hear`](Self::hear).
    pub fn wait(&self) -> io::Result<Heard> {
        loop {
            self.poll(PollFlags::IN, None)?;
            match self.hear()? {
                Heard::Nothing => {}
                heard => return Ok(heard),
            }
        }
    }

    /// Sleeps for a moment; whether the daemon is gone.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn wait_for_hang_up(&self) -> io::Result<bool> {
        Ok(self.poll(PollFlags::empty(), Some(&WAIT))?.contains(PollFlags::HUP))
    }

    /// Sends a message, waiting for room.
    pub(super) fn send(&self, message: &FromExecutor) -> io::Result<Daemon> {
        loop {
            match wire::send(self, message, &[]) {
                Ok(()) => return Ok(Daemon::Here),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.poll(PollFlags::OUT, None)?;
                }
                Err(error) => {
                    return match error.kind() {
                        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
                            Ok(Daemon::Gone)
                        }
                        _ => Err(error),
                    };
                }
            }
        }
    }

    fn poll(&self, events: PollFlags, timeout: Option<&Timespec>) -> io::Result<PollFlags> {
        let mut fds = [PollFd::new(&self.socket, events)];
        match poll(&mut fds, timeout) {
            Ok(_) => Ok(fds[0].revents()),
            Err(Errno::INTR) => Ok(PollFlags::empty()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// An error text that fits a message whatever characters it is made of.
pub fn cut(mut text: String) -> String {
    // JSON makes six characters of a control character.
    let mut end = text.len().min(MESSAGE_BYTES_MAX / 8);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_error_fits_a_message() {
        let (near, far) = gpulet_abi::frame::pair().unwrap();
        let error = cut("\u{1}".repeat(1 << 20));
        let message = FromExecutor::StartFailed { error };
        wire::send(&near, &message, &[]).unwrap();
        let (received, _): (FromExecutor, _) = wire::receive(&far).unwrap().unwrap();
        assert_eq!(received, message);
        assert_eq!(cut("é".repeat(MESSAGE_BYTES_MAX)).len() % 2, 0);
    }
}
