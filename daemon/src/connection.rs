//! Connections: what a client says on its socket, before and beside its session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use gpulet_abi::frame::{self, Frame, kind_of};
use gpulet_abi::layout::{
    FRAME_HELLO, FRAME_MODEL_QUERY, FRAME_STATE_QUERY, Goodbye, Hello, ModelQuery, ModelSpec,
    StateQuery, StateReply, Welcome, get_text, put_text,
};
use gpulet_abi::region::Geometry;
use gpulet_abi::status::Status;
use gpulet_abi::version;
use rustix::fs::{MemfdFlags, SealFlags};

use crate::access::Peer;
use crate::limits::Limits;
use crate::models::{Hosted, Models, Readiness};
use crate::session::Descriptors;

/// Longer than any frame that a client may send, so that a longer packet is seen as such.
const PACKET_BYTES_MAX: usize = 256;

/// One client's socket.
#[derive(Debug)]
pub struct Connection {
    /// Does not block.
    pub socket: OwnedFd,
    /// Who is on the other end.
    pub peer: Peer,
    /// Its session, an index in [`crate::session::Sessions`], once it said hello.
    pub session: Option<u32>,
    /// When it must have said hello, or be done asking.
    pub hello_by_ns: u64,
}

/// What a client said.
#[derive(Debug)]
pub enum Said {
    /// Let me in.
    Hello(Box<Hello>),
    /// Which model is called so?
    ModelQuery(String),
    /// How are you?
    StateQuery,
    /// Nothing now.
    Nothing,
    /// It hung up.
    Goodbye,
    /// What is no part of the protocol; the rule it breaks.
    Nonsense(&'static str),
}

impl Connection {
    /// The next thing it said.
    pub fn hear(&self) -> Said {
        let mut packet = [0u8; PACKET_BYTES_MAX];
        let received = match frame::receive(&self.socket, &mut packet) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Said::Nothing,
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Said::Nonsense("a frame is longer than any there is");
            }
            Err(_) => return Said::Goodbye,
        };
        if received.bytes == 0 {
            return Said::Goodbye;
        }
        if !received.descriptors.is_empty() {
            return Said::Nonsense("a client sends no descriptors");
        }
        understand(&packet[..received.bytes])
    }

    /// Answers a hello that is refused.
    pub fn refuse(&self, status: Status, text: &str) {
        self.say(&welcome(status, text), &[]);
    }

    /// Answers a hello that is granted.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn welcome(&self, session: u64, geometry: &Geometry, with: &Descriptors) -> io::Result<()> {
        let frame =
            Welcome { session, region_bytes: geometry.region_bytes, ..welcome(Status::Ok, "") };
        let descriptors =
            [with.region.as_fd(), with.submission_bell.as_fd(), with.completion_bell.as_fd()];
        frame::send(&self.socket, bytemuck::bytes_of(&frame), &descriptors)
    }

    /// Answers a model query.
    pub fn describe(&self, models: &Models, name: &str) {
        self.say(&spec_for(models, name), &[]);
    }

    /// Answers a state query.
    ///
    /// # Errors
    /// What the kernel says, such as too many descriptors.
    pub fn report_state(&self, json: &[u8]) -> io::Result<()> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = std::fs::File::from(rustix::fs::memfd_create("gpulet-state", flags)?);
        io::Write::write_all(&mut &file, json)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
        let frame = StateReply { json_bytes: json.len() as u64, ..StateReply::blank() };
        frame::send(&self.socket, bytemuck::bytes_of(&frame), &[file.as_fd()])
    }

    /// Refuses a state query.
    pub fn refuse_state(&self, status: Status) {
        self.say(&StateReply { status: status as i32, ..StateReply::blank() }, &[]);
    }

    /// Tells why the session is over.
    pub fn goodbye(&self, status: Status, text: &str) {
        let mut frame = Goodbye { status: status as i32, ..Goodbye::blank() };
        put_text(&mut frame.text, text);
        self.say(&frame, &[]);
        self.take_unheard();
    }

    /// Takes what was said and not heard: closing a socket with packets unread resets the other end,
    /// which then sees an error before the goodbye.
    fn take_unheard(&self) {
        // Nothing is added from now on, so there is an end to what is taken.
        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Read);
        let mut packet = [0u8; PACKET_BYTES_MAX];
        while frame::receive(&self.socket, &mut packet).is_ok_and(|received| received.bytes > 0) {}
    }

    /// A client that does not read its socket misses what we say; nobody waits for it.
    fn say<F: Frame>(&self, frame: &F, descriptors: &[BorrowedFd<'_>]) {
        let _ = frame::send(&self.socket, bytemuck::bytes_of(frame), descriptors);
    }
}

/// What a packet says.
pub fn understand(packet: &[u8]) -> Said {
    match kind_of(packet) {
        Some(FRAME_HELLO) => match Hello::parse(packet) {
            Some(hello) if hello.reserved0 == 0 && hello.reserved1 == [0; 3] => {
                Said::Hello(Box::new(hello))
            }
            Some(_) => Said::Nonsense("hello.reserved is not zero"),
            None => Said::Nonsense("hello has another size"),
        },
        Some(FRAME_MODEL_QUERY) => {
            let Some(query) = ModelQuery::parse(packet) else {
                return Said::Nonsense("model_query has another size");
            };
            match get_text(&query.name) {
                Some(name) => Said::ModelQuery(name.to_owned()),
                None => Said::Nonsense("model_query.name is no text with a final NUL"),
            }
        }
        Some(FRAME_STATE_QUERY) => match StateQuery::parse(packet) {
            Some(_) => Said::StateQuery,
            None => Said::Nonsense("state_query has another size"),
        },
        _ => Said::Nonsense("a frame of unknown kind"),
    }
}

