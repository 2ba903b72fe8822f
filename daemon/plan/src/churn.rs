//! What it takes to get from one plan to the next, and what that costs.
//!
//! Batches and duty cycles change for nothing: they are orders to a gpulet that runs. A model
//! that moves is loaded in one place and unloaded in the other.

use std::collections::HashMap;

use crate::plan::{Plan, PlannedDevice, PlannedGpulet};
use crate::problem::Problem;

/// Devices of the running plan that are looked at as the former self of a new one.
const CANDIDATES_MAX: usize = 24;

/// Prices of changes, in devices: what one is worth, as long as a plan lives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Churn {
    /// Loading an instance.
    pub load: f64,
    /// Unloading an instance.
    pub unload: f64,
    /// Changing the share of a gpulet that keeps an instance.
    pub resize: f64,
}

/// A device is given up for twenty models loaded, or a hundred unloaded or resized in place:
/// a load keeps a part of a device and the way to it busy for a part of a second, the others
/// take milliseconds.
impl Default for Churn {
    fn default() -> Self {
        Self { load: 0.05, unload: 0.01, resize: 0.01 }
    }
}

/// What is different between two plans.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Instances that are loaded.
    pub loads: u32,
    /// Instances that are unloaded.
    pub unloads: u32,
    /// Gpulets that keep an instance and change their share.
    pub resizes: u32,
}

impl Churn {
    /// Changes are free.
    pub const FREE: Churn = Churn { load: 0.0, unload: 0.0, resize: 0.0 };

    /// What changes cost, in devices.
    #[must_use]
    pub fn price(&self, changes: Changes) -> f64 {
        self.load * f64::from(changes.loads)
            + self.unload * f64::from(changes.unloads)
            + self.resize * f64::from(changes.resizes)
    }
}

impl std::ops::AddAssign for Changes {
    fn add_assign(&mut self, more: Self) {
        self.loads += more.loads;
        self.unloads += more.unloads;
        self.resizes += more.resizes;
    }
}

/// What changes from `running` to `next`, device by device as they are numbered.
#[must_use]
pub fn changes(running: &Plan, next: &Plan) -> Changes {
    let mut sum = Changes::default();
    let (mut before, mut after) = (running.devices.iter().peekable(), next.devices.iter());
    let mut pending = after.next();
    while before.peek().is_some() || pending.is_some() {
        let old = before.peek().map(|device| device.device);
        let new = pending.map(|device| device.device);
        let takes_old = old.is_some_and(|old| new.is_none_or(|new| old <= new));
        let takes_new = new.is_some_and(|new| old.is_none_or(|old| new <= old));
        let one = if takes_old { before.next() } else { None };
        let two = if takes_new { pending } else { None };
        if takes_new {
            pending = after.next();
        }
        let gpulets = |of: Option<&PlannedDevice>| of.map_or(0..0, |it| 0..it.gpulets.len());
        let (olds, news) = (gpulets(one), gpulets(two));
        let old = |at: usize| one.map(|device| &device.gpulets[at]);
        let new = |at: usize| two.map(|device| &device.gpulets[at]);
        let olds: Vec<&PlannedGpulet> = olds.filter_map(old).collect();
        let news: Vec<&PlannedGpulet> = news.filter_map(new).collect();
        sum += between(&olds, &news);
    }
    sum
}

/// What changes on one device, gpulets paired where they share most.
fn between(old: &[&PlannedGpulet], new: &[&PlannedGpulet]) -> Changes {
    let mut pairs: Vec<(usize, usize, usize)> = Vec::new();
    for (from, before) in old.iter().enumerate() {
        for (to, after) in new.iter().enumerate() {
            let shared = shared(before, after);
            if shared > 0 {
                let same = usize::from(before.share_pct == after.share_pct);
                pairs.push((2 * shared + same, from, to));
            }
        }
    }
    pairs.sort_by_key(|&(score, from, to)| (std::cmp::Reverse(score), from, to));
    let count = |gpulets: &[&PlannedGpulet]| -> u32 {
        gpulets.iter().map(|gpulet| gpulet.instances.len() as u32).sum()
    };
    let mut sum = Changes { loads: count(new), unloads: count(old), resizes: 0 };
    let (mut left, mut taken) = (vec![true; old.len()], vec![true; new.len()]);
    for (_, from, to) in pairs {
        if std::mem::take(&mut left[from]) {
            if !std::mem::take(&mut taken[to]) {
                left[from] = true;
                continue;
            }
            let kept = shared(old[from], new[to]) as u32;
            sum.loads -= kept;
            sum.unloads -= kept;
            sum.resizes += u32::from(old[from].share_pct != new[to].share_pct);
        }
    }
    sum
}

/// Models that both gpulets host; a file may name one twice.
fn shared(one: &PlannedGpulet, two: &PlannedGpulet) -> usize {
    let hosted = |by: &PlannedGpulet, of: &PlannedGpulet| {
        let hosts = |model: &str| by.instances.iter().any(|it| it.model == model);
        of.instances.iter().filter(|it| hosts(&it.model)).count()
    };
    hosted(one, two).min(hosted(two, one))
}

