//! Batches that take the time a profile says, on as many gpulets as there are: a GPU to try the daemon
//! with. Gpulets run side by side, and the batches of each one after the other.

use std::collections::{HashMap, VecDeque};

use gpulet_abi::region::Region;
use gpulet_plan::profile::LatencyProfile;

use super::batch::Holdings;
use super::engine::{Engine, Facts, Fault, Load, Progress};
use crate::backend::replay::Replay;
use crate::backend::{self, LoadError, Loaded};
use crate::clock::now_ns;
use crate::model::Model;
use crate::wire::{BatchCommand, BatchReport, DEPTH_MAX};

/// Loads models from profiles.
pub struct ReplayLoad(pub Replay);

impl Load for ReplayLoad {
    type Loaded = Loaded;

    fn load(&self, model: &Model, progress: Progress<'_>) -> Result<Loaded, LoadError> {
        backend::load(&self.0, model, progress)
    }
}

/// Runs nothing, in time.
pub struct Replayer {
    holdings: Holdings,
    /// What batches take; built-in models do what they do at once.
    profiles: HashMap<u32, LatencyProfile>,
    gpulets: Vec<VecDeque<Flight>>,
}

/// A batch under way.
struct Flight {
    command: BatchCommand,
    start_ns: u64,
    end_ns: u64,
}

impl Replayer {
    /// An engine for so many gpulets.
    pub fn new(gpulet_count: u32) -> Replayer {
        let gpulet = || VecDeque::with_capacity(DEPTH_MAX);
        Replayer {
            holdings: Holdings::default(),
            profiles: HashMap::new(),
            gpulets: (0..gpulet_count).map(|_| gpulet()).collect(),
        }
    }
}

impl Engine for Replayer {
    type Load = ReplayLoad;

    fn map(&mut self, number: u32, region: Region) {
        self.holdings.map(number, region);
    }

    fn unmap(&mut self, number: u32) {
        self.holdings.unmap(number);
    }

    fn adopt(&mut self, instance: u32, loaded: Box<Loaded>) -> Facts {
        if loaded.instance.profile().is_some()
            && let Ok(profile) = LatencyProfile::new(&loaded.model.name, &loaded.points)
        {
            self.profiles.insert(instance, profile);
        }
        let facts = Facts {
            model: loaded.model.name.clone(),
            form: loaded.instance.form(),
            points: vec![loaded.points.clone(); self.gpulets.len()],
            memory_bytes: 0,
        };
        self.holdings.load(instance, loaded);
        facts
    }

    fn release(&mut self, instance: u32) -> Option<Box<Loaded>> {
        self.profiles.remove(&instance);
        self.holdings.unload(instance)
    }

    fn lacks(&self, command: &BatchCommand) -> bool {
        self.holdings.lacks(command)
    }

    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault> {
        let now_ns = now_ns();
        let flights = &mut self.gpulets[command.gpulet as usize];
        let start_ns = flights.back().map_or(now_ns, |last| last.end_ns.max(now_ns));
        let (mut command, mut end_ns) = (*command, start_ns);
        if now_ns <= command.latest_start_ns {
            let profile = self.profiles.get(&command.instance);
            end_ns += profile.map_or(0, |profile| profile.p50_ns(command.rows));
            // It is accepted, however late it is when it comes to its results.
            command.latest_start_ns = u64::MAX;
        }
        flights.push_back(Flight { command, start_ns, end_ns });
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<BatchReport>, Fault> {
        let now_ns = now_ns();
        let done = |flights: &&mut VecDeque<Flight>| {
            flights.front().is_some_and(|flight| flight.end_ns <= now_ns)
        };
        let Some(flight) = self.gpulets.iter_mut().find(done).and_then(VecDeque::pop_front) else {
            return Ok(None);
        };
        let Flight { command, start_ns, .. } = flight;
        let ran = self.holdings.run(&command);
        Ok(Some(BatchReport { gpulet: command.gpulet, started_ns: start_ns, ..ran }))
    }

    fn due_ns(&self) -> Option<u64> {
        self.gpulets.iter().filter_map(|flights| Some(flights.front()?.end_ns)).min()
    }
}
