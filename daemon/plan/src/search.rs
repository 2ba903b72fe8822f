//! Policies: ways from a problem to a plan, chosen by name.

pub mod elastic;
mod infeasible;
pub mod packed;

pub use infeasible::Infeasible;

use crate::bound;
use crate::plan::{Filled, Plan};
use crate::problem::Problem;

/// A way to make a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Any number of gpulets a device; batch, share and time searched together. The default.
    #[default]
    Packed,
    /// Whole devices, shared by taking turns.
    Temporal,
    /// The published elastic partitioning: at most two gpulets a device.
    Elastic,
    /// The same, blind to interference while it searches.
    ElasticNoInterference,
    /// The published greedy partitioning: smallest sufficient share, nothing shared.
    Greedy,
    /// Every combination, on small problems.
    Exhaustive,
}

impl Policy {
    /// All of them.
    pub const ALL: [Policy; 6] = [
        Policy::Packed,
        Policy::Temporal,
        Policy::Elastic,
        Policy::ElasticNoInterference,
        Policy::Greedy,
        Policy::Exhaustive,
    ];

    /// Its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Policy::Packed => "packed",
            Policy::Temporal => "temporal",
            Policy::Elastic => "elastic",
            Policy::ElasticNoInterference => "elastic-no-interference",
            Policy::Greedy => "greedy",
            Policy::Exhaustive => "exhaustive",
        }
    }

    /// The policy of that name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|policy| policy.name() == name)
    }
}

impl Policy {
    /// Makes a plan for `problem`.
    ///
    /// # Errors
    /// What is in the way.
    pub fn plan(self, problem: &Problem) -> Result<Plan, Infeasible> {
        let bound = bound::fluid(problem);
        let filled: Vec<Filled> = match self {
            Policy::Packed => packed::search(problem, bound)?,
            Policy::Exhaustive => packed::exhaustive(problem, bound)?,
            _ => elastic::search(problem, bound, self, problem.device_count())?,
        };
        Ok(Plan::assemble(problem, self.name(), &filled, bound))
    }
}
