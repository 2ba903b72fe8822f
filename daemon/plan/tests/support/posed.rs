//! Problems of all kinds, made at random, that can be changed and posed again.

use fastrand::Rng;
use gpulet_plan::bound::least_share;
use gpulet_plan::demand::{Demand, HeadRoom};
use gpulet_plan::interference::{
    Additive, Interference, Linear, Temper, Undisturbed, UtilisationCurve,
};
use gpulet_plan::problem::{DeviceType, Model, ModelCosts, Problem, Settings, merge_demands};
use gpulet_plan::table::LatencyTable;

use super::{PUBLISHED, Shape};

/// A model, what it does to its neighbours, and what is asked of it.
#[derive(Debug, Clone)]
pub struct Posing {
    pub shape: Shape,
    pub rate: f64,
    pub request_bytes: u64,
    pub temper: Temper,
    /// L2 and DRAM of a large batch.
    pub utilisation: (f64, f64),
}

/// How gpulets of a device disturb each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disturbed {
    Not,
    Linear,
    Additive,
}

/// Equal devices.
#[derive(Debug, Clone)]
pub struct Kind {
    pub count: u32,
    pub memory_mb: u64,
    pub context_mb: u64,
    pub network_bits: Option<f64>,
    pub shares_pct: Vec<u32>,
    /// Against the device that shapes are given for.
    pub speed: f64,
    pub disturbed: Disturbed,
}

/// Everything that a problem is made of.
#[derive(Debug, Clone)]
pub struct Posed {
    pub models: Vec<Posing>,
    pub kinds: Vec<Kind>,
    pub settings: Settings,
}

/// Shares that mechanisms offer, coarse and fine.
const GRAINS: [&[u32]; 6] = [
    &[100],
    &[50, 100],
    &[20, 40, 50, 60, 80, 100],
    &[10, 20, 40, 60, 100],
    &[10, 20, 30, 40, 50, 60, 70, 80, 90, 100],
    &[6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72, 78, 84, 90, 96, 100],
];

const MEMORIES_MB: [u64; 5] = [5000, 9900, 16_000, 40_000, 80_000];
const CONTEXTS_MB: [u64; 4] = [0, 300, 530, 1230];

/// Devices of a type where there are more than enough.
pub const MANY: u32 = 4000;

fn pick<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(0..of.len())]
}

/// Between two numbers, small and large ones alike.
fn between(rng: &mut Rng, low: f64, high: f64) -> f64 {
    low * (high / low).powf(rng.f64())
}

fn shape(rng: &mut Rng, memory_mb: u64) -> Shape {
    let (fixed_ms, row_ms) = (between(rng, 0.2, 20.0), between(rng, 0.02, 3.0));
    // Tight ones have room for two turns of a small batch, loose ones for two of the largest.
    let (least_ms, most_ms) = (fixed_ms + row_ms, fixed_ms + 32.0 * row_ms);
    let slo_ms = 2.05 * (least_ms + between(rng, 0.01, 1.0) * (most_ms - least_ms)) + 0.1;
    let knee = between(rng, 0.1, 1.0);
    Shape { fixed_ms, row_ms, knee, memory_mb, slo_ms }
}

fn posing(rng: &mut Rng, memory_mb: u64) -> Posing {
    let memory_mb = between(rng, 20.0, memory_mb as f64) as u64;
    Posing {
        shape: shape(rng, memory_mb),
        rate: 0.0,
        request_bytes: pick(rng, &[0, 4_000, 40_000, 602_112]),
        temper: Temper {
            pressure: rng.f64(),
            sensitivity_one: 0.6 * rng.f64(),
            sensitivity_many: 0.4 * rng.f64(),
        },
        utilisation: (rng.f64(), rng.f64()),
    }
}

fn kind(rng: &mut Rng, speed: f64) -> Kind {
    Kind {
        count: MANY,
        memory_mb: pick(rng, &MEMORIES_MB),
        context_mb: pick(rng, &CONTEXTS_MB),
        network_bits: None,
        shares_pct: pick(rng, &GRAINS).to_vec(),
        speed,
        disturbed: pick(rng, &[Disturbed::Not, Disturbed::Linear, Disturbed::Additive]),
    }
}

const MODELS: [usize; 14] = [1, 2, 3, 4, 5, 6, 8, 10, 14, 20, 35, 60, 110, 200];
const DEVICES: [f64; 7] = [0.3, 0.8, 1.5, 3.0, 6.0, 12.0, 40.0];

impl Posed {
    /// A problem of any size.
    pub fn any(rng: &mut Rng) -> Self {
        let (models, devices) = (pick(rng, &MODELS), pick(rng, &DEVICES));
        Self::random(rng, models, devices)
    }

