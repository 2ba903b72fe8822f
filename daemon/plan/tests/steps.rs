//! From a running plan to the next: it holds, and what need not change stays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use gpulet_plan::check::check;
use gpulet_plan::churn::{Changes, Churn, changes};
use gpulet_plan::demand::HeadRoom;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::{replan, step};
use proptest::prelude::*;

use support::{SHAPES, problem};

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn steps_hold_whatever_becomes_of_the_rates(
        asked in proptest::collection::vec((0..SHAPES.len(), 1.0..800.0_f64), 1..10),
        factors in proptest::collection::vec(0.2..3.0_f64, 10),
    ) {
        let mut running = Policy::Packed.plan(&problem(&asked, 400, true)).unwrap();
        for turn in 0..3 {
            let mut next = problem(&asked, 400, true);
            for (model, factor) in next.models.iter_mut().zip(factors.iter().cycle().skip(turn)) {
                model.rate *= factor;
                model.planned_rate = HeadRoom::PoissonP99.inflate(model.rate);
            }
            let plan = step(&next, &running).unwrap();
            prop_assert_eq!(check(&next, &plan), []);
            prop_assert_eq!(plan.epoch, running.epoch + 1);
            running = plan;
        }
    }

    #[test]
    fn changes_have_a_price(
        asked in proptest::collection::vec((0..SHAPES.len(), 1.0..150.0_f64), 1..6),
        factors in proptest::collection::vec(0.3..2.0_f64, 8),
    ) {
        let running = Policy::Packed.plan(&problem(&asked, 400, true)).unwrap();
        let next = raised(problem(&asked, 400, true), &factors);
        let free = replan(&next, &running, &Churn::FREE).unwrap();
        prop_assert_eq!(check(&next, &free), []);
        prop_assert!(free.devices.len() <= Policy::Packed.plan(&next).unwrap().devices.len());
        let dear = Churn { load: 1e3, unload: 1e3, resize: 1e3 };
        let held = replan(&next, &running, &dear).unwrap();
        prop_assert_eq!(check(&next, &held), []);
        if check(&next, &running).is_empty() {
            prop_assert_eq!(&held.devices, &running.devices);
            prop_assert_eq!(changes(&running, &held), Changes::default());
        }
        let between = replan(&next, &running, &Churn::default()).unwrap();
        prop_assert_eq!(check(&next, &between), []);
        for other in [&free, &held] {
            let cost = |plan| Churn::default().price(changes(&running, plan));
            prop_assert!(
                between.devices.len() as f64 + cost(&between)
                    <= other.devices.len() as f64 + cost(other) + 1e-9
            );
        }
        prop_assert!(free.devices.len() <= held.devices.len());
        prop_assert_eq!(held.epoch, running.epoch + 1);
    }
}

fn raised(mut posed: Problem, factors: &[f64]) -> Problem {
    for (model, factor) in posed.models.iter_mut().zip(factors) {
        model.rate *= factor;
        model.planned_rate = HeadRoom::PoissonP99.inflate(model.rate);
    }
    posed
}

#[test]
fn what_makes_no_sense_of_a_running_plan_is_left_out() {
    let asked = [(0, 300.0), (3, 200.0), (4, 100.0)];
    let posed = problem(&asked, 100, true);
    let good = Policy::Packed.plan(&posed).unwrap();
    let mut bad = good.clone();
    let again = bad.devices[0].clone();
    bad.devices.push(again);
    for gpulet in bad.devices.iter_mut().flat_map(|device| &mut device.gpulets) {
        let twice = gpulet.instances[0].clone();
        gpulet.instances.push(twice);
        gpulet.duty_ms = 0.0;
    }
    bad.devices[0].gpulets[0].instances[0].batch = 0;
    for next in [step(&posed, &bad), replan(&posed, &bad, &Churn::default())] {
        assert_eq!(check(&posed, &next.unwrap()), []);
    }
}

#[test]
fn devices_keep_their_numbers() {
    // So much that every model has several devices, of which some can be given back.
    let asked: Vec<(usize, f64)> = (0..12).map(|at| (at % 6, 800.0)).collect();
    let running = Policy::Packed.plan(&problem(&asked, 100, true)).unwrap();
    let next = step(&raised(problem(&asked, 100, true), &[0.2; 12]), &running).unwrap();
    assert!(next.devices.len() < running.devices.len());
    let was = |it| running.devices.iter().find(|old| old.device == it).unwrap();
    assert!(next.devices.iter().all(|it| was(it.device).gpulets.len() >= it.gpulets.len()));
    assert_eq!(changes(&running, &next).loads, 0);
}

#[test]
fn changes_are_counted_where_they_are() {
    let asked = [(0, 300.0), (3, 200.0), (4, 100.0)];
    let running = Policy::Packed.plan(&problem(&asked, 100, true)).unwrap();
    assert_eq!(changes(&running, &running), Changes::default());
    let instances = |plan: &gpulet_plan::plan::Plan| -> u32 {
        let gpulets = plan.devices.iter().flat_map(|device| &device.gpulets);
        gpulets.map(|gpulet| gpulet.instances.len() as u32).sum()
    };
    let count = instances(&running);
    let mut elsewhere = running.clone();
    elsewhere.devices.iter_mut().for_each(|device| device.device += 50);
    assert_eq!(changes(&running, &elsewhere), Changes { loads: count, unloads: count, resizes: 0 });
    let mut resized = running.clone();
    resized.devices[0].gpulets[0].share_pct -= 10;
    assert_eq!(changes(&running, &resized), Changes { loads: 0, unloads: 0, resizes: 1 });
}

#[test]
fn nothing_changes_where_nothing_must() {
    let asked: Vec<(usize, f64)> = (0..20).map(|at| (at % 6, 30.0 + 20.0 * at as f64)).collect();
    let problem = problem(&asked, 100, true);
    let running = Policy::Packed.plan(&problem).unwrap();
    let next = step(&problem, &running).unwrap();
    assert_eq!(next.devices, running.devices);
}

#[test]
fn one_model_more_leaves_the_others_where_they_are() {
    let mut asked: Vec<(usize, f64)> = (0..12).map(|at| (at % 6, 60.0)).collect();
    let running = Policy::Packed.plan(&problem(&asked, 100, true)).unwrap();
    asked.push((3, 40.0));
    let next = step(&problem(&asked, 100, true), &running).unwrap();
    let before = running.devices.iter().flat_map(|device| &device.gpulets);
    let kept = before.filter(|gpulet| {
        let members = |of: &gpulet_plan::plan::PlannedGpulet| -> Vec<(String, u32)> {
            of.instances.iter().map(|it| (it.model.clone(), it.batch)).collect()
        };
        let mut after = next.devices.iter().flat_map(|device| &device.gpulets);
        after.any(|it| members(it) == members(gpulet) && it.share_pct == gpulet.share_pct)
    });
    assert_eq!(kept.count(), running.devices.iter().map(|it| it.gpulets.len()).sum::<usize>());
    assert!(next.devices.len() <= running.devices.len() + 1);
}
