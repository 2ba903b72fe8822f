//! The fluid bound as a linear program, by a solver that knows nothing of it.

use good_lp::{
    Expression, ProblemVariables, ResolutionError, Solution, SolverModel, constraint, microlp,
    variable,
};

use super::choices;
use crate::problem::Problem;

/// The fewest devices that carry all rates where everything is divisible: rates are spread over
/// the gpulets that [`fluid`](super::fluid) looks at, within share and memory of the devices
/// of each type, and within how many of them there are. `None` where there are too few.
///
/// For a single type it equals [`fluid`](super::fluid), of which it is the dual, where no network is
/// limited; for several it is no less. Networks are not in it.
///
/// # Panics
/// The solver contradicts itself.
#[must_use]
pub fn linear(problem: &Problem) -> Option<f64> {
    let mut variables = ProblemVariables::new();
    let devices = problem.devices.iter();
    let used: Vec<_> =
        devices.map(|kind| variables.add(variable().clamp(0.0, f64::from(kind.count)))).collect();
    let mut share = vec![Expression::from(0.0); used.len()];
    let mut memory = share.clone();
    let mut rules = Vec::new();
    for (model, asked) in problem.models.iter().enumerate() {
        // In parts of the rate, so that all numbers are of one size.
        let mut carried = Expression::from(0.0);
        for (device, of_share, of_memory) in choices(problem, model) {
            let part = variables.add(variable().min(0.0));
            carried += part;
            share[device].add_mul(of_share * asked.planned_rate, part);
            memory[device].add_mul(of_memory * asked.planned_rate, part);
        }
        rules.push(constraint!(carried >= 1.0));
    }
    for (device, (share, memory)) in share.into_iter().zip(memory).enumerate() {
        rules.push(constraint!(share <= used[device]));
        rules.push(constraint!(memory <= used[device]));
    }
    let all: Expression = used.iter().copied().sum();
    let mut model = variables.minimise(&all).using(microlp);
    for rule in rules {
        model.add_constraint(rule);
    }
    match model.solve() {
        Ok(solution) => Some(solution.eval(&all)),
        Err(ResolutionError::Infeasible) => None,
        Err(error) => panic!("a bounded linear program has an answer: {error}"),
    }
}
