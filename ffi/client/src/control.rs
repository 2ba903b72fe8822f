//! The control socket: the handshake, model queries, and the news of the session's end. Every packet
//! is judged by pure functions before anyone acts on it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{
    FRAME_GOODBYE, FRAME_MODEL_SPEC, FRAME_WELCOME, Goodbye, Hello, ModelQuery, ModelSpec, Welcome,
    get_text, put_text,
};
use gpulet_abi::region::Region;
use gpulet_abi::status::Status;
use gpulet_abi::version;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::clock;
use crate::error::Error;

/// No frame is longer; a packet that is gets refused.
const PACKET_BYTES: usize = 4096;
/// Region, submission doorbell, completion doorbell.
const WELCOME_DESCRIPTORS: usize = 3;

/// What a daemon granted.
#[derive(Debug)]
pub(crate) struct Granted {
    pub(crate) control: Control,
    pub(crate) region: Region,
    /// We signal it.
    pub(crate) submission_bell: Doorbell,
    /// The daemon signals it.
    pub(crate) completion_bell: Doorbell,
    pub(crate) session: u64,
    pub(crate) version: u32,
    /// Those of both sides.
    pub(crate) features: u64,
}

/// A connected socket that does not block.
#[derive(Debug)]
pub(crate) struct Control {
    socket: OwnedFd,
    /// Answers still to come to model queries that nobody waits for any more.
    owed: u32,
}

/// What the daemon has to say outside of the handshake.
#[derive(Debug)]
pub(crate) enum Word {
    /// The answer to a model query.
    Spec(Box<ModelSpec>),
    /// Nothing now.
    Silence,
    /// The session is over, and why.
    End(Status, Box<str>),
}

/// Connects and shakes hands, until `deadline_ns` at most.
pub(crate) fn open(
    path: &Path,
    slot_bytes: u64,
    slot_count: u32,
    deadline_ns: u64,
) -> Result<Granted, Error> {
    let refused = |source: io::Error| Error::Connect {
        status: connect_status(&source),
        path: path.into(),
        source,
    };
    let socket = connect(path, deadline_ns).map_err(refused)?;
    let mut hello = Hello::blank();
    (hello.magic, hello.version) = (version::MAGIC, version::VERSION);
    (hello.features, hello.slot_bytes, hello.slot_count) =
        (version::FEATURES, slot_bytes, slot_count);
    send(&socket, bytemuck::bytes_of(&hello), deadline_ns).map_err(refused)?;

    let mut packet = [0; PACKET_BYTES];
    let received = loop {
        match frame::receive(&socket, &mut packet) {
            Ok(received) => break received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait(&socket, PollFlags::IN, deadline_ns).map_err(kernel("poll"))? {
                    return Err(Error::Timeout("handshake"));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(Error::Handshake("the answer is too long for a welcome"));
            }
            Err(error) => return Err(refused(error)),
        }
    };
    if received.bytes == 0 {
        return Err(refused(io::Error::new(
            io::ErrorKind::ConnectionReset,
            "the daemon hung up during the handshake",
        )));
    }
    let welcome = judge_welcome(&packet[..received.bytes])?;
    grant(Control { socket, owed: 0 }, &welcome, received.descriptors)
}

fn grant(control: Control, welcome: &Welcome, sent: Vec<OwnedFd>) -> Result<Granted, Error> {
    let sent: [OwnedFd; WELCOME_DESCRIPTORS] =
        sent.try_into().map_err(|_| Error::Handshake("a welcome comes with three descriptors"))?;
    let [region, submission_bell, completion_bell] = sent;
    if !cannot_break(&submission_bell)? {
        return Err(Error::Handshake("the submission doorbell is no eventfd"));
    }
    for bell in [&submission_bell, &completion_bell] {
        // A doorbell that blocks would hang its reader when there is nothing to take.
        let flags =
            rustix::fs::fcntl_getfl(bell).map_err(|errno| kernel("doorbell")(errno.into()))?;
        rustix::fs::fcntl_setfl(bell, flags | OFlags::NONBLOCK)
            .map_err(|errno| kernel("doorbell")(errno.into()))?;
    }
    Ok(Granted {
        control,
        region: Region::attach(region, welcome.region_bytes)?,
        submission_bell: submission_bell.into(),
        completion_bell: completion_bell.into(),
        session: welcome.session,
        version: welcome.version,
        features: welcome.features & version::FEATURES,
    })
}

