//! What a hostile client does with what it was given.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytemuck::bytes_of;
use gpulet_abi::doorbell::Doorbell;
use gpulet_abi::frame::{self, Frame};
use gpulet_abi::layout::{
    COMPLETION_CONTROL_OFFSET, Goodbye, ModelQuery, SUBMISSION_CONTROL_OFFSET, StateQuery,
    Submission,
};
use gpulet_abi::status::Status;
use gpulet_client::clock::now_ns;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;

use crate::support::Random;
use crate::support::raw::{RawSession, hello};

/// Ways to misbehave. Each ends a session sooner or later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// Random words over everything that is mapped.
    Noise,
    /// Entries that look right, with fields that often are not.
    Entries,
    /// Slots and entries that change while they are looked at.
    Racing,
    /// Cursors and sleep flags that jump.
    Cursors,
    /// Doorbells that are stopped up, made to block, and rung without end.
    Doorbells,
    /// Frames that are none.
    Frames,
}

pub const ATTACKS: [Attack; 6] = [
    Attack::Noise,
    Attack::Entries,
    Attack::Racing,
    Attack::Cursors,
    Attack::Doorbells,
    Attack::Frames,
];

/// A session that was not ended by then is given up by its client.
const SESSION_MAX: Duration = Duration::from_millis(300);
const SLOTS: u32 = 16;
const SLOT_BYTES: u64 = 8192;

/// How sessions ended.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// By the daemon for a violation, for each attack.
    pub thrown_out: [u64; ATTACKS.len()],
    /// By the daemon, for anything else.
    pub other_ends: u64,
    /// By the client.
    pub left: u64,
    /// The daemon had no room for another.
    pub refused: u64,
}

impl Tally {
    pub fn add(mut self, other: Tally) -> Tally {
        for (sum, count) in self.thrown_out.iter_mut().zip(other.thrown_out) {
            *sum += count;
        }
        self.other_ends += other.other_ends;
        self.left += other.left;
        self.refused += other.refused;
        self
    }
}

/// One hostile client.
pub struct Attacker {
    socket: PathBuf,
    random: Random,
    tally: Tally,
    /// Slots in flight, a bit each: one that is submitted twice ends the session.
    busy: u32,
}

impl Attacker {
    pub fn new(socket: &Path, random: Random) -> Attacker {
        Attacker { socket: socket.to_owned(), random, tally: Tally::default(), busy: 0 }
    }

