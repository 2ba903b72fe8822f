//! Idle gpulets lent to guests.
//!
//! A gpulet's own models always go first: it is lent only when none of them has a batch for it, and
//! for no longer than they can wait.

use gpulet_plan::policy::{self, Borrowed, Home, borrow, is_short};

use super::Dispatcher;
use super::batches::Closing;
use crate::executor::{Executor, ExecutorSet};
use crate::gpulet::{Gpulet, GpuletId};
use crate::models::{Hosted, Models, Role};
use crate::request::Suspicion;

impl Dispatcher {
    /// Lets models run batches as guests whose own gpulets would lose requests. Returns how many.
    pub(super) fn lend(&mut self, held: ExecutorSet, now_ns: u64) -> usize {
        let short = |hosted: &Hosted| {
            let waits = !hosted.queue.is_empty() && hosted.is_guest();
            waits && is_short(&hosted.queue, &hosted.limits, self.home(hosted), now_ns)
        };
        if !self.models.iter().any(short) {
            return 0;
        }
        let mut lent = 0;
        for executor in 0..self.executors.len() {
            let Some(host) = self.executors.get(executor).filter(|it| it.takes_batches()) else {
                continue;
            };
            for index in 0..host.gpulets.len() as u32 {
                let gpulet = GpuletId { executor, index };
                let idle = self.executors.gpulet(gpulet).is_some_and(Gpulet::is_idle);
                // Not while it waits for another row of its own.
                if idle
                    && !(self.defer && self.next_turn(gpulet, held, now_ns).is_some())
                    && let Some((model, closing)) = self.next_guest(gpulet, held, now_ns)
                {
                    self.send_batch(gpulet, model, &closing, now_ns);
                    lent += 1;
                }
            }
        }
        lent
    }

    /// The guest whose batch must start first on an idle gpulet, of those that need one.
    fn next_guest(
        &self,
        gpulet: GpuletId,
        held: ExecutorSet,
        now_ns: u64,
    ) -> Option<(u32, Closing)> {
        // What was suspected runs where it is at home.
        let guests = self.models.iter().filter(|hosted| {
            hosted.profile(gpulet, Role::Guest).is_some()
                && !hosted.queue.is_empty()
                && hosted.has_requeue_room()
                && self.front_suspicion(hosted) == Suspicion::None
                && self.may_share(held, gpulet.executor, Suspicion::None)
        });
        let lent_ns = lent_ns(&self.models, gpulet);
        let batch = |hosted: &Hosted| -> Option<(u32, Borrowed)> {
            let profile = hosted.profile(gpulet, Role::Guest)?;
            let home = self.home(hosted);
            let borrowed = borrow(&hosted.queue, &hosted.limits, home, now_ns, lent_ns, profile)?;
            Some((hosted.id, borrowed))
        };
        let batches = guests.filter_map(batch);
        let (model, Borrowed { count, rows, latest_start_ns }) =
            batches.min_by_key(|(_, batch)| batch.latest_start_ns)?;
        let hosted = self.models.get(model)?;
        let profile = hosted.profile(gpulet, Role::Guest)?;
        Some((model, self.closing(hosted, profile, count, rows, latest_start_ns)))
    }

    /// The gpulets where a model is at home; `None` if none of them takes batches.
    fn home<'a>(&self, hosted: &'a Hosted) -> Option<Home<'a>> {
        let mut home: Option<Home<'a>> = None;
        for (gpulet, profile) in hosted.homes() {
            if !self.executors.get(gpulet.executor).is_some_and(Executor::takes_batches) {
                continue;
            }
            let free_ns = self.executors.gpulet(gpulet).map_or(0, Gpulet::busy_until_ns);
            let executors = home.map_or(0, |it| it.executors) + 1;
            home = match home {
                Some(first) if first.free_ns <= free_ns => Some(Home { executors, ..first }),
                _ => Some(Home { executors, free_ns, profile }),
            };
        }
        home
    }
}

/// The longest that a guest may have a gpulet, for the sake of the models at home there.
pub(super) fn lent_ns(models: &Models, gpulet: GpuletId) -> u64 {
    let own = models.iter().filter_map(|hosted| {
        let profile = hosted.profile(gpulet, Role::Home)?;
        Some(policy::lent_ns(hosted.model.slo_ns, &hosted.limits, profile))
    });
    own.min().unwrap_or(u64::MAX)
}
