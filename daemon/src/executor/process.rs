//! An executor's process, and the ways to talk to it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame;
use gpulet_abi::region::MappedRing;
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_torch::{MAPPED_MEMORY, OPENMP_SPIN};
use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Source;
use crate::clock::now_ns;
use crate::wire::{BatchCommand, BatchReport, Link, Start, ToExecutor, send};

/// See the module.
#[derive(Debug)]
pub(super) struct Process {
    pub child: Child,
    /// Readable when the process is gone.
    pub pidfd: OwnedFd,
    pub control: OwnedFd,
    pub commands: Producer<MappedRing, BatchCommand>,
    pub reports: Consumer<MappedRing, BatchReport>,
    pub command_bell: Doorbell,
    pub report_bell: Doorbell,
    pub started_ns: u64,
}

impl Process {
    /// Starts the process and tells it what it is.
    pub fn start(
        program: &Path,
        environment: &[(String, String)],
        start: &Start,
        (registry, token): (&Registry, Token),
    ) -> io::Result<Process> {
        let (near, far) = frame::pair()?;
        let (link, link_fd) = Link::create()?;
        let (commands, reports) = link.daemon_ends();
        let (command_bell, report_bell) = (Doorbell::new()?, Doorbell::new()?);
        let mut child = run(program, environment, far)?;
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                end(&mut child);
                return Err(errno.into());
            }
        };
        let mut process = Process {
            child,
            pidfd,
            control: near,
            commands,
            reports,
            command_bell,
            report_bell,
            started_ns: now_ns(),
        };
        match process.introduce(&link_fd, start, registry, token) {
            Ok(()) => Ok(process),
            Err(error) => {
                process.deregister(registry);
                end(&mut process.child);
                Err(error)
            }
        }
    }

    fn introduce(
        &self,
        link: &OwnedFd,
        start: &Start,
        registry: &Registry,
        token: Token,
    ) -> io::Result<()> {
        for (fd, source) in self.sources() {
            let token = Token(token.0 + source as usize);
            registry.register(&mut SourceFd(&fd), token, Interest::READABLE)?;
        }
        let message = ToExecutor::Start(Box::new(start.clone()));
        let descriptors = [link.as_fd(), self.command_bell.as_fd(), self.report_bell.as_fd()];
        send(&self.control, &message, &descriptors)
    }

    /// Its descriptors are no event sources any more.
    pub fn deregister(&self, registry: &Registry) {
        for (fd, _) in self.sources() {
            let _ = registry.deregister(&mut SourceFd(&fd));
        }
    }

    fn sources(&self) -> [(i32, Source); 3] {
        [
            (self.control.as_raw_fd(), Source::Control),
            (self.report_bell.as_fd().as_raw_fd(), Source::Bell),
            (self.pidfd.as_raw_fd(), Source::Exit),
        ]
    }
}

fn run(program: &Path, environment: &[(String, String)], far: OwnedFd) -> io::Result<Child> {
    let mut command = Command::new(program);
    for (variable, value) in [OPENMP_SPIN, MAPPED_MEMORY] {
        if std::env::var_os(variable).is_none() {
            command.env(variable, value);
        }
    }
    command
        .envs(environment.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::from(far))
        .stdout(Stdio::null())
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .env_remove("WATCHDOG_PID")
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// Nobody will hear of this process.
fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}
