//! Shares that change inside an executor, which splits its device itself.
//!
//! The executor is told to *prepare*: it makes every model warm on the new shares and tells what its
//! batches take there, while batches go on as before. When it has, it is told to *switch*, and answers
//! at once; its profiles change with it. One change is under way at a time, and no load.

use gpulet_plan::profile::{LatencyProfile, ProfilePoint};
use tracing::{error, info, warn};

use super::Server;
use crate::clock::now_ns;
use crate::executor::{Executor, Sharing, State};
use crate::models::{Hosted, Instance, InstanceState};
use crate::wire::ToExecutor;

impl Server {
    /// Has an executor's shares become those that it should have, if they can now.
    pub(super) fn change_shares(&mut self, index: u32) {
        let loads = |it: &Instance| {
            it.gpulet.executor == index && matches!(it.state, InstanceState::Loading)
        };
        let loading = self.dispatcher.models.iter().any(|it| it.instances.iter().any(loads));
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let shares_pct = executor.wanted_pct();
        if executor.state != State::Running
            || executor.retired
            || loading
            || executor.sharing != Sharing::Settled
            || executor.shares_pct == shares_pct
            || executor.refused_pct.as_ref() == Some(&shares_pct)
        {
            return;
        }
        info!(executor = executor.name(), ?shares_pct, "preparing other shares");
        executor.heard_ns = now_ns();
        executor.sharing = Sharing::Preparing(shares_pct.clone());
        executor.tell(&ToExecutor::Prepare { shares_pct }, &[]);
    }

    /// What a model's batches take from now on, or on the shares that are being prepared.
    pub(super) fn note_remeasured(
        &mut self,
        index: u32,
        model: u32,
        shares_pct: &[u8],
        points: &[Vec<ProfilePoint>],
    ) {
        let Some(hosted) = self.dispatcher.models.get_mut(model) else { return };
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let profile = |points: &Vec<ProfilePoint>| LatencyProfile::new(&hosted.model.name, points);
        let profiles: Result<Vec<_>, _> = points.iter().map(profile).collect();
        let prepares = matches!(&executor.sharing, Sharing::Preparing(them) if them == shares_pct);
        match profiles {
            Ok(profiles) if profiles.len() != executor.gpulets.len() => {
                break_off(executor, "profiles of other gpulets");
            }
            Ok(profiles) if prepares => executor.remeasured.push((model, profiles)),
            Ok(profiles) if executor.shares_pct == shares_pct => {
                renew_profiles(hosted, index, profiles);
            }
            _ => break_off(executor, "profiles that cannot be"),
        }
    }

    /// An executor is ready for other shares.
    pub(super) fn switch_shares(&mut self, index: u32, shares_pct: Vec<u8>) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        if executor.sharing != Sharing::Preparing(shares_pct.clone()) {
            return break_off(executor, "shares that it was not to prepare");
        }
        if executor.wanted_pct() == shares_pct {
            let decided_ns = now_ns();
            executor.sharing = Sharing::Switching { shares_pct: shares_pct.clone(), decided_ns };
            executor.tell(&ToExecutor::Switch { shares_pct }, &[]);
        } else {
            // The config changed again meanwhile.
            self.settle_shares(index);
        }
    }

    /// An executor has switched: from now on its batches take what was measured.
    pub(super) fn note_shared(&mut self, index: u32, shares_pct: Vec<u8>, switched_ns: u64) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        let decided_ns = match &executor.sharing {
            Sharing::Switching { shares_pct: told, decided_ns } if *told == shares_pct => {
                *decided_ns
            }
            _ => return break_off(executor, "a switch that it was not told to make"),
        };
        let switch_us = switched_ns.saturating_sub(decided_ns) / 1_000;
        let name = executor.name();
        info!(executor = name, ?shares_pct, decided_ns, switch_us, "shares changed");
        executor.shares_pct = shares_pct;
        for (model, profiles) in std::mem::take(&mut executor.remeasured) {
            let Some(hosted) = self.dispatcher.models.get_mut(model) else { continue };
            renew_profiles(hosted, index, profiles);
        }
        self.settle_shares(index);
    }

    /// The shares cannot be had: those that are stay, until the config says something else.
    pub(super) fn refuse_shares(&mut self, index: u32, shares_pct: Vec<u8>, error: &str) {
        let Some(executor) = self.dispatcher.executors.get_mut(index) else { return };
        if executor.sharing != Sharing::Preparing(shares_pct.clone()) {
            return break_off(executor, "shares that it was not to prepare");
        }
        error!(executor = executor.name(), ?shares_pct, error, "the shares stay as they are");
        executor.refused_pct = Some(shares_pct);
        self.settle_shares(index);
    }

    fn settle_shares(&mut self, index: u32) {
        if let Some(executor) = self.dispatcher.executors.get_mut(index) {
            executor.sharing = Sharing::Settled;
            executor.remeasured.clear();
        }
        self.change_shares(index);
        self.tell_loads(index);
    }
}

/// From now on a model's batches take so long on an executor's gpulets.
fn renew_profiles(hosted: &mut Hosted, index: u32, profiles: Vec<LatencyProfile>) {
    for (instance, profile) in hosted.instances_in(index).zip(profiles) {
        if let InstanceState::Ready(current) = &mut instance.state {
            **current = profile;
        }
    }
}

/// An executor that does not keep to what was said is none to rely on.
fn break_off(executor: &mut Executor, what: &str) {
    warn!(executor = executor.name(), what, "the executor answers what it was not asked");
    executor.kill();
}
