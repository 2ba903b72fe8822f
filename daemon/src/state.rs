//! The daemon's state as `gpuletctl status` shows it: the JSON of a state reply.

use std::collections::BTreeMap;

use gpulet_abi::status::Status;
use serde::Serialize;

use crate::dispatch::Dispatcher;
use crate::executor::{self, Executor};
use crate::gpulet::GpuletId;
use crate::models::{Hosted, Readiness, Role};

/// Everything.
#[derive(Debug, Serialize)]
pub struct State {
    version: &'static str,
    uptime_ns: u64,
    ready: bool,
    draining: bool,
    sessions: Vec<SessionState>,
    models: Vec<ModelState>,
    gpulets: Vec<GpuletState>,
    executors: Vec<ExecutorState>,
}

#[derive(Debug, Serialize)]
struct SessionState {
    id: u64,
    uid: u32,
    pid: i32,
    slot_count: u32,
    slot_bytes: u64,
    in_flight: u32,
    submitted: u64,
    completed: u64,
}

#[derive(Debug, Serialize)]
struct ModelState {
    name: String,
    id: u32,
    state: &'static str,
    error: Option<String>,
    max_batch: u32,
    slo_ns: u64,
    queued: usize,
    running: u32,
    batches: u64,
    /// Requests answered, by the name of their status; zeros are left out.
    answers: BTreeMap<&'static str, u64>,
    input_bytes_copied: u64,
    output_bytes_copied: u64,
    p50_ns: u64,
    p99_ns: u64,
}

#[derive(Debug, Serialize)]
struct GpuletState {
    name: String,
    /// The name of its executor; of two of the same name, one is about to go.
    executor: String,
    /// Of that executor.
    state: &'static str,
    mechanism: &'static str,
    device: Option<String>,
    /// What it runs on now.
    share_pct: u8,
    /// What the config says.
    wanted_pct: u8,
    /// Models that can run there now.
    models: usize,
    running: usize,
    batches: u64,
}

#[derive(Debug, Serialize)]
struct ExecutorState {
    name: String,
    gpulets: Vec<String>,
    pid: Option<u32>,
    state: &'static str,
    backend: String,
    threads: u32,
    cpus: Vec<u32>,
    restarts: u64,
    /// The model that it loads now.
    loading: Option<String>,
}

impl State {
    /// The state now.
    pub fn of(dispatcher: &Dispatcher, uptime_ns: u64, ready: bool) -> State {
        State {
            version: env!("CARGO_PKG_VERSION"),
            uptime_ns,
            ready,
            draining: dispatcher.draining,
            sessions: dispatcher.sessions.iter().map(session_state).collect(),
            models: dispatcher.models.iter().map(model_state).collect(),
            gpulets: gpulet_states(dispatcher),
            executors: executor_states(dispatcher),
        }
    }

    /// As it travels.
    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("numbers and strings always are JSON")
    }
}

fn session_state(session: &crate::session::Session) -> SessionState {
    SessionState {
        id: session.id,
        uid: session.uid,
        pid: session.pid,
        slot_count: session.geometry.slot_count,
        slot_bytes: session.geometry.slot_bytes,
        in_flight: session.in_flight(),
        submitted: session.submitted_count,
        completed: session.completed_count,
    }
}

fn model_state(hosted: &Hosted) -> ModelState {
    let (state, error) = match hosted.readiness() {
        _ if hosted.retired => ("retired", None),
        Readiness::Ready => ("ready", None),
        Readiness::Loading => ("loading", None),
        Readiness::Failed(error) => ("failed", Some(error)),
    };
    let counters = &hosted.counters;
    let counted =
        |(status, count): (&Status, &u64)| (*count > 0).then_some((status.name(), *count));
    ModelState {
        name: hosted.model.name.clone(),
        id: hosted.id,
        state,
        error,
        max_batch: hosted.model.max_batch,
        slo_ns: hosted.model.slo_ns,
        queued: hosted.queue.len(),
        running: hosted.running_count,
        batches: counters.batch_count,
        answers: Status::ALL.iter().zip(&counters.by_status).filter_map(counted).collect(),
        input_bytes_copied: counters.input_bytes_copied,
        output_bytes_copied: counters.output_bytes_copied,
        p50_ns: counters.latency_ns.value_at_quantile(0.5),
        p99_ns: counters.latency_ns.value_at_quantile(0.99),
    }
}

fn gpulet_states(dispatcher: &Dispatcher) -> Vec<GpuletState> {
    let mut states = Vec::new();
    for (number, executor) in dispatcher.executors.iter() {
        for (index, gpulet) in executor.gpulets.iter().enumerate() {
            let id = GpuletId { executor: number, index: index as u32 };
            let mechanism = &gpulet.config.mechanism;
            states.push(GpuletState {
                name: gpulet.config.name.clone(),
                executor: executor.name().to_owned(),
                state: word_for(executor),
                mechanism: mechanism.word(),
                device: mechanism.device().map(ToString::to_string),
                share_pct: executor.shares_pct.get(index).copied().unwrap_or_default(),
                wanted_pct: gpulet.config.share_pct,
                models: dispatcher
                    .models
                    .iter()
                    .filter(|it| it.profile(id, Role::Home).is_some())
                    .count(),
                running: gpulet.batches().count(),
                batches: gpulet.batch_count,
            });
        }
    }
    states
}

fn word_for(executor: &Executor) -> &'static str {
    match executor.state {
        executor::State::Running if executor.replaces.is_some() => "standby",
        executor::State::Running if executor.retired => "leaving",
        executor::State::Dying if executor.leave_ns.is_some() => "leaving",
        state => state.name(),
    }
}

fn executor_states(dispatcher: &Dispatcher) -> Vec<ExecutorState> {
    let name = |id| dispatcher.models.get(id).map(|hosted| hosted.model.name.clone());
    let state = |(_, executor): (u32, &Executor)| ExecutorState {
        name: executor.name().to_owned(),
        gpulets: executor.gpulets.iter().map(|gpulet| gpulet.config.name.clone()).collect(),
        pid: executor.pid(),
        state: word_for(executor),
        backend: executor.backend.clone(),
        threads: executor.start.thread_count,
        cpus: executor.start.cpus.clone(),
        restarts: executor.restart_count,
        loading: executor.loading.and_then(name),
    };
    dispatcher.executors.iter().map(state).collect()
}
