//! What an engine has made on the loader's thread while batches go on: another division with every
//! model on it, and what a model that was loaded soon runs with at last.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};

use gpulet_torch::Dtype;

use super::{Gpulet, Lane};
use crate::cuda::capture::{Extent, Maker, Runs};
use crate::cuda::gpu::{Cut, Division, Divisions, Gpu};
use crate::cuda::moves::Moves;
use crate::cuda::prime::prime;
use crate::cuda::weights::Weights;
use crate::execute::loader::Later;

/// Runs under the clock for each batch size: each takes multiprocessors from batches.
const MEASURED_RUNS: usize = 5;

/// A model, and how commands name it.
pub(super) type Instance = (u32, Arc<Weights>);

/// What the thread says.
pub(super) enum Made {
    /// It makes this for a model now.
    Step { instance: u32, step: String },
    /// What gpulets have on another division.
    Parts { number: u64, parts: Vec<Gpulet> },
    /// What a model has on a division.
    Lanes { number: u64, instance: u32, lanes: Vec<Lane> },
    /// Nothing came of what was made for a model that runs as it is.
    Nothing { instance: u32 },
    /// All models have what they were to have on a division.
    Through { number: u64 },
    /// A division cannot be had.
    Failed { number: u64, error: String },
}

/// The engine's end.
pub(super) struct Making {
    gpu: Arc<Gpu>,
    divisions: Divisions,
    /// There from the first order on.
    later: Option<Later>,
    say: Sender<Made>,
    said: Receiver<Made>,
    /// Divisions so far.
    count: u64,
    /// The division that is being made, or is ready.
    wanted: Option<u64>,
}

/// What the thread needs for one order.
#[derive(Clone)]
struct Order {
    gpu: Arc<Gpu>,
    divisions: Divisions,
    later: Later,
    say: Sender<Made>,
    number: u64,
}

impl Making {
    pub(super) fn new(gpu: Arc<Gpu>, divisions: Divisions) -> Making {
        let (say, said) = channel();
        Making { gpu, divisions, later: None, say, said, count: 1, wanted: None }
    }

    /// Has what takes long done by that thread, the first thing at once. What only models in halves
    /// need comes next, unless models were asked for meanwhile: their batches would wait for it.
    pub(super) fn employ(&mut self, later: Later) {
        let (gpu, divisions) = (Arc::clone(&self.gpu), self.divisions.clone());
        let prime = move |dtype| {
            if let Err(error) = prime(&gpu, &divisions, dtype) {
                tracing::warn!("the first model will take longer to load: {error}");
            }
        };
        let (loads, behind) = (Arc::clone(&self.gpu), later.clone());
        later.run(move || {
            prime(Dtype::F32);
            behind.run(move || {
                if !loads.has_loaded.load(Ordering::Relaxed) {
                    prime(Dtype::F16);
                }
            });
        });
        self.later = Some(later);
    }

    /// Drops this on the thread, and gives its memory back to the device.
    pub(super) fn drop_later(&self, it: impl Send + 'static) {
        if let Some(later) = &self.later {
            later.drop(self.trimmed(it));
        }
    }

    /// This, with its memory given back to the device when it is dropped.
    pub(super) fn trimmed(&self, it: impl Send + 'static) -> Box<dyn Send> {
        Box::new(Trimmed { it: Some(it), gpu: Arc::clone(&self.gpu) })
    }

    /// The next thing made.
    pub(super) fn take(&self) -> Option<Made> {
        self.said.try_recv().ok()
    }

    /// Whether that division is being made, or is ready.
    pub(super) fn is_wanted(&self, number: u64) -> bool {
        self.wanted == Some(number)
    }

    /// No other division is wanted any more.
    pub(super) fn unwant(&mut self) {
        if let Some(number) = self.wanted.take() {
            self.divisions.remove(number);
        }
    }

    /// Batches run on the division that was wanted, and not on that one any more.
    pub(super) fn switched(&mut self, left: u64) {
        self.wanted = None;
        self.divisions.remove(left);
    }

