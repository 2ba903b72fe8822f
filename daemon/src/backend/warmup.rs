//! The first forwards of a model, and what they tell about its latencies.
//!
//! Batch sizes 1, 2, 4 and so on up to `max_batch` run `warmup_count` times, then a few times more
//! under the clock. A heavy model would keep the daemon waiting for minutes, so the whole has a
//! budget: sizes that are predicted not to fit it are neither warmed nor measured, but extrapolated
//! in proportion to the rows from the largest size that was.

use std::time::{Duration, Instant};

use gpulet_plan::profile::{PROFILE_LATENCY_MAX_NS, ProfilePoint};

use super::buffer::BatchBuffer;
use super::{Instance, LoadError, Progress};
use crate::model::{Model, Source};

/// Time for all sizes of one model.
const BUDGET: Duration = Duration::from_secs(20);
/// Time for measuring one size, once `RUNS_MIN` runs are done.
const SIZE_BUDGET: Duration = Duration::from_secs(2);
const RUNS_MIN: usize = 2;
const RUNS_MAX: usize = 5;

/// Warms `instance` up on zeros at every batch size, and returns its profile.
///
/// The p99 of so few runs is their slowest; the daemon corrects it by what it sees later.
///
/// # Errors
/// [`LoadError::WarmUp`] if a forward fails.
pub fn measure(
    model: &Model,
    instance: &mut dyn Instance,
    buffer: &mut BatchBuffer,
    progress: Progress<'_>,
) -> Result<Vec<ProfilePoint>, LoadError> {
    let begin = Instant::now();
    let mut points: Vec<ProfilePoint> = Vec::new();
    let mut measured: Option<ProfilePoint> = None;
    for rows in sizes(model.max_batch) {
        let point = match measured {
            Some(last) if !affordable(model, &last, rows, begin.elapsed()) => {
                let point = extrapolate(&last, rows);
                tracing::info!(
                    model = model.name,
                    rows,
                    p50_ns = point.p50_ns,
                    "latency extrapolated from {} rows: measuring takes too long",
                    last.rows
                );
                point
            }
            _ => {
                progress(format!("{rows} rows"));
                let point = measure_size(model, instance, buffer, rows)?;
                measured = Some(point);
                point
            }
        };
        points.push(point);
    }
    Ok(points)
}

/// 1, 2, 4 and so on, and `max_batch` itself.
pub(crate) fn sizes(max_batch: u32) -> impl Iterator<Item = u32> {
    let powers = std::iter::successors(Some(1u32), |rows| rows.checked_mul(2));
    powers.take_while(move |rows| *rows < max_batch).chain([max_batch])
}

fn affordable(model: &Model, last: &ProfilePoint, rows: u32, spent: Duration) -> bool {
    let runs = u64::from(model.warmup_count.max(1)) + RUNS_MIN as u64;
    let predicted_ns = extrapolate(last, rows).p50_ns.saturating_mul(runs);
    spent.saturating_add(Duration::from_nanos(predicted_ns)) <= BUDGET
}

fn extrapolate(last: &ProfilePoint, rows: u32) -> ProfilePoint {
    let scale = |ns: u64| {
        let scaled = u128::from(ns) * u128::from(rows) / u128::from(last.rows);
        u64::try_from(scaled).unwrap_or(u64::MAX).min(PROFILE_LATENCY_MAX_NS)
    };
    ProfilePoint { rows, p50_ns: scale(last.p50_ns), p99_ns: scale(last.p99_ns) }
}

fn measure_size(
    model: &Model,
    instance: &mut dyn Instance,
    buffer: &mut BatchBuffer,
    rows: u32,
) -> Result<ProfilePoint, LoadError> {
    let mut run = || {
        for index in 0..model.inputs.len() {
            // A model may have changed its input, and may not like what it made of it.
            buffer.input_mut(index, rows).fill(0);
        }
        let tensors = buffer.tensors(rows);
        let start = Instant::now();
        let result = instance.run(rows, tensors.inputs(), tensors.outputs());
        let ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        match result {
            Ok(_) => Ok(ns.clamp(1, PROFILE_LATENCY_MAX_NS)),
            Err(source) => Err(LoadError::WarmUp { subject: subject(model), rows, source }),
        }
    };
    for _ in 0..model.warmup_count.max(1) {
        run()?;
    }
    let begin = Instant::now();
    let mut taken_ns = Vec::with_capacity(RUNS_MAX);
    while taken_ns.len() < RUNS_MAX && (taken_ns.len() < RUNS_MIN || begin.elapsed() < SIZE_BUDGET)
    {
        taken_ns.push(run()?);
    }
    taken_ns.sort_unstable();
    let (p50_ns, p99_ns) = (taken_ns[taken_ns.len() / 2], taken_ns[taken_ns.len() - 1]);
    Ok(ProfilePoint { rows, p50_ns, p99_ns })
}

fn subject(model: &Model) -> String {
    match &model.source {
        Source::File(path) => path.display().to_string(),
        Source::Builtin(_) => format!("model {}", model.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_double_up_to_the_largest() {
        let of = |max_batch| sizes(max_batch).collect::<Vec<_>>();
        assert_eq!(of(1), [1]);
        assert_eq!(of(2), [1, 2]);
        assert_eq!(of(24), [1, 2, 4, 8, 16, 24]);
        assert_eq!(of(32), [1, 2, 4, 8, 16, 32]);
        assert_eq!(of(u32::MAX).last(), Some(&u32::MAX));
    }

    #[test]
    fn latencies_grow_in_proportion_to_the_rows() {
        let last = ProfilePoint { rows: 4, p50_ns: 100, p99_ns: 120 };
        assert_eq!(extrapolate(&last, 10), ProfilePoint { rows: 10, p50_ns: 250, p99_ns: 300 });
        let slow = ProfilePoint { rows: 1, p50_ns: u64::MAX / 2, p99_ns: u64::MAX };
        assert_eq!(extrapolate(&slow, 8).p99_ns, PROFILE_LATENCY_MAX_NS);
    }
}
