//! `model.toml` as it is written, before any rule but TOML's own types is checked.

use serde::Deserialize;
use toml::Spanned;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawModel {
    pub file: Option<Spanned<String>>,
    pub builtin: Option<Spanned<String>>,
    pub slo_ms: Spanned<f64>,
    pub max_batch: Spanned<i64>,
    pub warmup_count: Spanned<i64>,
    pub precision: Option<Spanned<String>>,
    pub error_max: Option<Spanned<f64>>,
    pub input: Spanned<Vec<Spanned<RawTensor>>>,
    pub output: Spanned<Vec<Spanned<RawTensor>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTensor {
    pub name: Spanned<String>,
    pub dtype: Spanned<String>,
    pub shape: Spanned<Vec<i64>>,
    pub range: Option<Spanned<Vec<i64>>>,
    pub normalise: Option<Spanned<RawNormalise>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawNormalise {
    pub mean: Spanned<Vec<f64>>,
    pub std: Spanned<Vec<f64>>,
}
