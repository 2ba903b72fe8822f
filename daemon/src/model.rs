//! What a model directory says: `model.toml`, checked.
//!
//! The structs are also what an executor is told (as JSON); [`scan`] and [`load`] make them from
//! directories. The format is described in resource/models/README.md.

mod raw;
mod read;
mod scan;

pub use self::scan::{MODEL_FILE, ModelError, Scan, load, parse, scan, scan_each};

use std::path::PathBuf;

use gpulet_abi::tensor::Dtype;
use serde::{Deserialize, Serialize};

/// A model that the daemon answers without a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Answered by the dispatcher itself, outputs untouched: what the rings alone cost.
    Null,
    /// Run by an executor, each output a copy of the input of the same index.
    Echo,
}

/// Where a model comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// A TorchScript archive, absolute path.
    File(PathBuf),
    /// No file.
    Builtin(Builtin),
}

/// One input or output.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tensor {
    /// As model.toml calls it.
    pub name: String,
    /// Element type.
    pub dtype: DtypeName,
    /// Dimensions after the batch dimension, each at least one.
    pub dims: Vec<i64>,
    /// Bytes of one row.
    pub row_bytes: u64,
}

/// A [`Dtype`] that is written by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct DtypeName(pub Dtype);

impl From<DtypeName> for String {
    fn from(name: DtypeName) -> String {
        name.0.name().to_owned()
    }
}

impl TryFrom<String> for DtypeName {
    type Error = String;
    fn try_from(name: String) -> Result<DtypeName, String> {
        Dtype::from_name(&name).map(DtypeName).ok_or_else(|| {
            let known: Vec<_> = Dtype::ALL.iter().map(|dtype| dtype.name()).collect();
            format!("{name:?} is no element type (known: {})", known.join(", "))
        })
    }
}

/// A model as its directory describes it. Only checked ones exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Model {
    /// The directory's name, and what clients call it.
    pub name: String,
    /// Archive or built-in.
    pub source: Source,
    /// The time a request without a deadline of its own gets.
    pub slo_ns: u64,
    /// Most rows in one batch, and in one request.
    pub max_batch: u32,
    /// Forwards at each batch size before the model is ready.
    pub warmup_count: u32,
    /// In the order of the model's arguments.
    pub inputs: Vec<Tensor>,
    /// In the order of the model's results.
    pub outputs: Vec<Tensor>,
    /// Changes when the archive does: its modification time in ns and its bytes.
    pub stamp: (u64, u64),
}
