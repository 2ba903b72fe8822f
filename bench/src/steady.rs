//! Closed loops that go on whatever happens, and every request of which is counted.
//!
//! One thread looks at all of them in turn. A request is known by its number, so that an answer that
//! comes twice, or never, is noticed; answers that are errors count as answers.

use std::time::Duration;

use bytemuck::Zeroable;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, Status};

use crate::closed::Load;
use crate::daemon::Daemon;
use crate::error::Error;

/// The longest wait for the last answers: longer than anything recovers in.
const LAST_MAX: Duration = Duration::from_secs(60);

/// One answer. Times are CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
pub struct Answer {
    /// Which loop's, by its place.
    pub who: usize,
    /// When it was asked for.
    pub asked_ns: u64,
    /// When its batch was handed to an executor; when it was answered, if it never was.
    pub begun_ns: u64,
    /// When the daemon wrote it.
    pub finished_ns: u64,
    /// How it went.
    pub status: Status,
}

impl Answer {
    /// Whether it is what was asked for.
    pub fn is_good(&self) -> bool {
        self.status == Status::Ok
    }

    /// From asked to answered.
    pub fn latency_ns(&self) -> u64 {
        self.finished_ns.saturating_sub(self.asked_ns)
    }
}

/// The loops.
pub struct Steady {
    loads: Vec<Load>,
    depth: u32,
    /// By number, when each was asked for; `None` once it is answered.
    open: Vec<Option<u64>>,
    answers: Vec<Answer>,
}

impl Steady {
    /// A loop for each model, with `depth` requests of `rows` rows in flight, and none sent yet.
    ///
    /// # Errors
    /// With the end of the daemon's log.
    pub fn open(
        daemon: &Daemon,
        models: &[String],
        rows: u32,
        depth: u32,
    ) -> Result<Steady, Error> {
        let load = |model: &String| Load::open(daemon, model, rows, depth);
        let loads = models.iter().map(load).collect::<Result<_, _>>()?;
        Ok(Steady { loads, depth, open: Vec::new(), answers: Vec::new() })
    }

    /// Fills all slots.
    ///
    /// # Errors
    /// Those of the sessions.
    pub fn begin(&mut self) -> Result<(), Error> {
        for who in 0..self.loads.len() {
            for _ in 0..self.depth {
                self.submit(who)?;
            }
        }
        Ok(())
    }

    fn submit(&mut self, who: usize) -> Result<(), Error> {
        self.open.push(Some(now_ns()));
        self.loads[who].submit(self.open.len() as u64 - 1)
    }

    /// Goes on for so long.
    ///
    /// # Errors
    /// See [`until`](Self::until).
    pub fn go_on(&mut self, duration: Duration) -> Result<(), Error> {
        self.until(duration, |_| Ok(false)).map(drop)
    }

    /// Goes on until `done`, which is asked between looks, or for `limit`. Whether it was done.
    ///
    /// # Errors
    /// Those of `done` and of the sessions; an answer to what was not asked, or was answered.
    pub fn until(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&Steady) -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let end_ns = now_ns() + limit.as_nanos() as u64;
        while now_ns() < end_ns {
            for who in 0..self.loads.len() {
                for _ in 0..self.take(who)? {
                    self.submit(who)?;
                }
            }
            if done(self)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Answers so far, each loop's in the order in which they came.
    pub fn answers(&self) -> &[Answer] {
        &self.answers
    }

    /// Takes the last answers, and hands all over.
    ///
    /// # Errors
    /// A request without an answer.
    pub fn finish(mut self) -> Result<Vec<Answer>, Error> {
        let end_ns = now_ns() + LAST_MAX.as_nanos() as u64;
        while self.answers.len() < self.open.len() && now_ns() < end_ns {
            for who in 0..self.loads.len() {
                self.take(who)?;
            }
        }
        match self.open.iter().flatten().count() {
            0 => Ok(self.answers),
            lost => Err(Error::failed("load", format!("{lost} requests have no answer"))),
        }
    }

    /// Takes answers that are there; how many.
    fn take(&mut self, who: usize) -> Result<usize, Error> {
        let mut answers = [Completion::zeroed(); 16];
        let count = self.loads[who].take(&mut answers)?;
        for answer in &answers[..count] {
            let asked_ns = self.open.get_mut(answer.user_data as usize).and_then(Option::take);
            let Some(asked_ns) = asked_ns else {
                return Err(Error::failed("load", "a request was answered twice"));
            };
            self.answers.push(Answer {
                who,
                asked_ns,
                begun_ns: answer.finished_ns.saturating_sub(answer.exec_ns),
                finished_ns: answer.finished_ns,
                status: Status::from_number(answer.status).unwrap_or(Status::Internal),
            });
        }
        Ok(count)
    }
}

/// When a loop was answered well within a stretch of time, ascending.
pub fn good_ns(answers: &[Answer], who: usize, begin_ns: u64, end_ns: u64) -> Vec<u64> {
    let good = answers.iter().filter(|it| it.who == who && it.is_good());
    let times = good.map(|it| it.finished_ns);
    let mut times: Vec<u64> =
        times.filter(|finished_ns| (begin_ns..end_ns).contains(finished_ns)).collect();
    times.sort_unstable();
    times
}

/// The longest time between two of the times, `begin_ns` and `end_ns` being some too.
pub fn gap_ns(times: &[u64], begin_ns: u64, end_ns: u64) -> u64 {
    let ends = times.iter().copied().chain([end_ns]);
    let mut last_ns = begin_ns;
    ends.map(|next_ns| next_ns.saturating_sub(std::mem::replace(&mut last_ns, next_ns)))
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_between_neighbours_and_at_the_ends() {
        assert_eq!(gap_ns(&[10, 20, 50], 5, 55), 30);
        assert_eq!(gap_ns(&[10, 20, 50], 5, 100), 50);
        assert_eq!(gap_ns(&[], 5, 100), 95);
    }

    #[test]
    fn only_good_answers_of_one_loop_count() {
        let answer = |who, finished_ns, status| Answer {
            who,
            asked_ns: 0,
            begun_ns: 0,
            finished_ns,
            status,
        };
        let answers = [
            answer(0, 30, Status::Ok),
            answer(1, 35, Status::Ok),
            answer(0, 20, Status::Ok),
            answer(0, 40, Status::ExecutorLost),
            answer(0, 90, Status::Ok),
        ];
        assert_eq!(good_ns(&answers, 0, 10, 50), [20, 30]);
    }
}
