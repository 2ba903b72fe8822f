//! Opening a session and a model, against daemons of every kind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use fake::{Listener, refusal, spec, welcome, welcome_frame};
use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{Hello, Welcome, put_text};
use gpulet_abi::region::{Geometry, Region};
use gpulet_abi::version;
use gpulet_client::{Error, Options, Session, Status};

fn status_and_text<T>(result: Result<T, Error>) -> (Status, String) {
    match result {
        Ok(_) => (Status::Ok, String::new()),
        Err(error) => (error.status(), error.to_string()),
    }
}

/// What a client makes of a daemon that answers its hello so.
fn outcome(answer: impl FnOnce(OwnedFd, Hello) + Send) -> (Status, String) {
    let options = Options { connect_timeout_ns: 2_000_000_000, ..Options::default() };
    status_and_text(Listener::new().open_with(&options, answer).0)
}

fn answered_by(packet: &[u8]) -> (Status, String) {
    outcome(|socket, _| frame::send(&socket, packet, &[]).unwrap())
}

#[test]
fn a_session_gets_what_the_daemon_grants() {
    let wishes = Options { slot_bytes: 5000, ..Options::default().slots(7) };
    let (session, hello) = Listener::new().open_with(&wishes, |socket, hello| {
        welcome(socket, &hello);
        hello
    });
    let info = session.unwrap().info();
    assert_eq!((hello.magic, hello.version), (version::MAGIC, version::VERSION));
    assert_eq!((hello.slot_bytes, hello.slot_count, hello.features), (5000, 7, version::FEATURES));
    assert_eq!((info.session, info.slot_bytes, info.slot_count), (42, 5120, 7));
    assert_eq!((info.abi_version, info.features), (version::VERSION, version::FEATURES));
}

#[test]
fn nobody_there_is_told_with_the_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nobody.sock");
    let (status, text) = status_and_text(Session::open(&Options::at(&path)));
    assert_eq!(status, Status::NoDaemon);
    assert!(text.contains("nobody.sock"), "{text}");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    assert_eq!(status_and_text(Session::open(&Options::at(&path))).0, Status::NoDaemon);
    let long = "x".repeat(200);
    assert_eq!(status_and_text(Session::open(&Options::at(long))).0, Status::InvalidArgument);
}

#[test]
fn a_refusal_comes_with_the_daemons_words() {
    let frame = refusal(Status::AccessDenied as i32, "uid 1000 is on no allow list");
    let (status, text) = answered_by(bytemuck::bytes_of(&frame));
    assert_eq!(status, Status::AccessDenied);
    assert!(text.contains("uid 1000"), "{text}");
    let frame = refusal(Status::SessionLimit as i32, "");
    let (status, text) = answered_by(bytemuck::bytes_of(&frame));
    assert_eq!(status, Status::SessionLimit);
    assert!(text.contains(Status::SessionLimit.text()), "{text}");
}

#[test]
fn another_major_version_is_told_apart_from_nonsense() {
    let mut other = welcome_frame(&Geometry::new(256, 1).unwrap());
    other.version = (version::MAJOR + 1) << 16;
    let (status, text) = answered_by(bytemuck::bytes_of(&other));
    assert_eq!(status, Status::VersionMismatch);
    assert!(text.contains(&(version::MAJOR + 1).to_string()), "{text}");
    // A later major version's welcome may have another size.
    assert_eq!(answered_by(&bytemuck::bytes_of(&other)[..128]).0, Status::VersionMismatch);
    let (session, _) = Listener::new().open_with(&Options::default(), |socket, hello| {
        let geometry = Geometry::new(256, hello.slot_count).unwrap();
        let fds = granted(geometry);
        let fds = [fds[0].as_fd(), fds[1].as_fd(), fds[2].as_fd()];
        let newer = Welcome { version: version::VERSION + 3, ..welcome_frame(&geometry) };
        frame::send(&socket, bytemuck::bytes_of(&newer), &fds).unwrap();
    });
    assert_eq!(session.unwrap().info().abi_version, version::VERSION + 3);
}

fn granted(geometry: Geometry) -> [OwnedFd; 3] {
    let bell = || Doorbell::new().unwrap().try_clone().unwrap();
    [Region::create(geometry).unwrap().1, bell(), bell()]
}

