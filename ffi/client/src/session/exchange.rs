//! What crosses the border: submissions and cancellations out, completions in.

use std::mem::MaybeUninit;

use bytemuck::Zeroable;
use gpulet_abi::arena::SlotState;
use gpulet_abi::layout::{Completion, SUBMIT_CANCEL, SUBMIT_INFER, Submission};
use gpulet_abi::ring::PushError;
use gpulet_abi::version::FEATURE_CANCEL;

use super::{Request, Session};
use crate::error::Error;

/// How to submit a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Submit {
    /// Absolute, on the clock of [`crate::clock::now_ns`]; 0: the model's `slo_ns` from when the
    /// daemon takes the request.
    pub deadline_ns: u64,
    /// Comes back in the completion.
    pub user_data: u64,
    /// Do not publish yet: the next submission that is not held, or a flush, does.
    pub held: bool,
}

impl Session {
    /// Hands a claimed request to the daemon. Never blocks.
    ///
    /// # Errors
    /// [`Error::RingFull`] (the request stays claimed, and what was held is published),
    /// [`gpulet_abi::status::Status::WrongState`], [`gpulet_abi::status::Status::Stale`],
    /// [`Error::Ended`], [`Error::Forked`].
    #[inline]
    pub fn submit(&mut self, request: Request, how: Submit) -> Result<(), Error> {
        self.usable()?;
        self.slots.expect(request, SlotState::Claimed, "only a claimed request is submitted")?;
        let (model, rows) = self.slots.content(request);
        self.stage(&Submission {
            kind: SUBMIT_INFER,
            model,
            slot: request.slot,
            generation: request.generation,
            rows,
            deadline_ns: how.deadline_ns,
            user_data: how.user_data,
            ..Submission::zeroed()
        })?;
        self.slots.submitted(request);
        if how.held { Ok(()) } else { self.publish() }
    }

    /// Publishes held submissions with one store and at most one wake-up.
    ///
    /// # Errors
    /// [`Error::Ended`], [`Error::Forked`].
    pub fn flush(&mut self) -> Result<(), Error> {
        self.usable()?;
        self.publish()
    }

    /// Asks the daemon to drop a submitted request; what was held is published first. Its
    /// completion still comes. Does nothing with a daemon that can not cancel.
    ///
    /// # Errors
    /// [`Error::RingFull`], [`gpulet_abi::status::Status::WrongState`],
    /// [`gpulet_abi::status::Status::Stale`], [`Error::Ended`], [`Error::Forked`].
    pub fn cancel(&mut self, request: Request) -> Result<(), Error> {
        self.usable()?;
        self.slots.expect(
            request,
            SlotState::Submitted,
            "only a submitted request is cancelled",
        )?;
        if self.info.features & FEATURE_CANCEL == 0 {
            return self.publish();
        }
        self.stage(&Submission {
            kind: SUBMIT_CANCEL,
            slot: request.slot,
            generation: request.generation,
            ..Submission::zeroed()
        })?;
        self.publish()
    }

    #[inline]
    fn stage(&mut self, entry: &Submission) -> Result<(), Error> {
        match self.submissions.push(entry) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.not_staged(error)),
        }
    }

    #[cold]
    fn not_staged(&mut self, error: PushError) -> Error {
        match error {
            PushError::Full => {
                // What is held fills the ring too, and the daemon can not take it before this.
                match self.publish() {
                    Ok(()) => Error::RingFull,
                    Err(error) => error,
                }
            }
            PushError::OutOfRange(_) => {
                self.finish_broken("an impossible cursor of the submission ring");
                self.over()
            }
        }
    }

    #[inline]
    pub(super) fn publish(&mut self) -> Result<(), Error> {
        if self.submissions.commit() { self.wake() } else { Ok(()) }
    }

    fn wake(&mut self) -> Result<(), Error> {
        // It can fail only if the program closed our descriptor.
        self.submission_bell
            .signal()
            .map_err(|source| Error::Kernel { what: "submission doorbell", source })
    }

    /// Takes completions, as many as there are and `out` holds, without waiting or any system call.
    ///
    /// # Errors
    /// [`Error::Ended`] when nothing is left to take, [`Error::Forked`].
    #[inline]
    pub fn reap(&mut self, out: &mut [Completion]) -> Result<usize, Error> {
        self.reap_into(as_uninit(out))
    }

    #[inline]
    pub(crate) fn reap_into(
        &mut self,
        out: &mut [MaybeUninit<Completion>],
    ) -> Result<usize, Error> {
        self.same_process()?;
        let count = self.take(out);
        if count > 0 || self.lives() {
            return Ok(count);
        }
        // The daemon posts, and then ends the session: look again now that the end was seen.
        let count = self.take(out);
        if count > 0 || out.is_empty() { Ok(count) } else { Err(self.over()) }
    }

    /// Moves completions out of the ring. What the daemon should not have sent ends the session.
    #[inline]
    pub(super) fn take(&mut self, out: &mut [MaybeUninit<Completion>]) -> usize {
        let mut count = 0;
        while count < out.len() && !self.deaf {
            match self.completions.pop() {
                Ok(Some(answer)) if self.slots.answered(&answer) => {
                    out[count].write(answer);
                    count += 1;
                }
                Ok(None) => break,
                Ok(Some(_)) => self.deafen("an answer to a request that it does not have"),
                Err(_) => self.deafen("an impossible cursor of the completion ring"),
            }
        }
        if count > 0 {
            self.completions.release();
        }
        count
    }

    #[cold]
    pub(super) fn deafen(&mut self, rule: &str) {
        self.deaf = true;
        self.finish_broken(rule);
    }
}

/// The same memory, to be written only.
#[inline]
pub(super) fn as_uninit(out: &mut [Completion]) -> &mut [MaybeUninit<Completion>] {
    // SAFETY: same layout, and this module only ever writes whole completions into it.
    unsafe { &mut *(std::ptr::from_mut(out) as *mut [MaybeUninit<Completion>]) }
}