fn welcome(status: Status, text: &str) -> Welcome {
    let mut frame = Welcome {
        status: status as i32,
        version: version::VERSION,
        features: version::FEATURES,
        ..Welcome::blank()
    };
    put_text(&mut frame.text, text);
    frame
}

fn spec_for(models: &Models, name: &str) -> ModelSpec {
    let refuse = |status: Status, text: &str| {
        let mut spec = ModelSpec { status: status as i32, ..ModelSpec::blank() };
        put_text(&mut spec.text, text);
        spec
    };
    let Some(hosted) = models.by_name(name) else {
        if let Some((_, error)) = models.broken.iter().find(|(broken, _)| broken == name) {
            return refuse(Status::ModelFailed, error);
        }
        return refuse(Status::NoSuchModel, &format!("no model is called {name:?}"));
    };
    match hosted.readiness() {
        Readiness::Ready => *hosted.spec,
        Readiness::Loading if hosted.ever_ready => *hosted.spec,
        Readiness::Loading => refuse(Status::ModelLoading, &format!("{name} is being loaded")),
        Readiness::Failed(error) => refuse(Status::ModelFailed, &error),
    }
}

/// The region that a hello gets.
///
/// # Errors
/// The status and its explanation, when it gets none.
pub fn grant(
    hello: &Hello,
    limits: &Limits,
    models: &Models,
) -> Result<Geometry, (Status, String)> {
    version::compatible(hello.magic, hello.version).map_err(|status| {
        let (theirs, ours) = (hello.version >> 16, version::MAJOR);
        (status, format!("the client speaks ABI major {theirs}, this daemon {ours}"))
    })?;
    let slot_count = match hello.slot_count {
        0 => limits.slot_count_default,
        count => count,
    };
    let slot_bytes = match hello.slot_bytes {
        0 => models.iter().filter_map(one_row_bytes).max().unwrap_or(4096),
        bytes => bytes,
    };
    let over = |what: &str, wish: u64, max: u64| {
        Err((Status::RegionLimit, format!("{what} {wish} is over this daemon's limit of {max}")))
    };
    if slot_count > limits.slot_count_max {
        return over("slot_count", slot_count.into(), limits.slot_count_max.into());
    }
    if slot_bytes > limits.slot_bytes_max {
        return over("slot_bytes", slot_bytes, limits.slot_bytes_max);
    }
    match Geometry::new(slot_bytes, slot_count) {
        Some(geometry) if geometry.region_bytes <= limits.region_bytes_max => Ok(geometry),
        Some(geometry) => over("region_bytes", geometry.region_bytes, limits.region_bytes_max),
        None => over("region_bytes", u64::MAX, limits.region_bytes_max),
    }
}

fn one_row_bytes(hosted: &Hosted) -> Option<u64> {
    if hosted.retired { None } else { hosted.slot_bytes(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn limits() -> Limits {
        Limits::default()
    }

    fn hello() -> Hello {
        Hello { magic: version::MAGIC, version: version::VERSION, ..Hello::blank() }
    }

    #[test]
    fn a_hello_gets_what_it_wishes_within_the_limits() {
        let wish = Hello { slot_bytes: 1000, slot_count: 3, ..hello() };
        let geometry = grant(&wish, &limits(), &Models::default()).unwrap();
        assert_eq!((geometry.slot_bytes, geometry.slot_count), (1024, 3));

        let wish = Hello { slot_count: u32::MAX, ..hello() };
        let (status, text) = grant(&wish, &limits(), &Models::default()).unwrap_err();
        assert_eq!(status, Status::RegionLimit);
        assert!(text.contains("slot_count"), "{text}");

        let wish = Hello { slot_bytes: u64::MAX, ..hello() };
        assert_eq!(grant(&wish, &limits(), &Models::default()).unwrap_err().0, Status::RegionLimit);

        let wish = Hello { version: 9 << 16, ..hello() };
        let refused = grant(&wish, &limits(), &Models::default()).unwrap_err();
        assert_eq!(refused.0, Status::VersionMismatch);
    }

    proptest! {
        #[test]
        fn no_packet_makes_us_panic(mut packet in prop::collection::vec(any::<u8>(), 0..256)) {
            let _ = understand(&packet);
            for kind in 0u32..9 {
                if packet.len() >= 8 {
                    let bytes = packet.len() as u32;
                    packet[..4].copy_from_slice(&kind.to_le_bytes());
                    packet[4..8].copy_from_slice(&bytes.to_le_bytes());
                }
                let _ = understand(&packet);
            }
        }

        #[test]
        fn no_hello_makes_us_panic_or_exceeds_the_limits(slot_bytes: u64, slot_count: u32) {
            let wish = Hello { slot_bytes, slot_count, ..hello() };
            if let Ok(geometry) = grant(&wish, &limits(), &Models::default()) {
                prop_assert!(geometry.region_bytes <= limits().region_bytes_max);
            }
        }
    }
}
