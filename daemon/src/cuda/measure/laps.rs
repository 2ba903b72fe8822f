//! Closed loops: everybody runs one batch after the other, as fast as it can, and waits for nobody.
//! Nothing in here knows what a batch is.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::now_ns;

/// Between two looks at what runs beside the loops.
const LOOK: Duration = Duration::from_millis(5);
/// Laps that there is room for before any is run.
const ROOM: usize = 1 << 16;

/// One batch, on CLOCK_MONOTONIC, which all processes of a host share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Lap {
    /// When it was begun.
    pub begin_ns: u64,
    /// When its results were there.
    pub end_ns: u64,
}

impl From<(u64, u64)> for Lap {
    fn from((begin_ns, end_ns): (u64, u64)) -> Lap {
        Lap { begin_ns, end_ns }
    }
}

impl From<Lap> for (u64, u64) {
    fn from(lap: Lap) -> (u64, u64) {
        (lap.begin_ns, lap.end_ns)
    }
}

impl Lap {
    /// What it took.
    pub fn ns(&self) -> u64 {
        self.end_ns.saturating_sub(self.begin_ns)
    }
}

/// How long loops run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Until {
    /// At least so long.
    pub ns: u64,
    /// And until each has run so many batches.
    pub laps_min: usize,
    /// But at most so long.
    pub ns_max: u64,
    /// Batches of each before the first that counts.
    pub warm: usize,
}

/// Something that runs batches.
pub trait Runner: Send {
    /// Called once, by the thread that runs them.
    ///
    /// # Errors
    /// What is wrong, for people.
    fn enter(&mut self) -> Result<(), String>;

    /// Runs one batch, and waits for its end.
    ///
    /// # Errors
    /// What is wrong, for people.
    fn batch(&mut self) -> Result<(), String>;
}

/// What all the loops look at.
struct Course {
    until: Until,
    start: Barrier,
    runner_count: usize,
    /// Those that have run enough.
    content: AtomicUsize,
    over: AtomicBool,
}

impl Course {
    fn is_over(&self, elapsed_ns: u64) -> bool {
        let content = self.content.load(Ordering::Relaxed) == self.runner_count;
        let enough = elapsed_ns >= self.until.ns && content;
        if enough || elapsed_ns >= self.until.ns_max {
            self.over.store(true, Ordering::Relaxed);
        }
        self.over.load(Ordering::Relaxed)
    }

    fn run(&self, runner: &mut dyn Runner) -> Result<Vec<Lap>, String> {
        let mut laps = Vec::with_capacity(ROOM);
        let entered = runner.enter();
        self.start.wait();
        let ran = entered.and_then(|()| self.laps(runner, &mut laps));
        if ran.is_err() {
            self.over.store(true, Ordering::Relaxed);
        }
        ran.map(|()| laps)
    }

    fn laps(&self, runner: &mut dyn Runner, laps: &mut Vec<Lap>) -> Result<(), String> {
        let start_ns = now_ns();
        for _ in 0..self.until.warm {
            runner.batch()?;
        }
        loop {
            let begin_ns = now_ns();
            if self.is_over(begin_ns - start_ns) {
                return Ok(());
            }
            runner.batch()?;
            laps.push(Lap { begin_ns, end_ns: now_ns() });
            if laps.len() == self.until.laps_min.max(1) {
                self.content.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// Runs everybody at once, a thread each, and calls `look` now and then meanwhile. The laps of each.
///
/// # Errors
/// The first error of any; it ends all loops.
pub fn together(
    runners: &mut [Box<dyn Runner + '_>],
    until: &Until,
    mut look: impl FnMut(),
) -> Result<Vec<Vec<Lap>>, String> {
    let course = Course {
        until: *until,
        start: Barrier::new(runners.len()),
        runner_count: runners.len(),
        content: AtomicUsize::new(0),
        over: AtomicBool::new(false),
    };
    let course = &course;
    thread::scope(|scope| {
        let threads: Vec<_> = runners
            .iter_mut()
            .map(|runner| scope.spawn(move || course.run(runner.as_mut())))
            .collect();
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            look();
            thread::sleep(LOOK);
        }
        let join = |thread: thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a loop panicked".to_owned()))
        };
        threads.into_iter().map(join).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Counter {
        entered: bool,
        batches: usize,
        fails_at: usize,
    }

    impl Runner for Counter {
        fn enter(&mut self) -> Result<(), String> {
            self.entered = true;
            Ok(())
        }

        fn batch(&mut self) -> Result<(), String> {
            assert!(self.entered);
            self.batches += 1;
            let failed = || Err(format!("batch {}", self.batches));
            if self.batches == self.fails_at { failed() } else { Ok(()) }
        }
    }

    fn counter(fails_at: usize) -> Box<dyn Runner> {
        Box::new(Counter { entered: false, batches: 0, fails_at })
    }

    const UNTIL: Until = Until { ns: 0, laps_min: 50, ns_max: 60_000_000_000, warm: 3 };

    #[test]
    fn everybody_runs_until_all_have_run_enough() {
        let mut runners = vec![counter(0), counter(0), counter(0)];
        let laps = together(&mut runners, &UNTIL, || ()).unwrap();
        assert_eq!(laps.len(), 3);
        for laps in laps {
            assert!(laps.len() >= 50, "{}", laps.len());
            assert!(laps.windows(2).all(|pair| pair[0].end_ns <= pair[1].begin_ns));
        }
        assert_eq!(together(&mut [], &UNTIL, || ()), Ok(vec![]));
    }

    #[test]
    fn one_error_ends_all_loops() {
        let mut runners = vec![counter(0), counter(7)];
        let until = Until { laps_min: usize::MAX, ..UNTIL };
        assert_eq!(together(&mut runners, &until, || ()), Err("batch 7".to_owned()));
    }

    #[test]
    fn a_lap_is_two_numbers() {
        let lap = Lap { begin_ns: 5, end_ns: 9 };
        assert_eq!(serde_json::to_string(&lap).unwrap(), "[5,9]");
        assert_eq!(serde_json::from_str::<Lap>("[5,9]").unwrap(), lap);
        assert_eq!(lap.ns(), 4);
    }
}
