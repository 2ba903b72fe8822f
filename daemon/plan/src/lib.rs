//! The planner: pure functions of devices, profiles, demands and settings.
//!
//! No I/O, no clock, no threads: time comes in as `now_ns`, so the live dispatcher and a
//! simulator run the very same code. Times are nanoseconds of one monotonic clock; a
//! `deadline_ns` is absolute, a latency or budget is relative.
//!
//! - [`profile`]: how long a batch of so many rows takes on one gpulet.
//! - [`queue`]: the requests that wait for one model, earliest deadline first.

#![forbid(unsafe_code)]

pub mod profile;
pub mod queue;

mod correction;
