//! What is left of a gpulet that stood still once: nothing, soon after. The dispatcher itself on a
//! virtual clock, with executors that have no process: batches end when the test says.

use std::path::PathBuf;

use bytemuck::Zeroable;
use gpulet_abi::layout::{Completion, SUBMIT_INFER, Submission};
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};

use super::{Dispatcher, REQUEUE_MAX};
use crate::config::{DeviceName, Gpulet, Mechanism, ModelSet};
use crate::executor::{Executor, Executors, State};
use crate::gpulet::GpuletId;
use crate::model::{DtypeName, Model, Precision, Source, Tensor};
use crate::models::{Instance, InstanceState, Role};
use crate::wire::{Backend, BatchReport, GpuletStart, Start};

const MS: u64 = 1_000_000;
const START_NS: u64 = 1_000 * MS;
const SLO_NS: u64 = 25 * MS;
const STALL_NS: u64 = 50 * MS;
const SLOTS: u32 = 4096;

/// Gpulets of one GPU, and models that ask at some rate.
struct Scene {
    name: &'static str,
    /// How much longer than [`profile`] says a batch takes in each gpulet.
    slowness: &'static [u64],
    /// What each model is to each gpulet, and its requests a second.
    models: &'static [(&'static [Role], u64)],
}

const SCENES: [Scene; 6] = [
    Scene { name: "one", slowness: &[1], models: &[(&[Role::Home], 2_900)] },
    Scene { name: "two", slowness: &[1, 1], models: &[(&[Role::Home, Role::Home], 5_600)] },
    Scene {
        name: "a fast and a slow one",
        slowness: &[1, 15],
        models: &[(&[Role::Home, Role::Home], 2_500)],
    },
    Scene {
        name: "a shared one",
        slowness: &[1],
        models: &[(&[Role::Home], 1_200), (&[Role::Home], 1_200)],
    },
    Scene {
        name: "a lent one",
        slowness: &[1, 1],
        models: &[(&[Role::Home, Role::Guest], 4_000), (&[Role::Closed, Role::Home], 50)],
    },
    Scene {
        name: "a lent one whose own model nobody asks",
        slowness: &[1, 1],
        models: &[(&[Role::Home, Role::Guest], 4_000), (&[Role::Closed, Role::Home], 0)],
    },
];

fn profile(slowness: u64) -> LatencyProfile {
    let points = [(1, 1_200), (2, 1_500), (4, 2_100), (8, 3_200), (16, 5_400), (32, 9_800)];
    let points = points.map(|(rows, us)| ProfilePoint {
        rows,
        p50_ns: us * 1_000 * slowness,
        p99_ns: us * 1_020 * slowness,
    });
    LatencyProfile::new("m", &points).unwrap()
}

fn executor(gpulet_count: usize) -> Executor {
    let gpulet = |index: usize| Gpulet {
        name: index.to_string(),
        mechanism: Mechanism::Replay {
            profiles_dir: PathBuf::new(),
            device: Some(DeviceName::Index(0)),
        },
        share_pct: 50,
        memory_bytes: None,
        models: ModelSet::All,
        guests: Vec::new(),
    };
    let gpulets: Vec<Gpulet> = (0..gpulet_count).map(gpulet).collect();
    let entry = |gpulet: &Gpulet| GpuletStart { name: gpulet.name.clone(), share_pct: 50 };
    let start = Start {
        executor: "e".to_owned(),
        gpulets: gpulets.iter().map(entry).collect(),
        backend: Backend::Replay { profiles_dir: PathBuf::new() },
        thread_count: 1,
        cpus: Vec::new(),
        spin_ns: 0,
        beside: false,
    };
    let mut executor = Executor::new(gpulets, start);
    executor.state = State::Running;
    executor
}

fn model(name: String) -> Model {
    let tensor = |name: &str| Tensor {
        name: name.to_owned(),
        dtype: DtypeName(Dtype::F32),
        dims: vec![1],
        row_bytes: 4,
        range: None,
        normalise: None,
    };
    Model {
        name,
        source: Source::File(PathBuf::new()),
        slo_ns: SLO_NS,
        max_batch: 32,
        warmup_count: 1,
        inputs: vec![tensor("in")],
        outputs: vec![tensor("out")],
        precision: Precision::Fp32,
        error_max: 0.0,
        stamp: (0, 0),
    }
}

