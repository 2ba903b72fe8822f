//! The GPUs that gpulets are on: which they are, and the MPS daemon of each that needs one.
//!
//! A GPU is a fault domain. When one executor on it faults, the work of all of them is lost or will
//! be: so all are ended and started anew, once MPS says that it takes clients again. Executors on
//! other GPUs notice nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use mio::Waker;
use tracing::{error, info, warn};

use super::Server;
use crate::config::{Config, Gpulet, Mechanism};
use crate::device::Inventory;
use crate::executor::State;
use crate::mps::{MpsEvent, Settings, Supervisor};

/// How long MPS may take to end a client's work.
const TERMINATE_NS: u64 = 3_000_000_000;

/// A gpulet on a device that cannot hold it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceProblem {
    /// The device, or what it supports.
    #[error("gpulet {gpulet:?}: {rule}")]
    Gpulet {
        /// Which gpulet.
        gpulet: String,
        /// What is wrong.
        rule: String,
    },
    /// A thread for MPS.
    #[error("MPS: {0}")]
    Mps(#[from] io::Error),
}

/// Every GPU that gpulets are on, by UUID.
#[derive(Debug, Default)]
pub(super) struct Devices {
    /// UUIDs by the words of the config.
    names: BTreeMap<String, (u32, String)>,
    daemons: Vec<Daemon>,
}

/// One MPS daemon.
#[derive(Debug)]
struct Daemon {
    supervisor: Supervisor,
    /// It takes clients.
    ready: bool,
}

impl Devices {
    /// Finds the devices that the config names; none are needed where it names none. NVML takes tens of
    /// milliseconds to start, in which nobody is served: it is not asked for those that are `known`.
    pub(super) fn find(config: &Config, known: &Devices) -> Result<Devices, DeviceProblem> {
        Devices::find_by(config, known, Inventory::read)
    }

    fn find_by(
        config: &Config,
        known: &Devices,
        read: impl Fn() -> Inventory,
    ) -> Result<Devices, DeviceProblem> {
        let (mut devices, mut inventory) = (Devices::default(), None);
        for gpulet in config.gpulets.iter().filter(|it| needs_cuda(&it.mechanism)) {
            let problem =
                |rule: String| DeviceProblem::Gpulet { gpulet: gpulet.name.clone(), rule };
            let Some(name) = gpulet.mechanism.device() else { continue };
            let found = match known.names.get(&name.to_string()) {
                Some(found) => found.clone(),
                None => {
                    let inventory: &Inventory = inventory.get_or_insert_with(&read);
                    let found = inventory.find(name).map_err(|error| problem(error.to_string()))?;
                    (found.index, found.uuid.clone())
                }
            };
            devices.names.insert(name.to_string(), found);
        }
        Ok(devices)
    }

    /// The fault domain of a gpulet; `None` where its process is all there is of it.
    pub(super) fn domain(&self, gpulet: &Gpulet) -> Option<String> {
        if let Mechanism::Replay { device, .. } = &gpulet.mechanism {
            return device.as_ref().map(|device| format!("replay:{device}"));
        }
        let name = gpulet.mechanism.device()?;
        self.names.get(&name.to_string()).map(|(_, uuid)| uuid.clone())
    }

    /// What the process of a gpulet finds in its environment: its device alone, and MPS if its share
    /// is held by that.
    pub(super) fn environment(&self, config: &Config, gpulet: &Gpulet) -> Vec<(String, String)> {
        let Some(name) = gpulet.mechanism.device().filter(|_| needs_cuda(&gpulet.mechanism)) else {
            return Vec::new();
        };
        let Some((_, uuid)) = self.names.get(&name.to_string()) else { return Vec::new() };
        let share_pct = match &gpulet.mechanism {
            Mechanism::Mps { .. } => Some((gpulet.share_pct, gpulet.memory_bytes)),
            Mechanism::Green { .. } if config.mps.green => Some((100, None)),
            _ => None,
        };
        let settings = self.settings(config).into_iter().find(|it| it.devices.contains(uuid));
        match (share_pct, settings) {
            (Some((share_pct, memory_bytes)), Some(settings)) => {
                settings.client_env(uuid, share_pct, memory_bytes)
            }
            _ => vec![("CUDA_VISIBLE_DEVICES".to_owned(), uuid.clone())],
        }
    }

