//! What a device supports, and why not.

use std::path::Path;

use super::{ComputeMode, Device, Inventory, Version};
use crate::config::{Config, DeviceName, Mechanism};

/// MPS on older ones has no shares.
const MPS_CAPABILITY: Version = Version::new(7, 0);
/// Green contexts split the multiprocessors of these and later.
const GREEN_CAPABILITY: Version = Version::new(6, 0);
/// The first CUDA with green contexts.
const GREEN_CUDA: Version = Version::new(12, 4);

/// Why a gpulet cannot be held.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no device at all.
    #[error("device {name} is not there: {reason}")]
    None {
        /// As the configuration names it.
        name: DeviceName,
        /// What NVML says.
        reason: String,
    },
    /// There are others.
    #[error("device {name} is not there, but {there}")]
    Unknown {
        /// As the configuration names it.
        name: DeviceName,
        /// Those there are.
        there: String,
    },
    /// Instances of MIG are devices of their own.
    #[error("device {index} is cut by MIG: nvidia-smi -i {index} -mig 0 makes it whole")]
    Mig {
        /// Which device.
        index: u32,
    },
    /// Nobody may compute there.
    #[error("device {index} is in compute mode prohibited: nvidia-smi -i {index} -c 0 opens it")]
    Prohibited {
        /// Which device.
        index: u32,
    },
    /// An old device.
    #[error("device {index} has compute capability {have}, mechanism {mechanism:?} needs {need}")]
    Capability {
        /// Which device.
        index: u32,
        /// Its own.
        have: Version,
        /// As the configuration calls it.
        mechanism: &'static str,
        /// The least that does.
        need: Version,
    },
    /// An old driver.
    #[error("the driver has CUDA {have}, mechanism \"green\" needs {GREEN_CUDA}")]
    Driver {
        /// Its version, or that it does not tell.
        have: String,
    },
    /// Part of the driver's packages that is often not installed.
    #[error("mechanism \"mps\" needs MPS's control program: {reason}")]
    NoControl {
        /// Where it was looked for.
        reason: String,
    },
    /// What gpulets may take adds up to more than there is.
    #[error("memory_mib of gpulets on device {index} adds up to {sum_mib}, it has {have_mib}")]
    Memory {
        /// Which device.
        index: u32,
        /// Of all its gpulets.
        sum_mib: u64,
        /// Of the device.
        have_mib: u64,
    },
}

impl Inventory {
    /// The device that the configuration means.
    ///
    /// # Errors
    /// [`Refusal::None`] or [`Refusal::Unknown`].
    pub fn find(&self, name: &DeviceName) -> Result<&Device, Refusal> {
        let is_it = |device: &&Device| match name {
            DeviceName::Index(index) => device.index == *index,
            DeviceName::Uuid(uuid) => device.uuid.eq_ignore_ascii_case(uuid),
        };
        self.devices.iter().find(is_it).ok_or_else(|| match &self.reason_if_none {
            Some(reason) => Refusal::None { name: name.clone(), reason: reason.clone() },
            None => {
                let one = |device: &Device| format!("{} ({})", device.index, device.uuid);
                let there: Vec<String> = self.devices.iter().map(one).collect();
                Refusal::Unknown { name: name.clone(), there: there.join(", ") }
            }
        })
    }

    /// Whether `device` can hold gpulets of mechanism `mps`. `control` is MPS's control program, or
    /// why there is none.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn supports_mps(
        &self,
        device: &Device,
        control: Result<&Path, &str>,
    ) -> Result<(), Refusal> {
        whole(device)?;
        capable(device, "mps", MPS_CAPABILITY)?;
        control.map(drop).map_err(|reason| Refusal::NoControl { reason: reason.to_owned() })
    }

    /// Whether `device` can hold gpulets of mechanism `green`.
    ///
    /// # Errors
    /// Why it cannot.
    pub fn supports_green(&self, device: &Device) -> Result<(), Refusal> {
        whole(device)?;
        capable(device, "green", GREEN_CAPABILITY)?;
        match self.cuda_version {
            Some(have) if have >= GREEN_CUDA => Ok(()),
            Some(have) => Err(Refusal::Driver { have: have.to_string() }),
            None => Err(Refusal::Driver { have: "of an unknown version".to_owned() }),
        }
    }

    /// Whether every gpulet of the configuration can be held; what cannot is named with its gpulet.
    pub fn check(&self, config: &Config, control: Result<&Path, &str>) -> Vec<(String, Refusal)> {
        let mut refusals = Vec::new();
        for gpulet in &config.gpulets {
            let Some(name) = gpulet.mechanism.device() else { continue };
            let held = self.find(name).and_then(|device| {
                let green = matches!(gpulet.mechanism, Mechanism::Green { .. });
                if green {
                    self.supports_green(device)?;
                }
                if !green || config.mps.green {
                    self.supports_mps(device, control)?;
                }
                memory(config, name, device)
            });
            if let Err(refusal) = held {
                refusals.push((gpulet.name.clone(), refusal));
            }
        }
        refusals
    }
}

fn whole(device: &Device) -> Result<(), Refusal> {
    let index = device.index;
    if device.mig {
        Err(Refusal::Mig { index })
    } else if device.compute_mode == ComputeMode::Prohibited {
        Err(Refusal::Prohibited { index })
    } else {
        Ok(())
    }
}

fn capable(device: &Device, mechanism: &'static str, need: Version) -> Result<(), Refusal> {
    let (index, have) = (device.index, device.compute_capability);
    if have < need {
        return Err(Refusal::Capability { index, have, mechanism, need });
    }
    Ok(())
}