/// One client that asks all the models.
struct World {
    dispatcher: Dispatcher,
    submissions: Producer<MappedRing, Submission>,
    completions: Consumer<MappedRing, Completion>,
    slots: Vec<u32>,
    models: Vec<Asked>,
    slowness: &'static [u64],
    /// Batches under way: the gpulet, the batch, and when it ends.
    flights: Vec<(u32, u64, u64)>,
    /// A gpulet that stands still, and until when.
    still: (u32, u64),
    now_ns: u64,
    random: u64,
}

/// How a model is asked, and what came of it.
struct Asked {
    gap_ns: u64,
    next_ns: u64,
    answered: u32,
    in_time: u32,
}

impl World {
    fn new(scene: &Scene) -> World {
        let mut dispatcher = Dispatcher::new(Executors::new(PathBuf::new()), 64);
        let executor = dispatcher.executors.add(executor(scene.slowness.len())).unwrap();
        for (number, (roles, _)) in scene.models.iter().enumerate() {
            let id = dispatcher.models.add(model(number.to_string()), SLOTS, REQUEUE_MAX);
            let hosted = dispatcher.models.get_mut(id).unwrap();
            hosted.ever_ready = true;
            let all = (0..).zip(scene.slowness).zip(*roles);
            hosted.instances = all
                .map(|((index, slowness), role)| Instance {
                    gpulet: GpuletId { executor, index },
                    role: *role,
                    state: InstanceState::Ready(Box::new(profile(*slowness))),
                })
                .collect();
        }
        let geometry = Geometry::new(4096, SLOTS).unwrap();
        let (_, descriptors) = dispatcher.sessions.create((0, 0), geometry).unwrap();
        let region = Region::attach(descriptors.region, geometry.region_bytes).unwrap();
        let asked = |(_, rate): &(_, u64)| Asked {
            gap_ns: 1_000 * MS / rate.max(&1),
            next_ns: if *rate > 0 { START_NS } else { u64::MAX },
            answered: 0,
            in_time: 0,
        };
        World {
            dispatcher,
            submissions: region.submission_producer(),
            completions: region.completion_consumer(),
            slots: (0..SLOTS).collect(),
            models: scene.models.iter().map(asked).collect(),
            slowness: scene.slowness,
            flights: Vec::new(),
            still: (0, 0),
            now_ns: START_NS,
            random: 1,
        }
    }

    /// Goes on for so long. What part of each model's answers was in time, in percent.
    fn run(&mut self, for_ns: u64) -> Vec<u32> {
        let until_ns = self.now_ns + for_ns;
        self.models.iter_mut().for_each(|it| (it.answered, it.in_time) = (0, 0));
        loop {
            let asks = self.models.iter().map(|it| it.next_ns);
            let ends = self.flights.iter().map(|it| it.2);
            let wakes = self.dispatcher.wake_ns(self.now_ns);
            let next_ns = asks.chain(ends).chain(wakes).min().unwrap_or(u64::MAX);
            // It never sleeps for longer.
            let next_ns = next_ns.clamp(self.now_ns + 1, self.now_ns + 100 * MS);
            if next_ns > until_ns {
                break;
            }
            self.now_ns = next_ns;
            self.ask();
            self.end_batches();
            self.dispatcher.turn(self.now_ns);
            self.begin_batches();
            self.take_answers();
        }
        self.now_ns = until_ns;
        self.models.iter().map(|it| 100 * it.in_time / it.answered.max(1)).collect()
    }

    fn ask(&mut self) {
        for (model, asked) in (0..).zip(&mut self.models) {
            while asked.next_ns <= self.now_ns {
                self.random = self.random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                asked.next_ns += 1 + (self.random >> 33) % (2 * asked.gap_ns);
                let slot = self.slots.pop().unwrap();
                let entry =
                    Submission { kind: SUBMIT_INFER, model, slot, rows: 1, ..Zeroable::zeroed() };
                self.submissions.push(&entry).unwrap();
            }
        }
        let _ = self.submissions.commit();
    }

