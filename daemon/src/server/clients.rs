//! Connections come, ask, and go.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use gpulet_abi::frame;
use gpulet_abi::layout::Hello;
use gpulet_abi::status::Status;
use mio::unix::SourceFd;
use mio::{Interest, Token};
use rustix::net::{SocketFlags, accept_with};
use tracing::{debug, info, warn};

use super::{CONNECTIONS, Server, ServerError};
use crate::access::Peer;
use crate::connection::{Connection, Said, grant};
use crate::notify::Notifier;
use crate::state::State;

/// Connections that the kernel holds until they are accepted.
const BACKLOG: i32 = 128;
/// Time in which a new connection must say hello or be done asking.
const HELLO_NS: u64 = 5_000_000_000;
/// Connections without a session that are kept beside those with one: so many of users who may have
/// one, and so many of others.
const STRANGERS_MAX: usize = 64;
/// Frames heard from one client before the others get their turn.
const FRAMES_PER_EVENT_MAX: usize = 16;

/// The listening socket, and whether it is ours to remove.
pub(super) fn listener(
    path: &Path,
    notifier: &mut Notifier,
) -> Result<(OwnedFd, bool), ServerError> {
    if let Some(socket) = notifier.take_listener()? {
        return Ok((socket, false));
    }
    let error = |error| ServerError::Socket { path: path.to_owned(), error };
    match frame::connect(path) {
        Ok(_) => {
            let text = "another daemon listens there";
            return Err(error(io::Error::new(io::ErrorKind::AddrInUse, text)));
        }
        // A socket that nobody listens at was left by a daemon that was killed.
        // What is no socket is refused like that too, and is somebody's file.
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
            std::fs::remove_file(path).map_err(error)?;
        }
        Err(_) => {}
    }
    let socket = frame::listen(path, BACKLOG).map_err(error)?;
    // Everybody may connect: who may stay is decided by credentials, with a status that says so.
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(path, mode).map_err(error)?;
    Ok((socket, true))
}

fn is_socket(path: &Path) -> bool {
    let found = std::fs::symlink_metadata(path);
    found.is_ok_and(|found| std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()))
}

