//! Which models are where: what the config wants, what executors are told for it.

use tracing::info;

use super::Server;
use crate::clock::now_ns;
use crate::executor::{Executor, Sharing, State};
use crate::gpulet::{Gpulet, GpuletId};
use crate::models::{Hosted, Instance, InstanceState, Models, Role};
use crate::wire::{Manner, ToExecutor};

/// Loads that an executor is told ahead of its answers. It loads one after the other, and its socket
/// does not hold those of a thousand models: who did not read them at once would count as lost.
const LOADS_AHEAD: usize = 16;

impl Server {
    /// Gives every model an instance in every gpulet of an executor that is to have it, and has the
    /// others forgotten. Who is about to be replaced gets no new ones.
    pub(super) fn place(&mut self) {
        let executors = &mut self.dispatcher.executors;
        for hosted in self.dispatcher.models.iter_mut().filter(|it| !it.is_null()) {
            for (executor, host) in executors.iter().filter(|(_, it)| it.state != State::Gone) {
                let placed = hosted.instances_in(executor).next().is_some();
                let leaves = executors.successor_of(executor).is_some();
                if !placed && !leaves && is_wanted(hosted, host) {
                    let ids =
                        (0..host.gpulets.len() as u32).map(|index| GpuletId { executor, index });
                    let instance = |gpulet| Instance {
                        gpulet,
                        role: Role::Closed,
                        state: InstanceState::Waiting,
                    };
                    hosted.instances.extend(ids.map(instance));
                }
                let role = |gpulet: &Gpulet| match is_wanted_at(hosted, host, gpulet) {
                    true if host.replaces.is_some() => Role::Closed,
                    true if gpulet.config.models.contains(&hosted.model.name) => Role::Home,
                    true => Role::Guest,
                    false => Role::Closed,
                };
                let roles: Vec<Role> = host.gpulets.iter().map(role).collect();
                for instance in hosted.instances_in(executor) {
                    instance.role = roles[instance.gpulet.index as usize];
                }
            }
        }
        for index in 0..self.dispatcher.executors.len() {
            self.change_shares(index);
            self.tell_loads(index);
        }
        for model in self.dispatcher.models.live().to_vec() {
            self.answer_hopeless(model);
        }
        self.unload_closed();
    }

    /// Has a running executor load what it is to have and was not told yet, or the first of it: each
    /// answer makes room for the next.
    pub(super) fn tell_loads(&mut self, index: u32) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        if executor.state != State::Running
            || executor.retired
            || executor.sharing != Sharing::Settled
        {
            return;
        }
        let loads = |it: &Instance| {
            it.gpulet.executor == index && matches!(it.state, InstanceState::Loading)
        };
        let models = &mut self.dispatcher.models;
        let mut told = models.iter().filter(|it| it.instances.iter().any(loads)).count();
        for hosted in models.iter_mut() {
            if told >= LOADS_AHEAD {
                break;
            }
            let waits = |it: &mut Instance| matches!(it.state, InstanceState::Waiting);
            if !is_wanted(hosted, executor) || !hosted.instances_in(index).any(waits) {
                continue;
            }
            for instance in hosted.instances_in(index) {
                instance.state = InstanceState::Loading;
            }
            executor.heard_ns = now_ns();
            let model = Box::new(hosted.model.clone());
            let manner = match executor.replaces {
                // It is to be as fast as who it replaces, and who serves until then.
                Some(_) => Manner::Beside,
                None if self.settled => Manner::Soon,
                // At the daemon's start nobody asks yet.
                None => Manner::Whole,
            };
            executor.tell(&ToExecutor::Load { instance: hosted.id, model, manner }, &[]);
            told += 1;
        }
    }

    /// Has executors unload models that are wanted in none of their gpulets, once no batch names them,
    /// and forgets retired models that are nowhere any more.
    pub(super) fn unload_closed(&mut self) {
        let mut nowhere = Vec::new();
        for hosted in self.dispatcher.models.iter_mut() {
            for (index, executor) in self.dispatcher.executors.iter_mut() {
                if executor.retired {
                    // It forgets everything when it goes.
                    continue;
                }
                unload_from(hosted, index, executor);
            }
            if hosted.retired && hosted.running_count == 0 && hosted.instances.is_empty() {
                nowhere.push(hosted.id);
            }
        }
        for id in nowhere {
            self.dispatcher.models.remove(id);
        }
    }
}

fn unload_from(hosted: &mut Hosted, index: u32, executor: &mut Executor) {
    let mut placed = false;
    for instance in hosted.instances_in(index) {
        placed = true;
        // What is being loaded is waited for: the answer must have somebody to go to.
        if matches!(instance.state, InstanceState::Loading) {
            return;
        }
    }
    if is_wanted(hosted, executor) {
        return;
    }
    let of_model = |gpulet: &Gpulet| gpulet.batches().any(|batch| batch.model == hosted.id);
    if !placed || executor.gpulets.iter().any(of_model) {
        return;
    }
    let warm = |it: &Instance| matches!(it.state, InstanceState::Ready(_));
    if hosted.instances_in(index).any(|it| warm(it)) {
        info!(executor = executor.name(), model = hosted.model.name, "unloading");
        executor.tell(&ToExecutor::Unload { instance: hosted.id }, &[]);
    }
    hosted.instances.retain(|instance| instance.gpulet.executor != index);
}

/// Whether the config has a model in one of an executor's gpulets.
fn is_wanted(hosted: &Hosted, executor: &Executor) -> bool {
    executor.gpulets.iter().any(|gpulet| is_wanted_at(hosted, executor, gpulet))
}

fn is_wanted_at(hosted: &Hosted, executor: &Executor, gpulet: &Gpulet) -> bool {
    !hosted.retired && !executor.retired && gpulet.config.hosts(&hosted.model.name)
}

/// The models have nothing in an executor that will not come back.
pub(super) fn forget_instances(models: &mut Models, executor: u32) {
    for hosted in models.iter_mut() {
        hosted.instances.retain(|instance| instance.gpulet.executor != executor);
    }
}
