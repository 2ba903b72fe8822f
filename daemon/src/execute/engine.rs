//! What an executor runs batches on: this host, or a GPU.

use gpulet_abi::region::Region;
use gpulet_plan::profile::ProfilePoint;

use super::loader::{Later, Load};
use crate::wire::{BatchCommand, BatchReport};

/// The device is lost to this process. Another process must take over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// What the daemon is told of a model that was loaded.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Its name.
    pub model: String,
    /// How it runs, for people.
    pub form: String,
    /// Its latencies on each gpulet, rows ascending.
    pub points: Vec<Vec<ProfilePoint>>,
    /// Device memory; 0 where there is no device.
    pub memory_bytes: u64,
}

/// What there is to say of what an engine has made on the loader's thread.
#[derive(Clone, Debug)]
pub enum News {
    /// Something is made for a model that may take long.
    Step {
        /// Which model.
        instance: u32,
        /// What it is, such as "8 rows".
        step: String,
    },
    /// What a model's batches take from now on.
    Faster {
        /// Which model.
        instance: u32,
        /// For each gpulet, rows ascending.
        points: Vec<Vec<ProfilePoint>>,
    },
    /// What a model's batches will take on the shares that are being prepared.
    Remeasured {
        /// Which model.
        instance: u32,
        /// For each gpulet, rows ascending.
        points: Vec<Vec<ProfilePoint>>,
    },
    /// All models are warm on these shares.
    Ready,
    /// These shares cannot be had; everything is as before.
    Failed(String),
}

/// Runs batches on the gpulets of one executor.
pub trait Engine {
    /// What its models are loaded by.
    type Load: Load;

    /// Called once, before anything else: what takes long is to be done by this thread.
    fn employ(&mut self, _later: &Later) {}

    /// Adds a session's region.
    fn map(&mut self, number: u32, region: Region);

    /// Drops a session's region; none of its requests is under way.
    fn unmap(&mut self, number: u32);

    /// Adds a model.
    fn adopt(&mut self, instance: u32, loaded: Box<Loaded<Self>>) -> Facts;

    /// Takes a model out, if it is there; none of its batches is under way. What it returns is dropped
    /// on the loader's thread.
    fn release(&mut self, instance: u32) -> Option<Box<dyn Send>>;

    /// Whether `command` names what is not here.
    fn lacks(&self, command: &BatchCommand) -> bool;

    /// Begins with a batch, and may end it. Never fails for the batch's sake: each request gets its
    /// own status in the report.
    ///
    /// # Errors
    /// [`Fault`].
    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault>;

    /// The report of a batch that is done. Does not wait.
    ///
    /// # Errors
    /// [`Fault`].
    fn poll(&mut self) -> Result<Option<BatchReport>, Fault>;

    /// From when on to look for the next end of a batch (CLOCK_MONOTONIC); `None` when none is under
    /// way.
    fn look_ns(&self) -> Option<u64>;

    /// When that batch may end at the soonest; `None` where it may at any time.
    fn soonest_ns(&self) -> Option<u64> {
        None
    }

    /// This thread was asleep until now, so as to look for an end.
    fn woke(&mut self, _now_ns: u64) {}

    /// Begins to make ready for other shares, one a gpulet, while batches go on as before. What comes
    /// of it is [`news`](Engine::news).
    ///
    /// # Errors
    /// Why these shares cannot be had.
    fn prepare(&mut self, _shares_pct: &[u8]) -> Result<(), String> {
        Err("this executor splits no device".to_owned())
    }

    /// The next thing to say of what was made on the loader's thread. Does not wait.
    fn news(&mut self) -> Option<News> {
        None
    }

    /// Has batches that come from now on run on the shares that were prepared last, and are ready.
    fn switch(&mut self) {}
}

/// What an engine's models are.
pub type Loaded<E> = <<E as Engine>::Load as Load>::Loaded;
