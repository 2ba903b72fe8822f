//! What must hold between any two calls of the dispatcher.

use gpulet_daemon::dispatch::Dispatcher;
use gpulet_daemon::executor::Executor;
use gpulet_daemon::gpulet::{Batch, Gpulet};
use gpulet_daemon::request::Suspicion;
use gpulet_daemon::session::Session;
use gpulet_daemon::wire::{DEPTH_MAX, EXECUTOR_GPULETS_MAX};

use super::honest::Honest;

/// Every request is in exactly one place, and every count agrees with every other.
pub(super) fn books(dispatcher: &Dispatcher, honest: &Honest) {
    let mut queued_count = 0;
    for session in dispatcher.sessions.iter() {
        session_books(session);
        queued_count += session.queued().len();
    }
    let in_queues: usize = dispatcher.models.iter().map(|hosted| hosted.queue.len()).sum();
    assert_eq!(queued_count, in_queues, "queues and sessions disagree");
    let batches: Vec<&Batch> = dispatcher
        .executors
        .iter()
        .flat_map(|(_, executor)| executor.gpulets.iter().flat_map(Gpulet::batches))
        .collect();
    let running_count: usize = batches.iter().map(|batch| batch.entries.len()).sum();
    let in_flight: u32 = dispatcher.in_flight();
    assert_eq!(in_flight as usize, queued_count + running_count, "a request is nowhere");
    for hosted in dispatcher.models.iter() {
        let of_model = batches.iter().filter(|batch| batch.model == hosted.id);
        let (batch_count, request_count) = of_model
            .fold((0, 0), |(batches, requests), it| (batches + 1, requests + it.entries.len()));
        assert_eq!(hosted.running_count, batch_count, "batches of {}", hosted.model.name);
        assert_eq!(hosted.running_requests as usize, request_count);
        assert!(hosted.running_requests <= hosted.requeue_max);
        assert!(hosted.queue.len() <= hosted.queue.capacity() as usize);
    }
    for batch in batches {
        let rows: u32 = batch.entries.iter().map(|entry| entry.rows).sum();
        assert_eq!(rows, batch.rows);
        let max_batch = dispatcher.models.get(batch.model).map(|hosted| hosted.model.max_batch);
        assert!(max_batch.is_some_and(|max_batch| rows <= max_batch), "a batch of too many rows");
    }
    for (_, executor) in dispatcher.executors.iter() {
        alone(executor);
    }
    let session = dispatcher.sessions.get(honest.index);
    assert!(session.is_some_and(|session| !session.is_over()), "the honest session was ended");
}

/// A request that something died on has its process to itself.
fn alone(executor: &Executor) {
    let batches: Vec<&Batch> = executor.gpulets.iter().flat_map(Gpulet::batches).collect();
    if batches.iter().any(|batch| batch.suspicion != Suspicion::None) {
        assert_eq!((batches.len(), batches[0].entries.len()), (1, 1));
    }
}

fn session_books(session: &Session) {
    let in_flight = session.in_flight();
    assert!(in_flight <= session.geometry.slot_count, "more requests than slots");
    let slots = 0..session.geometry.slot_count;
    let held = slots.filter(|slot| session.request(*slot).is_some()).count();
    assert_eq!(held, in_flight as usize);
    let accounted = session.completed_count + u64::from(in_flight);
    if session.is_over() {
        assert!(accounted <= session.submitted_count);
    } else {
        assert_eq!(accounted, session.submitted_count, "not every submission has one answer");
    }
}

/// A turn is bounded, whatever clients write.
pub(super) fn work(dispatcher: &Dispatcher, work: usize) {
    let sessions = dispatcher.sessions.live().len();
    let taken_max = sessions * dispatcher.entries_per_turn_max as usize;
    let slots: u32 = dispatcher.sessions.iter().map(|session| session.geometry.slot_count).sum();
    // Each request can expire once a turn, each executor fill its reports, and each gpulet its depth.
    let rings = dispatcher.executors.len() as usize * EXECUTOR_GPULETS_MAX * DEPTH_MAX;
    let gpulets: usize = dispatcher.executors.iter().map(|(_, it)| it.gpulets.len()).sum();
    assert!(work <= taken_max + slots as usize + rings + gpulets * DEPTH_MAX);
}
