//! Admit, expire, wait or close a batch: the decisions of the dispatcher, as pure functions.
//!
//! **Making it.** A batch that starts at `start_ns` makes a deadline when
//! `start_ns + L(rows) + guard_ns <= deadline_ns`, with `L` =
//! [`LatencyProfile::latency_ns`]. What is between is its budget: [`BatchLimits::budget_ns`].
//!
//! **The policy.** Earliest deadline first, and work-conserving: whenever an executor is free
//! the front of the queue is closed into a batch, as long as that batch makes the earliest
//! deadline in it. Batches grow while executors are busy, which they are where capacity is short.
//! Letting another model's fuller batch go first while one can wait sustained no more in simulation.
//! Where the caller wants it, an executor waits for another row as long as that pays: [`defer`].
//! A request is expired as soon as it cannot make its deadline even alone, so that an executor
//! never runs what nobody can use any more.
//!
//! **Falling behind.** The older the front of the queue, the smaller the batch that it allows, and
//! the less an executor carries: a queue that has fallen behind would stay behind. So where
//! requests would be lost anyway, those at the front are given up instead, at most as many, until
//! the batch has half of the longest time that a request in the queue has left. Half is what a
//! plan reckons with: a request waits for one batch and runs in the next.
//!
//! **Guests.** A model may borrow an idle gpulet of other models, its hosts, where its own would lose
//! a request: [`borrow`]. A guest's batch takes no longer than what hosts can lend, [`lent_ns`]: a
//! request of theirs that arrives right after its start still makes its deadline.
//!
//! **What the caller does.** It applies a decision to the queue, then asks again until the
//! answer is [`Decision::Wait`] or [`Decision::Idle`]. For each request that it turns away it
//! calls [`LatencyProfile::note_refused`], for each completed batch
//! [`LatencyProfile::observe`].
//!
//! Nothing here allocates, and sums saturate: no input can overflow.

mod deferral;

pub use self::deferral::{Pace, defer};
use crate::profile::LatencyProfile;
use crate::queue::DeadlineQueue;

/// Most requests in one batch, and most that one decision expires: bounds what a turn looks at.
pub const BATCH_REQUESTS_MAX: u32 = 64;

/// Requests that are looked at to tell whether a queue is behind.
const LOOK_AHEAD: usize = 128;

/// What bounds a batch of one model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchLimits {
    /// Most rows in a batch. A request with more never makes it; it belongs refused where
    /// requests are validated, and is refused or expired here if it comes so far.
    pub max_batch: u32,
    /// Time set aside between a batch's completion and its deadlines, for what the profile does
    /// not measure: handing over, posting, waking the client.
    pub guard_ns: u64,
}

impl BatchLimits {
    /// The latency that a batch may have if it starts at `start_ns`; 0 when the deadline, less
    /// the guard, has passed by then.
    #[must_use]
    pub fn budget_ns(&self, start_ns: u64, deadline_ns: u64) -> u64 {
        deadline_ns.saturating_sub(start_ns).saturating_sub(self.guard_ns)
    }

    /// Whether a batch of this one request, started at `start_ns`, makes its deadline.
    fn makes(&self, start_ns: u64, deadline_ns: u64, rows: u32, profile: &LatencyProfile) -> bool {
        rows <= self.max_batch && profile.latency_ns(rows) <= self.budget_ns(start_ns, deadline_ns)
    }
}

/// Whether a request may enter the queue. A full queue is [`QueueFull`](crate::queue::QueueFull),
/// the queue's own answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It can make its deadline if the queue ahead of it allows.
    Admit,
    /// It cannot, even alone and started as soon as any executor can be free.
    RejectHopeless {
        /// The latency it could have had, for [`LatencyProfile::note_refused`].
        budget_ns: u64,
    },
}

