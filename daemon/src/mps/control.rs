//! Asking an MPS control daemon, through MPS's control program.
//!
//! The program takes commands on its standard input, one a line, hands them to the daemon of its
//! pipe directory, and prints the answers; it fails where there is no daemon. The socket underneath
//! is private to it.

use std::fmt;
use std::io::{self, PipeReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// Bytes of an answer that are read; no real one is near.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// Of an answer that makes no sense, so much is shown.
const SHOWN_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// The program could not be run.
    #[error("{}: {source}", program.display())]
    Run {
        /// Which.
        program: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It took too long, and was ended.
    #[error("{command:?} was not answered within {} ms", limit.as_millis())]
    Late {
        /// What was asked.
        command: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// It failed: hardly ever for another reason than that there is no daemon.
    #[error("{command:?} failed with {status}: {said}")]
    Failed {
        /// What was asked.
        command: String,
        /// How it ended.
        status: ExitStatus,
        /// What it printed.
        said: String,
    },
    /// It answered something that does not belong to the question.
    #[error("{command:?} was answered by {said:?}")]
    Nonsense {
        /// What was asked.
        command: String,
        /// What it printed.
        said: String,
    },
}

/// How an MPS server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServerStatus {
    /// It creates its contexts, at its start or after a fault; clients wait.
    Initializing,
    /// It takes clients.
    Active,
    /// A client made its device fault. It takes no clients until those it has are gone.
    Fault,
}

/// The control program for one pipe directory.
#[derive(Clone, Debug)]
pub struct Control {
    /// Where it is.
    pub program: PathBuf,
    /// `CUDA_MPS_PIPE_DIRECTORY`.
    pub pipe_dir: PathBuf,
    /// `CUDA_MPS_LOG_DIRECTORY`.
    pub log_dir: PathBuf,
    /// For the answer to one command.
    pub limit: Duration,
}

impl Control {
    /// The servers that run, by process id. Each user has at most one.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn server_list(&self) -> Result<Vec<u32>, AskError> {
        self.read("get_server_list", read_pids)
    }

    /// The clients of a server, by process id.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn client_list(&self, server: u32) -> Result<Vec<u32>, AskError> {
        self.read(&format!("get_client_list {server}"), read_pids)
    }

    /// How a server is.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn server_status(&self, server: u32) -> Result<ServerStatus, AskError> {
        self.read(&format!("get_server_status {server}"), read_status)
    }

    /// The share that clients of a server get where they name none, in percent.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn active_thread_percentage(&self, server: u32) -> Result<f64, AskError> {
        self.read(&format!("get_active_thread_percentage {server}"), read_percent)
    }

    /// Starts a server for a user, as the first client of that user would. It is there a little later.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn start_server(&self, uid: u32) -> Result<(), AskError> {
        self.order(&format!("start_server -uid {uid}"))
    }

    /// Ends all that a client has on its device.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn terminate_client(&self, server: u32, client: u32) -> Result<(), AskError> {
        self.order(&format!("terminate_client {server} {client}"))
    }

    /// Ends a server, whatever its clients do.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn shutdown_server(&self, server: u32) -> Result<(), AskError> {
        self.order(&format!("shutdown_server {server} -f"))
    }

    /// Ends the daemon and, `patience` later, servers that have clients still.
    ///
    /// # Errors
    /// [`AskError`]. There is nothing to parse: who asks sees the daemon end, or not.
    pub fn quit(&self, patience: Duration) -> Result<(), AskError> {
        // Answered when it is done.
        let limit = self.limit.max(patience * 2);
        let seconds = patience.as_secs_f64().ceil();
        self.ask(&format!("quit -t {seconds}"), limit).map(drop)
    }

    /// A command whose answer says no more than whether it was done.
    fn order(&self, command: &str) -> Result<(), AskError> {
        self.read(command, |said| (!is_refusal(said)).then_some(()))
    }

    fn read<A>(&self, command: &str, read: impl Fn(&str) -> Option<A>) -> Result<A, AskError> {
        let said = self.ask(command, self.limit)?;
        let nonsense = || AskError::Nonsense { command: command.to_owned(), said: shown(&said) };
        read(&said).ok_or_else(nonsense)
    }

    fn ask(&self, command: &str, limit: Duration) -> Result<String, AskError> {
        let line = format!("{command}\n");
        let (status, said) = run(self.command(), command, line.as_bytes(), limit)?;
        if !status.success() {
            let (command, said) = (command.to_owned(), shown(&said));
            return Err(AskError::Failed { command, status, said });
        }
        Ok(said)
    }

    /// The program with its directories, and with nothing else that it listens to.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let foreign = ["CUDA_", "NOTIFY_SOCKET", "WATCHDOG_"];
            if foreign.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
                command.env_remove(&name);
            }
        }
        command
            .env("LC_ALL", "C")
            .env("CUDA_MPS_PIPE_DIRECTORY", &self.pipe_dir)
            .env("CUDA_MPS_LOG_DIRECTORY", &self.log_dir)
            // The commands above are of this protocol; a later program may have another default.
            .env("CUDA_MPS_PROTOCOL_VERSION", "2");
        command
    }
}

/// The version that a control program says it has, such as 13000 for CUDA 13.0; `None` where it
/// does not say.
///
/// # Errors
/// [`AskError`], where it cannot be run or does not end.
pub fn version(program: &Path, limit: Duration) -> Result<Option<u32>, AskError> {
    let mut command = Command::new(program);
    command.arg("-v").env("LC_ALL", "C");
    let (_, said) = run(command, "-v", &[], limit)?;
    let numbers = said.split(|letter: char| !letter.is_ascii_digit());
    let is_cuda = |number: &u32| (9_000..1_000_000).contains(number);
    Ok(numbers.filter_map(|word| word.parse().ok()).find(is_cuda))
}

