//! All executors, and sets of them.

use std::io;
use std::path::{Path, PathBuf};

use super::{Executor, State};
use crate::config::Mechanism;
use crate::gpulet::{Gpulet, GpuletId};
use crate::limits::GPULETS_MAX;

/// Executors that can exist at a time: one bit each in an [`ExecutorSet`].
pub const EXECUTORS_MAX: usize = 128;

// A reload can replace all of them at once, and the old ones have batches to finish.
const _: () = assert!(EXECUTORS_MAX >= 2 * GPULETS_MAX);

/// A set of executors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExecutorSet(u128);

impl ExecutorSet {
    /// Whether an executor is in it.
    pub fn contains(self, executor: u32) -> bool {
        self.0 & (1 << executor) != 0
    }
    /// Puts an executor in.
    pub fn insert(&mut self, executor: u32) {
        self.0 |= 1 << executor;
    }
    /// Takes an executor out.
    pub fn remove(&mut self, executor: u32) {
        self.0 &= !(1 << executor);
    }
}

/// All executors, by an index that is reused.
#[derive(Debug)]
pub struct Executors {
    /// The program that every executor runs.
    pub program: PathBuf,
    table: Vec<Executor>,
}

impl Executors {
    /// No executors yet.
    pub fn new(program: PathBuf) -> Executors {
        Executors { program, table: Vec::new() }
    }

    /// Adds one, in the place of one that is gone if there is such; `None` if there are
    /// [`EXECUTORS_MAX`].
    pub fn add(&mut self, executor: Executor) -> Option<u32> {
        if let Some(index) = self.table.iter().position(|other| other.state == State::Gone) {
            self.table[index] = executor;
            return Some(index as u32);
        }
        if self.table.len() == EXECUTORS_MAX {
            return None;
        }
        self.table.push(executor);
        Some(self.table.len() as u32 - 1)
    }

    /// An executor.
    #[inline]
    pub fn get_mut(&mut self, index: u32) -> Option<&mut Executor> {
        self.table.get_mut(index as usize)
    }

    /// An executor.
    #[inline]
    pub fn get(&self, index: u32) -> Option<&Executor> {
        self.table.get(index as usize)
    }

    /// A gpulet.
    #[inline]
    pub fn gpulet(&self, id: GpuletId) -> Option<&Gpulet> {
        self.get(id.executor)?.gpulets.get(id.index as usize)
    }

    /// A gpulet.
    #[inline]
    pub fn gpulet_mut(&mut self, id: GpuletId) -> Option<&mut Gpulet> {
        self.get_mut(id.executor)?.gpulets.get_mut(id.index as usize)
    }

    /// All, with their indices.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Executor)> {
        self.table.iter().enumerate().map(|(index, executor)| (index as u32, executor))
    }

    /// All, with their indices.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (u32, &mut Executor)> {
        self.table.iter_mut().enumerate().map(|(index, executor)| (index as u32, executor))
    }

    /// The executor that will take the place of another.
    pub fn successor_of(&self, old: u32) -> Option<u32> {
        self.iter().find(|(_, it)| it.replaces == Some(old)).map(|(index, _)| index)
    }

    /// When each gpulet that runs a batch may be done with it, of those whose executors cannot tell
    /// beforehand.
    pub fn unannounced_ends(&self) -> impl Iterator<Item = u64> {
        let gpulets = self.table.iter().flat_map(|executor| &executor.gpulets);
        let mute = gpulets.filter(|gpulet| gpulet.config.mechanism == Mechanism::Cpu);
        mute.filter_map(|gpulet| Some(gpulet.batches().next()?.soonest_ns))
    }

    /// How many indices there are.
    pub fn len(&self) -> u32 {
        self.table.len() as u32
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }
}

/// Where the executor's program is: beside `exe`, or in `../lib/gpulet` from there.
///
/// # Errors
/// `NotFound`, naming both places.
pub fn find_program(exe: &Path) -> io::Result<PathBuf> {
    let name = "gpulet-executor";
    let folder = exe.parent().unwrap_or(Path::new("/"));
    let places = [folder.join(name), folder.join("../lib/gpulet").join(name)];
    places.iter().find(|place| place.is_file()).cloned().ok_or_else(|| {
        let text = format!("{name} is neither {} nor {}", places[0].display(), places[1].display());
        io::Error::new(io::ErrorKind::NotFound, text)
    })
}
