//! What the benches of several gpulets begin with: gpulets of equal shares, each busy with a model.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Value, json};

use crate::daemon::{self, Daemon};
use crate::error::Error;
use crate::place::{Place, name_of};
use crate::settings::{Gpulet, Held, Settings};

/// The part of the command line that says what is where.
#[derive(Debug, Args)]
pub struct Given {
    /// Folder of a model, with its model.toml
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// How the gpulets hold their shares
    #[arg(long, value_enum, default_value_t = Held::Mps)]
    pub mechanism: Held,
    /// GPUs by index, each cut alike
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub devices: Vec<u32>,
    /// Gpulets of each GPU, of equal shares of all of it
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=32))]
    gpulets: Option<u32>,
    /// Milliseconds that a batch takes where batches only take time
    #[arg(long, default_value_t = 1.0)]
    replay_ms: f64,
    /// The gpuletd to start [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    daemon: Option<PathBuf>,
    /// Keep the daemon's log in this file
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
    /// Write JSON to this file as well ("-": to standard output, instead of the table)
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
}

/// Which gpulets have a model to themselves, so that it is known who answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copies {
    /// Each gpulet.
    EachGpulet,
    /// All of a GPU have one together.
    EachDevice,
}

/// What is set up, and not started yet.
#[derive(Debug)]
pub struct Scene {
    /// Models and config.
    pub place: Place,
    /// As the daemon will be told; those of a device one behind the other.
    pub settings: Settings,
    /// The name of the model, without what tells its copies apart.
    pub name: String,
    /// Copies of the model, in the order of the gpulets.
    pub models: Vec<String>,
    program: PathBuf,
}

impl Given {
    /// Makes models and gpulets, so many on each device unless the command line says otherwise.
    /// A batch has `rows` rows at the most.
    ///
    /// # Errors
    /// What is missing, or cannot be together.
    pub fn scene(&self, copies: Copies, gpulets: u32, rows: u32) -> Result<Scene, Error> {
        let program = daemon::program(self.daemon.as_deref())?;
        let place = Place::logging_to(self.log.as_deref())?;
        let count = self.gpulets.unwrap_or(gpulets);
        if self.mechanism == Held::Cpu && self.devices.len() > 1 {
            return Err(Error::failed("--devices", "there is one CPU"));
        }
        let replay_ns = (self.replay_ms * 1e6).max(1.0) as u64;
        let name = name_of(&self.model)?;
        let (mut settings, mut models) = (Settings::of(Vec::new()), Vec::new());
        for &device in &self.devices {
            for index in 0..count {
                if copies == Copies::EachGpulet || index == 0 {
                    let copy = format!("{name}-{device}-{index}");
                    place.add_as(&copy, &self.model, Some(rows))?;
                    place.add_profile(&copy, rows, replay_ns)?;
                    models.push(copy);
                }
                settings.gpulets.push(Gpulet {
                    name: format!("gpulet{device}-{index}"),
                    held: self.mechanism,
                    share_pct: u8::try_from(100 / count).unwrap_or(1),
                    device,
                    models: models.last().map(|model| vec![model.clone()]),
                });
            }
        }
        Ok(Scene { place, settings, name, models, program })
    }

    /// For a report.
    pub fn to_json(&self, scene: &Scene) -> Value {
        json!({
            "model": scene.name,
            "mechanism": self.mechanism.word(),
            "devices": self.devices,
            "gpulets": scene.settings.gpulets.len(),
        })
    }
}

impl Scene {
    /// Starts the daemon.
    ///
    /// # Errors
    /// With the end of its log.
    pub fn start(&self) -> Result<Daemon, Error> {
        Daemon::start(&self.program, &self.place, None, &self.settings)
    }
}