/// Process ids, in a line each.
fn read_pids(said: &str) -> Option<Vec<u32>> {
    let pid = |word: &str| word.parse::<u32>().ok().filter(|pid| *pid > 0);
    said.split_ascii_whitespace().map(pid).collect()
}

/// The word for a status, whatever stands around it.
fn read_status(said: &str) -> Option<ServerStatus> {
    let mut words = said.split(|letter: char| !letter.is_ascii_alphabetic());
    words.find_map(|word| match word.to_ascii_uppercase().as_str() {
        "INITIALIZING" => Some(ServerStatus::Initializing),
        "ACTIVE" => Some(ServerStatus::Active),
        "FAULT" => Some(ServerStatus::Fault),
        _ => None,
    })
}

fn read_percent(said: &str) -> Option<f64> {
    said.trim().parse::<f64>().ok().filter(|percent| (0.0..=100.0).contains(percent))
}

/// What was done is answered by nothing or by a word of success, and what was not by a sentence.
fn is_refusal(said: &str) -> bool {
    let said = said.to_ascii_lowercase();
    let bad = ["error", "fail", "invalid", "cannot", "can't", "not ", "unknown", "unrecogn"];
    bad.iter().any(|word| said.contains(word)) && !said.contains("success")
}

/// The beginning of what a program printed, in one line.
fn shown(said: &str) -> String {
    let line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(SHOWN_MAX).collect()
}

/// Runs a program with `input`, and gives back how it ended and what it printed, on either stream.
fn run(
    mut program: Command,
    command: &str,
    input: &[u8],
    limit: Duration,
) -> Result<(ExitStatus, String), AskError> {
    let path = PathBuf::from(program.get_program());
    let failed = |source: io::Error| AskError::Run { program: path.clone(), source };
    let deadline = Instant::now() + limit;
    let (reader, writer) = io::pipe().map_err(failed)?;
    let stderr = writer.try_clone().map_err(failed)?;
    let child = program.stdin(Stdio::piped()).stdout(writer).stderr(stderr).spawn();
    // The builder has the pipe's writing end, which must close for the reading end to end.
    drop(program);
    let mut child = Ended(child.map_err(failed)?);
    if let Some(mut stdin) = child.0.stdin.take() {
        // A program that ends without reading does not want it; how it ends says why.
        let _ = stdin.write_all(input);
    }
    let late = || AskError::Late { command: command.to_owned(), limit };
    let said = read_until(reader, deadline).map_err(failed)?.ok_or_else(late)?;
    if !wait_until(&child.0, deadline).map_err(failed)? {
        return Err(late());
    }
    let status = child.0.wait().map_err(failed)?;
    Ok((status, String::from_utf8_lossy(&said).into_owned()))
}

/// A child that does not outlive its owner.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        // Both do nothing to one that was waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What comes until the end; `None` if the end does not come in time.
fn read_until(mut reader: PipeReader, deadline: Instant) -> io::Result<Option<Vec<u8>>> {
    let mut said = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        let mut polled = [PollFd::new(&reader, PollFlags::IN)];
        if !poll_until(&mut polled, deadline)? {
            return Ok(None);
        }
        match reader.read(&mut chunk)? {
            0 => return Ok(Some(said)),
            // The rest is read too, so that the program can end, but not kept.
            count if said.len() < ANSWER_BYTES_MAX => said.extend_from_slice(&chunk[..count]),
            _ => {}
        }
    }
}

/// Whether the child ends in time.
fn wait_until(child: &Child, deadline: Instant) -> io::Result<bool> {
    let pidfd = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    poll_until(&mut [PollFd::new(&pidfd, PollFlags::IN)], deadline)
}

/// Whether one of them is ready in time.
pub(super) fn poll_until(polled: &mut [PollFd<'_>], deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(polled, Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

impl fmt::Display for ServerStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerStatus::Initializing => "initializing",
            ServerStatus::Active => "active",
            ServerStatus::Fault => "fault",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_are_read() {
        assert_eq!(read_pids("123\n45\n"), Some(vec![123, 45]));
        assert_eq!(read_pids(""), Some(vec![]));
        for nonsense in ["0", "-1", "x", "12 servers", "99999999999"] {
            assert_eq!(read_pids(nonsense), None, "{nonsense}");
        }
        assert_eq!(read_status("ACTIVE\n"), Some(ServerStatus::Active));
        assert_eq!(read_status("Server status: Initializing"), Some(ServerStatus::Initializing));
        assert_eq!(read_status("FAULT"), Some(ServerStatus::Fault));
        assert_eq!(read_status("INACTIVE"), None, "part of a word is no word");
        assert_eq!(read_percent("25.0\n"), Some(25.0));
        for nonsense in ["", "nan", "-1", "101", "x"] {
            assert_eq!(read_percent(nonsense), None, "{nonsense}");
        }
        for done in ["", "\n", "0", "CUDA_SUCCESS", "Success: no error"] {
            assert!(!is_refusal(done), "{done}");
        }
        for refused in ["Invalid server PID", "client 5 not found", "CUDA_ERROR_UNKNOWN"] {
            assert!(is_refusal(refused), "{refused}");
        }
    }

    proptest! {
        #[test]
        fn no_answer_makes_it_panic(said in "\\PC*") {
            let _ = (read_pids(&said), read_status(&said), read_percent(&said));
            is_refusal(&said);
            prop_assert!(shown(&said).chars().count() <= SHOWN_MAX);
        }
    }
}
