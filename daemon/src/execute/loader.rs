//! The thread that does what takes long while the executor runs batches: it loads models, makes what
//! its engine asks it to, and drops what takes a while to drop.
//!
//! Everything is done one after another, each on a thread that ends with it: a thread that ran a
//! forward has OpenMP threads of its own, and as long as there are more of these than CPUs, all of
//! them sleep between loops instead of spinning, those of the batches too. Unloading takes a while
//! as well (a large model's memory is given back page by page), so it happens here.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, Builder};
use std::time::Instant;

use gpulet_abi::doorbell::Doorbell;

use crate::backend::{LoadError, Progress};
use crate::model::Model;
use crate::wire::Manner;

/// Loads models, on a thread of its own.
pub trait Load: Send + Sync + 'static {
    /// A model that is warm.
    type Loaded: Send + 'static;

    /// Loads, warms up and measures a model in that manner.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load(
        &self,
        model: &Model,
        manner: Manner,
        progress: Progress<'_>,
    ) -> Result<Self::Loaded, LoadError>;
}

/// What the thread says of loads.
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

type Errand = Box<dyn FnOnce() + Send>;

/// Has things done by the thread.
#[derive(Clone)]
pub struct Later {
    errands: Sender<Errand>,
    bell: Arc<Doorbell>,
}

impl Later {
    /// Does this when what was ordered before is through, and rings then.
    pub fn run(&self, errand: impl FnOnce() + Send + 'static) {
        // The thread ends with the executor, or by a panic: a defect of ours, or of libtorch.
        self.errands.send(Box::new(errand)).expect("the loader thread is alive");
    }

    /// Drops this when what was ordered before is through.
    pub fn drop(&self, it: impl Send + 'static) {
        self.run(move || drop(it));
    }

    /// Has the executor look for what an errand has to say.
    pub fn ring(&self) {
        // With nobody listening the process is about to end.
        let _ = self.bell.signal();
    }
}

/// The executor's end of the thread.
pub struct Loader<L: Load> {
    load: Arc<L>,
    later: Later,
    answers: Sender<Said<L::Loaded>>,
    said: Receiver<Said<L::Loaded>>,
    /// Unloaded before they were loaded.
    forgotten: BTreeSet<u32>,
}

impl<L: Load> Loader<L> {
    /// Starts the thread; it rings `bell` when there is something to [`take`](Self::take), or for the
    /// engine to say.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn start(load: L, bell: &Doorbell) -> io::Result<Loader<L>> {
        let bell = Arc::new(Doorbell::from(bell.try_clone()?));
        let (errands, ordered) = channel();
        let (answers, said) = channel();
        let later = Later { errands, bell: Arc::clone(&bell) };
        let thread = Builder::new().name("loader".to_owned());
        thread.spawn(move || run(&ordered, &bell))?;
        Ok(Loader { load: Arc::new(load), later, answers, said, forgotten: BTreeSet::new() })
    }

    /// Has things done by this thread.
    pub fn later(&self) -> &Later {
        &self.later
    }

    /// Loads a model, when what was ordered before is through; see [`Load::load`].
    pub fn load(&self, instance: u32, model: Box<Model>, manner: Manner) {
        let (load, answers, later) =
            (Arc::clone(&self.load), self.answers.clone(), self.later.clone());
        self.later.run(move || {
            let start = Instant::now();
            let progress = |step: String| {
                let _ = answers.send(Said::Step { instance, step });
                later.ring();
            };
            let loaded = load.load(&model, manner, &progress);
            let outcome = loaded.map(Box::new).map_err(|error| error.to_string());
            let load_ns = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let _ = answers.send(Said::Done(Done { instance, outcome, load_ns }));
        });
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
                self.later.drop(loaded);
            }
        }
        Some(Said::Done(done))
    }
}

fn run(ordered: &Receiver<Errand>, bell: &Doorbell) {
    while let Ok(errand) = ordered.recv() {
        thread::scope(|scope| match scope.spawn(errand).join() {
            Ok(()) => {}
            Err(panic) => std::panic::resume_unwind(panic),
        });
        if bell.signal().is_err() {
            return;
        }
    }
}
