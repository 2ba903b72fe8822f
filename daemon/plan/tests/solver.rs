//! Bounds and searches of our own against a solver: `--features solver`.
#![cfg(feature = "solver")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use fastrand::Rng;
use gpulet_plan::bound::{fluid, linear};
use gpulet_plan::search::Policy;
use gpulet_plan::search::packed::integer;

use support::{SHAPES, problem};

fn asked(models: usize, rng: &mut Rng) -> Vec<(usize, f64)> {
    (0..models).map(|_| (rng.usize(0..SHAPES.len()), 1.0 + 300.0 * rng.f64())).collect()
}

#[test]
fn the_fluid_bound_is_the_linear_program_s() {
    let mut rng = Rng::with_seed(3);
    for models in (0..60).map(|it| it % 20) {
        let problem = problem(&asked(models, &mut rng), 4000, true);
        let (ours, theirs) = (fluid(&problem), linear(&problem).unwrap());
        assert!((ours - theirs).abs() <= 1e-6 * theirs.max(1.0), "{models}: {ours}, {theirs}");
    }
    assert_eq!(linear(&problem(&[(4, 1e4)], 3, true)), None);
}

#[test]
fn every_combination_is_as_good_as_the_integer_program() {
    let mut rng = Rng::with_seed(5);
    for turn in 0..20 {
        let problem = problem(&asked(1 + turn % 4, &mut rng), 40, true);
        let bound = fluid(&problem);
        let exact = integer(&problem, bound).unwrap();
        let found = Policy::Exhaustive.plan(&problem).unwrap().devices.len();
        assert_eq!(found, exact as usize, "{turn}");
        let packed = Policy::Packed.plan(&problem).unwrap().devices.len();
        assert!(packed <= exact as usize + 1, "{turn}: {packed}, {exact}");
        assert!(f64::from(exact) >= bound - 1e-9);
    }
}
