//! A real TorchScript model: handwritten digits, read through shared memory.

use gpulet_client::{Options, Session, Status, Submit};

use crate::support::client::{next, status};
use crate::support::daemon::{Daemon, Setup};
use crate::support::models::{Digit, held_out_digits};

fn largest(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (index, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = index;
        }
    }
    best as u32
}

fn ask(session: &mut Session, model: u32, digits: &[Digit]) -> usize {
    let request = session.claim(model, digits.len() as u32).unwrap();
    let input = session.input_mut::<f32>(request, 0).unwrap();
    for (row, digit) in input.chunks_exact_mut(64).zip(digits) {
        row.copy_from_slice(&digit.pixels);
    }
    session.submit(request, Submit::default()).unwrap();
    let answer = next(session);
    assert_eq!(status(&answer), Status::Ok);
    let logits = session.output::<f32>(request, 0).unwrap();
    let right =
        logits.chunks_exact(10).zip(digits).filter(|(row, digit)| largest(row) == digit.label);
    let right = right.count();
    session.release(request).unwrap();
    right
}

fn digits_daemon() -> Option<Daemon> {
    let daemon = Setup::with_digits().start();
    daemon.has_torch().then_some(daemon)
}

#[test]
fn held_out_digits_are_read_rightly_one_at_a_time_and_in_batches() {
    let Some(daemon) = digits_daemon() else { return };
    let digits = held_out_digits();
    assert!(digits.len() >= 300);
    let wish = Options { slot_bytes: 32 * (256 + 40) + 512, ..daemon.options() };
    let mut session = Session::open(&wish).unwrap();
    let spec = session.model_open("digits").unwrap();
    assert_eq!((spec.max_batch, spec.slo_ns), (32, 60_000_000_000));
    for rows in [1, 32] {
        let right: usize =
            digits.chunks(rows).map(|some| ask(&mut session, spec.model, some)).sum();
        assert!(right * 100 >= digits.len() * 97, "{right} of {} are right", digits.len());
    }
    let state = daemon.state();
    assert_eq!(state.count("digits", "input_bytes_copied"), 0, "the model read the slots");
    let bytes = 2 * digits.len() as u64 * 40;
    assert!(state.count("digits", "output_bytes_copied") <= bytes, "one copy at most");
}
