//! Every plan of every policy holds, and policies keep what they promise.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use gpulet_plan::check::check;
use gpulet_plan::demand::Demand;
use gpulet_plan::plan::Plan;
use gpulet_plan::problem::merge_demands;
use gpulet_plan::published::{EMPTY, place, placements};
use gpulet_plan::search::packed::step;
use gpulet_plan::search::{Infeasible, Policy};
use proptest::prelude::*;

use support::posed::Posed;
use support::{SHAPES, problem};

/// How much more than what is planned for every model could have.
fn head_room(plan: &Plan) -> f64 {
    let rooms = plan.models.iter().map(|model| model.throughput / model.planned_rate);
    rooms.reduce(f64::min).unwrap_or(1.0)
}

#[test]
fn what_devices_have_left_all_models_get_alike() {
    let mixes: [&[(usize, f64)]; 3] =
        [&[(1, 150.0), (3, 60.0)], &[(0, 300.0), (2, 90.0), (5, 12.0)], &[(4, 70.0), (1, 300.0)]];
    for asked in mixes {
        let plan = Policy::Packed.plan(&problem(asked, 40, true)).unwrap();
        let more = |factor: f64| {
            let mut problem = problem(asked, 40, true);
            problem.models.iter_mut().for_each(|model| model.planned_rate *= factor);
            Policy::Packed.plan(&problem).unwrap().devices.len()
        };
        let (has, count) = (head_room(&plan), plan.devices.len());
        assert!(more(1.2) == count, "{asked:?}: a case in which something is left");
        assert!(more(has * 1.08) > count, "{asked:?}: has {has}, could have 8 % more");
    }
}

fn mixes() -> impl Strategy<Value = Vec<(usize, f64)>> {
    let rate = prop_oneof![1.0..20.0, 20.0..200.0, 200.0..2000.0_f64];
    proptest::collection::vec((0..SHAPES.len(), rate.prop_map(f64::round)), 1..12)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn plans_hold_and_ours_needs_no_more_than_the_published(asked in mixes(), disturbed: bool) {
        let problem = problem(&asked, 400, disturbed);
        let packed = Policy::Packed.plan(&problem).unwrap();
        for policy in Policy::ALL {
            if policy == Policy::Exhaustive && asked.len() > 3 {
                continue;
            }
            let Ok(plan) = policy.plan(&problem) else {
                prop_assert_ne!(policy, Policy::Packed);
                continue;
            };
            let violations = check(&problem, &plan);
            prop_assert!(violations.is_empty(), "{}: {:?}", policy.name(), violations);
            prop_assert!(plan.devices.len() as f64 >= plan.bound - 1e-6, "{}", policy.name());
            prop_assert!(packed.devices.len() <= plan.devices.len() || policy == Policy::Exhaustive,
                "{} {} {}", policy.name(), packed.devices.len(), plan.devices.len());
        }
    }

    #[test]
    fn plans_go_through_both_files(asked in mixes()) {
        let problem = problem(&asked, 400, true);
        let plan = Policy::Packed.plan(&problem).unwrap();
        let json = serde_json::to_string(&plan).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Plan>(&json).unwrap(), &plan);
        let text = placements(&problem, &plan);
        let read = place("ModelList.txt", &text, &problem).unwrap();
        prop_assert_eq!(check(&problem, &read), []);
        prop_assert_eq!(placements(&problem, &read), text);
    }

    #[test]
    fn equal_problems_have_equal_plans(asked in mixes()) {
        let plan = Policy::Packed.plan(&problem(&asked, 400, true)).unwrap();
        prop_assert_eq!(Policy::Packed.plan(&problem(&asked, 400, true)).unwrap(), plan);
    }
}

#[test]
fn nothing_asked_needs_nothing() {
    let problem = problem(&[], 4, true);
    for policy in Policy::ALL {
        let plan = policy.plan(&problem).unwrap();
        assert_eq!((plan.devices.len(), plan.gap), (0, 0.0), "{}", policy.name());
        assert_eq!(check(&problem, &plan), []);
    }
    assert_eq!(place("f", EMPTY, &problem).unwrap().devices, []);
}

