//! Devices, models and problems made up for tests: latencies of the shape that GPUs show.
#![allow(dead_code, reason = "every test uses some of it")]

pub mod posed;

use gpulet_plan::demand::HeadRoom;
use gpulet_plan::interference::{
    Interference, Linear, LinearConstants, Undisturbed, UtilisationCurve,
};
use gpulet_plan::problem::{DeviceType, Model, ModelCosts, Problem, Settings};
use gpulet_plan::table::LatencyTable;

/// A made-up model: fixed cost and cost of a row at a whole device in ms, share from which on
/// more does not help, memory in MB.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub fixed_ms: f64,
    pub row_ms: f64,
    pub knee: f64,
    pub memory_mb: u64,
    pub slo_ms: f64,
}

/// Small, middling and large models.
pub const SHAPES: [Shape; 6] = [
    Shape { fixed_ms: 0.6, row_ms: 0.06, knee: 0.25, memory_mb: 50, slo_ms: 5.0 },
    Shape { fixed_ms: 4.0, row_ms: 0.22, knee: 0.4, memory_mb: 500, slo_ms: 22.0 },
    Shape { fixed_ms: 5.0, row_ms: 0.6, knee: 0.5, memory_mb: 1720, slo_ms: 66.0 },
    Shape { fixed_ms: 4.0, row_ms: 1.2, knee: 0.6, memory_mb: 1820, slo_ms: 108.0 },
    Shape { fixed_ms: 6.0, row_ms: 2.0, knee: 0.9, memory_mb: 2920, slo_ms: 142.0 },
    Shape { fixed_ms: 18.0, row_ms: 2.5, knee: 0.7, memory_mb: 1220, slo_ms: 202.0 },
];

/// The published linear model, its constants rounded.
pub const PUBLISHED: LinearConstants = LinearConstants {
    own_l2: 0.11,
    other_l2: 0.72,
    own_dram: 0.35,
    other_dram: 0.09,
    constant: 0.9,
};

/// A problem: of each entry the shape, requests per second.
pub fn problem(asked: &[(usize, f64)], devices: u32, disturbed: bool) -> Problem {
    let names: Vec<String> = (0..asked.len()).map(|at| format!("m{at:04}")).collect();
    let mut latency = LatencyTable::new();
    for (index, shape) in SHAPES.iter().enumerate() {
        for share_pct in [20, 40, 50, 60, 80, 100] {
            for batch in 1..=32 {
                let share = (f64::from(share_pct) / 100.0).min(shape.knee);
                let ms = shape.fixed_ms + shape.row_ms * f64::from(batch) / share;
                assert!(latency.insert(&format!("shape{index}"), share_pct, batch, ms));
            }
        }
    }
    let models = asked.iter().zip(&names).map(|(&(shape, rate), name)| Model {
        name: name.clone(),
        rate,
        planned_rate: HeadRoom::PoissonP99.inflate(rate),
        slo_ms: SHAPES[shape].slo_ms,
        costs: ModelCosts {
            memory_mb: SHAPES[shape].memory_mb,
            batching_ms: (1..=32).map(|batch| 0.02 * f64::from(batch)).collect(),
            request_bytes: 0,
        },
    });
    let curve = || UtilisationCurve::new(vec![(1, 0.08, 0.2), (8, 0.2, 0.4), (32, 0.28, 0.6)]);
    let curves = asked.iter().map(|_| curve().expect("a curve")).collect();
    let interference: Box<dyn Interference> =
        if disturbed { Box::new(Linear::new(PUBLISHED, curves)) } else { Box::new(Undisturbed) };
    let device = DeviceType {
        name: "made-up".into(),
        count: devices,
        memory_mb: 9900,
        context_mb: 1230,
        network_bits: None,
        shares_pct: latency.shares_pct(),
        latency,
        profiles: asked.iter().map(|(shape, _)| format!("shape{shape}")).collect(),
        interference,
    };
    let settings = Settings { models_per_gpulet_max: 3, ..Settings::default() };
    Problem::new(vec![device], models.collect(), settings)
}
