//! The far end of an executor: a process that does nothing, whose control socket and link are taken
//! over here. What it is told is checked, and what it reports is up to the input.
//!
//! Processes outlive inputs, because starting one takes as long as many inputs do. One that is used
//! again is as good as new: its regions are forgotten, and nothing lies unread in its rings.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use gpulet_abi::region::{Geometry, MappedRing};
use gpulet_abi::ring::{Consumer, Producer, RingMemory};
use gpulet_abi::status::Status;
use gpulet_abi::sync::Ordering;
use gpulet_daemon::executor::{Executor, State};
use gpulet_daemon::wire::{BatchCommand, BatchReport, DEPTH_MAX, Link, ToExecutor, receive};
use mio::{Poll, Registry, Token};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// What runs in place of an executor.
const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/stand-in.sh");
/// Looks for the end of a process that was killed, a millisecond apart.
const REAP_LOOKS: u32 = 10_000;

thread_local! {
    static IDLE: RefCell<Vec<(Executor, Far)>> = const { RefCell::new(Vec::new()) };
    static POLL: Poll = Poll::new().expect("descriptors");
}

/// See the module.
pub(super) struct Far {
    control: OwnedFd,
    commands: Consumer<MappedRing, BatchCommand>,
    reports: Producer<MappedRing, BatchReport>,
    /// Slots of each region that it was told to map.
    regions: BTreeMap<u32, u32>,
    /// The batches that it was told to run and has not reported, in order.
    batches: Vec<BatchCommand>,
    gpulet_count: usize,
    /// Nobody can talk to it any more.
    broken: bool,
}

/// An executor with a running process; `None` where the kernel does not let us take its end over.
pub(super) fn start(new: Executor) -> (Executor, Option<Far>) {
    let alike = |(idle, _): &(Executor, Far)| idle.gpulets.len() == new.gpulets.len();
    let idle = IDLE.with_borrow_mut(|idle| {
        let position = idle.iter().position(alike)?;
        Some(idle.swap_remove(position))
    });
    if let Some((mut executor, far)) = idle {
        executor.gpulets = new.gpulets;
        return (executor, Some(far));
    }
    let mut executor = new;
    let started = POLL.with(|poll| attach(&mut executor, poll.registry()));
    match started {
        Ok(far) => (executor, Some(far)),
        Err(error) => {
            eprintln!("no executor will ever report: {error}");
            bury(&mut executor);
            (executor, None)
        }
    }
}

fn attach(executor: &mut Executor, registry: &Registry) -> io::Result<Far> {
    executor.spawn(Path::new(PROGRAM), registry, Token(0))?;
    let pid = executor.pid().and_then(|pid| Pid::from_raw(pid as i32));
    let process = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    let control = pidfd_getfd(process, 0, PidfdGetfdFlags::empty())?;
    let Some((ToExecutor::Start(_), descriptors)) = receive(&control)? else {
        panic!("an executor is told to start first");
    };
    let link = descriptors.into_iter().next().expect("the link comes with it");
    let (commands, reports) = Link::attach(link).expect("the daemon's own link").executor_ends();
    let (regions, batches) = (BTreeMap::new(), Vec::new());
    let gpulet_count = executor.gpulets.len();
    Ok(Far { control, commands, reports, regions, batches, gpulet_count, broken: false })
}

/// Ends the process of an executor and waits until it is gone.
pub(super) fn bury(executor: &mut Executor) {
    executor.kill();
    for _ in 0..REAP_LOOKS {
        if executor.pid().is_none() || POLL.with(|poll| executor.reap(poll.registry(), 0)) {
            return;
        }
        sleep(Duration::from_millis(1));
    }
    panic!("an executor does not die");
}

/// Keeps an executor that is idle for the next input.
pub(super) fn keep(mut executor: Executor, mut far: Far) {
    if far.renew(&mut executor) {
        IDLE.with_borrow_mut(|idle| idle.push((executor, far)));
    } else {
        bury(&mut executor);
    }
}

