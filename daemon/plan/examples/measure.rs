//! Measures the planner on problems made up here: `cargo run --release -p gpulet-plan --example
//! measure`. Times are wall clock, the least of five.
#![allow(clippy::unwrap_used, reason = "a measurement may panic")]

#[path = "../tests/support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::time::Instant;

use fastrand::Rng;
use gpulet_plan::bound::best_throughput;
use gpulet_plan::check::check;
use gpulet_plan::churn::{Changes, Churn, changes};
use gpulet_plan::demand::HeadRoom;
use gpulet_plan::interference::Tempers;
use gpulet_plan::native::{self, Asked, Document};
use gpulet_plan::policy::{BatchLimits, Decision, Pace, decide, defer};
use gpulet_plan::problem::Problem;
use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use gpulet_plan::queue::DeadlineQueue;
use gpulet_plan::search::{Policy, packed::replan, packed::step};
use gpulet_plan::sim::{Arrivals, Settings, Source, simulate};

use support::{SHAPES, problem};

fn main() {
    scale();
    measured();
    steps();
    mixes();
    small();
    monotone();
    simulated();
    decisions();
}

/// The least milliseconds of five, and what came of it.
fn timed<T>(run: impl Fn() -> T) -> (f64, T) {
    let once = || {
        let begun = Instant::now();
        let result = run();
        (begun.elapsed().as_secs_f64() * 1e3, result)
    };
    (0..4).fold(once(), |least, _| {
        let next = once();
        if next.0 < least.0 { next } else { least }
    })
}

/// Models with rates that take about `load` of `devices` if each ran alone.
fn asked(devices: u32, models: usize, load: f64, rng: &mut Rng) -> Vec<(usize, f64)> {
    let whole: Vec<f64> = (0..SHAPES.len())
        .map(|shape| best_throughput(&problem(&[(shape, 1.0)], 1, false), 0, 0, 5).unwrap())
        .collect();
    (0..models)
        .map(|_| {
            let shape = rng.usize(0..SHAPES.len());
            let part = load * f64::from(devices) / models as f64 * (0.5 + rng.f64());
            (shape, (part * whole[shape]).max(1.0).round())
        })
        .collect()
}

fn scale() {
    println!("scale: GPUs x models, ms, GPUs used, bound");
    let mut rng = Rng::with_seed(7);
    let sizes = [(64, 50), (128, 50), (256, 50), (512, 50), (512, 150), (4096, 150), (4096, 1000)];
    let mut times = Vec::new();
    for (devices, models) in sizes {
        let problem = problem(&asked(devices, models, 0.6, &mut rng), 2 * devices, true);
        let (ms, plan) = timed(|| Policy::Packed.plan(&problem).unwrap());
        assert_eq!(check(&problem, &plan), []);
        println!("  {devices} x {models}: {ms:.2}, {}, {:.1}", plan.devices.len(), plan.bound);
        times.push(ms);
    }
    println!(
        "  growth exponent in GPUs, 64 to 512 x 50: {:.2}",
        (times[3] / times[0]).ln() / 8_f64.ln()
    );
}

/// Of each model in fp16 the SLO, ms, and what half of an H100 serves, as in
/// `resource/workloads/h100-fp16.toml`.
const H100: [(&str, f64, f64); 9] = [
    ("resnet50", 6.4, 5000.0),
    ("googlenet", 4.8, 6500.0),
    ("mobilenet_v2", 3.9, 8000.0),
    ("mnasnet1_0", 3.9, 8000.0),
    ("densenet161", 21.1, 1500.0),
    ("vgg16", 11.1, 2900.0),
    ("ssd", 25.1, 1300.0),
    ("bert", 4.0, 15000.0),
    ("lenet", 2.0, 20000.0),
];

