//! Why there is no plan.

use thiserror::Error;

use crate::bound::best_throughput;
use crate::problem::Problem;

/// What keeps a problem from having a plan.
#[derive(Debug, Clone, PartialEq, Error)]
#[non_exhaustive]
pub enum Infeasible {
    /// Not even a single request can be answered in time.
    #[error(
        "{model}: SLO must be at least {needed_ms:.3} ms, twice the latency of one request on \
         its fastest share, is {slo_ms} ms"
    )]
    Slo {
        /// Which model.
        model: String,
        /// Shortest SLO that could be met.
        needed_ms: f64,
        /// What was asked.
        slo_ms: f64,
    },
    /// A model does not fit on any device.
    #[error("{model}: memory must be at most {most_mb} MB with its context, is {memory_mb} MB")]
    Memory {
        /// Which model.
        model: String,
        /// Room on the largest device.
        most_mb: u64,
        /// What is needed.
        memory_mb: u64,
    },
    /// Too few devices.
    #[error("devices: must be more than {count} (no plan with fewer than {bound:.2})")]
    Devices {
        /// A bound on how few can do.
        bound: f64,
        /// How many there are.
        count: u32,
    },
    /// The problem is too large for the policy.
    #[error("{policy}: must have at most {most} models, has {count}")]
    TooLarge {
        /// Which policy.
        policy: &'static str,
        /// Its limit.
        most: usize,
        /// What was asked.
        count: usize,
    },
}

impl Infeasible {
    /// What is in the way of every policy.
    pub(super) fn look(problem: &Problem, bound: f64) -> Result<(), Self> {
        for (index, model) in problem.models.iter().enumerate() {
            let mut fits = false;
            let mut needed_ms = f64::INFINITY;
            for (device, kind) in problem.devices.iter().enumerate() {
                fits |= model.costs.memory_mb + kind.context_mb <= kind.memory_mb;
                for share in 0..kind.shares_pct.len() {
                    let ms = problem.planned_ms(device, index, share, 1, 1.0);
                    needed_ms = needed_ms.min(2.0 * ms);
                }
            }
            let kinds = 0..problem.devices.len();
            let served = kinds.clone().any(|device| {
                let shares = 0..problem.devices[device].shares_pct.len();
                shares.into_iter().any(|it| best_throughput(problem, device, index, it).is_some())
            });
            let name = || model.name.clone();
            if !served {
                return Err(Self::Slo { model: name(), needed_ms, slo_ms: model.slo_ms });
            }
            if !fits {
                let rooms = problem.devices.iter().map(|kind| kind.memory_mb);
                let context_mb = problem.devices.iter().map(|kind| kind.context_mb).min();
                return Err(Self::Memory {
                    model: name(),
                    most_mb: rooms.max().unwrap_or(0),
                    memory_mb: model.costs.memory_mb + context_mb.unwrap_or(0),
                });
            }
        }
        let count = problem.device_count();
        if bound > f64::from(count) + 1e-9 { Err(Self::Devices { bound, count }) } else { Ok(()) }
    }
}
