//! Gpulets as the dispatcher sees them: where batches run.
//!
//! A gpulet runs one batch at a time. On a GPU the inputs of the next one can be copied meanwhile, so
//! there a gpulet has a *lead*: so long before its batch should end it counts as free, and is sent
//! another. Not earlier: until then requests may still join that batch.

use gpulet_plan::policy::BATCH_REQUESTS_MAX;
use gpulet_plan::queue::Entry;

use crate::config::{self, Mechanism};
use crate::request::{RequestId, Suspicion};
use crate::wire::DEPTH_MAX;

/// What a GPU is given to copy a batch's inputs while it runs the one before.
const LEAD_NS: u64 = 200_000;

/// Names a gpulet among all that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GpuletId {
    /// Index in [`crate::executor::Executors`].
    pub executor: u32,
    /// Index in that executor, as commands name it.
    pub index: u32,
}

/// A batch that an executor was sent.
#[derive(Debug)]
pub struct Batch {
    /// Echoed in the report.
    pub id: u64,
    /// The model it is of.
    pub model: u32,
    /// Rows of all requests.
    pub rows: u32,
    /// Of its one request, if that is suspected of something.
    pub suspicion: Suspicion,
    /// When it was sent.
    pub sent_ns: u64,
    /// When it should be done at the latest, by what its model's batches take.
    pub expected_ns: u64,
    /// When it may be done at the soonest.
    pub soonest_ns: u64,
    /// As they were in the queue; never empty while it is under way.
    pub entries: Vec<Entry<RequestId>>,
}

/// One gpulet.
#[derive(Debug)]
pub struct Gpulet {
    /// What the config says of it.
    pub config: config::Gpulet,
    /// Batches reported.
    pub batch_count: u64,
    lead_ns: u64,
    /// A ring: those under way are `count` from `first` on, oldest first.
    batches: [Batch; DEPTH_MAX],
    first: usize,
    count: usize,
    /// When the last report came.
    reported_ns: u64,
}

impl Gpulet {
    /// A gpulet without batches.
    pub fn new(config: config::Gpulet) -> Gpulet {
        let batch = || Batch {
            id: 0,
            model: 0,
            rows: 0,
            suspicion: Suspicion::None,
            sent_ns: 0,
            expected_ns: 0,
            soonest_ns: 0,
            entries: Vec::with_capacity(BATCH_REQUESTS_MAX as usize),
        };
        Gpulet {
            lead_ns: lead_ns(&config.mechanism),
            config,
            batch_count: 0,
            batches: std::array::from_fn(|_| batch()),
            first: 0,
            count: 0,
            reported_ns: 0,
        }
    }

    /// The batches under way, in the order in which they end.
    pub fn batches(&self) -> impl Iterator<Item = &Batch> {
        (0..self.count).map(|place| &self.batches[(self.first + place) % DEPTH_MAX])
    }

    /// Whether it has no batch.
    pub fn is_idle(&self) -> bool {
        self.count == 0
    }

    /// When a batch that is sent now would start; `None` if none should be sent now.
    pub fn start_ns(&self, now_ns: u64) -> Option<u64> {
        if self.is_idle() {
            return Some(now_ns);
        }
        let (from_ns, until_ns) = self.window_ns()?;
        (from_ns..=until_ns).contains(&now_ns).then(|| self.busy_until_ns().max(now_ns))
    }

    /// When it will take a batch although it has one; `None` if that is now, was, or never comes.
    pub fn free_again_ns(&self, now_ns: u64) -> Option<u64> {
        let (from_ns, _) = self.window_ns()?;
        (from_ns > now_ns).then_some(from_ns)
    }

    /// From when until when a second batch is sent.
    fn window_ns(&self) -> Option<(u64, u64)> {
        if self.lead_ns == 0 || self.count != 1 {
            return None;
        }
        let batch = &self.batches[self.first];
        // Who takes twice as long as it may could hang, and would hold up what is sent after it.
        let until_ns = batch.expected_ns.saturating_add(batch.expected_ns - batch.sent_ns);
        Some((batch.soonest_ns.saturating_sub(self.lead_ns), until_ns))
    }

    /// When it is done with what it has: 0 if it has nothing, or if nobody knows.
    pub fn busy_until_ns(&self) -> u64 {
        self.batches().last().map_or(0, |batch| batch.expected_ns)
    }

    /// Puts a batch behind those it has, which takes `soonest_ns` to `latest_ns` once it runs; the
    /// caller fills in the rest. There must be room.
    pub(crate) fn begin(&mut self, now_ns: u64, soonest_ns: u64, latest_ns: u64) -> &mut Batch {
        assert!(self.count < DEPTH_MAX, "a gpulet is sent more batches than it takes");
        let last = self.batches().last().map_or((0, 0), |last| (last.soonest_ns, last.expected_ns));
        let batch = &mut self.batches[(self.first + self.count) % DEPTH_MAX];
        self.count += 1;
        batch.entries.clear();
        batch.sent_ns = now_ns;
        batch.soonest_ns = last.0.max(now_ns).saturating_add(soonest_ns);
        batch.expected_ns = last.1.max(now_ns).saturating_add(latest_ns);
        batch
    }