/// Models under many names on H100s as they were measured: pressures of all neighbours add up.
fn h100s(devices: u32, models: usize, load: f64, rng: &mut Rng) -> Problem {
    let folder =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../resource/profiles/nvidia-h100-80gb-hbm3");
    let read = |name: &str| std::fs::read_to_string(format!("{folder}/{name}.json")).unwrap();
    let tempers: Tempers = serde_json::from_str(&read("tempers")).unwrap();
    let mut document: Document = serde_json::from_value(serde_json::json!({
        "device": [{ "name": "h100", "count": 2 * devices, "memory_mb": 80_000,
                     "context_mb": 530, "gpulets_max": 8 }],
        "model": [],
    }))
    .unwrap();
    let mut all = Tempers { models: BTreeMap::new(), ..tempers.clone() };
    let found = H100.map(|it| serde_json::from_str(&read(&format!("{}.fp16", it.0))).unwrap());
    for at in 0..models {
        let which = rng.usize(0..H100.len());
        let (model, slo_ms, half) = H100[which];
        let name = format!("m{at:04}");
        let memory_mb = document.measured("h100", &name, &found[which]);
        let part = 2.0 * load * f64::from(devices) / models as f64 * (0.5 + rng.f64());
        all.models.insert(name.clone(), tempers.models[&format!("{model}.fp16")]);
        document.model.push(Asked { name, rate: (part * half).ceil(), slo_ms, memory_mb });
    }
    document.interference = Some(all);
    native::problem("h100s", &document).unwrap()
}

fn measured() {
    println!("measured H100s, GPUs x models: ms, GPUs used, bound, of elastic");
    let mut rng = Rng::with_seed(7);
    for (devices, models) in [(16, 9), (64, 50), (64, 50), (64, 50), (512, 150)] {
        let problem = h100s(devices, models, 0.6, &mut rng);
        let (ms, plan) = timed(|| Policy::Packed.plan(&problem).unwrap());
        assert_eq!(check(&problem, &plan), []);
        let elastic = Policy::Elastic.plan(&problem).map_or(0, |it| it.devices.len());
        let (used, bound) = (plan.devices.len(), plan.bound);
        println!("  {devices} x {models}: {ms:.1}, {used}, {bound:.1}, {elastic}");
    }
}

fn raised(mut problem: Problem, factor: impl Fn(usize) -> f64) -> Problem {
    for (at, model) in problem.models.iter_mut().enumerate() {
        model.rate *= factor(at);
        model.planned_rate = HeadRoom::PoissonP99.inflate(model.rate);
    }
    problem
}

fn steps() {
    println!("step at 512 x 150: ms, GPUs before, after, of a plan from nothing, unchanged");
    let rates = asked(512, 150, 0.5, &mut Rng::with_seed(7));
    let posed = || problem(&rates, 1024, true);
    let running = Policy::Packed.plan(&posed()).unwrap();
    type Factor = fn(usize) -> f64;
    let cases: [(&str, Factor); 4] = [
        ("nothing", |_| 1.0),
        ("one model doubles", |at| if at == 3 { 2.0 } else { 1.0 }),
        ("all 10 % up", |_| 1.1),
        ("all 20 % down", |_| 0.8),
    ];
    for (what, factor) in cases {
        let next = raised(posed(), factor);
        let (ms, plan) = timed(|| step(&next, &running).unwrap());
        assert_eq!(check(&next, &plan), []);
        let anew = Policy::Packed.plan(&next).unwrap().devices.len();
        let before = |gpulets| running.devices.iter().any(|it| it.gpulets == gpulets);
        let kept = plan.devices.iter().filter(|it| before(it.gpulets.clone())).count();
        let (from, to) = (running.devices.len(), plan.devices.len());
        println!("  {what}: {ms:.2}, {from}, {to}, {anew}, {kept}");
        let churn = Churn::default();
        let (ms, plan) = timed(|| replan(&next, &running, &churn).unwrap());
        let Changes { loads, unloads, resizes } = changes(&running, &plan);
        let (to, price) = (plan.devices.len(), churn.price(changes(&running, &plan)));
        println!(
            "    with a price: {ms:.1} ms, {to} GPUs, loads {loads}, unloads {unloads}, \
             resizes {resizes}, {price:.2} GPUs' worth"
        );
    }
}

fn mixes() {
    let mut rng = Rng::with_seed(11);
    let (mut ours, mut theirs, mut more) = (0, 0, 0);
    for turn in 0..88 {
        let models = [1, 2, 3, 5, 8, 12, 20, 40, 80, 120, 200][turn % 11];
        let devices = (models as f64 * [0.1, 0.3, 0.6, 1.5][turn / 11 % 4]).ceil() as u32;
        let problem = problem(&asked(devices, models, 0.5, &mut rng), 4000, true);
        let packed = Policy::Packed.plan(&problem).unwrap();
        assert_eq!(check(&problem, &packed), []);
        let Ok(elastic) = Policy::Elastic.plan(&problem) else { continue };
        ours += packed.devices.len();
        theirs += elastic.devices.len();
        more += usize::from(packed.devices.len() > elastic.devices.len());
    }
    println!("88 mixes of 1 to 200 models: packed {ours}, elastic {theirs}, packed more in {more}");
}

