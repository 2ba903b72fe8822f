//! The JSON files. What they may hold beside what is read is listed; anything else is an error.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::input::InputError;
use crate::problem::DEVICES_MAX;

/// The scheduler's flags.
#[derive(Debug, Clone, PartialEq)]
pub struct Scheduling {
    /// Device types in alphabetical order, which is the order of device numbers, and counts.
    pub devices: Vec<(String, u32)>,
    /// Most models that take turns on one gpulet.
    pub models_per_gpulet_max: usize,
    /// Whether a device may be divided.
    pub divided: bool,
    /// Factor on every latency, at least 1.
    pub latency_ratio: f64,
    /// Whether to reckon with interference.
    pub interference: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawScheduling {
    #[serde(rename = "GPUs")]
    devices: Vec<RawCount>,
    #[serde(rename = "Max Model")]
    models_per_gpulet_max: usize,
    #[serde(rename = "Part")]
    divided: u8,
    #[serde(rename = "Latency Ratio")]
    latency_ratio: f64,
    #[serde(rename = "Interference")]
    interference: u8,
    /// These have never had an effect on what a plan may be.
    #[serde(rename = "Incremental", default)]
    _incremental: Option<IgnoredAny>,
    #[serde(rename = "Avail_Parts", default)]
    _shares: Option<IgnoredAny>,
    #[serde(rename = "No Check", default)]
    _unchecked: Option<IgnoredAny>,
    #[serde(rename = "SLO Ratio", default)]
    _slo_ratio: Option<IgnoredAny>,
    #[serde(rename = "Self Tuning", default)]
    _self_tuning: Option<IgnoredAny>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCount {
    #[serde(rename = "Type")]
    kind: String,
    #[serde(rename = "Num")]
    count: u32,
}

/// The scheduler's flags.
///
/// # Errors
/// File, field and rule.
pub fn scheduling(file: &str, text: &str) -> Result<Scheduling, InputError> {
    let raw: RawScheduling = json(file, text)?;
    let wrong = |field: &str, rule: String| Err(at_key(file, text, field, rule));
    if !(1.0..=1000.0).contains(&raw.latency_ratio) {
        return wrong("Latency Ratio", format!("must be 1 to 1000, is {}", raw.latency_ratio));
    }
    if raw.models_per_gpulet_max == 0 {
        return wrong("Max Model", "must be at least 1, is 0".into());
    }
    for (field, flag) in [("Part", raw.divided), ("Interference", raw.interference)] {
        if flag > 1 {
            return wrong(field, format!("must be 0 or 1, is {flag}"));
        }
    }
    let mut devices = BTreeMap::new();
    for RawCount { kind, count } in raw.devices {
        if count > DEVICES_MAX {
            return wrong("GPUs", format!("Num must be at most {DEVICES_MAX}, is {count}"));
        }
        if devices.insert(kind.clone(), count).is_some() {
            return wrong("GPUs", format!("Type {kind:?} must be given once"));
        }
    }
    match devices.values().map(|&count| u64::from(count)).sum() {
        0 => return wrong("GPUs", "must be at least one device, are none".into()),
        1..=0x10_0000 => {}
        count => return wrong("GPUs", format!("must be at most {DEVICES_MAX}, are {count}")),
    }
    Ok(Scheduling {
        devices: devices.into_iter().filter(|&(_, count)| count > 0).collect(),
        models_per_gpulet_max: raw.models_per_gpulet_max,
        divided: raw.divided == 1,
        latency_ratio: raw.latency_ratio,
        interference: raw.interference == 1,
    })
}

/// What the devices file says of one type; paths are relative to the resource directory.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceFiles {
    /// Name of the type.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its memory, MB.
    pub mem_mb: u64,
    /// Latencies.
    pub latency_prof_file: String,
    /// Constants of the linear interference model.
    pub interference_const_file: String,
    /// Utilisations.
    pub interference_util_file: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDevices {
    device_specs: Vec<DeviceFiles>,
}

/// The types that the devices file knows.
///
/// # Errors
/// File, field and rule.
pub fn devices(file: &str, text: &str) -> Result<Vec<DeviceFiles>, InputError> {
    let RawDevices { device_specs } = json(file, text)?;
    for (index, spec) in device_specs.iter().enumerate() {
        if device_specs[..index].iter().any(|other| other.kind == spec.kind) {
            let rule = format!("type {:?} must be given once", spec.kind);
            return Err(at_key(file, text, "device_specs", rule));
        }
        if spec.mem_mb == 0 || spec.mem_mb > 1 << 32 {
            let rule = format!("mem_mb must be 1 to {}, is {}", 1_u64 << 32, spec.mem_mb);
            return Err(at_key(file, text, &spec.kind, rule));
        }
    }
    Ok(device_specs)
}

/// Memory of the models, MB, and the name of the file for what is missing.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    file: String,
    models: BTreeMap<String, u64>,
}

impl Memory {
    /// Megabytes of an instance of `model`.
    ///
    /// # Errors
    /// The file does not say.
    pub fn of(&self, model: &str) -> Result<u64, InputError> {
        let rule = "must have its memory given, has not";
        let found = self.models.get(model).copied();
        found.ok_or_else(|| InputError::whole(&self.file, model, rule))
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMemory {
    models: Vec<RawModelMemory>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawModelMemory {
    name: String,
    mem: u64,
}

/// Memory of the models.
///
/// # Errors
/// File, field and rule.
pub fn memory(file: &str, text: &str) -> Result<Memory, InputError> {
    let raw: RawMemory = json(file, text)?;
    let mut models = BTreeMap::new();
    for RawModelMemory { name, mem } in raw.models {
        if mem == 0 || mem > 1 << 32 {
            let rule = format!("mem must be 1 to {} MB, is {mem}", 1_u64 << 32);
            return Err(at_key(file, text, &name, rule));
        }
        if models.insert(name.clone(), mem).is_some() {
            return Err(at_key(file, text, &name, "must be given once"));
        }
    }
    Ok(Memory { file: file.to_owned(), models })
}

/// Bytes of a request by model.
#[derive(Debug, Clone, Default)]
pub struct InputShapes {
    file: String,
    bytes: BTreeMap<String, u64>,
}

impl InputShapes {
    /// Bytes of one request of `model`.
    ///
    /// # Errors
    /// The file does not say.
    pub fn of(&self, model: &str) -> Result<u64, InputError> {
        let rule = "must have its input shape given, has not";
        let found = self.bytes.get(model).copied();
        found.ok_or_else(|| InputError::whole(&self.file, model, rule))
    }
}

#[derive(Debug, Deserialize)]
struct RawShapes {
    #[serde(rename = "Models")]
    models: Vec<RawShape>,
}

#[derive(Debug, Deserialize)]
struct RawShape {
    name: String,
    input_dim: Vec<u64>,
    input_type: String,
}

/// Input shapes of the models, without the batch.
///
/// # Errors
/// File, field and rule.
pub fn input_shapes(file: &str, text: &str) -> Result<InputShapes, InputError> {
    let raw: RawShapes = json(file, text)?;
    let mut bytes = BTreeMap::new();
    for RawShape { name, input_dim, input_type } in raw.models {
        let element: u64 = match input_type.as_str() {
            "FP32" => 4,
            "INT64" => 8,
            other => {
                let rule = format!("input_type must be FP32 or INT64, is {other:?}");
                return Err(at_key(file, text, &name, rule));
            }
        };
        let all = input_dim.iter().try_fold(element, |sum, &dim| sum.checked_mul(dim));
        match all.filter(|&it| it > 0 && it <= 1 << 40) {
            Some(all) => bytes.insert(name, all),
            None => {
                let rule = "input_dim must come to 1 byte to 1 TiB";
                return Err(at_key(file, text, &name, rule));
            }
        };
    }
    Ok(InputShapes { file: file.to_owned(), bytes })
}

/// An error at the first line that has `key` in quotes.
fn at_key(file: &str, text: &str, key: &str, rule: impl Into<String>) -> InputError {
    let quoted = format!("\"{key}\"");
    let line = text.lines().position(|line| line.contains(&quoted)).map_or(0, |at| at + 1);
    InputError { line, ..InputError::whole(file, key, rule) }
}

fn json<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, InputError> {
    let mut reader = serde_json::Deserializer::from_str(text);
    let read = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        let (path, inner) = (error.path().to_string(), error.into_inner());
        let field = if path == "." { "document".to_owned() } else { path };
        let rule = inner.to_string();
        let rule = rule.split(" at line ").next().unwrap_or_default().to_owned();
        InputError { file: file.to_owned(), line: inner.line(), field, rule }
    })?;
    reader.end().map_err(|error| InputError {
        file: file.to_owned(),
        line: error.line(),
        field: "document".to_owned(),
        rule: "must end after its last brace".to_owned(),
    })?;
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{ "GPUs": [ {"Type": "b", "Num": 2}, {"Type": "a", "Num": 1} ],
        "Max Model": 3, "Part": 1, "Latency Ratio": 1.1, "Interference": 1, "Self Tuning": 0,
        "Avail_Parts": [20, 40], "No Check": 1, "Incremental": 1 }"#;

    #[test]
    fn flags() {
        let read = scheduling("s", GOOD).unwrap();
        assert_eq!(read.devices, [("a".to_owned(), 1), ("b".to_owned(), 2)]);
        assert!(read.divided && read.interference);
        let cases = [
            ("1.1", "0.9", "s:2: Latency Ratio: must be 1 to 1000, is 0.9"),
            ("\"Max Model\": 3", "\"Max Model\": 0", "s:2: Max Model: must be at least 1, is 0"),
            ("\"Part\": 1", "\"Part\": 2", "s:2: Part: must be 0 or 1, is 2"),
            ("\"Num\": 2", "\"Num\": -2", "s:1: GPUs[0].Num: invalid value: integer `-2`"),
            ("\"b\"", "\"a\"", "s:1: GPUs: Type \"a\" must be given once"),
            ("\"Incremental\"", "\"Extra\"", "unknown field `Extra`"),
        ];
        for (good, bad, message) in cases {
            let error = scheduling("s", &GOOD.replace(good, bad)).unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
        let none = GOOD.replace("\"Num\": 2", "\"Num\": 0").replace("\"Num\": 1", "\"Num\": 0");
        let error = scheduling("s", &none).unwrap_err().to_string();
        assert_eq!(error, "s:1: GPUs: must be at least one device, are none");
    }

    #[test]
    fn the_other_files() {
        let text = r#"{"models":[{"name":"m","mem":5}]}"#;
        let read = memory("m", text).unwrap();
        assert_eq!(read.of("m"), Ok(5));
        assert_eq!(
            read.of("n").unwrap_err().to_string(),
            "m: n: must have its memory given, has not"
        );
        assert!(memory("m", &text.replace('5', "0")).is_err());
        let shapes = r#"{"Models":[{"name":"m","output_id":0,"input_dim":[3,2],
            "output_dim":[1],"input_type":"FP32","output_type":"FP32"}]}"#;
        assert_eq!(input_shapes("p", shapes).unwrap().of("m"), Ok(24));
        assert!(input_shapes("p", &shapes.replace("[3,2]", "[9e9,2]")).is_err());
        let devices_text = r#"{"device_specs":[{"type":"t","mem_mb":1,"latency_prof_file":"l",
            "interference_const_file":"c","interference_util_file":"u"}]}"#;
        assert_eq!(devices("d", devices_text).unwrap()[0].kind, "t");
        assert!(devices("d", "{} x").is_err());
        assert!(devices("d", &format!("{devices_text} x")).is_err());
    }
}
