//! Clients that do nothing wrong, and must not notice the others.

use std::sync::atomic::{AtomicBool, Ordering};

use gpulet_client::{Session, Status, Submit};

use crate::support::Random;
use crate::support::client::{collect, finish_echo, next, open, status, submit};
use crate::support::daemon::Daemon;
use crate::support::models::held_out_digits;

/// Works until it is told to stop, and checks each answer; how many there were.
pub type Role = fn(&Daemon, &AtomicBool) -> u64;

pub fn roles(with_digits: bool) -> &'static [Role] {
    if with_digits { &[echoes, nulls, digits] } else { &[echoes, nulls] }
}

/// Batches of everything, several in flight.
fn echoes(daemon: &Daemon, stop: &AtomicBool) -> u64 {
    let mut session = daemon.wide_session();
    let echo = open(&mut session, "echo");
    let mut random = Random(1);
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let burst = 1 + random.below(8);
        for seed in 0..burst {
            submit(&mut session, echo, 1 + random.below(64) as u32, count + seed);
        }
        for answer in collect(&mut session, burst as usize) {
            finish_echo(&mut session, &answer);
        }
        count += burst;
    }
    session.check().unwrap();
    count
}

fn nulls(daemon: &Daemon, stop: &AtomicBool) -> u64 {
    let mut session = daemon.session();
    let null = open(&mut session, "null");
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        for seed in 0..32 {
            submit(&mut session, null, 1, count + seed);
        }
        for (seed, answer) in (count..).zip(collect(&mut session, 32)) {
            assert_eq!((status(&answer), answer.user_data), (Status::Ok, seed));
            session.release((&answer).into()).unwrap();
        }
        count += 32;
    }
    session.check().unwrap();
    count
}

fn digits(daemon: &Daemon, stop: &AtomicBool) -> u64 {
    let mut session = daemon.session();
    let model = open(&mut session, "digits");
    let digits = held_out_digits();
    // What it answers when it is asked for the first time, it answers always.
    let mut expected = vec![None; digits.len()];
    let (mut count, mut right) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let index = count as usize % digits.len();
        let read = ask(&mut session, model, &digits[index].pixels);
        assert_eq!(*expected[index].get_or_insert(read), read, "digit {index}");
        right += u64::from(read == digits[index].label);
        count += 1;
    }
    session.check().unwrap();
    assert!(right * 100 >= count * 95, "{right} of {count} are right");
    count
}

fn ask(session: &mut Session, model: u32, pixels: &[f32]) -> u32 {
    let request = session.claim(model, 1).unwrap();
    session.input_mut::<f32>(request, 0).unwrap().copy_from_slice(pixels);
    session.submit(request, Submit::default()).unwrap();
    let answer = next(session);
    assert_eq!(status(&answer), Status::Ok);
    let logits = session.output::<f32>(request, 0).unwrap();
    let best = (0..10).max_by(|one, other| logits[*one].total_cmp(&logits[*other])).unwrap();
    session.release(request).unwrap();
    best as u32
}
