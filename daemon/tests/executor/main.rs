//! `gpulet-executor` as its daemon sees it: the real process, told what to do by a test.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod builtin;
mod harness;
mod life;
mod replay;
mod torch;
