//! Messages and descriptors on SOCK_SEQPACKET sockets: one packet, one frame, so there is no partial
//! frame and no length to believe.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use bytemuck::Pod;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::layout::{
    FRAME_GOODBYE, FRAME_HELLO, FRAME_MODEL_QUERY, FRAME_MODEL_SPEC, FRAME_STATE_QUERY,
    FRAME_STATE_REPLY, FRAME_WELCOME, Goodbye, Hello, ModelQuery, ModelSpec, StateQuery,
    StateReply, Welcome,
};

/// Descriptors that one packet may carry.
pub const DESCRIPTORS_MAX: usize = 4;

/// A struct that travels as one packet and starts with its kind and its size.
pub trait Frame: Pod {
    /// The number in its first word.
    const KIND: u32;

    /// A zeroed frame with kind and size filled in.
    fn blank() -> Self {
        let mut frame = Self::zeroed();
        let bytes = bytemuck::bytes_of_mut(&mut frame);
        bytes[..4].copy_from_slice(&Self::KIND.to_le_bytes());
        bytes[4..8].copy_from_slice(&(size_of::<Self>() as u32).to_le_bytes());
        frame
    }

    /// The frame in a packet; `None` unless kind and size are exactly right.
    fn parse(packet: &[u8]) -> Option<Self> {
        if kind_of(packet)? != Self::KIND || packet.len() != size_of::<Self>() {
            return None;
        }
        let bytes = u32::from_le_bytes(packet[4..8].try_into().ok()?);
        if bytes as usize != packet.len() {
            return None;
        }
        Some(bytemuck::pod_read_unaligned(packet))
    }
}

/// The kind of a packet; `None` if it is too short to have one.
pub fn kind_of(packet: &[u8]) -> Option<u32> {
    let head = packet.get(..8)?;
    Some(u32::from_le_bytes(head[..4].try_into().ok()?))
}

macro_rules! frames {
    ($($name:ident = $kind:ident,)*) => { $(impl Frame for $name { const KIND: u32 = $kind; })* };
}
frames! {
    Hello = FRAME_HELLO,
    Welcome = FRAME_WELCOME,
    ModelQuery = FRAME_MODEL_QUERY,
    ModelSpec = FRAME_MODEL_SPEC,
    StateQuery = FRAME_STATE_QUERY,
    StateReply = FRAME_STATE_REPLY,
    Goodbye = FRAME_GOODBYE,
}

/// Connects to a daemon's socket; the descriptor blocks.
///
/// # Errors
/// What the kernel says: nobody listens, no permission, a path that is too long.
pub fn connect(path: &Path) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?;
    rustix::net::connect(&fd, &SocketAddrUnix::new(path)?)?;
    Ok(fd)
}

/// Listens at `path`, which must not exist; the descriptor does not block.
///
/// # Errors
/// What the kernel says: the path exists, no permission, a path that is too long.
pub fn listen(path: &Path, backlog: i32) -> io::Result<OwnedFd> {
    let fd = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    rustix::net::bind(&fd, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&fd, backlog)?;
    Ok(fd)
}

/// Two connected sockets that do not block.
///
/// # Errors
/// What the kernel says, such as too many descriptors.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    Ok(rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

/// Sends one packet with up to [`DESCRIPTORS_MAX`] descriptors. Never raises SIGPIPE.
///
/// # Errors
/// What the kernel says; `WouldBlock` if the other side does not read and `socket` does not block.
pub fn send(socket: impl AsFd, packet: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let parts = [IoSlice::new(packet)];
    let sent = retry(|| {
        rustix::net::sendmsg(socket.as_fd(), &parts, &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    if sent == packet.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// A packet as it was received.
#[derive(Debug)]
pub struct Received {
    /// Bytes of the packet in the caller's buffer. Zero: the other side hung up.
    pub bytes: usize,
    /// The descriptors that came with it, close-on-exec.
    pub descriptors: Vec<OwnedFd>,
}

/// Receives one packet into `buffer`.
///
/// # Errors
/// `InvalidData` for a packet that does not fit `buffer` or carries too many descriptors, else what
/// the kernel says; `WouldBlock` if there is none and `socket` does not block.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let result = {
        let mut parts = [IoSliceMut::new(buffer)];
        retry(|| {
            rustix::net::recvmsg(
                socket.as_fd(),
                &mut parts,
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        })?
    };
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            descriptors.extend(fds);
        }
    }
    let cut = rustix::net::ReturnFlags::TRUNC | rustix::net::ReturnFlags::CTRUNC;
    if result.flags.intersects(cut) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a packet that is too long"));
    }
    Ok(Received { bytes: result.bytes, descriptors })
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}
