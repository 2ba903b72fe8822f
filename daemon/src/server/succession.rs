//! Executors become what the config says they should be, without a gap.
//!
//! An executor that changed gets a *successor* of the same name. It starts and loads while the old one
//! serves, and takes no batches until it is as ready as the old one: then it takes all new ones, and
//! the old one drains and goes. Successors on one device take over together: if a share that grows came
//! before another one shrank, both would run on the same multiprocessors. Where only shares changed and
//! the executor splits its device itself, nobody is replaced ([`sharing`](super::sharing)).

use tracing::{error, info, warn};

use super::Server;
use super::lifecycle::ConfigProblem;
use super::starts::Wanted;
use crate::executor::{Executor, State};
use crate::gpulet::Gpulet;
use crate::models::{Hosted, Instance, InstanceState};
use crate::wire::{Backend, Start};

/// Sessions that a successor is told of beforehand: its socket holds 277 of these messages while it
/// does not listen, and who does not take one counts as lost.
const INTRODUCED_MAX: usize = 64;

impl Server {
    /// Keeps, changes, replaces, adds and retires executors.
    pub(super) fn reconcile(&mut self, wanted: Vec<Wanted>) -> Result<(), ConfigProblem> {
        let mut kept = Vec::new();
        let mut fresh = Vec::new();
        for wanted in wanted {
            match self.incumbent(&wanted, &kept) {
                Some(old) => {
                    kept.push(old);
                    if let Some(successor) = self.adapt(old, &wanted) {
                        fresh.push((wanted, Some(successor)));
                    }
                }
                None => fresh.push((wanted, None)),
            }
        }
        let executors = &mut self.dispatcher.executors;
        for (index, executor) in executors.iter_mut() {
            executor.retired |= executor.replaces.is_none() && !kept.contains(&index);
        }
        for (wanted, replaces) in fresh {
            let mut executor = Executor::new(wanted.gpulets, wanted.start);
            (executor.environment, executor.device) = (wanted.environment, wanted.device);
            // Whom nobody waits for need not wait for anybody.
            executor.replaces =
                replaces.filter(|old| executors.get(*old).is_some_and(|it| !it.retired));
            let added = executors.add(executor);
            added.ok_or(ConfigProblem::TooManyGpulets("more gpulets than executors can be"))?;
        }
        self.retire_orphans();
        Ok(())
    }

    /// The executor that is what `wanted` should be, or comes closest.
    fn incumbent(&self, wanted: &Wanted, taken: &[u32]) -> Option<u32> {
        let closeness = |executor: &Executor| {
            let Start { backend, .. } = &executor.start;
            (same(executor, wanted), *backend == wanted.start.backend)
        };
        let executors = self.dispatcher.executors.iter();
        executors
            .filter(|(index, it)| !taken.contains(index) && !it.retired && it.replaces.is_none())
            .filter(|(_, it)| it.state != State::Gone && it.name() == wanted.start.executor)
            .max_by_key(|(_, it)| closeness(it))
            .map(|(index, _)| index)
    }

    /// Has an executor, or its successor, be what is wanted, as far as it can be without another
    /// process. Returns the executor if it is to be replaced.
    fn adapt(&mut self, old: u32, wanted: &Wanted) -> Option<u32> {
        let executors = &mut self.dispatcher.executors;
        let successor = executors.successor_of(old);
        if let Some(successor) = successor.and_then(|index| executors.get_mut(index)) {
            if same(successor, wanted) {
                take_configs(successor, wanted);
                return None;
            }
            info!(executor = successor.name(), "the successor is not wanted any more");
            successor.retired = true;
            successor.replaces = None;
        }
        let executor = executors.get_mut(old)?;
        if same(executor, wanted) || only_shares_differ(executor, wanted) {
            take_configs(executor, wanted);
            executor.start = wanted.start.clone();
            executor.refused_pct = None;
            return None;
        }
        // Without a process, or with one that is not ready, there is nothing to be kept.
        executor.retired = executor.state != State::Running;
        Some(old)
    }

    /// Who was to replace an executor that the config does not have any more is not wanted either.
    fn retire_orphans(&mut self) {
        let executors = &mut self.dispatcher.executors;
        for index in 0..executors.len() {
            let Some(old) = executors.get(index).and_then(|it| it.replaces) else { continue };
            let gone = executors.get(old).is_none_or(|it| it.retired);
            if let Some(executor) = executors.get_mut(index).filter(|_| gone) {
                executor.replaces = None;
                executor.retired = true;
            }
        }
    }

