//! Waiting in each way, and how a session ends under it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fake::{ECHO, End, Listener};
use gpulet_abi::status::Status;
use gpulet_client::{Error, Options, Request, Session, Submit, Wait};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const WAYS: [Wait; 3] = [Wait::Block, Wait::Spin, Wait::Hybrid(200_000)];
const LONG_NS: u64 = 20_000_000_000;

fn session(wait: Wait) -> (Session, End) {
    Listener::new().session(&Options::default().wait(wait).slots(8))
}

fn submitted(session: &mut Session) -> Request {
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit::default()).unwrap();
    request
}

fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    result.unwrap_err().status()
}

/// Runs `client` while the daemon's end does something a little later.
fn meanwhile<T>(
    end: &mut End,
    daemon: impl FnOnce(&mut End) + Send,
    client: impl FnOnce() -> T,
) -> T {
    std::thread::scope(|scope| {
        scope.spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            daemon(end);
        });
        client()
    })
}

#[test]
fn an_answer_ends_every_way_of_waiting() {
    for way in WAYS {
        let (mut session, mut end) = session(way);
        end.while_serving(|| {
            for round in 0..200 {
                let request = session.claim(ECHO, 1).unwrap();
                let how = Submit { user_data: round, ..Submit::default() };
                session.submit(request, how).unwrap();
                assert_eq!(session.next(LONG_NS).unwrap().user_data, round, "{way:?}");
                session.release(request).unwrap();
            }
        });
    }
}

#[test]
fn a_sleeper_is_rung_and_a_spinner_is_not() {
    for way in WAYS {
        let (mut session, mut end) = session(way);
        submitted(&mut session);
        let answer = |end: &mut End| end.take().iter().for_each(|entry| end.answer(entry));
        meanwhile(&mut end, answer, || session.next(LONG_NS)).unwrap();
        assert_eq!(end.rings, u32::from(way != Wait::Spin), "{way:?}");
    }
}

#[test]
fn nothing_in_time_is_a_timeout() {
    for way in WAYS {
        let (mut session, _end) = session(way);
        submitted(&mut session);
        for timeout_ns in [0, 1, 100_000, 5_000_000] {
            let started = Instant::now();
            assert_eq!(status(session.next(timeout_ns)), Status::Timeout, "{way:?}");
            assert!(started.elapsed().as_nanos() >= u128::from(timeout_ns), "{way:?}");
        }
        assert_eq!(status(session.wait(&mut [], 1)), Status::InvalidArgument);
    }
}

#[test]
fn a_hang_up_ends_every_way_of_waiting() {
    for way in WAYS {
        let (mut session, mut end) = session(way);
        submitted(&mut session);
        let outcome = meanwhile(&mut end, End::hang_up, || session.next(LONG_NS));
        assert_eq!(status(outcome), Status::DaemonGone, "{way:?}");
        assert_eq!(status(session.check()), Status::DaemonGone);
        assert_eq!(status(session.claim(ECHO, 1)), Status::DaemonGone);
        assert_eq!(status(session.flush()), Status::DaemonGone);
        assert_eq!(status(session.model_open("echo")), Status::DaemonGone);
        assert_eq!(status(session.next(0)), Status::DaemonGone);
    }
}

#[test]
fn a_goodbye_says_why() {
    for way in WAYS {
        let (mut session, mut end) = session(way);
        submitted(&mut session);
        let goodbye = |end: &mut End| {
            end.region.end(Status::Draining);
            std::thread::sleep(Duration::from_millis(2));
            end.say_goodbye(Status::Draining, "gpuletd is being upgraded");
            end.hang_up();
        };
        let error = meanwhile(&mut end, goodbye, || session.next(LONG_NS)).unwrap_err();
        assert_eq!(error.status(), Status::Draining, "{way:?}");
        assert!(error.to_string().contains("being upgraded"), "{error}");
        let error = session.check().unwrap_err();
        assert!(error.to_string().contains("being upgraded"), "the first reason stays: {error}");
    }
}

