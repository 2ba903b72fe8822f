//! Waiting for completions: asleep, awake, or asleep after a while.

use std::mem::MaybeUninit;

use bytemuck::Zeroable;
use gpulet_abi::layout::Completion;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::Session;
use super::exchange::as_uninit;
use crate::clock;
use crate::error::Error;
use crate::options::Wait;

/// Looks at the ring between two looks at the clock and at the region's end.
const POLLS: u32 = 64;
/// How often a spinning client looks for a daemon that died without a word in the region.
const SOCKET_LOOK_NS: u64 = 4_000_000;
/// How often a spinning client offers its core to others: with more that spin than there are cores,
/// the daemon may be waiting for just that. Costs nothing that shows on a core of its own.
const YIELD_NS: u64 = 50_000;
/// How long a goodbye may be behind the word in the region.
const GOODBYE_NS: u64 = 50_000_000;

/// What ended a sleep.
#[derive(Clone, Copy, Default)]
struct Woken {
    bell: bool,
    socket: bool,
}

impl Session {
    /// Takes completions as [`reap`](Session::reap) does, but waits for the first, as the session's
    /// options say, for `timeout_ns` at most (`u64::MAX`: for ever). What is held is published.
    ///
    /// # Errors
    /// [`Error::Timeout`], [`Error::Ended`] when nothing is left to take, [`Error::Forked`],
    /// [`gpulet_abi::status::Status::InvalidArgument`] for an empty `out`.
    #[inline]
    pub fn wait(&mut self, out: &mut [Completion], timeout_ns: u64) -> Result<usize, Error> {
        self.wait_into(as_uninit(out), timeout_ns)
    }

    /// Waits for one completion.
    ///
    /// # Errors
    /// Those of [`wait`](Session::wait).
    #[inline]
    pub fn next(&mut self, timeout_ns: u64) -> Result<Completion, Error> {
        let mut answer = [Completion::zeroed()];
        self.wait(&mut answer, timeout_ns)?;
        Ok(answer[0])
    }

    #[inline]
    pub(crate) fn wait_into(
        &mut self,
        out: &mut [MaybeUninit<Completion>],
        timeout_ns: u64,
    ) -> Result<usize, Error> {
        self.same_process()?;
        if out.is_empty() {
            return Err(Error::argument("max", "waiting needs room for at least one completion"));
        }
        self.publish()?;
        let count = self.take(out);
        if count > 0 {
            return Ok(count);
        }
        match self.wait {
            _ if timeout_ns == 0 => self.nothing_now(),
            Wait::Block => self.sleep(out, timeout_ns),
            Wait::Spin => match self.spin(out, timeout_ns)? {
                0 => Err(Error::Timeout("wait")),
                count => Ok(count),
            },
            Wait::Hybrid(spin_ns) => match self.spin(out, spin_ns.min(timeout_ns))? {
                0 if timeout_ns <= spin_ns => Err(Error::Timeout("wait")),
                0 if timeout_ns == clock::NEVER_NS => self.sleep(out, timeout_ns),
                0 => self.sleep(out, timeout_ns - spin_ns),
                count => Ok(count),
            },
        }
    }

    fn nothing_now(&mut self) -> Result<usize, Error> {
        if self.lives() { Err(Error::Timeout("wait")) } else { Err(self.over()) }
    }

    /// Looks at the ring again and again; 0 once `limit_ns` went by.
    fn spin(&mut self, out: &mut [MaybeUninit<Completion>], limit_ns: u64) -> Result<usize, Error> {
        let mut started_ns = None;
        let (mut looked_ns, mut yielded_ns) = (0, 0);
        loop {
            for _ in 0..POLLS {
                let count = self.take(out);
                if count > 0 {
                    return Ok(count);
                }
                std::hint::spin_loop();
            }
            if !self.lives() {
                return self.last_answers(out);
            }
            let now_ns = clock::now_ns();
            let since_ns = *started_ns.get_or_insert_with(|| {
                (looked_ns, yielded_ns) = (now_ns, now_ns);
                now_ns
            });
            if now_ns - since_ns >= limit_ns {
                return Ok(0);
            }
            if now_ns - looked_ns >= SOCKET_LOOK_NS {
                looked_ns = now_ns;
                self.look_at_socket();
            }
            if now_ns - yielded_ns >= YIELD_NS {
                yielded_ns = now_ns;
                std::thread::yield_now();
            }
        }
    }

