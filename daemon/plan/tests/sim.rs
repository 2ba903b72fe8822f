//! The simulator: nothing is lost or counted twice, seeds repeat, and plans carry what they say.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use gpulet_plan::demand::HeadRoom;
use gpulet_plan::problem::Problem;
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::step;
use gpulet_plan::sim::{
    Arrivals, Guests, Outcome, Renewal, Settings, Source, Stage, Tally, simulate,
};
use proptest::prelude::*;

use support::problem;

fn plain(problem: &Problem, arrivals: &dyn Fn(f64) -> Arrivals) -> Vec<Source> {
    (0..problem.models.len())
        .map(|model| Source::plain(problem, model, arrivals(problem.models[model].rate)))
        .collect()
}

fn seconds(seconds: f64) -> Settings {
    Settings { seconds, ..Settings::default() }
}

fn balanced(tally: &Tally) -> bool {
    let lost = tally.refused + tally.expired + tally.overflowed;
    tally.arrived == tally.in_time + tally.late + lost
}

fn run(problem: &Problem, sources: &[Source], settings: &Settings) -> Outcome {
    let plan = Policy::Packed.plan(problem).unwrap();
    simulate(problem, &plan, sources, settings, None)
}

#[test]
fn a_plan_carries_the_rates_that_it_was_made_for() {
    let problem = problem(&[(0, 300.0), (2, 120.0), (3, 80.0), (5, 20.0)], 20, true);
    let sources = plain(&problem, &|rate| Arrivals::Poisson { rate });
    let outcome = run(&problem, &sources, &seconds(60.0));
    assert!(outcome.least_attainment() > 0.999, "{:?}", outcome.models);
    assert!((outcome.goodput() / 520.0 - 1.0).abs() < 0.05, "{}", outcome.goodput());
    assert!(outcome.models.iter().all(balanced), "{:?}", outcome.models);
    let busy = outcome.time_line.iter().map(|second| second.busy).sum::<f64>() / 60.0;
    assert!(busy > 0.1 && busy < 20.0, "{busy}");
}

#[test]
fn overload_is_refused_and_what_is_admitted_is_in_time() {
    let mut problem = problem(&[(3, 100.0)], 4, false);
    let plan = Policy::Packed.plan(&problem).unwrap();
    problem.models[0].rate = 5000.0;
    let sources = plain(&problem, &|rate| Arrivals::Poisson { rate });
    let outcome = simulate(&problem, &plan, &sources, &seconds(20.0), None);
    let tally = &outcome.models[0];
    assert!(balanced(tally), "{tally:?}");
    assert!(outcome.goodput() > 100.0 && tally.expired + tally.refused > 50_000, "{tally:?}");
    assert!(tally.late * 20 < tally.in_time, "{tally:?}");
}

#[test]
fn guests_carry_bursts_that_their_own_gpulets_cannot() {
    let problem = problem(&[(3, 100.0), (2, 100.0), (1, 100.0)], 20, true);
    let plan = Policy::Packed.plan(&problem).unwrap();
    let sources = plain(&problem, &|rate| Arrivals::Gamma { rate, cv: 4.0 });
    let part = |guests| {
        let settings = Settings { guests, ..seconds(60.0) };
        let outcome = simulate(&problem, &plan, &sources, &settings, None);
        assert!(outcome.models.iter().all(balanced), "{:?}", outcome.models);
        outcome.attainment()
    };
    let (none, all) = (part(Guests::None), part(Guests::All));
    assert!(part(Guests::OfDevice) >= none && all > none, "{none} {all}");
    assert!(1.0 - all < 0.5 * (1.0 - none), "{none} {all}");
}

