//! Model directories and profiles, as people and machines write them.

use std::fs;
use std::path::{Path, PathBuf};

/// A model directory to be written.
#[derive(Clone, Debug)]
pub struct Folder<'a> {
    /// The line that says where the model comes from.
    pub source: &'a str,
    pub slo_ms: f64,
    pub max_batch: u32,
    pub inputs: &'a [(&'a str, &'a str, &'a str)],
    pub outputs: &'a [(&'a str, &'a str, &'a str)],
}

/// 256 bytes a row, so that rows lie one behind the other in a slot.
pub const ROW: (&str, &str, &str) = ("x", "f32", "[-1, 64]");
pub const ROW_BYTES: u64 = 256;

impl Folder<'_> {
    /// A model that is given much time, of one tensor in and one out.
    pub const fn of(source: &str, max_batch: u32) -> Folder<'_> {
        Folder { source, slo_ms: 60_000.0, max_batch, inputs: &[ROW], outputs: &[ROW] }
    }

    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let mut text = format!(
            "{}\nslo_ms = {:.3}\nmax_batch = {}\nwarmup_count = 1\n",
            self.source, self.slo_ms, self.max_batch
        );
        for (side, tensors) in [("input", self.inputs), ("output", self.outputs)] {
            for (name, dtype, shape) in tensors {
                text += &format!(
                    "[[{side}]]\nname = \"{name}\"\ndtype = \"{dtype}\"\nshape = {shape}\n"
                );
            }
        }
        fs::write(folder.join("model.toml"), text).unwrap();
    }
}

/// The profile of a model whose batches take `batch_ns`, however many rows they have.
pub fn write_profile(folder: &Path, model: &str, batch_ns: u64, max_batch: u32) {
    fs::create_dir_all(folder).unwrap();
    let point =
        |rows: u32| format!("{{\"rows\": {rows}, \"p50_ns\": {batch_ns}, \"p99_ns\": {batch_ns}}}");
    let mut points = point(1);
    if max_batch > 1 {
        points += &format!(", {}", point(max_batch));
    }
    let text = format!("{{\"model\": \"{model}\", \"points\": [{points}]}}");
    fs::write(folder.join(format!("{model}.json")), text).unwrap();
}

/// The models that the repository carries.
pub fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/models").canonicalize().unwrap()
}

/// One handwritten digit.
pub struct Digit {
    pub pixels: Vec<f32>,
    pub label: u32,
}

/// The digits that the shipped model was not trained on.
pub fn held_out_digits() -> Vec<Digit> {
    let file = fs::read(shipped().join("digits/held-out.bin")).unwrap();
    let word = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).unwrap();
    let count = u32::from_le_bytes(word(&file[..4])) as usize;
    let digits: Vec<Digit> = file[4..]
        .chunks_exact(260)
        .map(|record| Digit {
            pixels: record[..256].chunks_exact(4).map(|it| f32::from_le_bytes(word(it))).collect(),
            label: u32::from_le_bytes(word(&record[256..])),
        })
        .collect();
    assert_eq!(digits.len(), count);
    digits
}
