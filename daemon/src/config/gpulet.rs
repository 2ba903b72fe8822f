//! The sections `[[gpulet]]`, checked: shares of devices.

use std::fmt;
use std::path::{Path, PathBuf};

use toml::{Spanned, Value};

use super::path_from;
use super::raw::RawGpulet;
use crate::document::{Document, broken_name_rule};
use crate::limits::*;

/// One share of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gpulet {
    /// Unique.
    pub name: String,
    /// How the share is held.
    pub mechanism: Mechanism,
    /// 1 to 100; those of one device, and those on the CPU, add up to at most 100.
    pub share_pct: u8,
    /// Bytes of device memory that models may take there; `None`: as much as there is. Only with a
    /// mechanism of a GPU.
    pub memory_bytes: Option<u64>,
    /// What is at home there.
    pub models: ModelSet,
    /// What is loaded there too, and runs there only while none of `models` would and where its own
    /// gpulets would lose a request; none of it is in `models`.
    pub guests: Vec<String>,
}

impl Gpulet {
    /// Whether the model of this name is loaded there.
    pub fn hosts(&self, name: &str) -> bool {
        self.models.contains(name) || self.guests.iter().any(|guest| guest == name)
    }
}

/// How a share is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mechanism {
    /// A process with so many threads on CPUs of its own.
    Cpu,
    /// No device: answers after the time that a profile says, outputs zeroed.
    Replay {
        /// Directory of `<model>.json`.
        profiles_dir: PathBuf,
        /// A GPU to be played: gpulets of the same device and profiles are hosted as `green` ones.
        device: Option<DeviceName>,
    },
    /// A process that NVIDIA MPS lets use so many percent of a GPU's multiprocessors.
    Mps {
        /// Cut by this mechanism alone.
        device: DeviceName,
    },
    /// Multiprocessors of its own, in the one process that runs all gpulets of that GPU.
    Green {
        /// Cut by this mechanism alone.
        device: DeviceName,
    },
}

impl Mechanism {
    /// The GPU that it cuts, if it is one's.
    pub fn device(&self) -> Option<&DeviceName> {
        match self {
            Mechanism::Cpu | Mechanism::Replay { .. } => None,
            Mechanism::Mps { device } | Mechanism::Green { device } => Some(device),
        }
    }

    /// The word for it in gpuletd.toml.
    pub fn word(&self) -> &'static str {
        match self {
            Mechanism::Cpu => "cpu",
            Mechanism::Replay { .. } => "replay",
            Mechanism::Mps { .. } => "mps",
            Mechanism::Green { .. } => "green",
        }
    }
}

/// Which GPU. One configuration names all by index or all by UUID, so that two names are two
/// devices.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum DeviceName {
    /// As nvidia-smi and NVML count: in the order of the PCI bus. CUDA may count differently.
    Index(u32),
    /// `GPU-` and 36 digits and dashes, the digits in lower case.
    Uuid(String),
}

impl DeviceName {
    fn kind(&self) -> &'static str {
        match self {
            DeviceName::Index(_) => "an index",
            DeviceName::Uuid(_) => "a UUID",
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Index(index) => write!(f, "{index}"),
            DeviceName::Uuid(uuid) => f.write_str(uuid),
        }
    }
}

/// Which models.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSet {
    /// Every one there is.
    All,
    /// These, at least one, each once.
    Named(Vec<String>),
}

impl ModelSet {
    /// Whether the model of this name is in the set.
    pub fn contains(&self, name: &str) -> bool {
        match self {
            ModelSet::All => true,
            ModelSet::Named(names) => names.iter().any(|named| named == name),
        }
    }
}

pub(super) fn check(
    raw: &[Spanned<RawGpulet>],
    base: &Path,
    document: &mut Document<'_>,
) -> Vec<Gpulet> {
    if raw.is_empty() {
        return vec![Gpulet {
            name: "cpu0".to_owned(),
            mechanism: Mechanism::Cpu,
            share_pct: 100,
            memory_bytes: None,
            models: ModelSet::All,
            guests: Vec::new(),
        }];
    }
    if raw.len() > GPULETS_MAX {
        let rule = format!("must be at most {GPULETS_MAX}, are {}", raw.len());
        document.problem("gpulet", Some(raw[GPULETS_MAX].span()), rule);
        return Vec::new();
    }
    let mut gpulets: Vec<Gpulet> = Vec::new();
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
        let memory_bytes = memory_bytes(raw, &at, document);
        let Some(mechanism) = mechanism(raw, &at, base, document) else { continue };
        let models = model_set(raw, &at, document);
        let name = name.clone();
        let guests = guests(raw, &models, &at, document);
        let gpulet = Gpulet { name, mechanism, share_pct, memory_bytes, models, guests };
        check_naming(&gpulet, &gpulets, raw, &at, document);
        check_cut(&gpulet, &gpulets, raw, &at, document);
        gpulets.push(gpulet);
    }
    gpulets
}

