//! Threads whose work can wait, beside an executor that serves.

use std::fs;
use std::thread::available_parallelism;

/// Has this thread, and those that it starts, run only where no other wants the CPU, until it ends;
/// unless all CPUs are wanted now, for then it might never end.
///
/// A low priority is not enough: a thread that wakes up for a batch then still waits for the slice of
/// the one that is on its CPU, up to 3 ms.
pub(super) fn give_way() {
    let cpus = available_parallelism().map_or(1, usize::from);
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    if wanted_cpus(&load).is_none_or(|wanted| wanted >= cpus) {
        return;
    }
    let none = libc::sched_param { sched_priority: 0 };
    // SAFETY: the parameter is valid, and 0 is this thread.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &none) } != 0 {
        let error = std::io::Error::last_os_error();
        tracing::warn!("this takes CPU time from those who serve: {error}");
    }
}

/// Threads that run or could, by what the kernel says: three averages, then "2/815", then a process.
fn wanted_cpus(load: &str) -> Option<usize> {
    load.split_whitespace().nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_that_could_run_are_counted() {
        assert_eq!(wanted_cpus("0.31 1.08 2.10 5/815 4711\n"), Some(5));
        assert_eq!((wanted_cpus(""), wanted_cpus("0.3 1.0 2.1 x/8 1")), (None, None));
    }

    #[test]
    fn a_thread_that_gives_way_ends() {
        std::thread::spawn(give_way).join().unwrap();
    }
}
