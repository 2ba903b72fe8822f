//! Whatever dies, freezes or talks nonsense: everybody else goes on, and nothing is lost.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod access;
mod clients;
mod configs;
mod daemon;
mod devices;
mod executors;
mod frames;
mod models;
#[path = "../support/mod.rs"]
mod support;