#[test]
fn a_malformed_welcome_is_a_bad_handshake() {
    let geometry = Geometry::new(256, 64).unwrap();
    let good = welcome_frame(&geometry);
    let mut unterminated = good;
    unterminated.text = [b'x'; 192];
    let mut other_kind = good;
    other_kind.kind = 9;
    let frames = [
        Welcome { status: 1234, ..good },
        Welcome { version: 0, ..good },
        Welcome { reserved: [0, 1, 0], ..good },
        Welcome { bytes: 255, ..good },
        unterminated,
        other_kind,
    ];
    for frame in frames {
        assert_eq!(answered_by(bytemuck::bytes_of(&frame)).0, Status::BadHandshake);
    }
    assert_eq!(answered_by(&bytemuck::bytes_of(&good)[..200]).0, Status::BadHandshake);
    assert_eq!(answered_by(b"no").0, Status::BadHandshake);
    assert_eq!(answered_by(&[2; 5000]).0, Status::BadHandshake);
    // Success without descriptors, and with one too few.
    assert_eq!(answered_by(bytemuck::bytes_of(&good)).0, Status::BadHandshake);
}

#[test]
fn descriptors_that_are_no_region_are_refused() {
    let geometry = Geometry::new(256, 64).unwrap();
    let good = welcome_frame(&geometry);
    let with = |frame: Welcome, pick: &dyn Fn([OwnedFd; 3]) -> Vec<OwnedFd>| {
        let fds = pick(granted(geometry));
        outcome(move |socket, _| {
            let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
            frame::send(&socket, bytemuck::bytes_of(&frame), &fds).unwrap();
        })
    };
    assert_eq!(with(good, &|fds| fds.into()).0, Status::Ok);
    let (status, text) = with(good, &|fds| fds.into_iter().take(2).collect());
    assert_eq!(status, Status::BadHandshake);
    assert!(text.contains("three"), "{text}");
    let longer = Welcome { region_bytes: geometry.region_bytes + 4096, ..good };
    assert_eq!(with(longer, &|fds| fds.into()).0, Status::BadHandshake);
    // A doorbell where the region should be: it has no seals to read.
    let swapped = with(good, &|[region, first, second]| vec![first, region, second]);
    assert_ne!(swapped.0, Status::Ok);
    let unsealed =
        with(good, &|[_, first, second]| vec![tempfile::tempfile().unwrap().into(), first, second]);
    assert_ne!(unsealed.0, Status::Ok);
}

/// A write to a pipe or socket that nobody reads ends a C program.
#[test]
fn a_doorbell_that_could_end_its_caller_is_refused() {
    let (_reader, pipe) = rustix::pipe::pipe().unwrap();
    let (socket, _other) = frame::pair().unwrap();
    let file = tempfile::tempfile().unwrap().into();
    for bell in [pipe, socket, file] {
        let geometry = Geometry::new(256, 64).unwrap();
        let [region, _, second] = granted(geometry);
        let (status, text) = outcome(move |socket, _| {
            let fds = [region.as_fd(), bell.as_fd(), second.as_fd()];
            let frame = welcome_frame(&geometry);
            frame::send(&socket, bytemuck::bytes_of(&frame), &fds).unwrap();
        });
        assert_eq!(status, Status::BadHandshake);
        assert!(text.contains("no eventfd"), "{text}");
    }
}

#[test]
fn a_silent_daemon_costs_no_more_than_the_timeout() {
    let options = Options { connect_timeout_ns: 30_000_000, ..Options::default() };
    let started = Instant::now();
    let (result, _socket) = Listener::new().open_with(&options, |socket, _| socket);
    let (status, text) = status_and_text(result);
    assert_eq!(status, Status::Timeout);
    assert!(text.contains("handshake"), "{text}");
    assert!(started.elapsed().as_millis() >= 30);
}

