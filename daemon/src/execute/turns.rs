//! The thread that takes commands and reports.
//!
//! It polls for a while after it had something to do, then sleeps until a doorbell rings. While a
//! batch is under way on a device it sleeps until shortly before the end, as [`super::foresight`]
//! tells, then wakes the daemon and polls: both are awake when the report comes. Where the daemon is
//! not, it sleeps at once, as nothing comes for longer than polling is worth.

use std::num::NonZeroU64;
use std::os::fd::OwnedFd;

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::region::{Geometry, MappedRing, Part, Region};
use gpulet_abi::ring::{Consumer, Producer, PushError};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::control::{self, Control, Heard};
use super::engine::{Engine, Facts, Loaded, News};
use super::foresight::nap_ns;
use super::loader::{self, Loader, Said};
use super::start::Started;
use super::{Daemon, ExecuteError, io_error};
use crate::clock::{self, now_ns};
use crate::wire::{BatchCommand, BatchReport, FromExecutor, RegionGeometry, ToExecutor};

/// How long a busy executor may leave the control socket unread.
const CONTROL_EVERY_NS: u64 = 1_000_000;
/// Looks at the command ring between two looks at the clock.
const LOOKS: u32 = 32;
/// What a daemon that was rung takes to wake up; nothing comes from it before.
const WAKE_NS: u64 = 25_000;

/// Runs an executor until the daemon hangs up.
pub(super) fn run<E: Engine>(
    control: Control,
    started: Started,
    mut engine: E,
    load: E::Load,
) -> Result<(), ExecuteError> {
    // Naps are shorter than what the kernel adds to a timer unless told otherwise.
    let slack = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    slack.map_err(|errno| io_error("timer slack")(errno.into()))?;
    let loader_bell = Doorbell::new().map_err(io_error("eventfd"))?;
    let loader = Loader::start(load, &loader_bell).map_err(io_error("thread"))?;
    engine.employ(loader.later());
    let (commands, reports) = started.link.executor_ends();
    let mut executor = Executor {
        control,
        commands,
        command_bell: started.command_bell,
        reports,
        report_bell: started.report_bell,
        engine,
        gpulet_count: started.gpulet_count,
        loader,
        loader_bell,
        shares_pct: started.shares_pct,
        preparing: None,
        prepared: None,
        spin_ns: started.spin_ns,
        listened_ns: now_ns(),
        napped: false,
        awake_ns: 0,
    };
    match executor.turns() {
        Err(ExecuteError::Fault(fault)) => {
            let error = control::cut(fault.to_string());
            executor
                .control
                .send(&FromExecutor::Faulted { error })
                .map_err(io_error("control socket"))?;
            Err(ExecuteError::Fault(fault))
        }
        other => other,
    }
}

struct Executor<E: Engine> {
    control: Control,
    commands: Consumer<MappedRing, BatchCommand>,
    command_bell: Doorbell,
    reports: Producer<MappedRing, BatchReport>,
    report_bell: Doorbell,
    engine: E,
    gpulet_count: u32,
    loader: Loader<E::Load>,
    loader_bell: Doorbell,
    /// The shares that there are.
    shares_pct: Vec<u8>,
    /// Shares that the engine makes ready for, and those that it is ready for.
    preparing: Option<Vec<u8>>,
    prepared: Option<Vec<u8>>,
    spin_ns: u64,
    /// When the control socket was last looked at.
    listened_ns: u64,
    /// It slept until an end was near, and has neither seen it nor woken the daemon for it.
    napped: bool,
    /// Before this nothing comes of the daemon, which was rung.
    awake_ns: u64,
}

impl<E: Engine> Executor<E> {
    fn turns(&mut self) -> Result<(), ExecuteError> {
        let mut busy_ns = now_ns();
        loop {
            let mut worked = false;
            if let Some(command) = self.next_command()? {
                if self.begin(&command)? == Daemon::Gone {
                    return Ok(());
                }
                worked = true;
            }
            while let Some(report) = self.engine.poll()? {
                if self.report(&report)? == Daemon::Gone {
                    return Ok(());
                }
                worked = true;
            }
            let now_ns = now_ns();
            self.announce(worked, now_ns)?;
            if worked {
                busy_ns = now_ns.max(self.awake_ns);
            }
            let listening = now_ns.saturating_sub(self.listened_ns) >= CONTROL_EVERY_NS;
            if listening && self.listen()? == Daemon::Gone {
                return Ok(());
            }
            let look_ns = self.engine.look_ns();
            let rest = match look_ns {
                Some(_) if self.spin_ns == u64::MAX => None,
                Some(look_ns) => nap_ns(now_ns, look_ns).map(Some),
                // Nothing has come for so long, or nothing will.
                None => (now_ns.abs_diff(busy_ns) >= self.spin_ns).then_some(None),
            };
            let Some(limit_ns) = rest else { continue };
            if self.sleep(limit_ns)? == Daemon::Gone {
                return Ok(());
            }
            // Of a nap while a batch is late nothing is to be learnt.
            if let Some(look_ns) = look_ns.filter(|look_ns| now_ns < *look_ns) {
                let woke_ns = clock::now_ns();
                self.napped = woke_ns >= look_ns;
                self.engine.woke(woke_ns);
            }
        }
    }

