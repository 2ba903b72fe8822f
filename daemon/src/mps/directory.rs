//! The directories of one control daemon: made, checked, and cleared of what a dead one left.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, geteuid, test_kill_process};

/// In which a control daemon writes its process id.
const PID_FILE: &str = "nvidia-cuda-mps-control.pid";
/// All that a control daemon makes in its pipe directory.
const PIPE_FILES: [&str; 5] = [PID_FILE, "control", "control_privileged", "control_lock", "log"];

/// Why there is no place for a control daemon.
#[derive(Debug, thiserror::Error)]
pub(super) enum DirectoryError {
    /// The kernel refuses.
    #[error("{}: {source}", path.display())]
    Kernel {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could put their own sockets in there.
    #[error("{}: must be a directory of user {uid} that nobody else can write to", path.display())]
    Open {
        /// Which.
        path: PathBuf,
        /// Who we are.
        uid: u32,
    },
    /// There is a daemon already.
    #[error(
        "{}: process {pid} ({command}) runs MPS there, which gpulet did not start; stop it, or say \
         mps.adopt = true",
        path.display()
    )]
    Taken {
        /// The pipe directory.
        path: PathBuf,
        /// The daemon.
        pid: u32,
        /// Its command line.
        command: String,
    },
}

fn kernel(path: &Path) -> impl Fn(io::Error) -> DirectoryError {
    move |source| DirectoryError::Kernel { path: path.to_owned(), source }
}

/// Makes both directories ready for a daemon to start in.
pub(super) fn prepare(pipe_dir: &Path, log_dir: &Path) -> Result<(), DirectoryError> {
    for directory in [pipe_dir, log_dir] {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(kernel(directory))?;
        let found = fs::symlink_metadata(directory).map_err(kernel(directory))?;
        let uid = geteuid().as_raw();
        if !found.is_dir() || found.uid() != uid || found.mode() & 0o022 != 0 {
            return Err(DirectoryError::Open { path: directory.to_owned(), uid });
        }
    }
    if let Some(pid) = daemon_pid(pipe_dir) {
        let (path, command) = (pipe_dir.to_owned(), command_line(pid).join(" "));
        return Err(DirectoryError::Taken { path, pid, command });
    }
    clear(pipe_dir)
}

/// Removes what a daemon that is dead left in its pipe directory.
pub(super) fn clear(pipe_dir: &Path) -> Result<(), DirectoryError> {
    for name in PIPE_FILES {
        let path = pipe_dir.join(name);
        let Ok(found) = fs::symlink_metadata(&path) else { continue };
        let kind = found.file_type();
        if kind.is_file() || kind.is_socket() || kind.is_fifo() {
            fs::remove_file(&path).map_err(kernel(&path))?;
        }
    }
    Ok(())
}

/// The living control daemon of a pipe directory, as its file names it.
pub(super) fn daemon_pid(pipe_dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(pipe_dir.join(PID_FILE)).ok()?;
    let number = text.trim().parse().ok().filter(|number: &i32| *number > 0)?;
    let pid = Pid::from_raw(number)?;
    // A process of another user is there too, although it cannot be signalled.
    let alive = matches!(test_kill_process(pid), Ok(()) | Err(rustix::io::Errno::PERM));
    let pid = u32::try_from(number).ok()?;
    (alive && is_mps(pid, pipe_dir)).then_some(pid)
}

/// Whether a process that has the id of a daemon is one, and not a later process with the same id:
/// by the directory that it was started with or, where that may not be read, by its name.
fn is_mps(pid: u32, pipe_dir: &Path) -> bool {
    let expected =
        [b"CUDA_MPS_PIPE_DIRECTORY=".as_slice(), pipe_dir.as_os_str().as_bytes()].concat();
    match fs::read(format!("/proc/{pid}/environ")) {
        Ok(environ) => environ.split(|byte| *byte == 0).any(|entry| entry == expected),
        Err(_) => command_line(pid).iter().any(|word| word.contains("mps-control")),
    }
}

fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn directories_are_made_for_us_alone() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, log) = (folder.path().join("a/pipe"), folder.path().join("a/log"));
        prepare(&pipe, &log).unwrap();
        prepare(&pipe, &log).unwrap();
        assert_eq!(fs::metadata(&pipe).unwrap().mode() & 0o777, 0o700);
        fs::set_permissions(&log, PermissionsExt::from_mode(0o770)).unwrap();
        let said = prepare(&pipe, &log).unwrap_err().to_string();
        assert!(said.contains("a/log: must be a directory of user"), "{said}");
        let link = folder.path().join("link");
        symlink(&pipe, &link).unwrap();
        assert!(matches!(prepare(&link, &pipe), Err(DirectoryError::Open { .. })));
        let said = prepare(Path::new("/proc/none"), &log).unwrap_err().to_string();
        assert!(said.starts_with("/proc/none: "), "{said}");
    }

    #[test]
    fn what_a_dead_daemon_left_is_cleared_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, log) = (folder.path().join("pipe"), folder.path().join("log"));
        prepare(&pipe, &log).unwrap();
        drop(UnixListener::bind(pipe.join("control")).unwrap());
        fs::write(pipe.join("control_lock"), "").unwrap();
        fs::write(pipe.join("other"), "").unwrap();
        // This process lives, but runs no MPS there.
        for left in ["999999999", "0", "-1", "x", "", &std::process::id().to_string()] {
            fs::write(pipe.join(PID_FILE), left).unwrap();
            prepare(&pipe, &log).unwrap();
            assert!(!pipe.join(PID_FILE).exists(), "{left:?}");
        }
        assert!(!pipe.join("control").exists() && !pipe.join("control_lock").exists());
        assert!(pipe.join("other").exists());
    }

    #[test]
    fn a_living_daemon_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, log) = (folder.path().join("pipe"), folder.path().join("log"));
        prepare(&pipe, &log).unwrap();
        let mut foreign = Command::new("cat")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .env("CUDA_MPS_PIPE_DIRECTORY", &pipe)
            .spawn()
            .unwrap();
        // Its environment can be read once it runs, a little after it was started.
        foreign.stdin.as_mut().unwrap().write_all(b"x").unwrap();
        foreign.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        fs::write(pipe.join(PID_FILE), format!("{}\n", foreign.id())).unwrap();
        let said = prepare(&pipe, &log).unwrap_err().to_string();
        let expected = format!("process {} (cat) runs MPS there", foreign.id());
        assert!(said.contains(&expected), "{said}");
        drop(foreign.stdin.take());
        foreign.wait().unwrap();
        prepare(&pipe, &log).unwrap();
    }
}
