//! Batches that take the time a profile says, on as many gpulets as there are: a GPU to try the daemon
//! with. Gpulets run side by side, and the batches of each one after the other.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use gpulet_abi::region::Region;
use gpulet_plan::profile::LatencyProfile;

use super::batch::Holdings;
use super::engine::{Engine, Facts, Fault, Load, Progress};
use crate::backend::replay::Replay;
use crate::backend::{self, LoadError, Loaded};
use crate::clock::now_ns;
use crate::model::{Builtin, Model, Source};
use crate::wire::{BatchCommand, BatchReport, DEPTH_MAX};

/// Loads models from profiles.
pub struct ReplayLoad(pub Replay);

impl Load for ReplayLoad {
    type Loaded = Loaded;

    fn load(&self, model: &Model, progress: Progress<'_>) -> Result<Loaded, LoadError> {
        let Source::Builtin(Builtin::Fault | Builtin::Hang) = model.source else {
            return backend::load(&self.0, model, progress);
        };
        // Only its profile is looked at.
        let source = Source::File(PathBuf::new());
        let loaded = backend::load(&self.0, &Model { source, ..model.clone() }, progress)?;
        Ok(Loaded { model: model.clone(), ..loaded })
    }
}

/// Runs nothing, in time.
pub struct Replayer {
    holdings: Holdings,
    courses: HashMap<u32, Course>,
    gpulets: Vec<VecDeque<Flight>>,
}

/// What becomes of a model's batches.
enum Course {
    /// They end after the time that a profile says.
    Takes(LatencyProfile),
    /// They do what they do at once.
    AtOnce,
    /// They break the device.
    Faults,
    /// They never end.
    Hangs,
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
            courses: HashMap::new(),
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
        let profile = LatencyProfile::new(&loaded.model.name, &loaded.points);
        let course = match (&loaded.model.source, profile) {
            (Source::Builtin(Builtin::Fault), _) => Course::Faults,
            (Source::Builtin(Builtin::Hang), _) => Course::Hangs,
            (Source::File(_), Ok(profile)) => Course::Takes(profile),
            _ => Course::AtOnce,
        };
        self.courses.insert(instance, course);
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
        self.courses.remove(&instance);
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
            match self.courses.get(&command.instance) {
                Some(Course::Takes(profile)) => end_ns += profile.p50_ns(command.rows),
                Some(Course::Hangs) => end_ns = u64::MAX,
                Some(Course::Faults | Course::AtOnce) | None => {}
            }
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
        if matches!(self.courses.get(&command.instance), Some(Course::Faults)) {
            return Err(Fault("a model that breaks the device was run".to_owned()));
        }
        let ran = self.holdings.run(&command);
        Ok(Some(BatchReport { gpulet: command.gpulet, started_ns: start_ns, ..ran }))
    }

    fn due_ns(&self) -> Option<u64> {
        self.gpulets.iter().filter_map(|flights| Some(flights.front()?.end_ns)).min()
    }
}
