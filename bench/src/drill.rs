//! `gpulet-bench drill`: what can go wrong with a GPU, under full load, again and again.
//!
//! Every gpulet has a model and a closed loop of its own. Harm is done to the first gpulet, or to what
//! it runs on; how long each gpulet then has no answer is measured, and every request must have exactly
//! one. Gpulets that share nothing with the first but the daemon must notice nothing.

mod harm;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gpulet_client::clock::now_ns;

use crate::daemon::Daemon;
use crate::error::Error;
use crate::report::{Figures, Host, Report};
use crate::scene::{Copies, Given, Scene};
use crate::settings::{Gpulet, Held};
use crate::stats::{Recorder, Summary};
use crate::steady::{Answer, Steady, gap_ns, good_ns};

use harm::{Harm, Means};

/// Longer than any recovery that is one.
const RECOVERY_MAX: Duration = Duration::from_secs(60);
/// Short, so that drills are; batches here take milliseconds.
const HANG_TIMEOUT_MS: u32 = 500;

#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    scene: Given,
    /// What goes wrong; several in turn
    #[arg(long, value_enum, value_delimiter = ',', default_value = "fault")]
    harm: Vec<Harm>,
    /// How often each
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Requests in flight for each gpulet
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=64))]
    depth: u32,
    /// Milliseconds of quiet load before each
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u64).range(1..))]
    quiet_ms: u64,
    /// Folder of a model whose one input, an i64, says how many MiB it takes, for --harm batch
    #[arg(long, value_name = "DIR")]
    hungry: Option<PathBuf>,
}

/// One time that something went wrong. Times are CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug)]
struct Spell {
    harm: Harm,
    quiet_ns: u64,
    begin_ns: u64,
    /// When every gpulet had been answered again.
    end_ns: u64,
}

/// Runs the drill and prints its report.
///
/// # Errors
/// A request with no answer or with two; what does not come back; harm that does none.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let given = &arguments.scene;
    let host = Host::look();
    let mut scene = given.scene(Copies::EachGpulet, 2, 1)?;
    scene.settings.hang_timeout_ms = Some(HANG_TIMEOUT_MS);
    let means = Means::prepare(&mut scene, &arguments.harm, arguments.hungry.as_deref())?;
    let daemon = scene.start()?;
    let mut steady = Steady::open(&daemon, &scene.models, 1, arguments.depth)?;
    let pids = pids(&scene, &daemon)?;
    steady.begin()?;
    let mut spells = Vec::new();
    for &harm in &arguments.harm {
        for time in 1..=arguments.times {
            means.await_models(&daemon)?;
            let quiet_ns = now_ns();
            steady.go_on(Duration::from_millis(arguments.quiet_ms))?;
            let begin_ns = now_ns();
            means.inflict(harm, &scene, &daemon, &mut steady)?;
            let spell = Spell { harm, quiet_ns, begin_ns, end_ns: 0 };
            let spell = recover(spell, &scene, &daemon, &mut steady)?;
            let gap_ms = gap(&spell, steady.answers(), 0..scene.models.len()) / 1_000_000;
            eprintln!("{} {time} of {}: {gap_ms} ms", harm.word(), arguments.times);
            spells.push(spell);
        }
    }
    let answers = steady.finish()?;
    let elsewhere = elsewhere(&scene);
    let moved = pids_changed(&pids, &self::pids(&scene, &daemon)?, &elsewhere);
    daemon.stop()?;
    if moved > 0 {
        let why = format!("{moved} processes elsewhere were lost with it");
        return Err(Error::failed("drill", why));
    }
    let report = report(arguments, host, &scene, &spells, &answers);
    report.publish(given.json.as_deref())
}

/// Goes on until every gpulet has a good answer to what was asked for after all harm was done.
fn recover(
    spell: Spell,
    scene: &Scene,
    daemon: &Daemon,
    steady: &mut Steady,
) -> Result<Spell, Error> {
    let done_ns = now_ns();
    let mut waits: Vec<bool> = vec![true; scene.models.len()];
    let mut seen = steady.answers().len();
    let well = steady.until(RECOVERY_MAX, |steady| {
        for answer in &steady.answers()[seen..] {
            waits[answer.who] &= !(answer.is_good() && answer.asked_ns > done_ns);
        }
        seen = steady.answers().len();
        Ok(!waits.contains(&true))
    })?;
    if !well {
        return Err(daemon.complaint(&format!("{}: not recovered", spell.harm.word())));
    }
    Ok(Spell { end_ns: now_ns(), ..spell })
}

/// The processes of all gpulets.
fn pids(scene: &Scene, daemon: &Daemon) -> Result<Vec<Option<u32>>, Error> {
    scene.settings.gpulets.iter().map(|gpulet| daemon.executor_of(&gpulet.name)).collect()
}

fn pids_changed(before: &[Option<u32>], after: &[Option<u32>], whose: &[usize]) -> usize {
    whose.iter().filter(|who| before[**who] != after[**who]).count()
}

