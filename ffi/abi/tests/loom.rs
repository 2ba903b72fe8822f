//! The ring and the sleep/wake protocol under every interleaving. Run with `RUSTFLAGS="--cfg loom"`;
//! without it this file is empty, and `ring.rs` (the test) covers the same code with threads.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![cfg(loom)]

use gpulet_abi::layout::Submission;
use gpulet_abi::ring::{Consumer, Entry, Producer, RingMemory};
use loom::sync::atomic::{AtomicU32, AtomicU64};
use loom::sync::{Arc, Notify};
use loom::thread;

/// One word an entry, so that the model checker has few steps to permute.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Word(u64);
impl Entry for Word {}

#[derive(Clone)]
struct Memory(Arc<Inner>);
struct Inner {
    tail: AtomicU32,
    head: AtomicU32,
    sleeping: AtomicU32,
    words: Vec<AtomicU64>,
    capacity: u32,
}

impl Memory {
    fn new(capacity: u32) -> Memory {
        Memory(Arc::new(Inner {
            tail: AtomicU32::new(0),
            head: AtomicU32::new(0),
            sleeping: AtomicU32::new(0),
            words: (0..capacity as usize).map(|_| AtomicU64::new(0)).collect(),
            capacity,
        }))
    }
}

impl RingMemory for Memory {
    fn tail(&self) -> &AtomicU32 {
        &self.0.tail
    }
    fn head(&self) -> &AtomicU32 {
        &self.0.head
    }
    fn sleeping(&self) -> &AtomicU32 {
        &self.0.sleeping
    }
    fn capacity(&self) -> u32 {
        self.0.capacity
    }
    fn word(&self, index: usize) -> &AtomicU64 {
        &self.0.words[index]
    }
}

/// What is read was written, in order, and a slot of the ring is not reused before it was read.
#[test]
fn entries_arrive_whole_and_in_order() {
    loom::model(|| {
        let memory = Memory::new(2);
        let mut producer = Producer::<_, Word>::new(memory.clone());
        let writer = thread::spawn(move || {
            let mut next = 1;
            while next <= 3 {
                if producer.push(&Word(next)).is_ok() {
                    let _ = producer.commit();
                    next += 1;
                } else {
                    thread::yield_now();
                }
            }
        });
        let mut consumer = Consumer::<_, Word>::new(memory);
        let mut expected = 1;
        while expected <= 3 {
            match consumer.pop().unwrap() {
                Some(Word(value)) => {
                    assert_eq!(value, expected);
                    expected += 1;
                    consumer.release();
                }
                None => thread::yield_now(),
            }
        }
        writer.join().unwrap();
    });
}

/// Entries staged together become visible together or not at all.
#[test]
fn a_commit_publishes_everything_staged() {
    loom::model(|| {
        let memory = Memory::new(4);
        let mut producer = Producer::<_, Word>::new(memory.clone());
        let writer = thread::spawn(move || {
            producer.push(&Word(1)).unwrap();
            producer.push(&Word(2)).unwrap();
            let _ = producer.commit();
        });
        let mut consumer = Consumer::<_, Word>::new(memory);
        let seen = consumer.refresh().unwrap();
        assert!(seen == 0 || seen == 2);
        writer.join().unwrap();
        assert_eq!(consumer.refresh().unwrap(), 2);
    });
}

/// A consumer that sleeps whenever the ring is empty is always woken: if a wake-up could be lost,
/// the model would end in a deadlock, which loom reports.
#[test]
fn no_wake_up_is_lost() {
    loom::model(|| {
        let memory = Memory::new(2);
        let bell = Arc::new(Notify::new());
        let mut producer = Producer::<_, Word>::new(memory.clone());
        let ring_bell = Arc::clone(&bell);
        let writer = thread::spawn(move || {
            for value in 1..=2 {
                producer.push(&Word(value)).unwrap();
                if producer.commit() {
                    ring_bell.notify();
                }
            }
        });
        let mut consumer = Consumer::<_, Word>::new(memory);
        let mut seen = 0;
        while seen < 2 {
            if consumer.pop().unwrap().is_some() {
                seen += 1;
                consumer.release();
            } else if consumer.prepare_sleep().unwrap() {
                bell.wait();
                consumer.awake();
            }
        }
        writer.join().unwrap();
    });
}

/// The real entries have the size that the header says, under the model checker too.
#[test]
fn a_submission_is_eight_words() {
    assert_eq!(<Submission as Entry>::WORDS, 8);
}
