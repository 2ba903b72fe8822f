//! The request path, with the daemon's end moved by hand.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use bytemuck::Zeroable;
use fake::{ECHO, End, NULL, answer_to};
use gpulet_abi::layout::{Completion, SUBMIT_CANCEL, SUBMIT_INFER};
use gpulet_client::{Error, Options, Request, Session, Status, Submit};

fn status<T: std::fmt::Debug>(result: Result<T, Error>) -> Status {
    result.unwrap_err().status()
}

fn blank<const N: usize>() -> [Completion; N] {
    [Completion::zeroed(); N]
}

#[test]
fn an_echo_comes_back_in_place() {
    let (mut session, mut end) = fake::session(4);
    let request = session.claim(ECHO, 2).unwrap();
    let input = session.input_tensor(request, 0).unwrap();
    assert_eq!((input.bytes, input.rank, &input.dims[..3]), (32, 2, &[2, 4, 0][..]));
    assert_eq!(input.data.as_ptr() as usize % 256, 0);
    for (place, value) in session.input_mut::<f32>(request, 0).unwrap().iter_mut().enumerate() {
        *value = place as f32;
    }
    let how = Submit { deadline_ns: u64::MAX, user_data: 77, held: false };
    session.submit(request, how).unwrap();
    let taken = end.take();
    assert_eq!(taken.len(), 1);
    assert_eq!((taken[0].kind, taken[0].model, taken[0].rows), (SUBMIT_INFER, ECHO, 2));
    assert_eq!((taken[0].deadline_ns, taken[0].user_data), (u64::MAX, 77));
    assert_eq!(session.reap(&mut blank::<1>()).unwrap(), 0);
    end.answer(&taken[0]);
    let mut answers = blank::<2>();
    assert_eq!(session.reap(&mut answers).unwrap(), 1);
    assert_eq!((answers[0].status, answers[0].user_data), (0, 77));
    assert_eq!(Request::from(&answers[0]), request);
    let output = session.output::<f32>(request, 0).unwrap();
    assert_eq!(output, [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(session.output_bytes(request, 0).unwrap().len(), 32);
    session.release(request).unwrap();
    assert_eq!(end.rings, 0, "a client that does not sleep is not rung");
}

#[test]
fn a_request_is_only_used_as_its_state_allows() {
    let (mut session, mut end) = fake::session(2);
    let request = session.claim(ECHO, 1).unwrap();
    assert_eq!(status(session.output::<f32>(request, 0)), Status::WrongState);
    assert_eq!(status(session.cancel(request)), Status::WrongState);
    assert_eq!(status(session.request_error(request)), Status::WrongState);
    assert_eq!(status(session.input_mut::<i64>(request, 0)), Status::InvalidArgument);
    assert_eq!(status(session.input_tensor(request, 1)), Status::InvalidArgument);
    assert_eq!(status(session.output_tensor(request, 8)), Status::InvalidArgument);
    session.submit(request, Submit::default()).unwrap();
    assert_eq!(status(session.submit(request, Submit::default())), Status::WrongState);
    assert_eq!(status(session.release(request)), Status::WrongState);
    assert_eq!(status(session.input_mut::<f32>(request, 0)), Status::WrongState);
    let taken = end.take();
    end.answer(&taken[0]);
    session.next(0).unwrap();
    assert_eq!(status(session.submit(request, Submit::default())), Status::WrongState);
    assert_eq!(status(session.request_error(request)), Status::WrongState);
    session.release(request).unwrap();
    let error = session.release(request).unwrap_err();
    assert_eq!(error.status(), Status::Stale);
    assert!(error.to_string().contains("generation 1"), "{error}");
    for stale in [request, Request { slot: 1, generation: 0 }] {
        assert_eq!(status(session.submit(stale, Submit::default())), Status::Stale);
        assert_eq!(status(session.cancel(stale)), Status::Stale);
        assert_eq!(status(session.input_tensor(stale, 0)), Status::Stale);
    }
    let nowhere = Request { slot: 2, generation: 1 };
    assert_eq!(status(session.release(nowhere)), Status::InvalidArgument);
    assert!(end.take().is_empty(), "nothing wrong was sent");
}

#[test]
fn claims_are_refused_with_the_rule() {
    let (mut session, _end) = fake::session(2);
    assert_eq!(status(session.claim(99, 1)), Status::NoSuchModel);
    let error = session.claim(ECHO, 9).unwrap_err();
    assert_eq!(error.status(), Status::TooManyRows);
    assert!(error.to_string().contains("1 to 8"), "{error}");
    assert_eq!(status(session.claim(ECHO, 0)), Status::TooManyRows);
    let held = [session.claim(ECHO, 8).unwrap(), session.claim(NULL, 1).unwrap()];
    assert_eq!(status(session.claim(ECHO, 1)), Status::NoFreeSlot);
    session.release(held[0]).unwrap();
    session.claim(ECHO, 1).unwrap();

    let small = Options { slot_bytes: 512, ..Options::default() };
    let (mut session, mut end) = fake::Listener::new().session(&small);
    assert_eq!(session.info().slot_bytes, 512);
    session.claim(ECHO, 8).unwrap();
    let smaller = Options { slot_bytes: 256, ..Options::default() };
    let (mut session, _end) = fake::Listener::new().session(&smaller);
    let error = session.claim(ECHO, 1).unwrap_err();
    assert_eq!(error.status(), Status::SlotTooSmall);
    assert!(error.to_string().contains("512") && error.to_string().contains("256"), "{error}");
    assert!(end.take().is_empty());
}

#[test]
fn a_slot_is_laid_out_for_what_it_holds_now() {
    let (mut session, _end) = fake::session(1);
    let outputs = |session: &mut Session, model, rows| {
        let request = session.claim(model, rows).unwrap();
        let tensor = session.output_tensor(request, 0);
        let bytes = tensor.map(|tensor| tensor.bytes).map_err(|error| error.status());
        session.release(request).unwrap();
        bytes
    };
    assert_eq!(outputs(&mut session, ECHO, 1), Ok(16));
    assert_eq!(outputs(&mut session, ECHO, 8), Ok(128));
    assert_eq!(outputs(&mut session, NULL, 8), Err(Status::InvalidArgument));
    assert_eq!(outputs(&mut session, ECHO, 8), Ok(128));
}

#[test]
fn held_submissions_are_published_with_one_wake() {
    let (mut session, mut end) = fake::session(4);
    assert!(end.submissions.prepare_sleep().unwrap());
    let held = Submit { held: true, ..Submit::default() };
    for _ in 0..3 {
        let request = session.claim(ECHO, 1).unwrap();
        session.submit(request, held).unwrap();
    }
    assert!(end.take().is_empty());
    session.flush().unwrap();
    let mut signals = [0; 8];
    rustix::io::read(&end.submission_bell, &mut signals).unwrap();
    assert_eq!(u64::from_ne_bytes(signals), 1);
    assert_eq!(end.take().len(), 3);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, held).unwrap();
    assert_eq!(status(session.next(0)), Status::Timeout);
    assert_eq!(end.take().len(), 1, "waiting publishes");
}

#[test]
fn answers_come_in_any_order_and_each_once() {
    let (mut session, mut end) = fake::session(64);
    let requests: Vec<_> = (0..64u64)
        .map(|user_data| {
            let request = session.claim(ECHO, 1).unwrap();
            session.input_mut::<f32>(request, 0).unwrap().fill(user_data as f32);
            let how = Submit { user_data, held: true, ..Submit::default() };
            session.submit(request, how).unwrap();
            request
        })
        .collect();
    session.flush().unwrap();
    let mut taken = end.take();
    assert_eq!(taken.len(), 64);
    taken.sort_by_key(|entry| entry.user_data.wrapping_mul(37) % 64);
    taken.iter().for_each(|entry| end.answer(entry));
    let mut answers = blank::<40>();
    assert_eq!(session.wait(&mut answers, 0).unwrap(), 40);
    let first = answers;
    assert_eq!(session.wait(&mut answers, 0).unwrap(), 24);
    let mut seen: Vec<u64> = Vec::new();
    for answer in first.iter().chain(&answers[..24]) {
        let request = requests[answer.user_data as usize];
        assert_eq!(Request::from(answer), request);
        assert_eq!(session.output::<f32>(request, 0).unwrap(), [answer.user_data as f32; 4]);
        session.release(request).unwrap();
        seen.push(answer.user_data);
    }
    assert_ne!(seen, (0..64).collect::<Vec<_>>());
    seen.sort_unstable();
    assert_eq!(seen, (0..64).collect::<Vec<_>>());
    assert_eq!(session.reap(&mut answers).unwrap(), 0);
}

#[test]
fn a_full_ring_pushes_back_and_loses_nothing() {
    // The ring has room for 4 requests and 4 cancellations.
    let (mut session, mut end) = fake::session(4);
    let held = Submit { held: true, ..Submit::default() };
    let first = session.claim(ECHO, 1).unwrap();
    session.submit(first, held).unwrap();
    for _ in 0..7 {
        session.cancel(first).unwrap();
    }
    assert_eq!(status(session.cancel(first)), Status::RingFull);
    let second = session.claim(ECHO, 1).unwrap();
    assert_eq!(status(session.submit(second, Submit::default())), Status::RingFull);
    let taken = end.take();
    assert_eq!(taken.iter().filter(|entry| entry.kind == SUBMIT_CANCEL).count(), 7);
    session.submit(second, Submit::default()).unwrap();
    assert_eq!(end.take().len(), 1);
}

#[test]
fn a_cancelled_request_still_has_one_answer() {
    let (mut session, mut end) = fake::session(2);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit { user_data: 5, ..Submit::default() }).unwrap();
    session.cancel(request).unwrap();
    let taken = end.take();
    assert_eq!((taken[0].kind, taken[1].kind), (SUBMIT_INFER, SUBMIT_CANCEL));
    assert_eq!(taken[1].slot, taken[0].slot);
    assert_eq!(taken[1].generation, taken[0].generation);
    end.post(&answer_to(&taken[0], Status::Cancelled));
    let answer = session.next(0).unwrap();
    assert_eq!((answer.status, answer.user_data), (Status::Cancelled as i32, 5));
    session.release(request).unwrap();
}

