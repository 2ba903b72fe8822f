//! What systemd is told, and what it hands over: readiness, status, watchdog, sockets.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

use rustix::net::SocketType;
use rustix::net::sockopt::{socket_acceptconn, socket_type};
use sd_notify::NotifyState;
use tracing::debug;

/// systemd, if there is one.
#[derive(Debug)]
pub struct Notifier {
    watchdog_ns: Option<u64>,
    fed_ns: u64,
    status: String,
}

impl Notifier {
    /// Looks at what the environment says.
    pub fn from_environment() -> Notifier {
        let watchdog_ns = sd_notify::watchdog_enabled()
            .map(|interval| u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX));
        Notifier { watchdog_ns, fed_ns: 0, status: String::new() }
    }

    /// The listening socket that systemd handed over, if it did. Ask once.
    ///
    /// # Errors
    /// `InvalidData` if it handed over more than one, or something else.
    pub fn take_listener(&mut self) -> io::Result<Option<OwnedFd>> {
        let mut sockets = sd_notify::listen_fds()?;
        let Some(fd) = sockets.next() else { return Ok(None) };
        // SAFETY: systemd passed this descriptor to this process for this use, and
        // nobody else takes it: this function is called once.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let invalid = |text| Err(io::Error::new(io::ErrorKind::InvalidData, text));
        if sockets.next().is_some() {
            return invalid("more than one socket was handed over");
        }
        if socket_type(&socket)? != SocketType::SEQPACKET || !socket_acceptconn(&socket)? {
            return invalid("what was handed over is no listening SOCK_SEQPACKET socket");
        }
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Some(socket))
    }

    /// Everything that can be served is.
    pub fn ready(&self) {
        tell(&[NotifyState::Ready]);
    }

    /// Still starting: gives `extend_ns` more, and says what with.
    pub fn starting(&mut self, status: String, extend_ns: u64) {
        let usec = u32::try_from(extend_ns / 1000).unwrap_or(u32::MAX);
        tell(&[NotifyState::ExtendTimeoutUsec(usec)]);
        self.status(status);
    }

    /// One line for `systemctl status`; said only when it changed.
    pub fn status(&mut self, status: String) {
        if status != self.status {
            tell(&[NotifyState::Status(&status)]);
            self.status = status;
        }
    }

    /// Nothing new is taken any more.
    pub fn stopping(&self) {
        tell(&[NotifyState::Stopping]);
    }

    /// Proof of life, four times as often as is asked for.
    pub fn feed_watchdog(&mut self, now_ns: u64) {
        let Some(interval_ns) = self.watchdog_ns else { return };
        if now_ns.saturating_sub(self.fed_ns) >= interval_ns / 4 {
            self.fed_ns = now_ns;
            tell(&[NotifyState::Watchdog]);
        }
    }
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        debug!(%error, "systemd does not listen");
    }
}
