//! Batches on this host, one after the other.

use std::collections::VecDeque;

use gpulet_abi::region::Region;

use super::batch::Holdings;
use super::engine::{Engine, Facts, Fault};
use super::loader::Load;
use crate::backend::loading::{self, Loaded};
use crate::backend::{Backend, LoadError, Progress};
use crate::model::Model;
use crate::wire::{BatchCommand, BatchReport, Manner};

/// Loads models with a [`Backend`].
pub struct HostLoad(pub Box<dyn Backend>);

impl Load for HostLoad {
    type Loaded = Loaded;

    fn load(
        &self,
        model: &Model,
        _manner: Manner,
        progress: Progress<'_>,
    ) -> Result<Loaded, LoadError> {
        loading::load(self.0.as_ref(), model, progress)
    }
}

/// Runs batches on this thread.
pub struct Host {
    holdings: Holdings,
    gpulet_count: u32,
    done: VecDeque<BatchReport>,
}

impl Host {
    /// An engine for so many gpulets.
    pub fn new(gpulet_count: u32) -> Host {
        Host { holdings: Holdings::default(), gpulet_count, done: VecDeque::with_capacity(4) }
    }
}

impl Engine for Host {
    type Load = HostLoad;

    fn map(&mut self, number: u32, region: Region) {
        self.holdings.map(number, region);
    }

    fn unmap(&mut self, number: u32) {
        self.holdings.unmap(number);
    }

    fn adopt(&mut self, instance: u32, mut loaded: Box<Loaded>) -> Facts {
        // With other models loaded this thread has run one, and somebody may be waiting.
        if self.holdings.is_empty() {
            loaded.settle();
        }
        let facts = Facts {
            model: loaded.model.name.clone(),
            form: loaded.instance.form(),
            // Whatever gpulet they are of, batches run here one after the other.
            points: vec![loaded.points.clone(); self.gpulet_count as usize],
            memory_bytes: 0,
        };
        self.holdings.load(instance, loaded);
        facts
    }

    fn release(&mut self, instance: u32) -> Option<Box<dyn Send>> {
        Some(self.holdings.unload(instance)?)
    }

    fn lacks(&self, command: &BatchCommand) -> bool {
        self.holdings.lacks(command)
    }

    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault> {
        let report = BatchReport { gpulet: command.gpulet, ..self.holdings.run(command) };
        self.done.push_back(report);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<BatchReport>, Fault> {
        Ok(self.done.pop_front())
    }

    fn look_ns(&self) -> Option<u64> {
        None
    }
}
