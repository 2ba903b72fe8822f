//! From a running plan to the next: it holds, and what need not change stays.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use gpulet_plan::check::check;
use gpulet_plan::demand::HeadRoom;
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::step;
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
