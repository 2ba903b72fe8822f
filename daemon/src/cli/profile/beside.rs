//! What gpulets of one GPU do to each other: models beside pressure kernels, and models beside
//! models.

use std::collections::{BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use gpulet_plan::measured::FORMAT;
use gpulet_plan::measured::beside::{
    Loop, MeasuredBeside, Member, Pressed, PressedMemory, PressureAlone, PressureKernel,
    RefusedRun, SetMember, SetRun,
};

use super::super::CtlError;
use super::super::gauge::{Answer, Gauge, Load, Opened, Order, PATIENCE, rate, window, within};
use super::latencies::{Case, Tally};
use super::noise::{LAPS_MIN, TRIES, judge};
use super::{Site, files, runs};
use crate::cuda::measure::pressure::{Memory, Pressure};
use crate::cuda::measure::{Part, Spell, What};

/// Of a pressure kernel, the mildest first.
const PAUSES_NS: [u32; 4] = [30_000, 10_000, 3_000, 0];
const BLOCKS_PER_SM: u32 = 8;
/// Gpulets of one device that are measured together.
const COUNTS: [usize; 3] = [2, 3, 4];
/// Draws until a set is new.
const DRAWS: usize = 40;

/// What is to be measured.
pub(super) struct Beside<'a> {
    /// The device's folder.
    pub folder: &'a Path,
    pub cases: Vec<Case>,
    pub batches: Vec<u32>,
    pub point_ns: u64,
    /// Of two, of three and of four each.
    pub set_count: usize,
    pub seed: u64,
}

/// Batches of a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pick {
    case: usize,
    rows: u32,
}

/// One thing to measure.
#[derive(Clone, Debug)]
enum Item {
    Alone(PressureKernel),
    Pressed(Pick, PressureKernel),
    Set(Vec<Pick>),
}

/// What one part of a run came to.
#[derive(Clone, Copy, Debug)]
enum Found {
    Loop(Loop),
    BytesPerS(f64),
}

/// A process with models on its gpulets.
struct Shelf {
    gauge: Box<dyn Gauge>,
    opened: Opened,
    /// Whether a case is captured, or why it is not there.
    loaded: HashMap<usize, Result<bool, String>>,
    alone: HashMap<(usize, Pick), Loop>,
}

/// A run that gave nothing: the rule it broke; or the process is not to be trusted any more.
enum Failure {
    Rule(String),
    Broken(CtlError),
}

impl From<CtlError> for Failure {
    fn from(error: CtlError) -> Failure {
        Failure::Broken(error)
    }
}

