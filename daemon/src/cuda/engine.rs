//! Batches on a GPU: inputs from slots to the device, a captured forward, results into slots, all of
//! it queued at once and then only watched.
//!
//! A gpulet has [`SETS`] batches under way at most: while one computes, the inputs of the next are
//! copied in and the results of the last are copied out, each on a stream of its own. Nothing in here
//! waits for the device: an event behind each batch is asked whether it is done.
//!
//! Integers and truth values take the way over pinned memory of this process, where they are checked:
//! an index out of range would end the context, and with it everybody's work on the device.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use bytemuck::Zeroable;
use gpulet_abi::region::Region;
use gpulet_abi::status::Status;
use gpulet_plan::policy::BATCH_REQUESTS_MAX;

use self::flight::{Refusal, finish, launch};
use super::driver::{CudaError, Event, Stream};
use super::gpu::{Cut, Gpu};
use super::load::CudaLoad;
use super::loaded::{Loaded, SETS};
use super::moves::Moves;
use super::regions::Regions;
use crate::clock::now_ns;
use crate::execute::engine::{self as execute, Facts, Fault};
use crate::wire::{BatchCommand, BatchReport, BatchRequest};

mod flight;

const REQUESTS_MAX: usize = BATCH_REQUESTS_MAX as usize;

/// What runs batches on one executor's gpulets.
pub struct Engine {
    regions: Regions,
    instances: HashMap<u32, Box<Loaded>>,
    gpulets: Vec<Gpulet>,
}

/// The streams of a gpulet and what is under way on them.
struct Gpulet {
    compute: Stream,
    copy_in: Stream,
    copy_out: Stream,
    moves: Moves,
    flights: VecDeque<Flight>,
    next_set: usize,
    marks: [Marks; SETS],
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
    size: usize,
    /// It never reached the device; its report only waits for those before it.
    refused: bool,
    /// Requests, one bit each, whose results are in the set's host memory and go to slots at the end.
    staged: u64,
    /// When the device could begin with it.
    begin_ns: u64,
    /// From when on to look whether it is done.
    look_ns: u64,
    /// How much later than that this thread woke up.
    late_ns: u64,
    /// It was looked at since then, and was not done yet.
    awaited: bool,
}

impl Engine {
    /// An engine without regions or models.
    ///
    /// # Errors
    /// [`CudaError`], or what the kernel says of a thread.
    pub fn new(gpu: Arc<Gpu>) -> Result<Engine, std::io::Error> {
        let other = |error: CudaError| std::io::Error::other(error.to_string());
        let mut gpulets = Vec::new();
        for cut in &gpu.cuts {
            gpulets.push(Gpulet::new(&gpu, cut).map_err(other)?);
        }
        let regions = Regions::start(&gpu)?;
        Ok(Engine { regions, instances: HashMap::new(), gpulets })
    }
}

impl execute::Engine for Engine {
    type Load = CudaLoad;

    fn map(&mut self, number: u32, region: Region) {
        self.regions.map(number, region);
    }

    fn unmap(&mut self, number: u32) {
        self.regions.unmap(number);
    }

    fn adopt(&mut self, instance: u32, loaded: Box<Loaded>) -> Facts {
        let facts = Facts {
            model: loaded.model.name.clone(),
            form: loaded.form.clone(),
            points: loaded.lanes.iter().map(|lane| lane.points.clone()).collect(),
            memory_bytes: loaded.memory_bytes,
        };
        self.instances.insert(instance, loaded);
        facts
    }

    fn release(&mut self, instance: u32) -> Option<Box<Loaded>> {
        self.instances.remove(&instance)
    }

    fn lacks(&self, command: &BatchCommand) -> bool {
        let requests = requests(command).unwrap_or_default();
        !self.instances.contains_key(&command.instance)
            || requests.iter().any(|request| !self.regions.contains(request.region))
    }

    fn submit(&mut self, command: &BatchCommand) -> Result<(), Fault> {
        self.regions.update();
        let Some(gpulet) = self.gpulets.get_mut(command.gpulet as usize) else {
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
            set: gpulet.next_set,
            size: 0,
            refused: false,
            staged: 0,
            begin_ns: now_ns,
            look_ns: now_ns,
            late_ns: 0,
            awaited: false,
        };
        let queued = if now_ns > command.latest_start_ns {
            Err(Refusal::Status(Status::DeadlineExpired))
        } else {
            launch(&self.regions, &mut self.instances, gpulet, &mut flight)
        };
        match queued {
            Ok(()) => gpulet.next_set = (gpulet.next_set + 1) % SETS,
            Err(Refusal::Cuda(error)) => return Err(fault(error)),
            Err(Refusal::Status(status)) => {
                flight.refused = true;
                let count = (command.request_count as usize).min(REQUESTS_MAX);
                flight.report.statuses[..count].fill(status as i32 as u8);
            }
        }
        gpulet.flights.push_back(flight);
        Ok(())
    }

    fn poll(&mut self) -> Result<Option<BatchReport>, Fault> {
        for gpulet in &mut self.gpulets {
            let Some(front) = gpulet.flights.front_mut() else { continue };
            if !front.refused && !gpulet.marks[front.set].done.is_done().map_err(fault)? {
                front.awaited = true;
                continue;
            }
            let now_ns = now_ns();
            let Some(mut flight) = gpulet.flights.pop_front() else { continue };
            if !flight.refused {
                finish(&self.regions, &mut self.instances, &mut flight, now_ns);
                if let Some(next) = gpulet.flights.front_mut() {
                    next.look_ns = now_ns + next.look_ns.saturating_sub(next.begin_ns);
                    next.begin_ns = now_ns;
                }
            }
            flight.report.finished_ns = now_ns;
            return Ok(Some(flight.report));
        }
        Ok(None)
    }

    fn look_ns(&self) -> Option<u64> {
        let fronts = self.gpulets.iter().filter_map(|gpulet| gpulet.flights.front());
        fronts.map(|flight| flight.look_ns).min()
    }

    fn woke(&mut self, now_ns: u64) {
        let fronts = self.gpulets.iter_mut().filter_map(|gpulet| gpulet.flights.front_mut());
        for flight in fronts.filter(|flight| flight.look_ns <= now_ns) {
            flight.late_ns = now_ns - flight.look_ns;
            flight.awaited = false;
        }
    }
}

fn fault(error: CudaError) -> Fault {
    Fault(error.to_string())
}

impl Gpulet {
    fn new(gpu: &Gpu, cut: &Cut) -> Result<Gpulet, CudaError> {
        let compute = cut.stream()?;
        Ok(Gpulet {
            moves: Moves::measure(gpu, &compute, cut.sm_count)?,
            compute,
            copy_in: cut.stream()?,
            copy_out: cut.stream()?,
            flights: VecDeque::with_capacity(SETS),
            next_set: 0,
            marks: [Marks::new()?, Marks::new()?],
        })
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
