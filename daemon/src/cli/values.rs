//! Tensors as numbers: to be shown, and to be filled.

use std::fmt;
use std::fmt::Write;

use clap::ValueEnum;
use gpulet_abi::tensor::Dtype;
use half::{bf16, f16};
use serde::Serialize;

use crate::model::Precision;

/// Rows of one tensor that are shown.
const ROWS_SHOWN: usize = 8;
/// A row with more elements is shown by its largest.
const ELEMENTS_SHOWN: usize = 16;
const LARGEST_SHOWN: usize = 5;
/// Of a time on a command line.
const SECONDS_MIN: f64 = 0.001;
const SECONDS_MAX: f64 = 86_400.0;

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Element {
    Float(f32),
    Integer(i64),
    Bool(bool),
}

impl Element {
    /// To order by; what is not comparable is the least.
    fn rank(self) -> f64 {
        match self {
            Element::Float(value) if value.is_nan() => f64::NEG_INFINITY,
            Element::Float(value) => f64::from(value),
            Element::Integer(value) => value as f64,
            Element::Bool(value) => f64::from(u8::from(value)),
        }
    }
}

impl fmt::Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Float(value) => write!(f, "{value:.4}"),
            Element::Integer(value) => write!(f, "{value}"),
            Element::Bool(value) => write!(f, "{value}"),
        }
    }
}

/// What little-endian bytes of a type are; a part of an element at the end is left out.
pub(super) fn decode(dtype: Dtype, bytes: &[u8]) -> Vec<Element> {
    let element = |bytes: &[u8]| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        let low = u64::from_le_bytes(word);
        match dtype {
            Dtype::F32 => Element::Float(f32::from_bits(low as u32)),
            Dtype::F16 => Element::Float(f16::from_bits(low as u16).to_f32()),
            Dtype::Bf16 => Element::Float(bf16::from_bits(low as u16).to_f32()),
            Dtype::I64 => Element::Integer(low as i64),
            Dtype::I32 => Element::Integer(i64::from(low as u32 as i32)),
            Dtype::U8 => Element::Integer(i64::from(low as u8)),
            Dtype::Bool => Element::Bool(low != 0),
        }
    };
    bytes.chunks_exact(dtype.bytes() as usize).map(element).collect()
}

/// A tensor of `rows` rows for people: short rows whole, long ones by their largest elements.
pub(super) fn show(name: &str, dtype: Dtype, dims: &[i64], elements: &[Element]) -> String {
    let rows = usize::try_from(dims.first().copied().unwrap_or(1)).unwrap_or(1).max(1);
    let mut text = format!("{name}: {} {dims:?}\n", dtype.name());
    let row_elements = (elements.len() / rows).max(1);
    for (index, row) in elements.chunks(row_elements).enumerate().take(ROWS_SHOWN) {
        let _ = if row.len() <= ELEMENTS_SHOWN {
            let all: Vec<String> = row.iter().map(Element::to_string).collect();
            writeln!(text, "  row {index}: {}; largest: [{}]", all.join(" "), largest(row)[0].0)
        } else {
            let top: Vec<String> = largest(row)
                .iter()
                .take(LARGEST_SHOWN)
                .map(|(position, element)| format!("[{position}] {element}"))
                .collect();
            writeln!(text, "  row {index}: largest of {}: {}", row.len(), top.join(", "))
        };
    }
    if rows > ROWS_SHOWN {
        let _ = writeln!(text, "  and {} rows more", rows - ROWS_SHOWN);
    }
    text
}

/// Positions and elements, the largest first; the first of equals first.
fn largest(row: &[Element]) -> Vec<(usize, Element)> {
    let mut ranked: Vec<(usize, Element)> = row.iter().copied().enumerate().collect();
    ranked.sort_by(|(_, one), (_, other)| other.rank().total_cmp(&one.rank()));
    ranked
}

/// What inputs are made of where none are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Fill {
    /// All ones.
    Ones,
    /// All zeros.
    Zeros,
    /// 0 to 1 for floating point, 0 or 1 otherwise; the same at every start.
    Random,
}