impl Beside<'_> {
    fn path(&self) -> PathBuf {
        self.folder.join(files::INTERFERENCE)
    }

    fn picks(&self) -> Vec<Pick> {
        let of_case = |case| self.batches.iter().map(move |rows| Pick { case, rows: *rows });
        (0..self.cases.len()).flat_map(of_case).collect()
    }

    fn member(&self, pick: Pick) -> Member {
        let case = &self.cases[pick.case];
        let (model, precision) = (case.model.clone(), case.precision.word().to_owned());
        Member { model, precision, rows: pick.rows }
    }

    /// The file as it is, or a new one where it holds for something else.
    fn file(&self, site: &Site<'_>, opened: &Opened) -> Result<MeasuredBeside, CtlError> {
        let stamp = site.stamp(opened);
        let path = self.path();
        if let Some(mut file) = files::read::<MeasuredBeside>(&path)? {
            file.check().map_err(|error| {
                let source = std::io::Error::other(error.to_string());
                CtlError::File { path: path.clone(), source }
            })?;
            if (&file.stamp, file.point_ns, file.seed) == (&stamp, self.point_ns, self.seed) {
                file.refused.clear();
                return Ok(file);
            }
        }
        Ok(MeasuredBeside {
            format: FORMAT,
            stamp,
            point_ns: self.point_ns,
            seed: self.seed,
            pressures: Vec::new(),
            pressed: Vec::new(),
            sets: Vec::new(),
            refused: Vec::new(),
        })
    }

    /// All items for so many gpulets, and which of them the file has.
    fn items(&self, count: usize) -> Vec<Item> {
        let picks = self.picks();
        let mut items = Vec::new();
        if count == COUNTS[0] {
            items.extend(kernels().map(Item::Alone));
            let pressed =
                picks.iter().flat_map(|pick| kernels().map(|kernel| Item::Pressed(*pick, kernel)));
            items.extend(pressed);
        }
        let sets = draw(&picks, count, self.set_count, self.seed.wrapping_add(count as u64));
        items.extend(sets.into_iter().map(Item::Set));
        items
    }

    fn is_there(&self, file: &MeasuredBeside, item: &Item) -> bool {
        match item {
            Item::Alone(kernel) => file.pressures.iter().any(|it| it.kernel == *kernel),
            Item::Pressed(pick, kernel) => {
                let member = self.member(*pick);
                file.pressed.iter().any(|it| it.member == member && it.kernel == *kernel)
            }
            Item::Set(picks) => file.sets.iter().any(|set| {
                let wanted = picks.iter().map(|pick| self.member(*pick));
                set.members.len() == picks.len()
                    && set.members.iter().zip(wanted).all(|(it, wanted)| it.member == wanted)
            }),
        }
    }

    /// Measures what is missing. The file is written after each item.
    ///
    /// # Errors
    /// [`CtlError`]: the file, or no process that measures.
    pub(super) fn measure(&self, site: &mut Site<'_>) -> Result<Tally, CtlError> {
        let mut tally = Tally::default();
        let all: Vec<Vec<Item>> = COUNTS.map(|count| self.items(count)).into();
        site.bar.set_length(all.iter().map(Vec::len).sum::<usize>() as u64);
        let mut file: Option<MeasuredBeside> = None;
        for (count, items) in COUNTS.into_iter().zip(all) {
            let mut shelf: Option<Shelf> = None;
            for item in items {
                if (site.out_of_time)() {
                    tally.stopped = true;
                    return Ok(tally);
                }
                site.bar.inc(1);
                if file.as_ref().is_some_and(|file| self.is_there(file, &item)) {
                    tally.kept += 1;
                    continue;
                }
                let shelf_now = match &mut shelf {
                    Some(shelf) => shelf,
                    None => shelf.insert(Shelf::start(site, count)?),
                };
                let file = match &mut file {
                    Some(file) => file,
                    None => file.insert(self.file(site, &shelf_now.opened)?),
                };
                if self.is_there(file, &item) {
                    tally.kept += 1;
                    continue;
                }
                match self.item(site, shelf_now, file, &item) {
                    Ok(()) => tally.measured += 1,
                    Err(failure) => {
                        tally.refused += 1;
                        let rule = match failure {
                            Failure::Rule(rule) => rule,
                            Failure::Broken(error) => {
                                shelf = None;
                                error.to_string()
                            }
                        };
                        site.say(&format!("{item:?}: refused: {rule}"));
                        file.refused.push(self.refused(&item, rule));
                    }
                }
                files::write(&self.path(), file)?;
            }
            let Tally { measured, kept, refused, .. } = tally;
            site.say(&format!(
                "{count} gpulets: {measured} measured so far, {kept} were there, {refused} refused"
            ));
        }
        Ok(tally)
    }

    fn refused(&self, item: &Item, rule: String) -> RefusedRun {
        let (picks, kernel) = match item {
            Item::Alone(kernel) => (&[][..], Some(*kernel)),
            Item::Pressed(pick, kernel) => (std::slice::from_ref(pick), Some(*kernel)),
            Item::Set(picks) => (&picks[..], None),
        };
        let members = picks.iter().map(|pick| self.member(*pick)).collect();
        RefusedRun { members, kernel, rule }
    }

    fn item(
        &self,
        site: &Site<'_>,
        shelf: &mut Shelf,
        file: &mut MeasuredBeside,
        item: &Item,
    ) -> Result<(), Failure> {
        match item {
            Item::Alone(kernel) => {
                let parts = [Part { gpulet: 1, what: pressure(kernel) }];
                let found = shelf.trusted(site, &parts, self.point_ns)?;
                let [Found::BytesPerS(bytes_per_s)] = found[..] else { return Err(odd()) };
                let sm_count = shelf.opened.gpulets[1];
                file.pressures.push(PressureAlone { kernel: *kernel, sm_count, bytes_per_s });
            }
            Item::Pressed(pick, kernel) => {
                if !self.load(site, shelf, pick.case)? {
                    let rule = "is no CUDA graph: its allocations would wait for the kernel";
                    return Err(Failure::Rule(rule.to_owned()));
                }
                let alone = self.alone(site, shelf, 0, *pick)?;
                let parts = [self.part(0, *pick), Part { gpulet: 1, what: pressure(kernel) }];
                let found = shelf.trusted(site, &parts, self.point_ns)?;
                let [Found::Loop(beside), Found::BytesPerS(bytes_per_s)] = found[..] else {
                    return Err(odd());
                };
                file.pressed.push(Pressed {
                    member: self.member(*pick),
                    sm_count: shelf.opened.gpulets[0],
                    kernel: *kernel,
                    alone,
                    beside,
                    slowdown: slowdown(&alone, &beside),
                    bytes_per_s,
                });
            }
            Item::Set(picks) => file.sets.push(self.set(site, shelf, picks)?),
        }
        Ok(())
    }

    fn set(&self, site: &Site<'_>, shelf: &mut Shelf, picks: &[Pick]) -> Result<SetRun, Failure> {
        let mut alone = Vec::new();
        for (gpulet, pick) in picks.iter().enumerate() {
            self.load(site, shelf, pick.case)?;
            alone.push(self.alone(site, shelf, gpulet, *pick)?);
        }
        let place = |(gpulet, pick): (usize, &Pick)| self.part(gpulet, *pick);
        let parts: Vec<Part> = picks.iter().enumerate().map(place).collect();
        let found = shelf.trusted(site, &parts, self.point_ns)?;
        let mut members = Vec::new();
        for (gpulet, (found, alone)) in found.into_iter().zip(alone).enumerate() {
            let Found::Loop(beside) = found else { return Err(odd()) };
            members.push(SetMember {
                member: self.member(picks[gpulet]),
                sm_count: shelf.opened.gpulets[gpulet],
                alone,
                beside,
                slowdown: slowdown(&alone, &beside),
            });
        }
        Ok(SetRun { members })
    }

    fn part(&self, gpulet: usize, pick: Pick) -> Part {
        Part { gpulet, what: What::Model { id: pick.case as u32, rows: pick.rows } }
    }

    /// Has a case on the shelf, and says whether it is captured.
    fn load(&self, site: &Site<'_>, shelf: &mut Shelf, case: usize) -> Result<bool, Failure> {
        if let Some(known) = shelf.loaded.get(&case) {
            return known.clone().map_err(Failure::Rule);
        }
        let Case { model, directory, precision, .. } = &self.cases[case];
        site.begin(&format!("loading {model} {}", precision.word()));
        let order = Order::Load(Load {
            id: case as u32,
            directory: directory.clone(),
            precision: Some(*precision),
            max_batch: self.batches.last().copied(),
        });
        let known = match shelf.gauge.ask(&order, PATIENCE)? {
            Answer::Loaded(facts) => Ok(facts.captured),
            other => Err(other.unexpected().to_string()),
        };
        shelf.loaded.insert(case, known.clone());
        known.map_err(Failure::Rule)
    }

    /// What a pick does on a gpulet where nothing else runs.
    fn alone(
        &self,
        site: &Site<'_>,
        shelf: &mut Shelf,
        gpulet: usize,
        pick: Pick,
    ) -> Result<Loop, Failure> {
        if let Some(known) = shelf.alone.get(&(gpulet, pick)) {
            return Ok(*known);
        }
        let found = shelf.trusted(site, &[self.part(gpulet, pick)], self.point_ns)?;
        let [Found::Loop(alone)] = found[..] else { return Err(odd()) };
        shelf.alone.insert((gpulet, pick), alone);
        Ok(alone)
    }
}

