//! Clients that know what the right answers are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use gpulet_client::{Completion, Request, Session, Status, Submit};

use super::PATIENCE_NS;
use super::daemon::Daemon;

/// Bytes that differ from each other and by seed.
pub fn pattern(seed: u64, count: usize) -> Vec<u8> {
    let mut random = super::Random(seed);
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        bytes.extend_from_slice(&random.next().to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

/// The status of a completion.
pub fn status(answer: &Completion) -> Status {
    Status::from_number(answer.status).unwrap()
}

/// Opens a model that is there; its number.
pub fn open(session: &mut Session, model: &str) -> u32 {
    session.model_open(model).unwrap().model
}

/// Claims a request and fills its first input with the pattern of `seed`.
pub fn claim(session: &mut Session, model: u32, rows: u32, seed: u64) -> Request {
    let request = session.claim(model, rows).unwrap();
    let input = session.input_bytes_mut(request, 0).unwrap();
    let bytes = pattern(seed, input.len());
    input.copy_from_slice(&bytes);
    request
}

/// Submits a request of which the answer will carry `seed`.
pub fn submit(session: &mut Session, model: u32, rows: u32, seed: u64) -> Request {
    submit_until(session, model, rows, seed, 0)
}

/// The same, with a deadline.
pub fn submit_until(
    session: &mut Session,
    model: u32,
    rows: u32,
    seed: u64,
    deadline_ns: u64,
) -> Request {
    let request = claim(session, model, rows, seed);
    let how = Submit { deadline_ns, user_data: seed, held: false };
    session.submit(request, how).unwrap();
    request
}

/// The next answer, which must come.
pub fn next(session: &mut Session) -> Completion {
    session.next(PATIENCE_NS).unwrap()
}

/// The next `count` answers, in the order of their user data, each once.
pub fn collect(session: &mut Session, count: usize) -> Vec<Completion> {
    let mut answers: Vec<Completion> = (0..count).map(|_| next(session)).collect();
    answers.sort_by_key(|answer| answer.user_data);
    let twice = answers.windows(2).find(|pair| pair[0].user_data == pair[1].user_data);
    assert!(twice.is_none(), "answered twice: {twice:?}");
    assert_eq!(session.reap(&mut [answers[0]]).unwrap(), 0, "more answers than requests");
    answers
}

/// Whether a completed echo answers what was asked under `seed`.
pub fn is_echo(session: &Session, answer: &Completion) -> bool {
    let output = session.output_bytes(answer.into(), 0).unwrap();
    output == pattern(answer.user_data, output.len())
}

/// Asserts that an echo was answered rightly, and releases it.
pub fn finish_echo(session: &mut Session, answer: &Completion) {
    assert_eq!(status(answer), Status::Ok, "{answer:?}");
    assert!(is_echo(session, answer), "a wrong answer: {answer:?}");
    session.release(answer.into()).unwrap();
}

/// One echo, there and back.
pub fn echo_once(session: &mut Session, model: u32, rows: u32, seed: u64) -> Completion {
    submit(session, model, rows, seed);
    let answer = next(session);
    assert_eq!(answer.user_data, seed);
    finish_echo(session, &answer);
    answer
}

/// Says that it is over, also where what went on has panicked: nobody would end its clients.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Asks for echoes without a pause while `change` goes on: each is answered rightly.
pub fn echo_meanwhile(daemon: &Daemon, change: impl FnOnce()) {
    let stop = &AtomicBool::new(false);
    let (waiting, begun) = channel::<()>();
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..2)
            .map(|_| {
                let mut waiting = Some(waiting.clone());
                scope.spawn(move || {
                    let mut session = Session::open(&daemon.options().slots(8)).unwrap();
                    let echo = open(&mut session, "echo");
                    let mut seed = 0;
                    while !stop.load(Ordering::Relaxed) {
                        for _ in 0..8 {
                            seed += 1;
                            submit(&mut session, echo, 1, seed);
                        }
                        for answer in collect(&mut session, 8) {
                            finish_echo(&mut session, &answer);
                        }
                        waiting.take();
                    }
                    seed
                })
            })
            .collect();
        // Until all have been answered once, or failed.
        drop(waiting);
        let _ = begun.recv();
        let over = Over(stop);
        change();
        drop(over);
        for client in clients {
            assert!(client.join().unwrap() > 0);
        }
    });
    let state = daemon.state();
    let answers = state.model("echo").unwrap()["answers"].as_object().unwrap();
    assert_eq!(answers.len(), 1, "only GPULET_OK: {answers:?}");
}
