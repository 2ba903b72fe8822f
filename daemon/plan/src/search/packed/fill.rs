//! What to put on one gpulet: the models, batches and duty cycle worth most of what is left.

use super::tables::{Class, Kind, MEMBERS_MAX, Tables};

/// Duty cycles that are tried, parts of the longest: a shorter one wastes less on models that
/// are asked seldom, a longer one spreads the fixed cost of a batch further.
const DUTIES: [f64; 6] = [1.0, 0.8, 0.62, 0.47, 0.34, 0.22];

/// Work of looking for the batches of a shared gpulet, in looks at a model alone.
const SHARING: usize = 100;

/// One gpulet, filled.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fill {
    members: [(u32, u32); MEMBERS_MAX],
    len: usize,
    /// Duty cycle that what it serves is reckoned with, ms; no batch can need longer.
    pub duty_ms: f64,
    /// Worth of the requests that it serves of what is left.
    pub value: f64,
    /// Memory with the context, MB.
    pub memory_mb: f64,
    /// Bits per second over the network.
    pub network_bits: f64,
}

impl Fill {
    const EMPTY: Fill = Fill {
        members: [(0, 0); MEMBERS_MAX],
        len: 0,
        duty_ms: 0.0,
        value: 0.0,
        memory_mb: 0.0,
        network_bits: 0.0,
    };

    /// Models and their batches.
    pub fn members(&self) -> impl Iterator<Item = (usize, u32)> {
        self.members[..self.len].iter().map(|&(model, batch)| (model as usize, batch))
    }

    /// Requests per second that it serves of each model.
    pub fn throughputs(&self) -> impl Iterator<Item = (usize, f64)> {
        let duty_ms = self.duty_ms;
        self.members().map(move |(model, batch)| (model, f64::from(batch) * 1000.0 / duty_ms))
    }

    fn hosts(&self, model: usize) -> bool {
        self.members().any(|member| member.0 == model)
    }
}

/// What is left to place, and what it is worth.
#[derive(Debug, Clone)]
pub(super) struct Left {
    /// Requests per second by model.
    pub rate: Vec<f64>,
    /// Worth of a request per second by model.
    pub worth: Vec<f64>,
    /// Models of which something is left.
    pub active: Vec<usize>,
    /// Those of them worth trying to add to a shared gpulet, best first.
    pub companions: Vec<usize>,
}

impl Left {
    /// Worth of all that is left of the members of `fill` and of `model`.
    fn value(&self, fill: &Fill, model: usize) -> f64 {
        let members = fill.members().map(|it| it.0).chain([model]);
        members.map(|it| self.worth[it] * self.rate[it]).sum()
    }
}

/// Room on a device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub memory_mb: f64,
    pub network_bits: f64,
    /// Worth that a megabyte is charged with.
    pub memory_price: f64,
}

/// The filling of a gpulet of `class` that is worth most, less the price of its memory.
pub(super) fn fill(
    tables: &Tables,
    kind: &Kind,
    class: &Class,
    left: &Left,
    room: Room,
    seeds: usize,
) -> Option<Fill> {
    tables.worked(left.active.len());
    let mut best = [(0.0_f64, usize::MAX); 4];
    let mut most = 0.0_f64;
    for &model in &left.active {
        let (_, carried) = class.best[model];
        let memory_mb = kind.context_mb + tables.memory_mb[model];
        if carried <= 0.0 || memory_mb > room.memory_mb {
            continue;
        }
        most = most.max(left.worth[model] * carried);
        let value =
            left.worth[model] * carried.min(left.rate[model]) - room.memory_price * memory_mb;
        if best[0].1 == usize::MAX || value > best[best.len() - 1].0 {
            insert(&mut best, (value, model));
        }
    }
    if best[0].1 == usize::MAX {
        return None;
    }
    let filling = Filling { tables, kind, class, left, room };
    let alone = filling.single(best[0].1)?;
    let saturated = left.rate[best[0].1] >= class.best[best[0].1].1;
    if saturated || tables.members_max < 2 || left.companions.is_empty() {
        return Some(alone);
    }
    let mut found = alone;
    for &(_, model) in best[..seeds.min(best.len())].iter().filter(|it| it.1 != usize::MAX) {
        if filling.net(&found) >= most {
            break;
        }
        if let Some(grown) = filling.grow(model)
            && filling.net(&grown) > filling.net(&found) + 1e-12
        {
            found = grown;
        }
    }
    Some(found)
}

