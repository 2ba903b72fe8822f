//! `gpulet-bench drill`: a GPU fault under full load, again and again.
//!
//! A model is kept busy on every gpulet. Now and then somebody asks a built-in model that writes to an
//! illegal address: that ends every context on the GPU. What is measured is how long nobody is
//! answered then; and every request must have exactly one answer.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use bytemuck::Zeroable;
use clap::Args;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, Options, Status, Submit, Wait};
use serde_json::json;

use crate::closed::Load;
use crate::daemon::{self, Daemon, Gpulet, Held, Place, Spin};
use crate::error::Error;
use crate::report::{Host, Report};
use crate::stats::{Recorder, Summary};

const FAULT: &str = "fault";
/// Longer than any recovery that is one.
const RECOVERY_MAX_NS: u64 = 30_000_000_000;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the gpulets hold their shares
    #[arg(long, value_enum, default_value_t = Held::Mps)]
    mechanism: Held,
    /// Gpulets, of equal shares of the whole GPU
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=32))]
    gpulets: u32,
    /// Faults
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Milliseconds of quiet load before each
    #[arg(long, default_value_t = 200)]
    quiet_ms: u64,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the drill and prints its report.
///
/// # Errors
/// A request with no answer or with two; a GPU that does not come back.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let program = daemon::program(arguments.daemon.as_deref())?;
    let host = Host::look();
    let place = Place::new()?;
    let name = place.add_with_batch(&arguments.model, 1)?;
    place.add_fault(FAULT)?;
    let gpulet = Gpulet::Gpu {
        mechanism: arguments.mechanism.word(),
        count: arguments.gpulets,
        share_pct: u8::try_from(100 / arguments.gpulets).unwrap_or(100),
        model: None,
        mps: None,
    };
    let daemon = Daemon::start(&program, &place, None, Spin::Micros(20), &gpulet)?;
    let in_flight = 2 * arguments.gpulets;
    let mut drill = Drill {
        load: Load::open(&daemon, &name, 1, in_flight)?,
        sent: 0,
        answered: HashSet::new(),
        by_status: Vec::new(),
        good_ns: now_ns(),
        gap_ns: 0,
    };
    for _ in 0..in_flight {
        drill.submit()?;
    }
    let mut recorder = Recorder::new();
    let begin_ns = now_ns();
    for time in 1..=arguments.times {
        drill.until(now_ns() + arguments.quiet_ms * 1_000_000, |_| false)?;
        let taken_ns = drill.fault(&daemon)?;
        eprintln!("fault {time} of {}: {} ms", arguments.times, taken_ns / 1_000_000);
        recorder.add(Duration::from_nanos(taken_ns), 1);
    }
    let round = recorder.finish(Duration::from_nanos(now_ns() - begin_ns));
    drill.finish()?;
    let (sent, answered) = (drill.sent, drill.answered.len());
    let notes = vec![
        format!("{sent} requests sent, {answered} answered, each once"),
        format!("answers by status: {:?}", drill.by_status),
    ];
    drop(drill);
    daemon.stop()?;
    let label = format!("longest time without an answer, {} gpulets", arguments.gpulets);
    let settings = json!({
        "model": name,
        "mechanism": arguments.mechanism.word(),
        "gpulets": arguments.gpulets,
        "times": arguments.times,
    });
    let contenders = Summary::new(label, vec![round]).into_iter().collect();
    let report = Report { bench: "drill", host, settings, contenders, ratios: Vec::new(), notes };
    report.publish(arguments.json.as_deref())
}

/// A load whose requests are counted.
struct Drill {
    load: Load,
    sent: u64,
    /// By the time they were sent, which no two share.
    answered: HashSet<u64>,
    by_status: Vec<(Status, u64)>,
    /// When the last good answer came.
    good_ns: u64,
    /// The longest time without a good answer.
    gap_ns: u64,
}

impl Drill {
    fn submit(&mut self) -> Result<(), Error> {
        self.sent += 1;
        self.load.submit()
    }

    /// Keeps the load up until `end_ns`, or until an answer is what is waited for. Whether one was.
    fn until(
        &mut self,
        end_ns: u64,
        mut wanted: impl FnMut(&Completion) -> bool,
    ) -> Result<bool, Error> {
        let mut answers = [Completion::zeroed(); 16];
        while now_ns() < end_ns {
            let count = self.load.take(&mut answers)?;
            let mut found = false;
            for answer in &answers[..count] {
                self.count(answer)?;
                found |= wanted(answer);
                self.submit()?;
            }
            if found {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn count(&mut self, answer: &Completion) -> Result<(), Error> {
        if !self.answered.insert(answer.user_data) {
            return Err(Error::failed("drill", "a request was answered twice"));
        }
        let status = Status::from_number(answer.status).unwrap_or(Status::Internal);
        if status == Status::Ok {
            let now_ns = now_ns();
            self.gap_ns = self.gap_ns.max(now_ns - self.good_ns);
            self.good_ns = now_ns;
        }
        match self.by_status.iter_mut().find(|(of, _)| *of == status) {
            Some((_, count)) => *count += 1,
            None => self.by_status.push((status, 1)),
        }
        Ok(())
    }

    /// Faults the GPU twice, as the request that does it is run again once, and returns the longest
    /// time in which nobody was answered.
    fn fault(&mut self, daemon: &Daemon) -> Result<u64, Error> {
        let mut session = daemon.session(Options { wait: Wait::Spin, ..Options::default() })?;
        let spec = daemon.model(&mut session, FAULT)?;
        let request = session.claim(spec.model, 1)?;
        let begin_ns = now_ns();
        self.gap_ns = 0;
        session.submit(
            request,
            Submit { deadline_ns: begin_ns + RECOVERY_MAX_NS, ..Submit::default() },
        )?;
        let end_ns = begin_ns + RECOVERY_MAX_NS;
        let mut answers = [Completion::zeroed(); 1];
        // It is answered once no gpulet is tried with it any more.
        let mut answered_ns = None;
        while answered_ns.is_none() && now_ns() < end_ns {
            self.until(now_ns() + 1_000_000, |_| false)?;
            if session.reap(&mut answers)? > 0 {
                if answers[0].status == Status::Ok as i32 {
                    return Err(daemon.complaint("the fault did no harm"));
                }
                answered_ns = Some(now_ns());
            }
        }
        let Some(answered_ns) = answered_ns else {
            return Err(daemon.complaint("the faulting request has no answer"));
        };
        let well = |answer: &Completion| {
            answer.status == Status::Ok as i32 && answer.user_data > answered_ns
        };
        if !self.until(end_ns, well)? {
            return Err(daemon.complaint("the GPU does not come back"));
        }
        Ok(self.gap_ns)
    }

    /// Takes the last answers.
    fn finish(&mut self) -> Result<(), Error> {
        let end_ns = now_ns() + RECOVERY_MAX_NS;
        let mut answers = [Completion::zeroed(); 16];
        while (self.answered.len() as u64) < self.sent && now_ns() < end_ns {
            let count = self.load.take(&mut answers)?;
            for answer in &answers[..count] {
                self.count(answer)?;
            }
        }
        match self.sent - self.answered.len() as u64 {
            0 => Ok(()),
            lost => Err(Error::failed("drill", format!("{lost} requests have no answer"))),
        }
    }
}