/// Gpulets that share nothing with the first but the daemon.
fn elsewhere(scene: &Scene) -> Vec<usize> {
    let gpulets = &scene.settings.gpulets;
    let apart = |gpulet: &Gpulet| {
        gpulet.device != gpulets[0].device || matches!(gpulet.held, Held::Cpu | Held::Replay)
    };
    (1..gpulets.len()).filter(|who| apart(&gpulets[*who])).collect()
}

/// The longest time in which one of these gpulets had no good answer.
fn gap(spell: &Spell, answers: &[Answer], whose: impl IntoIterator<Item = usize>) -> u64 {
    let Spell { begin_ns, end_ns, .. } = *spell;
    let gap = |who| gap_ns(&good_ns(answers, who, begin_ns, end_ns), begin_ns, end_ns);
    whose.into_iter().map(gap).max().unwrap_or(0)
}

fn report(
    arguments: &Arguments,
    host: Host,
    scene: &Scene,
    spells: &[Spell],
    answers: &[Answer],
) -> Report {
    let (elsewhere, all) = (elsewhere(scene), 0..scene.models.len());
    let beside: Vec<usize> =
        all.clone().filter(|who| *who > 0 && !elsewhere.contains(who)).collect();
    let mut figures = Figures::default();
    let (mut contenders, mut notes) = (Vec::new(), Vec::new());
    for &harm in &arguments.harm {
        let mine: Vec<&Spell> = spells.iter().filter(|it| it.harm == harm).collect();
        let groups = [
            ("recover", "the longest of a gpulet without an answer", all.clone().collect()),
            ("beside", "the longest without an answer beside it", beside.clone()),
            ("elsewhere", "the longest without an answer elsewhere", elsewhere.clone()),
        ];
        for (word, title, whose) in groups {
            if whose.is_empty() {
                continue;
            }
            let (mut recorder, mut sum_ns, mut most_ns) = (Recorder::new(), 0, 0);
            for spell in &mine {
                let gap_ns = gap(spell, answers, whose.iter().copied());
                recorder.add(Duration::from_nanos(gap_ns), 1);
                (sum_ns, most_ns) = (sum_ns + gap_ns, most_ns.max(gap_ns));
            }
            let round = recorder.finish(Duration::from_nanos(sum_ns));
            figures.add(format!("{}_{word}_ms_median", harm.word()), round.p50_ns as f64 / 1e6);
            figures.add(format!("{}_{word}_ms_max", harm.word()), most_ns as f64 / 1e6);
            contenders.extend(Summary::new(format!("{}, {title}", harm.word()), vec![round]));
        }
        figures.add(format!("{}_times", harm.word()), mine.len() as f64);
    }
    if !elsewhere.is_empty() {
        contenders.extend(neighbours(spells, answers, &elsewhere, &mut figures));
    }
    let failed = |whose: &dyn Fn(usize) -> bool| {
        answers.iter().filter(|it| !it.is_good() && whose(it.who)).count()
    };
    let (failed, failed_elsewhere) = (failed(&|_| true), failed(&|who| elsewhere.contains(&who)));
    figures.add("requests", answers.len() as f64);
    figures.add("failed", failed as f64);
    figures.add("failed_elsewhere", failed_elsewhere as f64);
    notes.push(format!("{} requests, each answered once; {failed} with an error", answers.len()));
    let mut settings = arguments.scene.to_json(scene);
    settings["times"] = arguments.times.into();
    Report { contenders, figures, notes, ..Report::new("drill", host, settings) }
}

/// Latencies of gpulets elsewhere, in quiet times and while something was wrong.
fn neighbours(
    spells: &[Spell],
    answers: &[Answer],
    elsewhere: &[usize],
    figures: &mut Figures,
) -> Vec<Summary> {
    let (mut quiet, mut meanwhile) = (Recorder::new(), Recorder::new());
    let (mut quiet_ns, mut meanwhile_ns) = (0, 0);
    for spell in spells {
        quiet_ns += spell.begin_ns - spell.quiet_ns;
        meanwhile_ns += spell.end_ns - spell.begin_ns;
    }
    for answer in answers.iter().filter(|it| elsewhere.contains(&it.who) && it.is_good()) {
        let place = spells.partition_point(|spell| spell.quiet_ns <= answer.finished_ns);
        let Some(spell) = place.checked_sub(1).and_then(|place| spells.get(place)) else {
            continue;
        };
        let recorder = match answer.finished_ns {
            finished_ns if finished_ns < spell.begin_ns => &mut quiet,
            finished_ns if finished_ns < spell.end_ns => &mut meanwhile,
            _ => continue,
        };
        recorder.add(Duration::from_nanos(answer.latency_ns()), 1);
    }
    let rounds = [
        ("elsewhere, when quiet", "quiet", quiet.finish(Duration::from_nanos(quiet_ns))),
        ("elsewhere, meanwhile", "meanwhile", meanwhile.finish(Duration::from_nanos(meanwhile_ns))),
    ];
    for (_, word, round) in &rounds {
        figures.add(format!("elsewhere_{word}_p99_us"), round.p99_ns as f64 / 1e3);
        figures.add(format!("elsewhere_{word}_max_us"), round.max_ns as f64 / 1e3);
    }
    let title = |title: &str| format!("latency of requests {title}");
    rounds.into_iter().filter_map(|it| Summary::new(title(it.0), vec![it.2])).collect()
}
