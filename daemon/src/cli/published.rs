//! The published files on a command line, and the problem that they pose.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use clap::Args;
use gpulet_plan::demand::Demand;
use gpulet_plan::input::InputError;
use gpulet_plan::interference::Tempers;
use gpulet_plan::measured::{MeasuredError, MeasuredModel};
use gpulet_plan::native;
use gpulet_plan::problem::Problem;
use gpulet_plan::published::{self, DeviceTexts, Texts};
use gpulet_plan::search::Infeasible;
use serde::de::DeserializeOwned;

use super::CtlError;

/// Most bytes of any input file.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// Where the published files are.
#[derive(Debug, Clone, Args)]
pub struct Files {
    /// A problem in one file of our own (TOML, or JSON) instead of the published ones
    #[arg(long, value_name = "FILE")]
    problem: Option<PathBuf>,
    /// Rates: N, then N lines `model,rate,slo_ms,`; the model by published number or by name
    #[arg(long = "task-config", alias = "task_config", value_name = "CSV")]
    #[arg(default_value = "tasks.csv")]
    rates: PathBuf,
    /// Scheduler flags: GPUs, Max Model, Part, Latency Ratio, Interference
    #[arg(long, alias = "sched_config", value_name = "JSON", default_value = "sim_config.json")]
    sched_config: PathBuf,
    /// Device types: memory and the files of their profiles
    #[arg(long, alias = "device_config", value_name = "JSON")]
    #[arg(default_value = "device-config.json")]
    device_config: PathBuf,
    /// Memory of each model
    #[arg(long, alias = "mem_config", value_name = "JSON", default_value = "mem-config.json")]
    mem_config: PathBuf,
    /// Where profiles and gathering times are
    #[arg(long, alias = "resource_dir", value_name = "DIR", default_value = "../resource")]
    resource_dir: PathBuf,
    /// Input shapes, for --network-gibit
    #[arg(long = "proxy-config", alias = "proxy_config", value_name = "JSON")]
    #[arg(requires = "network_gibit")]
    shapes: Option<PathBuf>,
    /// Reckon with a network of so many Gibit/s for each GPU; through shared memory there is none
    #[arg(long, value_name = "GIBIT", requires = "shapes")]
    network_gibit: Option<f64>,
    /// So many GPUs of each type instead of what the scheduler flags say
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1 << 16))]
    gpus: Option<u32>,
}

impl Files {
    /// Reads everything.
    pub(super) fn problem(&self) -> Result<Problem, CtlError> {
        self.posed(1.0)
    }

    /// The same with a factor on every rate.
    pub(super) fn posed(&self, load: f64) -> Result<Problem, CtlError> {
        if let Some(path) = &self.problem {
            let (name, text) = read(path)?;
            let mut document = document(&name, &text)?;
            gather(path, &name, &mut document)?;
            document.model.iter_mut().for_each(|model| model.rate *= load);
            if let (Some(count), Some(device)) = (self.gpus, document.device.last_mut()) {
                device.count = count;
            }
            return Ok(native::problem(&name, &document)?);
        }
        let (name, text) = read(&self.rates).map_err(unasked)?;
        let mut demands = published::rates(&name, &text)?;
        demands.iter_mut().for_each(|demand| demand.rate *= load);
        self.problem_of(&name, demands)
    }

    /// Why there is no plan, with the file and line that ask for what cannot be.
    pub(super) fn blamed(&self, source: Infeasible) -> CtlError {
        let path = match (&self.problem, &source) {
            (Some(path), _) => path,
            (None, Infeasible::Slo { .. } | Infeasible::Memory { .. }) => &self.rates,
            (None, _) => &self.sched_config,
        };
        let line = match &source {
            Infeasible::Slo { model, .. } | Infeasible::Memory { model, .. } => {
                read(path).map_or(0, |(_, text)| line_of(&text, model))
            }
            _ => 0,
        };
        let place = match line {
            0 => path.display().to_string(),
            _ => format!("{}:{line}", path.display()),
        };
        CtlError::Infeasible { place, source }
    }

    /// With so many devices of each type.
    pub(super) fn with_gpus(&self, count: u32) -> Self {
        Self { gpus: Some(count), ..self.clone() }
    }

    /// Reads everything but the rates.
    pub(super) fn problem_of(&self, file: &str, rates: Vec<Demand>) -> Result<Problem, CtlError> {
        let (name, text) = read(&self.sched_config)?;
        let mut scheduling = published::scheduling(&name, &text)?;
        if let Some(count) = self.gpus {
            scheduling.devices.iter_mut().for_each(|device| device.1 = count);
        }
        let devices = self.devices(&scheduling)?;
        let (name, text) = read(&self.mem_config)?;
        let memory = published::memory(&name, &text)?;
        let mut batching = BTreeMap::new();
        for stem in [published::IMAGES_224, published::IMAGES_300] {
            let (name, text) = read(&self.resource_dir.join(format!("{stem}.txt")))?;
            batching.insert(stem, published::batching_costs(&name, &text)?);
        }
        let network = match (&self.shapes, self.network_gibit) {
            (Some(shapes), Some(gibit)) if gibit > 0.0 && gibit.is_finite() => {
                let (name, text) = read(&self.resource_dir.join(shapes))?;
                let bits = gibit * f64::from(1 << 30);
                Some((published::input_shapes(&name, &text)?, bits))
            }
            (Some(_), _) => {
                return Err(CtlError::Usage("--network-gibit must be above 0".into()));
            }
            _ => None,
        };
        let rates_file = file.to_owned();
        let texts = Texts { rates_file, rates, scheduling, devices, memory, batching, network };
        Ok(published::problem(&texts)?)
    }

