//! The dispatcher, its models and executors, and both clients.

use std::path::PathBuf;

use arbitrary::{Result, Unstructured};
use gpulet_abi::region::Geometry;
use gpulet_abi::status::Status;
use gpulet_abi::tensor::Dtype;
use gpulet_daemon::config::{DeviceName, Gpulet, Mechanism, ModelSet};
use gpulet_daemon::dispatch::Dispatcher;
use gpulet_daemon::executor::{Executor, Executors, State};
use gpulet_daemon::gpulet::GpuletId;
use gpulet_daemon::model::{Builtin, DtypeName, Model, Precision, Source, Tensor};
use gpulet_daemon::models::{Instance, InstanceState, Role};
use gpulet_daemon::wire::{Backend, GpuletStart, Start};
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};

use super::check;
use super::far::{self, Far};
use super::honest::Honest;
use super::hostile::Hostile;

/// Requests queued for one model: fewer than the slots of both clients, so that queues are filled.
const QUEUE_MAX: u32 = 6;
/// More than both clients can have in executors.
const REQUEUE_MAX: u32 = 32;
/// When the story starts.
const START_NS: u64 = 1_000_000_000;
/// Beyond every deadline of the honest client.
const FOR_EVER_NS: u64 = 10_000_000_000_000;

/// Ids of the models, by what they are for.
pub(super) struct Ids {
    pub null: u32,
    /// In all gpulets.
    pub warm: u32,
    /// In all of them, but not yet.
    pub loading: u32,
}

pub(super) struct World {
    pub dispatcher: Dispatcher,
    pub hostile: Hostile,
    pub honest: Honest,
    /// The far ends of the executors.
    pub far: [Option<Far>; 2],
    pub ids: Ids,
    pub now_ns: u64,
    /// Sessions that the hostile client lost, and executors that had to be killed.
    pub loss_count: u32,
}

impl World {
    pub fn new(input: &mut Unstructured<'_>) -> Result<World> {
        let slot_bytes = 256 * u64::from(input.int_in_range(1..=16u8)?);
        let slot_count = u32::from(input.int_in_range(1..=9u8)?);
        let entries_per_turn_max = u32::from(input.int_in_range(1..=24u8)?);
        let executors = Executors::new(PathBuf::from("/nonexistent"));
        let mut dispatcher = Dispatcher::new(executors, entries_per_turn_max);
        let far = ["left", "right"].map(|name| {
            let (executor, far) = far::start(executor(name));
            dispatcher.executors.add(executor);
            far
        });
        let ids = add_models(&mut dispatcher);
        let geometry = Geometry::new(slot_bytes, slot_count).expect("small, and not zero");
        let honest = Honest::new(&mut dispatcher);
        let hostile = Hostile::new(&mut dispatcher, geometry);
        let mut world =
            World { dispatcher, hostile, honest, far, ids, now_ns: START_NS, loss_count: 0 };
        world.revive(0);
        world.revive(1);
        Ok(world)
    }

    /// One turn of the dispatcher, and what the server does after it.
    pub fn turn(&mut self, now_ns: u64) {
        self.now_ns = now_ns;
        let entries_max = self.dispatcher.entries_per_turn_max;
        self.honest.ask_null(self.ids.null, entries_max);
        self.hostile.restore_read();
        let work = self.dispatcher.turn(now_ns);
        check::work(&self.dispatcher, work);
        check::books(&self.dispatcher, &self.honest);
        self.hostile.check_read();
        while let Some((session, rule)) = self.dispatcher.violations.pop() {
            assert_eq!(session, self.hostile.index, "the honest client broke: {rule}");
            self.reconnect(Status::ProtocolViolation);
        }
        self.honest.take_answers(self.dispatcher.draining, entries_max);
        self.far.iter_mut().flatten().for_each(Far::listen);
        self.bury_the_dying();
    }

    /// Executors that were killed are gone for good: the next ones never report.
    fn bury_the_dying(&mut self) {
        for index in 0..self.far.len() {
            let Some(executor) = self.dispatcher.executors.get_mut(index as u32) else { continue };
            if executor.state == State::Dying {
                far::bury(executor);
                self.far[index] = None;
                self.loss_count += 1;
                self.lose_executor(index as u32, false);
            }
        }
    }