/// Whether a write to it raises no signal. We are in somebody else's process, which a write to a pipe
/// or socket without a reader would end. What has no type among files is the kernel's own: an eventfd,
/// or something that takes no such write.
fn cannot_break(bell: &OwnedFd) -> Result<bool, Error> {
    let stat = rustix::fs::fstat(bell).map_err(|errno| kernel("doorbell")(errno.into()))?;
    Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Unknown)
}

impl Control {
    /// Asks for a model and waits for the answer, until `deadline_ns` at most.
    pub(crate) fn query(&mut self, name: &str, deadline_ns: u64) -> Result<Word, Error> {
        let mut query = ModelQuery::blank();
        put_text(&mut query.name, name);
        match send(&self.socket, bytemuck::bytes_of(&query), deadline_ns) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::Timeout("model query"));
            }
            // The daemon may have said why before it hung up.
            Err(_) => return Ok(self.last_word()),
        }
        loop {
            match self.listen() {
                Word::Silence => {}
                word => return Ok(word),
            }
            if !wait(&self.socket, PollFlags::IN, deadline_ns).map_err(kernel("poll"))? {
                self.owed += 1;
                return Err(Error::Timeout("model query"));
            }
        }
    }

    /// Takes the next packet, if there is one. Answers that nobody waits for are skipped.
    pub(crate) fn listen(&mut self) -> Word {
        let mut packet = [0; PACKET_BYTES];
        loop {
            let word = match frame::receive(&self.socket, &mut packet) {
                Ok(received) => judge(&packet[..received.bytes]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Word::Silence),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    Err("a packet longer than any frame")
                }
                Err(_) => Ok(hung_up()),
            };
            match word {
                Ok(Word::Spec(_)) if self.owed > 0 => self.owed -= 1,
                Ok(word) => return word,
                Err(rule) => return broken(rule),
            }
        }
    }

    /// Listens where only the end is expected, and anything else breaks the ABI.
    pub(crate) fn news(&mut self) -> Word {
        match self.listen() {
            Word::Spec(_) => broken("a model spec that nobody asked for"),
            word => word,
        }
    }

    /// Ends the connection; the socket is readable for ever after.
    pub(crate) fn hang_up(&self) {
        // It fails only when the connection has ended already.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
    }

    fn last_word(&mut self) -> Word {
        match self.news() {
            Word::Silence => hung_up(),
            word => word,
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// The end of a session whose daemon wrote what the ABI forbids.
pub(crate) fn broken(rule: &str) -> Word {
    Word::End(Status::ProtocolViolation, format!("the daemon sent {rule}").into())
}

fn hung_up() -> Word {
    Word::End(Status::DaemonGone, "the daemon hung up".into())
}

fn kernel(what: &'static str) -> impl Fn(io::Error) -> Error {
    move |source| Error::Kernel { what, source }
}

fn connect_status(error: &io::Error) -> Status {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::ACCESS | Errno::PERM) => Status::AccessDenied,
        Some(Errno::NAMETOOLONG | Errno::INVAL) => Status::InvalidArgument,
        Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => Status::OutOfMemory,
        None if error.kind() == io::ErrorKind::TimedOut => Status::Timeout,
        _ => Status::NoDaemon,
    }
}

/// Connects, waiting for a place in the daemon's backlog; the descriptor does not block afterwards.
fn connect(path: &Path, deadline_ns: u64) -> io::Result<OwnedFd> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        let left_ns = deadline_ns.saturating_sub(clock::now_ns());
        if left_ns == 0 {
            return Err(timed_out());
        }
        if deadline_ns != clock::NEVER_NS {
            // A zero would mean for ever, and the kernel counts in microseconds.
            let left = Duration::from_nanos(left_ns.max(1_000));
            set_socket_timeout(&socket, Timeout::Send, Some(left))?;
        }
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            // A Unix socket connects whole or not at all, so it can simply be tried again.
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(timed_out()),
            Err(errno) => return Err(errno.into()),
        }
    }
    let flags = rustix::fs::fcntl_getfl(&socket)?;
    rustix::fs::fcntl_setfl(&socket, flags | OFlags::NONBLOCK)?;
    Ok(socket)
}

fn send(socket: &OwnedFd, packet: &[u8], deadline_ns: u64) -> io::Result<()> {
    loop {
        match frame::send(socket, packet, &[]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if !wait(socket, PollFlags::OUT, deadline_ns)? {
                    return Err(timed_out());
                }
            }
            other => return other,
        }
    }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "nobody answered within the time given")
}

