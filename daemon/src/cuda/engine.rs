//! Batches on a GPU: inputs from slots to the device, a captured forward, results into slots, all of
//! it queued at once and then only watched.
//!
//! A gpulet has `SETS` batches under way at most: while one computes, the inputs of the next are
//! copied in and the results of the last are copied out, each on a stream of its own. Nothing in here
//! waits for the device: an event behind each batch is asked whether it is done.
//!
//! Integers and truth values take the way over pinned memory of this process, where they are checked:
//! an index out of range would end the context, and with it everybody's work on the device.
//!
//! Shares change while batches go on (`ladder`): what is new is made on the loader's
//! thread, in memory of its own, and what is old goes there when its last batch is done.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::Zeroable;
use gpulet_abi::region::Region;
use gpulet_abi::status::Status;
use gpulet_plan::policy::BATCH_REQUESTS_MAX;

use self::flight::{Refusal, finish, launch};
use self::making::{Made, Making};
use super::driver::{CudaError, Event, Stream};
use super::gpu::{Cut, Division, Divisions, Gpu, TorchStream};
use super::ladder::{Busy, Ladder, Rung};
use super::lane::{Fit, Lane, SETS};
use super::load::CudaLoad;
use super::loaded::{Loaded, form_of, points_of};
use super::moves::Moves;
use super::regions::Regions;
use crate::clock::now_ns;
use crate::execute::engine::{self as execute, Facts, Fault, News};
use crate::execute::foresight::Foresight;
use crate::execute::loader::Later;
use crate::wire::{BatchCommand, BatchReport, BatchRequest};

mod flight;
mod making;

const REQUESTS_MAX: usize = BATCH_REQUESTS_MAX as usize;

/// What runs batches on one executor's gpulets.
pub struct Engine {
    regions: Regions,
    rungs: Ladder<Gpulet, Vec<Held>>,
    /// Lanes that others replaced, until their last batch is done.
    spent: Vec<Arc<Lane>>,
    making: Making,
}

/// A model on one gpulet of a rung.
struct Held {
    lane: Arc<Lane>,
    /// When batches end, by [`Lane::measured_of`].
    foresights: Vec<Foresight>,
}

/// The streams of a gpulet on a rung, and what is under way on them.
struct Gpulet {
    compute: TorchStream,
    copy_in: Stream,
    copy_out: Stream,
    moves: Moves,
    flights: VecDeque<Flight>,
    marks: [Marks; SETS],
    /// What the streams are of.
    _division: Arc<Division>,
}

/// Events of the batch in one set.
struct Marks {
    copied_in: Event,
    computed: Event,
    done: Event,
}

/// A batch under way.
struct Flight {
    command: BatchCommand,
    report: BatchReport,
    set: usize,
    /// What it runs on, and how; `None` if it never reached the device, and its report only waits for
    /// those before it.
    runs: Option<(Arc<Lane>, Fit)>,
    /// Requests, one bit each, whose results are in the set's host memory and go to slots at the end.
    staged: u64,
    /// When the device could begin with it.
    begin_ns: u64,
    /// From when on to look whether it is done.
    look_ns: u64,
    /// When it may be done at the soonest.
    soonest_ns: u64,
    /// How much later than `look_ns` this thread woke up.
    late_ns: u64,
    /// It was looked at since then, and was not done yet.
    awaited: bool,
}

impl Engine {
    /// An engine without regions or models.
    ///
    /// # Errors
    /// [`CudaError`], or what the kernel says of a thread.
    pub fn new(
        gpu: Arc<Gpu>,
        division: Arc<Division>,
        divisions: Divisions,
    ) -> Result<Engine, std::io::Error> {
        let other = |error: CudaError| std::io::Error::other(error.to_string());
        let mut parts = Vec::new();
        for cut in &division.cuts {
            let stream = cut.stream().map_err(other)?;
            let moves = Moves::measure(&gpu, &stream, cut.sm_count).map_err(other)?;
            parts.push(Gpulet::new(&gpu, &division, cut, moves).map_err(other)?);
        }
        let rung = Rung { number: division.number, parts, models: HashMap::new() };
        Ok(Engine {
            regions: Regions::start(&gpu)?,
            rungs: Ladder::new(rung),
            spent: Vec::new(),
            making: Making::new(gpu, divisions),
        })
    }

    /// Has what no batch runs on any more dropped where that harms nobody.
    fn clear_up(&mut self) {
        while let Some(rung) = self.rungs.take_left() {
            self.making.drop_later(rung);
        }
        if !self.spent.is_empty() {
            let idle = |lane: &mut Arc<Lane>| Arc::strong_count(lane) == 1;
            let lanes: Vec<Arc<Lane>> = self.spent.extract_if(.., idle).collect();
            self.making.drop_later(lanes);
        }
    }

