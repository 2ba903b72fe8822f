//! Requests that a process or a device died on.
//!
//! Everything that was under way there is lost, and one request of it may be to blame. So each runs
//! again alone: nothing else is under way in the process, or on the device, that went down. Whoever is
//! lost a second time is known to be to blame, and given up; nobody else is ever lost with it.
//!
//! The one that is due first runs first, of all that would go down together, even where its executor is
//! not back as soon as another's: or the one to blame would often have the innocent wait for a second
//! restart.
//!
//! While such a request waits, what it needs for itself takes nothing new, or it would wait for ever.

use gpulet_plan::queue::DeadlineQueue;

use super::Dispatcher;
use crate::executor::{Executor, ExecutorSet, Executors};
use crate::gpulet::Gpulet;
use crate::models::{Hosted, Instance, InstanceState, Role};
use crate::request::{RequestId, Suspicion};
use crate::session::{Session, Sessions};

impl Dispatcher {
    /// Executors that are, or are about to be, the place of such a request alone.
    pub(super) fn held(&mut self) -> ExecutorSet {
        let mut held = ExecutorSet::default();
        if !self.suspects {
            return held;
        }
        for (index, executor) in self.executors.iter() {
            for batch in executor.gpulets.iter().flat_map(Gpulet::batches) {
                hold(&mut held, &self.executors, index, batch.suspicion);
            }
        }
        for hosted in self.models.iter() {
            let suspicion = front(&hosted.queue, &self.sessions);
            if suspicion != Suspicion::None
                && let Some(index) = best_host(hosted, &self.executors)
            {
                hold(&mut held, &self.executors, index, suspicion);
            }
        }
        self.suspects = self.sessions.iter().any(Session::has_suspects);
        held
    }

    /// Whether a request may be sent to an executor for its suspicion's sake.
    pub(super) fn may_share(&self, held: ExecutorSet, executor: u32, suspicion: Suspicion) -> bool {
        if suspicion == Suspicion::None {
            return !held.contains(executor);
        }
        let alone = |(index, other): (u32, &Executor)| {
            other.is_idle() || !in_scope(&self.executors, executor, suspicion, index)
        };
        held.contains(executor) && self.executors.iter().all(alone)
    }

    /// The suspicion of the first request in a queue.
    pub(super) fn front_suspicion(&self, hosted: &Hosted) -> Suspicion {
        if self.suspects { front(&hosted.queue, &self.sessions) } else { Suspicion::None }
    }

    /// Whether a model's suspect must wait, before it runs in an executor, for one of another model
    /// that is due earlier and would go down with it.
    pub(super) fn must_wait(&self, hosted: &Hosted, executor: u32) -> bool {
        let suspicion = self.front_suspicion(hosted);
        let due = |hosted: &Hosted| Some((hosted.queue.front()?.deadline_ns, hosted.id));
        let comes_first = |other: &Hosted| {
            let theirs = self.front_suspicion(other);
            let beside = |index: u32| {
                in_scope(&self.executors, executor, suspicion, index)
                    || in_scope(&self.executors, index, theirs, executor)
            };
            let mut hosts = homes_to_come(other, &self.executors);
            theirs != Suspicion::None && due(other) < due(hosted) && hosts.any(beside)
        };
        suspicion != Suspicion::None && self.models.iter().any(comes_first)
    }

    /// How many of the first `count` requests of a queue make a batch: the first if it is suspect,
    /// else those before the first that is.
    pub(super) fn unsuspected(&self, hosted: &Hosted, count: u32) -> u32 {
        if !self.suspects {
            return count;
        }
        let suspect = |id: RequestId| suspicion_of(&self.sessions, id) != Suspicion::None;
        let mut first = hosted.queue.iter().take(count as usize);
        first.position(|entry| suspect(entry.payload)).map_or(count, |place| (place as u32).max(1))
    }
}

fn suspicion_of(sessions: &Sessions, id: RequestId) -> Suspicion {
    let request = sessions.get(id.session).and_then(|session| session.request(id.slot));
    request.map_or(Suspicion::None, |request| request.suspicion)
}

fn front(queue: &DeadlineQueue<RequestId>, sessions: &Sessions) -> Suspicion {
    queue.front().map_or(Suspicion::None, |entry| suspicion_of(sessions, entry.payload))
}

/// The executor in which a model's suspect is to run: where it is done soonest.
fn best_host(hosted: &Hosted, executors: &Executors) -> Option<u32> {
    let rows = hosted.queue.front()?.rows;
    let takes_batches = |executor| executors.get(executor).is_some_and(Executor::takes_batches);
    let hosts = hosted.homes().filter(|(gpulet, _)| takes_batches(gpulet.executor));
    let latency_ns = hosts.map(|(gpulet, profile)| (profile.latency_ns(rows), gpulet.executor));
    latency_ns.min().map(|(_, executor)| executor)
}

/// Executors in which a model is at home, or will be when they are back.
fn homes_to_come(hosted: &Hosted, executors: &Executors) -> impl Iterator<Item = u32> {
    let failed = |it: &Instance| matches!(it.state, InstanceState::Failed { .. });
    let homes = hosted.instances.iter().filter(move |it| it.role == Role::Home && !failed(it));
    let indices = homes.map(|it| it.gpulet.executor);
    indices.filter(|index| executors.get(*index).is_some_and(|it| !it.retired && !it.keeps_dying()))
}

fn hold(held: &mut ExecutorSet, executors: &Executors, index: u32, suspicion: Suspicion) {
    if suspicion == Suspicion::None {
        return;
    }
    for (other, _) in executors.iter() {
        if in_scope(executors, index, suspicion, other) {
            held.insert(other);
        }
    }
}

/// Whether what runs in `other` goes down with what is suspected in `index`.
fn in_scope(executors: &Executors, index: u32, suspicion: Suspicion, other: u32) -> bool {
    let device = |index| executors.get(index).and_then(|it| it.device.as_deref());
    let same_device = device(index).is_some() && device(index) == device(other);
    index == other || suspicion == Suspicion::Device && same_device
}