fn memory(config: &Config, name: &DeviceName, device: &Device) -> Result<(), Refusal> {
    let here = config.gpulets.iter().filter(|it| it.mechanism.device() == Some(name));
    let sum_mib = here.filter_map(|it| it.memory_bytes).map(|bytes| bytes >> 20).sum();
    let (index, have_mib) = (device.index, device.memory_bytes >> 20);
    if sum_mib > have_mib {
        return Err(Refusal::Memory { index, sum_mib, have_mib });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::Usage;
    use super::*;

    const UUID: &str = "GPU-8f0e3a21-77b4-4c1d-9e52-0123456789ab";

    fn device() -> Device {
        Device {
            index: 0,
            uuid: UUID.to_owned(),
            name: "NVIDIA H100 80GB HBM3".to_owned(),
            memory_bytes: 80 << 30,
            sm_count: Some(132),
            compute_capability: Version::new(9, 0),
            mig: false,
            compute_mode: ComputeMode::Default,
            usage: Usage::default(),
        }
    }

    fn inventory() -> Inventory {
        Inventory {
            driver: Some("580.159.04".to_owned()),
            cuda_version: Some(Version::new(13, 0)),
            devices: vec![device()],
            ..Inventory::default()
        }
    }

    fn control() -> Result<&'static Path, &'static str> {
        Ok(Path::new("/usr/bin/nvidia-cuda-mps-control"))
    }

    /// What a device that `change` is made of says, about mps and about green.
    fn said(change: impl FnOnce(&mut Device, &mut Inventory)) -> (String, String) {
        let (mut device, mut inventory) = (device(), inventory());
        change(&mut device, &mut inventory);
        let text =
            |held: Result<(), Refusal>| held.map_or_else(|it| it.to_string(), |()| "".into());
        (text(inventory.supports_mps(&device, control())), text(inventory.supports_green(&device)))
    }

    #[test]
    fn what_is_not_supported_is_said() {
        assert_eq!(said(|_, _| ()), (String::new(), String::new()));
        let mig = "device 0 is cut by MIG: nvidia-smi -i 0 -mig 0 makes it whole".to_owned();
        assert_eq!(said(|device, _| device.mig = true), (mig.clone(), mig));
        let (mps, green) = said(|device, _| device.compute_mode = ComputeMode::Prohibited);
        assert!(mps.contains("is in compute mode prohibited"), "{mps}");
        assert_eq!(mps, green);
        let (mps, green) = said(|device, _| device.compute_capability = Version::new(6, 1));
        assert_eq!(mps, "device 0 has compute capability 6.1, mechanism \"mps\" needs 7.0");
        assert_eq!(green, "");
        let (mps, green) = said(|_, it| it.cuda_version = Some(Version::new(12, 3)));
        assert_eq!(mps, "");
        assert_eq!(green, "the driver has CUDA 12.3, mechanism \"green\" needs 12.4");
        let (_, green) = said(|_, it| it.cuda_version = None);
        assert!(green.contains("has CUDA of an unknown version"), "{green}");
        let held = inventory().supports_mps(&device(), Err("no file in PATH"));
        let text = held.unwrap_err().to_string();
        assert!(text.ends_with("control program: no file in PATH"), "{text}");
    }

    #[test]
    fn devices_are_found_by_both_names() {
        let inventory = inventory();
        assert_eq!(inventory.find(&DeviceName::Index(0)).unwrap().uuid, UUID);
        assert_eq!(inventory.find(&DeviceName::Uuid(UUID.to_owned())).unwrap().index, 0);
        let text = inventory.find(&DeviceName::Index(1)).unwrap_err().to_string();
        assert_eq!(text, format!("device 1 is not there, but 0 ({UUID})"));
        let none = Inventory::none("no driver");
        let text = none.find(&DeviceName::Index(0)).unwrap_err().to_string();
        assert_eq!(text, "device 0 is not there: no driver");
    }

    fn checked(text: &str, inventory: &Inventory) -> Vec<String> {
        let config = Config::parse(Path::new("/gpuletd.toml"), text).unwrap();
        let refusals = inventory.check(&config, control());
        refusals.into_iter().map(|(gpulet, refusal)| format!("{gpulet}: {refusal}")).collect()
    }

    #[test]
    fn whole_configurations_are_checked() {
        let gpulet = |name: &str, mechanism: &str, rest: &str| {
            format!("[[gpulet]]\nname='{name}'\nmechanism='{mechanism}'\nshare_pct=10\n{rest}\n")
        };
        assert!(checked("", &Inventory::none("no driver")).is_empty());
        let two = gpulet("a", "mps", "device=0\nmemory_mib=80000")
            + &gpulet("b", "mps", "device=0\nmemory_mib=2000")
            + &gpulet("c", "mps", "device=1")
            + &gpulet("d", "cpu", "");
        let said = checked(&two, &inventory());
        assert_eq!(
            said,
            [
                "a: memory_mib of gpulets on device 0 adds up to 82000, it has 81920".to_owned(),
                "b: memory_mib of gpulets on device 0 adds up to 82000, it has 81920".to_owned(),
                format!("c: device 1 is not there, but 0 ({UUID})"),
            ]
        );
        let old = Inventory {
            devices: vec![Device { compute_capability: Version::new(6, 0), ..device() }],
            ..inventory()
        };
        let green = gpulet("g", "green", "device=0");
        assert!(checked(&green, &old).is_empty());
        let said = checked(&format!("{green}[mps]\ngreen=true\n"), &old);
        assert!(said[0].contains("mechanism \"mps\" needs 7.0"), "{said:?}");
    }
}
