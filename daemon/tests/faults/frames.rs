//! What a client can say on the socket, and what it must not.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bytemuck::bytes_of;
use gpulet_abi::frame::Frame;
use gpulet_abi::layout::{Hello, ModelQuery, StateQuery};
use gpulet_abi::status::Status;
use gpulet_abi::version;

use crate::support::Random;
use crate::support::client::{echo_once, open};
use crate::support::daemon::Setup;
use crate::support::process::{descriptors, descriptors_at_rest};
use crate::support::raw::{Connection, RawSession, hello};

#[test]
fn a_hello_of_another_version_is_refused_with_both_versions() {
    let daemon = Setup::builtin().start();
    for (magic, major, expected) in [
        (version::MAGIC, version::MAJOR + 1, Status::VersionMismatch),
        (version::MAGIC, version::MAJOR + 7, Status::VersionMismatch),
        (version::MAGIC, 0, Status::BadHandshake),
        (version::MAGIC ^ 1, version::MAJOR, Status::BadHandshake),
    ] {
        let connection = Connection::open(&daemon.socket);
        let version = major << 16;
        let (status, text) = connection.refusal(&Hello { magic, version, ..hello(0, 0) });
        assert_eq!(status, expected, "{text}");
        if expected == Status::VersionMismatch {
            assert!(text.contains(&format!("major {major}")), "{text}");
        }
        assert_eq!(connection.hear_the_end(), None);
    }
    // A newer minor version is one that we can talk to.
    let newer = Hello { version: version::VERSION + 5, features: u64::MAX, ..hello(0, 0) };
    let connection = Connection::open(&daemon.socket);
    let (welcome, descriptors) = connection.greet(&newer).unwrap();
    assert_eq!((welcome.status, welcome.features), (0, version::FEATURES));
    assert_eq!(descriptors.len(), 3);
}

#[test]
fn nonsense_on_the_socket_ends_the_connection_and_nothing_else() {
    let daemon = Setup::builtin().start();
    let mut honest = daemon.session();
    let echo = open(&mut honest, "echo");
    let before = descriptors_at_rest(daemon.pid());
    let greeting = hello(0, 0);
    let mut packets: Vec<Vec<u8>> = vec![
        vec![0],
        vec![0; 7],
        vec![0; 64],
        vec![0xff; 4096],
        bytes_of(&greeting)[..63].to_vec(),
        [bytes_of(&greeting), &[0]].concat(),
        bytes_of(&Hello { bytes: 63, ..greeting }).to_vec(),
        bytes_of(&Hello { reserved0: 1, ..greeting }).to_vec(),
        bytes_of(&Hello { reserved1: [0, 0, 1], ..greeting }).to_vec(),
        bytes_of(&ModelQuery::blank()).to_vec(),
        bytes_of(&StateQuery { bytes: 9, ..StateQuery::blank() }).to_vec(),
    ];
    for kind in [0u32, 2, 4, 6, 7, 8, u32::MAX] {
        packets.push([kind.to_le_bytes(), 8u32.to_le_bytes()].concat());
    }
    let mut random = Random(0x6770_756c);
    for _ in 0..200 {
        let count = 1 + random.below(300) as usize;
        packets.push((0..count).map(|_| random.next() as u8).collect());
    }
    for packet in &packets {
        let connection = Connection::open(&daemon.socket);
        connection.send(packet).unwrap();
        connection.hear_the_end();
    }
    echo_once(&mut honest, echo, 1, 1);
    crate::support::eventually("descriptors come back", || {
        (descriptors(daemon.pid()) == before).then_some(())
    });
}