/// Waits for an event on one descriptor; whether it came before `deadline_ns`.
fn wait(fd: &OwnedFd, flags: PollFlags, deadline_ns: u64) -> io::Result<bool> {
    loop {
        let left = clock::left(deadline_ns);
        match poll(&mut [PollFd::new(fd, flags)], left.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn judge_welcome(packet: &[u8]) -> Result<Welcome, Error> {
    if frame::kind_of(packet) != Some(FRAME_WELCOME) {
        return Err(Error::Handshake("the answer is not a welcome"));
    }
    // Kind and version stand where they are in every major version; the rest may not.
    let theirs = packet.get(12..16).and_then(|bytes| bytes.try_into().ok());
    let theirs = theirs.map(u32::from_le_bytes).unwrap_or(0) >> 16;
    if theirs != version::MAJOR && theirs != 0 {
        return Err(Error::Version { theirs, ours: version::MAJOR });
    }
    let welcome = Welcome::parse(packet).ok_or(Error::Handshake("the welcome has another size"))?;
    let text = get_text(&welcome.text)
        .ok_or(Error::Handshake("the welcome's text is not UTF-8 with a final NUL"))?;
    match Status::from_number(welcome.status) {
        Some(Status::Ok) => {}
        Some(status) => return Err(refusal(status, "the session", text)),
        None => return Err(Error::Handshake("the welcome's status is no status")),
    }
    if welcome.reserved != [0; 3] {
        return Err(Error::Handshake("the welcome's reserved is not zero"));
    }
    if version::compatible(version::MAGIC, welcome.version).is_err() {
        return Err(Error::Handshake("the welcome's version is zero"));
    }
    Ok(welcome)
}

/// What the daemon said no with; its own words if it found some.
pub(crate) fn refusal(status: Status, what: &str, text: &str) -> Error {
    let text = if text.is_empty() { status.text() } else { text };
    Error::Refused { status, what: what.into(), text: text.into() }
}

/// A packet outside of the handshake; an error names the rule it breaks.
fn judge(packet: &[u8]) -> Result<Word, &'static str> {
    if packet.is_empty() {
        return Ok(hung_up());
    }
    match frame::kind_of(packet) {
        Some(FRAME_MODEL_SPEC) => judge_spec(packet).map(|spec| Word::Spec(Box::new(spec))),
        Some(FRAME_GOODBYE) => judge_goodbye(packet),
        _ => Err("a frame of an unknown kind"),
    }
}

fn judge_spec(packet: &[u8]) -> Result<ModelSpec, &'static str> {
    let spec = ModelSpec::parse(packet).ok_or("a model spec of another size")?;
    if get_text(&spec.text).is_none() {
        return Err("a model spec whose text is not UTF-8 with a final NUL");
    }
    if spec.status != Status::Ok as i32 {
        return Ok(spec);
    }
    if get_text(&spec.name).is_none() {
        return Err("a model spec whose name is not UTF-8 with a final NUL");
    }
    if spec.reserved0 != 0 || spec.reserved1 != [0; 3] {
        return Err("a model spec whose reserved is not zero");
    }
    if !spec.is_consistent() {
        return Err("a model spec that contradicts itself");
    }
    let tensors = spec.inputs().into_iter().chain(spec.outputs()).flatten();
    if tensors.into_iter().any(|tensor| get_text(&tensor.name).is_none()) {
        return Err("a tensor spec whose name is not UTF-8 with a final NUL");
    }
    Ok(spec)
}

fn judge_goodbye(packet: &[u8]) -> Result<Word, &'static str> {
    let goodbye = Goodbye::parse(packet).ok_or("a goodbye of another size")?;
    let text = get_text(&goodbye.text).ok_or("a goodbye whose text is not UTF-8")?;
    let status = Status::from_number(goodbye.status).filter(|status| *status != Status::Ok);
    let status = status.ok_or("a goodbye with a status that is none")?;
    let text = if text.is_empty() { status.text() } else { text };
    Ok(Word::End(status, text.into()))
}

/// Judges a packet as each thing it could be. For fuzzing: whatever comes in, it must return.
pub fn fuzz_packet(packet: &[u8]) {
    if let Ok(welcome) = judge_welcome(packet) {
        assert!(welcome.status == Status::Ok as i32 && get_text(&welcome.text).is_some());
    }
    if let Ok(Word::Spec(spec)) = judge(packet) {
        let accepted = spec.status == Status::Ok as i32;
        assert!(!accepted || crate::catalog::Model::new(&spec, u64::MAX).is_some());
    }
}
