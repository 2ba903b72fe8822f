//! The clock of deadlines: CLOCK_MONOTONIC in nanoseconds, the same in every process of a host.

use rustix::event::Timespec;

/// The deadline of what may take for ever.
pub const NEVER_NS: u64 = u64::MAX;

/// Now. Async-signal-safe; no system call where the kernel has a vDSO.
#[inline]
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // The C library's, as tools that run a program by parts (valgrind) hide the vDSO from all others.
    // SAFETY: `now` is writable; this clock always exists, so the call can not fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
    // The monotonic clock starts at boot and never is negative.
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The instant `timeout_ns` from now; [`NEVER_NS`] stays what it is.
pub(crate) fn after(timeout_ns: u64) -> u64 {
    if timeout_ns == NEVER_NS { NEVER_NS } else { now_ns().saturating_add(timeout_ns) }
}

/// What is left until `deadline_ns` in the form poll takes; `None` is for ever.
pub(crate) fn left(deadline_ns: u64) -> Option<Timespec> {
    if deadline_ns == NEVER_NS {
        return None;
    }
    let left_ns = deadline_ns.saturating_sub(now_ns());
    let (seconds, rest_ns) = (left_ns / 1_000_000_000, left_ns % 1_000_000_000);
    // Both fit: a u64 of nanoseconds is 585 years.
    Some(Timespec { tv_sec: seconds as i64, tv_nsec: rest_ns as i64 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_and_for_ever_stays_for_ever() {
        let first = now_ns();
        assert!(now_ns() >= first);
        assert_eq!(after(NEVER_NS), NEVER_NS);
        assert_eq!(after(NEVER_NS - 1), NEVER_NS);
        assert!(left(NEVER_NS).is_none());
        assert_eq!(left(0).map(|left| (left.tv_sec, left.tv_nsec)), Some((0, 0)));
        let hour = left(after(3_600_000_000_000)).map(|left| left.tv_sec);
        assert!(hour.is_some_and(|seconds| (3_590..=3_600).contains(&seconds)));
    }
}
