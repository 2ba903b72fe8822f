//! `gpulet-bench load`: requests at a stated rate, whether or not the answers keep up.
//!
//! The times at which requests are due are drawn beforehand. A latency counts from when its request
//! was due, not from when it could be sent, so a stall of the daemon, or of this program, is in the
//! latency of every request that it delayed.

use std::path::PathBuf;
use std::time::Duration;

use bytemuck::Zeroable;
use clap::{Args, ValueEnum};
use gpulet_client::clock::now_ns;
use gpulet_client::{
    Completion, Dtype, Error as ClientError, ModelSpec, Options, Request, Session, Status, Submit,
    Wait,
};
use serde::Serialize;
use serde_json::json;

use crate::daemon::open_model;
use crate::error::Error;
use crate::report::{Host, Report};
use crate::stats::{Recorder, Summary};

const LOAD_MAX: Duration = Duration::from_secs(300);
/// Answers that are taken at a time.
const ANSWERS_MAX: usize = 256;
/// A sleep ends this late at times, so the last of a wait for the next request is spent polling.
const SLEEP_SLACK_NS: u64 = 100_000;
/// How long answers are waited for after the last request, beyond the SLO.
const GRACE_NS: u64 = 10_000_000_000;

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Arrivals {
    /// Independently of each other: gaps are exponential.
    Poisson,
    /// With equal gaps.
    Uniform,
}

#[derive(Debug, Args)]
pub struct Arguments {
    /// Name of a model that the daemon serves
    model: String,
    /// The daemon's socket [default: $GPULET_SOCKET, else /run/gpulet/gpuletd.sock]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Requests a second
    #[arg(long, value_parser = rate)]
    rate: f64,
    /// Seconds for which requests come
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    duration: f64,
    /// How they come
    #[arg(long, value_enum, default_value_t = Arrivals::Poisson)]
    arrivals: Arrivals,
    /// Milliseconds from due to answered that count as good [default: the model's slo_ms]
    #[arg(long, value_parser = slo)]
    slo_ms: Option<f64>,
    /// Rows of each request
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Requests that can be in flight; those beyond wait here, and their latency runs
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65536))]
    slots: u32,
    /// Of the random arrivals and inputs
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn between(text: &str, low: f64, high: f64) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (low..=high).contains(&value) => Ok(value),
        _ => Err(format!("must be a number from {low} to {high}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    between(text, 0.001, 10_000_000.0)
}

fn seconds(text: &str) -> Result<f64, String> {
    between(text, 0.001, 86_400.0)
}

fn slo(text: &str) -> Result<f64, String> {
    between(text, 0.001, 3_600_000.0)
}

/// When requests are due, in ns from the start; ends with the duration.
#[derive(Debug)]
struct Schedule {
    arrivals: Arrivals,
    gap_ns: f64,
    end_ns: f64,
    at_ns: f64,
    random: fastrand::Rng,
}

impl Schedule {
    fn new(arrivals: Arrivals, rate: f64, duration: f64, seed: u64) -> Schedule {
        let random = fastrand::Rng::with_seed(seed);
        Schedule { arrivals, gap_ns: 1e9 / rate, end_ns: duration * 1e9, at_ns: 0.0, random }
    }
}

impl Iterator for Schedule {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        self.at_ns += match self.arrivals {
            Arrivals::Uniform => self.gap_ns,
            // f64() is below one, so the logarithm is finite.
            Arrivals::Poisson => -(1.0 - self.random.f64()).ln() * self.gap_ns,
        };
        (self.at_ns < self.end_ns).then_some(self.at_ns as u64)
    }
}

/// What became of the requests.
#[derive(Clone, Debug, Default, Serialize)]
struct Outcome {
    /// Requests that were due.
    due: u64,
    /// Answered with success.
    answered: u64,
    /// Answered with success within the SLO, from when they were due.
    good: u64,
    /// Answered with something else, by the status's name.
    refused: std::collections::BTreeMap<&'static str, u64>,
    /// Neither: never sent for want of a slot, or not answered at all.
    lost: u64,
}

struct Generator {
    session: Session,
    spec: ModelSpec,
    rows: u32,
    slo_ns: u64,
    start_ns: u64,
    in_flight: u32,
    /// Slots whose inputs were written: a model reads them in place and leaves them as they are.
    filled: Vec<bool>,
    seed: u64,
    outcome: Outcome,
    recorder: Recorder,
}

