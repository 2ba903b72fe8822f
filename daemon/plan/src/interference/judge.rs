//! How well a model of interference predicts what it was not fitted to.

use fastrand::Rng;

use super::Meeting;

/// Relative errors of predictions, parts of what was measured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Errors {
    /// How many predictions.
    pub count: usize,
    /// Median.
    pub p50: f64,
    /// 90th percentile, nearest rank.
    pub p90: f64,
    /// The largest.
    pub most: f64,
}

impl Errors {
    /// Of these errors; `None` where there are none.
    #[must_use]
    pub fn of(errors: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut errors: Vec<f64> = errors.into_iter().map(f64::abs).collect();
        errors.sort_by(f64::total_cmp);
        let rank = |percent: usize| errors[(errors.len() * percent).div_ceil(100) - 1];
        let most = *errors.last()?;
        Some(Self { count: errors.len(), p50: rank(50), p90: rank(90), most })
    }
}

/// Predicts the factor of a meeting.
pub type Predictor<'a> = Box<dyn Fn(&Meeting) -> Option<f64> + 'a>;

/// A prediction for every meeting by a model that `fit` made without the meeting's set.
///
/// `sets` are measurements that belong together: what each member of a set suffered. They are
/// dealt into `folds` parts after a shuffle by `seed`, each part with as many sets of every size;
/// each part is predicted by what is fitted to all others. Pairs of set and relative error.
pub fn held_out<'a, E>(
    sets: &[Vec<Meeting>],
    folds: usize,
    seed: u64,
    fit: impl Fn(&[Meeting]) -> Result<Predictor<'a>, E>,
) -> Result<Vec<(usize, f64)>, E> {
    let folds = folds.max(2);
    let mut order: Vec<usize> = (0..sets.len()).collect();
    Rng::with_seed(seed).shuffle(&mut order);
    order.sort_by_key(|&set| sets[set].len());
    let mut errors = Vec::new();
    for fold in 0..folds.min(sets.len()) {
        let (judged, others): (Vec<_>, Vec<_>) =
            order.iter().enumerate().partition(|it| it.0 % folds == fold);
        let known: Vec<Meeting> =
            others.into_iter().flat_map(|it| sets[*it.1].iter().cloned()).collect();
        let predict = fit(&known)?;
        for (_, &set) in judged {
            let found = sets[set].iter().filter_map(|it| Some(predict(it)? / it.factor - 1.0));
            errors.extend(found.map(|error| (set, error)));
        }
    }
    Ok(errors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks() {
        let errors = Errors::of((1..=10).map(|it| f64::from(it) / -10.0)).unwrap();
        assert_eq!(errors, Errors { count: 10, p50: 0.5, p90: 0.9, most: 1.0 });
        assert_eq!(Errors::of([]), None);
    }

    #[test]
    fn nothing_is_judged_by_what_it_taught() {
        let meeting = |batch: u32| Meeting {
            sufferer: ("a".into(), batch, 50),
            neighbours: vec![("a".into(), 1, 50)],
            factor: 1.0,
        };
        let sets: Vec<Vec<Meeting>> =
            (1..=20).map(|set| vec![meeting(set); 1 + set as usize % 2]).collect();
        let fit = |known: &[Meeting]| -> Result<Predictor<'_>, ()> {
            let known: Vec<u32> = known.iter().map(|it| it.sufferer.1).collect();
            assert_eq!(known.iter().filter(|it| **it % 2 == 1).count(), 16);
            Ok(Box::new(move |it: &Meeting| {
                assert!(!known.contains(&it.sufferer.1));
                Some(1.0)
            }))
        };
        let errors = held_out(&sets, 5, 1, fit).unwrap();
        assert_eq!(errors.len(), 30);
        let mut judged: Vec<usize> = errors.iter().map(|it| it.0).collect();
        judged.dedup();
        judged.sort_unstable();
        assert_eq!(judged, (0..20).collect::<Vec<_>>());
    }
}
