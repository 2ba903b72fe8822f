//! A daemon that writes what the ABI forbids: the session ends with a status, and that is all.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod fake;

use bytemuck::Zeroable;
use fake::{ECHO, answer_to};
use gpulet_abi::layout::{Completion, ModelSpec, Welcome};
use gpulet_abi::ring::RingMemory;
use gpulet_abi::status::Status;
use gpulet_abi::sync::Ordering;
use gpulet_client::{Request, Submit, fuzz_packet};
use proptest::prelude::*;

#[test]
fn an_answer_that_nobody_awaits_ends_the_session() {
    let unknown: [fn(Completion) -> Completion; 4] = [
        |answer| Completion { slot: 4, ..answer },
        |answer| Completion { slot: u32::MAX, ..answer },
        |answer| Completion { generation: 9, ..answer },
        |answer| Completion { slot: 1, ..answer },
    ];
    for change in unknown {
        let (mut session, mut end) = fake::session(4);
        let [first, second] = [(); 2].map(|()| session.claim(ECHO, 1).unwrap());
        session.submit(first, Submit::default()).unwrap();
        let taken = end.take();
        end.post(&change(answer_to(&taken[0], Status::Ok)));
        let error = session.next(u64::MAX).unwrap_err();
        assert_eq!(error.status(), Status::ProtocolViolation);
        assert!(error.to_string().contains("the daemon sent an answer"), "{error}");
        assert_eq!(session.release(first).unwrap_err().status(), Status::WrongState);
        session.release(second).unwrap();
    }
}

#[test]
fn an_answer_given_twice_is_taken_once() {
    let (mut session, mut end) = fake::session(4);
    let request = session.claim(ECHO, 1).unwrap();
    session.submit(request, Submit::default()).unwrap();
    let taken = end.take();
    end.answer(&taken[0]);
    end.answer(&taken[0]);
    let mut answers = [Completion::zeroed(); 4];
    assert_eq!(session.reap(&mut answers).unwrap(), 1);
    session.release(request).unwrap();
    assert_eq!(session.reap(&mut answers).unwrap_err().status(), Status::ProtocolViolation);
}

#[test]
fn impossible_cursors_end_the_session() {
    let (mut session, end) = fake::session(4);
    end.completions.memory().tail().store(1000, Ordering::Release);
    assert_eq!(session.next(u64::MAX).unwrap_err().status(), Status::ProtocolViolation);
    assert_eq!(session.arm().unwrap_err().status(), Status::ProtocolViolation);

    let (mut session, end) = fake::session(1);
    let request = session.claim(ECHO, 1).unwrap();
    end.submissions.memory().head().store(1000, Ordering::Release);
    session.submit(request, Submit::default()).unwrap();
    let mut outcome = session.cancel(request);
    for _ in 0..3 {
        outcome = outcome.and_then(|()| session.cancel(request));
    }
    let error = outcome.unwrap_err();
    assert_eq!(error.status(), Status::ProtocolViolation);
    assert!(error.to_string().contains("submission ring"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_completions_break_the_pool(
        entries in prop::collection::vec((0u32..6, 0u32..4, any::<i32>()), 1..40),
    ) {
        let (mut session, mut end) = fake::session(4);
        let mut awaited: Vec<Request> = Vec::new();
        for _ in 0..3 {
            let request = session.claim(ECHO, 1).unwrap();
            session.submit(request, Submit::default()).unwrap();
            awaited.push(request);
        }
        for (slot, generation, status) in entries {
            let answer = Completion { slot, generation, status, ..Completion::zeroed() };
            end.post(&answer);
            let known = awaited.iter().position(|request| *request == Request::from(&answer));
            match (session.next(0), known) {
                (Ok(got), Some(place)) => {
                    prop_assert_eq!(got.status, status);
                    session.release(awaited.swap_remove(place)).unwrap();
                }
                (Err(error), None) => {
                    prop_assert_eq!(error.status(), Status::ProtocolViolation);
                    return Ok(());
                }
                (outcome, known) => prop_assert!(false, "{:?} for {:?}", outcome, known),
            }
        }
    }

    #[test]
    fn no_packet_makes_the_judges_panic(packet in prop::collection::vec(any::<u8>(), 0..3000)) {
        fuzz_packet(&packet);
    }

    /// Random bytes are hardly ever a frame, so start from good ones.
    #[test]
    fn no_change_of_a_frame_makes_the_judges_panic(
        changes in prop::collection::vec((0usize..2368, any::<u8>()), 0..12),
    ) {
        let spec: ModelSpec = fake::spec("echo");
        let geometry = gpulet_abi::region::Geometry::new(256, 4).unwrap();
        let welcome: Welcome = fake::welcome_frame(&geometry);
        for frame in [bytemuck::bytes_of(&spec), bytemuck::bytes_of(&welcome)] {
            let mut packet = frame.to_vec();
            for (place, byte) in &changes {
                let place = place % packet.len();
                packet[place] = *byte;
            }
            fuzz_packet(&packet);
        }
    }
}
