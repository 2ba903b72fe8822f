//! A cache line each way, written by one side and watched by the other: what the hardware itself
//! takes to move a word to another core and one back.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use gpulet_abi::region::Mapping;

use super::Means;
use crate::error::{Doing, Error};
use crate::far::Invitation;

const BYTES: u64 = 4096;
/// Two lines apart, since hardware fetches lines in pairs.
const THERE: usize = 0;
const BACK: usize = 256;
const STOP: u32 = u32::MAX;

#[derive(Debug)]
pub struct Lines {
    mapping: Mapping,
    count: u32,
}

impl Means for Lines {
    fn open() -> Result<(Lines, Vec<OwnedFd>), Error> {
        let (mapping, fd) = Mapping::create("gpulet-bench", BYTES, BYTES).doing("memfd")?;
        Ok((Lines { mapping, count: 0 }, vec![fd]))
    }

    #[inline]
    fn round_trip(&mut self) -> Result<(), Error> {
        self.count = (self.count + 1) % STOP;
        // Release there and back pair with the acquire loads in `await_change`.
        self.mapping.atomic_u32(THERE).store(self.count, Ordering::Release);
        let back = self.mapping.atomic_u32(BACK);
        while back.load(Ordering::Acquire) != self.count {
            std::hint::spin_loop();
        }
        Ok(())
    }

    fn stop(self) -> Result<(), Error> {
        self.mapping.atomic_u32(THERE).store(STOP, Ordering::Release);
        Ok(())
    }

    fn answer(
        invitation: Invitation,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        let [fd] = invitation.take()?;
        let mapping =
            Mapping::attach(fd, BYTES, BYTES).map_err(|why| Error::failed("mapping", why))?;
        let (there, back) = (mapping.atomic_u32(THERE), mapping.atomic_u32(BACK));
        ready()?;
        let mut seen = 0;
        loop {
            seen = await_change(there, seen);
            if seen == STOP {
                return Ok(());
            }
            back.store(seen, Ordering::Release);
        }
    }
}

/// The pause in both loops is part of the floor: without it the watcher asks for the line so often
/// that the writer gets it late, and a round trip takes four times as long.
#[inline]
fn await_change(word: &AtomicU32, seen: u32) -> u32 {
    loop {
        let now = word.load(Ordering::Acquire);
        if now != seen {
            return now;
        }
        std::hint::spin_loop();
    }
}