/// What one device, or the CPU, can give to all gpulets that are cut out of it.
fn check_cut(
    gpulet: &Gpulet,
    before: &[Gpulet],
    raw: &RawGpulet,
    at: &str,
    document: &mut Document<'_>,
) {
    let place = match &gpulet.mechanism {
        Mechanism::Replay { .. } => return,
        Mechanism::Cpu => "cpu".to_owned(),
        Mechanism::Mps { device } | Mechanism::Green { device } => format!("device {device}"),
    };
    let is_replay = |it: &Gpulet| matches!(it.mechanism, Mechanism::Replay { .. });
    let device = gpulet.mechanism.device();
    let here: Vec<&Gpulet> =
        before.iter().filter(|it| !is_replay(it) && it.mechanism.device() == device).collect();
    if let Some(other) = here.iter().find(|it| it.mechanism != gpulet.mechanism) {
        let (word, name) = (other.mechanism.word(), &other.name);
        let rule = format!("must be {word:?}, by which gpulet {name:?} cuts {place}");
        document.problem(format!("{at}.mechanism"), Some(raw.mechanism.span()), rule);
        return;
    }
    let before_pct: u32 = here.iter().map(|it| u32::from(it.share_pct)).sum();
    let sum_pct = before_pct + u32::from(gpulet.share_pct);
    if sum_pct > 100 {
        let rule = format!("must not add up to more than 100 on {place}, adds up to {sum_pct}");
        document.problem(format!("{at}.share_pct"), Some(raw.share_pct.span()), rule);
    }
}

/// An index and a UUID could be the same device, which then would be cut twice.
fn check_naming(
    gpulet: &Gpulet,
    before: &[Gpulet],
    raw: &RawGpulet,
    at: &str,
    document: &mut Document<'_>,
) {
    let kind = |it: &Gpulet| it.mechanism.device().map(DeviceName::kind);
    let Some(own) = kind(gpulet) else { return };
    let other = before.iter().find_map(|it| kind(it).filter(|kind| *kind != own).map(|_| it));
    let Some(other) = other else { return };
    let (wanted, name) = (kind(other).unwrap_or_default(), &other.name);
    let rule = format!("must be {wanted} as in gpulet {name:?}, is {own}");
    document.problem(format!("{at}.device"), raw.device.as_ref().map(Spanned::span), rule);
}

fn mechanism(
    raw: &RawGpulet,
    at: &str,
    base: &Path,
    document: &mut Document<'_>,
) -> Option<Mechanism> {
    let word = raw.mechanism.get_ref().as_str();
    let known = ["cpu", "replay", "mps", "green"];
    if !known.contains(&word) {
        let rule = format!("must be \"cpu\", \"replay\", \"mps\" or \"green\", is {word:?}");
        document.problem(format!("{at}.mechanism"), Some(raw.mechanism.span()), rule);
        return None;
    }
    let profiles = profiles_dir(raw, word, at, base, document);
    let device = device(raw, word, at, document);
    match word {
        "cpu" => Some(Mechanism::Cpu),
        "replay" => Some(Mechanism::Replay { profiles_dir: profiles?, device }),
        "mps" => Some(Mechanism::Mps { device: device? }),
        _ => Some(Mechanism::Green { device: device? }),
    }
}

fn profiles_dir(
    raw: &RawGpulet,
    word: &str,
    at: &str,
    base: &Path,
    document: &mut Document<'_>,
) -> Option<PathBuf> {
    let field = format!("{at}.profiles");
    match (word, &raw.profiles) {
        ("replay", Some(profiles)) => Some(path_from(&field, profiles, base, document)),
        ("replay", None) => {
            let rule = "must be given with mechanism = \"replay\": the directory of profiles";
            document.problem(field, Some(raw.mechanism.span()), rule);
            None
        }
        (_, Some(profiles)) => {
            let rule =
                format!("must be absent with mechanism = {word:?}, which measures its profiles");
            document.problem(field, Some(profiles.span()), rule);
            None
        }
        (_, None) => None,
    }
}

