//! What the config says becomes executors and models, at the start and at every reload.

use gpulet_abi::status::Status;
use tracing::{error, info};

use super::Server;
use super::devices::{DeviceProblem, Devices};
use super::starts::wanted;
use crate::clock::now_ns;
use crate::config::{Config, ConfigError};
use crate::dispatch::REQUEUE_MAX;
use crate::model::{Model, ModelError, Scan, scan, scan_each};
use crate::models::Readiness;
use crate::wire::EXECUTOR_GPULETS_MAX;

/// Time that systemd is asked for at a time while models are loaded.
const STARTING_EXTEND_NS: u64 = 30_000_000_000;

/// What is wrong with the config or a model directory.
#[derive(Debug, thiserror::Error)]
pub enum ConfigProblem {
    /// See [`ConfigError`].
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// See [`ModelError`].
    #[error(transparent)]
    Model(#[from] ModelError),
    /// See [`DeviceProblem`].
    #[error(transparent)]
    Device(#[from] DeviceProblem),
    /// More gpulets than there can be executors.
    #[error("{0}")]
    TooManyGpulets(&'static str),
}

/// Reads every model. One that is bad does not stop the others: it is said in the log, and whoever
/// asks for it is told why it failed.
pub(super) fn scan_models(config: &Config) -> Result<Scan, ConfigProblem> {
    let scan = scan_each(&config.models, &config.limits);
    for (_, problem) in &scan.errors {
        error!("{problem}");
    }
    if scan.errors.is_empty() {
        config.check_models(&scan.models)?;
    }
    Ok(scan)
}

impl Server {
    /// Makes executors and models what `self.config` and `scan` say they should be.
    pub(super) fn apply(&mut self, scan: Scan) -> Result<(), ConfigProblem> {
        let broken = scan.errors.into_iter().filter_map(|(name, error)| Some((name?, error)));
        self.dispatcher.models.broken =
            broken.map(|(name, error)| (name, error.to_string())).collect();
        self.apply_gpulets()?;
        self.apply_models(scan.models);
        self.place();
        self.settled = false;
        self.housekeeping_ns = 0;
        Ok(())
    }

    fn apply_gpulets(&mut self) -> Result<(), ConfigProblem> {
        let mut devices = Devices::find(&self.config, &self.devices)?;
        let wanted = wanted(&self.config, &devices);
        if wanted.iter().any(|it| it.gpulets.len() > EXECUTOR_GPULETS_MAX) {
            return Err(ConfigProblem::TooManyGpulets("more gpulets of a device than can be"));
        }
        let before = std::mem::take(&mut self.devices);
        devices.start_daemons(&self.config, before, &self.waker)?;
        self.devices = devices;
        self.reconcile(wanted)
    }

    fn apply_models(&mut self, mut wanted: Vec<Model>) {
        let models = &mut self.dispatcher.models;
        let mut retired = Vec::new();
        for hosted in models.iter_mut().filter(|hosted| !hosted.retired) {
            match wanted.iter().position(|model| *model == hosted.model) {
                Some(position) => drop(wanted.swap_remove(position)),
                None => {
                    hosted.retired = true;
                    retired.push(hosted.id);
                }
            }
        }
        wanted.sort_by(|one, other| one.name.cmp(&other.name));
        for model in wanted {
            info!(model = model.name, "serving");
            models.add(model, self.config.limits.queue_max, REQUEUE_MAX);
        }
        for id in retired {
            self.dispatcher.flush_queue(id, Status::ModelRetired, now_ns());
        }
        self.dispatcher.publish();
    }

    /// Reads config and models again; on any error everything stays as it is.
    pub(super) fn reload(&mut self) {
        info!(config = %self.config.path.display(), "reloading");
        let loaded = Config::load(&self.config.path).map_err(ConfigProblem::from);
        let read = loaded.and_then(|config| {
            let models = scan(&config.models, &config.limits)?;
            config.check_models(&models)?;
            Devices::find(&config, &self.devices)?;
            Ok((config, models))
        });
        match read {
            Ok((mut config, models)) => {
                // The socket is bound for the daemon's life.
                config.socket.clone_from(&self.config.socket);
                self.dispatcher.entries_per_turn_max = config.limits.entries_per_turn_max;
                self.dispatcher.defer = config.defer;
                self.config = config;
                let scan = Scan { models, errors: Vec::new() };
                if let Err(problem) = self.apply(scan) {
                    error!("reload: {problem}");
                }
            }
            Err(problem) => {
                error!("reload failed, the old config stays: {problem}");
                self.notifier.status(format!("reload failed: {problem}"));
            }
        }
    }

    /// Tells systemd how many models are ready, and when all are that will be.
    pub(super) fn announce_readiness(&mut self) {
        let models = &self.dispatcher.models;
        let total = models.iter().filter(|it| !it.retired).count();
        let count = |readiness: fn(&Readiness) -> bool| {
            models.iter().filter(|it| !it.retired && readiness(&it.readiness())).count()
        };
        let ready = count(|it| *it == Readiness::Ready);
        let loading = count(|it| *it == Readiness::Loading);
        if loading == 0 && !self.settled {
            self.settled = true;
            info!(ready, failed = total - ready, "settled");
            self.notifier.ready();
        }
        if self.settled {
            self.notifier.status(format!("{ready} of {total} models ready"));
        } else {
            let status = format!("{ready} of {total} models ready, loading {loading}");
            self.notifier.starting(status, STARTING_EXTEND_NS);
        }
    }
}
