//! Batches that take the time a profile says, on as many gpulets as there are: a GPU to try the daemon
//! with. Gpulets run side by side, and the batches of each one after the other.

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;

use gpulet_abi::region::Region;
use gpulet_plan::profile::{LatencyProfile, PROFILE_LATENCY_MAX_NS, ProfilePoint};

use super::batch::Holdings;
use super::engine::{Engine, Facts, Fault, News};
use super::loader::Load;
use crate::backend::loading::{self, Loaded};
use crate::backend::replay::Replay;
use crate::backend::{LoadError, Progress};
use crate::clock::now_ns;
use crate::model::{Builtin, Model, Source};
use crate::wire::{BatchCommand, BatchReport, DEPTH_MAX, Manner};

/// What waking up takes.
const WAKE_NS: u64 = 50_000;

/// Loads models from profiles.
pub struct ReplayLoad(pub Replay);

impl Load for ReplayLoad {
    type Loaded = Loaded;

    fn load(
        &self,
        model: &Model,
        _manner: Manner,
        progress: Progress<'_>,
    ) -> Result<Loaded, LoadError> {
        let Source::Builtin(Builtin::Fault | Builtin::Hang) = model.source else {
            return loading::load(&self.0, model, progress);
        };
        // Only its profile is looked at.
        let source = Source::File(PathBuf::new());
        let loaded = loading::load(&self.0, &Model { source, ..model.clone() }, progress)?;
        Ok(Loaded { model: model.clone(), ..loaded })
    }
}

/// Runs nothing, in time.
pub struct Replayer {
    holdings: Holdings,
    courses: HashMap<u32, Course>,
    gpulets: Vec<Gpulet>,
    /// What is to be said of shares that were prepared.
    news: VecDeque<News>,
}

/// A share of what is played, and the batches under way on it.
struct Gpulet {
    /// What the profiles are for.
    profiled_pct: u8,
    share_pct: u8,
    prepared_pct: u8,
    flights: VecDeque<Flight>,
}

/// What becomes of a model's batches.
enum Course {
    /// They end after the time that a profile says.
    Takes(LatencyProfile),
    /// They do what they do at once, which was measured.
    AtOnce(Vec<ProfilePoint>),
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
    /// An engine for gpulets of these shares.
    pub fn new(shares_pct: Vec<u8>) -> Replayer {
        let gpulet = |share_pct| Gpulet {
            profiled_pct: share_pct,
            share_pct,
            prepared_pct: share_pct,
            flights: VecDeque::with_capacity(DEPTH_MAX),
        };
        Replayer {
            holdings: Holdings::default(),
            courses: HashMap::new(),
            gpulets: shares_pct.into_iter().map(gpulet).collect(),
            news: VecDeque::new(),
        }
    }
}

impl Gpulet {
    /// What takes so long by its profile takes in inverse proportion to the share.
    fn scale(&self, share_pct: u8, profiled_ns: u64) -> u64 {
        profiled_ns.saturating_mul(self.profiled_pct.into()) / u64::from(share_pct.max(1))
    }

    fn remeasured(&self, points: &[ProfilePoint]) -> Vec<ProfilePoint> {
        let scale = |ns| self.scale(self.prepared_pct, ns).clamp(1, PROFILE_LATENCY_MAX_NS);
        let point = |point: &ProfilePoint| ProfilePoint {
            rows: point.rows,
            p50_ns: scale(point.p50_ns),
            p99_ns: scale(point.p99_ns),
        };
        points.iter().map(point).collect()
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
            _ => Course::AtOnce(loaded.points.clone()),
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

    fn release(&mut self, instance: u32) -> Option<Box<dyn Send>> {
        self.courses.remove(&instance);
        Some(self.holdings.unload(instance)?)
    }

    fn lacks(&self, command: &BatchCommand) -> bool {
        self.holdings.lacks(command)
    }

    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault> {
        let now_ns = now_ns();
        let gpulet = &mut self.gpulets[command.gpulet as usize];
        let start_ns = gpulet.flights.back().map_or(now_ns, |last| last.end_ns.max(now_ns));
        let (mut command, mut end_ns) = (*command, start_ns);
        if now_ns <= command.latest_start_ns {
            match self.courses.get(&command.instance) {
                Some(Course::Takes(profile)) => {
                    end_ns += gpulet.scale(gpulet.share_pct, profile.p50_ns(command.rows));
                }
                Some(Course::Hangs) => end_ns = u64::MAX,
                Some(Course::Faults | Course::AtOnce(_)) | None => {}
            }
            // It is accepted, however late it is when it comes to its results.
            command.latest_start_ns = u64::MAX;
        }
        gpulet.flights.push_back(Flight { command, start_ns, end_ns });
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<BatchReport>, Fault> {
        let now_ns = now_ns();
        let done = |gpulet: &&mut Gpulet| {
            gpulet.flights.front().is_some_and(|flight| flight.end_ns <= now_ns)
        };
        let mut gpulets = self.gpulets.iter_mut();
        let Some(flight) = gpulets.find(done).and_then(|it| it.flights.pop_front()) else {
            return Ok(None);
        };
        let Flight { command, start_ns, .. } = flight;
        if matches!(self.courses.get(&command.instance), Some(Course::Faults)) {
            return Err(Fault("a model that breaks the device was run".to_owned()));
        }
        let ran = self.holdings.run(&command);
        Ok(Some(BatchReport { gpulet: command.gpulet, started_ns: start_ns, ..ran }))
    }

    fn look_ns(&self) -> Option<u64> {
        let ends = self.gpulets.iter().filter_map(|gpulet| Some(gpulet.flights.front()?.end_ns));
        ends.min().map(|end_ns| end_ns.saturating_sub(WAKE_NS))
    }

    fn prepare(&mut self, shares_pct: &[u8]) -> Result<(), String> {
        let sum_pct: u32 = shares_pct.iter().map(|share_pct| u32::from(*share_pct)).sum();
        if sum_pct > 100 {
            return Err(format!("shares must not add up to more than 100, add up to {sum_pct}"));
        }
        for (gpulet, share_pct) in self.gpulets.iter_mut().zip(shares_pct) {
            gpulet.prepared_pct = *share_pct;
        }
        self.news.clear();
        for (instance, course) in &self.courses {
            let points = match course {
                Course::Takes(profile) => {
                    let points = profile.points();
                    self.gpulets.iter().map(|gpulet| gpulet.remeasured(points)).collect()
                }
                Course::AtOnce(points) => vec![points.clone(); self.gpulets.len()],
                Course::Faults | Course::Hangs => continue,
            };
            self.news.push_back(News::Remeasured { instance: *instance, points });
        }
        self.news.push_back(News::Ready);
        Ok(())
    }

    fn news(&mut self) -> Option<News> {
        self.news.pop_front()
    }

    fn switch(&mut self) {
        for gpulet in &mut self.gpulets {
            gpulet.share_pct = gpulet.prepared_pct;
        }
    }
}
