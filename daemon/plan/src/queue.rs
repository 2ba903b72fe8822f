//! The requests that wait for one model: bounded, earliest deadline first.
//!
//! Two structures: small keys in a sorted ring, which is all that a decision looks at, and the
//! payloads in fixed slots beside it. Everything is allocated by [`DeadlineQueue::new`].
//!
//! Deadlines mostly arrive in order, and then a push is O(1). Otherwise it finds its place in
//! O(log n) and shifts the keys on the shorter side.

use std::cmp::Ordering;
use std::collections::VecDeque;

use thiserror::Error;

/// Largest capacity of a queue.
pub const QUEUE_CAPACITY_MAX: u32 = 1 << 20;

/// The queue holds as many requests as it has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("queue: full, holds its capacity of {capacity} requests")]
pub struct QueueFull {
    /// Requests that fit.
    pub capacity: u32,
}

/// Names one stay of one request in one queue. Never valid again once the request left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Ticket {
    slot: u32,
    stay: u64,
}

/// A request in the queue, or just taken out of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<T> {
    /// Absolute time by which the answer is due.
    pub deadline_ns: u64,
    /// Position in order of first arrival: decides between equal deadlines.
    pub arrival: u64,
    /// Rows the request adds to a batch.
    pub rows: u32,
    /// What the owner of the queue keeps with the request.
    pub payload: T,
}

#[derive(Debug, Clone, Copy)]
struct Key {
    deadline_ns: u64,
    arrival: u64,
    rows: u32,
    slot: u32,
}

impl Key {
    /// The slot makes the order total even if a requeued arrival repeats one.
    fn order(&self, other: &Self) -> Ordering {
        (self.deadline_ns, self.arrival, self.slot).cmp(&(
            other.deadline_ns,
            other.arrival,
            other.slot,
        ))
    }
}

#[derive(Debug, Clone, Copy)]
struct Held<T> {
    stay: u64,
    key: Key,
    payload: T,
}

/// A bounded queue of requests in order of deadline, then of arrival.
///
/// ```
/// use gpulet_plan::queue::DeadlineQueue;
/// let mut queue = DeadlineQueue::new(2);
/// let later = queue.push(900, 1, 'b')?;
/// queue.push(500, 4, 'a')?;
/// assert!(queue.push(700, 1, 'c').is_err());
/// assert_eq!(queue.front().map(|entry| (entry.payload, entry.rows)), Some(('a', 4)));
/// assert_eq!(queue.remove(later).map(|entry| entry.payload), Some('b'));
/// assert_eq!(queue.remove(later), None);
/// # Ok::<(), gpulet_plan::queue::QueueFull>(())
/// ```
#[derive(Debug)]
pub struct DeadlineQueue<T> {
    keys: VecDeque<Key>,
    slots: Vec<Option<Held<T>>>,
    free: Vec<u32>,
    rows: u64,
    next_arrival: u64,
    next_stay: u64,
}

