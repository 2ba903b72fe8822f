//! The models that are served now: their queues, where they are loaded, and what became of their
//! requests.

use bytemuck::Zeroable;
use gpulet_abi::frame::Frame;
use gpulet_abi::layout::{ModelSpec, TensorSpec, put_text};
use gpulet_abi::status::Status;
use gpulet_abi::tensor::SlotLayout;
use gpulet_plan::policy::{BATCH_REQUESTS_MAX, BatchLimits, Pace};
use gpulet_plan::profile::LatencyProfile;
use gpulet_plan::queue::DeadlineQueue;
use hdrhistogram::Histogram;

use crate::gpulet::GpuletId;
use crate::model::{Builtin, Model, Source, Tensor};
use crate::request::RequestId;

/// Time kept free before a deadline for waking an executor and posting the answer.
const GUARD_NS: u64 = 50_000;
/// Longest latency told apart in the statistics.
const LATENCY_NS_MAX: u64 = 3_600_000_000_000;

/// A model in one gpulet. An executor loads it once for all of its gpulets, so either each of them has
/// an instance or none.
#[derive(Debug)]
pub struct Instance {
    /// Where.
    pub gpulet: GpuletId,
    /// Which batches it is given.
    pub role: Role,
    /// Whether it can run.
    pub state: InstanceState,
}

/// What an instance is to its gpulet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Nothing: the config has the model run in another gpulet of that executor only, or the executor
    /// waits to replace another.
    Closed,
    /// The model is at home there.
    Home,
    /// The model may borrow the gpulet while it is idle.
    Guest,
}

/// See [`Instance`].
#[derive(Debug)]
pub enum InstanceState {
    /// The executor is still to be told to load it.
    Waiting,
    /// The executor was told, and has not answered.
    Loading,
    /// Warm; what its batches take.
    Ready(Box<LatencyProfile>),
    /// It could not be loaded.
    Failed {
        /// Why not.
        error: String,
        /// Whether the executor's next process should try again.
        retry: bool,
    },
}

impl InstanceState {
    /// A fresh process may succeed where the last one could not.
    pub fn retry(&mut self) {
        if matches!(self, InstanceState::Failed { retry: true, .. }) {
            *self = InstanceState::Waiting;
        }
    }
}

/// Whether a model can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// At least one instance is warm, or none is needed.
    Ready,
    /// None is yet.
    Loading,
    /// None will be; why.
    Failed(String),
}

/// What became of a model's requests.
#[derive(Debug)]
pub struct Counters {
    /// Requests answered, by status.
    pub by_status: [u64; Status::ALL.len()],
    /// Host bytes copied to put batches together.
    pub input_bytes_copied: u64,
    /// Host bytes copied from results into slots.
    pub output_bytes_copied: u64,
    /// Batches run.
    pub batch_count: u64,
    /// From being taken to being answered, of those that ran.
    pub latency_ns: Histogram<u64>,
}

impl Counters {
    fn new() -> Counters {
        let latency_ns = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 2)
            .expect("the bounds are constants that the crate accepts");
        Counters {
            by_status: [0; Status::ALL.len()],
            input_bytes_copied: 0,
            output_bytes_copied: 0,
            batch_count: 0,
            latency_ns,
        }
    }

    /// Counts one answer.
    #[inline]
    pub fn count(&mut self, status: Status) {
        if let Some(index) = Status::ALL.iter().position(|other| *other == status) {
            self.by_status[index] += 1;
        }
    }

    /// Records the time of an answer that ran. Allocates nothing: the bounds are fixed.
    pub fn record(&mut self, latency_ns: u64) {
        self.latency_ns.saturating_record(latency_ns);
    }
}

