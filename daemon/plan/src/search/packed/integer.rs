//! The fewest devices on small problems, as an integer program over all devices that can be made.

use good_lp::{
    Expression, ProblemVariables, ResolutionError, Solution, SolverModel, constraint, microlp,
    variable,
};

use super::MARGIN;
use super::exhaustive::{MODELS_MAX, devices};
use super::tables::Tables;
use crate::problem::Problem;
use crate::search::Infeasible;

/// The least number of devices, with interference reckoned as in the search.
///
/// # Errors
/// What is in the way; more than a few models, more than one device type.
///
/// # Panics
/// The solver contradicts itself.
pub fn integer(problem: &Problem, bound: f64) -> Result<u32, Infeasible> {
    Infeasible::look(problem, bound)?;
    let count = problem.models.len();
    if count > MODELS_MAX || problem.devices.len() > 1 {
        return Err(Infeasible::TooLarge { policy: "integer", most: MODELS_MAX, count });
    }
    let tables = Tables::of(problem, &vec![true; count]);
    let mut asked = [0.0; MODELS_MAX];
    for (asked, model) in asked.iter_mut().zip(&problem.models) {
        *asked = model.planned_rate * (1.0 + MARGIN);
    }
    let mut variables = ProblemVariables::new();
    let mut carried = vec![Expression::from(0.0); count];
    let mut all = Expression::from(0.0);
    for device in devices(&tables, &asked, count) {
        let times = variables.add(variable().integer().clamp(0, problem.devices[0].count));
        all += times;
        for (model, carried) in carried.iter_mut().enumerate() {
            carried.add_mul(device.rates[model] / asked[model], times);
        }
    }
    let most = problem.device_count();
    let mut model = variables.minimise(&all).using(microlp);
    for carried in carried {
        model.add_constraint(constraint!(carried >= 1.0));
    }
    model.add_constraint(constraint!(all.clone() <= most));
    match model.solve() {
        Ok(solution) => Ok(solution.eval(&all).round() as u32),
        Err(ResolutionError::Infeasible) => Err(Infeasible::Devices { bound, count: most }),
        Err(error) => panic!("a bounded integer program has an answer: {error}"),
    }
}