/// `next` with its devices numbered so that little changes from `running`: each takes the place
/// of a device of its type that it is most like.
#[must_use]
pub fn aligned(problem: &Problem, running: &Plan, mut next: Plan) -> Plan {
    let mut places = Places::new(problem, running);
    let mut numbers: Vec<Option<u32>> = vec![None; next.devices.len()];
    // What has not changed at all comes first, so that nothing else takes its place.
    for exact in [true, false] {
        for (number, device) in numbers.iter_mut().zip(&next.devices) {
            if number.is_none() {
                *number = places.former(device, exact);
            }
        }
    }
    for (number, device) in numbers.iter_mut().zip(&next.devices) {
        number.get_or_insert_with(|| places.unused(problem, &device.kind));
    }
    for (number, device) in numbers.into_iter().zip(&mut next.devices) {
        device.device = number.unwrap_or(device.device);
    }
    next.devices.sort_by_key(|device| device.device);
    next
}

/// Devices of the running plan that have no successor yet.
struct Places<'a> {
    running: &'a Plan,
    taken: Vec<bool>,
    /// By type, shares and models of all gpulets.
    alike: HashMap<Signature<'a>, Vec<usize>>,
    /// By type and model.
    hosting: HashMap<(&'a str, &'a str), Vec<usize>>,
    /// By type: numbers that the running plan does not use.
    unused: HashMap<String, Vec<u32>>,
}

type Signature<'a> = (&'a str, Vec<(u32, Vec<&'a str>)>);

fn signature(device: &PlannedDevice) -> Signature<'_> {
    let gpulets = device.gpulets.iter().map(|gpulet| {
        let mut models: Vec<&str> = gpulet.instances.iter().map(|it| &*it.model).collect();
        models.sort_unstable();
        (gpulet.share_pct, models)
    });
    let mut gpulets: Vec<(u32, Vec<&str>)> = gpulets.collect();
    gpulets.sort_unstable();
    (&device.kind, gpulets)
}

impl<'a> Places<'a> {
    fn new(problem: &Problem, running: &'a Plan) -> Self {
        let mut alike: HashMap<Signature<'a>, Vec<usize>> = HashMap::new();
        let mut hosting: HashMap<(&str, &str), Vec<usize>> = HashMap::new();
        let mut used: Vec<u32> = Vec::with_capacity(running.devices.len());
        // The last come first out.
        for (at, device) in running.devices.iter().enumerate().rev() {
            used.push(device.device);
            alike.entry(signature(device)).or_default().push(at);
            for instance in device.gpulets.iter().flat_map(|gpulet| &gpulet.instances) {
                let of_model = hosting.entry((&device.kind, &instance.model)).or_default();
                if of_model.last() != Some(&at) {
                    of_model.push(at);
                }
            }
        }
        used.sort_unstable();
        let mut unused = HashMap::new();
        let mut first = 0;
        for kind in &problem.devices {
            let numbers = (first..first + kind.count).rev();
            let free = numbers.filter(|number| used.binary_search(number).is_err()).collect();
            unused.insert(kind.name.clone(), free);
            first += kind.count;
        }
        Self { running, taken: vec![false; running.devices.len()], alike, hosting, unused }
    }

    /// The device whose place `device` takes: an equal one, or the one most like it.
    fn former(&mut self, device: &'a PlannedDevice, exact: bool) -> Option<u32> {
        let found = if exact {
            self.alike.get_mut(&signature(device))?.pop()
        } else {
            self.most_alike(device)
        }?;
        self.taken[found] = true;
        Some(self.running.devices[found].device)
    }

    fn most_alike(&self, device: &PlannedDevice) -> Option<usize> {
        let new: Vec<&PlannedGpulet> = device.gpulets.iter().collect();
        let models = device.gpulets.iter().flat_map(|gpulet| &gpulet.instances);
        let hosts = models.filter_map(|it| self.hosting.get(&(&*device.kind, &*it.model)));
        let mut candidates: Vec<usize> = Vec::new();
        for hosts in hosts {
            let free = hosts.iter().rev().filter(|&&at| !self.taken[at]);
            candidates.extend(free.take(CANDIDATES_MAX));
        }
        candidates.sort_unstable();
        candidates.dedup();
        let like = |&at: &usize| {
            let old: Vec<&PlannedGpulet> = self.running.devices[at].gpulets.iter().collect();
            Churn::default().price(between(&old, &new))
        };
        let both = |one: &usize, two: &usize| like(one).total_cmp(&like(two)).then(one.cmp(two));
        candidates.into_iter().min_by(both)
    }

    /// A number of that type: one that was not used, else one that has become free.
    fn unused(&mut self, problem: &Problem, kind: &str) -> u32 {
        if let Some(number) = self.unused.get_mut(kind).and_then(Vec::pop) {
            return number;
        }
        let devices = &self.running.devices;
        let free = (0..devices.len()).find(|&at| !self.taken[at] && devices[at].kind == kind);
        match free {
            Some(at) => {
                self.taken[at] = true;
                devices[at].device
            }
            // More devices than there are: no plan does that, and `check` would tell.
            None => problem.device_count(),
        }
    }
}
