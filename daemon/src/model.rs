//! What a model directory says: `model.toml`, checked.
//!
//! The structs are also what an executor is told (as JSON); [`scan`] and [`load`] make them from
//! directories. The format is described in resource/models/README.md.

mod raw;
mod read;
mod scan;
mod tensor;

pub use self::scan::{MODEL_FILE, ModelError, Scan, load, parse, scan, scan_each};

use std::path::PathBuf;

use gpulet_abi::tensor::Dtype;
use gpulet_kernels::{Float, ImageError, ImageSpec, Layout};
use serde::{Deserialize, Serialize};

/// A model that the daemon answers without a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Builtin {
    /// Answered by the dispatcher itself, outputs untouched: what the rings alone cost.
    Null,
    /// Run by an executor, each output a copy of the input of the same index.
    Echo,
    /// Makes the GPU fault as a broken model would, so that recovery can be tried.
    Fault,
    /// Keeps its share of the GPU busy for ever, as a hung model would.
    Hang,
}

impl Builtin {
    /// Every one.
    pub const ALL: [Builtin; 4] = [Builtin::Null, Builtin::Echo, Builtin::Fault, Builtin::Hang];

    /// The word for it in model.toml.
    pub fn word(self) -> &'static str {
        match self {
            Builtin::Null => "null",
            Builtin::Echo => "echo",
            Builtin::Fault => "fault",
            Builtin::Hang => "hang",
        }
    }

    /// Whether only an executor on a GPU can run it.
    pub fn needs_gpu(self) -> bool {
        matches!(self, Builtin::Fault | Builtin::Hang)
    }
}

/// What a model computes in, where it takes and gives f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// IEEE 754 single precision throughout.
    #[default]
    Fp32,
    /// Singles, whose products tensor cores round to 10 bits.
    Tf32,
    /// Halves.
    Fp16,
    /// The upper halves of singles.
    Bf16,
}

impl Precision {
    /// Every one.
    pub const ALL: [Precision; 4] =
        [Precision::Fp32, Precision::Tf32, Precision::Fp16, Precision::Bf16];

    /// The word for it in model.toml.
    pub fn word(self) -> &'static str {
        match self {
            Precision::Fp32 => "fp32",
            Precision::Tf32 => "tf32",
            Precision::Fp16 => "fp16",
            Precision::Bf16 => "bf16",
        }
    }

    fn is_default(&self) -> bool {
        *self == Precision::default()
    }
}

/// How bytes of an image become what a model takes: (byte / 255 - mean) / std, for each channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalise {
    /// Of each channel, in units of the largest byte; finite.
    pub mean: Vec<f32>,
    /// Of each channel, as many; finite, above 0.
    pub std: Vec<f32>,
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tensor {
    /// As model.toml calls it.
    pub name: String,
    /// Element type.
    pub dtype: DtypeName,
    /// Dimensions after the batch dimension, each at least one.
    pub dims: Vec<i64>,
    /// Bytes of one row.
    pub row_bytes: u64,
    /// Lowest and highest value that an i64 or i32 input may have, both allowed; a request with
    /// another fails without reaching the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub range: Option<(i64, i64)>,
    /// For a u8 input of dimensions H, W, C: the model does not see that but f32 of C, H, W.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub normalise: Option<Normalise>,
}

impl Tensor {
    /// Bytes of one row as the model has it.
    pub fn seen_row_bytes(&self) -> u64 {
        // A byte of a picture becomes an f32.
        let times = if self.normalise.is_some() { 4 } else { 1 };
        self.row_bytes.saturating_mul(times)
    }

    /// What becomes of pictures on their way to the model, where clients give pictures.
    ///
    /// # Errors
    /// What is wrong with size, mean or standard deviation.
    pub fn pictures(&self) -> Option<Result<ImageSpec, ImageError>> {
        let normalise = self.normalise.as_ref()?;
        let &[height, width, _] = self.dims.as_slice() else { return None };
        // A size that is over the limit stays over it.
        let size = |pixels: i64| u32::try_from(pixels).unwrap_or(u32::MAX);
        let size = (size(height), size(width));
        let Normalise { mean, std } = normalise;
        Some(ImageSpec::new(size, mean, std, Float::F32, Layout::Planes))
    }

    /// Element type and dimensions as the model has them; clients see `dtype` and `dims`.
    pub fn seen_by_model(&self) -> (Dtype, Vec<i64>) {
        match (&self.normalise, self.dims.as_slice()) {
            (Some(_), &[height, width, channels]) => (Dtype::F32, vec![channels, height, width]),
            _ => (self.dtype.0, self.dims.clone()),
        }
    }
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
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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
    /// What it computes in.
    #[serde(default, skip_serializing_if = "Precision::is_default")]
    pub precision: Precision,
    /// Largest error against fp32 with which it is served: the largest absolute difference of an
    /// output over the largest absolute value of that output in fp32. 0 with fp32 itself.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub error_max: f64,
    /// Changes when the archive does: its modification time in ns and its bytes.
    pub stamp: (u64, u64),
}

fn is_zero(number: &f64) -> bool {
    *number == 0.0
}
