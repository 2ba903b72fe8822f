//! The section `[limits]`, checked.

use toml::Spanned;

use super::raw::RawLimits;
use crate::document::Document;
use crate::limits::*;

pub(super) fn check(raw: &RawLimits, document: &mut Document<'_>) -> Limits {
    let usual = Limits::default();
    let mut count = |field: &str, value: &Option<Spanned<i64>>, default: u32, max: u32| {
        document.integer_u32(&format!("limits.{field}"), value.as_ref(), default.min(max), 1..=max)
    };
    let sessions_max =
        count("sessions_max", &raw.sessions_max, usual.sessions_max, SESSIONS_HARD_MAX);
    let sessions_per_user_max = count(
        "sessions_per_user_max",
        &raw.sessions_per_user_max,
        usual.sessions_per_user_max,
        sessions_max,
    );
    let slots_max = gpulet_abi::layout::SLOTS_MAX;
    let slot_count_max =
        count("slot_count_max", &raw.slot_count_max, usual.slot_count_max, slots_max);
    let slot_count_default = count(
        "slot_count_default",
        &raw.slot_count_default,
        usual.slot_count_default,
        slot_count_max,
    );
    let queue_max = count("queue_max", &raw.queue_max, usual.queue_max, QUEUE_HARD_MAX);
    let models_max = count("models_max", &raw.models_max, usual.models_max, MODELS_HARD_MAX);
    let entries_per_turn_max = count(
        "entries_per_turn_max",
        &raw.entries_per_turn_max,
        usual.entries_per_turn_max,
        ENTRIES_PER_TURN_HARD_MAX,
    );
    let mut bytes = |field: &str, value: &Option<Spanned<i64>>, default: u64, min, max| {
        let field = format!("limits.{field}");
        document.integer(&field, value.as_ref(), default.clamp(min, max), min..=max)
    };
    let region_bytes_max = bytes(
        "region_bytes_max",
        &raw.region_bytes_max,
        usual.region_bytes_max,
        REGION_BYTES_HARD_MIN,
        REGION_BYTES_HARD_MAX,
    );
    let region_bytes_total_max = bytes(
        "region_bytes_total_max",
        &raw.region_bytes_total_max,
        usual.region_bytes_total_max,
        region_bytes_max,
        REGION_BYTES_TOTAL_HARD_MAX,
    );
    let slot_bytes_max = bytes(
        "slot_bytes_max",
        &raw.slot_bytes_max,
        usual.slot_bytes_max,
        gpulet_abi::layout::TENSOR_ALIGN,
        Limits::largest_slot_bytes(region_bytes_max),
    );
    Limits {
        sessions_max,
        sessions_per_user_max,
        slot_count_max,
        slot_count_default,
        slot_bytes_max,
        region_bytes_max,
        region_bytes_total_max,
        queue_max,
        models_max,
        entries_per_turn_max,
    }
}