    /// Takes out the oldest batch if it is of that id, with the time since it could begin. Its
    /// entries are the caller's to drain.
    pub(crate) fn end(&mut self, id: u64, now_ns: u64) -> Option<(&mut Batch, u64)> {
        if self.batches().next()?.id != id {
            return None;
        }
        let done = self.first;
        self.first = (self.first + 1) % DEPTH_MAX;
        self.count -= 1;
        self.batch_count += 1;
        let Batch { sent_ns, soonest_ns, expected_ns, .. } = self.batches[done];
        let ran_ns = now_ns.saturating_sub(sent_ns.max(self.reported_ns));
        self.reported_ns = now_ns;
        if self.count > 0 {
            // It was to start when this one ended: not when that was thought, but now.
            let next = &mut self.batches[self.first];
            let takes_ns = next.soonest_ns - soonest_ns.max(next.sent_ns);
            next.soonest_ns = now_ns.saturating_add(takes_ns);
            let takes_ns = next.expected_ns - expected_ns.max(next.sent_ns);
            next.expected_ns = now_ns.saturating_add(takes_ns);
        }
        Some((&mut self.batches[done], ran_ns))
    }

    /// Takes one request out of what it has, when all of it is lost, with its model.
    pub(crate) fn lose(&mut self) -> Option<(u32, Entry<RequestId>)> {
        while self.count > 0 {
            let batch = &mut self.batches[self.first];
            if let Some(entry) = batch.entries.pop() {
                return Some((batch.model, entry));
            }
            self.first = (self.first + 1) % DEPTH_MAX;
            self.count -= 1;
        }
        None
    }
}

/// See the module; 0 where the host itself does the work.
fn lead_ns(mechanism: &Mechanism) -> u64 {
    match mechanism {
        Mechanism::Cpu | Mechanism::Replay { device: None, .. } => 0,
        Mechanism::Replay { device: Some(_), .. }
        | Mechanism::Mps { .. }
        | Mechanism::Green { .. } => LEAD_NS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{DeviceName, ModelSet};

    fn gpulet(device: Option<DeviceName>) -> Gpulet {
        Gpulet::new(config::Gpulet {
            name: "g".to_owned(),
            mechanism: Mechanism::Replay { profiles_dir: "p".into(), device },
            share_pct: 50,
            memory_bytes: None,
            models: ModelSet::All,
            guests: Vec::new(),
        })
    }

    fn send(gpulet: &mut Gpulet, id: u64, sent_ns: u64, takes_ns: u64) {
        let batch = gpulet.begin(sent_ns, takes_ns, 2 * takes_ns);
        batch.id = id;
        let payload = RequestId { session: 0, slot: id as u32 };
        batch.entries.push(Entry { deadline_ns: 0, arrival: 0, rows: 1, payload });
    }

    #[test]
    fn without_a_lead_there_is_one_batch_at_a_time() {
        let mut host = gpulet(None);
        assert_eq!(host.start_ns(7), Some(7));
        send(&mut host, 1, 7, 1_000_000);
        for now_ns in [7, 1_000_000, 9_000_000] {
            assert_eq!((host.start_ns(now_ns), host.free_again_ns(now_ns)), (None, None));
        }
        assert!(host.end(2, 8).is_none());
        assert_eq!(host.end(1, 1_000_007).map(|(_, ran_ns)| ran_ns), Some(1_000_000));
        assert!(host.is_idle() && host.batch_count == 1);
    }

    #[test]
    fn a_second_batch_is_sent_shortly_before_the_first_should_end() {
        let mut gpu = gpulet(Some(DeviceName::Index(0)));
        send(&mut gpu, 1, 0, 1_000_000);
        let from_ns = 1_000_000 - LEAD_NS;
        assert_eq!(gpu.free_again_ns(0), Some(from_ns));
        assert_eq!(gpu.start_ns(from_ns - 1), None);
        assert_eq!(gpu.start_ns(from_ns), Some(2_000_000), "when the first must be done");
        assert_eq!(gpu.free_again_ns(from_ns), None);
        assert_eq!(gpu.start_ns(4_000_000), Some(4_000_000));
        assert_eq!(gpu.start_ns(4_000_001), None, "the first may hang");
        send(&mut gpu, 2, from_ns, 500_000);
        assert_eq!((gpu.start_ns(from_ns), gpu.busy_until_ns()), (None, 3_000_000));
        // In order, and each is charged with its own time alone.
        assert!(gpu.end(2, 900_000).is_none());
        assert_eq!(gpu.end(1, 1_100_000).map(|(_, ran_ns)| ran_ns), Some(1_100_000));
        let next = gpu.batches().next().map(|batch| (batch.soonest_ns, batch.expected_ns));
        assert_eq!(next, Some((1_600_000, 2_100_000)), "it starts when the first has ended");
        assert_eq!(gpu.end(2, 1_500_000).map(|(_, ran_ns)| ran_ns), Some(400_000));
    }

    #[test]
    fn what_is_lost_comes_back_whole_and_the_room_stays() {
        let mut gpu = gpulet(Some(DeviceName::Index(0)));
        for round in 0..3 {
            send(&mut gpu, 2 * round, 0, 1);
            send(&mut gpu, 2 * round + 1, 0, 1);
            let lost: Vec<_> = std::iter::from_fn(|| gpu.lose())
                .map(|(_, it)| u64::from(it.payload.slot))
                .collect();
            assert_eq!(lost, [2 * round, 2 * round + 1]);
            assert!(gpu.is_idle());
        }
        let rooms = gpu.batches.each_ref().map(|batch| batch.entries.capacity());
        assert_eq!(rooms, [BATCH_REQUESTS_MAX as usize; DEPTH_MAX]);
    }
}
