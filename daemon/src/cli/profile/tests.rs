//! Profiles of a process that measures nothing and answers what it is told to.

use std::cell::RefCell;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;

use gpulet_plan::measured::beside::MeasuredBeside;
use gpulet_plan::measured::{Held, MeasuredModel};
use indicatif::ProgressBar;

use super::beside::Beside;
use super::latencies::{Case, Grid, Tally};
use super::{Running, Site, files};
use crate::cli::CtlError;
use crate::cli::gauge::{Answer, Gauge, Opened, Order};
use crate::cuda::measure::laps::{Lap, Until};
use crate::cuda::measure::{Facts, Part, Spell, What};
use crate::model::Precision;

/// What the processes of a test share.
#[derive(Default)]
struct World {
    starts: usize,
    loads: Vec<String>,
    runs: usize,
    /// Rows that take longer and longer.
    drifting: HashSet<u32>,
    /// Rows that end the process.
    deadly: HashSet<u32>,
    /// Models that cannot be loaded.
    missing: HashSet<String>,
    others: bool,
    /// Runs until the time is up.
    runs_max: Option<usize>,
}

struct Fake(Rc<RefCell<World>>);

/// A millisecond a row, for each part that runs; longer in the second half where it drifts.
fn laps(world: &World, rows: u32, parts: usize, until: &Until) -> Spell {
    let ns = u64::from(rows) * 1_000_000 * parts as u64;
    let mut now = 0;
    let lap = |at: usize| {
        let drift =
            if world.drifting.contains(&rows) && at >= until.laps_min * 2 { ns / 5 } else { 0 };
        now += ns + drift;
        Lap { begin_ns: now - ns - drift, end_ns: now }
    };
    Spell::Laps((0..until.laps_min * 4).map(lap).collect())
}

impl Gauge for Fake {
    fn ask(&mut self, order: &Order, _: Duration) -> Result<Answer, CtlError> {
        let mut world = self.0.borrow_mut();
        Ok(match order {
            Order::Load(load) => {
                let model = load.directory.display().to_string();
                world.loads.push(model.clone());
                if world.missing.contains(&model) {
                    return Ok(Answer::Failed("no such file".to_owned()));
                }
                Answer::Loaded(Facts {
                    form: "as told".to_owned(),
                    captured: true,
                    error: Some(0.001),
                    memory_bytes: 1 << 20,
                    load_ns: 4,
                    place_ns: 1,
                    warm_up_ns: 2,
                    capture_ns: 1,
                })
            }
            Order::Run { parts, until } => {
                world.runs += 1;
                let one = |part: &Part| match part.what {
                    What::Model { rows, .. } if world.deadly.contains(&rows) => None,
                    What::Model { rows, .. } => Some(laps(&world, rows, parts.len(), until)),
                    _ => Some(Spell::Bytes(
                        (0..100).map(|at| (at * 1_000_000, at * 5_000)).collect(),
                    )),
                };
                let spells: Option<Vec<Spell>> = parts.iter().map(one).collect();
                Answer::Ran(spells.ok_or(CtlError::Measure("it ended".to_owned()))?)
            }
            _ => Answer::Unloaded,
        })
    }
}

/// Runs `measure` with processes of `world`.
fn at_site<T>(world: &Rc<RefCell<World>>, measure: impl FnOnce(&mut Site<'_>) -> T) -> T {
    let mut start = |shares_pct: &[u8]| -> Result<Running, CtlError> {
        world.borrow_mut().starts += 1;
        let opened = Opened {
            describe: String::new(),
            libtorch: "2.11.0".to_owned(),
            sm_count: 132,
            gpulets: shares_pct.iter().map(|share| u32::from(*share)).collect(),
        };
        Ok((Box::new(Fake(Rc::clone(world))), opened))
    };
    let mut site = Site {
        device: "NVIDIA H100".to_owned(),
        sm_count: Some(132),
        driver: "580".to_owned(),
        cuda: "13.0".to_owned(),
        start: &mut start,
        others: &|| world.borrow().others.then(|| "somebody else".to_owned()),
        out_of_time: &|| {
            let world = world.borrow();
            world.runs_max.is_some_and(|max| world.runs >= max)
        },
        bar: ProgressBar::hidden(),
    };
    measure(&mut site)
}

fn cases() -> Vec<Case> {
    let case = |model: &str, precision| Case {
        model: model.to_owned(),
        directory: model.into(),
        archive_bytes: 7,
        precision,
    };
    vec![case("a", Precision::Fp32), case("a", Precision::Fp16), case("b", Precision::Fp32)]
}

fn profile(world: &Rc<RefCell<World>>, folder: &std::path::Path) -> Tally {
    let grid = Grid {
        folder,
        held: Held::Green,
        cases: cases(),
        shares_pct: vec![100, 50],
        batches: vec![1, 4],
        point_ns: 1,
    };
    at_site(world, |site| grid.measure(site)).unwrap()
}

fn read(folder: &std::path::Path, name: &str) -> MeasuredModel {
    let file: MeasuredModel = files::read(&folder.join(name)).unwrap().unwrap();
    file.check().unwrap();
    file
}

#[test]
fn everything_is_measured_once() {
    let (world, folder) = (Rc::default(), tempfile::tempdir().unwrap());
    let tally = profile(&world, folder.path());
    assert_eq!(tally, Tally { measured: 12, ..Tally::default() });
    // A process a share, a load a share and case.
    assert_eq!((world.borrow().starts, world.borrow().loads.len()), (2, 6));
    let file = read(folder.path(), "a.fp16.json");
    assert_eq!((file.model.as_str(), file.precision.as_str()), ("a", "fp16"));
    let shares: Vec<(u8, u32)> = file.shares.iter().map(|it| (it.share_pct, it.sm_count)).collect();
    assert_eq!(shares, [(50, 50), (100, 100)]);
    let raw = file.profile(50).unwrap();
    assert_eq!(raw.points.iter().map(|point| point.rows).collect::<Vec<_>>(), [1, 4]);
    assert_eq!((raw.points[1].p50_ns, raw.points[1].p99_ns), (4_000_000, 4_000_000));
    assert_eq!(file.profile(60), None);

    let again = profile(&world, folder.path());
    assert_eq!(again, Tally { kept: 12, ..Tally::default() });
    // The first process only tells libtorch's version.
    assert_eq!((world.borrow().starts, world.borrow().loads.len()), (3, 6));
}

#[test]
fn what_is_noisy_is_refused_and_tried_again_next_time() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    world.borrow_mut().drifting.insert(4);
    let tally = profile(&world, folder.path());
    assert_eq!((tally.measured, tally.refused), (6, 6));
    let file = read(folder.path(), "b.json");
    assert_eq!(file.shares[0].refused[0].rows, 4);
    let rule = &file.shares[0].refused[0].rule;
    assert!(rule.contains("apart") && rule.ends_with("4 tries"), "{rule}");
    world.borrow_mut().drifting.clear();
    let tally = profile(&world, folder.path());
    assert_eq!((tally.measured, tally.kept, tally.refused), (6, 6, 0));
    let file = read(folder.path(), "b.json");
    assert!(file.shares.iter().all(|share| share.refused.is_empty() && share.points.len() == 2));
}