impl Far {
    /// Makes it as good as a new process; `false` if it cannot be.
    pub fn renew(&mut self, executor: &mut Executor) -> bool {
        self.listen();
        self.batches.clear();
        self.regions.clear();
        while executor.report().is_some() {}
        !self.broken && executor.state == State::Running
    }

    /// Hears everything it is told, and finds that it makes sense.
    pub fn listen(&mut self) {
        while let Ok(Some((message, descriptors))) = receive::<ToExecutor>(&self.control) {
            match message {
                ToExecutor::Map { region, geometry } => {
                    let whole = Geometry::new(geometry.slot_bytes, geometry.slot_count);
                    assert!(whole.is_some() && descriptors.len() == 1);
                    let before = self.regions.insert(region, geometry.slot_count);
                    assert_eq!(before, None, "a region is mapped twice");
                }
                ToExecutor::Unmap { region } => {
                    assert!(self.regions.remove(&region).is_some(), "it was never mapped");
                }
                other => panic!("the dispatcher does not say {other:?}"),
            }
        }
        if self.broken {
            return;
        }
        while let Some(command) = self.commands.pop().expect("the daemon's cursor is in range") {
            self.commands.release();
            self.check(&command);
            self.batches.push(command);
            let there = self.batches.iter().filter(|it| it.gpulet == command.gpulet).count();
            let depth = if self.gpulet_count == 1 { 1 } else { DEPTH_MAX };
            assert!(there <= depth, "more batches than a gpulet takes");
        }
    }

    fn check(&self, command: &BatchCommand) {
        assert!((command.gpulet as usize) < self.gpulet_count);
        let requests = &command.requests[..command.request_count as usize];
        assert!(!requests.is_empty());
        let rows: u32 = requests.iter().map(|request| request.rows).sum();
        assert_eq!(rows, command.rows);
        for request in requests {
            let slot_count = self.regions.get(&request.region);
            assert!(slot_count.is_some_and(|count| request.slot < *count), "no such slot");
            assert!(request.rows > 0);
        }
    }

    /// Reports the first batch of a gpulet, or what it never was told to run.
    pub fn report(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        self.listen();
        let gpulet = input.int_in_range(0..=self.gpulet_count as u32 - 1)?;
        let first = self.batches.iter().position(|it| it.gpulet == gpulet);
        let batch = match first.map(|first| self.batches.remove(first)) {
            Some(command) => command.batch ^ u64::from(input.ratio(1, 128)?),
            None if input.ratio(1, 64)? => input.arbitrary::<u8>()?.into(),
            None => return Ok(()),
        };
        let gpulet = if input.ratio(1, 128)? { input.arbitrary()? } else { gpulet };
        let status = match input.int_in_range(0..=7u8)? {
            0 => Status::ModelError as u8,
            1 => Status::DeadlineExpired as u8,
            2 => input.arbitrary()?,
            _ => Status::Ok as u8,
        };
        let mut report = BatchReport { batch, gpulet, ..bytemuck::Zeroable::zeroed() };
        report.statuses.fill(status);
        report.statuses[1] = input.arbitrary::<u8>()? & 1;
        report.input_bytes_copied = input.arbitrary::<u16>()?.into();
        if self.reports.push(&report).is_ok() {
            let _ = self.reports.commit();
        }
        Ok(())
    }

    /// Writes over a cursor of its link. Rarely, for it costs a process.
    pub fn scribble(&mut self, input: &mut Unstructured<'_>) -> Result<()> {
        if !input.ratio(1, 32)? {
            return Ok(());
        }
        self.broken = true;
        let value = input.arbitrary()?;
        match input.arbitrary()? {
            true => self.reports.memory().tail().store(value, Ordering::Release),
            false => self.commands.memory().head().store(value, Ordering::Release),
        }
        Ok(())
    }
}