#[test]
fn a_full_backlog_costs_no_more_than_the_timeout() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("full.sock");
    let _listener = frame::listen(&path, 0).unwrap();
    let options = Options { connect_timeout_ns: 30_000_000, ..Options::at(&path) };
    // The first waits for an answer and leaves its connection behind; the second waits for a place.
    let (status, text) = status_and_text(Session::open(&options));
    assert!(status == Status::Timeout && text.contains("handshake"), "{text}");
    let (status, text) = status_and_text(Session::open(&options));
    assert!(status == Status::Timeout && text.contains("full.sock"), "{text}");
}

#[test]
fn a_daemon_that_hangs_up_at_once_is_none() {
    assert_eq!(outcome(|socket, _| drop(socket)).0, Status::NoDaemon);
}

#[test]
fn models_are_described_or_refused() {
    let (mut session, mut end) = fake::session(4);
    end.while_serving(|| {
        let model = session.model_open("echo").unwrap();
        assert_eq!((model.model, model.max_batch, model.input_count), (fake::ECHO, 8, 1));
        let (status, text) = status_and_text(session.model_open("absent"));
        assert_eq!(status, Status::NoSuchModel);
        assert!(text.contains("absent") && text.contains("model.toml"), "{text}");
        for name in ["", "a\0b", &"x".repeat(64)] {
            assert_eq!(status_and_text(session.model_open(name)).0, Status::InvalidArgument);
        }
        assert_eq!(status_and_text(session.model_open(&"x".repeat(63))).0, Status::NoSuchModel);
    });
    assert!(session.check().is_ok());
}

#[test]
fn a_late_spec_is_not_taken_for_another_models() {
    let listener = Listener::new();
    let options = Options { connect_timeout_ns: 30_000_000, ..Options::default() };
    let (session, mut end) = listener.open_with(&options, |socket, hello| welcome(socket, &hello));
    let mut session = session.unwrap();
    assert_eq!(status_and_text(session.model_open("null")).0, Status::Timeout);
    assert!(end.turn(), "answers the first query, too late");
    assert!(session.check().is_ok());
    let model = end.while_serving(|| session.model_open("echo"));
    assert_eq!(model.unwrap().model, fake::ECHO);
}

#[test]
fn a_spec_that_breaks_a_rule_ends_the_session() {
    let good = spec("echo");
    let mut endless = good;
    endless.inputs[0].name = [b'x'; 48];
    let mut reserved = good;
    reserved.reserved1[1] = 1;
    let mut dims = good;
    dims.outputs[0].dims[1] = 5;
    let mut counts = good;
    counts.input_count = 9;
    for broken in [endless, reserved, dims, counts] {
        let (mut session, end) = fake::session(4);
        frame::send(end.socket.as_ref().unwrap(), bytemuck::bytes_of(&broken), &[]).unwrap();
        let (status, text) = status_and_text(session.model_open("echo"));
        assert_eq!(status, Status::ProtocolViolation, "{text}");
        assert!(text.contains("the daemon sent"), "{text}");
        assert_eq!(status_and_text(session.claim(fake::ECHO, 1)).0, Status::ProtocolViolation);
    }
    // The number of a model that is open, with other tensors.
    let (mut session, end) = fake::session(4);
    let mut other = good;
    (other.inputs[0].dims[1], other.inputs[0].row_bytes) = (8, 32);
    frame::send(end.socket.as_ref().unwrap(), bytemuck::bytes_of(&other), &[]).unwrap();
    assert_eq!(status_and_text(session.model_open("other")).0, Status::ProtocolViolation);
    // A spec that nobody asked for.
    let (mut session, end) = fake::session(4);
    frame::send(end.socket.as_ref().unwrap(), bytemuck::bytes_of(&good), &[]).unwrap();
    assert_eq!(status_and_text(session.check()).0, Status::ProtocolViolation);
}

#[test]
fn a_refused_model_may_have_a_status_of_the_future() {
    let (mut session, end) = fake::session(4);
    let mut future = gpulet_client::ModelSpec::blank();
    future.status = 39;
    put_text(&mut future.text, "it is being quantised");
    frame::send(end.socket.as_ref().unwrap(), bytemuck::bytes_of(&future), &[]).unwrap();
    let (status, text) = status_and_text(session.model_open("echo"));
    assert_eq!(status, Status::ModelFailed);
    assert!(text.contains("quantised"), "{text}");
    assert!(session.check().is_ok());
}
