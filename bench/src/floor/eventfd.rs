//! An eventfd each way, read blocking.

use std::os::fd::OwnedFd;

use rustix::event::EventfdFlags;
use rustix::io::Errno;

use super::Means;
use crate::error::{Doing, Error};
use crate::far::Invitation;

const TURN: u64 = 1;
const STOP: u64 = 2;

#[derive(Debug)]
pub struct Bells {
    there: OwnedFd,
    back: OwnedFd,
}

impl Means for Bells {
    fn open() -> Result<(Bells, Vec<OwnedFd>), Error> {
        let bell = || rustix::event::eventfd(0, EventfdFlags::CLOEXEC).doing("eventfd");
        let (there, back) = (bell()?, bell()?);
        let copy = |fd: &OwnedFd| fd.try_clone().doing("eventfd");
        let descriptors = vec![copy(&there)?, copy(&back)?];
        Ok((Bells { there, back }, descriptors))
    }

    fn round_trip(&mut self) -> Result<(), Error> {
        write(&self.there, TURN)?;
        read(&self.back)?;
        Ok(())
    }

    fn stop(self) -> Result<(), Error> {
        write(&self.there, STOP)
    }

    fn answer(
        invitation: Invitation,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [there, back] = invitation.take()?;
        ready()?;
        while read(&there)? != STOP {
            write(&back, TURN)?;
        }
        Ok(())
    }
}

fn write(bell: &OwnedFd, value: u64) -> Result<(), Error> {
    rustix::io::write(bell, &value.to_ne_bytes()).doing("eventfd write")?;
    Ok(())
}

fn read(bell: &OwnedFd) -> Result<u64, Error> {
    let mut value = [0; 8];
    loop {
        match rustix::io::read(bell, &mut value) {
            Err(Errno::INTR) => {}
            result => {
                result.doing("eventfd read")?;
                return Ok(u64::from_ne_bytes(value));
            }
        }
    }
}
