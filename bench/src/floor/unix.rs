//! A Unix stream socket, 64 bytes each way.

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::{MESSAGE_BYTES, Means};
use crate::error::{Doing, Error};
use crate::far::Invitation;

#[derive(Debug)]
pub struct Socket {
    stream: UnixStream,
}

impl Means for Socket {
    fn open() -> Result<(Socket, Vec<OwnedFd>), Error> {
        let (stream, far) = UnixStream::pair().doing("socketpair")?;
        Ok((Socket { stream }, vec![far.into()]))
    }

    fn round_trip(&mut self) -> Result<(), Error> {
        exchange(&mut self.stream).doing("Unix socket")
    }

    fn stop(self) -> Result<(), Error> {
        // Closing it is the sign.
        Ok(())
    }

    fn answer(
        invitation: Invitation,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [fd] = invitation.take()?;
        ready()?;
        serve(&mut UnixStream::from(fd)).doing("Unix socket")
    }
}

/// Sends a message and takes one back.
pub(super) fn exchange(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    stream.write_all(&[1; MESSAGE_BYTES])?;
    stream.read_exact(&mut [0; MESSAGE_BYTES])
}

/// Sends every message back until the other side hangs up.
pub(super) fn serve(stream: &mut (impl Read + Write)) -> std::io::Result<()> {
    let mut message = [0; MESSAGE_BYTES];
    loop {
        match stream.read_exact(&mut message) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        }
        stream.write_all(&message)?;
    }
}
