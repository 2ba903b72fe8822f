//! Which GPUs there are, and what can be done with them.
//!
//! Everything comes from NVML, which is loaded when it is asked and creates no CUDA context: no GPU
//! fault can reach who asks. Where there is no NVML or no driver there are no devices, and a reason.

mod nvml;
mod support;

pub use self::nvml::Reader;
pub use self::support::Refusal;

use std::fmt;

use serde::Serialize;

/// All that NVML says at one time.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Inventory {
    /// The driver's version, such as `580.159.04`.
    pub driver: Option<String>,
    /// The newest CUDA that the driver has.
    pub cuda_version: Option<Version>,
    /// By index.
    pub devices: Vec<Device>,
    /// Why there are no devices.
    pub reason_if_none: Option<String>,
    /// What else could not be read: devices that do not answer.
    pub problems: Vec<String>,
}

/// One GPU.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Device {
    /// As nvidia-smi counts. CUDA may count differently: name devices to it by UUID.
    pub index: u32,
    /// `GPU-` and 36 digits and dashes.
    pub uuid: String,
    /// The product.
    pub name: String,
    /// All its memory.
    pub memory_bytes: u64,
    /// Streaming multiprocessors, reckoned from its cores; `None` where NVML does not count cores
    /// or the architecture is not known here. The driver itself says it exactly, to executors.
    pub sm_count: Option<u32>,
    /// CUDA's number of the architecture.
    pub compute_capability: Version,
    /// Whether it is cut into MIG instances.
    pub mig: bool,
    /// Who may use it.
    pub compute_mode: ComputeMode,
    /// What is used now.
    pub usage: Usage,
}

/// What is used of a device's memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// By everybody, the driver too.
    pub memory_bytes: u64,
    /// Those that compute there, by process id.
    pub processes: Vec<Process>,
}

/// A process with a CUDA context on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Process {
    /// In the process-id namespace of the host.
    pub pid: u32,
    /// Device memory; `None` where the driver does not tell.
    pub memory_bytes: Option<u64>,
    /// Whether it is a client of MPS.
    pub mps: bool,
}

/// Who may create a CUDA context on a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ComputeMode {
    /// Any number of processes.
    Default,
    /// One process, which may be an MPS server.
    ExclusiveProcess,
    /// Nobody.
    Prohibited,
}

impl fmt::Display for ComputeMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ComputeMode::Default => "default",
            ComputeMode::ExclusiveProcess => "exclusive process",
            ComputeMode::Prohibited => "prohibited",
        })
    }
}

/// A version of two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub struct Version {
    /// Before the dot.
    pub major: u32,
    /// Behind it.
    pub minor: u32,
}

impl Version {
    /// A version of these two.
    pub const fn new(major: u32, minor: u32) -> Version {
        Version { major, minor }
    }

    /// From CUDA's one number, such as 13010 for 13.1.
    pub fn of_cuda(number: u32) -> Version {
        Version::new(number / 1000, number % 1000 / 10)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl From<Version> for String {
    fn from(version: Version) -> String {
        version.to_string()
    }
}

impl Inventory {
    /// Asks NVML, once. Whoever asks again keeps a [`Reader`].
    pub fn read() -> Inventory {
        match Reader::open() {
            Ok(reader) => reader.inventory(),
            Err(reason) => Inventory::none(reason),
        }
    }

    fn none(reason: impl Into<String>) -> Inventory {
        Inventory { reason_if_none: Some(reason.into()), ..Inventory::default() }
    }
}

/// Multiprocessors from cores: NVML counts the latter only.
fn sm_count(cores: u32, compute_capability: Version) -> Option<u32> {
    let cores_per_sm = match (compute_capability.major, compute_capability.minor) {
        (6, 0) | (7, _) | (8, 0) => 64,
        (5, _) | (6, 1 | 2) | (8, _) | (9..=12, _) => 128,
        _ => return None,
    };
    let count = cores / cores_per_sm;
    (count > 0 && count * cores_per_sm == cores).then_some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiprocessors_follow_from_cores() {
        for (cores, major, minor, count) in [
            (16896, 9, 0, Some(132)),
            (6912, 8, 0, Some(108)),
            (10240, 8, 6, Some(80)),
            (5120, 7, 0, Some(80)),
            (21760, 12, 0, Some(170)),
            (16897, 9, 0, None),
            (0, 9, 0, None),
            (128, 13, 0, None),
        ] {
            assert_eq!(sm_count(cores, Version::new(major, minor)), count, "{cores} {major}");
        }
    }

    #[test]
    fn versions_are_ordered_and_read() {
        assert!(Version::new(12, 10) > Version::new(12, 4));
        assert_eq!(Version::of_cuda(13010), Version::new(13, 1));
        assert_eq!(Version::of_cuda(12040).to_string(), "12.4");
    }

    /// With a GPU or without: an answer, never a panic, and devices or a reason.
    #[test]
    fn an_inventory_has_devices_or_a_reason() {
        let inventory = Inventory::read();
        assert_eq!(inventory.devices.is_empty(), inventory.reason_if_none.is_some());
        for (place, device) in inventory.devices.iter().enumerate() {
            assert!(device.index as usize >= place, "{device:?}");
            assert!(device.uuid.starts_with("GPU-"), "{device:?}");
            assert!(device.usage.memory_bytes <= device.memory_bytes, "{device:?}");
        }
    }
}
