//! Sessions: the daemon's end of a client's region.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::layout::{Completion, Submission};
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_plan::queue::Ticket;

use crate::executor::{Executor, ExecutorSet};
use crate::request::{Request, Stage, Suspicion, Timing};
use crate::wire::{RegionGeometry, ToExecutor};

/// One client's region and what is in flight in it.
#[derive(Debug)]
pub struct Session {
    /// As the welcome and the log name it; never reused.
    pub id: u64,
    /// As executors name its region; never reused.
    pub region_number: u32,
    /// The user it counts for.
    pub uid: u32,
    /// Its process when it connected.
    pub pid: i32,
    /// Where everything lies in its region.
    pub geometry: Geometry,
    /// Executors that have the region mapped.
    pub mapped: ExecutorSet,
    /// Submissions, as the client writes them.
    pub submissions: Consumer<MappedRing, Submission>,
    /// What the client signals when it finds us asleep.
    pub bell: Doorbell,
    /// Requests ever taken.
    pub submitted_count: u64,
    /// Completions ever written.
    pub completed_count: u64,
    region: Region,
    region_fd: OwnedFd,
    completions: Producer<MappedRing, Completion>,
    answer_bell: Doorbell,
    requests: Box<[Option<Request>]>,
    in_flight: u32,
    over: bool,
}

/// The descriptors that a client gets with its welcome.
#[derive(Debug)]
pub struct Descriptors {
    /// The region.
    pub region: OwnedFd,
    /// What the client signals.
    pub submission_bell: OwnedFd,
    /// What the daemon signals.
    pub completion_bell: OwnedFd,
}

impl Session {
    fn create(
        id: u64,
        region_number: u32,
        (uid, pid): (u32, i32),
        geometry: Geometry,
    ) -> io::Result<(Session, Descriptors)> {
        let (region, region_fd) = Region::create(geometry)?;
        let bell = Doorbell::new()?;
        // A client could have a signal to its own eventfd block the daemon.
        let (answer_bell, completion_bell) = Doorbell::one_way()?;
        let descriptors = Descriptors {
            region: region_fd.try_clone()?,
            submission_bell: bell.try_clone()?,
            completion_bell,
        };
        let session = Session {
            id,
            region_number,
            uid,
            pid,
            geometry,
            mapped: ExecutorSet::default(),
            submissions: region.submission_consumer(),
            completions: region.completion_producer(),
            bell,
            submitted_count: 0,
            completed_count: 0,
            region,
            region_fd,
            answer_bell,
            requests: vec![None; geometry.slot_count as usize].into_boxed_slice(),
            in_flight: 0,
            over: false,
        };
        Ok((session, descriptors))
    }

    /// Requests taken and not yet answered.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Whether it was ended; only what executors still hold keeps it here.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Has an executor map the region, unless it has.
    pub fn introduce(&mut self, index: u32, executor: &mut Executor) {
        if self.mapped.contains(index) {
            return;
        }
        self.mapped.insert(index);
        let geometry = RegionGeometry::from(&self.geometry);
        let map = ToExecutor::Map { region: self.region_number, geometry };
        executor.tell(&map, &[self.region_fd.as_fd()]);
    }

    /// The request in flight in a slot.
    pub fn request(&self, slot: u32) -> Option<&Request> {
        self.requests[slot as usize].as_ref()
    }

    /// The request in flight in a slot.
    pub fn request_mut(&mut self, slot: u32) -> Option<&mut Request> {
        self.requests[slot as usize].as_mut()
    }

