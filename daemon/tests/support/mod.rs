//! What the tests of the whole daemon stand on: real processes, real shared memory, and one folder
//! and socket for each daemon, so that tests run side by side.
#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

pub mod child;
pub mod client;
pub mod daemon;
pub mod models;
pub mod process;
pub mod raw;
pub mod state;

use std::io::Write;
use std::time::{Duration, Instant};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The same, for the client library.
pub const PATIENCE_NS: u64 = PATIENCE.as_secs() * SECOND_NS;
pub const SECOND_NS: u64 = 1_000_000_000;
pub const MS_NS: u64 = 1_000_000;

/// Looks again and again until there is what a test waits for.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begin.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Says something that must be seen even when every test passes, which `eprintln!` is not.
pub fn say_loudly(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Numbers that are the same on every machine: SplitMix64.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}
