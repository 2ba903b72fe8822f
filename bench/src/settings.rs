//! What a daemon of ours is told: its gpulets, and how it waits.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::error::{Doing, Error};
use crate::place::Place;

/// Polling before sleeping, as the daemon's default has it.
pub const SPIN_US: u32 = 20;

/// How long the daemon polls before it sleeps.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub enum Spin {
    /// So many microseconds; zero: it sleeps at once.
    Micros(u32),
    /// Spelt "always": it never sleeps.
    Word(&'static str),
}

/// Never sleep.
pub const ALWAYS: Spin = Spin::Word("always");

/// How gpulets hold their shares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Held {
    /// Threads on CPUs of their own.
    Cpu,
    /// Percentages of the GPU's MPS.
    Mps,
    /// Green contexts of the GPU.
    Green,
    /// Green contexts of a process that is a client of the GPU's MPS, at 100 %.
    GreenMps,
    /// Not at all: batches take a stated time, in a process for each gpulet, as under mps.
    Replay,
    /// The same in one process for all gpulets of a device, as with green contexts.
    ReplaySplit,
}

impl Held {
    /// As command lines have it.
    pub fn word(self) -> &'static str {
        match self {
            Held::Cpu => "cpu",
            Held::Mps => "mps",
            Held::Green => "green",
            Held::GreenMps => "green-mps",
            Held::Replay => "replay",
            Held::ReplaySplit => "replay-split",
        }
    }

    /// As gpuletd.toml has it.
    fn mechanism(self) -> &'static str {
        match self {
            Held::GreenMps => "green",
            Held::Replay | Held::ReplaySplit => "replay",
            other => other.word(),
        }
    }

    /// Whether batches run on a GPU.
    pub fn on_gpu(self) -> bool {
        matches!(self, Held::Mps | Held::Green | Held::GreenMps)
    }

    /// Whether it takes a GPU's MPS.
    pub fn under_mps(self) -> bool {
        matches!(self, Held::Mps | Held::GreenMps)
    }

    /// Whether batches only take time.
    pub fn replays(self) -> bool {
        matches!(self, Held::Replay | Held::ReplaySplit)
    }

    /// Whether all gpulets of a device are in one process, which changes their shares itself.
    pub fn splits(self) -> bool {
        matches!(self, Held::Green | Held::GreenMps | Held::ReplaySplit)
    }
}

/// A gpulet.
#[derive(Clone, Debug)]
pub struct Gpulet {
    /// Unique.
    pub name: String,
    /// How it holds its share.
    pub held: Held,
    /// 1 to 100.
    pub share_pct: u8,
    /// The GPU, where it is one's.
    pub device: u32,
    /// Those that it has; all there are, without.
    pub models: Option<Vec<String>>,
}

impl Gpulet {
    /// One with nothing to do: built-in null models are answered by the dispatcher.
    pub fn idle() -> Gpulet {
        Gpulet::of(Held::Replay, 1)
    }

    /// The only one, with all models, on the first GPU if it is on one.
    pub fn of(held: Held, share_pct: u8) -> Gpulet {
        Gpulet { name: "gpulet0".to_owned(), held, share_pct, device: 0, models: None }
    }

    fn raw<'a>(&'a self, profiles: &'a Path) -> RawGpulet<'a> {
        let device = self.held.on_gpu() || self.held == Held::ReplaySplit;
        RawGpulet {
            name: &self.name,
            mechanism: self.held.mechanism(),
            share_pct: self.share_pct,
            device: device.then_some(self.device),
            profiles: self.held.replays().then_some(profiles),
            models: self.models.as_deref(),
        }
    }
}

/// What a daemon is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How it waits.
    pub spin: Spin,
    /// After which a batch is taken to hang, where that is not the daemon's default.
    pub hang_timeout_ms: Option<u32>,
    /// Where its models run.
    pub gpulets: Vec<Gpulet>,
}

impl Settings {
    /// A daemon that waits as it does by default.
    pub fn of(gpulets: Vec<Gpulet>) -> Settings {
        Settings { spin: Spin::Micros(SPIN_US), hang_timeout_ms: None, gpulets }
    }

    /// Writes gpuletd.toml, in one step: a daemon may be reading it. Returns its path.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn write(&self, place: &Place) -> Result<PathBuf, Error> {
        let (folder, profiles) = (place.folder(), place.profiles());
        let config = RawConfig {
            socket: &folder.join("gpuletd.sock"),
            models: [&place.models()],
            spin_us: self.spin,
            hang_timeout_ms: self.hang_timeout_ms,
            limits: RawLimits {
                slot_bytes_max: 1 << 30,
                region_bytes_max: 4 << 30,
                region_bytes_total_max: 8 << 30,
            },
            mps: RawMps {
                directory: &folder.join("mps"),
                green: self.gpulets.iter().any(|gpulet| gpulet.held == Held::GreenMps),
            },
            cuda: RawCuda { kernel_cache: &folder.join("kernels") },
            gpulet: self.gpulets.iter().map(|gpulet| gpulet.raw(&profiles)).collect(),
        };
        let text = toml::to_string(&config).map_err(|why| Error::failed("daemon config", why))?;
        let (path, next) = (folder.join("gpuletd.toml"), folder.join("gpuletd.toml.next"));
        fs::write(&next, text)
            .and_then(|()| fs::rename(next, &path))
            .doing("writing the daemon's config")?;
        Ok(path)
    }
}

#[derive(Debug, Serialize)]
struct RawConfig<'a> {
    socket: &'a Path,
    models: [&'a Path; 1],
    spin_us: Spin,
    #[serde(skip_serializing_if = "Option::is_none")]
    hang_timeout_ms: Option<u32>,
    limits: RawLimits,
    mps: RawMps<'a>,
    cuda: RawCuda<'a>,
    gpulet: Vec<RawGpulet<'a>>,
}

#[derive(Debug, Serialize)]
struct RawMps<'a> {
    directory: &'a Path,
    green: bool,
}

#[derive(Debug, Serialize)]
struct RawCuda<'a> {
    kernel_cache: &'a Path,
}

#[derive(Debug, Serialize)]
struct RawLimits {
    slot_bytes_max: u64,
    region_bytes_max: u64,
    region_bytes_total_max: u64,
}

#[derive(Debug, Serialize)]
struct RawGpulet<'a> {
    name: &'a str,
    mechanism: &'static str,
    share_pct: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    profiles: Option<&'a Path>,
    #[serde(skip_serializing_if = "Option::is_none")]
    models: Option<&'a [String]>,
}