impl<T: Copy> DeadlineQueue<T> {
    /// An empty queue for `capacity` requests; the only place that allocates.
    ///
    /// # Panics
    /// When `capacity` is 0 or above [`QUEUE_CAPACITY_MAX`]: limits are checked before.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        assert!(
            (1..=QUEUE_CAPACITY_MAX).contains(&capacity),
            "queue capacity: must be 1 to {QUEUE_CAPACITY_MAX}, is {capacity}"
        );
        Self {
            keys: VecDeque::with_capacity(capacity as usize),
            slots: vec![None; capacity as usize],
            free: (0..capacity).rev().collect(),
            rows: 0,
            next_arrival: 0,
            next_stay: 0,
        }
    }

    /// Adds a request that has just arrived, after all with the same deadline.
    ///
    /// # Errors
    /// [`QueueFull`] when there is no room; the queue is unchanged.
    pub fn push(&mut self, deadline_ns: u64, rows: u32, payload: T) -> Result<Ticket, QueueFull> {
        let arrival = self.next_arrival;
        let ticket = self.insert(Entry { deadline_ns, arrival, rows, payload })?;
        self.next_arrival += 1;
        Ok(ticket)
    }

    /// Puts a request that was taken out back at its place: its deadline, and among equal
    /// deadlines its first arrival. For a batch whose executor died.
    ///
    /// # Errors
    /// [`QueueFull`] when the room was given away meanwhile; the queue is unchanged.
    pub fn requeue(&mut self, entry: Entry<T>) -> Result<Ticket, QueueFull> {
        self.insert(entry)
    }

    /// The request with the earliest deadline.
    #[must_use]
    pub fn front(&self) -> Option<Entry<T>> {
        self.iter().next()
    }

    /// Takes the request with the earliest deadline.
    pub fn pop_front(&mut self) -> Option<Entry<T>> {
        let key = self.keys.pop_front()?;
        Some(self.vacate(key))
    }

    /// Takes the request that has so many before it.
    pub fn take(&mut self, place: usize) -> Option<Entry<T>> {
        let key = self.keys.remove(place)?;
        Some(self.vacate(key))
    }

    /// The requests in order; `take(k)` for the front k.
    pub fn iter(&self) -> impl Iterator<Item = Entry<T>> + '_ {
        self.keys.iter().filter_map(|key| {
            let held = self.slots[key.slot as usize].as_ref()?;
            Some(Entry {
                deadline_ns: key.deadline_ns,
                arrival: key.arrival,
                rows: key.rows,
                payload: held.payload,
            })
        })
    }

    /// Deadline and rows of the requests in order: what a decision needs, payloads untouched.
    pub fn demands(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.keys.iter().map(|key| (key.deadline_ns, key.rows))
    }

    /// Deadline and rows of the request that has so many before it.
    #[must_use]
    pub fn demand(&self, place: usize) -> Option<(u64, u32)> {
        self.keys.get(place).map(|key| (key.deadline_ns, key.rows))
    }

    /// Takes the request that `ticket` names (a cancel), `None` if it already left.
    pub fn remove(&mut self, ticket: Ticket) -> Option<Entry<T>> {
        let held = self.slots.get(ticket.slot as usize)?.as_ref()?;
        if held.stay != ticket.stay {
            return None;
        }
        let key = held.key;
        let index = self.keys.binary_search_by(|other| other.order(&key)).ok()?;
        self.keys.remove(index);
        Some(self.vacate(key))
    }

    /// Requests in the queue.
    #[must_use]
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Whether no request waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the next push fails.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// Requests that fit.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        // At most QUEUE_CAPACITY_MAX, checked in `new`.
        self.slots.len() as u32
    }

    /// Rows of all requests in the queue.
    #[must_use]
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn insert(&mut self, entry: Entry<T>) -> Result<Ticket, QueueFull> {
        let capacity = self.capacity();
        let slot = self.free.pop().ok_or(QueueFull { capacity })?;
        let Entry { deadline_ns, arrival, rows, payload } = entry;
        let key = Key { deadline_ns, arrival, rows, slot };
        if self.keys.back().is_none_or(|last| last.order(&key).is_lt()) {
            self.keys.push_back(key);
        } else {
            let index = self.keys.partition_point(|other| other.order(&key).is_lt());
            self.keys.insert(index, key);
        }
        let stay = self.next_stay;
        self.next_stay += 1;
        self.rows += u64::from(rows);
        self.slots[slot as usize] = Some(Held { stay, key, payload });
        Ok(Ticket { slot, stay })
    }

    /// Frees the slot of a key that was just taken out of the ring.
    fn vacate(&mut self, key: Key) -> Entry<T> {
        let Some(held) = self.slots[key.slot as usize].take() else {
            unreachable!("a key in the ring names a held slot");
        };
        self.free.push(key.slot);
        self.rows -= u64::from(key.rows);
        Entry {
            deadline_ns: key.deadline_ns,
            arrival: key.arrival,
            rows: key.rows,
            payload: held.payload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filling_and_draining_never_reallocates() {
        let mut queue = DeadlineQueue::new(100);
        let room = |queue: &DeadlineQueue<u64>| {
            let (keys, slots, free) = (&queue.keys, &queue.slots, &queue.free);
            (keys.capacity(), slots.as_ptr(), slots.capacity(), free.as_ptr(), free.capacity())
        };
        let built = room(&queue);
        for round in 0..50 {
            let mut tickets = Vec::new();
            while let Ok(ticket) = queue.push((tickets.len() as u64 * 37 + round) % 101, 1, round) {
                tickets.push(ticket);
            }
            assert_eq!(tickets.len(), 100);
            tickets.iter().step_by(3).for_each(|&ticket| assert!(queue.remove(ticket).is_some()));
            while queue.pop_front().is_some() {}
            assert_eq!(room(&queue), built);
        }
    }
}
