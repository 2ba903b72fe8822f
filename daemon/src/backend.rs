//! What runs models: [`open`](loading::open) one, [`load`](loading::load) a model,
//! [`Instance::run`] batches.
//!
//! The executor process drives these, and so does `gpuletctl run` in its own process. A backend
//! knows nothing of regions, rings or the daemon: it sees memory, rows and a [`Model`].
//!
//! | module     | runs                                                                      |
//! |------------|---------------------------------------------------------------------------|
//! | [`torch`]  | TorchScript archives                                                      |
//! | [`replay`] | nothing: answers after a profiled time                                    |
//! | [`echo`]   | nothing: answers what it was asked; every backend has it                  |
//! | [`buffer`] | memory for whole batches, allocated when a model is loaded                |
//! | [`values`] | integers and truth values, checked before a model sees them                |
//! | [`warmup`] | first forwards, and the profile they measure                              |
//! | [`loading`] | all of these together: a model that is warm                              |

pub mod buffer;
pub mod echo;
pub mod loading;
pub mod replay;
pub mod torch;
pub mod values;
pub mod warmup;

use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::ptr::NonNull;

use gpulet_abi::status::Status;
use gpulet_kernels::Part;
use gpulet_plan::profile::{ProfileError, ProfilePoint};

use crate::model::{Model, Tensor};
use crate::store;

/// Memory of one tensor of a batch, dense and row-major; which type and shape it has is the
/// [`Model`]'s to say. It may be written by another process at any time.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    part: Part,
    memory: PhantomData<&'a mut [u8]>,
}

impl<'a> View<'a> {
    /// No memory.
    pub const EMPTY: View<'static> = View { part: Part::EMPTY, memory: PhantomData };

    /// Memory that no Rust reference covers, such as a slot's.
    ///
    /// # Safety
    /// For as long as `'a` it is readable and writable for its length, and no other thread of this
    /// process touches it. An input that is to be indexes or truth values for the model lies in
    /// memory of this process: operators check such a value and then read it again.
    pub unsafe fn from_raw(part: Part) -> View<'a> {
        View { part, memory: PhantomData }
    }

    /// Where it is, and how long.
    pub fn part(&self) -> Part {
        self.part
    }

    /// Where it starts.
    pub fn data(&self) -> NonNull<u8> {
        self.part.data
    }

    /// Its length.
    pub fn bytes(&self) -> usize {
        self.part.bytes
    }
}

/// Bytes that a batch had the host copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// On the way to the model.
    pub input_bytes: u64,
    /// From the model's results to the memory given for them.
    pub output_bytes: u64,
}

/// Why a batch has no results.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct RunError {
    /// [`Status::ModelError`] or [`Status::ExecutorMemory`].
    pub status: Status,
    /// For the client.
    pub text: String,
}

/// Why a model cannot be served. Names the file, the field and the rule.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error(transparent)]
    Store(#[from] store::StoreError),
    /// The file is no model that this backend can run, or not the one that model.toml describes.
    #[error("{}: {rule}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        rule: String,
    },
    /// A profile that breaks a rule of profiles.
    #[error("{}: {source}", path.display())]
    Profile {
        /// The file.
        path: PathBuf,
        /// The rule.
        source: ProfileError,
    },
    /// model.toml asks for what cannot be.
    #[error("model {model}: {rule}")]
    Model {
        /// Its name.
        model: String,
        /// What is wrong with it.
        rule: String,
    },
    /// A forward failed while the model was warmed up.
    #[error("{subject}: a warm-up batch of {rows} rows of zeros failed: {source}")]
    WarmUp {
        /// The file, or the model's name.
        subject: String,
        /// Rows of the batch.
        rows: u32,
        /// What the model said.
        source: RunError,
    },
}

impl LoadError {
    pub(crate) fn model(model: &Model, rule: impl fmt::Display) -> LoadError {
        LoadError::Model { model: model.name.clone(), rule: rule.to_string() }
    }
}

/// Why there is no backend.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// libtorch or our shim is not there.
    #[error("backend torch: {0}")]
    Torch(#[from] gpulet_torch::OpenError),
    /// libtorch does not take a setting.
    #[error("backend torch: thread_count: {0}")]
    Threads(gpulet_torch::Error),
    /// It does not run on this host's CPUs.
    #[error("backend cuda: does not run on the host")]
    NotOnHost,
    /// The folder of profiles is not there.
    #[error("backend replay: profiles_dir {} is no directory", path.display())]
    ProfilesDir {
        /// The folder.
        path: PathBuf,
    },
}

/// Told before every step of a load that may take long what it is, such as "8 rows".
pub type Progress<'a> = &'a (dyn Fn(String) + Sync);

/// Something that runs models.
pub trait Backend: Send + Sync {
    /// For people: what it is, and which version.
    fn describe(&self) -> String;

    /// Loads a model from a file. Takes up to minutes; any thread may do it while others run
    /// models.
    ///
    /// # Errors
    /// [`LoadError`].
    fn load_file(&self, model: &Model) -> Result<Box<dyn Instance>, LoadError>;
}

/// A loaded model.
pub trait Instance: Send {
    /// Runs `rows` rows: one view for each input and output of the model, in its order, each
    /// exactly as long as so many rows.
    ///
    /// Of our own code nothing is allocated in here.
    ///
    /// # Errors
    /// [`RunError`]; the instance can be used again, and outputs hold anything.
    ///
    /// # Panics
    /// If the views are not what the model says.
    fn run(
        &mut self,
        rows: u32,
        inputs: &[View<'_>],
        outputs: &[View<'_>],
    ) -> Result<Copied, RunError>;

    /// How the model runs, for people.
    fn form(&self) -> String;

    /// The latencies it is known to have; otherwise they are measured.
    fn profile(&self) -> Option<Vec<ProfilePoint>> {
        None
    }

    /// Announces memory that views will be of, so that a device can copy from and to it directly.
    ///
    /// # Safety
    /// It stays mapped for as long as the instance lives.
    unsafe fn pin(&mut self, _memory: Part) {}

    /// Whether the model itself works in the memory of its outputs, and may read there again what
    /// it wrote.
    fn writes_in_place(&self) -> bool {
        false
    }
}

/// Asserts that `views` are what `tensors` say for `rows` rows, as the model sees them.
pub(crate) fn check_views(tensors: &[Tensor], rows: u32, views: &[View<'_>]) {
    assert_eq!(tensors.len(), views.len(), "one view a tensor");
    for (tensor, view) in tensors.iter().zip(views) {
        let bytes = tensor.seen_row_bytes().checked_mul(u64::from(rows));
        assert_eq!(bytes, Some(view.bytes() as u64), "view of {} has a wrong length", tensor.name);
    }
}

/// A batch that the device could not take.
pub(crate) fn memory_error(text: String) -> RunError {
    RunError { status: Status::ExecutorMemory, text }
}

/// Puts an error's text, cut where the room ends, and a NUL.
///
/// # Safety
/// `room` bytes at `into`, at least one, are writable and no other thread of this process touches
/// them.
pub(crate) unsafe fn put_text(into: NonNull<u8>, room: usize, text: &str) {
    let text = text.split('\0').next().unwrap_or_default();
    let mut end = text.len().min(room.saturating_sub(1));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    // SAFETY: text and NUL end inside the room.
    unsafe {
        into.copy_from_nonoverlapping(NonNull::from(text.as_bytes()).cast(), end);
        into.add(end).write(0);
    }
}