    /// So many models that ask for so many devices, if each ran where it is cheapest.
    pub fn random(rng: &mut Rng, models: usize, devices: f64) -> Self {
        let types = pick(rng, &[1, 1, 1, 1, 2, 3]);
        let speeds: Vec<f64> =
            (0..types).map(|at| if at == 0 { 1.0 } else { between(rng, 0.3, 1.5) }).collect();
        let mut kinds: Vec<Kind> = speeds.into_iter().map(|speed| kind(rng, speed)).collect();
        // Where the first type's memory is as large as any, there is a place for every model.
        kinds[0].memory_mb = kinds.iter().map(|it| it.memory_mb).max().unwrap_or(0);
        let room_mb = kinds[0].memory_mb - kinds[0].context_mb;
        let largest_mb = (room_mb as f64 * pick(rng, &[0.1, 0.3, 0.9])) as u64;
        let settings = Settings {
            latency_ratio: 1.0,
            models_per_gpulet_max: pick(rng, &[1, 2, 3, 8]),
            gpulets_per_device_max: pick(rng, &[2, 4, 8, 32]),
            batch_max: pick(rng, &[8, 32]),
            head_room: pick(rng, &[HeadRoom::None, HeadRoom::PoissonP99]),
        };
        let mut posed = Self {
            models: (0..models).map(|_| posing(rng, largest_mb)).collect(),
            kinds,
            settings,
        };
        posed.ask(rng, devices);
        if rng.u8(0..4) == 0 {
            posed.limit_network(rng, devices);
        }
        posed
    }

    fn ask(&mut self, rng: &mut Rng, devices: f64) {
        self.models.iter_mut().for_each(|model| model.rate = 1.0);
        let problem = self.problem();
        let parts: Vec<f64> = self.models.iter().map(|_| between(rng, 0.03, 1.0)).collect();
        let all: f64 = parts.iter().sum();
        for (at, part) in parts.iter().enumerate() {
            let rate = part / all * devices / least_share(&problem, at);
            self.models[at].rate = rate.clamp(0.5, 1e6);
        }
    }

    /// About as much as is asked for, over so many devices.
    fn limit_network(&mut self, rng: &mut Rng, devices: f64) {
        let bits = self.models.iter().map(|it| it.rate * it.request_bytes as f64 * 8.0);
        let each = bits.sum::<f64>() / devices.max(1.0);
        for kind in &mut self.kinds {
            kind.network_bits = Some((each * between(rng, 0.5, 3.0)).max(1e6));
        }
    }

    /// The rates of all models times a factor.
    pub fn raised(&self, factor: impl Fn(usize) -> f64) -> Self {
        let mut raised = self.clone();
        raised.models.iter_mut().enumerate().for_each(|(at, it)| it.rate *= factor(at));
        raised
    }

    /// So many devices of each type.
    pub fn with_devices(&self, counts: &[u32]) -> Self {
        let mut limited = self.clone();
        limited.kinds.iter_mut().zip(counts).for_each(|(kind, &count)| kind.count = count);
        limited
    }

    /// The problem, as readers would pose it.
    pub fn problem(&self) -> Problem {
        let order: Vec<usize> = (0..self.models.len()).collect();
        self.problem_in(&order)
    }

    /// The same from demands in another order.
    pub fn problem_in(&self, order: &[usize]) -> Problem {
        let demands = order.iter().map(|&at| Demand {
            model: name(at),
            rate: self.models[at].rate,
            slo_ms: self.models[at].shape.slo_ms,
        });
        let demands = merge_demands("random", &demands.collect::<Vec<_>>());
        let models = demands.expect("rates and SLOs that can be").into_iter().map(|demand| {
            let at: usize = demand.model[1..].parse().expect("a name of ours");
            Model {
                name: demand.model,
                rate: demand.rate,
                planned_rate: self.settings.head_room.inflate(demand.rate),
                slo_ms: demand.slo_ms,
                costs: ModelCosts {
                    memory_mb: self.models[at].shape.memory_mb,
                    batching_ms: Vec::new(),
                    request_bytes: self.models[at].request_bytes,
                },
            }
        });
        let models: Vec<Model> = models.collect();
        let kinds = self.kinds.iter().enumerate();
        let devices = kinds.map(|(at, kind)| self.device_type(at, kind)).collect();
        Problem::new(devices, models, self.settings)
    }

    fn device_type(&self, at: usize, kind: &Kind) -> DeviceType {
        let mut latency = LatencyTable::new();
        for (model, Posing { shape, .. }) in self.models.iter().enumerate() {
            for &share_pct in &kind.shares_pct {
                for batch in [1, 2, 4, 8, 16, 32] {
                    let share = (f64::from(share_pct) / 100.0).min(shape.knee) / shape.knee;
                    let ms = shape.fixed_ms + shape.row_ms * f64::from(batch) / share;
                    assert!(latency.insert(&name(model), share_pct, batch, ms / kind.speed));
                }
            }
        }
        DeviceType {
            name: format!("type{at}"),
            count: kind.count,
            memory_mb: kind.memory_mb,
            context_mb: kind.context_mb,
            network_bits: kind.network_bits,
            shares_pct: kind.shares_pct.clone(),
            latency,
            profiles: (0..self.models.len()).map(name).collect(),
            interference: self.interference(kind.disturbed),
        }
    }

    fn interference(&self, disturbed: Disturbed) -> Box<dyn Interference> {
        match disturbed {
            Disturbed::Not => Box::new(Undisturbed),
            Disturbed::Additive => {
                Box::new(Additive::new(0.8, self.models.iter().map(|it| it.temper).collect()))
            }
            Disturbed::Linear => {
                let curve = |model: &Posing| {
                    let (l2, dram) = model.utilisation;
                    let points = vec![(1, 0.3 * l2, 0.3 * dram), (32, l2, dram)];
                    UtilisationCurve::new(points).expect("a curve")
                };
                Box::new(Linear::new(PUBLISHED, self.models.iter().map(curve).collect()))
            }
        }
    }
}

fn name(model: usize) -> String {
    format!("m{model:04}")
}
