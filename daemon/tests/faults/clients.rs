//! Clients that die, or turn against the daemon.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use gpulet_abi::layout::{SUBMIT_INFER, Submission};
use gpulet_client::Status;
use rustix::fs::OFlags;

use crate::support::child::{Player, Role, play_if_told};
use crate::support::client::{echo_once, open};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::{descriptors, descriptors_at_rest, regions};
use crate::support::raw::RawSession;
use crate::support::{MS_NS, PATIENCE};

/// What must be as before when a client is gone: descriptors and mapped regions of the daemon, and
/// of its executor.
struct Levels {
    pids: [u32; 2],
    before: [usize; 4],
}

impl Levels {
    fn of(daemon: &Daemon) -> Levels {
        let pids = [daemon.pid(), daemon.executor_pid("r0")];
        let [first, second] = pids;
        let (daemons, executors) = (descriptors_at_rest(first), descriptors_at_rest(second));
        Levels { pids, before: [daemons, regions(first), executors, regions(second)] }
    }

    /// Does not ask for the state, which takes descriptors for a moment.
    fn wait_until_they_are_back(&self) {
        let [daemon, executor] = self.pids;
        let look =
            || [descriptors(daemon), regions(daemon), descriptors(executor), regions(executor)];
        let begin = Instant::now();
        while look() != self.before {
            assert!(begin.elapsed() < PATIENCE, "{:?}, before: {:?}", look(), self.before);
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// Tells a thread to stop, also when a test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn clients_that_are_killed_leave_nothing_behind() {
    if play_if_told() {
        return;
    }
    let daemon = Setup::builtin().slow("slow", 20 * MS_NS, 1).start();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (daemon, stop) = (&daemon, &stop);
        // Somebody who must notice nothing of it.
        let witness = scope.spawn(move || {
            let mut session = daemon.session();
            let echo = open(&mut session, "echo");
            let mut seed = 0;
            while !stop.load(Ordering::Relaxed) {
                echo_once(&mut session, echo, 1, seed);
                seed += 1;
                std::thread::sleep(Duration::from_millis(1));
            }
            session.check().unwrap();
            seed
        });
        let stopping = StopOnDrop(stop);
        daemon.wait_for("the witness is served", |state| {
            (state.answers("echo", "GPULET_OK") > 10).then_some(())
        });
        let levels = Levels::of(daemon);
        for round in 0..5 {
            for role in [Role::Claiming, Role::Submitted, Role::Waiting, Role::Holding] {
                let test = "clients::clients_that_are_killed_leave_nothing_behind";
                let mut player = Player::start(test, role, &daemon.socket);
                let id: u64 = player.said().parse().unwrap();
                assert!(daemon.state().session(id).is_some(), "{role:?} has a session");
                player.kill();
                daemon.wait_for("its session is gone", |state| {
                    state.session(id).is_none().then_some(())
                });
                if round == 0 {
                    levels.wait_until_they_are_back();
                }
            }
        }
        levels.wait_until_they_are_back();
        drop(stopping);
        assert!(witness.join().unwrap() > 100);
    });
    let state = daemon.state();
    assert_eq!(state.executor("r0").unwrap()["restarts"], 0);
    let queued_and_running = (state.count("slow", "queued"), state.count("slow", "running"));
    assert_eq!(queued_and_running, (0, 0));
}

#[test]
fn a_session_that_is_closed_leaves_nothing_behind() {
    let daemon = Setup::builtin().start();
    let levels = Levels::of(&daemon);
    for round in 0..50 {
        let mut session = daemon.session();
        let echo = open(&mut session, "echo");
        echo_once(&mut session, echo, 1, round);
    }
    daemon.wait_for("all sessions are gone", |state| (state.session_count() == 0).then_some(()));
    levels.wait_until_they_are_back();
}

/// The end of a session for what a client did, seen from that client.
fn thrown_out(daemon: &Daemon, deed: &str, act: impl FnOnce(&mut RawSession, u32)) -> String {
    let mut session = RawSession::open(&daemon.socket, 1024, 4);
    let echo = session.model("echo");
    act(&mut session, echo);
    let (status, text) = session.connection.hear_the_end().unwrap_or_else(|| panic!("{deed}"));
    assert_eq!(status, Status::ProtocolViolation, "{deed}");
    assert_eq!(session.region.ended(), Status::ProtocolViolation, "{deed}");
    text
}

#[test]
fn a_client_that_breaks_a_rule_is_told_which() {
    let daemon = Setup::builtin().slow("slow", 300 * MS_NS, 1).start();
    let mut honest = daemon.session();
    let echo = open(&mut honest, "echo");
    type Breach = fn(&mut Submission);
    let cases: [(&str, &str, Breach); 5] = [
        ("kind", "submission.kind", |entry| entry.kind = 3),
        ("slot", "submission.slot", |entry| entry.slot = 4),
        ("far slot", "submission.slot", |entry| entry.slot = u32::MAX),
        ("reserved0", "submission.reserved", |entry| entry.reserved0 = 1),
        ("reserved1", "submission.reserved", |entry| entry.reserved1[2] = 1),
    ];
    for (deed, rule, change) in cases {
        let text = thrown_out(&daemon, deed, |session, model| {
            let mut entry = Submission { kind: SUBMIT_INFER, ..RawSession::infer(model, 0, 1) };
            change(&mut entry);
            session.send(&[entry]);
        });
        assert!(text.contains(rule), "{deed}: {text}");
    }
    let text = thrown_out(&daemon, "a slot twice", |session, _| {
        let slow = session.model("slow");
        session.send(&[RawSession::infer(slow, 1, 1), RawSession::infer(slow, 1, 1)]);
    });
    assert!(text.contains("in flight"), "{text}");
    for (deed, offset, rule) in [("tail", 256, "tail"), ("head", 640 + 128, "head")] {
        let text = thrown_out(&daemon, deed, |session, _| {
            let null = session.model("null");
            session.memory.atomic_u32(offset).store(1 << 20, Ordering::Relaxed);
            if deed == "head" {
                // It is looked at when the completion ring seems to be full.
                let entries = [0, 1, 2, 3, 0].map(|slot| RawSession::infer(null, slot, 1));
                session.send(&entries);
            }
            session.submission_bell.signal().unwrap();
        });
        assert!(text.contains(rule), "{deed}: {text}");
    }
    echo_once(&mut honest, echo, 1, 1);
    assert_eq!(daemon.state().executor("r0").unwrap()["restarts"], 0);
}

/// A client has the same doorbells as the daemon, and can do to them what the kernel lets it do.
#[test]
fn a_client_that_stops_up_its_doorbell_stops_nobody() {
    let daemon = Setup::builtin().start();
    let mut hostile = RawSession::open(&daemon.socket, 1024, 4);
    let null = hostile.model("null");
    let bell = &hostile.completion_bell;
    let flags = rustix::fs::fcntl_getfl(bell).unwrap();
    rustix::fs::fcntl_setfl(bell, flags - OFlags::NONBLOCK).unwrap();
    // Whether it takes this is the bell's affair; that the daemon goes on is ours.
    let _ = rustix::io::write(bell, &(u64::MAX - 1).to_ne_bytes());
    assert!(hostile.completions.prepare_sleep().unwrap());
    hostile.send(&[RawSession::infer(null, 0, 1)]);
    let mut honest = daemon.session();
    let echo = open(&mut honest, "echo");
    for seed in 0..100 {
        echo_once(&mut honest, echo, 1, seed);
    }
}