    /// Attacks, comes back when it was thrown out, and attacks again.
    pub fn run(&mut self, stop: &AtomicBool) -> Tally {
        while !stop.load(Ordering::Relaxed) {
            let index = self.random.below(ATTACKS.len() as u64) as usize;
            let Some(mut session) = RawSession::try_open(&self.socket, SLOT_BYTES, SLOTS) else {
                self.tally.refused += 1;
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            self.busy = 0;
            let begin = Instant::now();
            let end = loop {
                if begin.elapsed() >= SESSION_MAX || stop.load(Ordering::Relaxed) {
                    break None;
                }
                self.strike(ATTACKS[index], &mut session);
                // On few CPUs the others would not get to anything otherwise.
                std::thread::sleep(Duration::from_micros(self.random.below(200)));
                if let Some(status) = end_of(&session) {
                    break Some(status);
                }
            };
            match end {
                None => self.tally.left += 1,
                Some(Some(Status::ProtocolViolation)) => self.tally.thrown_out[index] += 1,
                // Told or not: what it did not read in time, nobody waits for.
                Some(None) if ATTACKS[index] == Attack::Frames => {
                    self.tally.thrown_out[index] += 1;
                }
                Some(_) => self.tally.other_ends += 1,
            }
        }
        self.tally
    }

    fn strike(&mut self, attack: Attack, session: &mut RawSession) {
        match attack {
            Attack::Noise => self.noise(session),
            Attack::Entries => self.entries(session),
            Attack::Racing => self.race(session),
            Attack::Cursors => self.move_cursors(session),
            Attack::Doorbells => self.stop_up(session),
            Attack::Frames => self.talk(session),
        }
    }

    fn noise(&mut self, session: &RawSession) {
        let geometry = session.region.geometry();
        let (start, end) = match self.random.below(8) {
            // The cursors end a session at once, so they are seldom hit.
            0 => (0, 1024),
            1 => (0, geometry.region_bytes),
            2 | 3 => (geometry.submission_offset, geometry.completion_offset),
            4 => (geometry.completion_offset, geometry.arena_offset),
            _ => (geometry.arena_offset, geometry.region_bytes),
        };
        for _ in 0..64 {
            let offset = start + self.random.below((end - start) / 8) * 8;
            let word = self.random.next() >> self.random.below(64);
            session.memory.atomic_u64(offset as usize).store(word, Ordering::Relaxed);
        }
        // Whatever lies in the ring is now submitted.
        let tail = session.memory.atomic_u32(SUBMISSION_CONTROL_OFFSET);
        tail.fetch_add(self.random.below(3) as u32, Ordering::Release);
        ring(&session.submission_bell);
    }

    /// A request that could be anybody's.
    fn request(&mut self) -> Submission {
        let random = &mut self.random;
        let slot = (!self.busy).trailing_zeros() % SLOTS;
        self.busy |= 1 << slot;
        let mut entry = RawSession::infer(random.below(3) as u32, slot, 1);
        entry.rows = [1, 1, 2, 7, 16][random.below(5) as usize];
        entry.deadline_ns = [0, 0, now_ns() + random.below(5_000_000)][random.below(3) as usize];
        entry
    }

    fn entries(&mut self, session: &mut RawSession) {
        for _ in 0..1 + self.random.below(4) {
            if self.busy.count_ones() == SLOTS {
                break;
            }
            let mut entry = self.request();
            match self.random.below(1_000) {
                0 => entry.kind = self.random.next() as u32,
                1 => entry.slot = self.random.next() as u32,
                2 => entry.reserved1[self.random.below(3) as usize] = self.random.next(),
                3 => entry.reserved0 = 1,
                4..20 => entry.slot = self.random.below(u64::from(SLOTS)) as u32,
                20..200 => {
                    self.busy &= !(1 << entry.slot);
                    entry.kind = 2;
                }
                200..400 => entry.rows = self.random.next() as u32,
                400..500 => entry.model = self.random.next() as u32,
                500..600 => entry.deadline_ns = self.random.next(),
                _ => {}
            }
            let _ = session.submissions.push(&entry);
        }
        if session.submissions.commit() {
            ring(&session.submission_bell);
        }
        if self.random.below(3) > 0 {
            self.reap(session);
        }
    }

    /// Reads answers, to have room for more.
    fn reap(&mut self, session: &mut RawSession) {
        while let Ok(Some(answer)) = session.completions.pop() {
            self.busy &= !(1 << (answer.slot % SLOTS));
        }
        session.completions.release();
    }

    fn race(&mut self, session: &mut RawSession) {
        let geometry = *session.region.geometry();
        let entry = self.request();
        let _ = session.submissions.push(&entry);
        if session.submissions.commit() {
            ring(&session.submission_bell);
        }
        for _ in 0..200 {
            let offset = match self.random.below(4_000) {
                0 => geometry.submission_offset + self.random.below(8 * u64::from(SLOTS)) * 8,
                _ => {
                    geometry.slot_offset(entry.slot)
                        + self.random.below(geometry.slot_bytes / 8) * 8
                }
            };
            let word = self.random.next();
            session.memory.atomic_u64(offset as usize).store(word, Ordering::Relaxed);
        }
        self.reap(session);
    }

    fn move_cursors(&mut self, session: &mut RawSession) {
        let entry = self.request();
        let _ = session.submissions.push(&entry);
        let _ = session.submissions.commit();
        let controls = [SUBMISSION_CONTROL_OFFSET, COMPLETION_CONTROL_OFFSET];
        let control = controls[self.random.below(2) as usize];
        let cursor = session.memory.atomic_u32(control + 128 * self.random.below(3) as usize);
        match self.random.below(10) {
            0 => cursor.store(self.random.next() as u32, Ordering::Relaxed),
            1 => drop(cursor.fetch_sub(1, Ordering::Relaxed)),
            _ => drop(cursor.fetch_add(self.random.below(3) as u32, Ordering::Relaxed)),
        }
        ring(&session.submission_bell);
    }

    fn stop_up(&mut self, session: &mut RawSession) {
        for bell in [&session.submission_bell, &session.completion_bell] {
            // It is to block the daemon, not us.
            let _ = rustix::fs::fcntl_setfl(bell, OFlags::NONBLOCK);
            let count = u64::MAX - 1 - self.random.below(2);
            let _ = rustix::io::write(bell, &count.to_ne_bytes());
            let _ = rustix::fs::fcntl_setfl(bell, OFlags::empty());
        }
        // The daemon rings for whoever sleeps.
        let _ = session.completions.prepare_sleep();
        self.entries(session);
    }

    fn talk(&mut self, session: &RawSession) {
        let connection = &session.connection;
        let random = &mut self.random;
        let packet: Vec<u8> = match random.below(20) {
            0 => bytes_of(&hello(0, 0)).to_vec(),
            1 => (0..1 + random.below(400)).map(|_| random.next() as u8).collect(),
            2..10 => bytes_of(&StateQuery::blank()).to_vec(),
            _ => {
                let mut query = ModelQuery::blank();
                query.name[..4].copy_from_slice(b"echo");
                bytes_of(&query).to_vec()
            }
        };
        // It must not wait for room that it makes itself by reading.
        if is_ready(connection, PollFlags::OUT) {
            let _ = connection.send(&packet);
        }
    }
}

/// Wakes the daemon, unless the bell is full: it may have been made to block.
fn ring(bell: &Doorbell) {
    if is_ready(bell, PollFlags::OUT) {
        let _ = bell.signal();
    }
}

fn is_ready(fd: impl AsFd, what: PollFlags) -> bool {
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let mut fds = [PollFd::new(&fd, what)];
    poll(&mut fds, Some(&now)) == Ok(1) && fds[0].revents().contains(what)
}

/// How the daemon ended the session: with the status it said, if it said one. `None` if it did not.
fn end_of(session: &RawSession) -> Option<Option<Status>> {
    let mut packet = [0; 4096];
    loop {
        let socket = &session.connection;
        if !is_ready(socket, PollFlags::IN) {
            return None;
        }
        match frame::receive(socket, &mut packet) {
            Ok(received) if received.bytes > 0 => {
                if let Some(goodbye) = Goodbye::parse(&packet[..received.bytes]) {
                    return Some(Status::from_number(goodbye.status));
                }
            }
            _ => return Some(None),
        }
    }
}
