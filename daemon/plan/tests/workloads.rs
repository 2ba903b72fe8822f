//! Workloads and the search for the highest rate.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use gpulet_plan::published::rates;
use gpulet_plan::search::Policy;
use gpulet_plan::sim::{Arrivals, Settings, Source};
use gpulet_plan::workload::{SCENARIOS, by_name, peak, rates_file, schedulability};

use support::problem;

#[test]
fn workloads_go_through_the_published_file() {
    for workload in &SCENARIOS {
        let demands = workload.demands(3.0, 1.0);
        assert_eq!(rates("r", &rates_file(&demands)).unwrap(), demands);
    }
    assert_eq!(
        rates_file(&by_name("scen2").unwrap().demands(4.0, 0.5)),
        "2\n12,40,101,\n9,40,71,\n"
    );
}

#[test]
fn schedulability_cases_are_all_combinations() {
    let asked = |number: u32| -> Vec<f64> {
        schedulability(number).iter().map(|demand| demand.rate).collect()
    };
    assert_eq!(asked(1)[..3], [100.0, 0.0, 0.0]);
    assert!(asked(3_u32.pow(9) - 1).iter().all(|&rate| rate == 200.0));
}

#[test]
fn the_peak_of_ours_is_the_highest() {
    let pose = |level: f64| {
        let mut posed = problem(&[(0, level), (3, level)], 2, true);
        posed.models.iter_mut().for_each(|model| model.planned_rate = model.rate);
        posed
    };
    let sources = |problem: &gpulet_plan::problem::Problem| -> Vec<Source> {
        (0..problem.models.len())
            .map(|it| {
                Source::plain(problem, it, Arrivals::Poisson { rate: problem.models[it].rate })
            })
            .collect()
    };
    let settings = Settings { seconds: 4.0, ..Settings::default() };
    let level = |policy: Policy| {
        peak(policy, &pose, &sources, 0.99, &settings).map_or(0.0, |peak| peak.level)
    };
    let packed = level(Policy::Packed);
    assert!(packed > 50.0, "{packed}");
    assert!(packed >= level(Policy::Elastic) && packed >= level(Policy::Temporal));
}