    fn settings(&self, config: &Config) -> Vec<Settings> {
        let needs_mps = |name: &String| {
            config.gpulets.iter().any(|gpulet| {
                let named = gpulet.mechanism.device().is_some_and(|it| it.to_string() == *name);
                let green = matches!(gpulet.mechanism, Mechanism::Green { .. });
                let mps = matches!(gpulet.mechanism, Mechanism::Mps { .. });
                named && (mps || green && config.mps.green)
            })
        };
        let devices: Vec<(u32, String)> = self
            .names
            .iter()
            .filter(|(name, _)| needs_mps(name))
            .map(|(_, it)| it.clone())
            .collect();
        if devices.is_empty() { Vec::new() } else { Settings::of(&config.mps, &devices) }
    }

    /// Starts MPS daemons, keeps those of `before` that go on, and stops the others.
    pub(super) fn start_daemons(
        &mut self,
        config: &Config,
        before: Devices,
        waker: &Arc<Waker>,
    ) -> Result<(), DeviceProblem> {
        let mut running = before.daemons;
        for settings in self.settings(config) {
            let same = running.iter().position(|it| *it.supervisor.settings() == settings);
            let daemon = match same {
                Some(position) => running.swap_remove(position),
                None => {
                    let waker = Arc::clone(waker);
                    let wake = move || {
                        // Events are looked at again anyway, if later.
                        let _ = waker.wake();
                    };
                    Daemon { supervisor: Supervisor::start(settings, wake)?, ready: false }
                }
            };
            self.daemons.push(daemon);
        }
        Ok(())
    }

    /// Whether an executor with this environment may be started now.
    pub(super) fn may_start(&self, environment: &[(String, String)]) -> bool {
        self.daemon_of(environment).is_none_or(|daemon| daemon.ready)
    }

    fn daemon_of(&self, environment: &[(String, String)]) -> Option<&Daemon> {
        let pipes = value(environment, "CUDA_MPS_PIPE_DIRECTORY")?;
        let has = |it: &&Daemon| it.supervisor.settings().pipe_dir.display().to_string() == pipes;
        self.daemons.iter().find(has)
    }

    /// Executors of this device had a fault: none start until MPS says so.
    fn note_fault(&mut self, uuid: &str) {
        let on = |it: &&mut Daemon| it.supervisor.settings().devices.iter().any(|it| it == uuid);
        for daemon in self.daemons.iter_mut().filter(on) {
            daemon.ready = false;
            daemon.supervisor.check();
        }
    }

    /// Takes what MPS daemons tell.
    fn events(&mut self) -> Told {
        let mut told = Told::default();
        for daemon in &mut self.daemons {
            let devices = daemon.supervisor.settings().devices.clone();
            while let Some(event) = daemon.supervisor.event() {
                match event {
                    MpsEvent::Ready { version } => {
                        info!(?devices, version, "MPS takes clients");
                        daemon.ready = true;
                    }
                    MpsEvent::Recovered => {
                        info!(?devices, "MPS takes clients again");
                        daemon.ready = true;
                    }
                    MpsEvent::Failed { reason } => error!(?devices, reason, "MPS"),
                    MpsEvent::DaemonDied => {
                        error!(?devices, "the MPS daemon died");
                        daemon.ready = false;
                        told.lost.extend(devices.iter().cloned());
                    }
                    MpsEvent::ServerFaulted { device } => {
                        warn!(?devices, "the MPS server faulted");
                        daemon.ready = false;
                        match device {
                            Some(device) => told.lost.push(device),
                            None => told.lost.extend(devices.iter().cloned()),
                        }
                    }
                    MpsEvent::ClientTerminated { pid, outcome } => {
                        info!(pid, %outcome, "MPS client");
                        told.terminated.push(pid);
                    }
                }
            }
        }
        told
    }

    /// Has MPS end a client's work before its process is killed.
    fn terminate_client(&self, environment: &[(String, String)], pid: u32) {
        if let Some(daemon) = self.daemon_of(environment) {
            daemon.supervisor.terminate_client(pid);
        }
    }
}

/// What MPS told.
#[derive(Default)]
struct Told {
    /// Devices whose executors must be ended.
    lost: Vec<String>,
    /// Clients that have no work on their device any more.
    terminated: Vec<u32>,
}

pub(super) fn needs_cuda(mechanism: &Mechanism) -> bool {
    matches!(mechanism, Mechanism::Mps { .. } | Mechanism::Green { .. })
}

fn value<'a>(environment: &'a [(String, String)], name: &str) -> Option<&'a str> {
    environment.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