    /// Looks for executors that take too long.
    pub fn kill_hung(&mut self, hang_ns: u64) {
        for index in self.dispatcher.hung(self.now_ns, hang_ns) {
            if let Some(executor) = self.dispatcher.executors.get_mut(index) {
                executor.kill();
            }
        }
        self.bury_the_dying();
    }

    /// Sleeping, and being woken by nothing.
    pub fn doze(&mut self) {
        self.dispatcher.prepare_sleep();
        let wake_ns = self.dispatcher.wake_ns(self.now_ns);
        let queued: usize = self.dispatcher.models.iter().map(|it| it.queue.len()).sum();
        assert_eq!(wake_ns.is_some(), queued > 0);
        self.dispatcher.awake();
    }

    /// Ends the hostile session, as when its socket hangs up; its client comes back at once, and
    /// what executors still hold of the old session stays behind.
    pub fn reconnect(&mut self, status: Status) {
        let Some(session) = self.hostile.session(&self.dispatcher) else { return };
        let geometry = session.geometry;
        self.dispatcher.end_session(self.hostile.index, status);
        let session = self.hostile.session(&self.dispatcher).expect("only we forget it");
        assert!(session.is_over() && session.queued().is_empty());
        assert_eq!(self.hostile.ended(), status);
        check::books(&self.dispatcher, &self.honest);
        self.dispatcher.forget_sessions();
        self.loss_count += 1;
        self.hostile = Hostile::new(&mut self.dispatcher, geometry);
        check::books(&self.dispatcher, &self.honest);
    }

    /// An executor dies with its batches, alone or with its device, and the next one is warm at once.
    pub fn lose_executor(&mut self, index: u32, lost_device: bool) {
        if let Some(executor) = self.dispatcher.executors.get_mut(index) {
            executor.lost_device = lost_device;
        }
        self.dispatcher.recover(index, self.now_ns);
        check::books(&self.dispatcher, &self.honest);
        self.renew(index);
        self.dispatcher.forget_sessions();
        self.revive(index);
    }

    /// What the executor's process was told means nothing to the next one.
    fn renew(&mut self, index: u32) {
        let far = &mut self.far[index as usize];
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        if far.as_mut().is_some_and(|far| !far.renew(executor)) {
            far::bury(executor);
            *far = None;
        }
    }

    fn revive(&mut self, index: u32) {
        let points = match index {
            0 => [(1, 1_000_000), (8, 4_000_000)],
            _ => [(1, 30_000_000), (4, 31_000_000)],
        };
        let point = |(rows, ns)| ProfilePoint { rows, p50_ns: ns, p99_ns: ns + ns / 8 };
        let profile = LatencyProfile::new("warm", &points.map(point)).expect("it keeps the rules");
        if let Some(executor) = self.dispatcher.executors.get_mut(index) {
            executor.state = State::Running;
        }
        if let Some(hosted) = self.dispatcher.models.get_mut(self.ids.warm) {
            hosted.ever_ready = true;
            for instance in hosted.instances_in(index) {
                instance.state = InstanceState::Ready(Box::new(profile.clone()));
            }
        }
    }

    /// A reload that replaces a model: the old one goes when nothing of it runs.
    pub fn retire(&mut self, which: u8) {
        let id = match which {
            0 => self.ids.warm,
            1 => self.ids.null,
            _ => self.ids.loading,
        };
        let Some(hosted) = self.dispatcher.models.get_mut(id) else { return };
        let model = hosted.model.clone();
        hosted.retired = true;
        self.dispatcher.flush_queue(id, Status::ModelRetired, self.now_ns);
        self.dispatcher.publish();
        check::books(&self.dispatcher, &self.honest);
        let models = &mut self.dispatcher.models;
        if models.get(id).is_some_and(|hosted| hosted.running_count == 0) {
            models.remove(id);
        }
        let new = models.add(model, QUEUE_MAX, REQUEUE_MAX);
        match which {
            0 => self.ids.warm = new,
            1 => self.ids.null = new,
            _ => self.ids.loading = new,
        }
        if which != 1 {
            host(&mut self.dispatcher, new);
        }
        self.revive(0);
        self.revive(1);
    }

