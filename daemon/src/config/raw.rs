//! The configuration as it is written, before any rule but TOML's own types is checked.

use serde::Deserialize;
use toml::{Spanned, Value};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawConfig {
    pub socket: Option<Spanned<String>>,
    pub models: Option<Spanned<Vec<Spanned<String>>>>,
    pub libtorch_dir: Option<Spanned<String>>,
    pub torch_shim: Option<Spanned<String>>,
    pub drain_timeout_ms: Option<Spanned<i64>>,
    pub hang_timeout_ms: Option<Spanned<i64>>,
    /// A number or a word.
    pub spin_us: Option<Spanned<Value>>,
    pub defer: bool,
    pub access: RawAccess,
    pub limits: RawLimits,
    pub cuda: RawCuda,
    pub mps: RawMps,
    pub gpulet: Vec<Spanned<RawGpulet>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAccess {
    /// Each a name or a number.
    pub users: Option<Spanned<Vec<Spanned<Value>>>>,
    pub groups: Option<Spanned<Vec<Spanned<Value>>>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawLimits {
    pub sessions_max: Option<Spanned<i64>>,
    pub sessions_per_user_max: Option<Spanned<i64>>,
    pub slot_count_max: Option<Spanned<i64>>,
    pub slot_count_default: Option<Spanned<i64>>,
    pub slot_bytes_max: Option<Spanned<i64>>,
    pub region_bytes_max: Option<Spanned<i64>>,
    pub region_bytes_total_max: Option<Spanned<i64>>,
    pub queue_max: Option<Spanned<i64>>,
    pub models_max: Option<Spanned<i64>>,
    pub entries_per_turn_max: Option<Spanned<i64>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCuda {
    pub shim: Option<Spanned<String>>,
    pub kernel_cache: Option<Spanned<String>>,
    pub nvrtc: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMps {
    pub control: Option<Spanned<String>>,
    pub directory: Option<Spanned<String>>,
    pub adopt: bool,
    pub green: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGpulet {
    pub name: Spanned<String>,
    pub mechanism: Spanned<String>,
    pub share_pct: Spanned<i64>,
    /// A number or a UUID.
    pub device: Option<Spanned<Value>>,
    pub memory_mib: Option<Spanned<i64>>,
    pub models: Option<Spanned<Vec<Spanned<String>>>>,
    pub guests: Option<Spanned<Vec<Spanned<String>>>>,
    pub profiles: Option<Spanned<String>>,
}
