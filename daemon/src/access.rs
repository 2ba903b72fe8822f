//! Who is on the other end of a Unix socket, and whether they may be.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::config::Access;

/// Supplementary groups looked at; Linux allows 65,536, a process rarely has more than a few.
const GROUPS_MAX: usize = 1024;

/// The process that connected, as the kernel recorded it at that moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Process, for logs only: it may be gone.
    pub pid: i32,
}

impl Peer {
    /// Asks the kernel.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn of_socket(socket: impl AsFd) -> io::Result<Peer> {
        let credentials = rustix::net::sockopt::socket_peercred(&socket)?;
        Ok(Peer {
            uid: credentials.uid.as_raw(),
            gid: credentials.gid.as_raw(),
            groups: peer_groups(socket)?,
            pid: credentials.pid.as_raw_nonzero().get(),
        })
    }

    /// Whether this user, or one of its groups, is on the list.
    pub fn may_connect(&self, access: &Access) -> bool {
        access.uids.contains(&self.uid)
            || access.gids.iter().any(|gid| *gid == self.gid || self.groups.contains(gid))
    }
}

fn peer_groups(socket: impl AsFd) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; GROUPS_MAX];
    let mut bytes = (GROUPS_MAX * size_of::<u32>()) as libc::socklen_t;
    // SAFETY: the kernel writes at most `bytes` bytes to `groups`, which has that many, and then the
    // number it wrote to `bytes`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERGROUPS,
            groups.as_mut_ptr().cast(),
            &mut bytes,
        )
    };
    if result != 0 {
        let error = io::Error::last_os_error();
        // More groups than we look at: none of them counts.
        return if error.raw_os_error() == Some(libc::ERANGE) {
            Ok(Vec::new())
        } else {
            Err(error)
        };
    }
    groups.truncate(bytes as usize / size_of::<u32>());
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer { uid, gid, groups: groups.to_vec(), pid: 1 }
    }

    #[test]
    fn a_user_or_any_of_its_groups_opens_the_door() {
        let access = Access { uids: vec![7], gids: vec![100] };
        assert!(peer(7, 0, &[]).may_connect(&access));
        assert!(peer(8, 100, &[]).may_connect(&access));
        assert!(peer(8, 0, &[5, 100]).may_connect(&access));
        assert!(!peer(8, 0, &[5]).may_connect(&access));
    }

    #[test]
    fn the_kernel_tells_who_we_are() {
        let (near, _far) = gpulet_abi::frame::pair().unwrap();
        let peer = Peer::of_socket(&near).unwrap();
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert_eq!(peer.pid, std::process::id() as i32);
    }
}
