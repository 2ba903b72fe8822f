//! The rings over real shared memory, and against a plain queue.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(not(loom))]

use std::collections::VecDeque;

use bytemuck::Zeroable;
use gpulet_abi::layout::{Completion, SUBMIT_INFER, Submission};
use gpulet_abi::region::{Geometry, Part, Region, RegionError};
use gpulet_abi::ring::{CursorOutOfRange, PushError, RingMemory};
use gpulet_abi::status::Status;
use gpulet_abi::sync::Ordering;
use proptest::prelude::*;

fn region(slot_count: u32) -> (Region, Region) {
    let geometry = Geometry::new(1000, slot_count).unwrap();
    let (daemon, fd) = Region::create(geometry).unwrap();
    let client = Region::attach(fd, geometry.region_bytes).unwrap();
    assert_eq!(client.geometry(), daemon.geometry());
    (daemon, client)
}

#[test]
fn many_entries_cross_two_threads_in_order() {
    let (daemon, client) = region(64);
    let mut producer = client.submission_producer();
    let writer = std::thread::spawn(move || {
        let mut next = 0u64;
        while next < 100_000 {
            let entry = Submission { kind: SUBMIT_INFER, user_data: next, ..Zeroable::zeroed() };
            match producer.push(&entry) {
                Ok(()) => next += 1,
                Err(PushError::Full) => {
                    let _ = producer.commit();
                    std::hint::spin_loop();
                }
                Err(error) => panic!("{error}"),
            }
        }
        let _ = producer.commit();
    });
    let mut consumer = daemon.submission_consumer();
    let mut expected = 0;
    while expected < 100_000 {
        while let Some(entry) = consumer.pop().unwrap() {
            assert_eq!(entry.user_data, expected);
            expected += 1;
        }
        consumer.release();
    }
    writer.join().unwrap();
}

#[test]
fn a_sleeper_is_told_once_of_what_is_about_to_come() {
    let (daemon, client) = region(4);
    let (mut producer, mut consumer) = (client.submission_producer(), daemon.submission_consumer());
    assert!(!producer.announce(), "nobody sleeps");
    assert!(consumer.prepare_sleep().unwrap());
    assert!(producer.announce());
    producer.push(&Submission::zeroed()).unwrap();
    assert!(!producer.announce() && !producer.commit(), "it was told before");
    assert!(consumer.pop().unwrap().is_some());
    assert!(consumer.prepare_sleep().unwrap());
    producer.push(&Submission::zeroed()).unwrap();
    assert!(producer.commit(), "it sleeps again");
}

#[test]
fn payload_written_by_one_side_is_read_by_the_other() {
    let geometry = Geometry::new(4096, 3).unwrap();
    let (_daemon, fd) = Region::create(geometry).unwrap();
    let again = fd.try_clone().unwrap();
    let client = Region::attach(fd, geometry.region_bytes).unwrap();
    let executor = Region::attach_known(again, geometry, Part::Whole).unwrap();
    // SAFETY: both mappings are alive, and this test is the only one that touches them.
    unsafe {
        client.slot(2).as_ptr().write_bytes(0xa5, 4096);
        assert_eq!(executor.slot(2).as_ptr().add(4095).read(), 0xa5);
        assert_eq!(executor.slot(1).as_ptr().add(4095).read(), 0);
    }
}

#[test]
fn the_end_of_a_session_is_seen_in_the_region() {
    let (daemon, client) = region(1);
    assert_eq!(client.ended(), Status::Ok);
    daemon.end(Status::ProtocolViolation);
    assert_eq!(client.ended(), Status::ProtocolViolation);
}

#[test]
fn an_impossible_cursor_is_an_error_on_either_side() {
    let (daemon, client) = region(4);
    let mut consumer = daemon.submission_consumer();
    client.submission_producer().memory().tail().store(9, Ordering::Release);
    assert_eq!(consumer.refresh(), Err(CursorOutOfRange));

    let mut producer = daemon.completion_producer();
    client.completion_consumer().memory().head().store(77, Ordering::Release);
    let answer = Completion::zeroed();
    let full = (0..9).map(|_| producer.push(&answer)).find(Result::is_err).unwrap();
    assert_eq!(full, Err(PushError::OutOfRange(CursorOutOfRange)));
}

