//! The other process of a measurement: this program again, under a hidden subcommand.
//!
//! It is told what to do by one packet on its standard input, answers with one packet once it is
//! ready, and is bound to a CPU and to our life before it does anything.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use gpulet_abi::frame;
use rustix::thread::CpuSet;

use crate::error::{Doing, Error};

/// Bytes of the longest packet.
const PACKET_BYTES_MAX: usize = 256;
const STOP_MAX: Duration = Duration::from_secs(5);

/// The CPUs of the two sides.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Cpus {
    /// Where the measuring side runs.
    pub near: u32,
    /// Where the answering side runs.
    pub far: u32,
}

impl Cpus {
    /// The first and the last CPU that this process may use, where nothing else is asked for.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn choose(near: Option<u32>, far: Option<u32>) -> Result<Cpus, Error> {
        let allowed = rustix::thread::sched_getaffinity(None).doing("reading the CPU set")?;
        let mut usable = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let first = usable.next().unwrap_or(0);
        let last = usable.next_back().unwrap_or(first);
        let cpus = Cpus { near: near.unwrap_or(first as u32), far: far.unwrap_or(last as u32) };
        for cpu in [cpus.near, cpus.far] {
            let cpu = cpu as usize;
            if cpu >= CpuSet::MAX_CPU || !allowed.is_set(cpu) {
                return Err(Error::failed("choosing CPUs", format!("CPU {cpu} is not allowed")));
            }
        }
        Ok(cpus)
    }
}

/// Binds this thread, and whatever it starts from now on, to one CPU.
///
/// # Errors
/// What the kernel says, such as no such CPU.
pub fn pin(cpu: u32) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu as usize);
    Ok(rustix::thread::sched_setaffinity(None, &cpus)?)
}

/// Becomes `program` on CPU `cpu`, to be killed when the process that started us dies.
///
/// # Errors
/// Returns only if something failed.
pub fn leash(cpu: Option<u32>, program: &[OsString]) -> Error {
    let Some((program, arguments)) = program.split_first() else {
        return Error::failed("leash", "no program given");
    };
    let prepared =
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    let pinned = prepared.map_err(io::Error::from).and_then(|()| cpu.map_or(Ok(()), pin));
    if let Err(error) = pinned.doing("leash") {
        return error;
    }
    let source = Command::new(program).args(arguments).exec();
    Error::Io { what: format!("starting {}", Path::new(program).display()), source }
}

/// The command that runs `program` under [`leash`].
///
/// # Errors
/// When our own executable cannot be found.
pub fn leashed(cpu: Option<u32>, program: impl Into<OsString>) -> Result<Command, Error> {
    let mut command = Command::new(std::env::current_exe().doing("finding our own executable")?);
    command.arg("leash");
    if let Some(cpu) = cpu {
        command.arg("--cpu").arg(cpu.to_string());
    }
    command.arg("--").arg(program.into());
    Ok(command)
}

/// A process of ours that answers. Dropped, it is killed if it has not ended by itself.
#[derive(Debug)]
pub struct Far {
    child: Child,
}

impl Far {
    /// Starts the process for `kind`, hands it `descriptors`, and waits until it is ready.
    ///
    /// # Errors
    /// What the kernel says, and when it ended instead of getting ready.
    pub fn start(kind: &str, cpu: u32, descriptors: &[BorrowedFd<'_>]) -> Result<Far, Error> {
        let (near, far) = frame::pair().doing("socketpair")?;
        for end in [&near, &far] {
            rustix::io::ioctl_fionbio(end, false).doing("making a socket block")?;
        }
        let this = std::env::current_exe().doing("finding our own executable")?;
        let mut command = leashed(Some(cpu), this)?;
        let child = command.arg("far").arg(kind).stdin(Stdio::from(far)).spawn();
        let far = Far { child: child.doing("starting the other process")? };
        drop(command);
        frame::send(&near, b"begin", descriptors).doing("telling the other process")?;
        match receive(&near)?.0 {
            ready if ready == "ready" => Ok(far),
            _ => Err(Error::failed(kind, "the other process ended before it was ready")),
        }
    }

    /// Waits for the process, which was asked to end, and says how it went.
    ///
    /// # Errors
    /// When it failed, or goes on for longer than 5 s.
    pub fn join(mut self) -> Result<(), Error> {
        let status = wait(&mut self.child, STOP_MAX).doing("waiting for the other process")?;
        match status {
            Some(status) if status.success() => Ok(()),
            Some(status) => Err(Error::failed("the other process", status)),
            None => Err(Error::failed("the other process", "did not end when it was asked to")),
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        kill(&mut self.child);
    }
}

/// Ends a child of ours for good, if it still runs.
pub fn kill(child: &mut Child) {
    // Both fail only when it has ended and was waited for.
    let _ = child.kill();
    let _ = child.wait();
}

/// Waits for a child for `limit` at most.
///
/// # Errors
/// What the kernel says.
pub fn wait(child: &mut Child, limit: Duration) -> io::Result<Option<std::process::ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        let status = child.try_wait()?;
        if status.is_some() || Instant::now() >= end {
            return Ok(status);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the near side hands to the other process.
#[derive(Debug)]
pub struct Invitation {
    descriptors: Vec<OwnedFd>,
}

impl Invitation {
    /// Receives it from standard input; the other process's first act.
    ///
    /// # Errors
    /// When standard input is no socket of ours.
    pub fn receive() -> Result<Invitation, Error> {
        let (_, descriptors) = receive(io::stdin().as_fd())?;
        Ok(Invitation { descriptors })
    }

    /// Takes the `N` descriptors that this kind of measurement has.
    ///
    /// # Errors
    /// When there are more or fewer.
    pub fn take<const N: usize>(self) -> Result<[OwnedFd; N], Error> {
        self.descriptors.try_into().map_err(|_| Error::failed("far", "wrong descriptor count"))
    }
}

/// Tells the near side that it can begin.
///
/// # Errors
/// When it has gone.
pub fn ready() -> Result<(), Error> {
    frame::send(io::stdin().as_fd(), b"ready", &[]).doing("telling the near side")
}

fn receive(socket: impl AsFd) -> Result<(String, Vec<OwnedFd>), Error> {
    let mut packet = [0; PACKET_BYTES_MAX];
    let received = frame::receive(socket, &mut packet).doing("receiving from the other process")?;
    let text = String::from_utf8_lossy(&packet[..received.bytes]).into_owned();
    Ok((text, received.descriptors))
}
