//! A real TorchScript model: handwritten digits, read through shared memory.

use gpulet_client::{Element, Options, Session, Status, Submit};

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
    let logits = logits(session, model, digits, |pixel| pixel);
    let rows = logits.chunks_exact(10).zip(digits);
    rows.filter(|(row, digit)| largest(row) == digit.label).count()
}

/// What the model says of digits whose pixels are sent as `encoded` makes them.
fn logits<Sent: Element>(
    session: &mut Session,
    model: u32,
    digits: &[Digit],
    encoded: impl Fn(f32) -> Sent,
) -> Vec<f32> {
    let request = session.claim(model, digits.len() as u32).unwrap();
    let input = session.input_mut::<Sent>(request, 0).unwrap();
    let pixels = digits.iter().flat_map(|digit| &digit.pixels);
    for (sent, pixel) in input.iter_mut().zip(pixels) {
        *sent = encoded(*pixel);
    }
    session.submit(request, Submit::default()).unwrap();
    let answer = next(session);
    assert_eq!(status(&answer), Status::Ok);
    let logits = session.output::<f32>(request, 0).unwrap().to_vec();
    session.release(request).unwrap();
    logits
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

/// The bytes of a picture, normalised on their way to the model, are the same picture: pixels are
/// sixteenths, and (15 * k / 255 - 0) / (16 / 17) = k / 16.
#[test]
fn pictures_of_bytes_are_read_as_the_floats_they_stand_for() {
    let picture =
        ("image", "u8", "[-1, 8, 8, 1]\nnormalise = { mean = [0.0], std = [0.94117647] }");
    let daemon = Setup::with_digits().digits("pictures", "", picture).start();
    if !daemon.has_torch() {
        return;
    }
    let digits = held_out_digits();
    let wish = Options { slot_bytes: 32 * (256 + 40) + 512, ..daemon.options() };
    let mut session = Session::open(&wish).unwrap();
    let floats = session.model_open("digits").unwrap().model;
    let pictures = session.model_open("pictures").unwrap().model;
    for some in [&digits[..1], &digits[1..33]] {
        let meant = logits(&mut session, floats, some, |pixel| pixel);
        let read = logits(&mut session, pictures, some, |pixel| (pixel * 16.0) as u8 * 15);
        for (read, meant) in read.iter().zip(&meant) {
            assert!((read - meant).abs() < 1e-3, "{read} of bytes, {meant} of floats");
        }
    }
}

/// A CPU has no halves to compute in: it says what it computes in instead.
#[test]
fn a_precision_that_only_gpus_have_is_said_not_to_be_used() {
    let image = ("image", "f32", "[-1, 1, 8, 8]");
    let lines = "\nprecision = \"fp16\"";
    let daemon = Setup::with_digits().digits("halves", lines, image).start();
    if !daemon.has_torch() {
        return;
    }
    let log = daemon.log();
    assert!(log.contains("fp32 (fp16 is for GPUs)"), "{log}");
}
