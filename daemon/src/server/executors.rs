//! Executors come, say what they loaded, and go.

use std::time::Duration;

use gpulet_abi::status::Status;
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use mio::Token;
use tracing::{debug, error, info, warn};

use super::placing::forget_instances;
use super::{EXECUTORS, Server};
use crate::clock::now_ns;
use crate::executor::{Sharing, Source, State};
use crate::models::{Hosted, Instance, InstanceState, Readiness};
use crate::wire::{FAULT_EXIT_CODE, FromExecutor};

/// After a program could not even be started.
const SPAWN_RETRY_NS: u64 = 1_000_000_000;
/// An executor is silent for longer only if it hangs, however short the configured timeout is.
const SILENCE_MIN_NS: u64 = 3_000_000_000;
/// A file is read at 50 MB a second at least.
const NS_PER_BYTE: u64 = 20;
/// Time that executors get to go by themselves at the end.
const DISMISS_NS: u64 = 2_000_000_000;

impl Server {
    /// Starts executors whose time has come, and dismisses retired ones that are idle.
    pub(super) fn start_executors(&mut self, now_ns: u64) {
        let program = self.dispatcher.executors.program.clone();
        for index in 0..self.dispatcher.executors.len() {
            let Some(executor) = self.dispatcher.executors.get_mut(index) else { continue };
            if executor.retired {
                if executor.is_idle() && !matches!(executor.state, State::Dying | State::Gone) {
                    executor.dismiss();
                    // Without a process there is no end of one to wait for.
                    if executor.state == State::Gone {
                        forget_instances(&mut self.dispatcher.models, index);
                    }
                }
                continue;
            }
            let State::Waiting { until_ns } = executor.state else { continue };
            if until_ns > now_ns || !self.devices.may_start(&executor.environment) {
                continue;
            }
            let device = executor.device.clone();
            if self.is_being_left(device.as_deref()) {
                continue;
            }
            let Some(executor) = self.dispatcher.executors.get_mut(index) else { continue };
            let token = Token(EXECUTORS + 4 * index as usize);
            if let Err(error) = executor.spawn(&program, self.poll.registry(), token) {
                error!(executor = executor.name(), %error, "cannot start the executor");
                executor.kill();
                executor.state = State::Waiting { until_ns: now_ns + SPAWN_RETRY_NS };
            }
        }
    }

    /// Something happened at one of an executor's descriptors.
    pub(super) fn hear_executor(&mut self, index: u32, source: usize, now_ns: u64) {
        if source == Source::Bell as usize {
            return;
        }
        while let Some(executor) = self.dispatcher.executors.get_mut(index) {
            let Some(message) = executor.hear() else { break };
            self.follow(index, message);
        }
        if source == Source::Exit as usize {
            self.bury(index, now_ns);
        }
    }

