//! A futex each way: the cheapest way to sleep until another process has written.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use gpulet_abi::region::Mapping;
use rustix::io::Errno;
use rustix::thread::futex;

use super::Means;
use crate::error::{Doing, Error};
use crate::far::Invitation;

const BYTES: u64 = 4096;
const THERE: usize = 0;
const BACK: usize = 256;
const STOP: u32 = u32::MAX;

#[derive(Debug)]
pub struct Words {
    mapping: Mapping,
    count: u32,
}

impl Means for Words {
    fn open() -> Result<(Words, Vec<OwnedFd>), Error> {
        let (mapping, fd) = Mapping::create("gpulet-bench", BYTES, BYTES).doing("memfd")?;
        Ok((Words { mapping, count: 0 }, vec![fd]))
    }

    fn round_trip(&mut self) -> Result<(), Error> {
        let seen = self.count;
        self.count = (self.count + 1) % STOP;
        write(self.mapping.atomic_u32(THERE), self.count)?;
        sleep_until_changed(self.mapping.atomic_u32(BACK), seen)?;
        Ok(())
    }

    fn stop(self) -> Result<(), Error> {
        write(self.mapping.atomic_u32(THERE), STOP)
    }

    fn answer(
        invitation: Invitation,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [fd] = invitation.take()?;
        let mapping =
            Mapping::attach(fd, BYTES, BYTES).map_err(|why| Error::failed("mapping", why))?;
        ready()?;
        let mut seen = 0;
        loop {
            seen = sleep_until_changed(mapping.atomic_u32(THERE), seen)?;
            if seen == STOP {
                return Ok(());
            }
            write(mapping.atomic_u32(BACK), seen)?;
        }
    }
}

fn write(word: &AtomicU32, value: u32) -> Result<(), Error> {
    // Release: pairs with the acquire in `sleep_until_changed`.
    word.store(value, Ordering::Release);
    // Not private: the word is shared between processes.
    futex::wake(word, futex::Flags::empty(), 1).doing("futex wake")?;
    Ok(())
}

fn sleep_until_changed(word: &AtomicU32, seen: u32) -> Result<u32, Error> {
    loop {
        let now = word.load(Ordering::Acquire);
        if now != seen {
            return Ok(now);
        }
        match futex::wait(word, futex::Flags::empty(), seen, None) {
            Ok(()) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => return Err(error).doing("futex wait"),
        }
    }
}
