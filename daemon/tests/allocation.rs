//! What the request path takes of memory: nothing. Counted in a dispatcher that this program drives
//! turn by turn, with a real session on one side and a real executor process on the other; and what
//! the real daemon has in RAM after much work.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::path::Path;
use std::time::Instant;

use gpulet_abi::layout::{Completion, Submission};
use gpulet_abi::region::{Geometry, MappedRing, Region};
use gpulet_abi::ring::{Consumer, Producer};
use gpulet_abi::status::Status;
use gpulet_daemon::clock::now_ns;
use gpulet_daemon::config::{DeviceName, Gpulet, Mechanism, ModelSet};
use gpulet_daemon::dispatch::{Dispatcher, REQUEUE_MAX};
use gpulet_daemon::executor::{Executor, Executors, State};
use gpulet_daemon::gpulet::GpuletId;
use gpulet_daemon::limits::Limits;
use gpulet_daemon::model;
use gpulet_daemon::models::{Instance, InstanceState, Role};
use gpulet_daemon::wire::{Backend, FromExecutor, GpuletStart, Manner, Start, ToExecutor};
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use mio::{Poll, Token};

use support::client::{collect, finish_echo, open, submit};
use support::daemon::Setup;
use support::models::Folder;
use support::raw::RawSession;
use support::{PATIENCE, SECOND_NS, process};

const SLOTS: u32 = 32;
/// Shorter than there are slots, so that it fills.
const QUEUE_MAX: u32 = 16;

/// A dispatcher with one session and one executor, and the client's end of that session. The executor
/// has one gpulet on the host, or several that play a GPU and are sent batches ahead.
struct Bed {
    dispatcher: Dispatcher,
    submissions: Producer<MappedRing, Submission>,
    completions: Consumer<MappedRing, Completion>,
    null: u32,
    echo: u32,
    _poll: Poll,
}

/// Answers of each status, by its number.
struct Statuses([u32; 100]);

impl Statuses {
    fn of(&self, status: Status) -> u32 {
        self.0[status as usize]
    }
}

impl Bed {
    fn new(gpulet_count: u32) -> Bed {
        let program = Path::new(env!("CARGO_BIN_EXE_gpulet-executor")).to_owned();
        let mut dispatcher = Dispatcher::new(Executors::new(program.clone()), 64);
        let folder = tempfile::tempdir().unwrap();
        let mut add = |name: &str, source: &str| {
            let directory = folder.path().join(name);
            Folder::of(source, 8).write(&directory);
            let model = model::load(&directory, &Limits::default()).unwrap();
            dispatcher.models.add(model, QUEUE_MAX, REQUEUE_MAX)
        };
        let (null, echo) = (add("null", "builtin = \"null\""), add("echo", "builtin = \"echo\""));
        let poll = Poll::new().unwrap();
        let executor = start_executor(&program, &poll, folder.path(), gpulet_count);
        let executor = dispatcher.executors.add(executor).unwrap();
        let hosted = dispatcher.models.get_mut(echo).unwrap();
        hosted.ever_ready = true;
        hosted.instances = (0..gpulet_count)
            .map(|index| GpuletId { executor, index })
            .map(|gpulet| Instance { gpulet, role: Role::Home, state: InstanceState::Loading })
            .collect();
        let load = ToExecutor::Load {
            instance: echo,
            model: Box::new(hosted.model.clone()),
            manner: Manner::Whole,
        };
        let executor = dispatcher.executors.get_mut(executor).unwrap();
        executor.tell(&load, &[]);
        match hear(executor) {
            FromExecutor::Loaded { points, .. } => {
                for (instance, points) in hosted.instances.iter_mut().zip(points) {
                    let profile = LatencyProfile::new("echo", &points).unwrap();
                    instance.state = InstanceState::Ready(Box::new(profile));
                }
            }
            other => panic!("{other:?}"),
        }
        let geometry = Geometry::new(4096, SLOTS).unwrap();
        let (_, descriptors) = dispatcher.sessions.create((0, 0), geometry).unwrap();
        let region = Region::attach(descriptors.region, geometry.region_bytes).unwrap();
        Bed {
            dispatcher,
            submissions: region.submission_producer(),
            completions: region.completion_consumer(),
            null,
            echo,
            _poll: poll,
        }
    }

