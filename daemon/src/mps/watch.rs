//! What the supervisor's thread does: it starts the daemon, looks at it, and helps it up.
//!
//! Down -> starting -> ready -> faulted -> ready. A daemon that dies or does not answer goes down
//! from anywhere, and is started again a while later, each time a longer one.

use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::{Duration, Instant};

use gpulet_abi::doorbell::Doorbell;
use rustix::event::{PollFd, PollFlags};
use rustix::process::geteuid;
use tracing::{info, warn};

use super::child::{Daemon, Held};
use super::control::{self, AskError, Control, ServerStatus, poll_until};
use super::{MpsEvent, Order, Outcome, Settings, directory, find_control};

/// Looks in a row without an answer that make a daemon a hung one.
const MISSES_MAX: u32 = 3;

/// The thread's own.
pub(super) struct Watch<T> {
    settings: Settings,
    orders: Receiver<Order>,
    bell: Doorbell,
    tell: T,
    state: State,
    /// When to look next, whatever the state.
    due: Instant,
    control: Control,
    version: Option<u32>,
    daemon: Option<Daemon>,
    servers: Vec<Held>,
    /// The control program knows no foreground.
    background: bool,
    miss_count: u32,
    /// When a server was last asked for, since the state is what it is.
    asked: Option<Instant>,
    backoff: Duration,
    /// [`MpsEvent::Ready`] is to be told.
    announce: bool,
    /// [`MpsEvent::Recovered`] is to be told.
    owed: bool,
    /// What was told last.
    failure: Option<String>,
}

/// How the daemon is.
enum State {
    /// Not there; started when it is due.
    Down,
    /// It has so long to have a server.
    Starting { since: Instant },
    /// Clients can come.
    Ready { since: Instant },
    /// They cannot, or that is to be found out: since the fault, or since the server was shut down.
    Faulted { since: Instant, told: bool, shut_down: bool },
}

/// What a look at the servers found.
enum Found {
    /// All take clients.
    Active,
    /// There is none.
    None,
    /// One is being made.
    Initializing,
    /// One faulted.
    Fault,
    /// One that was there is not any more.
    Gone,
}

impl<T: Fn(MpsEvent)> Watch<T> {
    pub(super) fn new(
        settings: Settings,
        orders: Receiver<Order>,
        bell: Doorbell,
        tell: T,
    ) -> Watch<T> {
        let control = Control {
            program: settings.control.clone(),
            pipe_dir: settings.pipe_dir.clone(),
            log_dir: settings.log_dir.clone(),
            limit: settings.times.answer,
        };
        let backoff = settings.times.backoff_min;
        Watch {
            settings,
            orders,
            bell,
            tell,
            state: State::Down,
            due: Instant::now(),
            control,
            version: None,
            daemon: None,
            servers: Vec::new(),
            background: false,
            miss_count: 0,
            asked: None,
            backoff,
            announce: true,
            owed: false,
            failure: None,
        }
    }

    pub(super) fn run(mut self) {
        loop {
            self.bell.clear();
            loop {
                match self.orders.try_recv() {
                    Ok(Order::Terminate { pid }) => self.terminate(pid),
                    Ok(Order::Check) => self.suspect(),
                    Ok(Order::Stop) | Err(TryRecvError::Disconnected) => return self.finish(),
                    Err(TryRecvError::Empty) => break,
                }
            }
            if self.daemon.as_ref().is_some_and(|daemon| daemon.ends(Duration::ZERO)) {
                self.died();
            }
            if Instant::now() >= self.due {
                self.turn();
            }
            self.sleep();
        }
    }

    fn turn(&mut self) {
        match self.state {
            State::Down => self.start(),
            State::Starting { since } => self.await_server(since),
            State::Ready { .. } => self.look(),
            State::Faulted { since, told, shut_down } => self.recover(since, told, shut_down),
        }
    }