#[test]
fn a_goodbye_may_be_behind_its_word_in_the_region() {
    let (mut session, mut end) = session(Wait::Block);
    end.region.end(Status::Draining);
    let error = session.claim(ECHO, 1).unwrap_err();
    assert_eq!(error.status(), Status::Draining, "nothing that does not wait waits for it");
    end.say_goodbye(Status::Draining, "gpuletd is being upgraded");
    let error = session.claim(ECHO, 1).unwrap_err();
    assert!(error.to_string().contains("being upgraded"), "{error}");
    // What follows changes nothing.
    end.hang_up();
    assert_eq!(status(session.check()), Status::Draining);
}

#[test]
fn a_word_in_the_region_is_enough() {
    for way in WAYS {
        let (mut session, end) = session(way);
        let request = submitted(&mut session);
        end.region.end(Status::ProtocolViolation);
        assert_eq!(status(session.next(LONG_NS)), Status::ProtocolViolation);
        assert_eq!(status(session.reap(&mut [zeroed()])), Status::ProtocolViolation);
        assert_eq!(status(session.cancel(request)), Status::ProtocolViolation);
        assert_eq!(status(session.arm()), Status::ProtocolViolation);
    }
}

fn zeroed() -> gpulet_client::Completion {
    bytemuck::Zeroable::zeroed()
}

#[test]
fn answers_of_before_the_end_are_taken_first() {
    for way in WAYS {
        let (mut session, mut end) = session(way);
        let requests = [submitted(&mut session), submitted(&mut session)];
        end.take().iter().for_each(|entry| end.answer(entry));
        end.say_goodbye(Status::Draining, "");
        end.hang_up();
        assert_eq!(status(session.check()), Status::Draining);
        assert!(session.arm().unwrap(), "there is something to reap");
        session.next(LONG_NS).unwrap();
        assert_eq!(session.reap(&mut [zeroed()]).unwrap(), 1);
        for request in requests {
            assert_eq!(session.output_bytes(request, 0).unwrap().len(), 16);
            session.release(request).unwrap();
        }
        assert_eq!(status(session.reap(&mut [zeroed()])), Status::Draining);
        assert_eq!(status(session.next(LONG_NS)), Status::Draining);
        assert_eq!(status(session.arm()), Status::Draining);
    }
}

fn readable(session: &Session, timeout_ms: i64) -> bool {
    let fd = session.fd().unwrap();
    let timeout = Timespec { tv_sec: timeout_ms / 1000, tv_nsec: timeout_ms % 1000 * 1_000_000 };
    poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)).unwrap() > 0
}

#[test]
fn the_descriptor_is_readable_after_arm_and_an_answer() {
    let (mut session, mut end) = session(Wait::Block);
    for _ in 0..3 {
        assert!(!session.arm().unwrap());
        assert!(!readable(&session, 0));
        let request = submitted(&mut session);
        assert!(!readable(&session, 0));
        end.take().iter().for_each(|entry| end.answer(entry));
        assert!(readable(&session, 0));
        assert!(session.arm().unwrap(), "an answer is there already");
        assert_eq!(session.reap(&mut [zeroed()]).unwrap(), 1);
        session.release(request).unwrap();
    }
    // Unarmed, an answer costs the daemon no system call.
    let rings = end.rings;
    submitted(&mut session);
    end.take().iter().for_each(|entry| end.answer(entry));
    assert_eq!((end.rings, readable(&session, 0)), (rings, false));
    assert_eq!(session.reap(&mut [zeroed()]).unwrap(), 1);
    assert!(!session.arm().unwrap());
    assert!(!readable(&session, 0));
}

#[test]
fn arming_publishes_what_is_held() {
    let (mut session, mut end) = session(Wait::Block);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit { held: true, ..Submit::default() }).unwrap();
    assert!(!session.arm().unwrap());
    assert_eq!(end.take().len(), 1);
}

