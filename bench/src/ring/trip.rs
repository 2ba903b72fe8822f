//! Round trips through a daemon: one way to wait, so many in flight, so many bytes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use gpulet_abi::tensor;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, Options, Request, Session, Submit, Wait};

use crate::daemon::{Daemon, answered};
use crate::error::Error;
use crate::place::Place;
use crate::settings::{ALWAYS, Gpulet, Settings, Spin};
use crate::stats::{self, Recorder, Round, Window};

/// A null model answers in microseconds; one that does not in so long never will.
const ANSWER_NS_MAX: u64 = 10_000_000_000;
/// Answers that are taken at a time.
const ANSWERS_MAX: usize = 256;

/// How both sides wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Neither ever sleeps.
    Busy,
    /// Both sleep as soon as there is nothing to do.
    Blocking,
}

/// Where daemons are started: the program, and the folder with its models.
#[derive(Debug)]
pub struct Bed {
    /// A gpuletd.
    pub program: PathBuf,
    /// Holds the null models.
    pub place: Place,
}

impl Bed {
    /// A daemon on one CPU that waits so.
    ///
    /// # Errors
    /// With the daemon's words.
    pub fn daemon(&self, cpu: u32, wake: Wake) -> Result<Daemon, Error> {
        let spin = match wake {
            Wake::Busy => ALWAYS,
            Wake::Blocking => Spin::Micros(0),
        };
        let settings = Settings { spin, ..Settings::of(vec![Gpulet::idle()]) };
        Daemon::start(&self.program, &self.place, Some(cpu), &settings)
    }
}

/// One contender.
#[derive(Clone, Copy, Debug)]
pub struct Trip {
    /// How both sides wait.
    pub wake: Wake,
    /// Requests in flight, at least one.
    pub in_flight: u32,
    /// Bytes of input.
    pub payload_bytes: u64,
    /// Whether the input is written before each submission.
    pub touch: bool,
}

/// How the null model with so many bytes of input is called.
pub fn model_name(payload_bytes: u64) -> String {
    format!("null-{payload_bytes}")
}

/// Bytes for people.
pub fn bytes_text(bytes: u64) -> String {
    match bytes {
        bytes if bytes >= 1 << 20 && bytes.is_power_of_two() => format!("{} MiB", bytes >> 20),
        bytes if bytes >= 1 << 10 && bytes.is_power_of_two() => format!("{} KiB", bytes >> 10),
        bytes => format!("{bytes} B"),
    }
}

impl Trip {
    /// As the table calls it.
    pub fn title(&self) -> String {
        let wake = if self.wake == Wake::Busy { "busy" } else { "blocking" };
        let touch = if self.touch { ", written" } else { "" };
        format!("{wake}, {} in flight, {}{touch}", self.in_flight, bytes_text(self.payload_bytes))
    }

    /// Measures one round, in a session of its own.
    ///
    /// # Errors
    /// What the session says, and any answer but success.
    pub fn round(&self, daemon: &Daemon, window: Window) -> Result<Round, Error> {
        let slot_bytes = tensor::align(self.payload_bytes).and_then(|end| tensor::align(end + 1));
        let wait = if self.wake == Wake::Busy { Wait::Spin } else { Wait::Block };
        let mut session = daemon.session(Options {
            wait,
            slot_bytes: slot_bytes.unwrap_or(u64::MAX),
            slot_count: self.in_flight,
            ..Options::default()
        })?;
        let model = daemon.model(&mut session, &model_name(self.payload_bytes))?.model;
        if self.in_flight == 1 {
            stats::measure(window, || self.one(&mut session, model))
        } else {
            self.many(&mut session, model, window)
        }
    }

    /// Everything that a program does for one request.
    fn one(&self, session: &mut Session, model: u32) -> Result<(), Error> {
        let request = self.claim(session, model)?;
        session.submit(request, Submit::default())?;
        let answer = session.next(ANSWER_NS_MAX)?;
        answered(answer.status)?;
        session.release(request)?;
        Ok(())
    }

    /// Keeps all slots in flight: whatever was answered is submitted again, all of it together.
    fn many(&self, session: &mut Session, model: u32, window: Window) -> Result<Round, Error> {
        let mut recorder = Recorder::new();
        let mut answers = [Completion::zeroed(); ANSWERS_MAX];
        let mut sent_ns = now_ns();
        for _ in 0..self.in_flight {
            self.submit(session, model, sent_ns)?;
        }
        let warm_end = Instant::now() + window.warm;
        let mut begin = None;
        loop {
            // Waiting publishes what was held.
            let count = session.wait(&mut answers, ANSWER_NS_MAX)?;
            let now = Instant::now();
            sent_ns = now_ns();
            for answer in &answers[..count] {
                answered(answer.status)?;
                if begin.is_some() {
                    recorder.add(Duration::from_nanos(sent_ns - answer.user_data), 1);
                }
                session.release(Request::from(answer))?;
            }
            match begin {
                None if now >= warm_end => begin = Some(now),
                Some(begin) if now - begin >= window.measured => {
                    return Ok(recorder.finish(now - begin));
                }
                _ => {}
            }
            for _ in 0..count {
                self.submit(session, model, sent_ns)?;
            }
        }
    }

    fn submit(&self, session: &mut Session, model: u32, sent_ns: u64) -> Result<(), Error> {
        let request = self.claim(session, model)?;
        session.submit(request, Submit { user_data: sent_ns, held: true, deadline_ns: 0 })?;
        Ok(())
    }

    #[inline]
    fn claim(&self, session: &mut Session, model: u32) -> Result<Request, Error> {
        let request = session.claim(model, 1)?;
        if self.touch {
            session.input_bytes_mut(request, 0)?.fill(1);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn titles_tell_all_that_differs() {
        let trip = Trip { wake: Wake::Busy, in_flight: 1, payload_bytes: 602_112, touch: false };
        assert_eq!(trip.title(), "busy, 1 in flight, 602112 B");
        let trip = Trip { wake: Wake::Blocking, touch: true, payload_bytes: 64, ..trip };
        assert_eq!(trip.title(), "blocking, 1 in flight, 64 B, written");
        assert_eq!(bytes_text(16 << 20), "16 MiB");
    }
}
