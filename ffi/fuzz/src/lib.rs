//! Fuzz targets: whatever bytes come from somebody else, nothing here may panic, hang or break one
//! of its promises.
//!
//! `run.sh` builds this crate as a static archive with coverage counters, links it with libFuzzer
//! under the name of each target, and runs them. A finding is run again by
//! `target/fuzz/bin/<target> <file>`. Seeds are in `corpus/<target>/`; a plain `cargo test` runs
//! them too, without any of that.
//!
//! | target          | bytes of                                                          |
//! |-----------------|-------------------------------------------------------------------|
//! | [`submissions`] | a client that writes over its region: rings, cursors, entries      |
//! | [`frames`]      | either side of the client's socket                                |
//! | [`header`]      | whoever wrote the header of a region                              |
//! | [`config`]      | `gpuletd.toml`                                                    |
//! | [`model`]       | `model.toml`                                                      |
//! | [`messages`]    | control messages of executors, and profiles                       |

pub mod config;
pub mod frames;
pub mod header;
pub mod messages;
pub mod model;
pub mod submissions;

use std::ffi::{OsStr, c_int};
use std::path::Path;
use std::sync::OnceLock;

/// What is run on one input. It panics where a promise is broken.
pub type Target = fn(&[u8]);

/// Every target by its name.
pub const TARGETS: [(&str, Target); 6] = [
    ("submissions", submissions::run),
    ("frames", frames::run),
    ("header", header::run),
    ("config", config::run),
    ("model", model::run),
    ("messages", messages::run),
];

/// The target that this program was named for when it was linked.
fn of_this_program() -> Target {
    static TARGET: OnceLock<Target> = OnceLock::new();
    *TARGET.get_or_init(|| {
        // SAFETY: installs no handler. The start of a Rust program does just this, and gpuletd
        // relies on it, but here main is libFuzzer's.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        let program = std::env::args_os().next().unwrap_or_default();
        let name = Path::new(&program).file_name().unwrap_or(OsStr::new("")).to_owned();
        match TARGETS.iter().find(|(target, _)| name == *target) {
            Some((_, target)) => *target,
            None => panic!("a fuzz program must have the name of a target, is {name:?}"),
        }
    })
}

/// libFuzzer's entry: one input.
///
/// # Safety
/// `data` points to `bytes` readable bytes that nobody writes during the call.
#[unsafe(no_mangle)]
#[allow(non_snake_case, reason = "the name is libFuzzer's")]
pub unsafe extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, bytes: usize) -> c_int {
    let input = if bytes == 0 {
        &[]
    } else {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts(data, bytes) }
    };
    of_this_program()(input);
    0
}
