//! Requests and their answers, through real processes and real shared memory.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod answers;
mod batches;
mod cancelling;
mod deadlines;
mod deferral;
mod digits;
mod gpulets;
mod guests;
#[path = "../support/mod.rs"]
mod support;