    /// Whether the ring has room for the completions of all that is in flight and of one more.
    ///
    /// An honest client that submits never makes this false: the ring holds an answer to each of its
    /// slots. Where all of them are in flight, what comes next is a cancellation, which has no
    /// completion of its own, or breaks a rule.
    ///
    /// # Errors
    /// The name of the broken rule, if the client's cursor is impossible.
    #[inline]
    pub fn can_take_one(&mut self) -> Result<bool, &'static str> {
        self.completions
            .has_room((self.in_flight + 1).min(self.geometry.slot_count))
            .map_err(|_| "the completion ring's head is out of range")
    }

    /// Whether one of its requests in flight is suspected of something.
    pub fn has_suspects(&self) -> bool {
        self.requests.iter().flatten().any(|request| request.suspicion != Suspicion::None)
    }

    /// Puts a request in flight in a slot that has none.
    pub fn begin(&mut self, slot: u32, request: Request) {
        debug_assert!(self.requests[slot as usize].is_none());
        self.requests[slot as usize] = Some(request);
        self.in_flight += 1;
    }

    /// Ends the request in flight in a slot, with its completion.
    pub fn finish(&mut self, slot: u32, status: Status, timing: Timing, now_ns: u64) {
        let Some(request) = self.requests[slot as usize].take() else { return };
        self.in_flight -= 1;
        self.post(&request.answer(slot, status, timing, now_ns));
    }

    /// Stages a completion; the client sees it after [`publish`](Self::publish).
    #[inline]
    pub fn post(&mut self, completion: &Completion) {
        if self.over {
            return;
        }
        self.completed_count += 1;
        // Room was reserved by `can_take_one`; only a client that moves its cursor back loses an
        // answer here, its own.
        let _ = self.completions.push(completion);
    }

    /// Shows the client every staged completion, and frees the submissions that were read.
    #[inline]
    pub fn publish(&mut self) {
        self.submissions.release();
        if self.completions.commit() {
            // It fails only if the client closed its end, and then it does not want to be woken.
            let _ = self.answer_bell.signal();
        }
    }

    /// Ends the session: nothing is read or answered any more, and the client can see why.
    pub fn end(&mut self, status: Status) {
        self.over = true;
        self.region.end(status);
        let _ = self.answer_bell.signal();
    }

    /// The slots whose requests wait in a queue, with the model and the ticket of each.
    pub fn queued(&self) -> Vec<(u32, u32, Ticket)> {
        let queued = |(slot, request): (usize, &Option<Request>)| match request {
            Some(Request { model, stage: Stage::Queued(ticket), .. }) => {
                Some((slot as u32, *model, *ticket))
            }
            _ => None,
        };
        self.requests.iter().enumerate().filter_map(queued).collect()
    }
}

/// All sessions, by an index that is reused.
#[derive(Debug, Default)]
pub struct Sessions {
    table: Vec<Option<Session>>,
    live: Vec<u32>,
    next_id: u64,
    region_bytes: u64,
}

impl Sessions {
    /// Creates a session; returns its index and what its client gets.
    ///
    /// # Errors
    /// What the kernel says, such as too many descriptors.
    pub fn create(
        &mut self,
        peer: (u32, i32),
        geometry: Geometry,
    ) -> io::Result<(u32, Descriptors)> {
        self.next_id += 1;
        let region_number = self.next_id as u32;
        let (session, descriptors) = Session::create(self.next_id, region_number, peer, geometry)?;
        let free = self.table.iter().position(Option::is_none);
        let index = free.unwrap_or_else(|| {
            self.table.push(None);
            self.table.len() - 1
        });
        self.table[index] = Some(session);
        self.live.push(index as u32);
        self.region_bytes += geometry.region_bytes;
        Ok((index as u32, descriptors))
    }

    /// Forgets a session that is over and has nothing in flight.
    pub fn remove(&mut self, index: u32) -> Option<Session> {
        let session = self.table.get_mut(index as usize)?.take()?;
        self.live.retain(|other| *other != index);
        self.region_bytes -= session.geometry.region_bytes;
        Some(session)
    }

    /// Indices of all sessions, those that are over included, oldest first.
    pub fn live(&self) -> &[u32] {
        &self.live
    }

    /// Sum of all regions.
    pub fn region_bytes(&self) -> u64 {
        self.region_bytes
    }

    /// A session that exists.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&Session> {
        self.table.get(index as usize)?.as_ref()
    }

    /// A session that exists.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Session> {
        self.table.get_mut(index as usize)?.as_mut()
    }

    /// All sessions.
    pub fn iter(&self) -> impl Iterator<Item = &Session> {
        self.table.iter().flatten()
    }

    /// All sessions.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Session> {
        self.table.iter_mut().flatten()
    }
}
