//! Asking the daemon for its state.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{Goodbye, StateQuery, StateReply, Welcome, get_text};
use gpulet_abi::status::Status;
use gpulet_client::options::{SOCKET_DEFAULT, SOCKET_VARIABLE};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use serde_json::Value;

use super::CtlError;

/// A daemon that lives answers between two turns.
const PATIENCE: Duration = Duration::from_secs(5);
/// Longer than any state within the limits.
const STATE_BYTES_MAX: u64 = 64 << 20;
const PACKET_BYTES_MAX: usize = 4096;

/// The daemon's state, as [`crate::state::State`] writes it. Without a `socket`, that of
/// `GPULET_SOCKET`, or the usual one.
///
/// # Errors
/// [`CtlError::Daemon`].
pub fn state(socket: Option<&Path>) -> Result<Value, CtlError> {
    let path = match (socket, std::env::var_os(SOCKET_VARIABLE)) {
        (Some(path), _) => path.to_owned(),
        (None, Some(path)) => PathBuf::from(path),
        (None, None) => PathBuf::from(SOCKET_DEFAULT),
    };
    let failed = |rule: String| CtlError::Daemon { socket: path.clone(), rule };
    let json = ask(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            failed(format!("{} ({error})", Status::NoDaemon.text()))
        }
        io::ErrorKind::WouldBlock => {
            failed(format!("the daemon did not answer within {} s", PATIENCE.as_secs()))
        }
        _ => failed(error.to_string()),
    })?;
    serde_json::from_slice(&json).map_err(|error| failed(format!("the state is no JSON: {error}")))
}

fn ask(path: &Path) -> io::Result<Vec<u8>> {
    let socket = frame::connect(path)?;
    set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE))?;
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE))?;
    // A daemon that refuses says so and hangs up, perhaps before the question is sent.
    let asked = frame::send(&socket, bytemuck::bytes_of(&StateQuery::blank()), &[]);
    let mut packet = [0; PACKET_BYTES_MAX];
    let received = match frame::receive(&socket, &mut packet) {
        Ok(received) => received,
        Err(error) => return Err(asked.err().unwrap_or(error)),
    };
    let packet = &packet[..received.bytes];
    if let Some(reply) = StateReply::parse(packet) {
        refusal(reply.status, "")?;
        return read(received.descriptors, reply.json_bytes);
    }
    if let Some(welcome) = Welcome::parse(packet) {
        refusal(welcome.status, get_text(&welcome.text).unwrap_or_default())?;
    }
    if let Some(goodbye) = Goodbye::parse(packet) {
        refusal(goodbye.status, get_text(&goodbye.text).unwrap_or_default())?;
    }
    let rule =
        if packet.is_empty() { "the daemon hung up" } else { "the answer is no part of this ABI" };
    Err(io::Error::other(rule))
}

fn refusal(status: i32, text: &str) -> io::Result<()> {
    if status == Status::Ok as i32 {
        return Ok(());
    }
    let known = Status::from_number(status).unwrap_or(Status::Internal);
    let text = if text.is_empty() { known.text() } else { text };
    Err(io::Error::other(format!("the daemon refused: {text} ({})", known.name())))
}

fn read(descriptors: Vec<OwnedFd>, json_bytes: u64) -> io::Result<Vec<u8>> {
    let Some(fd) = descriptors.into_iter().next() else {
        return Err(io::Error::other("the state came without its file"));
    };
    let file = File::from(fd);
    if json_bytes > STATE_BYTES_MAX || file.metadata()?.len() < json_bytes {
        return Err(io::Error::other("the state's file is not as long as it should be"));
    }
    let mut json = vec![0; json_bytes as usize];
    file.read_exact_at(&mut json, 0)?;
    Ok(json)
}