fn small() {
    let mut rng = Rng::with_seed(77);
    let (mut equal, mut one, mut worse) = (0, 0, 0);
    for _ in 0..200 {
        let models = rng.usize(1..=4);
        let load = 0.3 + 1.7 * rng.f64();
        let asked = asked(1, models, load, &mut rng);
        let problem = problem(&asked, 12, true);
        let packed = Policy::Packed.plan(&problem).unwrap().devices.len();
        match packed - Policy::Exhaustive.plan(&problem).unwrap().devices.len() {
            0 => equal += 1,
            1 => one += 1,
            _ => worse += 1,
        }
    }
    println!(
        "200 small cases against every combination: {equal} equal, {one} one more, {worse} worse"
    );
}

fn monotone() {
    let mut rng = Rng::with_seed(9);
    let (mut fewer, mut total) = (0, 0);
    for turn in 0..24 {
        let unit = asked(1, [1, 2, 3, 4, 5, 7, 10, 14][turn % 8], 0.15, &mut rng);
        let mut last = 0;
        for level in 1..=30 {
            let asked: Vec<(usize, f64)> =
                unit.iter().map(|&(shape, rate)| (shape, rate * f64::from(level))).collect();
            let count = Policy::Packed.plan(&problem(&asked, 400, true)).unwrap().devices.len();
            fewer += usize::from(count < last);
            total += 1;
            last = count;
        }
    }
    println!("{total} rising loads: {fewer} need fewer GPUs than the one before");
}

fn simulated() {
    let problem = problem(&[(0, 2000.0), (1, 1500.0), (2, 800.0), (3, 500.0)], 40, true);
    let plan = Policy::Packed.plan(&problem).unwrap();
    let sources: Vec<Source> = (0..problem.models.len())
        .map(|it| Source::plain(&problem, it, Arrivals::Poisson { rate: problem.models[it].rate }))
        .collect();
    let settings = Settings { seconds: 210.0, ..Settings::default() };
    let begun = Instant::now();
    let outcome = simulate(&problem, &plan, &sources, &settings, None);
    let arrived: u64 = outcome.models.iter().map(|model| model.arrived).sum();
    println!(
        "simulated {arrived} requests in {:.2} s, attainment {:.4} %",
        begun.elapsed().as_secs_f64(),
        100.0 * outcome.attainment()
    );
}

/// A decision for queues that keep up, and for queues that are behind, by their length.
fn decisions() {
    println!(
        "decisions: requests that wait, ns where they all make it, ns where many are lost, \
         ns where they all make it and may wait for more"
    );
    let point = |rows: u32| {
        let ns = 4_000_000 + 1_000_000 * u64::from(rows);
        ProfilePoint { rows, p50_ns: ns, p99_ns: ns }
    };
    let points: Vec<ProfilePoint> = [1, 2, 4, 8, 16, 32].into_iter().map(point).collect();
    let profile = LatencyProfile::new("made-up", &points).unwrap();
    let limits = BatchLimits { max_batch: 32, guard_ns: 100_000 };
    let mut pace = Pace::default();
    pace.note(0);
    pace.note(0);
    for waiting in [1_u64, 4, 16, 64, 256, 1024] {
        let each = |first_ms: u64, every_us: u64, defers: bool| {
            let mut queue = DeadlineQueue::new(1024);
            for at in 0..waiting {
                let deadline_ns = first_ms * 1_000_000 + at * every_us * 1_000;
                queue.push(deadline_ns, 1, at).unwrap();
            }
            let decision = || {
                let decision = decide(&queue, &limits, Some(4), 0, &profile);
                let pace = std::hint::black_box(&pace);
                let until_ns = match decision {
                    Decision::Close { rows, .. } if defers => {
                        defer(&queue, &limits, pace, 0, rows, &profile)
                    }
                    _ => None,
                };
                std::hint::black_box((decision, until_ns));
            };
            timed(|| (0..10_000).for_each(|_| decision())).0 * 1e6 / 1e4
        };
        let (in_time, lost) = (each(60, 10_000, false), each(8, 100, false));
        println!("  {waiting}: {in_time:.0}, {lost:.0}, {:.0}", each(60, 10_000, true));
    }
}