/// What to do for one model now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The first `count` requests cannot make their deadlines, or are given up for those behind
    /// them: take them out, answer that they expired, ask again. At least 1, at most
    /// [`BATCH_REQUESTS_MAX`].
    Expire {
        /// Requests to take from the front.
        count: u32,
    },
    /// Hand the first `count` requests to the free executor as one batch; those from the head on that
    /// was asked for, where that skips some.
    Close {
        /// Requests to take from the front; 1 to [`BATCH_REQUESTS_MAX`].
        count: u32,
        /// Their rows together; at most `max_batch`.
        rows: u32,
        /// Last moment at which this batch can start and make all its deadlines. An executor
        /// that gets to it later should hand it back.
        latest_start_ns: u64,
    },
    /// No executor is free. Ask again when one is, and at `until_ns` at the latest: then the
    /// first request has become hopeless.
    Wait {
        /// When the first request expires; later than now.
        until_ns: u64,
    },
    /// The queue is empty.
    Idle,
}

/// Admits a request of `rows` due at `deadline_ns`, or refuses it as hopeless.
///
/// `busy_until_ns` has, for each executor that may run the model, the predicted end of what it
/// runs now (anything not after `now_ns` means free). With no executor, say while all restart,
/// the request counts as startable now: it is refused only if that would be too late, and may
/// expire in the queue.
///
/// Admitted is not promised: requests with earlier deadlines go first. A request admitted to an
/// empty queue while an executor is free is never expired by a [`decide`] at the same `now_ns`.
#[must_use]
pub fn admit(
    now_ns: u64,
    deadline_ns: u64,
    rows: u32,
    limits: &BatchLimits,
    profile: &LatencyProfile,
    busy_until_ns: &[u64],
) -> Admission {
    let earliest_ns = busy_until_ns.iter().copied().min().unwrap_or(now_ns).max(now_ns);
    if limits.makes(earliest_ns, deadline_ns, rows, profile) {
        Admission::Admit
    } else {
        Admission::RejectHopeless { budget_ns: limits.budget_ns(earliest_ns, deadline_ns) }
    }
}

/// Decides for one model's queue at `now_ns`. `executors` says how many executors run the model if
/// one of them can start a batch now, the one that `profile` is of; `None` when none can.
///
/// 1. An empty queue: [`Decision::Idle`].
/// 2. Requests at the front that do not make it even alone, started now:
///    [`Decision::Expire`], whether or not an executor is free.
/// 3. No executor free: [`Decision::Wait`].
/// 4. Requests at the front that are given up, because the queue is behind: [`Decision::Expire`].
/// 5. Else [`Decision::Close`] with the longest prefix of the queue that makes its earliest
///    deadline as one batch, within `max_batch` rows and [`BATCH_REQUESTS_MAX`] requests. A
///    request that does not fit ends the prefix: later deadlines never overtake.
#[must_use]
pub fn decide<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    executors: Option<u32>,
    now_ns: u64,
    profile: &LatencyProfile,
) -> Decision {
    let Some((deadline_ns, head_rows)) = queue.demands().next() else {
        return Decision::Idle;
    };
    let hopeless = queue
        .demands()
        .take(BATCH_REQUESTS_MAX as usize)
        .take_while(|&(deadline_ns, rows)| !limits.makes(now_ns, deadline_ns, rows, profile))
        .fold(0, |count, _| count + 1);
    if hopeless > 0 {
        return Decision::Expire { count: hopeless };
    }
    let latest_ns = |rows| latest_start_ns(deadline_ns, rows, limits.guard_ns, profile);
    let Some(executors) = executors else {
        return Decision::Wait { until_ns: latest_ns(head_rows).saturating_add(1) };
    };
    let (count, rows) = largest_batch(queue.demands(), limits, now_ns, u64::MAX, profile);
    if (count as usize) < queue.len() && rows < limits.max_batch {
        let given_up = given_up(queue, limits, executors, now_ns, profile, rows);
        if given_up > 0 {
            return Decision::Expire { count: given_up };
        }
    }
    Decision::Close { count, rows, latest_start_ns: latest_ns(rows) }
}

/// Requests and rows of the longest prefix of `demands` that makes its earliest deadline as one
/// batch started at `start_ns`, and takes `most_ns` at most.
fn largest_batch(
    demands: impl Iterator<Item = (u64, u32)>,
    limits: &BatchLimits,
    start_ns: u64,
    most_ns: u64,
    profile: &LatencyProfile,
) -> (u32, u32) {
    let (mut count, mut rows, mut rows_max) = (0, 0_u32, 0);
    for (deadline_ns, more) in demands.take(BATCH_REQUESTS_MAX as usize) {
        if count == 0 {
            let budget_ns = limits.budget_ns(start_ns, deadline_ns).min(most_ns);
            rows_max = profile.largest_batch_within(budget_ns, limits.max_batch);
        }
        if more > rows_max - rows {
            break;
        }
        count += 1;
        rows += more;
    }
    (count, rows)
}

