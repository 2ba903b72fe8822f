//! Who may come in.

use gpulet_client::{Session, Status};
use rustix::fs::{Gid, Uid};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::support::client::{echo_once, open};
use crate::support::daemon::{Daemon, Setup};
use crate::support::raw::{Connection, hello};
use crate::support::{say_loudly, state};

/// A user and a group that no machine has.
const USER: u32 = 54_321;
const GROUP: u32 = 54_322;

/// Does something as another user, in a thread of its own: to the kernel it is threads, not
/// processes, that have credentials, and the one that connects counts.
fn as_somebody<T: Send>(groups: &[u32], act: impl FnOnce() -> T + Send) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        say_loudly("SKIP: tests of other users' access, which root only can make");
        return None;
    }
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            // Descriptors, memory and the rest of this program stay as they are.
            set_thread_groups(&groups).unwrap();
            let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
            set_thread_res_gid(group, group, group).unwrap();
            set_thread_res_uid(user, user, user).unwrap();
            act()
        });
        Some(thread.join().unwrap())
    })
}

fn refusal(daemon: &Daemon, groups: &[u32]) -> Option<String> {
    let error = as_somebody(groups, || Session::open(&daemon.options()).unwrap_err())?;
    assert_eq!(error.status(), Status::AccessDenied, "{error}");
    Some(error.to_string())
}

#[test]
fn a_user_on_no_list_is_refused_and_told_so() {
    let daemon = Setup::builtin().start();
    let Some(text) = refusal(&daemon, &[]) else { return };
    assert!(text.contains(&USER.to_string()) && text.contains("allow list"), "{text}");
    assert_eq!(daemon.state().session_count(), 0);
    // Nor does it get to know how the daemon is.
    let told = as_somebody(&[], || state::State::ask(&daemon.socket).is_some());
    assert_eq!(told, Some(false));
}

#[test]
fn a_user_or_a_member_of_a_group_on_the_list_is_served() {
    let serve = |daemon: &Daemon| {
        let mut session = daemon.session();
        let echo = open(&mut session, "echo");
        echo_once(&mut session, echo, 1, 1);
        let id = session.info().session;
        daemon.state().session(id).unwrap()["uid"].as_u64().unwrap()
    };
    let daemon = Setup::builtin().section(&format!("[access]\nusers = [0, {USER}]")).start();
    let Some(uid) = as_somebody(&[], || serve(&daemon)) else { return };
    assert_eq!(uid, u64::from(USER));
    drop(daemon);
    let daemon = Setup::builtin().section(&format!("[access]\ngroups = [{GROUP}]")).start();
    assert_eq!(as_somebody(&[7, GROUP], || serve(&daemon)), Some(u64::from(USER)));
    refusal(&daemon, &[7]);
}

/// The socket is everybody's to connect to, so that a refusal can be told; whoever is on no list
/// cannot use that to keep others out.
#[test]
fn somebody_on_no_list_cannot_keep_others_out() {
    let daemon = Setup::builtin().start();
    let crowd = as_somebody(&[], || {
        (0..200).map(|_| Connection::open(&daemon.socket)).collect::<Vec<Connection>>()
    });
    let Some(crowd) = crowd else { return };
    let mut session = daemon.session();
    let echo = open(&mut session, "echo");
    echo_once(&mut session, echo, 1, 1);
    let (status, _) = crowd[0].refusal(&hello(0, 0));
    assert_eq!(status, Status::AccessDenied);
}