impl Shelf {
    fn start(site: &mut Site<'_>, count: usize) -> Result<Shelf, CtlError> {
        let share_pct = (100 / count) as u8;
        let (gauge, opened) = (site.start)(&vec![share_pct; count])?;
        if opened.gpulets.len() != count {
            let rule = format!("{} gpulets were made of {count}", opened.gpulets.len());
            return Err(CtlError::Measure(rule));
        }
        Ok(Shelf { gauge, opened, loaded: HashMap::new(), alone: HashMap::new() })
    }

    /// What parts do in the time in which all of them ran, once that can be trusted.
    fn trusted(&mut self, site: &Site<'_>, parts: &[Part], ns: u64) -> Result<Vec<Found>, Failure> {
        let mut rule = String::new();
        for _ in 0..TRIES {
            // Some of them lie outside of that time.
            let spells = runs::run(self.gauge.as_mut(), parts, ns, LAPS_MIN + 2)?;
            rule = match ((site.others)(), found(&spells)) {
                (None, Ok(found)) => return Ok(found),
                (Some(others), _) => others,
                (None, Err(rule)) => rule,
            };
        }
        Err(Failure::Rule(format!("{rule}; {TRIES} tries")))
    }
}

fn found(spells: &[Spell]) -> Result<Vec<Found>, String> {
    let window = window(spells).ok_or("there is no time in which all ran")?;
    let one = |spell: &Spell| match spell {
        Spell::Laps(laps) => {
            let (pace, _) = judge(within(laps, window))?;
            let latency = pace.latency;
            Ok(Found::Loop(Loop {
                per_s: pace.per_s,
                mean_ns: latency.mean_ns,
                p50_ns: latency.p50_ns,
                p99_ns: latency.p99_ns,
                count: latency.count,
            }))
        }
        Spell::Bytes(samples) => {
            let rate = rate(samples, window).filter(|rate| *rate > 0.0);
            rate.map(Found::BytesPerS).ok_or_else(|| "the kernel read nothing".to_owned())
        }
    };
    spells.iter().map(one).collect()
}