    fn send(&mut self, entries: impl IntoIterator<Item = Submission>) {
        for entry in entries {
            self.submissions.push(&entry).unwrap();
        }
        // Nobody sleeps here.
        let _ = self.submissions.commit();
    }

    /// Turns until `count` answers came; how many there are of each status, by its number.
    fn answers(&mut self, count: u32) -> Statuses {
        let begin = Instant::now();
        let (mut taken, mut statuses) = (0, Statuses([0; 100]));
        while taken < count {
            self.dispatcher.turn(now_ns());
            while let Some(answer) = self.completions.pop().unwrap() {
                taken += 1;
                statuses.0[answer.status as usize] += 1;
            }
            self.completions.release();
            assert!(begin.elapsed() < PATIENCE, "{taken} of {count} answers");
        }
        assert_eq!(taken, count);
        statuses
    }

    fn running_count(&self) -> u32 {
        self.dispatcher.models.get(self.echo).unwrap().running_count
    }

    fn batch_count(&self) -> u64 {
        self.dispatcher.models.get(self.echo).unwrap().counters.batch_count
    }

    /// Takes what was sent, while the executor is kept from running anything new.
    fn turn_once(&mut self) {
        self.dispatcher.turn(now_ns());
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        let pid = self.dispatcher.executors.get(0).and_then(Executor::pid).unwrap();
        process::signal(pid, rustix::process::Signal::KILL);
    }
}

fn start_executor(program: &Path, poll: &Poll, profiles_dir: &Path, count: u32) -> Executor {
    let gpulet = |index: u32| Gpulet {
        name: format!("r{index}"),
        mechanism: Mechanism::Replay {
            profiles_dir: profiles_dir.to_owned(),
            device: (count > 1).then_some(DeviceName::Index(0)),
        },
        share_pct: 10,
        memory_bytes: None,
        models: ModelSet::All,
        guests: Vec::new(),
    };
    let gpulets: Vec<Gpulet> = (0..count).map(gpulet).collect();
    let entry = |gpulet: &Gpulet| GpuletStart { name: gpulet.name.clone(), share_pct: 10 };
    let start = Start {
        executor: "r0".to_owned(),
        gpulets: gpulets.iter().map(entry).collect(),
        backend: Backend::Replay { profiles_dir: profiles_dir.to_owned() },
        thread_count: 1,
        cpus: Vec::new(),
        spin_ns: 0,
        beside: false,
    };
    let mut executor = Executor::new(gpulets, start);
    executor.spawn(program, poll.registry(), Token(0)).unwrap();
    assert!(matches!(hear(&mut executor), FromExecutor::Started { .. }));
    executor.state = State::Running;
    executor
}

fn hear(executor: &mut Executor) -> FromExecutor {
    let answer = |message: &FromExecutor| !matches!(message, FromExecutor::Loading { .. });
    support::eventually("the executor answers", || executor.hear().filter(answer))
}

