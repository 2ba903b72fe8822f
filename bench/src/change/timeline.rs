//! What happened when: a change of shares, and what it did to the requests of each gpulet.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::error::{Doing, Error};
use crate::settings::Gpulet;
use crate::stats::median;
use crate::steady::{Answer, gap_ns, good_ns};

/// Around a change, what the time line holds.
const MARGIN_NS: u64 = 200_000_000;

/// One change. Times are CLOCK_MONOTONIC.
#[derive(Clone, Debug, Serialize)]
pub struct Change {
    /// The gpulets whose shares change, and those beside them.
    pub steps: Vec<Step>,
    /// When the config began to be written.
    pub begin_ns: u64,
    /// When nothing was left to be done.
    pub over_ns: u64,
    /// When the quiet time before it began, and when that after it began.
    pub quiet_ns: (u64, u64),
    /// When that after it ended.
    pub end_ns: u64,
}

/// A gpulet's part.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    gpulet: String,
    before_pct: u8,
    after_pct: u8,
    /// When the daemon decided that batches go to the new share; `None` before, and where it stays.
    pub decided_ns: Option<u64>,
    /// From when on they did.
    pub switched_ns: Option<u64>,
    /// What held the old share is gone.
    pub is_over: bool,
}

/// What became of a gpulet's requests in a change.
#[derive(Clone, Debug, Serialize)]
pub struct Course {
    gpulet: String,
    before_pct: u8,
    after_pct: u8,
    /// From the new config to the decision.
    pub ready_ns: u64,
    /// From the decision until batches went to the new share.
    pub switch_ns: u64,
    /// From the decision until the first such batch was handed over, and until it was answered.
    pub first_begun_ns: u64,
    /// See above.
    pub first_answered_ns: u64,
    /// Between two answers, on the slower of both shares.
    pub batch_ns: u64,
    /// The longest time between two answers meanwhile.
    pub gap_ns: u64,
    /// Requests that took longer than usual on the slower share, by more than a batch.
    pub late: usize,
    /// The same before and after.
    pub late_when_quiet: usize,
    /// How much longer, at the most.
    pub late_most_ns: u64,
}

impl Change {
    /// One that begins; the gpulets have their new shares.
    pub fn new(gpulets: &[Gpulet], before_pct: Vec<u8>, begin_ns: u64) -> Change {
        let step = |(gpulet, before_pct): (&Gpulet, u8)| Step {
            gpulet: gpulet.name.clone(),
            before_pct,
            after_pct: gpulet.share_pct,
            decided_ns: None,
            switched_ns: None,
            is_over: before_pct == gpulet.share_pct,
        };
        let steps = gpulets.iter().zip(before_pct).map(step).collect();
        Change { steps, begin_ns, over_ns: begin_ns, quiet_ns: (0, 0), end_ns: begin_ns }
    }

    /// Whether everybody has the new share, and nobody the old one.
    pub fn is_over(&self) -> bool {
        self.steps.iter().all(|step| step.is_over)
    }

    /// For people.
    pub fn title(&self) -> String {
        let shares = |of: fn(&Step) -> u8| {
            self.steps.iter().map(|it| of(it).to_string()).collect::<Vec<_>>().join(",")
        };
        let seconds = self.over_ns.saturating_sub(self.begin_ns) as f64 / 1e9;
        let (before, after) = (shares(|it| it.before_pct), shares(|it| it.after_pct));
        format!("{before} to {after}, {seconds:.2} s in all")
    }

    /// What became of the requests of each gpulet whose share changed.
    pub fn courses(&self, answers: &[Answer]) -> Vec<Course> {
        let steps = self.steps.iter().enumerate();
        let changed = steps.filter(|(_, step)| step.decided_ns.is_some());
        changed.map(|(who, step)| self.course(who, step, answers)).collect()
    }