fn odd() -> Failure {
    Failure::Broken(CtlError::Measure("another kind of part was measured".to_owned()))
}

fn slowdown(alone: &Loop, beside: &Loop) -> f64 {
    beside.p50_ns as f64 / alone.p50_ns.max(1) as f64
}

fn kernels() -> impl Iterator<Item = PressureKernel> {
    [PressedMemory::L2, PressedMemory::Dram].into_iter().flat_map(|memory| {
        PAUSES_NS.into_iter().zip(1..).map(move |(pause_ns, level)| PressureKernel {
            memory,
            level,
            blocks_per_sm: BLOCKS_PER_SM,
            pause_ns,
        })
    })
}

fn pressure(kernel: &PressureKernel) -> What {
    What::Pressure(Pressure {
        memory: match kernel.memory {
            PressedMemory::L2 => Memory::L2,
            PressedMemory::Dram => Memory::Dram,
        },
        blocks_per_sm: kernel.blocks_per_sm,
        pause_ns: kernel.pause_ns,
    })
}

/// Up to `sets` different sets of `count`, the same for the same seed. Dealt from a deck with each
/// pick twice, so that all come about equally often, and beside themselves too.
fn draw(picks: &[Pick], count: usize, sets: usize, seed: u64) -> Vec<Vec<Pick>> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (mut drawn, mut seen, mut deck) = (Vec::new(), BTreeSet::new(), Vec::new());
    if picks.is_empty() {
        return drawn;
    }
    for _ in 0..sets.saturating_mul(DRAWS) {
        if drawn.len() == sets {
            break;
        }
        let mut set = Vec::with_capacity(count);
        while set.len() < count {
            if deck.is_empty() {
                deck = [picks, picks].concat();
                random.shuffle(&mut deck);
            }
            set.extend(deck.pop());
        }
        let mut sorted = set.clone();
        sorted.sort_unstable();
        if seen.insert(sorted) {
            drawn.push(set);
        }
    }
    drawn
}
