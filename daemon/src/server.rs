//! The daemon's one thread: it owns every descriptor, and calls the dispatcher in turns.
//!
//! A turn never blocks. When nothing is to do, the server polls for as long as the config says, where
//! that has paid of late, then announces sleep to every client and executor and sleeps in mio until a
//! descriptor or a timer wakes it: as a rule shortly before a batch ends. Everything rare
//! (connections, control messages, signals, reloads) happens between turns.

mod alarm;
mod clients;
mod devices;
mod executors;
mod lifecycle;
mod placing;
mod sharing;
mod starts;
mod succession;
mod vigil;

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token, Waker};
use signal_hook_mio::v1_0::Signals;
use tracing::{info, warn};

use crate::clock::now_ns;
use crate::config::Config;
use crate::connection::Connection;
use crate::dispatch::Dispatcher;
use crate::executor::{EXECUTORS_MAX, Executors, find_program};
use crate::notify::Notifier;

use alarm::{Alarm, Watch, watch};
use devices::Devices;
use vigil::Vigil;

const LISTENER: Token = Token(0);
const SIGNALS: Token = Token(1);
/// Rung by whoever looks after devices.
const DEVICES: Token = Token(2);
const ALARM: Token = Token(3);
/// Three tokens an executor; see [`crate::executor::Source`].
const EXECUTORS: usize = 8;
/// Two tokens a connection: its socket, and its session's bell.
const CONNECTIONS: usize = EXECUTORS + 4 * EXECUTORS_MAX;
/// How often descriptors are looked at while the dispatcher polls its rings.
const POLL_EVERY_NS: u64 = 50_000;
/// The longest sleep, so that slow conditions (hung executors, silent connections) are seen.
const SLEEP_NS_MAX: u64 = 100_000_000;
/// How often those slow conditions are looked at.
const HOUSEKEEPING_NS: u64 = 50_000_000;

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The socket cannot be had.
    #[error("socket {path}: {error}")]
    Socket {
        /// As the config says.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
    /// A descriptor, process or signal cannot be had.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The config or a model directory is bad.
    #[error(transparent)]
    Config(#[from] lifecycle::ConfigProblem),
}

/// What the daemon does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// It serves.
    Serving,
    /// It takes nothing new and finishes what it has.
    Draining {
        /// After this it stops anyway.
        until_ns: u64,
    },
}

/// The daemon.
#[allow(missing_debug_implementations, reason = "the signals' type has none")]
pub struct Server {
    config: Config,
    dispatcher: Dispatcher,
    poll: Poll,
    alarm: Alarm,
    listener: OwnedFd,
    /// The socket is ours to remove, not handed over by a supervisor.
    owns_socket: bool,
    signals: Signals,
    connections: Vec<Option<Connection>>,
    /// Connections wait that could not be accepted for lack of descriptors or memory.
    starved: bool,
    notifier: Notifier,
    devices: Devices,
    waker: Arc<Waker>,
    mode: Mode,
    /// Every model that will be warm soon is.
    settled: bool,
    started_ns: u64,
    housekeeping_ns: u64,
}

impl Server {
    /// Binds the socket (or takes the one a supervisor bound), and starts what the config says.
    ///
    /// # Errors
    /// Every [`ServerError`].
    pub fn new(config: Config) -> Result<Server, ServerError> {
        let models = lifecycle::scan_models(&config)?;
        let poll = Poll::new()?;
        let mut notifier = Notifier::from_environment();
        let (listener, owns_socket) = clients::listener(&config.socket, &mut notifier)?;
        poll.registry().register(
            &mut SourceFd(&listener.as_raw_fd()),
            LISTENER,
            Interest::READABLE,
        )?;
        let mut signals = Signals::new([libc::SIGTERM, libc::SIGINT, libc::SIGHUP])?;
        poll.registry().register(&mut signals, SIGNALS, Interest::READABLE)?;
        let waker = Arc::new(Waker::new(poll.registry(), DEVICES)?);
        let executors = Executors::new(find_program(&std::env::current_exe()?)?);
        let mut dispatcher = Dispatcher::new(executors, config.limits.entries_per_turn_max);
        dispatcher.defer = config.defer;
        let started_ns = now_ns();
        let mut server = Server {
            config,
            dispatcher,
            alarm: Alarm::new(poll.registry(), ALARM)?,
            poll,
            listener,
            owns_socket,
            signals,
            connections: Vec::new(),
            starved: false,
            notifier,
            devices: Devices::default(),
            waker,
            mode: Mode::Serving,
            settled: false,
            started_ns,
            housekeeping_ns: 0,
        };
        server.apply(models)?;
        info!(socket = %server.config.socket.display(), "listening");
        Ok(server)
    }