    fn course(&self, who: usize, step: &Step, answers: &[Answer]) -> Course {
        let decided_ns = step.decided_ns.unwrap_or(self.begin_ns);
        let switched_ns = step.switched_ns.unwrap_or(decided_ns);
        let mine: Vec<&Answer> = answers.iter().filter(|it| it.who == who).collect();
        let quiet = [(self.quiet_ns.0, self.begin_ns), (self.quiet_ns.1, self.end_ns)];
        let usual = quiet.map(|(begin_ns, end_ns)| Usual::of(&mine, begin_ns, end_ns));
        let latency_ns = usual[0].latency_ns.max(usual[1].latency_ns);
        let batch_ns = usual[0].batch_ns.max(usual[1].batch_ns);
        let over_ns = |answer: &Answer| answer.latency_ns().saturating_sub(latency_ns);
        let late = |begin_ns: u64, end_ns: u64| {
            let within =
                mine.iter().filter(|it| it.finished_ns >= begin_ns && it.asked_ns < end_ns);
            within.map(|it| over_ns(it)).filter(|over_ns| *over_ns > batch_ns).collect::<Vec<_>>()
        };
        let late_ns = late(self.begin_ns, self.quiet_ns.1);
        let quiet_late = quiet.map(|(begin_ns, end_ns)| late(begin_ns, end_ns).len());
        let good = good_ns(answers, who, self.begin_ns, self.quiet_ns.1);
        let new = mine.iter().filter(|it| it.begun_ns >= switched_ns && it.is_good());
        let first = new.min_by_key(|it| it.begun_ns);
        let since = |ns: Option<u64>| ns.unwrap_or(u64::MAX).saturating_sub(decided_ns);
        Course {
            gpulet: step.gpulet.clone(),
            before_pct: step.before_pct,
            after_pct: step.after_pct,
            ready_ns: decided_ns.saturating_sub(self.begin_ns),
            switch_ns: switched_ns.saturating_sub(decided_ns),
            first_begun_ns: since(first.map(|it| it.begun_ns)),
            first_answered_ns: since(first.map(|it| it.finished_ns)),
            batch_ns,
            gap_ns: gap_ns(&good, self.begin_ns, self.quiet_ns.1),
            late: late_ns.len(),
            late_when_quiet: quiet_late.into_iter().sum(),
            late_most_ns: late_ns.into_iter().max().unwrap_or(0),
        }
    }
}

/// What is usual in a quiet time.
struct Usual {
    latency_ns: u64,
    /// Between two answers.
    batch_ns: u64,
}

impl Usual {
    fn of(mine: &[&Answer], begin_ns: u64, end_ns: u64) -> Usual {
        let within = |it: &&&Answer| it.asked_ns >= begin_ns && it.finished_ns < end_ns;
        let within: Vec<&Answer> = mine.iter().filter(within).copied().collect();
        let mut times: Vec<u64> = within.iter().map(|it| it.finished_ns).collect();
        times.sort_unstable();
        let between = times.windows(2).map(|pair| (pair[1] - pair[0]) as f64);
        Usual {
            latency_ns: median(within.iter().map(|it| it.latency_ns() as f64)) as u64,
            batch_ns: median(between) as u64,
        }
    }
}

impl fmt::Display for Course {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |ns: u64| ns as f64 / 1e6;
        write!(
            f,
            "{} {} % to {} %: ready after {:.2} s; first batch {:.3} ms after the decision, answered \
             after {:.3} ms; longest without an answer {:.2} ms (a batch takes {:.2} ms); {} late by \
             more than a batch ({} when quiet), {:.2} ms at the most",
            self.gpulet,
            self.before_pct,
            self.after_pct,
            self.ready_ns as f64 / 1e9,
            ms(self.first_begun_ns),
            ms(self.first_answered_ns),
            ms(self.gap_ns),
            ms(self.batch_ns),
            self.late,
            self.late_when_quiet,
            ms(self.late_most_ns),
        )
    }
}