impl Server {
    /// Hears MPS, and ends executors that went down with it.
    pub(super) fn hear_devices(&mut self, now_ns: u64) {
        let told = self.devices.events();
        for device in &told.lost {
            self.end_executors_on(device, None);
        }
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            if executor.pid().is_some_and(|pid| told.terminated.contains(&pid)) {
                executor.doomed_ns = executor.doomed_ns.map(|_| now_ns);
            }
        }
        self.housekeeping_ns = 0;
    }

    /// Ends executors that hang: with a batch, or while they start, load or leave. A client of MPS is
    /// killed only after MPS has ended its work, or does not answer: its neighbours share a server with
    /// it.
    pub(super) fn end_hung(&mut self, now_ns: u64) {
        let mut hung = self.dispatcher.hung(now_ns, self.config.hang_timeout_ns);
        hung.extend(self.silent(now_ns));
        hung.extend(self.overdue(now_ns));
        for index in hung {
            let Some(executor) = self.dispatcher.executors.get_mut(index) else { continue };
            let pid =
                executor.pid().filter(|_| self.devices.daemon_of(&executor.environment).is_some());
            match pid {
                Some(pid) if executor.doomed_ns.is_none() => {
                    executor.doomed_ns = Some(now_ns + TERMINATE_NS);
                    self.devices.terminate_client(&executor.environment, pid);
                }
                Some(_) => {}
                None => executor.kill(),
            }
        }
        for (_, executor) in self.dispatcher.executors.iter_mut() {
            if executor.doomed_ns.is_some_and(|doomed_ns| now_ns >= doomed_ns) {
                executor.kill();
            }
        }
    }

    /// A GPU faulted under an executor: everything on that GPU starts anew.
    pub(super) fn lose_device_of(&mut self, index: u32) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        // The fault of a device is told by everybody on it.
        if executor.lost_device {
            return;
        }
        // Whose work was ended by MPS has lost that alone.
        if executor.doomed_ns.is_some() {
            return executor.kill();
        }
        match executor.device.clone() {
            Some(device) => {
                self.devices.note_fault(&device);
                self.end_executors_on(&device, Some(index));
            }
            None => executor.kill(),
        }
    }

    /// Ends all executors on a device that is lost. Only the one that was `at_fault`, where that is
    /// known, is kept waiting if this happens again and again.
    fn end_executors_on(&mut self, device: &str, at_fault: Option<u32>) {
        for (index, executor) in self.dispatcher.executors.iter_mut() {
            let there = executor.pid().is_some() || at_fault == Some(index);
            if executor.device.as_deref() != Some(device) || !there {
                continue;
            }
            executor.lost_device = true;
            match at_fault {
                Some(culprit) if culprit == index => {}
                Some(_) => {
                    executor.forgive();
                    executor.loading = None;
                }
                // Who it was nobody knows: a model that is loaded each time is suspected.
                None => executor.forgive(),
            }
            // Its context is lost, so there is nothing that a kill could take from others.
            executor.kill();
        }
    }

    /// Whether processes of a lost device are still there: none starts beside them.
    pub(super) fn is_being_left(&self, device: Option<&str>) -> bool {
        let mut executors = self.dispatcher.executors.iter();
        device.is_some()
            && executors.any(|(_, it)| {
                it.device.as_deref() == device && it.state == State::Dying && it.lost_device
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(folder: &std::path::Path, device: u32) -> Config {
        let path = folder.join("gpuletd.toml");
        let gpulet = format!("name = 'a'\nmechanism = 'mps'\ndevice = {device}\nshare_pct = 50\n");
        std::fs::write(&path, format!("[[gpulet]]\n{gpulet}")).unwrap();
        Config::load(&path).unwrap()
    }

    #[test]
    fn devices_that_are_known_are_not_asked_for_again() {
        let folder = tempfile::tempdir().unwrap();
        let names = BTreeMap::from([("0".to_owned(), (0, "GPU-known".to_owned()))]);
        let known = Devices { names, ..Devices::default() };
        let none =
            || Inventory { reason_if_none: Some("asked".to_owned()), ..Inventory::default() };
        let same = Devices::find_by(&config(folder.path(), 0), &known, none).unwrap();
        assert_eq!(same.names, known.names);
        let other = Devices::find_by(&config(folder.path(), 1), &known, none).unwrap_err();
        assert!(other.to_string().contains("asked"), "{other}");
    }
}