fn device(
    raw: &RawGpulet,
    word: &str,
    at: &str,
    document: &mut Document<'_>,
) -> Option<DeviceName> {
    let field = format!("{at}.device");
    let Some(value) = &raw.device else {
        if matches!(word, "mps" | "green") {
            let rule = format!("must be given with mechanism = {word:?}: a GPU's index or UUID");
            document.problem(field, Some(raw.mechanism.span()), rule);
        }
        return None;
    };
    if word == "cpu" {
        let rule = format!("must be absent with mechanism = {word:?}, which uses no GPU");
        document.problem(field, Some(value.span()), rule);
        return None;
    }
    let name = match value.get_ref() {
        Value::Integer(index) => {
            u32::try_from(*index).ok().filter(|index| *index < DEVICES_MAX).map(DeviceName::Index)
        }
        Value::String(uuid) => full_uuid(uuid).map(DeviceName::Uuid),
        _ => None,
    };
    if name.is_none() {
        let last = DEVICES_MAX - 1;
        let rule = format!(
            "must be an index, 0 to {last}, or a whole UUID as nvidia-smi -L shows it \
             (\"GPU-...\"), is {}",
            value.get_ref()
        );
        document.problem(field, Some(value.span()), rule);
    }
    name
}

/// The UUID in lower case, if it is a whole one of a GPU: 8, 4, 4, 4 and 12 hexadecimal digits.
fn full_uuid(text: &str) -> Option<String> {
    let digits = text.strip_prefix("GPU-")?.to_ascii_lowercase();
    let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let parts: Vec<&str> = digits.split('-').collect();
    let lengths: Vec<usize> = parts.iter().map(|part| part.len()).collect();
    (lengths == [8, 4, 4, 4, 12] && parts.into_iter().all(is_hex)).then(|| format!("GPU-{digits}"))
}

fn memory_bytes(raw: &RawGpulet, at: &str, document: &mut Document<'_>) -> Option<u64> {
    let value = raw.memory_mib.as_ref()?;
    let field = format!("{at}.memory_mib");
    let word = raw.mechanism.get_ref().as_str();
    if matches!(word, "cpu" | "replay") {
        let rule = format!("must be absent with mechanism = {word:?}, which uses no GPU");
        document.problem(field, Some(value.span()), rule);
        return None;
    }
    Some(document.integer(&field, Some(value), 1, 1..=DEVICE_MEMORY_MAX_MIB) << 20)
}

fn model_set(raw: &RawGpulet, at: &str, document: &mut Document<'_>) -> ModelSet {
    let Some(list) = &raw.models else { return ModelSet::All };
    let absent = "or be absent for all models";
    ModelSet::Named(names(list, &format!("{at}.models"), absent, document))
}

fn guests(
    raw: &RawGpulet,
    models: &ModelSet,
    at: &str,
    document: &mut Document<'_>,
) -> Vec<String> {
    let Some(list) = &raw.guests else { return Vec::new() };
    let field = format!("{at}.guests");
    if *models == ModelSet::All {
        let rule = "must be absent without models: then every model is at home there";
        document.problem(field, Some(list.span()), rule);
        return Vec::new();
    }
    let guests = names(list, &field, "or be absent for none", document);
    for (index, name) in list.get_ref().iter().enumerate() {
        if models.contains(name.get_ref()) {
            let rule = format!("must not be in models, {:?} is", name.get_ref());
            document.problem(format!("{field}[{index}]"), Some(name.span()), rule);
        }
    }
    guests
}

/// A list of names of models, each once.
fn names(
    list: &Spanned<Vec<Spanned<String>>>,
    field: &str,
    absent: &str,
    document: &mut Document<'_>,
) -> Vec<String> {
    if list.get_ref().is_empty() || list.get_ref().len() > MODELS_HARD_MAX as usize {
        let rule = format!("must have 1 to {MODELS_HARD_MAX} names, {absent}");
        document.problem(field, Some(list.span()), rule);
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
    names
}