#[test]
fn nonsense_ends_the_session_with_a_word_about_why() {
    let daemon = Setup::builtin().start();
    let unterminated = ModelQuery { name: [b'x'; 64], ..ModelQuery::blank() };
    let mut not_utf8 = ModelQuery::blank();
    not_utf8.name[..2].copy_from_slice(&[0xff, 0xfe]);
    let second = hello(0, 0);
    for (packet, rule) in [
        (bytes_of(&second), "a second hello"),
        (bytes_of(&unterminated), "model_query.name"),
        (bytes_of(&not_utf8), "model_query.name"),
        (&[1, 2, 3, 4, 5][..], "unknown kind"),
        (&bytes_of(&second)[..32], "hello has another size"),
        (&[7; 300][..], "longer than any"),
    ] {
        let session = RawSession::open(&daemon.socket, 1024, 1);
        session.connection.send(packet).unwrap();
        let (status, text) = session.connection.hear_the_end().unwrap();
        assert_eq!(status, Status::ProtocolViolation);
        assert!(text.contains(rule), "{text}");
        assert_eq!(session.region.ended(), Status::ProtocolViolation);
    }
}

#[test]
fn descriptors_that_a_client_sends_are_not_kept() {
    let daemon = Setup::builtin().start();
    let before = descriptors_at_rest(daemon.pid());
    for count in [1, 4, 50] {
        let file = tempfile::tempfile().unwrap();
        let connection = Connection::open(&daemon.socket);
        if count <= 4 {
            let fds = vec![file.as_fd(); count];
            connection.send_with(bytes_of(&hello(0, 0)), &fds).unwrap();
        } else {
            send_many(&connection, &file, count);
        }
        assert_eq!(connection.hear_the_end(), None, "no session, so no goodbye");
    }
    let session = RawSession::open(&daemon.socket, 1024, 1);
    let file = tempfile::tempfile().unwrap();
    session.connection.send_with(bytes_of(&StateQuery::blank()), &[file.as_fd()]).unwrap();
    let (status, text) = session.connection.hear_the_end().unwrap();
    assert_eq!(status, Status::ProtocolViolation);
    assert!(text.contains("descriptors"), "{text}");
    drop(session);
    crate::support::eventually("descriptors come back", || {
        (descriptors(daemon.pid()) == before).then_some(())
    });
}

/// More descriptors than our own library sends.
fn send_many(connection: &Connection, file: &std::fs::File, count: usize) {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(50))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = vec![file.as_fd(); count];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let greeting = hello(0, 0);
    let parts = [std::io::IoSlice::new(bytes_of(&greeting))];
    sendmsg(connection, &parts, &mut ancillary, SendFlags::NOSIGNAL).unwrap();
}

#[test]
fn a_connection_that_says_nothing_is_closed() {
    let daemon = Setup::builtin().start();
    let before = descriptors_at_rest(daemon.pid());
    let begin = Instant::now();
    let silent = Connection::open(&daemon.socket);
    let asking = Connection::open(&daemon.socket);
    asking.send(bytes_of(&StateQuery::blank())).unwrap();
    assert_eq!(asking.hear().unwrap().1.len(), 1);
    assert_eq!(silent.hear_the_end(), None);
    assert_eq!(asking.hear_the_end(), None);
    let waited = begin.elapsed();
    assert!(waited >= Duration::from_millis(4900), "{waited:?}");
    crate::support::eventually("descriptors come back", || {
        (descriptors(daemon.pid()) == before).then_some(())
    });
}

#[test]
fn a_flood_of_frames_ends_the_session() {
    let daemon = Setup::builtin().start();
    let session = RawSession::open(&daemon.socket, 1024, 1);
    let frozen = crate::support::process::Frozen::new(daemon.pid());
    for _ in 0..40 {
        session.connection.send(bytes_of(&StateQuery::blank())).unwrap();
    }
    drop(frozen);
    let (status, text) = session.connection.hear_the_end().unwrap();
    assert_eq!(status, Status::ProtocolViolation);
    assert!(text.contains("too many frames"), "{text}");
}

#[test]
fn strangers_do_not_keep_others_out() {
    let daemon = Setup::builtin().start();
    let strangers: Vec<Connection> = (0..63).map(|_| Connection::open(&daemon.socket)).collect();
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
    // One too many is hung up on at once, and those before are not disturbed.
    let more: Vec<Connection> = (0..2).map(|_| Connection::open(&daemon.socket)).collect();
    assert_eq!(more[1].hear_the_end(), None);
    let (welcome, _) = strangers[0].greet(&hello(0, 0)).unwrap();
    assert_eq!(welcome.status, 0);
}