#[test]
fn the_descriptor_is_readable_from_the_end_on() {
    let (mut session, mut end) = session(Wait::Block);
    assert!(!session.arm().unwrap());
    end.hang_up();
    assert!(readable(&session, 0));
    assert_eq!(session.reap(&mut [zeroed()]).unwrap(), 0, "reaping makes no system call");
    assert_eq!(status(session.arm()), Status::DaemonGone);
    assert!(readable(&session, 0));

    // A goodbye that was read, from a daemon that does not hang up.
    let (mut session, mut end) = fake::session(2);
    end.say_goodbye(Status::Draining, "");
    assert!(readable(&session, 0));
    assert_eq!(status(session.check()), Status::Draining);
    assert!(readable(&session, 0));
}

#[test]
fn a_loop_over_the_descriptor_gets_every_answer() {
    let (mut session, mut end) = session(Wait::Block);
    end.while_serving(|| {
        let (mut sent, mut got) = (0u32, 0u32);
        let mut answers = [zeroed(); 3];
        while got < 2000 {
            while sent < 2000 && sent - got < 8 {
                submitted(&mut session);
                sent += 1;
            }
            let count = session.reap(&mut answers).unwrap();
            for answer in &answers[..count] {
                session.release(answer.into()).unwrap();
                got += 1;
            }
            if count == 0 && !session.arm().unwrap() {
                assert!(readable(&session, 20_000), "a wake-up was lost at {got}");
            }
        }
    });
}

static HANDLED: AtomicBool = AtomicBool::new(false);

extern "C" fn handler(_signal: i32) {
    HANDLED.store(true, Ordering::Relaxed);
}

unsafe extern "C" {
    fn signal(number: i32, handler: extern "C" fn(i32)) -> usize;
    fn pthread_self() -> usize;
    fn pthread_kill(thread: usize, number: i32) -> i32;
}

#[test]
fn a_signal_handler_does_not_end_a_wait() {
    const SIGUSR1: i32 = 10;
    // SAFETY: the handler only stores to an atomic.
    unsafe { signal(SIGUSR1, handler) };
    // SAFETY: no precondition.
    let waiter = unsafe { pthread_self() };
    let (mut session, mut end) = session(Wait::Block);
    submitted(&mut session);
    let interrupt = |end: &mut End| {
        // SAFETY: the thread lives: it waits for the answer that comes after this.
        assert_eq!(unsafe { pthread_kill(waiter, SIGUSR1) }, 0);
        std::thread::sleep(Duration::from_millis(20));
        end.take().iter().for_each(|entry| end.answer(entry));
    };
    meanwhile(&mut end, interrupt, || session.next(LONG_NS)).unwrap();
    assert!(HANDLED.load(Ordering::Relaxed));
}

#[test]
fn a_child_of_fork_can_only_close() {
    let (mut session, mut end) = fake::session(4);
    let request = submitted(&mut session);
    unsafe extern "C" {
        fn fork() -> i32;
        fn _exit(status: i32) -> !;
        fn waitpid(pid: i32, status: *mut i32, options: i32) -> i32;
    }
    // SAFETY: the child only calls what needs no lock another thread may hold, then leaves.
    let child = unsafe { fork() };
    if child == 0 {
        let forked = |result: Result<(), Error>| matches!(result, Err(Error::Forked));
        let right = forked(session.submit(request, Submit::default()))
            && forked(session.claim(ECHO, 1).map(drop))
            && forked(session.input_tensor(request, 0).map(drop))
            && forked(session.reap(&mut [zeroed()]).map(drop))
            && forked(session.next(0).map(drop))
            && forked(session.arm().map(drop))
            && forked(session.flush())
            && forked(session.cancel(request))
            && forked(session.check())
            && forked(session.fd().map(drop))
            && forked(session.release(request));
        drop(session);
        // SAFETY: ends the child at once, as a test's copy must not go on.
        unsafe { _exit(if right { 0 } else { 1 }) };
    }
    let mut left = -1;
    // SAFETY: `left` is writable.
    assert_eq!(unsafe { waitpid(child, &mut left, 0) }, child);
    assert_eq!(left, 0, "the child saw something else than GPULET_FORKED");
    session.check().unwrap();
    end.take().iter().for_each(|entry| end.answer(entry));
    session.next(LONG_NS).unwrap();
    session.release(request).unwrap();
    assert!(end.turn(), "the daemon still sees a client");
}
