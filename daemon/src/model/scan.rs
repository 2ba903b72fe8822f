//! Directories of models.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use super::{Model, read};
use crate::document::{self, Document, Problem, broken_name_rule};
use crate::limits::Limits;

/// What makes a directory a model.
pub const MODEL_FILE: &str = "model.toml";

/// Directories looked at in one root: more are an error, so that a wrong root is not read for ever.
const ENTRIES_MAX: usize = 16384;

/// Why there is no such model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A directory or file could not be read.
    #[error("{}: cannot be read: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// It breaks rules; the message has a line for each.
    #[error("{}", document::lines(.0))]
    Invalid(Vec<Problem>),
}

impl ModelError {
    /// One rule broken by the file as a whole.
    fn rule(file: &Path, field: &str, rule: impl Into<String>) -> ModelError {
        let (file, field, rule) = (file.to_owned(), field.to_owned(), rule.into());
        ModelError::Invalid(vec![Problem { file, line: None, field, rule }])
    }
}

/// What a scan found.
#[derive(Debug, Default)]
pub struct Scan {
    /// The good ones, by name, each name once.
    pub models: Vec<Model>,
    /// What is wrong, each with the model's name where there is one.
    pub errors: Vec<(Option<String>, ModelError)>,
}

/// Reads and checks one model directory; its name is the model's.
///
/// # Errors
/// [`ModelError`], which names everything that is wrong.
pub fn load(directory: &Path, limits: &Limits) -> Result<Model, ModelError> {
    let read = |path: &Path, source| ModelError::Read { path: path.to_owned(), source };
    // A path that ends in `..` has no name of its own, so ask the file system.
    let directory = std::fs::canonicalize(directory).map_err(|error| read(directory, error))?;
    let path = directory.join(MODEL_FILE);
    let name = directory.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    load_named(name, &path, limits)
}

fn load_named(name: &str, path: &Path, limits: &Limits) -> Result<Model, ModelError> {
    if let Some(rule) = broken_name_rule(name) {
        return Err(ModelError::rule(path, "the directory's name", rule));
    }
    let read = |source| ModelError::Read { path: path.to_owned(), source };
    let text = document::read_text(path).map_err(read)?;
    parse(name, path, &text, limits)
}

/// Checks the text of the `model.toml` at `path` for the model called `name`.
///
/// # Errors
/// As [`load`].
pub fn parse(name: &str, path: &Path, text: &str, limits: &Limits) -> Result<Model, ModelError> {
    let mut document = Document::new(path, text);
    let model = read::check(name, path, limits, &mut document);
    match (model, document.into_problems()) {
        (Some(model), problems) if problems.is_empty() => Ok(model),
        (_, problems) => Err(ModelError::Invalid(problems)),
    }
}

/// Reads all models of all roots; one that is bad does not stop the others.
pub fn scan_each(roots: &[PathBuf], limits: &Limits) -> Scan {
    let mut scan = Scan::default();
    let mut models: BTreeMap<String, (Model, PathBuf)> = BTreeMap::new();
    for root in roots {
        let directories = match model_directories(root) {
            Ok(directories) => directories,
            Err(error) => {
                scan.errors.push((None, error));
                continue;
            }
        };
        for name in directories {
            let path = root.join(&name).join(MODEL_FILE);
            let name = name.to_string_lossy().into_owned();
            if let Some((_, first)) = models.get(&name) {
                let rule = format!("must be unique, {} has it too", first.display());
                let error = ModelError::rule(&path, "the directory's name", rule);
                scan.errors.push((None, error));
            } else if models.len() >= limits.models_max as usize {
                let rule = format!("is one more model than limits.models_max = {}", models.len());
                scan.errors.push((Some(name), ModelError::rule(&path, "", rule)));
            } else {
                match load_named(&name, &path, limits) {
                    Ok(model) => drop(models.insert(name, (model, path))),
                    Err(error) => scan.errors.push((Some(name), error)),
                }
            }
        }
    }
    scan.models = models.into_values().map(|(model, _)| model).collect();
    scan
}

/// Reads all models of all roots, sorted by name.
///
/// # Errors
/// Everything that is wrong with any of them, or the first root or file that cannot be read.
pub fn scan(roots: &[PathBuf], limits: &Limits) -> Result<Vec<Model>, ModelError> {
    let Scan { models, errors } = scan_each(roots, limits);
    let mut problems = Vec::new();
    for (_, error) in errors {
        match error {
            ModelError::Read { .. } => return Err(error),
            ModelError::Invalid(broken) => problems.extend(broken),
        }
    }
    if problems.is_empty() { Ok(models) } else { Err(ModelError::Invalid(problems)) }
}

/// The names of the root's subdirectories with a model.toml, sorted.
fn model_directories(root: &Path) -> Result<Vec<OsString>, ModelError> {
    let read = |source| ModelError::Read { path: root.to_owned(), source };
    let mut names = Vec::new();
    for (index, entry) in std::fs::read_dir(root).map_err(read)?.enumerate() {
        if index >= ENTRIES_MAX {
            let rule = format!("must have at most {ENTRIES_MAX} entries as a directory of models");
            return Err(ModelError::rule(root, "", rule));
        }
        let name = entry.map_err(read)?.file_name();
        // A link that leads nowhere is there too, and says so when it is read.
        if std::fs::symlink_metadata(root.join(&name).join(MODEL_FILE)).is_ok() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}