/// Keeps the best few, best first.
fn insert(best: &mut [(f64, usize)], new: (f64, usize)) {
    let place = best.iter().position(|it| it.1 == usize::MAX || new.0 > it.0);
    if let Some(place) = place {
        best[place..].rotate_right(1);
        best[place] = new;
    }
}

struct Filling<'a> {
    tables: &'a Tables,
    kind: &'a Kind,
    class: &'a Class,
    left: &'a Left,
    room: Room,
}

impl Filling<'_> {
    fn net(&self, fill: &Fill) -> f64 {
        fill.value - self.room.memory_price * fill.memory_mb
    }

    /// Worth of what a gpulet serves at most on which `model` runs and nothing worth more.
    fn most(&self, model: usize) -> f64 {
        self.left.worth[model] * self.class.best[model].1
    }

    fn single(&self, model: usize) -> Option<Fill> {
        let (best, _) = self.class.best[model];
        let memory_mb = self.kind.context_mb + self.tables.memory_mb[model];
        let mut fill = Fill { len: 1, memory_mb, ..Fill::EMPTY };
        // Where the network is slow, a smaller batch comes together sooner.
        (1..=best).rev().find_map(|batch| {
            fill.members[0] = (model as u32, batch);
            fill.duty_ms = self.tables.latency_ms(self.class, model, batch);
            let carried = f64::from(batch) * 1000.0 / fill.duty_ms;
            fill.value = self.left.worth[model] * carried.min(self.left.rate[model]);
            self.within_network(fill)
        })
    }

    /// Adds to `seed` whatever gains most, until nothing gains.
    fn grow(&self, seed: usize) -> Option<Fill> {
        let mut fill = self.single(seed)?;
        let mut most = self.most(seed);
        while fill.len < self.tables.members_max {
            let mut best: Option<Fill> = None;
            for &model in &self.left.companions {
                let memory_mb = fill.memory_mb + self.tables.memory_mb[model];
                if fill.hosts(model) || memory_mb > self.room.memory_mb {
                    continue;
                }
                let least = best.map_or(self.net(&fill) + 1e-9, |it| self.net(&it));
                let charged = self.room.memory_price * memory_mb;
                let most = self.left.value(&fill, model).min(most.max(self.most(model)));
                if most - charged <= least {
                    continue;
                }
                let grown = self.shared(&fill, model, memory_mb, (least + charged, most));
                best = grown.filter(|it| self.net(it) > least).or(best);
            }
            match best {
                Some(grown) => fill = grown,
                None => break,
            }
            if let Some((model, _)) = fill.members().last() {
                most = most.max(self.most(model));
            }
        }
        Some(fill)
    }

    /// The members of `fill` and `model`, taking turns. All get what is left of them, or all but
    /// one, which gets the time that remains. Looks for more than `least`, and no more than `most`.
    fn shared(
        &self,
        fill: &Fill,
        model: usize,
        memory_mb: f64,
        (least, most): (f64, f64),
    ) -> Option<Fill> {
        self.tables.worked(SHARING);
        let mut shared = *fill;
        shared.members[shared.len] = (model as u32, 0);
        shared.len += 1;
        shared.memory_mb = memory_mb;
        let longest_ms = shared
            .members()
            .map(|(model, _)| self.tables.duty_max_ms[model])
            .fold(f64::INFINITY, f64::min);
        let mut best: Option<Fill> = None;
        for part in DUTIES {
            let least = best.map_or(least, |it| it.value + 1e-12);
            let Some(tried) = self.within(&shared, longest_ms * part, least) else { continue };
            best = Some(tried);
            if tried.value >= most - 1e-12 {
                break;
            }
        }
        best.and_then(|fill| self.within_network(fill))
    }

    /// The best batches within a duty cycle, if worth more than `least`.
    fn within(&self, shared: &Fill, duty_ms: f64, least: f64) -> Option<Fill> {
        let mut needs = [(0_u32, 0.0_f64); MEMBERS_MAX];
        let mut busy_ms = 0.0;
        let mut worth = 0.0;
        let mut over: Option<usize> = None;
        for (at, (model, _)) in shared.members().enumerate() {
            let rate = self.left.rate[model];
            let rows = rate * duty_ms / 1000.0 - 1e-9;
            // Rounded up; calls of ceil would take a tenth of the search.
            let batch = rows as u32 + u32::from(rows > f64::from(rows as u32));
            let mut ms = f64::INFINITY;
            if batch <= self.tables.batch_max {
                needs[at].0 = batch.max(1);
                ms = self.tables.latency_ms(self.class, model, batch.max(1));
            }
            needs[at].1 = ms;
            if ms.is_finite() {
                busy_ms += ms;
                worth += self.left.worth[model] * rate;
            } else if over.replace(at).is_some() {
                return None;
            }
        }
        if over.is_none() && busy_ms <= duty_ms {
            let mut shared = Fill { duty_ms: busy_ms, value: worth, ..*shared };
            (0..shared.len).for_each(|at| shared.members[at].1 = needs[at].0);
            return Some(shared);
        }
        let fillers = over.map_or(0..shared.len, |at| at..at + 1);
        let mut best: Option<(usize, u32, f64)> = None;
        let mut most = least;
        for at in fillers {
            let model = shared.members[at].0 as usize;
            let own_worth = self.left.worth[model] * self.left.rate[model];
            let (others_ms, others_worth) = match over {
                Some(_) => (busy_ms, worth),
                None => (busy_ms - needs[at].1, worth - own_worth),
            };
            // Of what it carries alone it carries no more than the part of the time that it gets.
            let part = 1.0 - others_ms / duty_ms;
            if part <= 0.0 || others_worth + own_worth.min(self.most(model) * part) <= most {
                continue;
            }
            let batch = self.tables.batch_within(self.class, model, duty_ms - others_ms);
            if batch == 0 {
                continue;
            }
            let turn_ms = others_ms + self.tables.latency_ms(self.class, model, batch);
            let carried = (f64::from(batch) * 1000.0 / turn_ms).min(self.left.rate[model]);
            let value = others_worth + self.left.worth[model] * carried;
            if value > most {
                most = value;
                best = Some((at, batch, turn_ms));
            }
        }
        let (filler, batch, duty_ms) = best?;
        let mut shared = Fill { duty_ms, value: most, ..*shared };
        for (at, need) in needs[..shared.len].iter().enumerate() {
            shared.members[at].1 = if at == filler { batch } else { need.0 };
        }
        Some(shared)
    }

    /// Slows the duty cycle down as far as the network asks and the SLO allows.
    fn within_network(&self, mut fill: Fill) -> Option<Fill> {
        if self.room.network_bits == f64::INFINITY {
            return Some(fill);
        }
        let bits = |fill: &Fill| -> f64 {
            fill.throughputs().map(|(model, rate)| rate * self.tables.request_bits[model]).sum()
        };
        let asked = bits(&fill);
        // What rounding takes below nothing is no room either; who asks for nothing needs none.
        let room_bits = self.room.network_bits.max(0.0);
        if asked > room_bits {
            let slower = asked / room_bits;
            let busy_ms = fill.duty_ms;
            fill.duty_ms *= slower;
            let slo_ms = fill.members().map(|(model, _)| 2.0 * self.tables.duty_max_ms[model]);
            if fill.duty_ms + busy_ms > slo_ms.fold(f64::INFINITY, f64::min) {
                return None;
            }
            fill.value = fill
                .throughputs()
                .map(|(model, rate)| self.left.worth[model] * rate.min(self.left.rate[model]))
                .sum();
        }
        fill.network_bits = bits(&fill);
        Some(fill)
    }
}
