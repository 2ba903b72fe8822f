//! Sleeping to the microsecond, and waking for what is expected.
//!
//! The kernel's poll sleeps for whole milliseconds; a timer beside it does not. The end of a batch on
//! the host, whose executor computes until then, is known in advance, so the daemon sleeps until
//! shortly before and polls for the report: a wake-up by the report itself costs more than ten
//! microseconds, and polling all the while costs a CPU. On a device the executor announces its report.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};

/// So long before a batch may end polling begins: what a timer and a wake-up take.
const WAKE_NS: u64 = 30_000;
const NS_PER_S: u64 = 1_000_000_000;

/// A timer among the event sources. Its events only wake.
#[derive(Debug)]
pub(super) struct Alarm {
    timer: OwnedFd,
    set_ns: u64,
}

impl Alarm {
    /// A timer that is not set.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn new(registry: &Registry, token: Token) -> io::Result<Alarm> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        // Edge-triggered: every expiry is an event, whether or not the timer is read.
        registry.register(&mut SourceFd(&timer.as_raw_fd()), token, Interest::READABLE)?;
        Ok(Alarm { timer, set_ns: 0 })
    }

    /// Has it wake at a time, CLOCK_MONOTONIC, and at no other.
    ///
    /// # Errors
    /// What the kernel says.
    pub(super) fn set(&mut self, at_ns: u64) -> io::Result<()> {
        if self.set_ns == at_ns {
            return Ok(());
        }
        // Zero would switch it off.
        let at_ns = at_ns.max(1);
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let at = Timespec { tv_sec: (at_ns / NS_PER_S) as i64, tv_nsec: (at_ns % NS_PER_S) as i64 };
        let when = Itimerspec { it_interval: never, it_value: at };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &when)?;
        self.set_ns = at_ns;
        Ok(())
    }
}

/// What the batches under way ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Watch {
    /// One may end any moment: poll.
    pub poll: bool,
    /// When to poll next; `u64::MAX` if nothing is known.
    pub wake_ns: u64,
}

/// Looks at when batches may end, and polls for `patience_ns` beyond that. A batch that is later than
/// that rings when it ends.
pub(super) fn watch(now_ns: u64, patience_ns: u64, ends: impl Iterator<Item = u64>) -> Watch {
    let mut watch = Watch { poll: false, wake_ns: u64::MAX };
    for end_ns in ends {
        let from_ns = end_ns.saturating_sub(WAKE_NS);
        if now_ns < from_ns {
            watch.wake_ns = watch.wake_ns.min(from_ns);
        } else if now_ns < end_ns.saturating_add(patience_ns) {
            watch.poll = true;
        }
    }
    watch
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mio::{Events, Poll};

    use super::*;
    use crate::clock::now_ns;

    #[test]
    fn an_alarm_wakes_at_its_time_each_time() {
        let mut poll = Poll::new().unwrap();
        let mut alarm = Alarm::new(poll.registry(), Token(7)).unwrap();
        let mut events = Events::with_capacity(4);
        for _ in 0..3 {
            let at_ns = now_ns() + 200_000;
            alarm.set(at_ns).unwrap();
            while events.is_empty() {
                poll.poll(&mut events, Some(Duration::from_secs(60))).unwrap();
            }
            assert!(now_ns() >= at_ns);
            assert_eq!(events.iter().next().map(mio::event::Event::token), Some(Token(7)));
            poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            assert!(events.is_empty(), "it woke for longer than once");
        }
        // A time that is put off does not wake.
        alarm.set(now_ns() + 1_000_000_000).unwrap();
        alarm.set(now_ns() + 60_000_000_000).unwrap();
        poll.poll(&mut events, Some(Duration::from_millis(1_100))).unwrap();
        assert!(events.is_empty());
    }

    #[test]
    fn polling_begins_before_the_soonest_end_and_ends_when_it_is_late() {
        let at = |now_ns| watch(now_ns, 20_000, [1_000_000, 2_000_000].into_iter());
        let asleep = |wake_ns| Watch { poll: false, wake_ns };
        let polls = |wake_ns| Watch { poll: true, wake_ns };
        let (first_ns, second_ns) = (1_000_000 - WAKE_NS, 2_000_000 - WAKE_NS);
        assert_eq!(at(0), asleep(first_ns));
        assert_eq!(at(first_ns), polls(second_ns));
        assert_eq!(at(1_019_999), polls(second_ns));
        assert_eq!(at(1_020_000), asleep(second_ns), "its bell wakes us");
        assert_eq!(at(2_000_000), polls(u64::MAX));
        assert_eq!(at(2_020_000), asleep(u64::MAX));
        assert_eq!(watch(5, 20_000, [0, 3].into_iter()), polls(u64::MAX));
        assert_eq!(watch(5, 20_000, std::iter::empty()), asleep(u64::MAX));
    }
}