    /// Sleeps until the daemon rings or the socket speaks.
    fn sleep(
        &mut self,
        out: &mut [MaybeUninit<Completion>],
        timeout_ns: u64,
    ) -> Result<usize, Error> {
        let deadline_ns = clock::after(timeout_ns);
        loop {
            let quiet = match self.completions.prepare_sleep() {
                Ok(quiet) => quiet,
                Err(_) => {
                    self.deafen("an impossible cursor of the completion ring");
                    false
                }
            };
            // The announcement is out, so an end from here on comes with a packet or a hang-up.
            if !self.lives() {
                self.completions.awake();
                return self.last_answers(out);
            }
            let mut woken = Woken::default();
            if quiet {
                woken = self.doze(deadline_ns)?;
                self.completions.awake();
            }
            if woken.bell {
                self.completion_bell.clear();
            }
            let count = self.take(out);
            if count > 0 {
                return Ok(count);
            }
            if woken.socket {
                self.look_at_socket();
            }
            if self.lives() && deadline_ns != clock::NEVER_NS && clock::now_ns() >= deadline_ns {
                return Err(Error::Timeout("wait"));
            }
        }
    }

    /// The session is over: what came before its end, else why.
    #[cold]
    fn last_answers(&mut self, out: &mut [MaybeUninit<Completion>]) -> Result<usize, Error> {
        match self.take(out) {
            0 if self.heard() => Err(self.over()),
            0 => {
                // Only the region was seen. Its word comes with a goodbye, which says more; whoever
                // waits can wait for that too.
                let mut fds = [PollFd::new(&self.control, PollFlags::IN)];
                let _ = poll(&mut fds, clock::left(clock::after(GOODBYE_NS)).as_ref());
                Err(self.over())
            }
            count => Ok(count),
        }
    }

    fn doze(&self, deadline_ns: u64) -> Result<Woken, Error> {
        let mut fds = [
            PollFd::new(&self.completion_bell, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        match poll(&mut fds, clock::left(deadline_ns).as_ref()) {
            Ok(_) if fds.iter().any(|fd| fd.revents().contains(PollFlags::NVAL)) => {
                Err(Error::argument("session", "the program closed descriptors of it"))
            }
            Ok(_) => Ok(Woken {
                bell: !fds[0].revents().is_empty(),
                socket: !fds[1].revents().is_empty(),
            }),
            // A signal handler ran: the caller goes round, with the time that is left.
            Err(Errno::INTR) => Ok(Woken::default()),
            Err(errno) => Err(Error::Kernel { what: "poll", source: errno.into() }),
        }
    }

    /// Asks for the next completion to make [`fd`](Session::fd) readable. Returns whether
    /// completions are there already: then reap, do not poll.
    ///
    /// # Errors
    /// [`Error::Ended`] when nothing is left to take, [`Error::Forked`].
    pub fn arm(&mut self) -> Result<bool, Error> {
        self.same_process()?;
        if self.end.is_none() {
            // Signals of before are cleared first: whatever they told of is seen below.
            self.completion_bell.clear();
        }
        self.publish()?;
        let quiet = match self.completions.prepare_sleep() {
            Ok(quiet) => quiet || self.deaf,
            Err(_) => {
                self.deafen("an impossible cursor of the completion ring");
                true
            }
        };
        // A hang-up keeps the descriptor readable, so a program that polls would only ever come
        // back here: this is where it learns of the end.
        self.look_at_socket();
        if quiet && !self.lives() {
            let left = !self.deaf && self.completions.refresh().is_ok_and(|unread| unread > 0);
            return if left { Ok(true) } else { Err(self.over()) };
        }
        Ok(!quiet)
    }
}
