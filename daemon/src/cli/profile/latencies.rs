//! Latency over batch, share and precision: what is missing, and measuring it.

use std::path::{Path, PathBuf};

use gpulet_plan::measured::{
    FORMAT, Held, MeasuredModel, MeasuredPoint, MeasuredShare, Refused, Settings, Stamp,
};

use super::super::CtlError;
use super::super::gauge::{Answer, Gauge, Load, Order, PATIENCE};
use super::noise::{LAPS_MIN, TRIES, judge};
use super::{Running, Site, files, runs};
use crate::cuda::measure::{Facts, Part, Spell, What};
use crate::model::Precision;

/// What a precision should cost at most; only recorded.
const ERROR_BOUND: f64 = 0.05;
/// The one model's number.
const MODEL: u32 = 0;

/// A model in one precision.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub model: String,
    pub directory: PathBuf,
    pub archive_bytes: u64,
    pub precision: Precision,
}

/// What is to be measured.
pub(super) struct Grid<'a> {
    /// The device's folder.
    pub folder: &'a Path,
    pub held: Held,
    pub cases: Vec<Case>,
    /// In the order in which they are measured.
    pub shares_pct: Vec<u8>,
    /// Ascending, at least one.
    pub batches: Vec<u32>,
    pub point_ns: u64,
}

/// How it went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub measured: usize,
    /// Were there already.
    pub kept: usize,
    pub refused: usize,
    /// Time was up before everything was tried.
    pub stopped: bool,
}

/// One model on one share.
struct Outcome {
    share: MeasuredShare,
    stopped: bool,
    /// The process is not to be trusted any more.
    broken: bool,
}

