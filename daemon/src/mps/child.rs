//! The control daemon as our process: started, heard, ended.

use std::collections::VecDeque;
use std::io::{self, PipeReader, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{OFlags, fcntl_setfl};
use rustix::process::{
    Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal, set_parent_process_death_signal,
};
use tracing::debug;

use super::control::{Control, poll_until};

/// Lines of its output that are kept, for a message when it fails.
const LINES_MAX: usize = 8;
/// Bytes of one line that are kept.
const LINE_BYTES_MAX: usize = 512;
/// Between looks for a daemon in the background, which tells nobody when it is there.
const FIND_EVERY: Duration = Duration::from_millis(20);
/// For a killed process to be gone, which nothing but a hung kernel delays.
const KILL_TAKES: Duration = Duration::from_secs(2);

/// A control daemon that we started.
pub(super) struct Daemon {
    /// Ours where it runs in the foreground; one in the background is a child of nobody.
    child: Option<Child>,
    pidfd: OwnedFd,
    output: Output,
}

impl Daemon {
    /// Starts it in the foreground, so that it stays our child. It ends with this thread.
    pub(super) fn foreground(control: &Control, devices: &[String]) -> io::Result<Daemon> {
        let (output, mut child) = launch(control, devices, "-f")?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Daemon { child: Some(child), pidfd, output }),
            Err(errno) => {
                // One that cannot be watched must not stay. Both fail only where it has ended.
                let _ = child.kill();
                let _ = child.wait();
                Err(errno.into())
            }
        }
    }

    /// Starts it as a control program does that knows no foreground: the program ends, and the
    /// daemon is the process that `find` finds.
    pub(super) fn background(
        control: &Control,
        devices: &[String],
        deadline: Instant,
        find: impl Fn() -> Option<u32>,
    ) -> io::Result<Daemon> {
        let (mut output, mut launcher) = launch(control, devices, "-d")?;
        let pidfd = pidfd_open(Pid::from_child(&launcher), PidfdFlags::empty())?;
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
        if !poll_until(&mut polled, deadline)? {
            let _ = launcher.kill();
        }
        launcher.wait()?;
        let pidfd = loop {
            if let Some(Held { pidfd, .. }) = find().and_then(Held::new) {
                break pidfd;
            }
            output.hear();
            if Instant::now() >= deadline {
                return Err(io::Error::other(output.last_words()));
            }
            std::thread::sleep(FIND_EVERY);
        };
        Ok(Daemon { child: None, pidfd, output })
    }

    /// What becomes readable when it has ended.
    pub(super) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// What becomes readable when it says something; [`hear`](Self::hear) takes it.
    pub(super) fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.pipe.as_ref().map(AsFd::as_fd)
    }

    /// Takes what it says.
    pub(super) fn hear(&mut self) {
        self.output.hear();
    }

    /// What it said last, in one line.
    pub(super) fn last_words(&mut self) -> String {
        self.output.hear();
        self.output.last_words()
    }

    /// Whether it has ended, or does within `patience`.
    pub(super) fn ends(&self, patience: Duration) -> bool {
        let mut polled = [PollFd::new(&self.pidfd, PollFlags::IN)];
        poll_until(&mut polled, Instant::now() + patience).unwrap_or(false)
    }

    /// Ends it at once. One that listens was told to quit before.
    pub(super) fn end(mut self) {
        // Fails where it has ended.
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
        match &mut self.child {
            Some(child) => drop(child.wait()),
            None => drop(self.ends(KILL_TAKES)),
        }
    }
}

/// A process that is not our child, held so that nobody else is meant when its id is given away.
pub(super) struct Held {
    pub(super) pid: u32,
    pidfd: OwnedFd,
}

impl Held {
    /// `None` if it is gone.
    pub(super) fn new(pid: u32) -> Option<Held> {
        let raw = Pid::from_raw(i32::try_from(pid).ok()?)?;
        Some(Held { pid, pidfd: pidfd_open(raw, PidfdFlags::empty()).ok()? })
    }

    /// Ends it at once.
    pub(super) fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, Signal::KILL);
    }
}

fn launch(control: &Control, devices: &[String], flag: &str) -> io::Result<(Output, Child)> {
    let (pipe, writer) = io::pipe()?;
    fcntl_setfl(&pipe, OFlags::NONBLOCK)?;
    let mut command = control.command();
    command
        .arg(flag)
        .env("CUDA_VISIBLE_DEVICES", devices.join(","))
        .current_dir(Path::new("/"))
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer);
    die_with_us(&mut command, flag);
    let child = command.spawn()?;
    Ok((Output { pipe: Some(pipe), line: Vec::new(), lines: VecDeque::new() }, child))
}

/// A daemon in the foreground ends when we are killed, so that the next of us finds its directory
/// free. One in the background has left us by then.
fn die_with_us(command: &mut Command, flag: &str) {
    if flag != "-f" {
        return;
    }
    let before_exec = || Ok(set_parent_process_death_signal(Some(Signal::TERM))?);
    // SAFETY: it runs in the forked child, where only async-signal-safe calls are allowed: it is one
    // system call, and it allocates nothing.
    unsafe { command.pre_exec(before_exec) };
}

/// What a daemon and its servers print.
struct Output {
    /// Gone when all that could write are.
    pipe: Option<PipeReader>,
    line: Vec<u8>,
    lines: VecDeque<String>,
}

impl Output {
    fn hear(&mut self) {
        let mut chunk = [0; 4096];
        while let Some(pipe) = &mut self.pipe {
            match pipe.read(&mut chunk) {
                Ok(0) => self.pipe = None,
                Ok(count) => chunk[..count].iter().for_each(|byte| self.take(*byte)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.pipe = None,
            }
        }
    }

    fn take(&mut self, byte: u8) {
        if byte != b'\n' {
            if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
            return;
        }
        let line = String::from_utf8_lossy(&std::mem::take(&mut self.line)).trim().to_owned();
        if line.is_empty() {
            return;
        }
        debug!(target: "mps", "{line}");
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    fn last_words(&mut self) -> String {
        if !self.line.is_empty() {
            self.take(b'\n');
        }
        if self.lines.is_empty() {
            return "it said nothing".to_owned();
        }
        let lines: Vec<&str> = self.lines.iter().map(String::as_str).collect();
        lines.join("; ")
    }
}