impl Fill {
    /// Overwrites `bytes`, a whole tensor, beginning from `seed`.
    pub(super) fn write(self, dtype: Dtype, seed: u64, bytes: &mut [u8]) {
        let mut random = fastrand::Rng::with_seed(seed);
        for element in bytes.chunks_exact_mut(dtype.bytes() as usize) {
            let value = match self {
                Fill::Zeros => 0.0,
                Fill::Ones => 1.0,
                Fill::Random => random.f32(),
            };
            let truth = i64::from(value >= 0.5);
            match dtype {
                Dtype::F32 => element.copy_from_slice(&value.to_le_bytes()),
                Dtype::F16 => element.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
                Dtype::Bf16 => element.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
                Dtype::I64 => element.copy_from_slice(&truth.to_le_bytes()),
                Dtype::I32 => element.copy_from_slice(&(truth as i32).to_le_bytes()),
                Dtype::U8 | Dtype::Bool => element[0] = truth as u8,
            }
        }
    }
}

/// A precision by its word, for a command line.
pub(super) fn precision(text: &str) -> Result<Precision, String> {
    let known = Precision::ALL.map(Precision::word);
    let found = Precision::ALL.into_iter().find(|it| it.word() == text);
    found.ok_or_else(|| format!("known: {}", known.join(", ")))
}

/// A time that something is to last, for a command line.
pub(super) fn seconds(text: &str) -> Result<f64, String> {
    let seconds: f64 = text.parse().map_err(|error| format!("{error}"))?;
    if (SECONDS_MIN..=SECONDS_MAX).contains(&seconds) {
        Ok(seconds)
    } else {
        Err(format!("must be {SECONDS_MIN} to {SECONDS_MAX} seconds"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_and_times_are_checked() {
        assert_eq!(precision("fp16"), Ok(Precision::Fp16));
        assert_eq!(precision("half"), Err("known: fp32, tf32, fp16, bf16".to_owned()));
        assert_eq!(seconds("0.25"), Ok(0.25));
        for wrong in ["0", "-1", "nan", "inf", "100000", "x"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_filled_reads_the_same() {
        for dtype in Dtype::ALL {
            let mut bytes = vec![0xff; 3 * dtype.bytes() as usize];
            Fill::Ones.write(dtype, 0, &mut bytes);
            assert!(decode(dtype, &bytes).iter().all(|it| it.rank() == 1.0), "{dtype:?}");
            Fill::Zeros.write(dtype, 0, &mut bytes);
            assert!(decode(dtype, &bytes).iter().all(|it| it.rank() == 0.0), "{dtype:?}");
            Fill::Random.write(dtype, 1, &mut bytes);
            let elements = decode(dtype, &bytes);
            assert_eq!(elements.len(), 3);
            assert!(elements.iter().all(|it| (0.0..=1.0).contains(&it.rank())), "{dtype:?}");
        }
    }

    #[test]
    fn signs_and_oddities_survive() {
        assert_eq!(decode(Dtype::I32, &(-2i32).to_le_bytes()), [Element::Integer(-2)]);
        assert_eq!(decode(Dtype::I64, &i64::MIN.to_le_bytes()), [Element::Integer(i64::MIN)]);
        assert_eq!(decode(Dtype::U8, &[255]), [Element::Integer(255)]);
        assert_eq!(decode(Dtype::Bf16, &[0x80, 0xbf]), [Element::Float(-1.0)]);
        assert_eq!(decode(Dtype::F32, &[1, 2, 3]), []);
        let odd = [Element::Float(f32::NAN), Element::Float(1.0)];
        assert_eq!(largest(&odd)[0].0, 1);
    }

    #[test]
    fn long_rows_are_cut() {
        let elements: Vec<Element> = (0..40).map(Element::Integer).collect();
        assert_eq!(
            show("x", Dtype::I64, &[2, 20], &elements),
            "x: i64 [2, 20]\n  \
             row 0: largest of 20: [19] 19, [18] 18, [17] 17, [16] 16, [15] 15\n  \
             row 1: largest of 20: [19] 39, [18] 38, [17] 37, [16] 36, [15] 35\n"
        );
        let short = show("y", Dtype::F32, &[10], &[Element::Float(0.5); 10]);
        assert!(short.contains("row 0: 0.5000; largest: [0]\n"), "{short}");
        assert!(short.ends_with("and 2 rows more\n"), "{short}");
    }
}