impl Server {
    /// Accepts what waits at the listener.
    pub(super) fn accept(&mut self, now_ns: u64) {
        loop {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = match accept_with(&self.listener, flags) {
                Ok(socket) => socket,
                Err(rustix::io::Errno::AGAIN) => {
                    self.starved = false;
                    return;
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => continue,
                Err(errno) => {
                    // Edge-triggered: only we know that somebody still waits.
                    if !std::mem::replace(&mut self.starved, true) {
                        warn!(%errno, "cannot accept a connection");
                    }
                    return;
                }
            };
            if let Err(error) = self.admit(socket, now_ns) {
                warn!(%error, "cannot keep a connection");
            }
        }
    }

    fn admit(&mut self, socket: OwnedFd, now_ns: u64) -> io::Result<()> {
        let peer = Peer::of_socket(&socket)?;
        // Anybody may connect, so those who may stay are counted apart from those who may not.
        let access = &self.config.access;
        let allowed = peer.may_connect(access);
        let alike =
            |it: &&Connection| it.session.is_none() && it.peer.may_connect(access) == allowed;
        if self.connections.iter().flatten().filter(alike).count() >= STRANGERS_MAX {
            return Err(io::Error::other("too many connections without a session"));
        }
        let free = self.connections.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.connections.push(None);
            self.connections.len() - 1
        });
        self.poll.registry().register(
            &mut SourceFd(&socket.as_raw_fd()),
            Token(CONNECTIONS + 2 * index),
            Interest::READABLE,
        )?;
        let hello_by_ns = now_ns.saturating_add(HELLO_NS);
        self.connections[index] = Some(Connection { socket, peer, session: None, hello_by_ns });
        // What it said before it was registered would never be announced.
        self.hear_client(index, now_ns);
        Ok(())
    }

    /// Hears what a client says until it says nothing more.
    pub(super) fn hear_client(&mut self, index: usize, now_ns: u64) {
        for _ in 0..FRAMES_PER_EVENT_MAX {
            let Some(connection) = self.connections.get(index).and_then(Option::as_ref) else {
                return;
            };
            match connection.hear() {
                Said::Nothing => return,
                Said::Hello(hello) => self.open_session(index, &hello),
                Said::ModelQuery(name) => self.answer_model(index, &name),
                Said::StateQuery => self.answer_state(index, now_ns),
                Said::Goodbye => return self.hang_up(index, Status::Ok, ""),
                Said::Nonsense(rule) => {
                    warn!(peer = ?connection.peer, rule, "a client talks nonsense");
                    return self.hang_up(index, Status::ProtocolViolation, rule);
                }
            }
        }
        // Edge-triggered: there may be more, and nothing will announce it.
        self.hang_up(index, Status::ProtocolViolation, "too many frames at once");
    }

    fn open_session(&mut self, index: usize, hello: &Hello) {
        let Some(connection) = self.connections[index].as_mut() else { return };
        if connection.session.is_some() {
            return self.hang_up(index, Status::ProtocolViolation, "a second hello");
        }
        let peer = connection.peer.clone();
        match self.grant_session(&peer, hello, index) {
            Ok(()) => {}
            Err((status, text)) => {
                info!(uid = peer.uid, pid = peer.pid, %status, text, "session refused");
                if let Some(connection) = &self.connections[index] {
                    connection.refuse(status, &text);
                }
                self.hang_up(index, Status::Ok, "");
            }
        }
    }

    fn grant_session(
        &mut self,
        peer: &Peer,
        hello: &Hello,
        index: usize,
    ) -> Result<(), (Status, String)> {
        if !peer.may_connect(&self.config.access) {
            let text = format!("user {} (or a group of it) is on no allow list", peer.uid);
            return Err((Status::AccessDenied, text));
        }
        if self.dispatcher.draining {
            return Err((Status::Draining, "the daemon is stopping".to_owned()));
        }
        let limits = &self.config.limits;
        let sessions = &mut self.dispatcher.sessions;
        let of_user = sessions.iter().filter(|session| session.uid == peer.uid).count();
        if sessions.live().len() >= limits.sessions_max as usize {
            let text = format!("there are {} sessions, as many as may be", limits.sessions_max);
            return Err((Status::SessionLimit, text));
        }
        if of_user >= limits.sessions_per_user_max as usize {
            let max = limits.sessions_per_user_max;
            let text = format!("user {} has {max} sessions, as many as it may", peer.uid);
            return Err((Status::SessionLimit, text));
        }
        let geometry = grant(hello, limits, &self.dispatcher.models)?;
        if sessions.region_bytes() + geometry.region_bytes > limits.region_bytes_total_max {
            let text = "the regions of all sessions would be over region_bytes_total_max";
            return Err((Status::RegionLimit, text.to_owned()));
        }
        self.create_session(peer, geometry, index)
            .map_err(|error| (Status::SessionLimit, format!("the daemon cannot: {error}")))
    }

    fn create_session(
        &mut self,
        peer: &Peer,
        geometry: gpulet_abi::region::Geometry,
        index: usize,
    ) -> io::Result<()> {
        let user = (peer.uid, peer.pid);
        let (number, descriptors) = self.dispatcher.sessions.create(user, geometry)?;
        let session = self.dispatcher.sessions.get(number).ok_or(io::ErrorKind::NotFound)?;
        let id = session.id;
        let registered = self.register_bell(index, &session.bell);
        let connection = self.connections[index].as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let welcomed = registered.and_then(|()| connection.welcome(id, &geometry, &descriptors));
        if let Err(error) = welcomed {
            self.dispatcher.sessions.remove(number);
            return Err(error);
        }
        connection.session = Some(number);
        let Peer { uid, pid, .. } = peer;
        info!(session = id, uid, pid, slots = geometry.slot_count, "session opened");
        Ok(())
    }

    fn answer_model(&mut self, index: usize, name: &str) {
        let Some(connection) = &self.connections[index] else { return };
        if connection.session.is_none() {
            return self.hang_up(index, Status::ProtocolViolation, "a query before the hello");
        }
        connection.describe(&self.dispatcher.models, name);
    }

    fn answer_state(&mut self, index: usize, now_ns: u64) {
        let Some(connection) = &self.connections[index] else { return };
        if !connection.peer.may_connect(&self.config.access) {
            return connection.refuse_state(Status::AccessDenied);
        }
        let uptime_ns = now_ns.saturating_sub(self.started_ns);
        let state = State::of(&self.dispatcher, uptime_ns, self.settled);
        if let Err(error) = connection.report_state(&state.to_json()) {
            debug!(%error, "a state reply was not sent");
        }
    }

    /// Ends a session for cause.
    pub(super) fn end_session(&mut self, session: u32, status: Status, text: &str) {
        self.dispatcher.end_session(session, status);
        self.housekeeping_ns = 0;
        for index in 0..self.connections.len() {
            let of_session = |it: &Connection| it.session == Some(session);
            if self.connections[index].as_ref().is_some_and(of_session) {
                if let Some(connection) = &self.connections[index] {
                    connection.goodbye(status, text);
                }
                self.close(index);
            }
        }
    }

    /// Ends the sessions whose clients broke a rule.
    pub(super) fn end_violators(&mut self) {
        while let Some((session, rule)) = self.dispatcher.violations.pop() {
            if let Some(session) = self.dispatcher.sessions.get(session) {
                warn!(
                    session = session.id,
                    uid = session.uid,
                    pid = session.pid,
                    rule,
                    "violation"
                );
            }
            self.end_session(session, Status::ProtocolViolation, rule);
        }
    }

    /// Closes a connection, and ends its session if it has one.
    fn hang_up(&mut self, index: usize, status: Status, text: &str) {
        let Some(connection) = self.connections.get(index).and_then(Option::as_ref) else { return };
        match connection.session {
            Some(session) => self.end_session(session, status, text),
            None => self.close(index),
        }
    }

    fn close(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else { return };
        let fd = connection.socket.as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&fd));
        self.deregister_bell(connection.session);
    }

    fn deregister_bell(&self, session: Option<u32>) {
        let Some(session) = session.and_then(|it| self.dispatcher.sessions.get(it)) else { return };
        let bell = std::os::fd::AsFd::as_fd(&session.bell).as_raw_fd();
        let _ = self.poll.registry().deregister(&mut SourceFd(&bell));
    }

    /// Closes the connection of a session that was forgotten, if it is still there.
    pub(super) fn drop_connection_of(&mut self, session: u32) {
        for index in 0..self.connections.len() {
            if self.connections[index].as_ref().is_some_and(|it| it.session == Some(session)) {
                self.close(index);
            }
        }
    }

    /// Closes connections that neither said hello nor are done asking.
    pub(super) fn close_silent(&mut self, now_ns: u64) {
        for index in 0..self.connections.len() {
            let silent = |it: &Connection| it.session.is_none() && it.hello_by_ns <= now_ns;
            if self.connections[index].as_ref().is_some_and(silent) {
                self.close(index);
            }
        }
    }
}