    /// Everybody goes home: afterwards nothing is in flight, and every request of the honest client
    /// was answered once.
    pub fn wind_up(&mut self) {
        self.far.iter_mut().flatten().for_each(Far::listen);
        self.dispatcher.end_session(self.hostile.index, Status::Ok);
        for index in 0..self.dispatcher.executors.len() {
            self.dispatcher.recover(index, self.now_ns);
            let Some(executor) = self.dispatcher.executors.get_mut(index) else { continue };
            let mut gone = self::executor("gone");
            gone.state = State::Gone;
            let executor = std::mem::replace(executor, gone);
            if let Some(far) = self.far[index as usize].take() {
                far::keep(executor, far);
            }
        }
        check::books(&self.dispatcher, &self.honest);
        for _ in 0..Honest::SLOT_COUNT {
            self.dispatcher.turn(self.now_ns);
        }
        self.dispatcher.turn(self.now_ns.saturating_add(FOR_EVER_NS));
        assert!(self.dispatcher.violations.is_empty(), "somebody who is not there broke a rule");
        check::books(&self.dispatcher, &self.honest);
        self.honest.take_answers(self.dispatcher.draining, u32::MAX);
        assert_eq!(self.honest.outstanding(), 0, "requests were never answered");
        assert_eq!(self.dispatcher.in_flight(), 0);
        self.dispatcher.forget_sessions();
        assert_eq!(self.dispatcher.sessions.live(), [self.honest.index]);
        assert_eq!(self.dispatcher.wake_ns(self.now_ns), None);
    }
}

/// One of a gpulet on the host, or of two that play a GPU.
fn executor(name: &str) -> Executor {
    let profiles_dir = PathBuf::from("/nonexistent");
    let (count, device) = if name == "left" { (1, None) } else { (2, Some(DeviceName::Index(0))) };
    let gpulet = |index: u32| Gpulet {
        name: format!("{name}{index}"),
        mechanism: Mechanism::Replay { profiles_dir: profiles_dir.clone(), device: device.clone() },
        share_pct: 50,
        memory_bytes: None,
        models: ModelSet::All,
        guests: Vec::new(),
    };
    let gpulets: Vec<Gpulet> = (0..count).map(gpulet).collect();
    let entry = |gpulet: &Gpulet| GpuletStart { name: gpulet.name.clone(), share_pct: 50 };
    let start = Start {
        executor: name.to_owned(),
        gpulets: gpulets.iter().map(entry).collect(),
        backend: Backend::Replay { profiles_dir: profiles_dir.clone() },
        thread_count: 1,
        cpus: Vec::new(),
        spin_ns: 0,
        beside: false,
    };
    Executor::new(gpulets, start)
}

fn add_models(dispatcher: &mut Dispatcher) -> Ids {
    let mut add = |name: &str, source: Source| {
        let tensor = |name: &str| Tensor {
            name: name.to_owned(),
            dtype: DtypeName(Dtype::F32),
            dims: vec![32],
            row_bytes: 128,
            range: None,
            normalise: None,
        };
        let model = Model {
            name: name.to_owned(),
            source,
            slo_ns: 50_000_000,
            max_batch: 8,
            warmup_count: 1,
            inputs: vec![tensor("in")],
            outputs: vec![tensor("out")],
            precision: Precision::Fp32,
            error_max: 0.0,
            stamp: (0, 0),
        };
        dispatcher.models.add(model, QUEUE_MAX, REQUEUE_MAX)
    };
    let null = add("null", Source::Builtin(Builtin::Null));
    let warm = add("warm", Source::Builtin(Builtin::Echo));
    let loading = add("loading", Source::File(PathBuf::from("/nonexistent")));
    let removed = add("removed", Source::Builtin(Builtin::Null));
    // Hosted nowhere, so it counts as failed.
    add("failed", Source::File(PathBuf::from("/nonexistent")));
    dispatcher.models.remove(removed);
    host(dispatcher, warm);
    host(dispatcher, loading);
    Ids { null, warm, loading }
}

fn host(dispatcher: &mut Dispatcher, id: u32) {
    let Some(hosted) = dispatcher.models.get_mut(id) else { return };
    hosted.instances.clear();
    for (executor, host) in dispatcher.executors.iter() {
        for index in 0..host.gpulets.len() as u32 {
            let gpulet = GpuletId { executor, index };
            let state = InstanceState::Loading;
            // Where there is a second gpulet it is lent.
            let role = if index == 0 { Role::Home } else { Role::Guest };
            hosted.instances.push(Instance { gpulet, role, state });
        }
    }
}
