//! The planner: pure functions of devices, profiles, demands and settings.
//!
//! No I/O, no clock, no threads: time comes in as `now_ns`, so the live dispatcher and a
//! simulator run the very same code. Times are nanoseconds of one monotonic clock; a
//! `deadline_ns` is absolute, a latency or budget is relative.
//!
//! - [`profile`]: how long a batch of so many rows takes on one gpulet.
//! - [`queue`]: the requests that wait for one model, earliest deadline first.
//! - [`policy`]: admit or refuse a request; expire, wait, or close a batch.
//! - [`problem`]: devices with their profiles, models with their demands; [`published`] reads it
//!   from the published files, [`native`] from our own.
//! - [`measured`]: what `gpuletctl profile` measured, as its files have it.
//! - [`search`]: policies that make a [`plan`]; [`check`] looks at it independently, [`bound`]
//!   says how few devices could do, [`why`] what binds, [`churn`] what a change from one plan to
//!   the next costs.
//! - [`sim`]: discrete events over the same policy; [`workload`]: what to feed it.
//!
//! A dispatcher's turn for one model, with an executor that is free:
//!
//! ```
//! use gpulet_plan::policy::{Admission, BatchLimits, Decision, admit, decide};
//! use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
//! use gpulet_plan::queue::DeadlineQueue;
//!
//! let points = [
//!     ProfilePoint { rows: 1, p50_ns: 1_000_000, p99_ns: 1_100_000 },
//!     ProfilePoint { rows: 8, p50_ns: 3_000_000, p99_ns: 3_200_000 },
//! ];
//! let mut profile = LatencyProfile::new("digits", &points)?;
//! let limits = BatchLimits { max_batch: 8, guard_ns: 50_000 };
//! let mut queue: DeadlineQueue<&str> = DeadlineQueue::new(16);
//!
//! let now_ns = 0;
//! for (name, deadline_ns) in [("late", 9_000_000), ("soon", 4_000_000), ("lost", 500_000)] {
//!     match admit(now_ns, deadline_ns, 1, &limits, &profile, &[now_ns]) {
//!         Admission::Admit => {
//!             queue.push(deadline_ns, 1, name)?;
//!         }
//!         Admission::RejectHopeless { budget_ns } => {
//!             profile.note_refused(1, budget_ns);
//!             assert_eq!(name, "lost");
//!         }
//!     }
//! }
//!
//! let decision = decide(&queue, &limits, Some(1), now_ns, &profile);
//! let Decision::Close { count: 2, rows: 2, .. } = decision else { panic!("{decision:?}") };
//! assert_eq!(queue.pop_front().map(|entry| entry.payload), Some("soon"));
//! assert_eq!(queue.pop_front().map(|entry| entry.payload), Some("late"));
//!
//! profile.observe(2, 1_300_000); // when the batch has completed
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![forbid(unsafe_code)]

pub mod bound;
pub mod check;
pub mod churn;
pub mod demand;
pub mod input;
pub mod interference;
pub mod measured;
pub mod native;
pub mod plan;
pub mod policy;
pub mod problem;
pub mod profile;
pub mod published;
pub mod queue;
pub mod search;
pub mod sim;
pub mod table;
pub mod why;
pub mod workload;

mod correction;
