//! `gpuletctl devices`: the GPUs there are, and which mechanisms can cut them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use super::table::{bytes, table};
use super::{CtlError, Output, print, print_json};
use crate::config::DEFAULT_MPS_CONTROL;
use crate::device::{Device, Inventory, Version};
use crate::mps;

/// For MPS's control program to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show the GPUs and what they support
#[derive(Debug, Args)]
pub(super) struct Devices {
    /// MPS's control program, as in the configuration's mps.control
    #[arg(long, value_name = "PROGRAM", default_value = DEFAULT_MPS_CONTROL)]
    mps_control: PathBuf,
    #[command(flatten)]
    output: Output,
}

/// What is found.
#[derive(Debug, Serialize)]
struct Found {
    driver: Option<String>,
    cuda_version: Option<Version>,
    mps: Mps,
    reason_if_none: Option<String>,
    problems: Vec<String>,
    devices: Vec<Entry>,
}

/// MPS's control program.
#[derive(Debug, Serialize)]
struct Mps {
    control: Option<PathBuf>,
    version: Option<Version>,
    reason_if_none: Option<String>,
}

#[derive(Debug, Serialize)]
struct Entry {
    #[serde(flatten)]
    device: Device,
    mps: Support,
    green: Support,
}

/// Whether a mechanism can cut a device.
#[derive(Debug, Serialize)]
struct Support {
    supported: bool,
    reason_if_not: Option<String>,
}

impl Devices {
    pub(super) fn run(&self) -> Result<(), CtlError> {
        let found = find(Inventory::read(), &self.mps_control);
        if self.output.json { print_json(&found) } else { print(&found.show()) }
    }
}

fn find(inventory: Inventory, control: &Path) -> Found {
    let control = mps::find_control(control);
    let program = control.as_deref().map_err(String::as_str);
    let support = |held: Result<(), crate::device::Refusal>| Support {
        supported: held.is_ok(),
        reason_if_not: held.err().map(|refusal| refusal.to_string()),
    };
    let entry = |device: &Device| Entry {
        device: device.clone(),
        mps: support(inventory.supports_mps(device, program)),
        green: support(inventory.supports_green(device)),
    };
    let devices = inventory.devices.iter().map(entry).collect();
    // One that cannot say it is shown without; it says more when it is used.
    let version = |program: &PathBuf| mps::control::version(program, PATIENCE).ok().flatten();
    Found {
        mps: Mps {
            version: control.as_ref().ok().and_then(version).map(Version::of_cuda),
            reason_if_none: control.as_ref().err().cloned(),
            control: control.ok(),
        },
        driver: inventory.driver,
        cuda_version: inventory.cuda_version,
        reason_if_none: inventory.reason_if_none,
        problems: inventory.problems,
        devices,
    }
}

impl Found {
    fn show(&self) -> String {
        if let Some(reason) = &self.reason_if_none {
            return format!("no devices: {reason}\n");
        }
        let or_dash = |version: &Option<Version>| version.map_or("-".to_owned(), String::from);
        let driver = self.driver.as_deref().unwrap_or("-");
        let mps = match (&self.mps.control, &self.mps.version) {
            (None, _) => "not installed".to_owned(),
            (Some(_), None) => "installed".to_owned(),
            (Some(_), Some(version)) => version.to_string(),
        };
        let mut text =
            format!("driver {driver}, CUDA {}, MPS {mps}\n\n", or_dash(&self.cuda_version));
        let rows: Vec<Vec<String>> = self.devices.iter().map(row).collect();
        let header = ["device", "name", "memory", "used", "SMs", "arch", "mode", "mps", "green"];
        text.push_str(&table(&header, &rows));
        text.push('\n');
        for Entry { device, mps, green } in &self.devices {
            text.push_str(&format!("{}: {}\n", device.index, device.uuid));
            let mut reasons = vec![&mps.reason_if_not, &green.reason_if_not];
            reasons.dedup();
            for reason in reasons.into_iter().flatten() {
                text.push_str(&format!("   {reason}\n"));
            }
            for process in &device.usage.processes {
                let memory = process.memory_bytes.map_or("-".to_owned(), bytes);
                let client = if process.mps { ", MPS client" } else { "" };
                text.push_str(&format!("   process {}: {memory}{client}\n", process.pid));
            }
        }
        for problem in &self.problems {
            text.push_str(&format!("\n{problem}\n"));
        }
        text
    }
}

fn row(entry: &Entry) -> Vec<String> {
    let Entry { device, mps, green } = entry;
    let yes = |support: &Support| if support.supported { "yes" } else { "no" }.to_owned();
    vec![
        device.index.to_string(),
        device.name.clone(),
        bytes(device.memory_bytes),
        bytes(device.usage.memory_bytes),
        device.sm_count.map_or("-".to_owned(), |count| count.to_string()),
        device.compute_capability.to_string(),
        if device.mig { "MIG".to_owned() } else { device.compute_mode.to_string() },
        yes(mps),
        yes(green),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{ComputeMode, Process, Usage};

    fn device(index: u32) -> Device {
        let processes = vec![
            Process { pid: 42, memory_bytes: Some(526 << 20), mps: true },
            Process { pid: 43, memory_bytes: None, mps: false },
        ];
        Device {
            index,
            uuid: format!("GPU-8f0e3a21-77b4-4c1d-9e52-00000000000{index}"),
            name: "NVIDIA H100".to_owned(),
            memory_bytes: 80 << 30,
            sm_count: Some(132),
            compute_capability: Version::new(9, 0),
            mig: index == 1,
            compute_mode: ComputeMode::Default,
            usage: Usage { memory_bytes: 1 << 30, processes },
        }
    }

    #[test]
    fn devices_are_shown() {
        let mut one = device(1);
        one.usage.processes.clear();
        let inventory = Inventory {
            driver: Some("580.159.04".to_owned()),
            cuda_version: Some(Version::new(13, 0)),
            devices: vec![device(0), one],
            reason_if_none: None,
            problems: vec!["device 2: fell off".to_owned()],
        };
        let text = find(inventory, Path::new("/none/control")).show();
        let expected = "\
driver 580.159.04, CUDA 13.0, MPS not installed

device  name         memory    used     SMs  arch  mode     mps  green
     0  NVIDIA H100  80.0 GiB  1.0 GiB  132   9.0  default  no   yes
     1  NVIDIA H100  80.0 GiB  1.0 GiB  132   9.0  MIG      no   no

0: GPU-8f0e3a21-77b4-4c1d-9e52-000000000000
   mechanism \"mps\" needs MPS's control program: /none/control is no program
   process 42: 526.0 MiB, MPS client
   process 43: -
1: GPU-8f0e3a21-77b4-4c1d-9e52-000000000001
   device 1 is cut by MIG: nvidia-smi -i 1 -mig 0 makes it whole

device 2: fell off
";
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(squeezed(&text), squeezed(expected), "{text}");
    }

    #[test]
    fn none_are_shown_with_their_reason() {
        let reason_if_none = Some("NVML cannot be loaded".to_owned());
        let found = find(Inventory { reason_if_none, ..Inventory::default() }, Path::new("x"));
        assert_eq!(found.show(), "no devices: NVML cannot be loaded\n");
        let json = serde_json::to_value(&found).unwrap();
        assert_eq!(json["reason_if_none"], "NVML cannot be loaded");
        assert_eq!(json["devices"], serde_json::json!([]));
    }
}
