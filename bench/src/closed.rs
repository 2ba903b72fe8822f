//! A closed loop: as many requests in flight as there are slots, each answer followed by a request.

use std::time::Duration;

use bytemuck::Zeroable;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, ModelSpec, Options, Request, Session, Submit, Wait};

use crate::daemon::{Daemon, answered};
use crate::error::Error;
use crate::input::fill;
use crate::stats::{Recorder, Round};

/// A deadline that no batch misses: admission is not what is measured.
pub const ANSWER_NS_MAX: u64 = 120_000_000_000;
/// A client that never lets up.
pub struct Load {
    session: Session,
    spec: ModelSpec,
    rows: u32,
    in_flight: u32,
}

impl Load {
    /// Opens the model, and fills every slot.
    ///
    /// # Errors
    /// With the end of the daemon's log.
    pub fn open(daemon: &Daemon, name: &str, rows: u32, in_flight: u32) -> Result<Load, Error> {
        let spec = daemon.model(&mut daemon.session(Options::default())?, name)?;
        let layout = gpulet_abi::tensor::SlotLayout::of_spec(&spec, rows)
            .ok_or_else(|| Error::failed("load", "so many rows have no layout"))?;
        let mut session = daemon.session(Options {
            wait: Wait::Spin,
            slot_bytes: layout.bytes(),
            slot_count: in_flight,
            ..Options::default()
        })?;
        let spec = daemon.model(&mut session, name)?;
        let mut load = Load { session, spec, rows, in_flight };
        load.fill()?;
        Ok(load)
    }

    /// Every slot, where the inputs stay.
    fn fill(&mut self) -> Result<(), Error> {
        let mut requests = Vec::new();
        for seed in 0..self.in_flight {
            let request = self.session.claim(self.spec.model, self.rows)?;
            for index in 0..self.spec.input_count {
                let dtype = self.spec.inputs[index as usize].dtype();
                let input = self.session.input_bytes_mut(request, index)?;
                fill(input, dtype, u64::from(seed * self.spec.input_count + index));
            }
            requests.push(request);
        }
        requests.into_iter().try_for_each(|request| Ok(self.session.release(request)?))
    }

    /// Sends one more; `user_data` comes back with its answer.
    ///
    /// # Errors
    /// Those of the session.
    pub fn submit(&mut self, user_data: u64) -> Result<(), Error> {
        let request = self.session.claim(self.spec.model, self.rows)?;
        let deadline_ns = now_ns() + ANSWER_NS_MAX;
        Ok(self.session.submit(request, Submit { deadline_ns, user_data, ..Submit::default() })?)
    }

    /// Keeps all slots busy for so long, then takes what is left.
    ///
    /// # Errors
    /// The first answer that is none.
    pub fn round(&mut self, duration: Duration) -> Result<Round, Error> {
        let mut recorder = Recorder::new();
        let begin_ns = now_ns();
        let end_ns = begin_ns + duration.as_nanos() as u64;
        for _ in 0..self.in_flight {
            self.submit(now_ns())?;
        }
        let mut flying = self.in_flight;
        let mut answers = [Completion::zeroed(); 16];
        while flying > 0 {
            let count = self.session.reap(&mut answers)?;
            for answer in &answers[..count] {
                answered(answer.status)?;
                let answered_ns = now_ns();
                self.session
                    .release(Request { slot: answer.slot, generation: answer.generation })?;
                flying -= 1;
                if answered_ns < end_ns {
                    recorder.add(Duration::from_nanos(answered_ns - answer.user_data), 1);
                    self.submit(now_ns())?;
                    flying += 1;
                }
            }
        }
        Ok(recorder.finish(Duration::from_nanos(end_ns - begin_ns)))
    }

    /// Takes answers that are there, and releases their slots. How many.
    ///
    /// # Errors
    /// Those of the session.
    pub fn take(&mut self, answers: &mut [Completion]) -> Result<usize, Error> {
        let count = self.session.reap(answers)?;
        for answer in &answers[..count] {
            let request = Request { slot: answer.slot, generation: answer.generation };
            self.session.release(request)?;
        }
        Ok(count)
    }
}
