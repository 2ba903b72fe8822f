//! What the config says becomes executors and models, at the start and at every reload.

use std::time::Duration;

use gpulet_abi::status::Status;
use gpulet_plan::profile::LatencyProfile;
use mio::Token;
use tracing::{error, info, warn};

use super::starts::{Wanted, wanted};
use super::{EXECUTORS, Server};
use crate::clock::now_ns;
use crate::config::{Config, ConfigError};
use crate::dispatch::REQUEUE_MAX;
use crate::executor::{Executor, Source, State};
use crate::model::{Model, ModelError, Scan, scan, scan_each};
use crate::models::{Instance, InstanceState, Models, Readiness};
use crate::wire::{FromExecutor, ToExecutor};

/// Time that systemd is asked for at a time while models are loaded.
const STARTING_EXTEND_NS: u64 = 30_000_000_000;
/// After a program could not even be started.
const SPAWN_RETRY_NS: u64 = 1_000_000_000;
/// Time that executors get to go by themselves at the end.
const DISMISS_NS: u64 = 2_000_000_000;

/// What is wrong with the config or a model directory.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`ModelError`].
    #[error(transparent)]
    Model(#[from] ModelError),
    /// More gpulets than there can be executors.
    #[error("{0}")]
    TooManyGpulets(&'static str),
}

/// Reads every model. One that is bad does not stop the others: it is said in the log, and whoever
/// asks for it is told why it failed.
pub(super) fn scan_models(config: &Config) -> Result<Scan, ConfigProblem> {
    let scan = scan_each(&config.models, &config.limits);
    for (_, problem) in &scan.errors {
        error!("{problem}");
    }
    if scan.errors.is_empty() {
        config.check_models(&scan.models)?;
    }
    Ok(scan)
}

impl Server {
    /// Makes executors and models what `self.config` and `scan` say they should be.
    pub(super) fn apply(&mut self, scan: Scan) -> Result<(), ConfigProblem> {
        let broken = scan.errors.into_iter().filter_map(|(name, error)| Some((name?, error)));
        self.dispatcher.models.broken =
            broken.map(|(name, error)| (name, error.to_string())).collect();
        self.apply_gpulets()?;
        self.apply_models(scan.models);
        self.place();
        self.settled = false;
        self.housekeeping_ns = 0;
        Ok(())
    }

    fn apply_gpulets(&mut self) -> Result<(), ConfigProblem> {
        let mut wanted = wanted(&self.config);
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            let same = |it: &Wanted| {
                it.gpulet.name == executor.gpulet.name
                    && it.start == executor.start
                    && it.environment == executor.environment
            };
            match wanted.iter().position(same) {
                Some(position) if !executor.retired => {
                    executor.gpulet = wanted.swap_remove(position).gpulet;
                }
                _ => executor.retired = true,
            }
        }
        for Wanted { gpulet, start, environment } in wanted {
            let mut executor = Executor::new(gpulet, start);
            executor.environment = environment;
            let added = self.dispatcher.executors.add(executor);
            added.ok_or(ConfigProblem::TooManyGpulets("more gpulets than executors can be"))?;
        }
        Ok(())
    }

    fn apply_models(&mut self, mut wanted: Vec<Model>) {
        let models = &mut self.dispatcher.models;
        let mut retired = Vec::new();
        for hosted in models.iter_mut().filter(|hosted| !hosted.retired) {
            match wanted.iter().position(|model| *model == hosted.model) {
                Some(position) => drop(wanted.swap_remove(position)),
                None => {
                    hosted.retired = true;
                    retired.push(hosted.id);
                }
            }
        }
        wanted.sort_by(|one, other| one.name.cmp(&other.name));
        for model in wanted {
            info!(model = model.name, "serving");
            models.add(model, self.config.limits.queue_max, REQUEUE_MAX);
        }
        for id in retired {
            self.dispatcher.flush_queue(id, Status::ModelRetired, now_ns());
        }
        self.dispatcher.publish();
    }

    /// Gives every model an instance in every executor whose gpulet hosts it.
    fn place(&mut self) {
        let executors = &mut self.dispatcher.executors;
        for hosted in self.dispatcher.models.iter_mut().filter(|it| !it.retired && !it.is_null()) {
            for (index, executor) in executors.iter_mut().filter(|(_, it)| !it.retired) {
                let wanted = executor.gpulet.models.contains(&hosted.model.name);
                let placed = hosted.instance_mut(index).is_some();
                if wanted && !placed {
                    hosted
                        .instances
                        .push(Instance { executor: index, state: InstanceState::Loading });
                    if executor.state == State::Running {
                        let model = Box::new(hosted.model.clone());
                        executor.tell(&ToExecutor::Load { instance: hosted.id, model }, &[]);
                    }
                } else if placed && !wanted {
                    // A batch of it that runs ends first: control messages wait for it.
                    executor.tell(&ToExecutor::Unload { instance: hosted.id }, &[]);
                    hosted.instances.retain(|instance| instance.executor != index);
                }
            }
        }
    }

    /// Reads config and models again; on any error everything stays as it is.
    pub(super) fn reload(&mut self) {
        info!(config = %self.config.path.display(), "reloading");
        let loaded = Config::load(&self.config.path).map_err(ConfigProblem::from);
        let read = loaded.and_then(|config| {
            let models = scan(&config.models, &config.limits)?;
            config.check_models(&models)?;
            Ok((config, models))
        });
        match read {
            Ok((mut config, models)) => {
                // The socket is bound for the daemon's life.
                config.socket.clone_from(&self.config.socket);
                self.dispatcher.entries_per_turn_max = config.limits.entries_per_turn_max;
                self.config = config;
                let scan = Scan { models, errors: Vec::new() };
                if let Err(problem) = self.apply(scan) {
                    error!("reload: {problem}");
                }
            }
            Err(problem) => {
                error!("reload failed, the old config stays: {problem}");
                self.notifier.status(format!("reload failed: {problem}"));
            }
        }
    }

    /// Starts executors whose time has come, and dismisses retired ones that are idle.
    pub(super) fn start_executors(&mut self, now_ns: u64) {
        let program = self.dispatcher.executors.program.clone();
        for (index, executor) in self.dispatcher.executors.iter_mut() {
            if executor.retired {
                if executor.batch.entries.is_empty()
                    && !matches!(executor.state, State::Dying | State::Gone)
                {
                    executor.dismiss();
                    // Without a process there is no end of one to wait for.
                    if executor.state == State::Gone {
                        forget_instances(&mut self.dispatcher.models, index);
                    }
                }
                continue;
            }
            let State::Waiting { until_ns } = executor.state else { continue };
            if until_ns > now_ns {
                continue;
            }
            let token = Token(EXECUTORS + 4 * index as usize);
            if let Err(error) = executor.spawn(&program, self.poll.registry(), token) {
                error!(gpulet = executor.gpulet.name, %error, "cannot start the executor");
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
        let gpulet = executor.gpulet.name.clone();
        match message {
            FromExecutor::Started { backend } => {
                info!(gpulet, backend, pid = executor.pid(), "executor running");
                executor.backend = backend;
                executor.state = State::Running;
                for hosted in self.dispatcher.models.iter_mut().filter(|it| !it.retired) {
                    let (id, model) = (hosted.id, hosted.model.clone());
                    let Some(instance) = hosted.instance_mut(index) else { continue };
                    if instance.state.should_load() {
                        instance.state = InstanceState::Loading;
                        let load = ToExecutor::Load { instance: id, model: Box::new(model) };
                        executor.tell(&load, &[]);
                    }
                }
            }
            FromExecutor::StartFailed { error } => {
                error!(gpulet, error, "the executor cannot start");
                self.fail_instances(index, &error);
            }
            FromExecutor::Loading { instance, step } => {
                tracing::debug!(gpulet, instance, step, "loading");
            }
            FromExecutor::Loaded { instance, points, load_ns, form, .. } => {
                let Some(hosted) = self.dispatcher.models.get_mut(instance) else { return };
                let name = hosted.model.name.clone();
                let load_ms = load_ns / 1_000_000;
                let points = points.first().map(Vec::as_slice).unwrap_or_default();
                let state = match LatencyProfile::new(&name, points) {
                    Ok(profile) => {
                        hosted.ever_ready = true;
                        info!(gpulet, model = name, form, load_ms, "model ready");
                        InstanceState::Ready(Box::new(profile))
                    }
                    Err(problem) => failed(format!("{name}: warm-up: {problem}"), false),
                };
                if let Some(instance) = hosted.instance_mut(index) {
                    instance.state = state;
                }
            }
            FromExecutor::LoadFailed { instance, error } => {
                let Some(hosted) = self.dispatcher.models.get_mut(instance) else { return };
                error!(gpulet, model = hosted.model.name, error, "model failed");
                if let Some(instance) = hosted.instance_mut(index) {
                    instance.state = failed(error, false);
                }
                if matches!(hosted.readiness(), Readiness::Failed(_)) {
                    self.dispatcher.flush_queue(instance, Status::ModelFailed, now_ns());
                    self.dispatcher.publish();
                }
            }
            FromExecutor::Faulted { error } => error!(gpulet, error, "the device faulted"),
            FromExecutor::Remeasured { .. }
            | FromExecutor::Prepared { .. }
            | FromExecutor::PrepareFailed { .. }
            | FromExecutor::Shared { .. } => {
                warn!(gpulet, "the executor answers what it was not asked");
                executor.kill();
            }
        }
        self.housekeeping_ns = 0;
    }

    fn fail_instances(&mut self, index: u32, error: &str) {
        for hosted in self.dispatcher.models.iter_mut() {
            if let Some(instance) = hosted.instance_mut(index) {
                instance.state = failed(error.to_owned(), true);
            }
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
        if was_running {
            self.blame_loading(index);
        }
        self.dispatcher.recover(index, now_ns);
        if gone {
            forget_instances(&mut self.dispatcher.models, index);
        }
        self.housekeeping_ns = 0;
        self.start_executors(now_ns);
    }

    /// An executor loads one model after the other: if it died while it had one to load, that one is
    /// not tried again, so that it cannot take the others down for ever.
    fn blame_loading(&mut self, index: u32) {
        let has_batch = |it: &Executor| !it.batch.entries.is_empty();
        if self.dispatcher.executors.get(index).is_some_and(has_batch) {
            return;
        }
        for hosted in self.dispatcher.models.iter_mut().filter(|it| !it.retired) {
            let name = hosted.model.name.clone();
            let Some(instance) = hosted.instance_mut(index) else { continue };
            if matches!(instance.state, InstanceState::Loading) {
                warn!(model = name, "an executor died while it loaded this model");
                let text = format!("{name}: the executor died while it loaded this model");
                instance.state = failed(text, false);
                return;
            }
        }
    }

    /// Forgets retired models that nobody runs any more.
    pub(super) fn retire_models(&mut self) {
        let idle = |it: &&crate::models::Hosted| it.retired && it.running_count == 0;
        let ids: Vec<u32> = self.dispatcher.models.iter().filter(idle).map(|it| it.id).collect();
        for id in ids {
            for (index, executor) in self.dispatcher.executors.iter_mut() {
                let hosted = self.dispatcher.models.get_mut(id);
                if hosted.and_then(|it| it.instance_mut(index)).is_some() {
                    executor.tell(&ToExecutor::Unload { instance: id }, &[]);
                }
            }
            self.dispatcher.models.remove(id);
        }
    }

    /// Tells systemd how many models are ready, and when all are that will be.
    pub(super) fn announce_readiness(&mut self) {
        let models = &self.dispatcher.models;
        let total = models.iter().filter(|it| !it.retired).count();
        let count = |readiness: fn(&Readiness) -> bool| {
            models.iter().filter(|it| !it.retired && readiness(&it.readiness())).count()
        };
        let ready = count(|it| *it == Readiness::Ready);
        let loading = count(|it| *it == Readiness::Loading);
        if loading == 0 && !self.settled {
            self.settled = true;
            info!(ready, failed = total - ready, "settled");
            self.notifier.ready();
        }
        if self.settled {
            self.notifier.status(format!("{ready} of {total} models ready"));
        } else {
            let status = format!("{ready} of {total} models ready, loading {loading}");
            self.notifier.starting(status, STARTING_EXTEND_NS);
        }
    }

    /// Lets every executor go, and ends those that do not.
    pub(super) fn dismiss_executors(&mut self) {
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            executor.retired = true;
            if executor.batch.entries.is_empty() { executor.dismiss() } else { executor.kill() }
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

/// The models have nothing in an executor that will not come back.
fn forget_instances(models: &mut Models, executor: u32) {
    for hosted in models.iter_mut() {
        hosted.instances.retain(|instance| instance.executor != executor);
    }
}

fn failed(error: String, retry: bool) -> InstanceState {
    InstanceState::Failed { error, retry }
}