    /// Serves until told to stop.
    ///
    /// # Errors
    /// [`ServerError::Io`] if the kernel refuses to wait for events.
    pub fn run(mut self) -> Result<(), ServerError> {
        let mut events = Events::with_capacity(256);
        let mut vigil = Vigil::new(now_ns());
        let mut polled_ns = 0;
        loop {
            let now = now_ns();
            let work = self.dispatcher.turn(now);
            if !self.dispatcher.violations.is_empty() {
                self.end_violators();
            }
            let spin_ns = self.config.spin.ns();
            if work > 0 {
                vigil.worked(now, self.dispatcher.answered, spin_ns);
            } else {
                vigil.found_nothing();
            }
            if now.saturating_sub(self.housekeeping_ns) >= HOUSEKEEPING_NS {
                self.housekeep(now);
                if self.is_drained(now) {
                    break;
                }
            }
            let watch = self.watch(now, spin_ns, &vigil);
            let asleep = work == 0 && !watch.poll && self.dispatcher.prepare_sleep();
            if !asleep && now.saturating_sub(polled_ns) < POLL_EVERY_NS {
                if work == 0 {
                    std::hint::spin_loop();
                }
                continue;
            }
            let timeout = if asleep { self.set_alarm(now, watch)? } else { Duration::ZERO };
            self.wait(&mut events, timeout)?;
            polled_ns = now_ns();
            if asleep {
                self.dispatcher.awake();
                vigil.woke(polled_ns, spin_ns);
            }
            self.handle(&events, polled_ns);
        }
        self.stop();
        Ok(())
    }

    fn wait(&mut self, events: &mut Events, timeout: Duration) -> io::Result<()> {
        match self.poll.poll(events, Some(timeout)) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                events.clear();
                Ok(())
            }
            other => other,
        }
    }

    /// Whether to poll although there was nothing to do, and when to at the latest.
    fn watch(&self, now_ns: u64, spin_ns: u64, vigil: &Vigil) -> Watch {
        if vigil.polls(now_ns, spin_ns) {
            return Watch { poll: true, wake_ns: now_ns };
        }
        // Who may not poll is woken by the report itself.
        let ends = self.dispatcher.executors.unannounced_ends().filter(|_| spin_ns > 0);
        watch(now_ns, spin_ns, ends)
    }

    /// Sets the alarm for the next thing that is known to happen. How long to sleep at the most.
    fn set_alarm(&mut self, now_ns: u64, watch: Watch) -> io::Result<Duration> {
        let queue_ns = self.dispatcher.wake_ns(now_ns).unwrap_or(u64::MAX);
        let wake_ns = watch.wake_ns.min(queue_ns);
        if wake_ns <= now_ns {
            return Ok(Duration::ZERO);
        }
        if wake_ns - now_ns < SLEEP_NS_MAX {
            self.alarm.set(wake_ns)?;
        }
        Ok(Duration::from_nanos(SLEEP_NS_MAX))
    }

    fn handle(&mut self, events: &Events, now_ns: u64) {
        for event in events {
            match event.token() {
                LISTENER => self.accept(now_ns),
                SIGNALS => self.take_signals(now_ns),
                DEVICES => self.hear_devices(now_ns),
                ALARM => {}
                Token(number) if number < CONNECTIONS => {
                    let executor = (number - EXECUTORS) / 4;
                    self.hear_executor(executor as u32, (number - EXECUTORS) % 4, now_ns);
                }
                Token(number) => {
                    // A bell only wakes: the next turn looks at every ring anyway.
                    if (number - CONNECTIONS).is_multiple_of(2) {
                        self.hear_client((number - CONNECTIONS) / 2, now_ns);
                    }
                }
            }
        }
    }

    /// What need not be looked at in every turn.
    fn housekeep(&mut self, now_ns: u64) {
        self.housekeeping_ns = now_ns;
        self.notifier.feed_watchdog(now_ns);
        self.end_hung(now_ns);
        self.start_executors(now_ns);
        self.unload_closed();
        self.hand_over();
        self.close_silent(now_ns);
        if self.starved {
            self.accept(now_ns);
        }
        for session in self.dispatcher.forget_sessions() {
            self.drop_connection_of(session);
        }
        self.announce_readiness();
    }

    fn take_signals(&mut self, now_ns: u64) {
        let pending: Vec<i32> = self.signals.pending().collect();
        for signal in pending {
            match signal {
                libc::SIGHUP => self.reload(),
                _ => self.drain(now_ns),
            }
        }
    }

    /// Stops taking work; [`run`](Self::run) ends when what was taken is done.
    fn drain(&mut self, now_ns: u64) {
        if self.mode == Mode::Serving {
            info!(in_flight = self.dispatcher.in_flight(), "draining");
            self.notifier.stopping();
            self.dispatcher.draining = true;
            let until_ns = now_ns.saturating_add(self.config.drain_timeout_ns);
            self.mode = Mode::Draining { until_ns };
            self.housekeeping_ns = 0;
        }
    }

    fn is_drained(&self, now_ns: u64) -> bool {
        match self.mode {
            Mode::Serving => false,
            Mode::Draining { until_ns } => {
                let in_flight = self.dispatcher.in_flight();
                if in_flight > 0 && now_ns >= until_ns {
                    warn!(in_flight, "stopping although requests are in flight");
                }
                in_flight == 0 || now_ns >= until_ns
            }
        }
    }

    /// Ends every session, then lets every executor go.
    fn stop(&mut self) {
        let live: Vec<u32> = self.dispatcher.sessions.live().to_vec();
        for session in live {
            self.end_session(
                session,
                gpulet_abi::status::Status::Draining,
                "the daemon was told to stop",
            );
        }
        self.dismiss_executors();
        if self.owns_socket {
            let _ = std::fs::remove_file(&self.config.socket);
        }
        info!("stopped");
    }

    fn register_bell(&self, connection: usize, bell: impl AsFd) -> io::Result<()> {
        self.poll.registry().register(
            &mut SourceFd(&bell.as_fd().as_raw_fd()),
            Token(CONNECTIONS + 2 * connection + 1),
            Interest::READABLE,
        )
    }
}