/// Runs the load and prints its report.
///
/// # Errors
/// When there is no daemon or no such model, and when the session ends.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let host = Host::look();
    let mut generator = Generator::open(arguments)?;
    let schedule =
        Schedule::new(arguments.arrivals, arguments.rate, arguments.duration, arguments.seed);
    let elapsed_ns = generator.run(schedule)?;
    let Generator { outcome, recorder, slo_ns, .. } = generator;
    let round = recorder.finish(Duration::from_nanos(elapsed_ns));
    let goodput = outcome.good as f64 / arguments.duration;
    let attainment_pct = 100.0 * outcome.good as f64 / outcome.due.max(1) as f64;
    let mut notes = vec![
        format!(
            "{} due, {} answered, {} within {} ms, {} lost",
            outcome.due,
            outcome.answered,
            outcome.good,
            slo_ns as f64 / 1e6,
            outcome.lost
        ),
        format!("goodput {goodput:.1}/s, attainment {attainment_pct:.2} %"),
    ];
    notes.extend(outcome.refused.iter().map(|(status, count)| format!("{status}: {count}")));
    let settings = json!({
        "model": arguments.model,
        "rate": arguments.rate,
        "duration": arguments.duration,
        "arrivals": arguments.arrivals,
        "rows": arguments.rows,
        "slots": arguments.slots,
        "seed": arguments.seed,
        "slo_ns": slo_ns,
        "outcome": outcome,
        "goodput": goodput,
        "attainment_pct": attainment_pct,
    });
    let title = format!("{}, from due to answered", arguments.model);
    let contenders = Summary::new(title, vec![round]).into_iter().collect();
    let report = Report { contenders, notes, ..Report::new("load", host, settings) };
    report.publish(arguments.json.as_deref())
}

impl Generator {
    fn open(arguments: &Arguments) -> Result<Generator, Error> {
        let base = Options { socket: arguments.socket.clone(), ..Options::default() };
        // The first session is only to learn how large a slot has to be.
        let mut first = Session::open(&base)?;
        let spec = open_model(&mut first, &arguments.model, LOAD_MAX)?;
        drop(first);
        let layout = gpulet_abi::tensor::SlotLayout::of_spec(&spec, arguments.rows)
            .filter(|_| arguments.rows <= spec.max_batch)
            .ok_or_else(|| {
                Error::failed("--rows", format!("the model takes at most {}", spec.max_batch))
            })?;
        let mut session = Session::open(&Options {
            wait: Wait::Block,
            slot_bytes: layout.bytes(),
            slot_count: arguments.slots,
            ..base
        })?;
        let spec = session.model_open(&arguments.model)?;
        let slo_ns = arguments.slo_ms.map_or(spec.slo_ns, |slo_ms| (slo_ms * 1e6) as u64);
        Ok(Generator {
            session,
            spec,
            rows: arguments.rows,
            slo_ns,
            start_ns: 0,
            in_flight: 0,
            filled: vec![false; arguments.slots as usize],
            seed: arguments.seed,
            outcome: Outcome::default(),
            recorder: Recorder::new(),
        })
    }

    /// Sends what is due when it is due, or as soon after as there is a slot, and takes answers in
    /// between. Returns how long that took.
    fn run(&mut self, schedule: Schedule) -> Result<u64, Error> {
        let last_ns = schedule.end_ns as u64;
        let mut schedule = schedule.peekable();
        let mut answers = [Completion::zeroed(); ANSWERS_MAX];
        self.start_ns = now_ns();
        let give_up_ns = self.start_ns + last_ns + self.slo_ns.saturating_add(GRACE_NS);
        loop {
            let mut now = now_ns();
            while let Some(due_ns) = schedule.peek().map(|due_ns| self.start_ns + due_ns) {
                if due_ns > now || !self.submit(due_ns)? {
                    break;
                }
                schedule.next();
                now = now_ns();
            }
            self.session.flush()?;
            let next_ns = schedule.peek().map(|due_ns| self.start_ns + due_ns);
            if now >= give_up_ns || (next_ns.is_none() && self.in_flight == 0) {
                break;
            }
            self.take(&mut answers, next_ns.filter(|due_ns| *due_ns > now), now)?;
        }
        let unsent = schedule.count() as u64;
        self.outcome.due += unsent;
        self.outcome.lost = unsent + u64::from(self.in_flight);
        Ok(now_ns() - self.start_ns)
    }