    /// Takes what was made; returns what there is to say of it.
    fn take(&mut self, made: Made) -> Option<News> {
        match made {
            Made::Step { instance, step } => Some(News::Step { instance, step }),
            Made::Parts { number, parts } if self.making.is_wanted(number) => {
                let rung = Rung { number, parts, models: HashMap::new() };
                if let Some(old) = self.rungs.set_next(rung) {
                    self.making.drop_later(old);
                }
                None
            }
            Made::Parts { parts, .. } => {
                self.making.drop_later(parts);
                None
            }
            Made::Lanes { number, instance, lanes } => {
                let points = points_of(&lanes);
                let present = self.rungs.present().number == number;
                match self.rungs.put(number, instance, held(lanes)) {
                    Ok(replaced) => {
                        self.spent.extend(replaced.into_iter().flatten().map(|held| held.lane));
                        self.clear_up();
                    }
                    Err(unwanted) => {
                        self.making.drop_later(unwanted);
                        return None;
                    }
                }
                Some(if present {
                    News::Faster { instance, points }
                } else {
                    News::Remeasured { instance, points }
                })
            }
            Made::Nothing { instance } => {
                let lanes = self.rungs.present().models.get(&instance)?;
                let points = points_of(lanes.iter().map(|held| &*held.lane));
                Some(News::Faster { instance, points })
            }
            Made::Through { number } if self.rungs.is_next(number) => {
                let lacking = self.rungs.lacking();
                if lacking.is_empty() {
                    return Some(News::Ready);
                }
                let models = lacking.iter().filter_map(|instance| self.model(*instance)).collect();
                self.making.complete(number, models);
                None
            }
            Made::Through { .. } => None,
            Made::Failed { number, error } => {
                if !self.making.is_wanted(number) {
                    return None;
                }
                self.abandon();
                Some(News::Failed(error))
            }
        }
    }

    /// The next rung is not wanted any more.
    fn abandon(&mut self) {
        self.making.unwant();
        if let Some(rung) = self.rungs.abandon() {
            self.making.drop_later(rung);
        }
    }

    /// The batches that end next.
    fn fronts(&self) -> impl Iterator<Item = &Flight> {
        self.rungs.parts().filter_map(|gpulet| gpulet.flights.front())
    }

    fn model(&self, instance: u32) -> Option<making::Instance> {
        let lanes = self.rungs.present().models.get(&instance)?;
        Some((instance, Arc::clone(&lanes.first()?.lane.weights)))
    }
}

fn held(lanes: Vec<Lane>) -> Vec<Held> {
    let one = |lane: Lane| {
        let foresights = lane.measured_ns().into_iter().map(Foresight::new).collect();
        Held { foresights, lane: Arc::new(lane) }
    };
    lanes.into_iter().map(one).collect()
}

impl execute::Engine for Engine {
    type Load = CudaLoad;

    fn map(&mut self, number: u32, region: Region) {
        self.regions.map(number, region);
    }

    fn unmap(&mut self, number: u32) {
        self.regions.unmap(number);
    }

    fn employ(&mut self, later: &Later) {
        self.making.employ(later.clone());
    }

    fn adopt(&mut self, instance: u32, loaded: Box<Loaded>) -> Facts {
        let Loaded { weights, lanes: all, memory_bytes, whole, .. } = *loaded;
        let mut facts = Facts {
            model: weights.model.name.clone(),
            form: String::new(),
            points: Vec::new(),
            memory_bytes,
        };
        for (number, lanes) in all {
            if number == self.rungs.present().number {
                facts.form = form_of(&weights, &lanes);
                facts.points = points_of(&lanes);
            }
            if let Err(unwanted) = self.rungs.put(number, instance, held(lanes)) {
                self.making.drop_later(unwanted);
            }
        }
        if !whole {
            self.making.complete(self.rungs.present().number, vec![(instance, weights)]);
        }
        facts
    }

    fn release(&mut self, instance: u32) -> Option<Box<dyn Send>> {
        if let Some((_, weights)) = self.model(instance) {
            weights.released.store(true, Ordering::Relaxed);
        }
        let taken = self.rungs.take(instance);
        (!taken.is_empty()).then(|| self.making.trimmed(taken))
    }