fn failed(text: &str, status: Status) -> (Session, End, Request) {
    let (mut session, mut end) = fake::session(2);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit::default()).unwrap();
    let taken = end.take();
    match status {
        Status::ModelError => end.fail(&taken[0], text),
        other => end.post(&answer_to(&taken[0], other)),
    }
    assert_eq!(session.next(0).unwrap().status, status as i32);
    (session, end, request)
}

#[test]
fn what_the_model_said_is_read_from_the_slot() {
    let (session, _end, request) = failed("expected 4 channels, é", Status::ModelError);
    assert_eq!(session.request_error(request).unwrap(), "expected 4 channels, é");
    // Without a final NUL the slot's end is the text's.
    let (session, _end, request) = failed(&"x".repeat(5000), Status::ModelError);
    assert_eq!(session.request_error(request).unwrap(), "x".repeat(1024 - 256));
    // Nobody lived to write one.
    let (session, _end, request) = failed("", Status::ExecutorLost);
    assert_eq!(session.request_error(request).unwrap(), Status::ExecutorLost.text());
    let (session, _end, request) = failed("", Status::QueueFull);
    assert_eq!(status(session.request_error(request)), Status::WrongState);
}

#[test]
fn a_status_of_the_future_passes_through() {
    let (mut session, mut end) = fake::session(2);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit::default()).unwrap();
    let taken = end.take();
    end.post(&Completion { status: 59, ..answer_to(&taken[0], Status::Ok) });
    assert_eq!(session.next(0).unwrap().status, 59);
    session.release(request).unwrap();
}

