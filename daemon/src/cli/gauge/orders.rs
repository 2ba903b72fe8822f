//! What a process that measures is asked, and answers. Both sides are of the same program.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::super::CtlError;
use super::GpuArguments;
use crate::cuda::measure::laps::Until;
use crate::cuda::measure::{Facts, Part, Spell};
use crate::model::Precision;

/// What is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Open the device, and cut it into green contexts if there are shares. The first of all.
    Open {
        /// What to open it with.
        gpu: GpuArguments,
        /// Of each gpulet; none for one gpulet that has everything the process sees.
        shares_pct: Vec<u8>,
    },
    /// See which multiprocessors each gpulet runs on.
    Probe,
    /// Put a model on every gpulet.
    Load(Load),
    /// Take it off again.
    Unload {
        /// Which.
        id: u32,
    },
    /// Run parts, all at once.
    Run {
        /// What each does.
        parts: Vec<Part>,
        /// For how long.
        until: Until,
    },
}

/// Which model, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// What it is called in parts.
    pub id: u32,
    /// Its directory.
    pub directory: PathBuf,
    /// What it computes in; default: as its model.toml says.
    pub precision: Option<Precision>,
    /// The largest batch; default: as its model.toml says.
    pub max_batch: Option<u32>,
}

/// What is answered.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// To [`Order::Open`].
    Opened(Opened),
    /// To [`Order::Probe`]: the numbers of each gpulet's multiprocessors.
    Probed(Vec<Vec<u32>>),
    /// To [`Order::Load`].
    Loaded(Facts),
    /// To [`Order::Unload`].
    Unloaded,
    /// To [`Order::Run`]: what each part did, in their order.
    Ran(Vec<Spell>),
    /// It cannot be done, or went wrong.
    Failed(String),
}

impl Answer {
    /// The error that an answer is which is none to the order.
    pub fn unexpected(self) -> CtlError {
        CtlError::Measure(match self {
            Answer::Failed(text) => text,
            other => format!("the process that measures: an answer to something else: {other:?}"),
        })
    }
}

/// What was opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// For people.
    pub describe: String,
    /// libtorch's version.
    pub libtorch: String,
    /// Multiprocessors that the process sees: under MPS those of its percentage.
    pub sm_count: u32,
    /// Those of each gpulet.
    pub gpulets: Vec<u32>,
}
