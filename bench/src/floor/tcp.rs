//! TCP over loopback, 64 bytes each way, without delay.

use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;

use super::{Means, unix};
use crate::error::{Doing, Error};
use crate::far::Invitation;

#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
}

impl Means for Socket {
    fn open() -> Result<(Socket, Vec<OwnedFd>), Error> {
        let connect = || {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let stream = TcpStream::connect(listener.local_addr()?)?;
            let (far, _) = listener.accept()?;
            for end in [&stream, &far] {
                end.set_nodelay(true)?;
            }
            Ok::<_, std::io::Error>((stream, far))
        };
        let (stream, far) = connect().doing("TCP")?;
        Ok((Socket { stream }, vec![far.into()]))
    }

    fn round_trip(&mut self) -> Result<(), Error> {
        unix::exchange(&mut self.stream).doing("TCP")
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
        unix::serve(&mut TcpStream::from(fd)).doing("TCP")
    }
}