/// Writes what happened around each change, in the order in which it did; times in ms from when the
/// config began to be written.
///
/// # Errors
/// What the kernel says.
pub fn write(path: &Path, changes: &[Change], answers: &[Answer]) -> Result<(), Error> {
    let mut text = "change,t_ms,gpulet,event,latency_ms\n".to_owned();
    for (number, change) in changes.iter().enumerate() {
        let (begin_ns, end_ns) =
            (change.begin_ns.saturating_sub(MARGIN_NS), change.over_ns + MARGIN_NS);
        let mut lines: Vec<(u64, &str, &str, f64)> = Vec::new();
        lines.push((change.begin_ns, "", "config", 0.0));
        for step in &change.steps {
            let mut add = |at_ns: Option<u64>, what| {
                lines.extend(at_ns.map(|at_ns| (at_ns, step.gpulet.as_str(), what, 0.0)));
            };
            add(step.decided_ns, "decided");
            add(step.switched_ns, "switched");
        }
        lines.push((change.over_ns, "", "over", 0.0));
        let within = |it: &&Answer| (begin_ns..end_ns).contains(&it.finished_ns);
        for answer in answers.iter().filter(within) {
            let gpulet = change.steps.get(answer.who).map_or("", |step| step.gpulet.as_str());
            let what = if answer.is_good() { "answer" } else { "failed" };
            lines.push((answer.finished_ns, gpulet, what, answer.latency_ns() as f64 / 1e6));
        }
        lines.sort_by_key(|line| line.0);
        for (at_ns, gpulet, what, latency_ms) in lines {
            let t_ms = (at_ns as f64 - change.begin_ns as f64) / 1e6;
            // Writing to a String never fails.
            let _ = writeln!(text, "{number},{t_ms:.3},{gpulet},{what},{latency_ms:.3}");
        }
    }
    fs::write(path, text).doing(&format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use gpulet_client::Status;

    use super::*;
    use crate::settings::{Gpulet, Held};

    const MS: u64 = 1_000_000;

    /// Answers every 2 ms, each to what was asked 4 ms before.
    fn steady(begin_ms: u64, end_ms: u64) -> Vec<Answer> {
        let answer = |half: u64| Answer {
            who: 0,
            asked_ns: (2 * half).saturating_sub(4) * MS,
            begun_ns: (2 * half).saturating_sub(2) * MS,
            finished_ns: 2 * half * MS,
            status: Status::Ok,
        };
        (begin_ms / 2..end_ms / 2).map(answer).collect()
    }

    fn change() -> Change {
        let gpulet = Gpulet::of(Held::Mps, 75);
        let mut change = Change::new(&[gpulet], vec![50], 1000 * MS);
        change.steps[0].decided_ns = Some(1201 * MS);
        change.steps[0].switched_ns = Some(1203 * MS);
        (change.over_ns, change.quiet_ns, change.end_ns) = (1300 * MS, (0, 1500 * MS), 2000 * MS);
        change
    }

    #[test]
    fn a_change_that_nobody_notices_has_no_gap_and_nothing_late() {
        let course = change().courses(&steady(0, 2000)).remove(0);
        assert_eq!((course.ready_ns, course.switch_ns), (201 * MS, 2 * MS));
        // Handed over at 1204, the first after the switch.
        assert_eq!((course.first_begun_ns, course.first_answered_ns), (3 * MS, 5 * MS));
        assert_eq!((course.batch_ns, course.gap_ns), (2 * MS, 2 * MS));
        assert_eq!((course.late, course.late_when_quiet, course.late_most_ns), (0, 0, 0));
    }

    #[test]
    fn a_pause_is_a_gap_and_what_waited_through_it_is_late() {
        let mut answers = steady(0, 2000);
        for answer in &mut answers {
            if (1202 * MS..1212 * MS).contains(&answer.finished_ns) {
                answer.finished_ns = 1212 * MS;
            }
        }
        let course = change().courses(&answers).remove(0);
        assert_eq!(course.gap_ns, 12 * MS);
        // Usual are 4 ms, and up to 6 are not late: those that took 14, 12, 10 and 8 are.
        assert_eq!((course.late, course.late_most_ns), (4, 10 * MS));
        assert_eq!(course.late_when_quiet, 0);
    }

    #[test]
    fn a_share_that_stays_has_no_course() {
        let gpulet = Gpulet::of(Held::Mps, 50);
        let change = Change::new(&[gpulet], vec![50], 0);
        assert!(change.is_over() && change.courses(&steady(0, 10)).is_empty());
    }
}