    fn end_batches(&mut self) {
        let now_ns = self.now_ns;
        for (gpulet, batch, _) in self.flights.extract_if(.., |it| it.2 <= now_ns) {
            let report = BatchReport { batch, gpulet, ..BatchReport::zeroed() };
            self.dispatcher.finish_batch(0, &report, now_ns);
        }
    }

    fn begin_batches(&mut self) {
        let gpulets = &self.dispatcher.executors.get(0).unwrap().gpulets;
        for ((index, gpulet), slowness) in (0..).zip(gpulets).zip(self.slowness) {
            let (still, until_ns) = self.still;
            let mut from_ns = self.now_ns.max(if still == index { until_ns } else { 0 });
            for batch in gpulet.batches() {
                if let Some(flight) = self.flights.iter().find(|it| it.1 == batch.id) {
                    from_ns = flight.2.max(from_ns);
                } else {
                    from_ns += profile(*slowness).p50_ns(batch.rows);
                    self.flights.push((index, batch.id, from_ns));
                }
            }
        }
    }

    fn take_answers(&mut self) {
        while let Some(answer) = self.completions.pop().unwrap() {
            self.slots.push(answer.slot);
            let in_time = answer.status == Status::Ok as i32 && answer.flags == 0;
            let model = &mut self.models[answer.model as usize];
            model.answered += 1;
            model.in_time += u32::from(in_time);
        }
        self.completions.release();
    }

    /// A batch of so many rows took so long.
    fn observe(&mut self, model: u32, index: u32, rows: u32, ns: u64) {
        let hosted = self.dispatcher.models.get_mut(model).unwrap();
        let instance = hosted.instance_mut(GpuletId { executor: 0, index }).unwrap();
        instance.profile_mut().unwrap().observe(rows, ns);
    }
}

/// Does something to each instance of each scene, for each of some batch sizes, and finds that after
/// half a second as many requests are in time as if nothing had been done.
fn assert_it_passes(disturb: impl Fn(&mut World, u32, u32, u32)) {
    for scene in &SCENES {
        let course = |disturb: &dyn Fn(&mut World)| {
            let mut world = World::new(scene);
            world.run(200 * MS);
            disturb(&mut world);
            world.run(500 * MS);
            world.run(300 * MS)
        };
        let usual = course(&|_| {});
        for (model, (roles, _)) in (0..).zip(scene.models) {
            for (gpulet, _) in (0..).zip(*roles).filter(|it| *it.1 != Role::Closed) {
                for rows in [1, 4, 32] {
                    let pct = course(&|world| disturb(world, model, gpulet, rows));
                    let near = |(now, usual): (&u32, &u32)| now + 5 >= *usual;
                    assert!(
                        pct.iter().zip(&usual).all(near),
                        "{}: model {model} in gpulet {gpulet}, {rows} rows: {pct:?}, not {usual:?}",
                        scene.name
                    );
                }
            }
        }
    }
}

#[test]
fn a_size_that_was_slow_once_is_used_again() {
    assert_it_passes(|world, model, gpulet, rows| world.observe(model, gpulet, rows, STALL_NS));
}

#[test]
fn a_gpulet_that_stood_still_does_what_it_did() {
    assert_it_passes(|world, model, gpulet, rows| {
        world.still = (gpulet, world.now_ns + STALL_NS);
        world.observe(model, gpulet, rows, STALL_NS);
    });
}

#[test]
fn what_looked_fast_is_not_relied_on() {
    for count in [1, 128] {
        assert_it_passes(|world, model, gpulet, rows| {
            (0..count).for_each(|_| world.observe(model, gpulet, rows, 1));
        });
    }
}

#[test]
fn who_asks_seldom_is_not_refused_for_long() {
    let models = &[(&[Role::Home] as &[Role], 4)];
    let mut world = World::new(&Scene { name: "seldom", slowness: &[1], models });
    assert_eq!(world.run(1_000 * MS), [100]);
    world.observe(0, 0, 1, STALL_NS);
    world.run(500 * MS);
    assert_eq!(world.run(3_000 * MS), [100]);
}
