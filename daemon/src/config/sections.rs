//! The sections `[limits]` and `[[gpulet]]`, checked.

use std::path::{Path, PathBuf};

use toml::Spanned;

use super::raw::{RawGpulet, RawLimits};
use super::{Gpulet, Mechanism, ModelSet, path_from};
use crate::document::{Document, broken_name_rule};
use crate::limits::*;

pub(super) fn limits(raw: &RawLimits, document: &mut Document<'_>) -> Limits {
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

pub(super) fn gpulets(
    raw: &[Spanned<RawGpulet>],
    base: &Path,
    document: &mut Document<'_>,
) -> Vec<Gpulet> {
    if raw.is_empty() {
        let (name, mechanism) = ("cpu0".to_owned(), Mechanism::Cpu);
        return vec![Gpulet { name, mechanism, share_pct: 100, models: ModelSet::All }];
    }
    if raw.len() > GPULETS_MAX {
        let rule = format!("must be at most {GPULETS_MAX}, are {}", raw.len());
        document.problem("gpulet", Some(raw[GPULETS_MAX].span()), rule);
        return Vec::new();
    }
    let mut gpulets: Vec<Gpulet> = Vec::new();
    let mut cpu_pct = 0;
    for (index, raw) in raw.iter().enumerate() {
        let raw = raw.get_ref();
        let at = format!("gpulet[{index}]");
        let name = raw.name.get_ref();
        if let Some(rule) = broken_name_rule(name) {
            document.problem(format!("{at}.name"), Some(raw.name.span()), rule);
        } else if gpulets.iter().any(|gpulet| gpulet.name == *name) {
            let rule = format!("must be unique, {name:?} is taken");
            document.problem(format!("{at}.name"), Some(raw.name.span()), rule);
        }
        let share_field = format!("{at}.share_pct");
        let share_pct = document.integer_u32(&share_field, Some(&raw.share_pct), 1, 1..=100);
        let share_pct = u8::try_from(share_pct).unwrap_or(100);
        let Some(mechanism) = mechanism(raw, &at, base, document) else { continue };
        if mechanism == Mechanism::Cpu {
            cpu_pct += u32::from(share_pct);
            if cpu_pct > 100 {
                let rule = format!("must not add up to more than 100 on cpu, adds up to {cpu_pct}");
                document.problem(share_field, Some(raw.share_pct.span()), rule);
            }
        }
        let models = model_set(raw, &at, document);
        gpulets.push(Gpulet { name: name.clone(), mechanism, share_pct, models });
    }
    gpulets
}

fn mechanism(
    raw: &RawGpulet,
    at: &str,
    base: &Path,
    document: &mut Document<'_>,
) -> Option<Mechanism> {
    match (raw.mechanism.get_ref().as_str(), &raw.profiles) {
        ("cpu", None) => Some(Mechanism::Cpu),
        ("cpu", Some(profiles)) => {
            let rule = "must be absent with mechanism = \"cpu\", which measures its profiles";
            document.problem(format!("{at}.profiles"), Some(profiles.span()), rule);
            None
        }
        ("replay", Some(profiles)) => {
            let field = format!("{at}.profiles");
            let profiles_dir: PathBuf = path_from(&field, profiles, base, document);
            Some(Mechanism::Replay { profiles_dir })
        }
        ("replay", None) => {
            let rule = "must be given with mechanism = \"replay\": the directory of profiles";
            document.problem(format!("{at}.profiles"), Some(raw.mechanism.span()), rule);
            None
        }
        (other, _) => {
            let rule = format!("must be \"cpu\" or \"replay\", is {other:?}");
            document.problem(format!("{at}.mechanism"), Some(raw.mechanism.span()), rule);
            None
        }
    }
}

fn model_set(raw: &RawGpulet, at: &str, document: &mut Document<'_>) -> ModelSet {
    let Some(list) = &raw.models else { return ModelSet::All };
    let field = format!("{at}.models");
    if list.get_ref().is_empty() || list.get_ref().len() > MODELS_HARD_MAX as usize {
        let rule = format!("must have 1 to {MODELS_HARD_MAX} names, or be absent for all models");
        document.problem(&field, Some(list.span()), rule);
    }
    let mut names: Vec<String> = Vec::new();
    for (index, name) in list.get_ref().iter().enumerate().take(MODELS_HARD_MAX as usize) {
        let rule = broken_name_rule(name.get_ref()).or_else(|| {
            names.contains(name.get_ref()).then(|| format!("names {:?} twice", name.get_ref()))
        });
        if let Some(rule) = rule {
            document.problem(format!("{field}[{index}]"), Some(name.span()), rule);
        }
        names.push(name.get_ref().clone());
    }
    ModelSet::Named(names)
}
