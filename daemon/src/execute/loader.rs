//! The thread that loads models while the executor runs others.
//!
//! Loads are made one after another, each on a thread that ends with it: a thread that ran a
//! forward has OpenMP threads of its own, and as long as there are more of these than CPUs, all of
//! them sleep between loops instead of spinning, those of the batches too. Unloading takes a while
//! as well (a large model's memory is given back page by page), so it happens here.

use std::collections::BTreeSet;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, Builder};
use std::time::Instant;

use gpulet_abi::doorbell::Doorbell;

use super::engine::Load;
use crate::model::Model;

/// What the thread says.
pub enum Said<L> {
    /// A load has got so far.
    Step {
        /// Which.
        instance: u32,
        /// See [`FromExecutor::Loading`](crate::wire::FromExecutor::Loading).
        step: String,
    },
    /// A load is through.
    Done(Done<L>),
}

/// The answer to one load.
pub struct Done<L> {
    /// Which.
    pub instance: u32,
    /// The model, or why there is none.
    pub outcome: Result<Box<L>, String>,
    /// What it took.
    pub load_ns: u64,
}

enum Order<L> {
    Load { instance: u32, model: Box<Model> },
    Drop(Box<L>),
}

/// The executor's end of the thread.
pub struct Loader<L: Load> {
    orders: Sender<Order<L::Loaded>>,
    said: Receiver<Said<L::Loaded>>,
    /// Unloaded before they were loaded.
    forgotten: BTreeSet<u32>,
}

impl<L: Load> Loader<L> {
    /// Starts the thread; it rings `bell` when there is something to [`take`](Self::take).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(load: L, bell: &Doorbell) -> io::Result<Loader<L>> {
        let bell = Doorbell::from(bell.try_clone()?);
        let (orders, received) = channel();
        let (answers, said) = channel();
        let thread = Builder::new().name("loader".to_owned());
        thread.spawn(move || run(&load, &received, &answers, &bell))?;
        Ok(Loader { orders, said, forgotten: BTreeSet::new() })
    }

    /// Loads a model, when those ordered before are through.
    pub fn load(&self, instance: u32, model: Box<Model>) {
        self.order(Order::Load { instance, model });
    }

    /// Drops a model.
    pub fn drop_later(&self, loaded: Box<L::Loaded>) {
        self.order(Order::Drop(loaded));
    }

    /// Has an instance that is still being loaded answered with an error.
    pub fn forget(&mut self, instance: u32) {
        self.forgotten.insert(instance);
    }

    /// The next thing said.
    pub fn take(&mut self) -> Option<Said<L::Loaded>> {
        let mut done = match self.said.try_recv().ok()? {
            Said::Done(done) => done,
            step @ Said::Step { .. } => return Some(step),
        };
        if self.forgotten.remove(&done.instance) {
            let error = Err("unloaded before it was loaded".to_owned());
            if let Ok(loaded) = std::mem::replace(&mut done.outcome, error) {
                self.drop_later(loaded);
            }
        }
        Some(Said::Done(done))
    }

    fn order(&self, order: Order<L::Loaded>) {
        // The thread ends when this value does, or by a panic: a defect of ours, or of libtorch.
        self.orders.send(order).expect("the loader thread is alive");
    }
}

fn run<L: Load>(
    loader: &L,
    orders: &Receiver<Order<L::Loaded>>,
    answers: &Sender<Said<L::Loaded>>,
    bell: &Doorbell,
) {
    // With nobody listening the process is about to end.
    let answers = Mutex::new(answers);
    let say = |said| {
        let answers = answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.send(said).is_ok() && bell.signal().is_ok()
    };
    while let Ok(order) = orders.recv() {
        let (instance, model) = match order {
            Order::Load { instance, model } => (instance, model),
            Order::Drop(loaded) => {
                drop(loaded);
                continue;
            }
        };
        let start = Instant::now();
        let progress = |step: String| {
            say(Said::Step { instance, step });
        };
        let load = || loader.load(&model, &progress).map(Box::new).map_err(|e| e.to_string());
        let outcome = thread::scope(|scope| match scope.spawn(load).join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        let load_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        if !say(Said::Done(Done { instance, outcome, load_ns })) {
            return;
        }
    }
}
