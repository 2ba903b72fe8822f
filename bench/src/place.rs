//! A folder of our own: models for a daemon, and its socket, config and log.

use std::fs;
use std::path::{Path, PathBuf};

use gpulet_daemon::model::Builtin;
use tempfile::TempDir;

use crate::error::{Doing, Error};

/// A request is a row, and all of it is one byte.
const BYTE_IN_BYTE_OUT: &str = "\n[[input]]\nname = \"x\"\ndtype = \"u8\"\nshape = [-1, 1]\n\n\
                                [[output]]\nname = \"y\"\ndtype = \"u8\"\nshape = [-1, 1]\n";

/// A folder with a place for models and one for a daemon's socket, config and log.
#[derive(Debug)]
pub struct Place {
    folder: TempDir,
    log: PathBuf,
}

impl Place {
    /// A fresh one, removed when dropped.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn new() -> Result<Place, Error> {
        Place::logging_to(None)
    }

    /// The same with the daemon's log elsewhere, where it stays.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn logging_to(log: Option<&Path>) -> Result<Place, Error> {
        let folder = tempfile::Builder::new().prefix("gpulet-bench-").tempdir();
        let folder = folder.doing("making a temporary folder")?;
        let log = log.map_or_else(|| folder.path().join("gpuletd.log"), Path::to_owned);
        let place = Place { folder, log };
        for folder in [place.models(), place.profiles()] {
            fs::create_dir(folder).doing("making a folder for models")?;
        }
        Ok(place)
    }

    /// All of it.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the daemon's log goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Where the daemon looks for models.
    pub fn models(&self) -> PathBuf {
        self.folder.path().join("models")
    }

    /// Where executors that only replay look for what models take.
    pub fn profiles(&self) -> PathBuf {
        self.folder.path().join("profiles")
    }

    /// Adds a built-in null model: one input of `payload_bytes` bytes, one output of one byte.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_null(&self, name: &str, payload_bytes: u64) -> Result<(), Error> {
        let text = format!(
            "builtin = \"null\"\nslo_ms = 1000.0\nmax_batch = 1\nwarmup_count = 1\n\n\
             [[input]]\nname = \"payload\"\ndtype = \"u8\"\nshape = [-1, {payload_bytes}]\n\n\
             [[output]]\nname = \"answer\"\ndtype = \"u8\"\nshape = [-1, 1]\n"
        );
        self.write(name, &text)
    }

    /// Adds a built-in model of one byte in and one out, which is said to take `replay_ns`.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_builtin(&self, name: &str, which: Builtin, replay_ns: u64) -> Result<(), Error> {
        let word = which.word();
        let head =
            format!("builtin = \"{word}\"\nslo_ms = 60000.0\nmax_batch = 1\nwarmup_count = 1\n");
        self.write(name, &(head + BYTE_IN_BYTE_OUT))?;
        self.add_profile(name, 1, replay_ns)
    }

    /// Adds a built-in echo whose batches, of a quarter of a GiB a row each way, fit no GPU there is.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_giant(&self, name: &str) -> Result<(), Error> {
        let tensor = |side: &str| {
            format!("\n[[{side}]]\nname = \"{side}\"\ndtype = \"u8\"\nshape = [-1, 268435456]\n")
        };
        let head = "builtin = \"echo\"\nslo_ms = 60000.0\nmax_batch = 1024\nwarmup_count = 1\n";
        self.write(name, &format!("{head}{}{}", tensor("input"), tensor("output")))
    }

    /// Adds the model in `folder` under a name, with another `max_batch` where one is given.
    ///
    /// # Errors
    /// What the kernel says; a model.toml that is none.
    pub fn add_as(&self, name: &str, folder: &Path, max_batch: Option<u32>) -> Result<(), Error> {
        let path = folder.join("model.toml");
        let reading = format!("reading {}", path.display());
        let text = fs::read_to_string(&path).doing(&reading)?;
        let mut model: toml::Table =
            toml::from_str(&text).map_err(|why| Error::failed(reading.clone(), why.message()))?;
        if let Some(max_batch) = max_batch {
            model.insert("max_batch".to_owned(), i64::from(max_batch).into());
        }
        if let Some(file) = model.get("file") {
            let file = file.as_str().ok_or_else(|| Error::failed(&reading, "file is no text"))?;
            let archive = fs::canonicalize(folder.join(file)).doing("finding the archive")?;
            let archive = archive.to_string_lossy().into_owned();
            model.insert("file".to_owned(), archive.into());
        }
        let text = toml::to_string(&model).map_err(|why| Error::failed(reading, why))?;
        self.write(name, &text)
    }

    /// Says what batches of a model take where they are replayed, however many rows they have.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn add_profile(&self, name: &str, max_batch: u32, batch_ns: u64) -> Result<(), Error> {
        let point =
            |rows| serde_json::json!({"rows": rows, "p50_ns": batch_ns, "p99_ns": batch_ns});
        let rows = [1, max_batch];
        let points: Vec<_> = rows[..if max_batch > 1 { 2 } else { 1 }].iter().map(point).collect();
        let text = serde_json::json!({"model": name, "points": points}).to_string();
        let path = self.profiles().join(format!("{name}.json"));
        fs::write(path, text).doing("writing a profile")
    }

    /// Takes a model away.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        fs::remove_dir_all(self.models().join(name)).doing("removing a model")
    }

    fn write(&self, name: &str, model_toml: &str) -> Result<(), Error> {
        let folder = self.models().join(name);
        fs::create_dir(&folder)
            .and_then(|()| fs::write(folder.join("model.toml"), model_toml))
            .doing("writing a model")
    }
}

/// What a model's folder is called, which is the model's name.
///
/// # Errors
/// When there is no such folder.
pub fn name_of(folder: &Path) -> Result<String, Error> {
    let folder = fs::canonicalize(folder).doing(&format!("model {}", folder.display()))?;
    let name = folder.file_name().and_then(|name| name.to_str());
    Ok(name.ok_or_else(|| Error::failed("model", "its folder has no name"))?.to_owned())
}