    /// Submits one request, held; `false` if there is no slot for it.
    fn submit(&mut self, due_ns: u64) -> Result<bool, Error> {
        let request = match self.session.claim(self.spec.model, self.rows) {
            Err(ClientError::NoFreeSlot(_)) => return Ok(false),
            result => result?,
        };
        if !std::mem::replace(&mut self.filled[request.slot as usize], true) {
            self.write_inputs(request)?;
        }
        let deadline_ns = due_ns + self.slo_ns;
        let how = Submit { deadline_ns, user_data: due_ns, held: true };
        match self.session.submit(request, how) {
            Err(ClientError::RingFull) => {
                self.session.release(request)?;
                return Ok(false);
            }
            result => result?,
        }
        self.in_flight += 1;
        self.outcome.due += 1;
        Ok(true)
    }

    fn write_inputs(&mut self, request: Request) -> Result<(), Error> {
        for index in 0..self.spec.input_count {
            let dtype: Option<Dtype> = self.spec.inputs[index as usize].dtype();
            let seed = self.seed ^ (u64::from(request.slot) << 8) ^ u64::from(index);
            crate::input::fill(self.session.input_bytes_mut(request, index)?, dtype, seed);
        }
        Ok(())
    }

    /// Takes what answers there are, waiting until shortly before the next request is due.
    fn take(
        &mut self,
        answers: &mut [Completion],
        next_ns: Option<u64>,
        now: u64,
    ) -> Result<(), Error> {
        let until_ns = next_ns.unwrap_or(now + GRACE_NS / 100);
        let sleep_ns = until_ns.saturating_sub(now).saturating_sub(SLEEP_SLACK_NS);
        let count = match self.session.wait(answers, sleep_ns) {
            Err(ClientError::Timeout(_)) => 0,
            result => result?,
        };
        let now = now_ns();
        for answer in &answers[..count] {
            self.in_flight -= 1;
            let latency_ns = now.saturating_sub(answer.user_data);
            match Status::from_number(answer.status) {
                Some(Status::Ok) => {
                    self.outcome.answered += 1;
                    self.outcome.good += u64::from(latency_ns <= self.slo_ns);
                    self.recorder.add(Duration::from_nanos(latency_ns), 1);
                }
                status => {
                    let name = status.map_or("unknown status", Status::name);
                    *self.outcome.refused.entry(name).or_default() += 1;
                }
            }
            self.session.release(Request::from(answer))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_keep_the_rate_and_the_duration() {
        for arrivals in [Arrivals::Poisson, Arrivals::Uniform] {
            let due: Vec<u64> = Schedule::new(arrivals, 1000.0, 10.0, 7).collect();
            assert!((9_500..=10_500).contains(&due.len()), "{arrivals:?}: {}", due.len());
            assert!(due.is_sorted() && due[due.len() - 1] < 10_000_000_000);
        }
    }

    #[test]
    fn gaps_of_poisson_arrivals_vary_as_much_as_they_are_long() {
        let due: Vec<u64> = Schedule::new(Arrivals::Poisson, 1000.0, 100.0, 7).collect();
        let gaps: Vec<f64> = due.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let squares: f64 = gaps.iter().map(|gap| (gap - mean).powi(2)).sum();
        let deviation = (squares / gaps.len() as f64).sqrt();
        assert!((0.95..1.05).contains(&(deviation / mean)), "{}", deviation / mean);
    }

    #[test]
    fn a_seed_gives_the_same_arrivals_again() {
        let due = |seed| Schedule::new(Arrivals::Poisson, 100.0, 1.0, seed).collect::<Vec<_>>();
        assert_eq!(due(3), due(3));
        assert_ne!(due(3), due(4));
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        assert!(rate("0").is_err() && rate("x").is_err() && rate("nan").is_err());
        assert!(seconds("-1").is_err() && slo("inf").is_err());
        assert_eq!(rate("2.5"), Ok(2.5));
    }
}