    /// Wakes the daemon for a report that is about to come: waking up takes it about as long as what is
    /// left until then, and the time of both counts.
    fn announce(&mut self, reported: bool, now_ns: u64) -> Result<(), ExecuteError> {
        let early = || self.engine.soonest_ns().is_some_and(|end_ns| now_ns + WAKE_NS < end_ns);
        if !self.napped || !reported && early() {
            return Ok(());
        }
        self.napped = false;
        if !reported && self.spin_ns > 0 && self.reports.announce() {
            self.ring()?;
        }
        Ok(())
    }

    fn ring(&mut self) -> Result<(), ExecuteError> {
        self.report_bell.signal().map_err(io_error("report doorbell"))?;
        self.awake_ns = now_ns() + WAKE_NS;
        Ok(())
    }

    /// Looks for a command a few times.
    fn next_command(&mut self) -> Result<Option<BatchCommand>, ExecuteError> {
        for _ in 0..LOOKS {
            if let Some(command) = self.commands.pop()? {
                self.commands.release();
                return Ok(Some(command));
            }
            std::hint::spin_loop();
        }
        Ok(None)
    }

    fn begin(&mut self, command: &BatchCommand) -> Result<Daemon, ExecuteError> {
        // The daemon sends what a command names before the command, so it waits in the socket.
        if self.engine.lacks(command) && self.listen()? == Daemon::Gone {
            return Ok(Daemon::Gone);
        }
        if command.gpulet >= self.gpulet_count {
            return Err(ExecuteError::Protocol(format!("there is no gpulet {}", command.gpulet)));
        }
        self.engine.submit(command)?;
        Ok(Daemon::Here)
    }

    fn report(&mut self, report: &BatchReport) -> Result<Daemon, ExecuteError> {
        loop {
            match self.reports.push(report) {
                Ok(()) => break,
                Err(PushError::OutOfRange(error)) => return Err(error.into()),
                Err(PushError::Full) => {
                    if self.control.wait_for_hang_up().map_err(io_error("poll"))? {
                        return Ok(Daemon::Gone);
                    }
                }
            }
        }
        if self.reports.commit() {
            self.ring()?;
        }
        Ok(Daemon::Here)
    }