    fn devices(
        &self,
        scheduling: &published::Scheduling,
    ) -> Result<BTreeMap<String, DeviceTexts>, CtlError> {
        let (file, text) = read(&self.device_config)?;
        let known = published::devices(&file, &text)?;
        let mut devices = BTreeMap::new();
        for (kind, _) in &scheduling.devices {
            let Some(files) = known.iter().find(|files| files.kind == *kind) else {
                let name = self.sched_config.display().to_string();
                let rule = format!("Type must be one that {file} has, is {kind:?}");
                return Err(InputError::whole(&name, "GPUs", rule).into());
            };
            let from_dir = |path: &String| read(&self.resource_dir.join(path));
            let interference = if scheduling.interference {
                let constants = from_dir(&files.interference_const_file)?;
                Some((constants, from_dir(&files.interference_util_file)?))
            } else {
                None
            };
            let latency = from_dir(&files.latency_prof_file)?;
            let texts = DeviceTexts { memory_mb: files.mem_mb, latency, interference };
            devices.insert(kind.clone(), texts);
        }
        Ok(devices)
    }
}

/// Who names no file of rates may not know that there is one by default.
fn unasked(error: CtlError) -> CtlError {
    match error {
        CtlError::File { path, source } if source.kind() == ErrorKind::NotFound => {
            let path = path.display();
            CtlError::Usage(format!("{path}: {source}; name it by --task-config, or a --problem"))
        }
        other => other,
    }
}

/// A problem of our own, from either notation.
fn document(name: &str, text: &str) -> Result<native::Document, CtlError> {
    let told = |line: usize, rule: String| -> CtlError {
        let rule = rule.lines().next().unwrap_or_default().to_owned();
        InputError { file: name.to_owned(), line, field: "document".into(), rule }.into()
    };
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|it| told(it.line(), it.to_string()));
    }
    toml::from_str(text).map_err(|error: toml::de::Error| {
        let line = error.span().map_or(0, |span| text[..span.start].matches('\n').count() + 1);
        told(line, error.message().to_owned())
    })
}

/// Reads the files that a problem of our own names, relative to its own.
fn gather(path: &Path, name: &str, document: &mut native::Document) -> Result<(), CtlError> {
    let folder = path.parent().unwrap_or(Path::new(""));
    let asked: BTreeSet<String> = document.model.iter().map(|it| it.name.clone()).collect();
    let mut memory_mb: BTreeMap<String, u64> = BTreeMap::new();
    for at in 0..document.device.len() {
        let device = &mut document.device[at];
        let Some(profiles) = device.profiles.take() else { continue };
        let device = device.name.clone();
        for model in &asked {
            let (file, text) = read(&folder.join(&profiles).join(format!("{model}.json")))?;
            let found: MeasuredModel = json(&file, &text)?;
            let rule = |error: MeasuredError| InputError::whole(&file, model, error.to_string());
            found.check().map_err(rule)?;
            let took_mb = document.measured(&device, model, &found);
            let most_mb = memory_mb.entry(model.clone()).or_default();
            *most_mb = (*most_mb).max(took_mb);
        }
    }
    for model in document.model.iter_mut().filter(|model| model.memory_mb == 0) {
        model.memory_mb = memory_mb.get(&model.name).copied().unwrap_or(0);
    }
    if let Some(tempers) = document.tempers.take() {
        if document.interference.is_some() {
            let rule = "must not be given beside interference, is";
            return Err(InputError::whole(name, "tempers", rule).into());
        }
        let (file, text) = read(&folder.join(tempers))?;
        let tempers: Tempers = json(&file, &text)?;
        tempers.check().map_err(|rule| InputError::whole(&file, "document", rule))?;
        document.interference = Some(tempers);
    }
    Ok(())
}

fn json<T: DeserializeOwned>(file: &str, text: &str) -> Result<T, InputError> {
    serde_json::from_str(text).map_err(|error| {
        let (line, rule) = (error.line(), error.to_string());
        InputError { file: file.to_owned(), line, field: "document".into(), rule }
    })
}

/// First line that asks for a model, of rates or of a problem of our own; 0 for none.
fn line_of(text: &str, model: &str) -> usize {
    let number = published::MODELS.iter().position(|known| known.name == model);
    let number = number.map(|number| number.to_string());
    let asks = |line: &str| {
        let first = line.split(',').next().unwrap_or_default().trim();
        first == model
            || number.as_deref() == Some(first)
            || line.contains("name") && line.contains(&format!("\"{model}\""))
    };
    // The first line of rates is their count.
    let mut lines = text.lines().enumerate().skip(1);
    lines.find(|(_, line)| asks(line)).map_or(0, |(at, _)| at + 1)
}

/// Name and text of a file.
pub(super) fn read(path: &Path) -> Result<(String, String), CtlError> {
    let failed = |source| CtlError::File { path: path.to_owned(), source };
    let name = path.display().to_string();
    let mut bytes = Vec::new();
    // What a device or a pipe holds is not known beforehand.
    let file = File::open(path).map_err(failed)?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        let rule = format!("must be at most {FILE_BYTES_MAX}, are more");
        return Err(InputError::whole(&name, "bytes", rule).into());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|&&byte| byte == b'\n').count();
        let rule = "must be UTF-8, is not".to_owned();
        InputError { file: name.clone(), line, field: "text".to_owned(), rule }
    })?;
    Ok((name, text))
}

/// Writes a whole file.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CtlError> {
    fs::write(path, text).map_err(|source| CtlError::File { path: path.to_owned(), source })
}