#[test]
fn the_request_path_allocates_nothing() {
    let (mut session, mut end) = fake::session(8);
    let mut answers = blank::<8>();
    let mut turn = |session: &mut Session, end: &mut End| {
        let client = allocation_counter::measure(|| {
            for _ in 0..8 {
                let request = session.claim(ECHO, 3).unwrap();
                session.input_mut::<f32>(request, 0).unwrap().fill(1.0);
                session.submit(request, Submit { held: true, ..Submit::default() }).unwrap();
            }
            assert!(session.claim(ECHO, 1).is_err());
            session.flush().unwrap();
            assert_eq!(session.reap(&mut answers).unwrap(), 0);
            assert!(session.wait(&mut answers, 0).is_err());
        });
        end.take().iter().for_each(|entry| end.answer(entry));
        let after = allocation_counter::measure(|| {
            assert_eq!(session.wait(&mut answers, u64::MAX).unwrap(), 8);
            for answer in &answers {
                assert_eq!(session.output::<f32>(answer.into(), 0).unwrap()[11], 1.0);
                session.release(answer.into()).unwrap();
            }
        });
        client.count_total + after.count_total
    };
    assert_eq!(turn(&mut session, &mut end), 0);
    assert_eq!(turn(&mut session, &mut end), 0);
}