    /// Sleeps until there is a command, a control message or a loaded model, or for so long.
    fn sleep(&mut self, limit_ns: Option<u64>) -> Result<Daemon, ExecuteError> {
        if !self.commands.prepare_sleep()? {
            return Ok(Daemon::Here);
        }
        let mut fds = [
            PollFd::new(&self.command_bell, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::new(&self.loader_bell, PollFlags::IN),
        ];
        let limit = limit_ns.map(|ns| Timespec {
            tv_sec: (ns / 1_000_000_000) as i64,
            tv_nsec: (ns % 1_000_000_000) as i64,
        });
        let polled = poll(&mut fds, limit.as_ref());
        let rung = !fds[0].revents().is_empty();
        let spoken = !fds[1].revents().is_empty() || !fds[2].revents().is_empty();
        self.commands.awake();
        match polled {
            Err(Errno::INTR) => return Ok(Daemon::Here),
            Err(errno) => return Err(io_error("poll")(errno.into())),
            // Who sleeps at times has listened.
            Ok(_) => self.listened_ns = now_ns(),
        }
        if rung {
            self.command_bell.clear();
        }
        if spoken { self.listen() } else { Ok(Daemon::Here) }
    }

    /// Reads all control messages, and takes models that are loaded.
    fn listen(&mut self) -> Result<Daemon, ExecuteError> {
        self.listened_ns = now_ns();
        self.loader_bell.clear();
        while let Some(said) = self.loader.take() {
            let answer = match said {
                Said::Step { instance, step } => FromExecutor::Loading { instance, step },
                Said::Done(done) => self.adopt(done),
            };
            if self.control.send(&answer).map_err(io_error("control socket"))? == Daemon::Gone {
                return Ok(Daemon::Gone);
            }
        }
        loop {
            match self.control.hear().map_err(io_error("control socket"))? {
                Heard::Nothing => return self.tell_news(),
                Heard::HangUp => return Ok(Daemon::Gone),
                Heard::Message(message, fds) => self.obey(message, fds)?,
            }
        }
    }

    fn obey(&mut self, message: ToExecutor, fds: Vec<OwnedFd>) -> Result<(), ExecuteError> {
        match message {
            ToExecutor::Start(_) => Err(ExecuteError::Protocol("a second start".to_owned())),
            ToExecutor::Map { region, geometry } => self.map(region, geometry, fds),
            ToExecutor::Unmap { region } => {
                self.engine.unmap(region);
                Ok(())
            }
            ToExecutor::Load { instance, model, manner } => {
                self.loader.load(instance, model, manner);
                Ok(())
            }
            ToExecutor::Unload { instance } => {
                match self.engine.release(instance) {
                    Some(released) => self.loader.later().drop(released),
                    None => self.loader.forget(instance),
                }
                Ok(())
            }
            ToExecutor::Prepare { shares_pct } => self.prepare(shares_pct),
            ToExecutor::Switch { shares_pct } => self.switch(shares_pct),
        }
    }

    fn prepare(&mut self, shares_pct: Vec<u8>) -> Result<(), ExecuteError> {
        if shares_pct.len() != self.gpulet_count as usize || self.preparing.is_some() {
            return Err(ExecuteError::Protocol("prepare: one share a gpulet, once".to_owned()));
        }
        if let Err(error) = self.engine.prepare(&shares_pct) {
            let error = control::cut(error);
            let failed = FromExecutor::PrepareFailed { shares_pct, error };
            // A daemon that is gone is noticed by the next look at its socket.
            self.control.send(&failed).map_err(io_error("control socket"))?;
            return Ok(());
        }
        self.preparing = Some(shares_pct);
        self.prepared = None;
        Ok(())
    }

    fn switch(&mut self, shares_pct: Vec<u8>) -> Result<(), ExecuteError> {
        if self.prepared.take().as_ref() != Some(&shares_pct) {
            return Err(ExecuteError::Protocol("switch: other shares were prepared".to_owned()));
        }
        self.engine.switch();
        tracing::info!(?shares_pct, "shares changed");
        self.shares_pct.clone_from(&shares_pct);
        let shared = FromExecutor::Shared { shares_pct, switched_ns: now_ns() };
        self.control.send(&shared).map_err(io_error("control socket"))?;
        Ok(())
    }

    /// Tells what came of shares that are being prepared, and of models that were loaded soon.
    fn tell_news(&mut self) -> Result<Daemon, ExecuteError> {
        while let Some(news) = self.engine.news() {
            let shares_pct = self.preparing.clone().unwrap_or_default();
            let said = match news {
                News::Step { instance, step } => FromExecutor::Loading { instance, step },
                News::Faster { instance, points } => {
                    let shares_pct = self.shares_pct.clone();
                    FromExecutor::Remeasured { instance, shares_pct, points }
                }
                News::Remeasured { instance, points } => {
                    FromExecutor::Remeasured { instance, shares_pct, points }
                }
                News::Ready => {
                    self.prepared = self.preparing.take();
                    FromExecutor::Prepared { shares_pct }
                }
                News::Failed(error) => {
                    self.preparing = None;
                    FromExecutor::PrepareFailed { shares_pct, error: control::cut(error) }
                }
            };
            if self.control.send(&said).map_err(io_error("control socket"))? == Daemon::Gone {
                return Ok(Daemon::Gone);
            }
        }
        Ok(Daemon::Here)
    }

    fn map(
        &mut self,
        region: u32,
        geometry: RegionGeometry,
        fds: Vec<OwnedFd>,
    ) -> Result<(), ExecuteError> {
        let broken = |rule: &str| Err(ExecuteError::Protocol(format!("map {region}: {rule}")));
        let Some(geometry) = Geometry::new(geometry.slot_bytes, geometry.slot_count) else {
            return broken("slot_bytes and slot_count are out of range");
        };
        let Ok([fd]) = <[OwnedFd; 1]>::try_from(fds) else {
            return broken("one descriptor must come with it");
        };
        match Region::attach_known(fd, geometry, Part::Whole) {
            Ok(mapped) => self.engine.map(region, mapped),
            // Requests of that session will be told; the others need not suffer.
            Err(error) => tracing::error!("session region {region}: {error}"),
        }
        Ok(())
    }

    fn adopt(&mut self, done: loader::Done<Loaded<E>>) -> FromExecutor {
        let loader::Done { instance, outcome, load_ns } = done;
        match outcome {
            Ok(loaded) => {
                let Facts { model, form, points, memory_bytes } =
                    self.engine.adopt(instance, loaded);
                let load_ms = load_ns / 1_000_000;
                tracing::info!(model, form, load_ms, memory_bytes, "model loaded");
                let form = control::cut(form);
                FromExecutor::Loaded { instance, points, load_ns, form, memory_bytes }
            }
            Err(error) => {
                tracing::warn!("{error}");
                FromExecutor::LoadFailed { instance, error: control::cut(error) }
            }
        }
    }
}