    /// Has a successor map what clients share with the old one, so that the first batches need not wait
    /// for it. Where there are many, the others are told of with their first batch.
    pub(super) fn introduce_sessions(&mut self, index: u32) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let Some(old) = executor.replaces else { return };
        let sessions = self.dispatcher.sessions.iter_mut();
        let known = sessions.filter(|it| it.mapped.contains(old) && !it.is_over());
        known.take(INTRODUCED_MAX).for_each(|session| session.introduce(index, executor));
    }

    /// Lets successors take over that are ready to, and gives those up that never will be.
    pub(super) fn hand_over(&mut self) {
        let (mut ready, mut awaited) = (Vec::new(), Vec::new());
        for index in 0..self.dispatcher.executors.len() {
            let Some(executor) = self.dispatcher.executors.get(index) else { continue };
            let Some(old) = executor.replaces else { continue };
            let device = executor.device.clone();
            match self.readiness(index, old) {
                Successor::Ready => ready.push((index, old, device)),
                Successor::Lacks(model) => self.give_up(index, &model),
                // One that was lost may never come.
                Successor::Loading if executor.restart_count > 0 => {}
                Successor::Loading => awaited.extend(device),
            }
        }
        for (index, old, device) in ready {
            if device.is_none_or(|device| !awaited.contains(&device)) {
                self.succeed(index, old);
            }
        }
    }

    /// What a successor and its models say.
    fn readiness(&self, index: u32, old: u32) -> Successor {
        let executor = self.dispatcher.executors.get(index);
        if executor.is_none_or(|executor| executor.state != State::Running) {
            return Successor::Loading;
        }
        let in_executor = |hosted: &Hosted, executor: u32| {
            let mut instances = hosted.instances.iter();
            let here = |it: &&Instance| it.gpulet.executor == executor;
            instances.find(here).map(|it| readiness_of(&it.state))
        };
        for hosted in self.dispatcher.models.iter().filter(|it| !it.retired) {
            match in_executor(hosted, index) {
                Some(Warm::NotYet) => return Successor::Loading,
                // What the old one has not either is nobody's loss.
                Some(Warm::Never) if in_executor(hosted, old) == Some(Warm::Yes) => {
                    return Successor::Lacks(hosted.model.name.clone());
                }
                _ => {}
            }
        }
        Successor::Ready
    }

    fn succeed(&mut self, index: u32, old: u32) {
        let executors = &mut self.dispatcher.executors;
        if let Some(executor) = executors.get_mut(index) {
            info!(executor = executor.name(), pid = executor.pid(), "the successor takes over");
            executor.replaces = None;
        }
        if let Some(executor) = executors.get_mut(old) {
            executor.retired = true;
        }
        self.place();
        self.housekeeping_ns = 0;
    }

    fn give_up(&mut self, index: u32, model: &str) {
        if let Some(executor) = self.dispatcher.executors.get_mut(index) {
            error!(
                executor = executor.name(),
                model, "the successor cannot have this model: the executor stays as it is"
            );
            executor.retired = true;
            executor.replaces = None;
        }
        self.housekeeping_ns = 0;
    }

    /// An executor that is being replaced is gone: its successor serves as soon as it can.
    pub(super) fn inherit(&mut self, old: u32) {
        let executors = &mut self.dispatcher.executors;
        let Some(successor) = executors.successor_of(old) else { return };
        if let Some(executor) = executors.get_mut(old) {
            warn!(executor = executor.name(), "lost while its successor was getting ready");
            executor.retired = true;
        }
        if let Some(executor) = executors.get_mut(successor) {
            executor.replaces = None;
        }
        self.place();
    }
}

/// How far a successor is.
enum Successor {
    Loading,
    Ready,
    /// It could not load what the old one has.
    Lacks(String),
}

#[derive(PartialEq)]
enum Warm {
    Yes,
    NotYet,
    Never,
}

fn readiness_of(state: &InstanceState) -> Warm {
    match state {
        InstanceState::Ready(_) => Warm::Yes,
        InstanceState::Failed { retry: false, .. } => Warm::Never,
        InstanceState::Waiting | InstanceState::Loading | InstanceState::Failed { .. } => {
            Warm::NotYet
        }
    }
}

fn same(executor: &Executor, wanted: &Wanted) -> bool {
    executor.start == wanted.start && executor.environment == wanted.environment
}

/// Whether an executor that splits its device could be what is wanted by other shares alone.
fn only_shares_differ(executor: &Executor, wanted: &Wanted) -> bool {
    let splits = match &wanted.start.backend {
        Backend::Cuda(cuda) => cuda.split,
        Backend::Replay { .. } => wanted.device.is_some(),
        Backend::Torch { .. } => false,
    };
    let mut start = executor.start.clone();
    if start.gpulets.len() != wanted.start.gpulets.len() {
        return false;
    }
    for (gpulet, wanted) in start.gpulets.iter_mut().zip(&wanted.start.gpulets) {
        gpulet.share_pct = wanted.share_pct;
    }
    splits && start == wanted.start && executor.environment == wanted.environment
}

fn take_configs(executor: &mut Executor, wanted: &Wanted) {
    let gpulets = executor.gpulets.iter_mut();
    gpulets.zip(&wanted.gpulets).for_each(|(gpulet, config): (&mut Gpulet, _)| {
        gpulet.config = config.clone();
    });
}
