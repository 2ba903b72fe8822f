//! Processes as /proc shows them.

use std::fs;

use rustix::process::{Pid, Signal, kill_process};

/// Open descriptors.
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Open descriptors, once their number keeps still: a connection that was closed a moment ago is
/// still open on the daemon's side.
pub fn descriptors_at_rest(pid: u32) -> usize {
    let mut last = (descriptors(pid), 0);
    super::eventually("the number of descriptors keeps still", || {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let now = descriptors(pid);
        last = if now == last.0 { (now, last.1 + 1) } else { (now, 0) };
        (last.1 == 10).then_some(now)
    })
}

/// The number that the next descriptor gets.
pub fn next_descriptor(pid: u32) -> u64 {
    let is_free = |number: &u64| fs::symlink_metadata(format!("/proc/{pid}/fd/{number}")).is_err();
    (0..).find(is_free).unwrap()
}

/// Mappings of clients' regions.
pub fn regions(pid: u32) -> usize {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    maps.lines().filter(|line| line.contains("memfd:gpulet-region")).count()
}

/// Whether it runs, or has ended and is still to be waited for by somebody else.
pub fn exists(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    // The state stands behind the name, which is in parentheses and may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Memory in RAM, in KiB.
pub fn resident_kib(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// CPU time used, in clock ticks (a hundredth of a second each).
pub fn cpu_ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let (_, rest) = stat.rsplit_once(") ").unwrap();
    let field = |index: usize| rest.split(' ').nth(index).unwrap().parse::<u64>().unwrap();
    // utime and stime, the 14th and 15th field of all.
    field(11) + field(12)
}

pub fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
}

/// A process that is stopped until this is dropped.
pub struct Frozen(u32);

impl Frozen {
    pub fn new(pid: u32) -> Frozen {
        signal(pid, Signal::STOP);
        super::eventually("the process is stopped", || {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T')).then_some(())
        });
        Frozen(pid)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // It may have been killed meanwhile, which a stopped process can be.
        let _ = kill_process(Pid::from_raw(self.0 as i32).unwrap(), Signal::CONT);
    }
}
