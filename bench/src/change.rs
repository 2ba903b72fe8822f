//! `gpulet-bench change`: shares that change under full load, as an operator changes them.
//!
//! Every gpulet has a model and a closed loop of its own. gpuletd.toml is written anew and the daemon
//! told to read it; its log says when it decided that batches go to the new share, and the answers say
//! when the first one did, and what became of every request meanwhile.

mod timeline;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gpulet_client::clock::now_ns;
use serde_json::json;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::events::{Event, Events};
use crate::report::{Figures, Host, Report};
use crate::scene::{Copies, Given, Scene};
use crate::settings::Gpulet;
use crate::stats::median;
use crate::steady::Steady;

use timeline::{Change, Course};

/// Longer than any share takes to get ready.
const CHANGE_MAX: Duration = Duration::from_secs(120);
/// How often the log is looked at.
const LOOK_NS: u64 = 5_000_000;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    scene: Given,
    /// Shares of each GPU's gpulets to change to; once for each change, in a circle [default: 75,25
    /// 25,75 50,50]
    #[arg(long, value_name = "PCT,...", value_parser = parse_shares)]
    shares: Vec<Shares>,
    /// Changes
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Rows of each request, which is a batch
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// Requests in flight for each gpulet
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
    /// Milliseconds of load before, between and after changes
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(1..))]
    quiet_ms: u64,
    /// Write what happened when to this file, as CSV
    #[arg(long, value_name = "FILE")]
    timeline: Option<PathBuf>,
}

/// Shares of the gpulets of one device.
#[derive(Clone, Debug)]
struct Shares(Vec<u8>);

fn parse_shares(text: &str) -> Result<Shares, String> {
    let share = |part: &str| match part.trim().parse() {
        Ok(share @ 1..=100) => Ok(share),
        _ => Err(format!("{part:?} is no share of 1 to 100")),
    };
    text.split(',').map(share).collect::<Result<_, _>>().map(Shares)
}

/// Runs the bench and prints its report.
///
/// # Errors
/// A change that is refused; a request with no answer or with two.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { scene: given, rows, depth, times, .. } = arguments;
    let host = Host::look();
    let mut scene = given.scene(Copies::EachGpulet, 2, *rows)?;
    let all = arguments.shares(scene.settings.gpulets.len() / given.devices.len())?;
    let quiet = Duration::from_millis(arguments.quiet_ms);
    let daemon = scene.start()?;
    let mut events = Events::open(daemon.log())?;
    let mut steady = Steady::open(&daemon, &scene.models, *rows, *depth)?;
    steady.begin()?;
    // The daemon learns what batches take, and clocks rise.
    steady.go_on(quiet)?;
    let mut quiet_ns = now_ns();
    steady.go_on(quiet)?;
    let mut changes = Vec::new();
    for time in 0..*times as usize {
        events.news()?;
        let mut change =
            change(&mut scene, &daemon, &mut events, &mut steady, &all[time % all.len()])?;
        change.quiet_ns.0 = quiet_ns;
        steady.go_on(quiet)?;
        quiet_ns = now_ns();
        steady.go_on(quiet)?;
        change.quiet_ns.1 = quiet_ns;
        change.end_ns = now_ns();
        eprintln!("change {} of {times}: {}", time + 1, change.title());
        changes.push(change);
    }
    let answers = steady.finish()?;
    daemon.stop()?;
    if let Some(path) = &arguments.timeline {
        timeline::write(path, &changes, &answers)?;
    }
    let courses: Vec<Course> = changes.iter().flat_map(|it| it.courses(&answers)).collect();
    let mut figures = figures(&changes, &courses);
    figures.add("requests", answers.len() as f64);
    figures.add("failed", answers.iter().filter(|it| !it.is_good()).count() as f64);
    let mut notes: Vec<String> = courses.iter().map(ToString::to_string).collect();
    notes.push(format!("{} requests, each answered once", answers.len()));
    let mut settings = given.to_json(&scene);
    settings["rows"] = (*rows).into();
    settings["depth"] = (*depth).into();
    settings["changes"] = json!(changes);
    settings["courses"] = json!(courses);
    let report = Report { figures, notes, ..Report::new("change", host, settings) };
    report.publish(given.json.as_deref())
}