/// How many requests at the front to give up, so that the batch behind them has more than the
/// `rows` that they allow; 0 unless at least as many would be lost otherwise.
fn given_up<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    executors: u32,
    now_ns: u64,
    profile: &LatencyProfile,
    rows: u32,
) -> u32 {
    let Some((last_ns, _)) = queue.demand(queue.len().min(LOOK_AHEAD) - 1) else { return 0 };
    let half_ns = limits.budget_ns(now_ns, last_ns) / 2;
    let wanted = profile.largest_batch_within(half_ns, limits.max_batch);
    if wanted <= rows {
        return 0;
    }
    let wanted_ns = profile.latency_ns(wanted);
    let short = queue
        .demands()
        .take(BATCH_REQUESTS_MAX as usize)
        .take_while(|&(deadline_ns, _)| limits.budget_ns(now_ns, deadline_ns) < wanted_ns)
        .fold(0, |count, _| count + 1);
    let count = lost(queue, limits, executors, (now_ns, now_ns), profile, short);
    let behind = queue.demands().skip(count as usize);
    let gains = count > 0 && largest_batch(behind, limits, now_ns, u64::MAX, profile).1 > rows;
    if gains { count } else { 0 }
}

/// How many requests of the queue make it now, but would be lost if `executors` alike closed batch
/// after batch from its front, evenly staggered, the first at `start_ns`; counts no further than
/// `most`.
fn lost<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    executors: u32,
    (now_ns, mut start_ns): (u64, u64),
    profile: &LatencyProfile,
    most: u32,
) -> u32 {
    let (mut rows, mut rows_max, mut lost) = (0_u32, 0, 0);
    for (deadline_ns, more) in queue.demands().take(LOOK_AHEAD) {
        if lost == most {
            break;
        }
        if rows > 0 && more > rows_max - rows {
            let turn_ns = profile.latency_ns(rows) / u64::from(executors.max(1));
            start_ns = start_ns.saturating_add(turn_ns);
            rows = 0;
        }
        if rows == 0 {
            if !limits.makes(start_ns, deadline_ns, more, profile) {
                lost += u32::from(limits.makes(now_ns, deadline_ns, more, profile));
                continue;
            }
            let budget_ns = limits.budget_ns(start_ns, deadline_ns);
            rows_max = profile.largest_batch_within(budget_ns, limits.max_batch);
        }
        rows += more;
    }
    lost
}

/// The longest that a batch of a guest may take on a gpulet for the sake of one model that is at home
/// there: a request of one row that arrives right after its start, and has the model's whole SLO,
/// still makes its deadline.
#[must_use]
pub fn lent_ns(slo_ns: u64, limits: &BatchLimits, profile: &LatencyProfile) -> u64 {
    limits.budget_ns(0, slo_ns).saturating_sub(profile.latency_ns(1))
}

/// The gpulets where a model is at home.
#[derive(Debug, Clone, Copy)]
pub struct Home<'a> {
    /// How many.
    pub executors: u32,
    /// When the first of them is free.
    pub free_ns: u64,
    /// The model's profile there.
    pub profile: &'a LatencyProfile,
}

/// A batch that runs as a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Borrowed {
    /// Requests to take from the front; 1 to [`BATCH_REQUESTS_MAX`].
    pub count: u32,
    /// Their rows together; at most `max_batch`.
    pub rows: u32,
    /// Last moment at which it can start and make all its deadlines.
    pub latest_start_ns: u64,
}

/// Whether a request that waits at `now_ns` would be lost at home. Without a home left, all are.
#[must_use]
pub fn is_short<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    home: Option<Home<'_>>,
    now_ns: u64,
) -> bool {
    let Some(Home { executors, free_ns, profile }) = home else { return !queue.is_empty() };
    lost(queue, limits, executors, (now_ns, free_ns.max(now_ns)), profile, 1) > 0
}