impl Grid<'_> {
    fn settings(&self, case: &Case) -> Settings {
        Settings {
            max_batch: self.batches.last().copied().unwrap_or(1),
            archive_bytes: case.archive_bytes,
            point_ns: self.point_ns,
        }
    }

    fn path(&self, case: &Case) -> PathBuf {
        self.folder.join(files::file_name(&case.model, case.precision, self.held))
    }

    /// The case's file, or a new one where there is none or it holds for something else.
    fn file(&self, case: &Case, stamp: &Stamp) -> Result<MeasuredModel, CtlError> {
        let (path, settings) = (self.path(case), self.settings(case));
        if let Some(file) = files::read::<MeasuredModel>(&path)? {
            file.check().map_err(|error| {
                let source = std::io::Error::other(error.to_string());
                CtlError::File { path: path.clone(), source }
            })?;
            if file.stamp == *stamp && file.settings == settings {
                return Ok(file);
            }
        }
        Ok(MeasuredModel {
            format: FORMAT,
            model: case.model.clone(),
            precision: case.precision.word().to_owned(),
            mechanism: self.held,
            stamp: stamp.clone(),
            settings,
            shares: Vec::new(),
        })
    }

    /// Batch sizes of a share that are not in its file.
    fn missing(&self, file: &MeasuredModel, share_pct: u8) -> Vec<u32> {
        let share = file.shares.iter().find(|share| share.share_pct == share_pct);
        let points = share.map_or(&[][..], |share| &share.points);
        let is_there = |rows: &u32| points.iter().any(|point| point.rows == *rows);
        self.batches.iter().copied().filter(|rows| !is_there(rows)).collect()
    }

    fn is_done(&self, share_pct: u8, stamp: &Stamp) -> Result<bool, CtlError> {
        for case in &self.cases {
            if !self.missing(&self.file(case, stamp)?, share_pct).is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Measures what is missing. Each share of each case is written as soon as it is done.
    ///
    /// # Errors
    /// [`CtlError`]: files, or no process that measures.
    pub(super) fn measure(&self, site: &mut Site<'_>) -> Result<Tally, CtlError> {
        let mut tally = Tally::default();
        let points = self.cases.len() * self.batches.len();
        site.bar.set_length((points * self.shares_pct.len()) as u64);
        let mut stamp: Option<Stamp> = None;
        for share_pct in &self.shares_pct {
            if let Some(stamp) = &stamp
                && self.is_done(*share_pct, stamp)?
            {
                tally.kept += points;
                site.bar.inc(points as u64);
                continue;
            }
            let mut process = None;
            for case in &self.cases {
                if (site.out_of_time)() {
                    tally.stopped = true;
                    return Ok(tally);
                }
                let running = match &mut process {
                    Some(running) => running,
                    None => process.insert((site.start)(&[*share_pct])?),
                };
                let stamp = stamp.insert(site.stamp(&running.1));
                let mut file = self.file(case, stamp)?;
                let rows = self.missing(&file, *share_pct);
                let kept = self.batches.len() - rows.len();
                tally.kept += kept;
                site.bar.inc(kept as u64);
                if rows.is_empty() {
                    continue;
                }
                let precision = case.precision.word();
                site.begin(&format!("{} {precision} on {share_pct} %", case.model));
                let outcome = self.share(site, running, case, *share_pct, &rows);
                for Refused { rows, rule } in &outcome.share.refused {
                    let name = &case.model;
                    site.say(&format!(
                        "{name} {precision} on {share_pct} %, {rows} rows: refused: {rule}"
                    ));
                }
                tally.measured += outcome.share.points.len();
                tally.refused += outcome.share.refused.len();
                merge(&mut file, outcome.share);
                files::write(&self.path(case), &file)?;
                if outcome.stopped {
                    tally.stopped = true;
                    return Ok(tally);
                }
                if outcome.broken {
                    process = None;
                }
            }
            let Tally { measured, kept, refused, .. } = tally;
            site.say(&format!(
                "{share_pct} %: {measured} measured so far, {kept} were there, {refused} refused"
            ));
        }
        Ok(tally)
    }

    fn share(
        &self,
        site: &Site<'_>,
        (gauge, opened): &mut Running,
        case: &Case,
        share_pct: u8,
        rows: &[u32],
    ) -> Outcome {
        let gauge = gauge.as_mut();
        let sm_count = opened.gpulets.first().copied().unwrap_or(0);
        let mut outcome =
            Outcome { share: empty(share_pct, sm_count), stopped: false, broken: false };
        let load = Load {
            id: MODEL,
            directory: case.directory.clone(),
            precision: Some(case.precision),
            max_batch: self.batches.last().copied(),
        };
        let refuse = |rows: u32, rule: String| Refused { rows, rule };
        match gauge.ask(&Order::Load(load), PATIENCE) {
            Ok(Answer::Loaded(facts)) => know(&mut outcome.share, facts),
            Ok(other) => {
                outcome.share.refused.push(refuse(0, other.unexpected().to_string()));
                outcome.broken = true;
            }
            Err(error) => {
                outcome.share.refused.push(refuse(0, error.to_string()));
                outcome.broken = true;
            }
        }
        for rows in rows {
            if outcome.broken || (site.out_of_time)() {
                outcome.stopped = !outcome.broken;
                break;
            }
            match self.point(site, gauge, *rows) {
                Ok(Ok(point)) => outcome.share.points.push(point),
                Ok(Err(rule)) => outcome.share.refused.push(refuse(*rows, rule)),
                Err(error) => {
                    outcome.share.refused.push(refuse(*rows, error.to_string()));
                    outcome.broken = true;
                }
            }
            site.bar.inc(1);
        }
        outcome.share.date = files::now();
        if !outcome.broken {
            outcome.broken = gauge.ask(&Order::Unload { id: MODEL }, PATIENCE).is_err();
        }
        outcome
    }

    /// A point, or the rule that it broke as often as it was tried.
    fn point(
        &self,
        site: &Site<'_>,
        gauge: &mut dyn Gauge,
        rows: u32,
    ) -> Result<Result<MeasuredPoint, String>, CtlError> {
        let parts = vec![Part { gpulet: 0, what: What::Model { id: MODEL, rows } }];
        let mut rule = String::new();
        for _ in 0..TRIES {
            let spells = runs::run(gauge, &parts, self.point_ns, LAPS_MIN)?;
            let Some(Spell::Laps(laps)) = spells.first() else { continue };
            rule = match (judge(laps), (site.others)()) {
                (Ok((pace, drift_pct)), None) => {
                    let latency = pace.latency;
                    return Ok(Ok(MeasuredPoint {
                        rows,
                        p50_ns: latency.p50_ns,
                        p99_ns: latency.p99_ns,
                        mean_ns: latency.mean_ns,
                        count: latency.count,
                        drift_pct: (drift_pct * 100.0).round() / 100.0,
                    }));
                }
                (_, Some(others)) => others,
                (Err(rule), None) => rule,
            };
        }
        Ok(Err(format!("{rule}; {TRIES} tries")))
    }
}

fn empty(share_pct: u8, sm_count: u32) -> MeasuredShare {
    MeasuredShare {
        share_pct,
        sm_count,
        date: files::now(),
        form: String::new(),
        captured: false,
        error: None,
        error_bound: ERROR_BOUND,
        memory_bytes: 0,
        load_ns: 0,
        place_ns: 0,
        warm_up_ns: 0,
        capture_ns: 0,
        points: Vec::new(),
        refused: Vec::new(),
    }
}

/// Adds what a load tells.
fn know(share: &mut MeasuredShare, facts: Facts) {
    share.form = facts.form;
    share.captured = facts.captured;
    share.error = facts.error;
    share.memory_bytes = facts.memory_bytes;
    share.load_ns = facts.load_ns;
    share.place_ns = facts.place_ns;
    share.warm_up_ns = facts.warm_up_ns;
    share.capture_ns = facts.capture_ns;
}

/// Puts a share into its file, beside points of it that are there already.
fn merge(file: &mut MeasuredModel, mut fresh: MeasuredShare) {
    let share_pct = fresh.share_pct;
    if let Some(at) = file.shares.iter().position(|share| share.share_pct == share_pct) {
        let old = file.shares.remove(at);
        let is_new = |rows: u32| fresh.points.iter().any(|point| point.rows == rows);
        let kept: Vec<_> = old.points.iter().copied().filter(|it| !is_new(it.rows)).collect();
        fresh.points.extend(kept);
        if fresh.form.is_empty() && !old.form.is_empty() {
            // It was not loaded this time: what is known of it stays.
            fresh = MeasuredShare { points: fresh.points, refused: fresh.refused, ..old };
        }
    }
    fresh.points.sort_by_key(|point| point.rows);
    file.shares.push(fresh);
    file.shares.sort_by_key(|share| share.share_pct);
}
