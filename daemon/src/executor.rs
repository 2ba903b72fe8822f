//! Executors as the daemon sees them: processes that host gpulets, and are started, told what to do,
//! watched and replaced.
//!
//! An executor's life: *waiting* (for its start or restart), *starting* (the process runs and gets
//! ready), *running*, *dying* (told to go or lost; until the kernel says that the process is gone its
//! threads may still write to slots, so nothing of its batches is touched), and then *waiting* again
//! or *gone*.

mod process;
mod table;

use std::io;
use std::path::Path;

use gpulet_plan::profile::LatencyProfile;
use mio::{Registry, Token};
use rustix::process::{Signal, pidfd_send_signal};
use tracing::{info, warn};

use crate::clock::now_ns;
use crate::config;
use crate::gpulet::Gpulet;
use crate::wire::{BatchCommand, BatchReport, FromExecutor, Start, ToExecutor, receive, send};

use process::Process;

pub use table::{EXECUTORS_MAX, ExecutorSet, Executors, find_program};

/// An executor that dies sooner than this after its start, and before a batch of it went well, was not
/// well, and its successor waits.
const HEALTHY_NS: u64 = 10_000_000_000;
const BACKOFF_MIN_NS: u64 = 100_000_000;
const BACKOFF_MAX_NS: u64 = 10_000_000_000;
/// Who was told to go gets so long. On a device it takes down its memory piece by piece, so that
/// others on it go on meanwhile.
const LEAVE_NS: u64 = 3_000_000_000;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// No process until then.
    Waiting {
        /// CLOCK_MONOTONIC.
        until_ns: u64,
    },
    /// The process was started and has not answered yet.
    Starting,
    /// It takes batches.
    Running,
    /// It was told to go, or is lost, and the kernel has not reported its end.
    Dying,
    /// It will not come back.
    Gone,
}

impl State {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            State::Waiting { .. } => "waiting",
            State::Starting => "starting",
            State::Running => "running",
            State::Dying => "dying",
            State::Gone => "gone",
        }
    }
}

/// Where an executor is with shares that change in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Nothing is under way.
    Settled,
    /// It was told to prepare these.
    Preparing(Vec<u8>),
    /// It was told to switch to them.
    Switching {
        /// One a gpulet.
        shares_pct: Vec<u8>,
        /// When.
        decided_ns: u64,
    },
}

/// The event sources of an executor; each has a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Source {
    /// Control messages, or their end.
    Control = 0,
    /// Reports came while we slept.
    Bell = 1,
    /// The process is gone.
    Exit = 2,
}

/// One executor.
#[derive(Debug)]
pub struct Executor {
    /// Where its batches run, in the order of `start.gpulets`.
    pub gpulets: Vec<Gpulet>,
    /// What it is told at its start.
    pub start: Start,
    /// Set for its process, beside what the daemon has itself.
    pub environment: Vec<(String, String)>,
    /// The fault domain that it shares with others, if it is on a device.
    pub device: Option<String>,
    /// Where it is in its life.
    pub state: State,
    /// Must not be started again when it ends: the config does not have it any more.
    pub retired: bool,
    /// The executor whose place it will take when it is ready. Until then it gets no batches.
    pub replaces: Option<u32>,
    /// Shares that its process runs on, one a gpulet; those it should run on are in `start`.
    pub shares_pct: Vec<u8>,
    /// What is being done about it if they differ.
    pub sharing: Sharing,
    /// Shares that it said it cannot have.
    pub refused_pct: Option<Vec<u8>>,
    /// What models take on the shares that it prepares, a profile a gpulet.
    pub remeasured: Vec<(u32, Vec<LatencyProfile>)>,
    /// What runs the models, in its own words.
    pub backend: String,
    /// Processes after the first.
    pub restart_count: u64,
    /// With what its last process ended, if that was not by a signal.
    pub exit_code: Option<i32>,
    /// MPS was asked to end the work of its last process, which is killed then, or at this time.
    pub doomed_ns: Option<u64>,
    /// The model that it loads now, by what it said last.
    pub loading: Option<u32>,
    /// The model that its last process was loading when it died with batches, any of which may be to
    /// blame as well.
    pub suspect: Option<u32>,
    /// Its device was lost under this process, which is being ended.
    pub lost_device: bool,
    /// A batch of this process went well.
    pub served: bool,
    /// When it last said something, or was told to do what it must answer.
    pub heard_ns: u64,
    /// It was told to go, and should be gone by then.
    pub leave_ns: Option<u64>,
    process: Option<Process>,
    backoff_ns: u64,
}