/// One round of everything that can happen to a request; how many answers there were.
fn round(bed: &mut Bed) -> u32 {
    let (null, echo) = (bed.null, bed.echo);
    let all = move |model: u32| (0..SLOTS).map(move |slot| RawSession::infer(model, slot, 1));
    // Answered by the dispatcher, refused by it, hopeless from the start.
    bed.send(all(null));
    assert_eq!(bed.answers(SLOTS).of(Status::Ok), SLOTS);
    bed.send(all(99));
    assert_eq!(bed.answers(SLOTS).of(Status::NoSuchModel), SLOTS);
    bed.send(all(echo).map(|entry| Submission { rows: 9, ..entry }));
    assert_eq!(bed.answers(SLOTS).of(Status::TooManyRows), SLOTS);
    bed.send(all(echo).map(|entry| Submission { deadline_ns: 1, ..entry }));
    assert_eq!(bed.answers(SLOTS).of(Status::DeadlineHopeless), SLOTS);
    // Alone, and in batches. The first turn takes all, so half of them find the queue full.
    for slot in 0..4 {
        bed.send([RawSession::infer(echo, slot, 1)]);
        assert_eq!(bed.answers(1).of(Status::Ok), 1);
    }
    bed.send(all(echo));
    assert_eq!(bed.answers(SLOTS).of(Status::Ok), QUEUE_MAX);
    // Behind a batch that runs: cancelled and expired.
    bed.send([RawSession::infer(echo, 0, 8)]);
    bed.turn_once();
    let deadline_ns = now_ns() + 20_000_000;
    bed.send((1..5).map(|slot| Submission { deadline_ns, ..RawSession::infer(echo, slot, 1) }));
    bed.send((5..9).map(|slot| RawSession::infer(echo, slot, 1)));
    bed.send((5..9).map(RawSession::cancellation));
    bed.turn_once();
    bed.dispatcher.prepare_sleep();
    bed.dispatcher.awake();
    bed.answers(9);
    4 * SLOTS + 4 + SLOTS + 9
}

#[test]
fn the_request_path_allocates_nothing() {
    let mut bed = Bed::new(1);
    // The first batch has the executor map the region, which takes a message.
    round(&mut bed);
    let mut answers = 0;
    let counted = allocation_counter::measure(|| {
        for _ in 0..50 {
            answers += round(&mut bed);
        }
    });
    assert_eq!(counted.count_total, 0, "{counted:?} for {answers} answers");
    assert!(answers > 5_000);
    let seen = allocation_counter::measure(|| drop(std::hint::black_box(Box::new(1))));
    assert_eq!(seen.count_total, 1, "the counter counts");
}

#[test]
fn batches_sent_ahead_to_several_gpulets_allocate_nothing() {
    let mut bed = Bed::new(2);
    let echo = bed.echo;
    let mut answered = 0;
    // A batch, or two, of each request: more than gpulets can run at a time.
    let mut round = |bed: &mut Bed| {
        for slots in [0..SLOTS / 2, SLOTS / 2..SLOTS] {
            bed.send(slots.map(|slot| RawSession::infer(echo, slot, 5)));
            bed.turn_once();
        }
        answered += bed.answers(SLOTS).of(Status::Ok);
        bed.dispatcher.prepare_sleep();
        bed.dispatcher.awake();
    };
    round(&mut bed);
    let counted = allocation_counter::measure(|| (0..100).for_each(|_| round(&mut bed)));
    assert_eq!(counted.count_total, 0);
    assert!(answered > 101 * SLOTS / 2, "{answered}");
    let executor = bed.dispatcher.executors.get(0).unwrap();
    assert!(executor.gpulets.iter().all(|gpulet| gpulet.batch_count > 50));
}

/// An instance of `echo` of which it is thought that batches take 10 s.
fn slow() -> InstanceState {
    let point = |rows| ProfilePoint { rows, p50_ns: 10 * SECOND_NS, p99_ns: 10 * SECOND_NS };
    let profile = LatencyProfile::new("echo", &[point(1), point(8)]).unwrap();
    InstanceState::Ready(Box::new(profile))
}

/// Every round, time jumps to where the dispatcher wants to be woken for what waits.
#[test]
fn waiting_for_another_row_ends_by_itself_and_allocates_nothing() {
    let mut bed = Bed::new(1);
    let echo = bed.echo;
    bed.dispatcher.models.get_mut(echo).unwrap().instances[0].state = slow();
    bed.dispatcher.defer = true;
    bed.send([RawSession::infer(echo, 0, 1)]);
    bed.answers(1);
    let counted = allocation_counter::measure(|| {
        for _ in 0..50 {
            let (sent_ns, batches) = (now_ns(), bed.batch_count());
            bed.send([RawSession::infer(echo, 0, 1)]);
            bed.dispatcher.turn(sent_ns);
            assert!(bed.dispatcher.prepare_sleep());
            bed.dispatcher.awake();
            assert_eq!(bed.dispatcher.wake_ns(sent_ns), Some(sent_ns + 10 * SECOND_NS));
            bed.dispatcher.turn(sent_ns + 10 * SECOND_NS - 1);
            assert_eq!(bed.dispatcher.in_flight(), 1);
            assert_eq!(bed.running_count(), 0);
            bed.dispatcher.turn(sent_ns + 10 * SECOND_NS);
            assert_eq!(bed.answers(1).of(Status::Ok), 1);
            assert_eq!(bed.batch_count(), batches + 1);
        }
    });
    assert_eq!(counted.count_total, 0);
}