#[test]
fn an_impossible_cursor_stays_an_error_and_brings_no_entries() {
    let (daemon, client) = region(4);
    let mut consumer = daemon.submission_consumer();
    let writer = client.submission_producer();
    writer.memory().tail().store(1 << 30, Ordering::Release);
    assert_eq!(consumer.prepare_sleep(), Err(CursorOutOfRange));
    assert!(consumer.pop().is_err(), "an entry out of nowhere");
    assert_eq!(consumer.refresh(), Err(CursorOutOfRange));

    let mut producer = daemon.completion_producer();
    client.completion_consumer().memory().head().store(1 << 30, Ordering::Release);
    assert_eq!(producer.free(), Err(CursorOutOfRange));
    assert_eq!(producer.has_room(5), Err(CursorOutOfRange));
    assert_eq!(producer.has_room(4), Ok(true), "what was known before still holds");
}

#[test]
fn a_region_is_refused_unless_it_is_sealed_whole_and_of_our_version() {
    let geometry = Geometry::new(64, 4).unwrap();
    let (daemon, fd) = Region::create(geometry).unwrap();
    let wrong = Region::attach(fd.try_clone().unwrap(), geometry.region_bytes - 4096);
    assert!(matches!(wrong, Err(RegionError::WrongSize { .. })));

    let file = tempfile_of(geometry.region_bytes);
    assert!(Region::attach(file, geometry.region_bytes).is_err());

    daemon.submission_consumer();
    // A header whose version was never written is not yet a region.
    let (mapping, blank) =
        gpulet_abi::region::Mapping::create("blank", geometry.region_bytes, 4096).unwrap();
    let unwritten = Region::attach(blank.try_clone().unwrap(), geometry.region_bytes);
    assert!(matches!(unwritten, Err(RegionError::Incompatible(Status::BadHandshake))));
    let magic = u64::from(gpulet_abi::version::MAGIC) << 32;
    mapping.atomic_u64(0).store(magic | 0x0002_0000, Ordering::Release);
    let newer = Region::attach(blank, geometry.region_bytes);
    assert!(matches!(newer, Err(RegionError::Incompatible(Status::VersionMismatch))));
}

fn tempfile_of(bytes: u64) -> std::os::fd::OwnedFd {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("unsealed", flags).unwrap();
    rustix::fs::ftruncate(&fd, bytes).unwrap();
    fd
}

proptest! {
    /// Any order of steps does to the ring what it does to a plain queue.
    #[test]
    fn a_ring_is_a_queue(steps in prop::collection::vec(0u8..6, 1..300)) {
        let (daemon, client) = region(2);
        let mut producer = client.submission_producer();
        let mut consumer = daemon.submission_consumer();
        let (mut staged, mut visible) = (VecDeque::new(), VecDeque::new());
        let (mut popped, mut next) = (0usize, 0u64);
        let capacity = 4;
        for step in steps {
            match step {
                0 | 1 => {
                    let entry = Submission { user_data: next, ..Zeroable::zeroed() };
                    let pushed = producer.push(&entry).is_ok();
                    let room = staged.len() + visible.len() + popped < capacity;
                    prop_assert_eq!(pushed, room);
                    if pushed {
                        staged.push_back(next);
                        next += 1;
                    }
                }
                2 => {
                    prop_assert!(!producer.commit());
                    visible.append(&mut staged);
                }
                3 => {
                    producer.abort();
                    staged.clear();
                }
                4 => {
                    let entry = consumer.pop().unwrap();
                    prop_assert_eq!(entry.map(|entry| entry.user_data), visible.pop_front());
                    popped += usize::from(entry.is_some());
                }
                _ => {
                    consumer.release();
                    popped = 0;
                }
            }
        }
    }

    /// Whatever is written over the header, attaching it is refused or yields a sound geometry.
    #[test]
    fn no_header_makes_attaching_panic(words in prop::collection::vec(any::<u64>(), 9)) {
        let (mapping, fd) = gpulet_abi::region::Mapping::create("noise", 16384, 16384).unwrap();
        for (index, word) in words.iter().enumerate() {
            mapping.atomic_u64(index * 8).store(*word, Ordering::Relaxed);
        }
        let head = u64::from(gpulet_abi::version::MAGIC) << 32;
        mapping.atomic_u64(0).store(head | u64::from(gpulet_abi::version::VERSION), Ordering::Relaxed);
        if let Ok(region) = Region::attach(fd, 16384) {
            prop_assert_eq!(region.geometry().region_bytes, 16384);
        }
    }
}
