//! Floors: the least that a round trip between two processes can cost with each means the system
//! offers. Whatever gpulet's round trip costs is told beside them, measured in the same run.

mod eventfd;
mod futex;
#[cfg(feature = "iceoryx2")]
mod iceoryx;
mod spin;
mod tcp;
mod unix;

use std::os::fd::{AsFd, OwnedFd};

use clap::ValueEnum;

use crate::error::Error;
use crate::far::{Cpus, Far, Invitation};
use crate::stats::{self, Round, Window};

/// Bytes of a message where there are messages.
const MESSAGE_BYTES: usize = 64;

/// What carries a round trip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Floor {
    /// A cache line each way, both sides spinning.
    Spin,
    /// A futex each way.
    Futex,
    /// An eventfd each way.
    Eventfd,
    /// A Unix stream socket, 64 bytes each way.
    Unix,
    /// TCP over loopback, 64 bytes each way, no delay.
    Tcp,
    /// iceoryx2's request-response, 64 bytes each way, both sides polling.
    #[cfg(feature = "iceoryx2")]
    Iceoryx2,
}

/// One means, with its near and its far side.
trait Means: Sized {
    /// The near side, and the descriptors that the far side needs.
    fn open() -> Result<(Self, Vec<OwnedFd>), Error>;

    /// Called once, after the far side said that it is ready.
    fn settle(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// There and back again.
    fn round_trip(&mut self) -> Result<(), Error>;

    /// Makes the far side's [`answer`](Self::answer) return.
    fn stop(self) -> Result<(), Error>;

    /// The far side: calls `ready`, then answers until it is stopped.
    fn answer(
        invitation: Invitation,
        ready: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error>;
}

impl Floor {
    /// As the table calls it.
    pub fn title(self) -> &'static str {
        match self {
            Floor::Spin => "spinning cache line",
            Floor::Futex => "futex",
            Floor::Eventfd => "eventfd",
            Floor::Unix => "Unix socket, 64 B",
            Floor::Tcp => "TCP loopback, 64 B",
            #[cfg(feature = "iceoryx2")]
            Floor::Iceoryx2 => "iceoryx2 request-response, busy, 64 B",
        }
    }

    /// Measures one round, the near side being this thread.
    ///
    /// # Errors
    /// What the kernel or the means says.
    pub fn round(self, cpus: Cpus, window: Window) -> Result<Round, Error> {
        match self {
            Floor::Spin => self.run::<spin::Lines>(cpus, window),
            Floor::Futex => self.run::<futex::Words>(cpus, window),
            Floor::Eventfd => self.run::<eventfd::Bells>(cpus, window),
            Floor::Unix => self.run::<unix::Socket>(cpus, window),
            Floor::Tcp => self.run::<tcp::Socket>(cpus, window),
            #[cfg(feature = "iceoryx2")]
            Floor::Iceoryx2 => self.run::<iceoryx::Service>(cpus, window),
        }
    }

    /// The far side of a round.
    ///
    /// # Errors
    /// What the kernel or the means says.
    pub fn answer(self) -> Result<(), Error> {
        let invitation = Invitation::receive()?;
        let ready = crate::far::ready;
        match self {
            Floor::Spin => spin::Lines::answer(invitation, ready),
            Floor::Futex => futex::Words::answer(invitation, ready),
            Floor::Eventfd => eventfd::Bells::answer(invitation, ready),
            Floor::Unix => unix::Socket::answer(invitation, ready),
            Floor::Tcp => tcp::Socket::answer(invitation, ready),
            #[cfg(feature = "iceoryx2")]
            Floor::Iceoryx2 => iceoryx::Service::answer(invitation, ready),
        }
    }

    fn run<M: Means>(self, cpus: Cpus, window: Window) -> Result<Round, Error> {
        let (mut means, descriptors) = M::open()?;
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        let kind = self.to_possible_value().map(|value| value.get_name().to_owned());
        let far = Far::start(&kind.unwrap_or_default(), cpus.far, &borrowed)?;
        drop(borrowed);
        drop(descriptors);
        means.settle()?;
        let round = stats::measure(window, || means.round_trip())?;
        means.stop()?;
        far.join()?;
        Ok(round)
    }
}