/// A model that is served.
#[derive(Debug)]
pub struct Hosted {
    /// What submissions and commands name it by; never reused.
    pub id: u32,
    /// What its directory says.
    pub model: Model,
    /// What clients are told.
    pub spec: Box<ModelSpec>,
    /// Requests that wait.
    pub queue: DeadlineQueue<RequestId>,
    /// How requests come.
    pub pace: Pace,
    /// What the policy must respect.
    pub limits: BatchLimits,
    /// Where it is, or is being, loaded.
    pub instances: Vec<Instance>,
    /// Its batches that gpulets have.
    pub running_count: u32,
    /// The requests in these; at most `requeue_max`.
    pub running_requests: u32,
    /// Most requests that clients can have in `queue`.
    pub queue_max: u32,
    /// Most requests that come back to `queue` from lost executors: its capacity is so much larger.
    pub requeue_max: u32,
    /// It was warm once: requests wait for a restart rather than be told that it is loading.
    pub ever_ready: bool,
    /// Replaced or removed: takes nothing new, and goes when nothing runs.
    pub retired: bool,
    /// What became of its requests.
    pub counters: Counters,
    /// Bytes of slot that 1, 2, ... `max_batch` rows take.
    slot_bytes: Box<[u64]>,
}

impl Hosted {
    fn new(id: u32, model: Model, queue_max: u32, requeue_max: u32) -> Hosted {
        let spec = Box::new(spec_of(id, &model));
        let limits = BatchLimits { max_batch: model.max_batch, guard_ns: GUARD_NS };
        // More than a slot can have where the layout overflows: such rows are refused.
        let bytes = |rows| SlotLayout::of_spec(&spec, rows).map_or(u64::MAX, |it| it.bytes());
        let slot_bytes = (1..=model.max_batch).map(bytes).collect();
        Hosted {
            id,
            model,
            spec,
            queue: DeadlineQueue::new(queue_max + requeue_max),
            pace: Pace::default(),
            limits,
            instances: Vec::new(),
            running_count: 0,
            running_requests: 0,
            queue_max,
            requeue_max,
            ever_ready: false,
            retired: false,
            counters: Counters::new(),
            slot_bytes,
        }
    }

    /// Whether the dispatcher answers it itself.
    #[inline]
    pub fn is_null(&self) -> bool {
        self.model.source == Source::Builtin(Builtin::Null)
    }

    /// Whether it can be asked.
    pub fn readiness(&self) -> Readiness {
        if self.is_null() {
            return Readiness::Ready;
        }
        let mut failure = None;
        let mut loading = false;
        for instance in self.instances.iter().filter(|it| it.role != Role::Closed) {
            match &instance.state {
                InstanceState::Ready(_) => return Readiness::Ready,
                InstanceState::Waiting | InstanceState::Loading => loading = true,
                InstanceState::Failed { error, .. } => failure = Some(error),
            }
        }
        match failure {
            _ if loading => Readiness::Loading,
            Some(error) => Readiness::Failed(error.clone()),
            None => Readiness::Failed("no gpulet of the config hosts it".to_owned()),
        }
    }

    /// Whether there would be room for another batch if all of them came back from lost executors.
    #[inline]
    pub fn has_requeue_room(&self) -> bool {
        let next = self.queue.len().min(BATCH_REQUESTS_MAX as usize) as u32;
        self.running_requests + next <= self.requeue_max
    }

    /// Bytes of slot that `rows` rows take; `None` for none, or more than `max_batch`.
    #[inline]
    pub fn slot_bytes(&self, rows: u32) -> Option<u64> {
        self.slot_bytes.get((rows as usize).wrapping_sub(1)).copied()
    }

    /// A request of so many rows was turned away: any of its instances may have been thought too slow.
    pub fn note_refused(&mut self, rows: u32, deadline_ns: u64, now_ns: u64) {
        let budget_ns = self.limits.budget_ns(now_ns, deadline_ns);
        for profile in self.instances.iter_mut().filter_map(Instance::profile_mut) {
            profile.note_refused(rows, budget_ns);
        }
    }

    /// The instance in a gpulet.
    pub fn instance_mut(&mut self, gpulet: GpuletId) -> Option<&mut Instance> {
        self.instances.iter_mut().find(|instance| instance.gpulet == gpulet)
    }

    /// The instances in an executor.
    pub fn instances_in(&mut self, executor: u32) -> impl Iterator<Item = &mut Instance> {
        self.instances.iter_mut().filter(move |it| it.gpulet.executor == executor)
    }

    /// The profile of the instance of that role in a gpulet, if it can be given batches.
    #[inline]
    pub fn profile(&self, gpulet: GpuletId, role: Role) -> Option<&LatencyProfile> {
        let instance = self.instances.iter().find(|instance| instance.gpulet == gpulet)?;
        instance.profile().filter(|_| instance.role == role)
    }