#[test]
fn batches_of_guests_allocate_nothing() {
    let mut bed = Bed::new(2);
    let echo = bed.echo;
    // Most requests would be lost at home.
    let hosted = bed.dispatcher.models.get_mut(echo).unwrap();
    hosted.instances[0].state = slow();
    hosted.instances[1].role = Role::Guest;
    let round = |bed: &mut Bed| {
        bed.send((0..QUEUE_MAX).map(|slot| RawSession::infer(echo, slot, 5)));
        bed.answers(QUEUE_MAX);
    };
    round(&mut bed);
    let counted = allocation_counter::measure(|| (0..50).for_each(|_| round(&mut bed)));
    assert_eq!(counted.count_total, 0);
    let executor = bed.dispatcher.executors.get(0).unwrap();
    let batches: Vec<u64> = executor.gpulets.iter().map(|gpulet| gpulet.batch_count).collect();
    assert!(batches.iter().all(|&count| count > 20), "{batches:?}");
}

/// Requests that expire behind an executor that is stopped, and one that is cancelled there.
#[test]
fn what_never_runs_allocates_nothing() {
    let mut bed = Bed::new(1);
    round(&mut bed);
    let pid = bed.dispatcher.executors.get(0).and_then(Executor::pid).unwrap();
    let frozen = process::Frozen::new(pid);
    let echo = bed.echo;
    let (mut expired, mut hopeless, mut cancelled) = (0, 0, 0);
    bed.send([RawSession::infer(echo, 31, 1)]);
    bed.turn_once();
    let counted = allocation_counter::measure(|| {
        for _ in 0..5 {
            let deadline_ns = now_ns() + SECOND_NS / 5;
            let until = |slot| Submission { deadline_ns, ..RawSession::infer(echo, slot, 1) };
            bed.send((0..8).map(until));
            bed.send((8..16).map(|slot| RawSession::infer(echo, slot, 1)));
            bed.turn_once();
            bed.send((8..16).map(RawSession::cancellation));
            let statuses = bed.answers(16);
            cancelled += statuses.of(Status::Cancelled);
            expired += statuses.of(Status::DeadlineExpired);
            hopeless += statuses.of(Status::DeadlineHopeless);
        }
    });
    assert_eq!((counted.count_total, cancelled), (0, 40));
    // Where the machine is busy, some are hopeless when they are first looked at.
    assert_eq!(expired + hopeless, 40);
    assert!(expired > 0, "none expired");
    drop(frozen);
    assert_eq!(bed.answers(1).of(Status::Ok), 1);
}

#[test]
fn the_daemon_stays_small() {
    const RESIDENT_KIB_MAX: u64 = 25 << 10;
    let daemon = Setup::builtin().quiet().start();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut session = daemon.wide_session();
                let (echo, null) = (open(&mut session, "echo"), open(&mut session, "null"));
                for seed in 0..100 {
                    for index in 0..32 {
                        let model = if index % 2 == 0 { echo } else { null };
                        submit(&mut session, model, 16, 100 * seed + index);
                    }
                    for answer in collect(&mut session, 32) {
                        if answer.model == echo {
                            finish_echo(&mut session, &answer);
                        } else {
                            session.release((&answer).into()).unwrap();
                        }
                    }
                }
            });
        }
    });
    let resident_kib = process::resident_kib(daemon.pid());
    assert!(resident_kib <= RESIDENT_KIB_MAX, "{resident_kib} KiB");
    support::say_loudly(&format!("gpuletd has {resident_kib} KiB in RAM after 12,800 requests"));
}
