//! The executor process: runs the batches it is told to run, within the window it is told.
//!
//! [`serve`] is all of `gpulet-executor`. One thread takes commands from the link, runs them and
//! reports; between batches it listens to the control socket. A second one loads models, so that a
//! load does not keep loaded models waiting. The executor goes when its daemon does.
//!
//! | module     | holds                                                              |
//! |------------|--------------------------------------------------------------------|
//! | [`start`]  | what a process does before its first batch                         |
//! | [`control`]| the control socket                                                 |
//! | [`loader`] | the thread that loads models                                       |
//! | [`batch`]  | regions, loaded models, and how a batch is run on them             |

pub mod batch;
pub mod control;
pub mod loader;
pub mod start;

use std::io;
use std::os::fd::OwnedFd;

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::region::{Geometry, MappedRing, Part, Region, RegionError};
use gpulet_abi::ring::{Consumer, CursorOutOfRange, Producer, PushError};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::backend::warmup;
use crate::clock::now_ns;
use crate::wire::{BatchCommand, BatchReport, FromExecutor, RegionGeometry, ToExecutor};

use batch::Holdings;
use control::{Control, Heard};
use loader::{Loader, Said};

/// How long a busy executor may leave the control socket unread.
const CONTROL_EVERY_NS: u64 = 1_000_000;
/// Looks at the command ring between two looks at the clock.
const LOOKS: u32 = 32;

/// Why an executor gave up.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// Nobody gave it a control socket.
    #[error(
        "standard input must be a control socket: gpulet-executor is started by \
         gpuletd, not by hand"
    )]
    NoDaemon,
    /// It was told to start with what is not there; the daemon has been told.
    #[error("cannot start: {0}")]
    Start(String),
    /// The kernel refused.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The reason.
        source: io::Error,
    },
    /// The link cannot be mapped.
    #[error("link: {0}")]
    Link(#[from] RegionError),
    /// The daemon sent what it never sends: another version, or a defect.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(String),
}

impl From<CursorOutOfRange> for ExecuteError {
    fn from(error: CursorOutOfRange) -> ExecuteError {
        ExecuteError::Protocol(error.to_string())
    }
}

/// Whether the daemon is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Daemon {
    Here,
    Gone,
}

/// Runs an executor on its control socket until the daemon hangs up.
///
/// # Errors
/// [`ExecuteError`].
pub fn serve(control: OwnedFd) -> Result<(), ExecuteError> {
    let control = Control::new(control);
    let Some(started) = start::start(&control)? else { return Ok(()) };
    let loader_bell = Doorbell::new().map_err(io_error("eventfd"))?;
    let loader = Loader::start(started.backend, &loader_bell).map_err(io_error("thread"))?;
    let (commands, reports) = started.link.executor_ends();
    let mut executor = Executor {
        control,
        commands,
        command_bell: started.command_bell,
        reports,
        report_bell: started.report_bell,
        holdings: Holdings::default(),
        gpulet_count: started.gpulet_count,
        loader,
        loader_bell,
        spin_ns: started.spin_ns,
        listened_ns: now_ns(),
    };
    executor.turns()
}

fn io_error(what: &'static str) -> impl Fn(io::Error) -> ExecuteError {
    move |source| ExecuteError::Io { what, source }
}

struct Executor {
    control: Control,
    commands: Consumer<MappedRing, BatchCommand>,
    command_bell: Doorbell,
    reports: Producer<MappedRing, BatchReport>,
    report_bell: Doorbell,
    holdings: Holdings,
    gpulet_count: u32,
    loader: Loader,
    loader_bell: Doorbell,
    spin_ns: u64,
    /// When the control socket was last looked at.
    listened_ns: u64,
}