/// The batch that a model should run at `now_ns` on an idle gpulet of others, where it has this
/// `profile` and may take `lent_ns` at most, the least [`lent_ns`] of its hosts. `None` when its first
/// request does not make it there, or home [`is_short`] of nothing: a batch as a guest takes others'
/// time, and mostly is smaller than the next at home would be.
#[must_use]
pub fn borrow<T: Copy>(
    queue: &DeadlineQueue<T>,
    limits: &BatchLimits,
    home: Option<Home<'_>>,
    now_ns: u64,
    lent_ns: u64,
    profile: &LatencyProfile,
) -> Option<Borrowed> {
    let (deadline_ns, _) = queue.demands().next()?;
    let (count, rows) = largest_batch(queue.demands(), limits, now_ns, lent_ns, profile);
    let latest_start_ns = latest_start_ns(deadline_ns, rows, limits.guard_ns, profile);
    let borrows = count > 0 && is_short(queue, limits, home, now_ns);
    borrows.then_some(Borrowed { count, rows, latest_start_ns })
}

/// Last moment at which a batch of `rows` can start and make `deadline_ns`; 0 when there never
/// was one.
#[must_use]
pub fn latest_start_ns(
    deadline_ns: u64,
    rows: u32,
    guard_ns: u64,
    profile: &LatencyProfile,
) -> u64 {
    deadline_ns.saturating_sub(guard_ns).saturating_sub(profile.latency_ns(rows))
}

/// A model's request that competes for an executor: the first that makes its deadline there.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Whatever number the caller knows the model by.
    pub model: usize,
    /// Requests before it, of which none makes it there: a faster executor may still run them.
    pub skip: u32,
    /// Its deadline.
    pub deadline_ns: u64,
    /// Its rows.
    pub rows: u32,
    /// Of the model.
    pub limits: &'a BatchLimits,
    /// The model's profile on that executor.
    pub profile: &'a LatencyProfile,
}

impl<'a> Head<'a> {
    /// Of a model's queue, for an executor that can start a batch at `start_ns`; `None` when none of
    /// the first [`BATCH_REQUESTS_MAX`] requests makes it there.
    #[must_use]
    pub fn of<T: Copy>(
        model: usize,
        queue: &DeadlineQueue<T>,
        limits: &'a BatchLimits,
        start_ns: u64,
        profile: &'a LatencyProfile,
    ) -> Option<Self> {
        let mut demands = (0..).zip(queue.demands().take(BATCH_REQUESTS_MAX as usize));
        let makes = |&(_, (deadline_ns, rows)): &(u32, (u64, u32))| {
            limits.makes(start_ns, deadline_ns, rows, profile)
        };
        let (skip, (deadline_ns, rows)) = demands.find(makes)?;
        Some(Self { model, skip, deadline_ns, rows, limits, profile })
    }

    /// As [`decide`] for an executor that can start a batch at `start_ns`, of the queue from this
    /// request on. Nobody is given up for those behind while others are left to faster executors.
    #[must_use]
    pub fn decide<T: Copy>(
        &self,
        queue: &DeadlineQueue<T>,
        executors: u32,
        start_ns: u64,
    ) -> Decision {
        let Self { limits, profile, .. } = *self;
        if self.skip == 0 {
            return decide(queue, limits, Some(executors), start_ns, profile);
        }
        let demands = queue.demands().skip(self.skip as usize);
        let (count, rows) = largest_batch(demands, limits, start_ns, u64::MAX, profile);
        let latest_start_ns = latest_start_ns(self.deadline_ns, rows, limits.guard_ns, profile);
        Decision::Close { count, rows, latest_start_ns }
    }
}

/// The one that should get the executor that its models share: the one that must start earliest; the
/// first of equals. `None` when there is none.
#[must_use]
pub fn pick<'a>(heads: impl IntoIterator<Item = Head<'a>>) -> Option<Head<'a>> {
    heads.into_iter().min_by_key(|head| {
        latest_start_ns(head.deadline_ns, head.rows, head.limits.guard_ns, head.profile)
    })
}