    fn lacks(&self, command: &BatchCommand) -> bool {
        let requests = requests(command).unwrap_or_default();
        !self.rungs.present().models.contains_key(&command.instance)
            || requests.iter().any(|request| !self.regions.contains(request.region))
    }

    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault> {
        self.regions.update();
        let Rung { parts, models, .. } = self.rungs.present_mut();
        let Some(gpulet) = parts.get_mut(command.gpulet as usize) else {
            // Without a gpulet there is no place to keep a report; the daemon never does this.
            tracing::error!(batch = command.batch, "a command names gpulet {}", command.gpulet);
            return Ok(());
        };
        let now_ns = now_ns();
        let mut flight = Flight {
            command: *command,
            report: BatchReport {
                batch: command.batch,
                gpulet: command.gpulet,
                started_ns: now_ns,
                ..BatchReport::zeroed()
            },
            set: gpulet.free_set(),
            runs: None,
            staged: 0,
            begin_ns: now_ns,
            look_ns: now_ns,
            soonest_ns: now_ns,
            late_ns: 0,
            awaited: false,
        };
        let queued = if now_ns > command.latest_start_ns {
            Err(Refusal::Status(Status::DeadlineExpired))
        } else {
            launch(&self.regions, models, gpulet, &mut flight)
        };
        match queued {
            Ok(()) => {}
            Err(Refusal::Cuda(error)) => return Err(fault(error)),
            Err(Refusal::Status(status)) => {
                let count = (command.request_count as usize).min(REQUESTS_MAX);
                flight.report.statuses[..count].fill(status as i32 as u8);
            }
        }
        gpulet.flights.push_back(flight);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<BatchReport>, Fault> {
        for index in 0..self.rungs.present().parts.len() {
            let Rung { parts, models, .. } = self.rungs.oldest_mut(index);
            let gpulet = &mut parts[index];
            let Some(front) = gpulet.flights.front_mut() else { continue };
            let runs = front.runs.is_some();
            if runs && !gpulet.marks[front.set].done.is_done().map_err(fault)? {
                front.awaited = true;
                continue;
            }
            let now_ns = now_ns();
            let Some(mut flight) = gpulet.flights.pop_front() else { continue };
            if runs {
                finish(&self.regions, models, &mut flight, now_ns);
                if let Some(next) = gpulet.flights.front_mut() {
                    next.look_ns = now_ns + next.look_ns.saturating_sub(next.begin_ns);
                    next.soonest_ns = now_ns + next.soonest_ns.saturating_sub(next.begin_ns);
                    next.begin_ns = now_ns;
                }
            }
            flight.report.finished_ns = now_ns;
            self.clear_up();
            return Ok(Some(flight.report));
        }
        Ok(None)
    }

    fn look_ns(&self) -> Option<u64> {
        self.fronts().map(|flight| flight.look_ns).min()
    }

    fn soonest_ns(&self) -> Option<u64> {
        self.fronts().map(|flight| flight.soonest_ns).min()
    }

    fn woke(&mut self, now_ns: u64) {
        let fronts = self.rungs.parts_mut().filter_map(|gpulet| gpulet.flights.front_mut());
        for flight in fronts.filter(|flight| flight.look_ns <= now_ns) {
            flight.late_ns = now_ns - flight.look_ns;
            flight.awaited = false;
        }
    }

    fn prepare(&mut self, shares_pct: &[u8]) -> Result<(), String> {
        self.abandon();
        let present = self.rungs.present();
        let mut instances: Vec<u32> = present.models.keys().copied().collect();
        instances.sort_unstable();
        let models = instances.iter().filter_map(|instance| self.model(*instance)).collect();
        let moves = present.parts.iter().map(|gpulet| gpulet.moves.clone()).collect();
        self.making.prepare(shares_pct, models, moves)
    }

    fn news(&mut self) -> Option<News> {
        while let Some(made) = self.making.take() {
            if let Some(news) = self.take(made) {
                return Some(news);
            }
        }
        None
    }

    fn switch(&mut self) {
        let left = self.rungs.present().number;
        if !self.rungs.switch() {
            tracing::error!("a switch to shares that are not ready");
            return;
        }
        self.making.switched(left);
        self.clear_up();
    }
}

fn fault(error: CudaError) -> Fault {
    Fault(error.to_string())
}

impl Busy for Gpulet {
    fn is_busy(&self) -> bool {
        !self.flights.is_empty()
    }
}

impl Gpulet {
    fn new(
        gpu: &Gpu,
        division: &Arc<Division>,
        cut: &Cut,
        moves: Moves,
    ) -> Result<Gpulet, CudaError> {
        Ok(Gpulet {
            compute: cut.torch_stream(&gpu.cuda)?,
            moves,
            copy_in: cut.stream()?,
            copy_out: cut.stream()?,
            flights: VecDeque::with_capacity(SETS),
            marks: [Marks::new()?, Marks::new()?],
            _division: Arc::clone(division),
        })
    }

    /// A set that no batch is in. It is the same as long as one batch follows the other, so that what
    /// was used last is used again.
    fn free_set(&self) -> usize {
        let running = self.flights.iter().rev().find(|flight| flight.runs.is_some());
        running.map_or(0, |flight| (flight.set + 1) % SETS)
    }
}

impl Marks {
    fn new() -> Result<Marks, CudaError> {
        Ok(Marks { copied_in: Event::new()?, computed: Event::new()?, done: Event::new()? })
    }
}

fn requests(command: &BatchCommand) -> Result<&[BatchRequest], &'static str> {
    match command.requests.get(..command.request_count as usize) {
        Some(requests) if !requests.is_empty() => Ok(requests),
        _ => Err("request_count is out of range"),
    }
}