#[test]
fn more_models_than_gpulets_of_two_a_device() {
    let asked: Vec<(usize, f64)> = (0..40).map(|at| (at % 2, 5.0)).collect();
    let plan = Policy::Packed.plan(&problem(&asked, 10, true)).unwrap();
    assert!(plan.devices.len() <= 10);
}

#[test]
fn what_cannot_be_is_said() {
    let too_few = Policy::Packed.plan(&problem(&[(4, 5000.0)], 2, true)).unwrap_err();
    assert!(matches!(too_few, Infeasible::Devices { count: 2, .. }), "{too_few}");
    let mut hopeless = problem(&[(3, 10.0)], 2, true);
    hopeless.models[0].slo_ms = 5.0;
    let error = Policy::Packed.plan(&hopeless).unwrap_err().to_string();
    assert!(error.starts_with("m0000: SLO must be at least 12.0"), "{error}");
    let mut large = problem(&[(3, 10.0)], 2, true);
    large.models[0].costs.memory_mb = 9000;
    let error = Policy::Packed.plan(&large).unwrap_err().to_string();
    assert_eq!(error, "m0000: memory must be at most 9900 MB with its context, is 10230 MB");
}

#[test]
fn a_plan_that_breaks_rules_is_told_which() {
    let problem = problem(&[(2, 100.0), (3, 50.0)], 3, true);
    let good = Policy::Packed.plan(&problem).unwrap();
    let told = |change: &dyn Fn(&mut Plan)| -> String {
        let mut plan = good.clone();
        change(&mut plan);
        let found = check(&problem, &plan);
        found.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert_eq!(told(&|_| {}), "");
    type Change<'a> = &'a dyn Fn(&mut Plan);
    let cases: [(&str, Change<'_>); 8] = [
        ("must get", &|plan| plan.devices.clear()),
        ("shares must be at most 100 %", &|plan| {
            let gpulet = plan.devices[0].gpulets[0].clone();
            plan.devices[0].gpulets.extend(vec![gpulet; 5]);
        }),
        ("memory must be at most", &|plan| {
            let gpulet = plan.devices[0].gpulets[0].clone();
            plan.devices[0].gpulets.extend(vec![gpulet; 5]);
        }),
        ("duty must be above 0", &|plan| plan.devices[0].gpulets[0].duty_ms = f64::NAN),
        ("execution must be at most", &|plan| plan.devices[0].gpulets[0].duty_ms /= 2.0),
        ("duty and execution must be at most", &|plan| plan.devices[0].gpulets[0].duty_ms *= 9.0),
        ("must be the number of a device of type \"other\"", &|plan| {
            plan.devices[0].kind = "other".into()
        }),
        ("must have a measured latency", &|plan| {
            plan.devices[0].gpulets[0].instances[0].batch = 0;
        }),
    ];
    for (rule, change) in cases {
        let told = told(change);
        assert!(told.contains(rule), "{rule}: {told}");
    }
}

#[test]
fn demands_for_one_model_add_up_in_any_order() {
    let demand = |rate: f64, slo_ms: f64| Demand { model: "m".into(), rate, slo_ms };
    let one = merge_demands("r", &[demand(0.1, 9.0), demand(0.2, 5.0), demand(0.3, 7.0)]).unwrap();
    let two = merge_demands("r", &[demand(0.3, 7.0), demand(0.2, 5.0), demand(0.1, 9.0)]).unwrap();
    assert_eq!(one, two);
    assert_eq!((one.len(), one[0].slo_ms), (1, 5.0));
    assert_eq!(merge_demands("r", &[demand(0.0, 9.0)]).unwrap(), []);
    assert!(merge_demands("r", &[demand(f64::NAN, 9.0)]).is_err());
    assert!(merge_demands("r", &[demand(9e6, 9.0), demand(9e6, 9.0)]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn few_models_get_what_every_combination_would_find(
        asked in proptest::collection::vec((0..SHAPES.len(), 20.0..400.0_f64), 1..4),
    ) {
        let problem = problem(&asked, 30, true);
        let packed = Policy::Packed.plan(&problem).unwrap().devices.len();
        if packed <= 4 {
            prop_assert_eq!(Policy::Exhaustive.plan(&problem).unwrap().devices.len(), packed);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn a_network_is_not_overrun(asked in mixes(), megabits in 20.0..2000.0_f64) {
        let limited = |factor: f64| {
            let mut problem = problem(&asked, 400, true);
            problem.devices[0].network_bits = Some(megabits * 1e6);
            for (at, model) in problem.models.iter_mut().enumerate() {
                model.costs.request_bytes = [40_000, 0, 4_000][at % 3];
                model.planned_rate *= factor;
            }
            problem
        };
        let Ok(mut running) = Policy::Packed.plan(&limited(1.0)) else { return Ok(()) };
        prop_assert_eq!(check(&limited(1.0), &running), []);
        for factor in [1.3, 0.7] {
            let Ok(next) = step(&limited(factor), &running) else { continue };
            prop_assert_eq!(check(&limited(factor), &next), []);
            running = next;
        }
    }
}

#[test]
fn as_many_devices_as_a_plan_takes_are_enough() {
    let mut rng = fastrand::Rng::with_seed(3);
    for models in [3, 12, 40, 90] {
        let asked: Vec<(usize, f64)> =
            (0..models).map(|_| (rng.usize(0..SHAPES.len()), 2.0 + 90.0 * rng.f64())).collect();
        let count = Policy::Packed.plan(&problem(&asked, 4000, true)).unwrap().devices.len();
        let tight = Policy::Packed.plan(&problem(&asked, count as u32, true)).unwrap();
        assert_eq!(tight.devices.len(), count, "{models} models");
        assert_eq!(check(&problem(&asked, count as u32, true), &tight), []);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn problems_of_all_kinds_have_plans_that_hold(
        seed: u64,
        models in 1..7_usize,
        devices in 0.2..3.0_f64,
    ) {
        let posed = Posed::random(&mut fastrand::Rng::with_seed(seed), models, devices);
        let problem = posed.problem();
        let elastic = Policy::Elastic.plan(&problem);
        let plan = match Policy::Packed.plan(&problem) {
            Ok(plan) => plan,
            Err(why) => {
                prop_assert!(elastic.is_err(), "{}", why);
                return Ok(());
            }
        };
        prop_assert_eq!(check(&problem, &plan), []);
        prop_assert!(elastic.is_err() || elastic.unwrap().devices.len() >= plan.devices.len());
        let mut order: Vec<usize> = (0..models).collect();
        order.reverse();
        prop_assert_eq!(Policy::Packed.plan(&posed.problem_in(&order)).unwrap(), plan);
    }
}

/// Of a problem with many models, one that once took 27 devices, and 26 for more.
#[test]
fn more_load_never_takes_fewer_devices() {
    let posed = Posed::any(&mut fastrand::Rng::with_seed(11));
    let most = 1.2 * 1.03 * 1.03;
    let mut last = 0;
    for factor in [1.0, most / 1.2, most / 1.08, most / 1.03, most / 1.01, most] {
        let problem = posed.raised(|_| factor).problem();
        let count = Policy::Packed.plan(&problem).unwrap().devices.len();
        assert!(count >= last, "load times {factor}: {count} after {last}");
        last = count;
    }
}

#[test]
fn models_that_need_a_whole_device_have_one_among_fine_shares() {
    let mut rng = fastrand::Rng::with_seed(30);
    let mut posed = Posed::random(&mut rng, 4, 1.0);
    posed.kinds.truncate(1);
    posed.kinds[0].shares_pct = (1..=25).map(|it| 4 * it).collect();
    for (at, model) in posed.models.iter_mut().enumerate() {
        model.shape.knee = 1.0;
        model.shape.slo_ms = 2.05 * (model.shape.fixed_ms + model.shape.row_ms) + 0.01;
        model.rate = 5.0 + at as f64;
    }
    let problem = posed.problem();
    assert_eq!(check(&problem, &Policy::Packed.plan(&problem).unwrap()), []);
}