    /// Until an order comes, the daemon ends or says something, or the next look is due.
    fn sleep(&mut self) {
        let mut polled = vec![PollFd::new(&self.bell, PollFlags::IN)];
        if let Some(daemon) = &self.daemon {
            polled.push(PollFd::from_borrowed_fd(daemon.pidfd(), PollFlags::IN));
            let output = daemon.output();
            polled.extend(output.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        }
        if let Err(error) = poll_until(&mut polled, self.due) {
            // Looking too often is better than not at all.
            warn!(%error, "MPS: poll");
        }
        if let Some(daemon) = &mut self.daemon {
            daemon.hear();
        }
    }

    fn start(&mut self) {
        let program = match find_control(&self.settings.control) {
            Ok(program) => program,
            Err(reason) => return self.fail(reason),
        };
        match control::version(&program, self.settings.times.answer) {
            Ok(version) => self.version = version,
            Err(error) => return self.fail(error.to_string()),
        }
        self.control.program = program;
        if self.settings.adopt {
            return match self.control.server_list() {
                Ok(_) => self.ready(),
                Err(error) => self.fail(format!("mps.adopt: nobody runs MPS there: {error}")),
            };
        }
        if let Err(error) = directory::prepare(&self.settings.pipe_dir, &self.settings.log_dir) {
            return self.fail(error.to_string());
        }
        let started = if self.background {
            let pipe_dir = self.settings.pipe_dir.clone();
            let deadline = Instant::now() + self.settings.times.answer;
            Daemon::background(&self.control, &self.settings.devices, deadline, || {
                directory::daemon_pid(&pipe_dir)
            })
        } else {
            Daemon::foreground(&self.control, &self.settings.devices)
        };
        match started {
            Ok(daemon) => self.daemon = Some(daemon),
            Err(error) => {
                let program = self.control.program.display();
                return self.fail(format!("{program}: {error}"));
            }
        }
        self.state = State::Starting { since: Instant::now() };
        self.asked = None;
    }

    /// A server before the first client needs one: it shows that MPS works on this device, and the
    /// first client does not wait for it.
    fn await_server(&mut self, since: Instant) {
        self.due = Instant::now() + self.settings.times.poll;
        let reason = match self.survey() {
            Ok(Found::Active) => return self.ready(),
            // Then it comes with the first client.
            Ok(Found::None) if !self.ask_for_server() => return self.ready(),
            Ok(_) => "no server came".to_owned(),
            Err(error) => error.to_string(),
        };
        if since.elapsed() >= self.settings.times.start {
            let said = self.daemon.as_mut().map(Daemon::last_words).unwrap_or_default();
            let program = self.control.program.display();
            self.fail(format!("{program}: {reason}; {said}"));
        }
    }

    /// Asks for a server, unless that was done just now: it is listed a little later. False where it
    /// is refused.
    fn ask_for_server(&mut self) -> bool {
        if self.asked.is_some_and(|asked| asked.elapsed() < self.settings.times.check) {
            return true;
        }
        self.asked = Some(Instant::now());
        let done = self.control.start_server(geteuid().as_raw());
        if let Err(error) = &done {
            warn!(%error, "MPS starts no server yet");
        }
        done.is_ok()
    }

    fn ready(&mut self) {
        let now = Instant::now();
        self.state = State::Ready { since: now };
        self.due = now + self.settings.times.check;
        self.miss_count = 0;
        self.failure = None;
        info!(pipe = %self.settings.pipe_dir.display(), version = self.version, "MPS is ready");
        if std::mem::take(&mut self.announce) {
            (self.tell)(MpsEvent::Ready { version: self.version });
        }
        if std::mem::take(&mut self.owed) {
            (self.tell)(MpsEvent::Recovered);
        }
    }

    /// A look at a daemon that was well.
    fn look(&mut self) {
        self.due = Instant::now() + self.settings.times.check;
        match self.survey() {
            // Without clients for a while there may be no server, and one may just be coming.
            Ok(Found::Active | Found::None | Found::Initializing) => self.miss_count = 0,
            Ok(Found::Fault | Found::Gone) => {
                self.suspect();
                self.tell_fault();
            }
            Err(error) => self.miss(&error),
        }
    }

    /// Something may be wrong with a server: look often until it is well.
    fn suspect(&mut self) {
        self.owed = true;
        if matches!(self.state, State::Ready { .. }) {
            let now = Instant::now();
            self.state = State::Faulted { since: now, told: false, shut_down: false };
            self.asked = None;
            self.due = now;
        }
    }

    fn tell_fault(&mut self) {
        if let State::Faulted { told, .. } = &mut self.state {
            *told = true;
        }
        let only = match self.settings.devices.as_slice() {
            [device] => Some(device.clone()),
            _ => None,
        };
        warn!(device = only, "MPS: a server faulted or is gone");
        (self.tell)(MpsEvent::ServerFaulted { device: only });
    }

    fn recover(&mut self, since: Instant, told: bool, shut_down: bool) {
        let times = self.settings.times;
        self.due = Instant::now() + times.poll;
        let mut patience = if shut_down { times.shutdown } else { times.fault };
        match self.survey() {
            Ok(Found::Active) => return self.ready(),
            Ok(Found::None) if self.settings.adopt => return self.ready(),
            Ok(Found::None) => {
                self.ask_for_server();
                patience = times.start;
            }
            Ok(Found::Initializing) => patience = times.start,
            Ok(Found::Fault | Found::Gone) if !told => self.tell_fault(),
            Ok(Found::Fault | Found::Gone) => {}
            Err(error) => self.miss(&error),
        }
        // A daemon that did not answer may have been given up.
        let State::Faulted { told, .. } = self.state else { return };
        if since.elapsed() < patience || self.settings.adopt {
            return;
        }
        if shut_down {
            warn!("MPS does not recover: its daemon is started anew");
            self.put_down();
            self.due = Instant::now();
            return;
        }
        for server in &self.servers {
            warn!(server = server.pid, "MPS does not recover: its server is shut down");
            if let Err(error) = self.control.shutdown_server(server.pid) {
                warn!(%error, "MPS");
            }
        }
        self.state = State::Faulted { since: Instant::now(), told, shut_down: true };
        self.asked = None;
    }

    /// Looks at every server.
    fn survey(&mut self) -> Result<Found, AskError> {
        let pids = self.control.server_list()?;
        let known = self.servers.len();
        self.servers.retain(|server| pids.contains(&server.pid));
        // Of an adopted daemon others' servers come and go too.
        let gone = self.servers.len() < known && !self.settings.adopt;
        for pid in &pids {
            if !self.servers.iter().any(|server| server.pid == *pid) {
                self.servers.extend(Held::new(*pid));
            }
        }
        let mut found = if pids.is_empty() { Found::None } else { Found::Active };
        for pid in pids {
            match self.control.server_status(pid)? {
                ServerStatus::Fault => return Ok(Found::Fault),
                ServerStatus::Initializing => found = Found::Initializing,
                ServerStatus::Active => {}
            }
        }
        Ok(if gone { Found::Gone } else { found })
    }

    /// It did not answer, or not with sense. That happens once; more often it hangs.
    fn miss(&mut self, error: &AskError) {
        warn!(%error, "MPS");
        self.miss_count += 1;
        // Of a daemon that is not ours an end is seen in no other way.
        let ended = self.settings.adopt && matches!(error, AskError::Failed { .. });
        if self.miss_count >= MISSES_MAX || ended {
            self.died();
        }
    }

    /// The daemon is gone, or as good as.
    fn died(&mut self) {
        match self.state {
            State::Ready { since } => {
                if since.elapsed() > self.settings.times.backoff_max {
                    self.backoff = self.settings.times.backoff_min;
                }
            }
            State::Faulted { .. } => {}
            State::Starting { .. } | State::Down => return self.start_failed(),
        }
        warn!(pipe = %self.settings.pipe_dir.display(), "MPS: the control daemon is gone");
        self.put_down();
        self.wait_longer();
        self.announce = true;
        (self.tell)(MpsEvent::DaemonDied);
    }

    /// It ended before it had a server.
    fn start_failed(&mut self) {
        let said = self.daemon.as_mut().map(Daemon::last_words).unwrap_or_default();
        let words = said.to_ascii_lowercase();
        let refusals = ["usage", "invalid option", "unrecognized option", "unknown option"];
        if !self.background && refusals.iter().any(|refusal| words.contains(refusal)) {
            self.background = true;
            self.put_down();
            self.due = Instant::now();
            return;
        }
        let program = self.control.program.display();
        self.fail(format!("{program}: the control daemon ended: {said}"));
    }

    fn fail(&mut self, reason: String) {
        self.put_down();
        self.wait_longer();
        if self.failure.as_ref() != Some(&reason) {
            warn!(reason, "MPS cannot be had");
            self.failure = Some(reason.clone());
            (self.tell)(MpsEvent::Failed { reason });
        }
    }

    fn wait_longer(&mut self) {
        self.due = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(self.settings.times.backoff_max);
    }

    /// Ends what is left of the daemon: itself and the servers that it was seen to have. Their
    /// clients have lost their contexts either way, and two servers would divide the device in time.
    fn put_down(&mut self) {
        self.state = State::Down;
        self.miss_count = 0;
        if let Some(daemon) = self.daemon.take() {
            daemon.end();
        }
        let servers = std::mem::take(&mut self.servers);
        if !self.settings.adopt {
            servers.iter().for_each(Held::kill);
        }
    }

    fn terminate(&mut self, pid: u32) {
        let outcome = match self.terminated(pid) {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed { reason: error.to_string() },
        };
        info!(pid, %outcome, "MPS client");
        (self.tell)(MpsEvent::ClientTerminated { pid, outcome });
    }

    fn terminated(&mut self, pid: u32) -> Result<Outcome, AskError> {
        if matches!(self.state, State::Down) {
            return Ok(Outcome::NoClient);
        }
        for server in self.control.server_list()? {
            if self.control.client_list(server)?.contains(&pid) {
                self.control.terminate_client(server, pid)?;
                return Ok(Outcome::Terminated);
            }
        }
        Ok(Outcome::NoClient)
    }

    fn finish(mut self) {
        let Some(daemon) = &self.daemon else { return };
        let patience = self.settings.times.stop;
        if !daemon.ends(Duration::ZERO) {
            if let Err(error) = self.control.quit(patience) {
                warn!(%error, "MPS does not quit");
            }
            daemon.ends(patience);
        }
        self.put_down();
        if let Err(error) = directory::clear(&self.settings.pipe_dir) {
            warn!(%error, "MPS");
        }
    }
}
