//! Reading devices through NVML.

use std::fmt;

use nvml_wrapper::Nvml;
use nvml_wrapper::enum_wrappers::device::ComputeMode as NvmlComputeMode;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::struct_wrappers::device::ProcessInfo;

use super::{ComputeMode, Device, Inventory, Process, Usage, Version, sm_count};

/// Times that a list of processes is asked for again when one came in between.
const RETRY_COUNT: u32 = 5;

/// NVML, loaded.
pub struct Reader {
    nvml: Nvml,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reader")
    }
}

impl Reader {
    /// Loads NVML.
    ///
    /// # Errors
    /// Why that cannot be: no library, no driver, or one that does not fit the library.
    pub fn open() -> Result<Reader, String> {
        let nvml = Nvml::init().map_err(|error| match error {
            NvmlError::LibloadingError(source) => {
                format!("NVML, which comes with NVIDIA's driver, cannot be loaded: {source}")
            }
            error => format!("NVML cannot start: {error}"),
        })?;
        Ok(Reader { nvml })
    }

    /// Everything, now.
    pub fn inventory(&self) -> Inventory {
        let count = match self.nvml.device_count() {
            Ok(0) => return Inventory::none("NVML finds no device"),
            Ok(count) => count,
            Err(error) => return Inventory::none(format!("NVML cannot count devices: {error}")),
        };
        let mut inventory = Inventory {
            driver: self.nvml.sys_driver_version().ok(),
            cuda_version: self.nvml.sys_cuda_driver_version().ok().and_then(cuda_version),
            ..Inventory::default()
        };
        for index in 0..count {
            match self.device(index) {
                Ok(device) => inventory.devices.push(device),
                Err(error) => inventory.problems.push(format!("device {index}: {error}")),
            }
        }
        if inventory.devices.is_empty() {
            inventory.reason_if_none = Some(inventory.problems.join("; "));
        }
        inventory
    }

    /// What is used of the device with this UUID.
    ///
    /// # Errors
    /// What NVML says.
    pub fn usage(&self, uuid: &str) -> Result<Usage, String> {
        let read = || usage(&self.nvml.device_by_uuid(uuid)?);
        read().map_err(|error| format!("device {uuid}: {error}"))
    }

    fn device(&self, index: u32) -> Result<Device, NvmlError> {
        let device = self.nvml.device_by_index(index)?;
        let capability = device.cuda_compute_capability()?;
        let number = |number: i32| u32::try_from(number).unwrap_or(0);
        let compute_capability = Version::new(number(capability.major), number(capability.minor));
        // Drivers that cannot count cores say so; then the count stays unknown.
        let cores = device.num_cores().ok();
        Ok(Device {
            index,
            uuid: device.uuid()?,
            name: device.name()?,
            memory_bytes: device.memory_info()?.total,
            sm_count: cores.and_then(|cores| sm_count(cores, compute_capability)),
            compute_capability,
            // Devices without MIG say that they do not support the question.
            mig: device.mig_mode().is_ok_and(|mode| mode.current != 0),
            compute_mode: match device.compute_mode()? {
                NvmlComputeMode::Default => ComputeMode::Default,
                NvmlComputeMode::ExclusiveProcess | NvmlComputeMode::ExclusiveThread => {
                    ComputeMode::ExclusiveProcess
                }
                NvmlComputeMode::Prohibited => ComputeMode::Prohibited,
            },
            usage: usage(&device)?,
        })
    }
}

fn cuda_version(number: i32) -> Option<Version> {
    u32::try_from(number).ok().filter(|number| *number > 0).map(Version::of_cuda)
}

fn usage(device: &nvml_wrapper::Device<'_>) -> Result<Usage, NvmlError> {
    let memory_bytes = device.memory_info()?.used;
    // Memory is known where processes are not, as in a container without the host's processes.
    let plain = listed(|| device.running_compute_processes()).unwrap_or_default();
    let mps = listed(|| device.mps_running_compute_processes()).unwrap_or_default();
    let is_mps = |info: &ProcessInfo| mps.iter().any(|client| client.pid == info.pid);
    let process = |info: &ProcessInfo| Process {
        pid: info.pid,
        memory_bytes: match info.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        },
        mps: is_mps(info),
    };
    let mut processes: Vec<Process> = plain.iter().chain(&mps).map(process).collect();
    processes.sort_by_key(|process| process.pid);
    processes.dedup_by_key(|process| process.pid);
    Ok(Usage { memory_bytes, processes })
}

/// A list whose length NVML is asked for first: it may have grown in between.
fn listed<T>(read: impl Fn() -> Result<Vec<T>, NvmlError>) -> Result<Vec<T>, NvmlError> {
    let mut tries = 0;
    loop {
        match read() {
            Err(NvmlError::InsufficientSize(_)) if tries < RETRY_COUNT => tries += 1,
            done => return done,
        }
    }
}
