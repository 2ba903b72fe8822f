//! The planner: pure functions of devices, profiles, demands and settings.
//!
//! No I/O, no clock, no threads: time comes in as `now_ns`, so the live dispatcher and a
//! simulator run the very same code. Times are nanoseconds of one monotonic clock; a
//! `deadline_ns` is absolute, a latency or budget is relative.
//!
//! - [`profile`]: how long a batch of so many rows takes on one gpulet.

#![forbid(unsafe_code)]

pub mod profile;

mod correction;