impl Executor {
    /// An executor whose process is still to be started, with the gpulets that `start` names.
    pub fn new(gpulets: Vec<config::Gpulet>, start: Start) -> Executor {
        assert_eq!(gpulets.len(), start.gpulets.len(), "as the executor is told");
        Executor {
            gpulets: gpulets.into_iter().map(Gpulet::new).collect(),
            start,
            environment: Vec::new(),
            device: None,
            state: State::Waiting { until_ns: 0 },
            retired: false,
            replaces: None,
            shares_pct: Vec::new(),
            sharing: Sharing::Settled,
            refused_pct: None,
            remeasured: Vec::new(),
            backend: String::new(),
            restart_count: 0,
            exit_code: None,
            doomed_ns: None,
            loading: None,
            suspect: None,
            lost_device: false,
            served: false,
            heard_ns: 0,
            leave_ns: None,
            process: None,
            backoff_ns: 0,
        }
    }

    /// Its name, for logs: that of its gpulet, if it has one alone.
    pub fn name(&self) -> &str {
        &self.start.executor
    }

    /// Whether its gpulets can be sent batches.
    pub fn takes_batches(&self) -> bool {
        self.state == State::Running
            && !self.retired
            && self.replaces.is_none()
            && self.doomed_ns.is_none()
    }

    /// Shares that it should run on, one a gpulet.
    pub fn wanted_pct(&self) -> Vec<u8> {
        self.start.gpulets.iter().map(|gpulet| gpulet.share_pct).collect()
    }

    /// Whether its processes die before they are any good, so that nobody should wait for the next.
    pub fn keeps_dying(&self) -> bool {
        self.backoff_ns > BACKOFF_MIN_NS
    }

    /// It is not to blame for its end: its successor starts at once.
    pub fn forgive(&mut self) {
        self.backoff_ns = 0;
    }

    /// Whether none of its gpulets has a batch.
    pub fn is_idle(&self) -> bool {
        self.gpulets.iter().all(Gpulet::is_idle)
    }

