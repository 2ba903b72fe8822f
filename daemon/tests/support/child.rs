//! Clients in processes of their own: the test program itself, started again with a role to play.
//!
//! A test file that uses them has one test that calls [`play_if_told`] first; [`Player::start`] has
//! the test program run that test alone.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use gpulet_client::{Options, Session};

use super::client;

const ROLE_VARIABLE: &str = "GPULET_TEST_ROLE";
const SOCKET_VARIABLE: &str = "GPULET_TEST_SOCKET";
/// Before each line that is meant for the parent: the test harness prints others.
const MARK: &str = "@player ";

/// Where in its life a client stops to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Slots claimed and half written, nothing sent.
    Claiming,
    /// Requests with the daemon, queued and running, nobody waiting.
    Submitted,
    /// The same, asleep in a wait.
    Waiting,
    /// Answers reaped and not released, and others not reaped.
    Holding,
    /// Asks the model echo for some hundred answers, checks each, and ends well.
    Asking,
}

impl Role {
    pub const ALL: [Role; 5] =
        [Role::Claiming, Role::Submitted, Role::Waiting, Role::Holding, Role::Asking];
}

/// A process that plays a role; killed when it is dropped.
pub struct Player {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Player {
    /// Starts the test `test` of this program in a process of its own, to play `role`.
    pub fn start(test: &str, role: Role, socket: &Path) -> Player {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE_VARIABLE, format!("{role:?}"))
            .env(SOCKET_VARIABLE, socket)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Player { child, lines }
    }

    /// Waits until it says that it is where its role has it, and what else it says.
    pub fn said(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            let count = self.lines.read_line(&mut line).unwrap();
            assert!(count > 0, "the player ended without a word");
            if let Some(word) = line.strip_prefix(MARK) {
                return word.trim().to_owned();
            }
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Player {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Plays the role that the parent gave this process, and `true`; `false` if it gave none.
pub fn play_if_told() -> bool {
    let (Ok(role), Some(socket)) =
        (std::env::var(ROLE_VARIABLE), std::env::var_os(SOCKET_VARIABLE))
    else {
        return false;
    };
    let role = Role::ALL.into_iter().find(|it| format!("{it:?}") == role).unwrap();
    let mut session =
        Session::open(&Options { slot_bytes: 1 << 14, ..Options::at(socket).slots(8) }).unwrap();
    play(role, &mut session);
    true
}

fn play(role: Role, session: &mut Session) {
    let echo = client::open(session, "echo");
    let id = session.info().session;
    match role {
        Role::Claiming => {
            for seed in 0..4 {
                client::claim(session, echo, 1, seed);
            }
            say(id);
        }
        Role::Submitted | Role::Waiting => {
            let slow = client::open(session, "slow");
            for seed in 0..8 {
                client::submit(session, slow, 1, seed);
            }
            say(id);
            if role == Role::Waiting {
                while session.next(u64::MAX).is_ok() {}
            }
        }
        Role::Holding => {
            for seed in 0..8 {
                client::submit(session, echo, 1, seed);
            }
            for _ in 0..4 {
                client::next(session);
            }
            say(id);
        }
        Role::Asking => {
            for seed in 0..500 {
                client::echo_once(session, echo, 1 + seed as u32 % 7, seed);
            }
            return say(id);
        }
    }
    // Until somebody kills us.
    loop {
        std::thread::park();
    }
}

fn say(session: u64) {
    // The harness leaves its own line unfinished while a test runs.
    println!("\n{MARK}{session}");
    std::io::stdout().flush().unwrap();
}
