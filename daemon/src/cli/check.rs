//! `gpuletctl check`: everything that is wrong with a configuration and its models, found without
//! starting anything. `gpuletd --check` says the same.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;

use super::{CtlError, Output, print, print_json};
use crate::backend::loading;
use crate::config::{Config, DEFAULT_PATH, Mechanism};
use crate::device::Inventory;
use crate::limits::Limits;
use crate::model::{self, Builtin, MODEL_FILE, Model, Scan, Source};
use crate::{mps, wire};

/// Check a configuration and its models, or one model, and print everything that is wrong
#[derive(Debug, Args)]
pub struct Check {
    /// A configuration, a model's directory, or a directory of models
    #[arg(value_name = "PATH", default_value = DEFAULT_PATH)]
    path: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Findings {
    /// Names of the models that are good.
    pub models: Vec<String>,
    /// Broken rules, one each.
    pub problems: Vec<String>,
    /// What is allowed but hardly meant.
    pub notes: Vec<String>,
}

impl Check {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let findings = examine(&self.path);
        if self.output.json {
            print_json(&findings)?;
        }
        findings.notes.iter().for_each(|note| eprintln!("{note}"));
        if !findings.problems.is_empty() {
            return Err(CtlError::Problems(findings.problems));
        }
        if self.output.json { Ok(()) } else { print(&findings.good(&self.path)) }
    }
}

impl Findings {
    /// One line for the case that nothing is wrong.
    pub fn good(&self, path: &Path) -> String {
        let models = match self.models.len() {
            0 => "no models".to_owned(),
            1 => format!("1 model ({})", self.models[0]),
            count => format!("{count} models ({})", self.models.join(", ")),
        };
        format!("{}: good, with {models}", path.display())
    }

    fn problem(&mut self, error: impl ToString) {
        self.problems.extend(error.to_string().lines().map(str::to_owned));
    }

    fn scanned(&mut self, scan: Scan) -> Vec<Model> {
        self.models = scan.models.iter().map(|model| model.name.clone()).collect();
        scan.errors.iter().for_each(|(_, error)| self.problem(error));
        scan.models
    }
}

/// Checks a configuration with everything that it leads to, a model's directory or a directory of
/// models.
pub fn examine(path: &Path) -> Findings {
    let mut findings = Findings::default();
    if path.join(MODEL_FILE).exists() {
        match model::load(path, &Limits::default()) {
            Ok(model) => findings.models.push(model.name),
            Err(error) => findings.problem(error),
        }
    } else if path.is_dir() {
        findings.scanned(model::scan_each(&[path.to_owned()], &Limits::default()));
    } else {
        match Config::load(path) {
            Ok(config) => examine_config(&config, &mut findings),
            Err(error) => findings.problem(error),
        }
    }
    findings
}

fn examine_config(config: &Config, findings: &mut Findings) {
    let models = findings.scanned(model::scan_each(&config.models, &config.limits));
    if let Err(error) = config.check_models(&models) {
        findings.problem(error);
    }
    let file = config.path.display();
    let paths = [
        ("libtorch_dir", &config.libtorch_dir),
        ("torch_shim", &config.torch_shim),
        ("cuda.shim", &config.cuda.shim),
        ("cuda.nvrtc", &config.cuda.nvrtc),
    ];
    for (field, path) in paths {
        if let Some(path) = path.as_ref().filter(|path| !path.exists()) {
            findings.problem(format!("{file}: {field}: must be there, {} is not", path.display()));
        }
    }
    for (index, gpulet) in config.gpulets.iter().enumerate() {
        let Mechanism::Replay { profiles_dir, .. } = &gpulet.mechanism else { continue };
        let from_files = models.iter().filter(|model| matches!(model.source, Source::File(_)));
        let hosted = from_files.filter(|model| gpulet.hosts(&model.name));
        for error in examine_profiles(profiles_dir, hosted) {
            findings.problem(format!("{file}: gpulet[{index}].profiles: {error}"));
        }
    }
    findings.notes.extend(unhosted(config, &models).map(|note| format!("{file}: gpulet: {note}")));
    // A note and not a problem: the check may be made where the devices are not.
    if config.gpulets.iter().any(|gpulet| gpulet.mechanism.device().is_some()) {
        let control = mps::find_control(&config.mps.control);
        let control = control.as_deref().map_err(String::as_str);
        for (gpulet, refusal) in Inventory::read().check(config, control) {
            findings.notes.push(format!("{file}: gpulet {gpulet:?}: {refusal}"));
        }
    }
}

/// What is said of models that no gpulet can run.
fn unhosted<'a>(config: &'a Config, models: &'a [Model]) -> impl Iterator<Item = String> + 'a {
    models.iter().filter_map(|model| {
        let hosts = || config.gpulets.iter().filter(|it| it.hosts(&model.name));
        match model.source {
            // The dispatcher answers it itself.
            Source::Builtin(Builtin::Null) => None,
            _ if hosts().next().is_none() => Some(format!("none hosts model {:?}", model.name)),
            Source::Builtin(builtin)
                if builtin.needs_gpu() && hosts().all(|it| it.mechanism.device().is_none()) =>
            {
                Some(format!("none on a GPU hosts model {:?}, which needs one", model.name))
            }
            _ => None,
        }
    })
}

/// What keeps the models from being replayed.
fn examine_profiles<'a>(
    profiles_dir: &Path,
    models: impl Iterator<Item = &'a Model>,
) -> Vec<String> {
    let backend = wire::Backend::Replay { profiles_dir: profiles_dir.to_owned() };
    match loading::open(&backend, 1) {
        Ok(backend) => models
            .filter_map(|model| backend.load_file(model).err())
            .map(|error| error.to_string())
            .collect(),
        Err(error) => vec![error.to_string()],
    }
}