    /// Its process, while there is one.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(|process| process.child.id())
    }

    /// Starts the process and tells it what it is.
    ///
    /// # Errors
    /// What the kernel says; the message names the program.
    pub fn spawn(&mut self, program: &Path, registry: &Registry, token: Token) -> io::Result<()> {
        let with = (registry, token);
        let start = Start { beside: self.replaces.is_some(), ..self.start.clone() };
        self.process = Some(Process::start(program, &self.environment, &start, with)?);
        self.heard_ns = now_ns();
        self.lost_device = false;
        self.doomed_ns = None;
        self.served = false;
        self.shares_pct = self.wanted_pct();
        self.sharing = Sharing::Settled;
        self.refused_pct = None;
        self.remeasured.clear();
        self.state = State::Starting;
        Ok(())
    }

    /// Sends a control message; an executor that does not take it is lost, unless it was told to go.
    pub fn tell(&mut self, message: &ToExecutor, descriptors: &[std::os::fd::BorrowedFd<'_>]) {
        let Some(process) = self.process.as_ref().filter(|_| self.leave_ns.is_none()) else {
            return;
        };
        if let Err(error) = send(&process.control, message, descriptors) {
            warn!(executor = self.name(), %error, "the executor takes no messages");
            self.kill();
        }
    }

    /// The next control message; `None` when there is none now, or it was told to go. An executor that
    /// hung up or talks nonsense is killed.
    pub fn hear(&mut self) -> Option<FromExecutor> {
        // After our own hang-up there is nothing but the end of the connection, which says nothing.
        let process = self.process.as_ref().filter(|_| self.leave_ns.is_none())?;
        match receive(&process.control) {
            Ok(Some((message, _))) => {
                self.heard_ns = now_ns();
                Some(message)
            }
            Ok(None) => {
                self.kill();
                None
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
            // It went without having read all that it was told.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                self.kill();
                None
            }
            Err(error) => {
                warn!(executor = self.name(), %error, "the executor talks nonsense");
                self.kill();
                None
            }
        }
    }

    /// Hands it a batch, which its gpulet must have room for.
    pub fn run(&mut self, command: &BatchCommand) {
        let Some(process) = &mut self.process else { return };
        // The ring has room for all that gpulets take: it cannot be full unless its memory was written
        // over, and then the executor is not one we can talk to.
        let sent = process.commands.push(command).is_ok();
        if process.commands.commit() {
            let _ = process.command_bell.signal();
        }
        if !sent {
            self.kill();
        }
    }

    /// The next report.
    #[inline]
    pub fn report(&mut self) -> Option<BatchReport> {
        let process = self.process.as_mut()?;
        match process.reports.pop() {
            Ok(report) => {
                process.reports.release();
                report
            }
            Err(_) => {
                self.kill();
                None
            }
        }
    }

    /// Announces that we sleep until it reports. Whether it is quiet.
    pub fn prepare_sleep(&mut self) -> bool {
        let Some(process) = &mut self.process else { return true };
        process.reports.prepare_sleep().unwrap_or(false)
    }

    /// Takes the announcement back.
    pub fn awake(&self) {
        if let Some(process) = &self.process {
            process.reports.awake();
        }
    }

    /// Tells it to go by hanging up: it takes down what it has, and ends by itself. It must be idle.
    pub fn dismiss(&mut self) {
        if let Some(process) = &self.process {
            // Its end of the pair reads end-of-file; ours stays open until the process is gone.
            let _ = rustix::net::shutdown(&process.control, rustix::net::Shutdown::Both);
            self.leave_ns = Some(now_ns() + LEAVE_NS);
            self.state = State::Dying;
        } else {
            self.state = State::Gone;
        }
    }

    /// Ends the process. [`reap`](Self::reap) follows when the kernel says it is gone.
    pub fn kill(&mut self) {
        if let Some(process) = &self.process {
            let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
            self.state = State::Dying;
        }
    }

    /// The process is gone: forgets it and decides when the next one starts. `false` if it is not.
    pub fn reap(&mut self, registry: &Registry, now_ns: u64) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Ok(Some(status)) = process.child.try_wait() else { return false };
        process.deregister(registry);
        self.exit_code = status.code();
        let lived_ns = now_ns.saturating_sub(process.started_ns);
        self.process = None;
        if self.retired {
            info!(executor = self.name(), %status, "executor gone");
            self.state = State::Gone;
            return true;
        }
        let was_well = self.served || lived_ns >= HEALTHY_NS;
        self.backoff_ns = if was_well || self.backoff_ns == 0 {
            BACKOFF_MIN_NS
        } else {
            (2 * self.backoff_ns).min(BACKOFF_MAX_NS)
        };
        // The first loss is answered at once; only those that keep dying are kept waiting.
        let first = self.backoff_ns == BACKOFF_MIN_NS;
        let until_ns = if first { now_ns } else { now_ns + self.backoff_ns };
        warn!(executor = self.name(), %status, wait_ns = until_ns - now_ns, "executor lost");
        self.restart_count += 1;
        self.state = State::Waiting { until_ns };
        true
    }
}
