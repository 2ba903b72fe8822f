//! What completions say of interference beyond what was fitted, learnt while it runs.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::cell::RefCell;

use gpulet_plan::demand::HeadRoom;
use gpulet_plan::interference::{Additive, Interference, Running, Temper};
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::step;
use gpulet_plan::sim::{Arrivals, Outcome, Renewal, Settings, Source, simulate_watched};

/// So much that head-room does not make up for what interference is believed to be.
const ASKED: [(usize, f64); 4] = [(2, 600.0), (3, 600.0), (4, 320.0), (1, 800.0)];

/// Models that all suffer, and press on each other, alike.
fn model(sensitivity: f64) -> Additive {
    let it = Temper { pressure: 1.0, sensitivity_one: sensitivity, sensitivity_many: sensitivity };
    Additive::new(0.8, vec![it; ASKED.len()])
}

fn posed(interference: Additive, rates: Option<&[f64]>) -> Problem {
    let mut posed = support::problem(&ASKED, 40, false);
    posed.devices[0].interference = Box::new(interference);
    for (model, &rate) in posed.models.iter_mut().zip(rates.unwrap_or_default()) {
        model.rate = rate;
        model.planned_rate = HeadRoom::PoissonP99.inflate(rate.max(1.0));
    }
    posed
}

/// Runs where batches suffer 0.6 and plans begin by believing 0.2.
fn run(learns: bool) -> (Outcome, Additive, [u32; ASKED.len()]) {
    let mut met = [0; ASKED.len()];
    let truth = posed(model(0.6), None);
    let learner = RefCell::new(model(0.2));
    let first = Policy::Packed.plan(&posed(learner.borrow().clone(), None)).unwrap();
    let planner = |rates: &[f64], running: &Plan| {
        step(&posed(learner.borrow().clone(), Some(rates)), running)
    };
    let mut watcher = |ran: &gpulet_plan::sim::Ran<'_>| {
        met[ran.running.model] += u32::from(!ran.beside.is_empty());
        if learns {
            learner.borrow_mut().observe_beside(ran.running, ran.beside, ran.factor);
        }
    };
    let sources: Vec<Source> = (0..truth.models.len())
        .map(|it| Source::plain(&truth, it, Arrivals::Poisson { rate: truth.models[it].rate }))
        .collect();
    let renewal = Some(Renewal { period_s: 4.0, change_s: 0.1 });
    let settings = Settings { seconds: 40.0, renewal, ..Settings::default() };
    let outcome = simulate_watched(&truth, &first, &sources, &settings, &planner, &mut watcher);
    (outcome, learner.into_inner(), met)
}

#[test]
fn what_batches_suffer_is_learnt_and_planned_for() {
    let (without, unmoved, _) = run(false);
    let (with, learnt, met) = run(true);
    let suffering = |of: &Additive, model: usize| {
        of.factor(Running { model, batch: 8, share_pct: 40 }, 0.5) - 1.0
    };
    for model in 0..ASKED.len() {
        assert!((suffering(&unmoved, model) - 0.1).abs() < 1e-9);
        let found = suffering(&learnt, model);
        assert!(met[model] < 100 || (found - 0.3).abs() < 0.05, "{model}: {found}, {met:?}");
    }
    assert!(met.iter().any(|&count| count > 1000), "{met:?}");
    assert!(
        with.attainment() >= without.attainment(),
        "{:.4} with, {:.4} without",
        with.attainment(),
        without.attainment()
    );
}