#[test]
fn others_on_the_device_are_a_reason() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    world.borrow_mut().others = true;
    let tally = profile(&world, folder.path());
    assert_eq!((tally.measured, tally.refused), (0, 12));
    assert_eq!(read(folder.path(), "a.json").shares[1].refused[0].rule, "somebody else; 4 tries");
}

#[test]
fn a_process_that_ends_is_followed_by_another() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    world.borrow_mut().deadly.insert(4);
    world.borrow_mut().missing.insert("b".to_owned());
    let tally = profile(&world, folder.path());
    // Of b nothing, of a what came before the end.
    assert_eq!((tally.measured, tally.refused), (4, 6));
    assert_eq!(world.borrow().starts, 6);
    assert_eq!(read(folder.path(), "a.json").shares[0].refused[0].rule, "it ended");
    let file = read(folder.path(), "b.json");
    assert_eq!(file.shares[0].refused[0].rule, "no such file");
    assert_eq!((file.shares[0].refused[0].rows, file.profile(50)), (0, None));
}

#[test]
fn a_budget_leaves_files_that_are_gone_on_with() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    let mut measured = 0;
    for runs_max in [1, 4, 5, 100] {
        world.borrow_mut().runs_max = Some(runs_max);
        let tally = profile(&world, folder.path());
        assert_eq!(tally.stopped, runs_max < 100, "{runs_max}");
        assert_eq!(tally.refused, 0);
        measured += tally.measured;
    }
    assert_eq!((measured, world.borrow().runs), (12, 12));
}

#[test]
fn another_stamp_begins_anew() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    profile(&world, folder.path());
    let grid = Grid {
        folder: folder.path(),
        held: Held::Green,
        cases: cases(),
        shares_pct: vec![50],
        batches: vec![1, 4],
        point_ns: 2,
    };
    let tally = at_site(&world, |site| grid.measure(site)).unwrap();
    assert_eq!((tally.measured, tally.kept), (6, 0));
    assert_eq!(read(folder.path(), "a.json").shares.len(), 1);
}

fn beside(world: &Rc<RefCell<World>>, folder: &std::path::Path) -> Tally {
    let batches = vec![1, 4];
    let it = Beside { folder, cases: cases(), batches, point_ns: 1, set_count: 5, seed: 3 };
    at_site(world, |site| it.measure(site)).unwrap()
}

#[test]
fn gpulets_are_measured_beside_kernels_and_each_other() {
    let (world, folder) = (Rc::default(), tempfile::tempdir().unwrap());
    // Eight kernels; six picks beside each; five sets of two, three and four.
    let all = 8 + 6 * 8 + 15;
    assert_eq!(beside(&world, folder.path()), Tally { measured: all, ..Tally::default() });
    assert_eq!(world.borrow().starts, 3);
    let file: MeasuredBeside =
        files::read(&folder.path().join(files::INTERFERENCE)).unwrap().unwrap();
    file.check().unwrap();
    assert_eq!((file.pressures.len(), file.pressed.len(), file.sets.len()), (8, 48, 15));
    assert_eq!(file.pressed[0].slowdown, 2.0);
    assert_eq!(file.pressed[0].bytes_per_s, 5_000_000.0);
    for set in &file.sets {
        let count = set.members.len();
        let slowest = set.members.iter().all(|it| it.slowdown == count as f64);
        assert!(slowest && set.members.iter().all(|it| it.sm_count == 100 / count as u32));
    }
    let runs = world.borrow().runs;
    assert_eq!(beside(&world, folder.path()), Tally { kept: all, ..Tally::default() });
    assert_eq!(world.borrow().runs, runs, "nothing was run again");
}

#[test]
fn interference_goes_on_where_it_stopped() {
    let (world, folder) = (Rc::<RefCell<World>>::default(), tempfile::tempdir().unwrap());
    world.borrow_mut().runs_max = Some(20);
    let first = beside(&world, folder.path());
    assert!(first.stopped && first.measured > 0, "{first:?}");
    world.borrow_mut().runs_max = None;
    let second = beside(&world, folder.path());
    assert_eq!((first.measured + second.measured, second.kept), (71, first.measured));
}