    /// Divides the device anew, and has these models made ready there.
    pub(super) fn prepare(
        &mut self,
        shares_pct: &[u8],
        models: Vec<Instance>,
        moves: Vec<Moves>,
    ) -> Result<(), String> {
        let split = self.gpu.split.as_ref().ok_or("this executor splits no device")?;
        let sum_pct: u32 = shares_pct.iter().map(|share_pct| u32::from(*share_pct)).sum();
        if sum_pct > 100 {
            return Err(format!("shares must not add up to more than 100, add up to {sum_pct}"));
        }
        self.gpu.places(split, shares_pct).map_err(|error| error.to_string())?;
        let number = self.count;
        let Some(order) = self.order(number) else { return Err("no loader".to_owned()) };
        self.count += 1;
        self.wanted = Some(number);
        let (later, shares_pct) = (order.later.clone(), shares_pct.to_vec());
        later.run(move || {
            let outcome = order.divide(&shares_pct, moves).and_then(|division| {
                order.divisions.add(Arc::clone(&division));
                order.lanes(&division, &models)
            });
            order.settle(outcome);
        });
        Ok(())
    }

    /// Has models get what they lack on a division.
    pub(super) fn complete(&self, number: u64, models: Vec<Instance>) {
        let Some(order) = self.order(number) else { return };
        let later = order.later.clone();
        later.run(move || {
            let all = order.divisions.all();
            // Otherwise nobody wants it any more.
            let Some(index) = all.iter().position(|division| division.number == number) else {
                return;
            };
            if index > 0 {
                order.settle(order.lanes(&all[index], &models));
            } else if let Err(error) = order.lanes(&all[index], &models) {
                tracing::warn!("a model stays slower than it could be: {error}");
                models.iter().for_each(|(instance, _)| {
                    order.say(Made::Nothing { instance: *instance });
                });
            }
        });
    }

    fn order(&self, number: u64) -> Option<Order> {
        Some(Order {
            gpu: Arc::clone(&self.gpu),
            divisions: self.divisions.clone(),
            later: self.later.clone()?,
            say: self.say.clone(),
            number,
        })
    }
}

impl Order {
    fn say(&self, made: Made) {
        // With nobody listening the process is about to end.
        let _ = self.say.send(made);
        self.later.ring();
    }

    fn divide(&self, shares_pct: &[u8], moves: Vec<Moves>) -> Result<Arc<Division>, String> {
        self.gpu.device.bind().map_err(|error| error.to_string())?;
        let division = self.gpu.divide(self.number, shares_pct);
        let division = Arc::new(division.map_err(|error| error.to_string())?);
        let part = |(cut, moves): (&Arc<Cut>, Moves)| {
            Gpulet::new(&self.gpu, &division, cut, moves.on_share(cut.sm_count))
        };
        let parts: Result<Vec<Gpulet>, _> = division.cuts.iter().zip(moves).map(part).collect();
        let parts = parts.map_err(|error| error.to_string())?;
        self.say(Made::Parts { number: self.number, parts });
        Ok(division)
    }

    fn lanes(&self, division: &Arc<Division>, models: &[Instance]) -> Result<(), String> {
        self.gpu.device.bind().map_err(|error| error.to_string())?;
        let free_bytes = || self.gpu.device.memory().map_or(0, |(free, _)| free);
        for (instance, weights) in models {
            let instance = *instance;
            let progress = |step: String| self.say(Made::Step { instance, step });
            let there = || self.divisions.contains(self.number);
            let wanted = || !weights.is_released() && there();
            let maker = Maker::new(weights, &progress, &wanted, Runs::beside(MEASURED_RUNS))?;
            let before = free_bytes();
            let made = maker.lanes(division, Extent::Whole);
            // Memory of the warm-up forwards; graphs have their own.
            self.gpu.cuda.trim().map_err(|error| error.to_string())?;
            match made {
                Ok(lanes) => {
                    // Besides the weights, and what it runs with meanwhile.
                    let memory_bytes = before.saturating_sub(free_bytes());
                    let (model, number) = (&weights.model.name, self.number);
                    tracing::info!(model, division = number, memory_bytes, "every size is made");
                    self.say(Made::Lanes { number, instance, lanes });
                }
                Err(_) if weights.is_released() => {}
                Err(error) => return Err(format!("{}: {error}", weights.model.name)),
            }
        }
        Ok(())
    }

    fn settle(&self, outcome: Result<(), String>) {
        let number = self.number;
        self.say(match outcome {
            Ok(()) => Made::Through { number },
            Err(error) => Made::Failed { number, error },
        });
    }
}

/// See [`Making::trimmed`].
struct Trimmed<T> {
    it: Option<T>,
    gpu: Arc<Gpu>,
}

impl<T> Drop for Trimmed<T> {
    fn drop(&mut self) {
        if let Err(error) = self.gpu.device.bind() {
            tracing::warn!("{error}");
        }
        drop(self.it.take());
        if let Err(error) = self.gpu.cuda.trim() {
            tracing::warn!("{error}");
        }
    }
}