#[test]
fn waiting_where_it_pays_saves_time_and_loses_nobody() {
    let problem = problem(&[(3, 500.0), (2, 800.0), (1, 2000.0)], 20, true);
    let plan = Policy::Packed.plan(&problem).unwrap();
    let run = |defer, part: f64| {
        let sources = plain(&problem, &|rate| Arrivals::Poisson { rate: part * rate });
        let settings = Settings { defer, ..seconds(60.0) };
        let outcome = simulate(&problem, &plan, &sources, &settings, None);
        assert!(outcome.models.iter().all(balanced), "{:?}", outcome.models);
        let busy: f64 = outcome.time_line.iter().map(|second| second.busy).sum();
        (busy, outcome.least_attainment())
    };
    let ((eager, _), (deferred, attained)) = (run(false, 0.5), run(true, 0.5));
    assert!(deferred < 0.9 * eager && attained == 1.0, "{deferred} of {eager}, {attained}");
    let ((_, eager), (_, deferred)) = (run(false, 1.0), run(true, 1.0));
    assert!(deferred > 0.999 * eager, "{deferred} {eager}");
}

#[test]
fn an_app_is_done_when_all_its_stages_are() {
    let problem = problem(&[(2, 60.0), (3, 60.0), (4, 60.0)], 20, true);
    let stage = |model: usize, after: &[usize]| Stage { model, after: after.to_vec() };
    let source = Source {
        name: "app".into(),
        arrivals: Arrivals::Poisson { rate: 50.0 },
        stages: vec![stage(0, &[]), stage(1, &[0]), stage(2, &[0])],
        slo_ms: 250.0,
    };
    let outcome = run(&problem, &[source], &seconds(60.0));
    let app = &outcome.apps[0];
    assert!(balanced(app), "{app:?}");
    assert!(app.attainment() > 0.99, "{app:?}");
    let (first, second) = (&outcome.models[0], &outcome.models[1]);
    assert_eq!(second.arrived, first.in_time + first.late);
    assert!(app.p50_ms > first.p50_ms, "{app:?} {first:?}");
}

#[test]
fn renewed_plans_follow_the_load_and_lose_nothing_of_the_books() {
    let problem_at = |rate: f64| problem(&[(3, rate), (2, 50.0)], 40, true);
    let first = problem_at(100.0);
    let plan = Policy::Packed.plan(&first).unwrap();
    let mut sources = plain(&first, &|rate| Arrivals::Poisson { rate });
    sources[0].arrivals = Arrivals::Step { before: 100.0, after: 1800.0, at_s: 20.0 };
    let renewal = Some(Renewal { period_s: 2.0, change_s: 0.1 });
    let settings = Settings { renewal, ..seconds(60.0) };
    let planner = |rates: &[f64], running: &gpulet_plan::plan::Plan| {
        let mut next = problem_at(100.0);
        for (model, rate) in next.models.iter_mut().zip(rates) {
            model.rate = rate.max(1.0);
            model.planned_rate = 1.1 * HeadRoom::PoissonP99.inflate(model.rate);
        }
        step(&next, running)
    };
    let kept = simulate(&first, &plan, &sources, &seconds(60.0), None);
    let renewed = simulate(&first, &plan, &sources, &settings, Some(&planner));
    assert!(renewed.plans > 0);
    assert!(renewed.models.iter().all(balanced), "{:?}", renewed.models);
    let (kept, renewed_part) = (kept.attainment(), renewed.attainment());
    assert!(renewed_part > 0.9 && kept < 0.6, "{renewed_part} {kept}");
    let devices = |second: usize| renewed.time_line[second].devices;
    assert!(devices(50) > devices(10), "{} {}", devices(10), devices(50));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn books_balance_and_seeds_repeat(
        asked in proptest::collection::vec((0..6_usize, 1.0..200.0_f64), 1..5),
        load in 0.2..4.0_f64,
        cv in 0.3..4.0_f64,
        seed: u64,
        guests in prop::sample::select(vec![Guests::None, Guests::OfDevice, Guests::All]),
        defer: bool,
    ) {
        let problem = problem(&asked, 60, true);
        let sources = plain(&problem, &|rate| Arrivals::Gamma { rate: rate * load, cv });
        let settings = Settings { seed, guests, defer, ..seconds(5.0) };
        let outcome = run(&problem, &sources, &settings);
        prop_assert!(outcome.models.iter().all(balanced), "{:?}", outcome.models);
        prop_assert_eq!(&run(&problem, &sources, &settings), &outcome);
        let json = serde_json::to_string(&outcome).unwrap();
        let read: Outcome = serde_json::from_str(&json).unwrap();
        prop_assert_eq!(serde_json::to_string(&read).unwrap(), json);
    }
}