    /// Where it is at home and can be given batches, with its profiles there.
    pub fn homes(&self) -> impl Iterator<Item = (GpuletId, &LatencyProfile)> {
        let homes = self.instances.iter().filter(|it| it.role == Role::Home);
        homes.filter_map(|it| Some((it.gpulet, it.profile()?)))
    }

    /// Whether it may borrow gpulets.
    pub fn is_guest(&self) -> bool {
        self.instances.iter().any(|it| it.role == Role::Guest)
    }

    /// The profile of the instance that runs one row fastest, of those at home.
    pub fn fastest(&self) -> Option<&LatencyProfile> {
        let profiles = self.homes().map(|(_, profile)| profile);
        profiles.min_by_key(|profile| profile.latency_ns(1))
    }
}

impl Instance {
    /// What its batches take, if it is warm.
    pub fn profile(&self) -> Option<&LatencyProfile> {
        match &self.state {
            InstanceState::Ready(profile) => Some(profile),
            _ => None,
        }
    }

    /// What its batches take, if it is warm.
    pub fn profile_mut(&mut self) -> Option<&mut LatencyProfile> {
        match &mut self.state {
            InstanceState::Ready(profile) => Some(profile),
            _ => None,
        }
    }
}

fn spec_of(id: u32, model: &Model) -> ModelSpec {
    let mut spec = ModelSpec {
        model: id,
        max_batch: model.max_batch,
        input_count: model.inputs.len() as u32,
        output_count: model.outputs.len() as u32,
        slo_ns: model.slo_ns,
        ..ModelSpec::blank()
    };
    put_text(&mut spec.name, &model.name);
    describe(&mut spec.inputs, &model.inputs);
    describe(&mut spec.outputs, &model.outputs);
    spec
}

fn describe(specs: &mut [TensorSpec], tensors: &[Tensor]) {
    for (spec, tensor) in specs.iter_mut().zip(tensors) {
        *spec = TensorSpec {
            dtype: tensor.dtype.0 as u32,
            rank: 1 + tensor.dims.len() as u32,
            row_bytes: tensor.row_bytes,
            ..TensorSpec::zeroed()
        };
        put_text(&mut spec.name, &tensor.name);
        spec.dims[0] = -1;
        spec.dims[1..=tensor.dims.len()].copy_from_slice(&tensor.dims);
    }
}

/// Every model ever served, by id.
#[derive(Debug, Default)]
pub struct Models {
    /// Directories that are no models: the name, and why.
    pub broken: Vec<(String, String)>,
    table: Vec<Option<Hosted>>,
    live: Vec<u32>,
}

impl Models {
    /// Adds a model without instances; returns its id.
    pub fn add(&mut self, model: Model, queue_max: u32, requeue_max: u32) -> u32 {
        let id = self.table.len() as u32;
        self.table.push(Some(Hosted::new(id, model, queue_max, requeue_max)));
        self.live.push(id);
        id
    }

    /// Forgets a retired model.
    pub fn remove(&mut self, id: u32) {
        self.table[id as usize] = None;
        self.live.retain(|other| *other != id);
    }

    /// Ids of all models, in the order they came.
    pub fn live(&self) -> &[u32] {
        &self.live
    }

    /// Whether there ever was a model of this id.
    pub fn was_ever(&self, id: u32) -> bool {
        (id as usize) < self.table.len()
    }

    /// A model that is served.
    #[inline]
    pub fn get(&self, id: u32) -> Option<&Hosted> {
        self.table.get(id as usize)?.as_ref()
    }

    /// A model that is served.
    #[inline]
    pub fn get_mut(&mut self, id: u32) -> Option<&mut Hosted> {
        self.table.get_mut(id as usize)?.as_mut()
    }

    /// The model that clients call so now.
    pub fn by_name(&self, name: &str) -> Option<&Hosted> {
        self.iter().find(|hosted| hosted.model.name == name && !hosted.retired)
    }

    /// All models, the retired ones included.
    pub fn iter(&self) -> impl Iterator<Item = &Hosted> {
        self.live.iter().filter_map(|id| self.get(*id))
    }

    /// All models, the retired ones included.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Hosted> {
        self.table.iter_mut().flatten()
    }
}
