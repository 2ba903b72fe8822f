//! The queue against the simplest thing that could be right.

use gpulet_plan::queue::{DeadlineQueue, Entry, QUEUE_CAPACITY_MAX, QueueFull, Ticket};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

const CAPACITY: u32 = 12;

#[derive(Debug, Clone)]
enum Step {
    Push {
        deadline_ns: u64,
        rows: u32,
    },
    Pop,
    /// Take what has so many before it.
    Take {
        place: usize,
    },
    /// Remove by the ticket handed out so many tickets ago, whether still in the queue or not.
    Remove {
        ago: usize,
    },
    /// Put back the entry taken out so many entries ago.
    Requeue {
        ago: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0_u64..8, 0_u32..5).prop_map(|(deadline_ns, rows)| Step::Push { deadline_ns, rows }),
        2 => Just(Step::Pop),
        1 => (0_usize..8).prop_map(|place| Step::Take { place }),
        2 => (0_usize..20).prop_map(|ago| Step::Remove { ago }),
        1 => (0_usize..6).prop_map(|ago| Step::Requeue { ago }),
    ];
    prop::collection::vec(step, 0..200)
}

/// Unsorted entries, sorted whenever anybody looks.
#[derive(Default)]
struct Model {
    entries: Vec<(Ticket, Entry<usize>)>,
}

impl Model {
    fn sorted(&self) -> Vec<Entry<usize>> {
        let mut entries: Vec<_> = self.entries.iter().map(|&(_, entry)| entry).collect();
        entries.sort_by_key(|entry| (entry.deadline_ns, entry.arrival));
        entries
    }

    fn take(&mut self, index: Option<usize>) -> Option<Entry<usize>> {
        index.map(|index| self.entries.remove(index).1)
    }

    fn pop(&mut self, place: usize) -> Option<Entry<usize>> {
        let first = *self.sorted().get(place)?;
        let index = self.entries.iter().position(|&(_, entry)| entry == first);
        self.take(index)
    }

    fn remove(&mut self, ticket: Ticket) -> Option<Entry<usize>> {
        let index = self.entries.iter().position(|&(held, _)| held == ticket);
        self.take(index)
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        rng_seed: RngSeed::Fixed(0x71_75_65), failure_persistence: None,
        ..ProptestConfig::with_cases(512)
    })]

    #[test]
    fn behaves_as_a_sorted_list(steps in steps()) {
        let mut queue = DeadlineQueue::new(CAPACITY);
        let mut model = Model::default();
        let (mut tickets, mut taken) = (Vec::new(), Vec::new());
        let mut arrival = 0;
        for (payload, step) in steps.into_iter().enumerate() {
            let full = model.entries.len() == CAPACITY as usize;
            match step {
                Step::Push { deadline_ns, rows } => {
                    let pushed = queue.push(deadline_ns, rows, payload);
                    prop_assert_eq!(pushed.is_err(), full);
                    if let Ok(ticket) = pushed {
                        let entry = Entry { deadline_ns, arrival, rows, payload };
                        model.entries.push((ticket, entry));
                        tickets.push(ticket);
                        arrival += 1;
                    }
                }
                Step::Pop => {
                    let popped = queue.pop_front();
                    prop_assert_eq!(popped, model.pop(0));
                    taken.extend(popped);
                }
                Step::Take { place } => {
                    let popped = queue.take(place);
                    prop_assert_eq!(popped, model.pop(place));
                    taken.extend(popped);
                }
                Step::Remove { ago } => {
                    let Some(&ticket) = tickets.iter().rev().nth(ago) else { continue };
                    let removed = queue.remove(ticket);
                    prop_assert_eq!(removed, model.remove(ticket));
                    taken.extend(removed);
                }
                Step::Requeue { ago } => {
                    if ago >= taken.len() || full {
                        continue;
                    }
                    let entry = taken.remove(taken.len() - 1 - ago);
                    let ticket = queue.requeue(entry).expect("not full");
                    prop_assert!(!tickets.contains(&ticket), "a ticket never comes back");
                    model.entries.push((ticket, entry));
                    tickets.push(ticket);
                }
            }
            let sorted = model.sorted();
            prop_assert_eq!(queue.iter().collect::<Vec<_>>(), sorted.clone());
            prop_assert_eq!(queue.front(), sorted.first().copied());
            prop_assert_eq!(
                queue.demands().collect::<Vec<_>>(),
                sorted.iter().map(|entry| (entry.deadline_ns, entry.rows)).collect::<Vec<_>>()
            );
            prop_assert_eq!(queue.len(), sorted.len());
            prop_assert_eq!(queue.is_empty(), sorted.is_empty());
            prop_assert_eq!(queue.is_full(), sorted.len() == CAPACITY as usize);
            prop_assert_eq!(queue.rows(), sorted.iter().map(|e| u64::from(e.rows)).sum::<u64>());
        }
    }
}

#[test]
fn a_full_queue_says_so_and_stays_as_it_was() {
    let mut queue = DeadlineQueue::new(2);
    queue.push(5, 1, 'a').unwrap();
    queue.push(4, 1, 'b').unwrap();
    assert_eq!(queue.push(1, 1, 'c'), Err(QueueFull { capacity: 2 }));
    let entry = Entry { deadline_ns: 1, arrival: 0, rows: 1, payload: 'd' };
    assert_eq!(queue.requeue(entry), Err(QueueFull { capacity: 2 }));
    assert_eq!(queue.iter().map(|entry| entry.payload).collect::<String>(), "ba");
    assert_eq!(
        QueueFull { capacity: 2 }.to_string(),
        "queue: full, holds its capacity of 2 requests"
    );
}

#[test]
fn a_requeued_request_goes_before_later_arrivals_of_its_deadline() {
    let mut queue = DeadlineQueue::new(4);
    for name in ['a', 'b', 'c'] {
        queue.push(7, 1, name).unwrap();
    }
    let first = queue.pop_front().unwrap();
    queue.push(7, 1, 'd').unwrap();
    queue.requeue(first).unwrap();
    assert_eq!(queue.iter().map(|entry| entry.payload).collect::<String>(), "abcd");
}

#[test]
fn a_ticket_dies_with_its_stay_even_when_the_slot_lives_on() {
    let mut queue = DeadlineQueue::new(1);
    let first = queue.push(7, 1, 'a').unwrap();
    queue.pop_front().unwrap();
    let second = queue.push(7, 1, 'b').unwrap();
    assert_eq!(queue.remove(first), None);
    assert_eq!(queue.remove(second).map(|entry| entry.payload), Some('b'));
    assert_eq!(queue.remove(second), None);
}

#[test]
#[should_panic(expected = "queue capacity: must be 1 to 1048576, is 0")]
fn no_queue_without_room() {
    let _queue: DeadlineQueue<()> = DeadlineQueue::new(0);
}

#[test]
#[should_panic(expected = "queue capacity")]
fn no_queue_above_the_maximum() {
    let _queue: DeadlineQueue<()> = DeadlineQueue::new(QUEUE_CAPACITY_MAX + 1);
}