impl Executor {
    fn turns(&mut self) -> Result<(), ExecuteError> {
        let mut busy_ns = now_ns();
        loop {
            if let Some(command) = self.next_command()? {
                if self.run(&command)? == Daemon::Gone {
                    return Ok(());
                }
                busy_ns = now_ns();
            }
            let now_ns = now_ns();
            let listening = now_ns.saturating_sub(self.listened_ns) >= CONTROL_EVERY_NS;
            if listening && self.listen()? == Daemon::Gone {
                return Ok(());
            }
            if now_ns.saturating_sub(busy_ns) >= self.spin_ns && self.sleep()? == Daemon::Gone {
                return Ok(());
            }
        }
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

    fn run(&mut self, command: &BatchCommand) -> Result<Daemon, ExecuteError> {
        // The daemon sends what a command names before the command, so it waits in the socket.
        if self.holdings.lacks(command) && self.listen()? == Daemon::Gone {
            return Ok(Daemon::Gone);
        }
        if command.gpulet >= self.gpulet_count {
            return Err(ExecuteError::Protocol(format!("there is no gpulet {}", command.gpulet)));
        }
        let report = BatchReport { gpulet: command.gpulet, ..self.holdings.run(command) };
        loop {
            match self.reports.push(&report) {
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
            self.report_bell.signal().map_err(io_error("report doorbell"))?;
        }
        Ok(Daemon::Here)
    }

    /// Sleeps until there is a command, a control message or a loaded model.
    fn sleep(&mut self) -> Result<Daemon, ExecuteError> {
        if !self.commands.prepare_sleep()? {
            return Ok(Daemon::Here);
        }
        let mut fds = [
            PollFd::new(&self.command_bell, PollFlags::IN),
            PollFd::new(&self.control, PollFlags::IN),
            PollFd::new(&self.loader_bell, PollFlags::IN),
        ];
        let polled = poll(&mut fds, None);
        let rung = !fds[0].revents().is_empty();
        let spoken = !fds[1].revents().is_empty() || !fds[2].revents().is_empty();
        self.commands.awake();
        match polled {
            Err(Errno::INTR) => return Ok(Daemon::Here),
            Err(errno) => return Err(io_error("poll")(errno.into())),
            Ok(_) => {}
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
                Heard::Nothing => return Ok(Daemon::Here),
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
                self.holdings.unmap(region);
                Ok(())
            }
            ToExecutor::Load { instance, model } => {
                self.loader.load(instance, model);
                Ok(())
            }
            ToExecutor::Unload { instance } => {
                match self.holdings.unload(instance) {
                    Some(loaded) => self.loader.drop_later(loaded),
                    None => self.loader.forget(instance),
                }
                Ok(())
            }
            ToExecutor::Prepare { .. } | ToExecutor::Switch { .. } => {
                let rule = "shares of a backend that splits no device".to_owned();
                Err(ExecuteError::Protocol(rule))
            }
        }
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
            Ok(mapped) => self.holdings.map(region, mapped),
            // Requests of that session will be told; the others need not suffer.
            Err(error) => tracing::error!("session region {region}: {error}"),
        }
        Ok(())
    }

    fn adopt(&mut self, done: loader::Done) -> FromExecutor {
        let loader::Done { instance, outcome, load_ns } = done;
        match outcome {
            Ok(mut loaded) => {
                // With other models loaded this thread has run one, and somebody may be waiting.
                if self.holdings.is_empty() {
                    warmup::settle(&mut loaded);
                }
                // Whatever gpulet they are of, batches run here one after the other.
                let points = vec![loaded.points.clone(); self.gpulet_count as usize];
                let form = control::cut(loaded.instance.form());
                tracing::info!(
                    model = loaded.model.name,
                    form,
                    load_ms = load_ns / 1_000_000,
                    "model loaded"
                );
                self.holdings.load(instance, loaded);
                FromExecutor::Loaded { instance, points, load_ns, form, memory_bytes: 0 }
            }
            Err(error) => {
                tracing::warn!("{error}");
                FromExecutor::LoadFailed { instance, error: control::cut(error) }
            }
        }
    }
}
