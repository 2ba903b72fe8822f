//! How a rate is split into gpulets before it is known where they will be.

use super::{NOTHING, Rules};
use crate::problem::Problem;

/// A gpulet that a model needs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    /// Share, percent.
    pub share_pct: u32,
    /// Rows of a batch.
    pub batch: u32,
    /// Period, ms.
    pub duty_ms: f64,
    /// Always busy.
    pub saturated: bool,
}

impl Need {
    pub fn throughput(&self) -> f64 {
        f64::from(self.batch) * 1000.0 / self.duty_ms
    }
}

/// Shares of one device type with what a model reaches on them, alone: percent, largest batch,
/// latency.
type Saturation = Vec<(u32, u32, f64)>;

/// What models reach on every share, alone.
#[derive(Debug)]
pub(super) struct Estimator<'a> {
    problem: &'a Problem,
    rules: Rules,
    /// By device type and model, shares ascending; only shares at which it can run.
    saturation: Vec<Vec<Saturation>>,
}

impl<'a> Estimator<'a> {
    pub fn new(problem: &'a Problem, rules: Rules) -> Self {
        let saturation = (0..problem.devices.len())
            .map(|kind| {
                (0..problem.models.len())
                    .map(|model| saturation(problem, rules, kind, model))
                    .collect()
            })
            .collect();
        Self { problem, rules, saturation }
    }

    fn latency_ms(&self, kind: usize, model: usize, share_pct: u32, batch: u32) -> f64 {
        match self.problem.share_index(kind, share_pct) {
            Some(share) => self.problem.planned_ms(kind, model, share, batch, 1.0),
            None => f64::INFINITY,
        }
    }

    /// The upper end of the step from one share to the next that returns most per percent,
    /// among steps that gain a twentieth. The step to the largest share is never looked at.
    fn share_of_most_return(&self, kind: usize, model: usize) -> Option<u32> {
        let reached = &self.saturation[kind][model];
        let rate = |at: usize| f64::from(reached[at].1) * 1000.0 / reached[at].2;
        let mut best = (0.0, reached.first()?.0);
        for high in 1..reached.len().saturating_sub(1) {
            let gained = rate(high) - rate(high - 1);
            let step = f64::from(reached[high].0 - reached[high - 1].0);
            if rate(high) >= 1.05 * rate(high - 1) && gained / step > best.0 {
                best = (gained / step, reached[high].0);
            }
        }
        Some(best.1)
    }

    /// Gpulets of one device type for `rate`; none when it cannot be.
    fn of_kind(&self, kind: usize, model: usize, rate: f64) -> Option<Vec<Need>> {
        let mut needs = Vec::new();
        let mut rest = rate;
        while rest > NOTHING {
            let need = if self.rules.greedy {
                self.smallest_sufficient(kind, model, rest)?
            } else {
                let share_pct = self.share_of_most_return(kind, model)?;
                let saturated = self.saturated(kind, model, share_pct)?;
                if saturated.throughput() < rest {
                    saturated
                } else {
                    self.remainder(kind, model, rest, share_pct)?
                }
            };
            rest -= need.throughput();
            needs.push(need);
            if needs.len() > 1 << 16 {
                return None;
            }
        }
        Some(needs)
    }

    /// Gpulets for `rate` on the device type that gives up the least of its devices.
    pub fn needs(&self, model: usize, rate: f64) -> Option<(usize, Vec<Need>)> {
        let kinds = (0..self.problem.devices.len())
            .filter_map(|kind| self.of_kind(kind, model, rate).map(|needs| (kind, needs)));
        let shares = |needs: &[Need]| needs.iter().map(|need| need.share_pct).sum::<u32>();
        kinds.min_by_key(|(_, needs)| shares(needs))
    }

    /// The always busy gpulet of that share.
    pub fn saturated(&self, kind: usize, model: usize, share_pct: u32) -> Option<Need> {
        let reached = self.saturation[kind][model].iter().find(|it| it.0 == share_pct)?;
        Some(Need { share_pct, batch: reached.1, duty_ms: reached.2, saturated: true })
    }

    /// The smallest share up to `most_pct` that carries `rate`, with the batch that suits the
    /// largest.
    pub fn remainder(&self, kind: usize, model: usize, rate: f64, most_pct: u32) -> Option<Need> {
        let slo_ms = self.problem.models[model].slo_ms;
        let ms = |share_pct: u32, batch: u32| self.latency_ms(kind, model, share_pct, batch);
        let duty = |batch: u32| f64::from(batch) * 1000.0 / rate;
        let batches = (1..=self.problem.settings.batch_max).rev();
        let fitting = batches.into_iter().find(|&batch| {
            ms(most_pct, batch) <= duty(batch) && ms(most_pct, batch) + duty(batch) <= slo_ms
        });
        let (batch, duty_ms) = match fitting {
            Some(batch) => (batch, duty(batch)),
            // So seldom asked that a request may not wait for the next.
            None if 2.0 * ms(most_pct, 1) <= slo_ms && duty(1) + ms(most_pct, 1) > slo_ms => {
                (1, slo_ms - ms(most_pct, 1))
            }
            None => return None,
        };
        let shares = self.saturation[kind][model].iter().map(|it| it.0);
        let share_pct = shares.take_while(|&share| share <= most_pct).find(|&share| {
            let ms = ms(share, batch);
            ms <= duty_ms && ms + duty_ms <= slo_ms
        })?;
        Some(Need { share_pct, batch, duty_ms, saturated: false })
    }

    /// The smallest share that could carry all of `rate`, or the largest there is.
    fn smallest_sufficient(&self, kind: usize, model: usize, rate: f64) -> Option<Need> {
        let reached = &self.saturation[kind][model];
        let carries = |it: &&(u32, u32, f64)| f64::from(it.1) * 1000.0 / it.2 > rate;
        match reached.iter().find(carries) {
            Some(it) => self
                .remainder(kind, model, rate, it.0)
                .or_else(|| self.saturated(kind, model, it.0)),
            None => self.saturated(kind, model, reached.last()?.0),
        }
    }
}

fn saturation(problem: &Problem, rules: Rules, kind: usize, model: usize) -> Saturation {
    let slo_ms = problem.models[model].slo_ms;
    let shares = &problem.devices[kind].shares_pct;
    let offered = shares.iter().enumerate().filter(|(_, pct)| {
        // Two halves make a device, so a share counts only with its complement.
        **pct == 100 || (rules.divided && shares.contains(&(100 - **pct)))
    });
    offered
        .filter_map(|(share, &pct)| {
            let fitting = (1..=problem.settings.batch_max).rev().find_map(|batch| {
                let ms = problem.planned_ms(kind, model, share, batch, 1.0);
                (2.0 * ms <= slo_ms).then_some((batch, ms))
            })?;
            Some((pct, fitting.0, fitting.1))
        })
        .collect()
}