    fn follow(&mut self, index: u32, message: FromExecutor) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let name = executor.name().to_owned();
        match message {
            FromExecutor::Started { backend } => {
                info!(executor = name, backend, pid = executor.pid(), "executor running");
                executor.backend = backend;
                executor.state = State::Running;
                for hosted in self.dispatcher.models.iter_mut() {
                    for instance in hosted.instances_in(index) {
                        instance.state.retry();
                    }
                }
                self.change_shares(index);
                self.introduce_sessions(index);
                self.tell_loads(index);
            }
            FromExecutor::StartFailed { error } => {
                error!(executor = name, error, "the executor cannot start");
                for hosted in self.dispatcher.models.iter_mut() {
                    fail(hosted, index, &error, true);
                }
            }
            FromExecutor::Loading { instance, step } => {
                debug!(executor = name, instance, step, "loading");
                executor.loading = Some(instance);
                // Once a step: nothing needs to be looked at again.
                return;
            }
            FromExecutor::Loaded { instance, points, load_ns, form, memory_bytes } => {
                let load_ms = load_ns / 1_000_000;
                info!(executor = name, instance, form, load_ms, memory_bytes, "model loaded");
                executor.loading = None;
                executor.suspect.take_if(|suspect| *suspect == instance);
                self.take_profiles(index, instance, &points);
                self.change_shares(index);
                self.tell_loads(index);
                self.hand_over();
            }
            FromExecutor::LoadFailed { instance, error } => {
                executor.loading = None;
                self.fail_load(index, instance, &error);
                self.change_shares(index);
                self.tell_loads(index);
                self.hand_over();
            }
            FromExecutor::Faulted { error } => {
                error!(executor = name, error, "the device faulted");
                self.lose_device_of(index);
            }
            FromExecutor::Remeasured { instance, shares_pct, points } => {
                executor.loading.take_if(|loading| *loading == instance);
                self.note_remeasured(index, instance, &shares_pct, &points);
            }
            FromExecutor::Prepared { shares_pct } => self.switch_shares(index, shares_pct),
            FromExecutor::PrepareFailed { shares_pct, error } => {
                self.refuse_shares(index, shares_pct, &error);
            }
            FromExecutor::Shared { shares_pct, switched_ns } => {
                self.note_shared(index, shares_pct, switched_ns);
            }
        }
        self.housekeeping_ns = 0;
    }

    /// A model is warm in an executor: `points` has what its batches take, for each gpulet.
    fn take_profiles(&mut self, index: u32, instance: u32, points: &[Vec<ProfilePoint>]) {
        let Some(executor) = self.dispatcher.executors.get(index) else { return };
        let Some(hosted) = self.dispatcher.models.get_mut(instance) else { return };
        let name = hosted.model.name.clone();
        let (count, wanted) = (points.len(), executor.gpulets.len());
        let profiles: Result<Vec<LatencyProfile>, String> = if count == wanted {
            let profile = |points: &Vec<ProfilePoint>| LatencyProfile::new(&name, points);
            let profiles: Result<_, _> = points.iter().map(profile).collect();
            profiles.map_err(|problem| format!("{name}: warm-up: {problem}"))
        } else {
            Err(format!("{name}: warm-up: {count} profiles came for {wanted} gpulets"))
        };
        match profiles {
            Ok(profiles) => {
                hosted.ever_ready = true;
                for (instance, profile) in hosted.instances_in(index).zip(profiles) {
                    instance.state = InstanceState::Ready(Box::new(profile));
                }
                for gpulet in &executor.gpulets {
                    if gpulet.config.hosts(&name) {
                        info!(gpulet = gpulet.config.name, model = name, "model ready");
                    }
                }
            }
            Err(error) => self.fail_load(index, instance, &error),
        }
    }

    fn fail_load(&mut self, index: u32, instance: u32, error: &str) {
        let Some(hosted) = self.dispatcher.models.get_mut(instance) else { return };
        let executor = self.dispatcher.executors.get(index).map(|it| it.name().to_owned());
        error!(executor, model = hosted.model.name, error, "model failed");
        fail(hosted, index, error, false);
        self.answer_hopeless(instance);
    }

    /// Answers what waits for a model that no gpulet will run.
    pub(super) fn answer_hopeless(&mut self, model: u32) {
        let hosted = self.dispatcher.models.get(model);
        if hosted.is_some_and(|it| matches!(it.readiness(), Readiness::Failed(_))) {
            self.dispatcher.flush_queue(model, Status::ModelFailed, now_ns());
            self.dispatcher.publish();
        }
    }

    /// An executor's process is gone.
    fn bury(&mut self, index: u32, now_ns: u64) {
        // What it reported before it died counts.
        self.dispatcher.turn(now_ns);
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let was_running = executor.state == State::Running || executor.state == State::Dying;
        if !executor.reap(self.poll.registry(), now_ns) {
            return;
        }
        let gone = executor.state == State::Gone;
        if executor.exit_code == Some(FAULT_EXIT_CODE) {
            self.lose_device_of(index);
        }
        if was_running && !gone {
            self.blame_loading(index);
        }
        self.dispatcher.recover(index, now_ns);
        if gone {
            forget_instances(&mut self.dispatcher.models, index);
        }
        self.inherit(index);
        self.housekeeping_ns = 0;
        self.start_executors(now_ns);
    }

    /// An executor loads one model after the other: if it died while it loaded one, that one is not
    /// tried again, so that it cannot take the others down for ever. If it had batches too, they may
    /// be to blame, the first time.
    pub(super) fn blame_loading(&mut self, index: u32) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let Some(model) = executor.loading.take() else { return };
        let certain = executor.is_idle() && !executor.lost_device;
        if !certain && executor.suspect != Some(model) {
            executor.suspect = Some(model);
            return;
        }
        self.blame(index, model, "the executor died while it loaded this model");
    }

    /// A model is not tried again in an executor.
    fn blame(&mut self, index: u32, model: u32, why: &str) {
        let Some(hosted) = self.dispatcher.models.get_mut(model) else { return };
        let name = &hosted.model.name;
        warn!(model = name, why, "a model is given up");
        let text = format!("{name}: {why}");
        fail(hosted, index, &text, false);
        self.answer_hopeless(model);
    }

    /// Executors that should have said something long ago: while they start, load or share out. A
    /// model that is being loaded is to blame, and not tried again.
    pub(super) fn silent(&mut self, now_ns: u64) -> Vec<u32> {
        let patience_ns = SILENCE_MIN_NS.max(self.config.hang_timeout_ns.saturating_mul(2));
        let mut all = Vec::new();
        for (index, executor) in self.dispatcher.executors.iter() {
            let silent_ns = now_ns.saturating_sub(executor.heard_ns);
            if silent_ns <= patience_ns || executor.doomed_ns.is_some() {
                continue;
            }
            match executor.state {
                State::Starting if silent_ns > 2 * patience_ns => all.push((index, None)),
                State::Running if executor.sharing != Sharing::Settled => all.push((index, None)),
                State::Running => {
                    let current = self.current_load(index, executor.loading);
                    if let Some((model, bytes)) = current
                        && silent_ns > patience_ns.saturating_add(bytes.saturating_mul(NS_PER_BYTE))
                    {
                        all.push((index, Some(model)));
                    }
                }
                _ => {}
            }
        }
        for (index, model) in &all {
            if let Some(executor) = self.dispatcher.executors.get_mut(*index) {
                warn!(executor = executor.name(), "the executor is silent for too long");
                executor.loading = None;
            }
            if let Some(model) = model {
                self.blame(
                    *index,
                    *model,
                    "the executor said nothing more while it loaded this model",
                );
            }
        }
        all.into_iter().map(|(index, _)| index).collect()
    }

    /// Executors that were told to go long ago and are still there.
    pub(super) fn overdue(&self, now_ns: u64) -> impl Iterator<Item = u32> {
        let executors = self.dispatcher.executors.iter();
        let overdue = executors.filter(move |(_, it)| {
            it.state == State::Dying && it.leave_ns.is_some_and(|leave_ns| now_ns >= leave_ns)
        });
        overdue.map(|(index, _)| index)
    }

    /// The model that an executor loads now, and the bytes of its file; `None` if it loads none.
    fn current_load(&self, index: u32, loading: Option<u32>) -> Option<(u32, u64)> {
        let waits = |hosted: &&Hosted| {
            let mut instances = hosted.instances.iter();
            let here = |it: &Instance| it.gpulet.executor == index;
            instances.any(|it| here(it) && matches!(it.state, InstanceState::Loading))
        };
        let mut told = self.dispatcher.models.iter().filter(waits);
        let first = told.next()?;
        let named = loading.and_then(|model| self.dispatcher.models.get(model)).unwrap_or(first);
        Some((named.id, named.model.stamp.1))
    }

    /// Lets every executor go, and ends those that do not.
    pub(super) fn dismiss_executors(&mut self) {
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            executor.retired = true;
            if executor.is_idle() { executor.dismiss() } else { executor.kill() }
        }
        let give_up_ns = now_ns() + DISMISS_NS;
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            while executor.pid().is_some() && !executor.reap(self.poll.registry(), now_ns()) {
                if now_ns() > give_up_ns {
                    executor.kill();
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

/// A model cannot be had in an executor; `retry`: until its next process.
fn fail(hosted: &mut Hosted, executor: u32, error: &str, retry: bool) {
    for instance in hosted.instances_in(executor) {
        instance.state = InstanceState::Failed { error: error.to_owned(), retry };
    }
}
