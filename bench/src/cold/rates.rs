//! How fast bytes come from the disk, and how fast they go to a device.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use gpulet_daemon::cuda::driver::{CudaError, Device, Stream};
use gpulet_daemon::cuda::memory::{DeviceMemory, Pinned};
use gpulet_daemon::model::{Model, Source};
use gpulet_daemon::store;
use rustix::fs::{Advice, fadvise};

use crate::error::{Doing, Error};
use crate::stats::median;

/// Bytes that are copied at a time, and how often.
const COPY_BYTES: usize = 256 << 20;
const COPIES: usize = 5;

/// A model's file.
#[derive(Debug)]
pub struct Disk {
    path: Option<PathBuf>,
    bytes: u64,
    /// Why its pages cannot be dropped.
    refused: Option<String>,
}

impl Disk {
    /// The archive of a model; nothing where it is built in.
    pub fn of(model: &Model) -> Disk {
        let path = match &model.source {
            Source::File(path) => Some(path.clone()),
            Source::Builtin(_) => None,
        };
        Disk { path, bytes: model.stamp.1, refused: None }
    }

    /// Of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Drops its pages from the kernel's cache, where that is allowed.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn forget(&mut self) -> Result<(), Error> {
        let Some(path) = &self.path else { return Ok(()) };
        let file = File::open(path).doing("opening the archive")?;
        // Pages that are not written yet are not dropped; a file that cannot be written has none.
        let _ = file.sync_all();
        self.refused = fadvise(&file, 0, None, Advice::DontNeed).err().map(|why| why.to_string());
        Ok(())
    }

    /// Seconds that an executor's way of reading takes, from the disk.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&mut self) -> Result<f64, Error> {
        self.forget()?;
        let Some(path) = &self.path else { return Ok(0.0) };
        let begin = Instant::now();
        store::read(path, self.bytes).map_err(|why| Error::failed("reading the archive", why))?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// For people.
    pub fn say(&self) -> String {
        match &self.refused {
            Some(why) => format!("its pages stay in memory: {why}"),
            None => "its pages are dropped from memory before".to_owned(),
        }
    }
}

/// Bytes a second from pinned memory to a device.
#[derive(Debug)]
pub struct CopyRate(f64);

impl CopyRate {
    /// Measures it in a process of its own, so that no context of ours stays on the device.
    ///
    /// # Errors
    /// What CUDA says.
    pub fn measure() -> Result<CopyRate, Error> {
        let program = std::env::current_exe().doing("finding our own executable")?;
        let output = Command::new(program).arg("copy-rate").output().doing("measuring copies")?;
        let text = String::from_utf8_lossy(&output.stdout);
        match text.trim().parse() {
            Ok(rate) if output.status.success() => Ok(CopyRate(rate)),
            _ => Err(Error::failed("measuring copies", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// What so many bytes take.
    pub fn seconds(&self, bytes: u64) -> f64 {
        bytes as f64 / self.0
    }

    /// For people.
    pub fn say(&self) -> String {
        format!("copies to the device: {:.1} GB/s", self.0 / 1e9)
    }
}

/// Prints the rate of the first device; the other process's part.
///
/// # Errors
/// What CUDA says.
pub fn print_copy_rate() -> Result<(), Error> {
    let failed = |why: String| Error::failed("copies to the device", why);
    let _device = Device::open(0).map_err(|why| failed(why.to_string()))?;
    let rate = copy_rate().map_err(|why| failed(why.to_string()))?;
    println!("{rate}");
    Ok(())
}

fn copy_rate() -> Result<f64, CudaError> {
    let (host, device) = (Pinned::new(COPY_BYTES)?, DeviceMemory::new(COPY_BYTES)?);
    let stream = Stream::new()?;
    let mut rates = Vec::new();
    // One more warms up.
    for _ in 0..=COPIES {
        let begin = Instant::now();
        // SAFETY: both are so long, and live until the stream is done.
        unsafe { stream.copy_in(host.data(), device.address(), COPY_BYTES) }?;
        stream.wait()?;
        rates.push(COPY_BYTES as f64 / begin.elapsed().as_secs_f64());
    }
    Ok(median(rates.drain(1..)))
}