impl Arguments {
    /// What to change to, in turn.
    fn shares(&self, count: usize) -> Result<Vec<Vec<u8>>, Error> {
        let failed = |why: String| Err(Error::failed("--shares", why));
        if self.shares.is_empty() {
            let usual = vec![vec![75, 25], vec![25, 75], vec![50, 50]];
            return if count == 2 { Ok(usual) } else { failed("must be given".to_owned()) };
        }
        let all: Vec<Vec<u8>> = self.shares.iter().map(|shares| shares.0.clone()).collect();
        match all.iter().find(|shares| shares.len() != count) {
            Some(shares) => failed(format!("{shares:?} are not {count}")),
            None => Ok(all),
        }
    }
}

/// Changes the shares, and goes on until nothing of the change is left to be done.
fn change(
    scene: &mut Scene,
    daemon: &Daemon,
    events: &mut Events,
    steady: &mut Steady,
    shares_pct: &[u8],
) -> Result<Change, Error> {
    let before_pct: Vec<u8> = scene.settings.gpulets.iter().map(|it| it.share_pct).collect();
    let all_pct = shares_pct.iter().cycle();
    for (gpulet, share_pct) in scene.settings.gpulets.iter_mut().zip(all_pct) {
        gpulet.share_pct = *share_pct;
    }
    let gpulets = &scene.settings.gpulets;
    let begin_ns = now_ns();
    scene.settings.write(&scene.place)?;
    daemon.reload()?;
    let mut change = Change::new(gpulets, before_pct, begin_ns);
    let mut look_ns = begin_ns;
    let done = steady.until(CHANGE_MAX, |_| {
        if now_ns() < look_ns {
            return Ok(false);
        }
        look_ns = now_ns() + LOOK_NS;
        for event in events.news()? {
            if event.text.contains("shares stay as they are")
                || event.text.contains("stays as it is")
            {
                return Err(daemon.complaint("the change is refused"));
            }
            note(&mut change, gpulets, &event);
        }
        Ok(change.is_over())
    })?;
    change.over_ns = now_ns();
    if done { Ok(change) } else { Err(daemon.complaint("the shares do not change")) }
}

/// What an event means for the gpulets.
fn note(change: &mut Change, gpulets: &[Gpulet], event: &Event) {
    let executor = event.field("executor").unwrap_or_default();
    let is_host = |gpulet: &Gpulet| {
        let device = executor.rsplit_once(':').map(|(_, device)| device);
        gpulet.name == executor || device == Some(gpulet.device.to_string().as_str())
    };
    for (step, gpulet) in change.steps.iter_mut().zip(gpulets).filter(|(_, it)| is_host(it)) {
        if event.text.starts_with("shares changed")
            && let (Some(decided_ns), Some(switch_us)) =
                (event.number("decided_ns"), event.number("switch_us"))
        {
            step.decided_ns = Some(decided_ns);
            step.switched_ns = Some(decided_ns + 1000 * switch_us);
            step.is_over = true;
        } else if event.text.starts_with("the successor takes over") {
            step.decided_ns = Some(event.at_ns);
            step.switched_ns = Some(event.at_ns);
        } else if event.text.starts_with("executor gone") {
            step.is_over |= step.decided_ns.is_some() && !gpulet.held.splits();
        }
    }
}

fn figures(changes: &[Change], courses: &[Course]) -> Figures {
    let mut figures = Figures::default();
    let most = |of: &dyn Fn(&Course) -> f64| courses.iter().map(of).fold(0.0, f64::max);
    let ms = |ns: u64| ns as f64 / 1e6;
    figures.add("changes", changes.len() as f64);
    figures.add("first_batch_ms_median", median(courses.iter().map(|it| ms(it.first_begun_ns))));
    figures.add("first_batch_ms_max", most(&|it| ms(it.first_begun_ns)));
    figures.add("first_answer_ms_max", most(&|it| ms(it.first_answered_ns)));
    figures.add("switch_ms_max", most(&|it| ms(it.switch_ns)));
    figures.add("ready_s_max", most(&|it| it.ready_ns as f64 / 1e9));
    figures.add("gap_batches_max", most(&|it| it.gap_ns as f64 / it.batch_ns.max(1) as f64));
    figures.add("gap_ms_max", most(&|it| ms(it.gap_ns)));
    figures.add("late", courses.iter().map(|it| it.late as f64).sum());
    figures.add("late_when_quiet", courses.iter().map(|it| it.late_when_quiet as f64).sum());
    figures.add("late_ms_max", most(&|it| ms(it.late_most_ns)));
    figures
}
