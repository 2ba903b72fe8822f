//! What goes wrong, and how it is brought about.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytemuck::Zeroable;
use clap::ValueEnum;
use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, Options, Session, Status, Submit, Wait};
use gpulet_daemon::model::Builtin;
use rustix::process::{Pid, Signal, kill_process};

use crate::closed::ANSWER_NS_MAX;
use crate::daemon::Daemon;
use crate::error::{Doing, Error};
use crate::scene::Scene;
use crate::settings::Held;
use crate::steady::Steady;

/// Longer than anything is found out in.
const PATIENCE: Duration = Duration::from_secs(60);
const HUNGRY: &str = "hungry";
const GIANT: &str = "giant";
/// A batch of so many MiB fits no GPU there is.
const MIB_TOO_MUCH: i64 = 1 << 20;
/// Between looks at what a socket says, which take a while themselves.
const LOOK_NS: u64 = 20_000_000;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Harm {
    /// A request to the first gpulet writes to an illegal address, runs again, and does so again.
    Fault,
    /// The first gpulet's process is killed.
    Executor,
    /// The first GPU's MPS control daemon is killed.
    Mps,
    /// A request to the first gpulet never ends, runs again, and never ends again.
    Hang,
    /// A model comes that does not fit the GPU's memory, and goes.
    Memory,
    /// A batch on the first gpulet does not fit the GPU's memory.
    Batch,
}

impl Harm {
    /// The word for it.
    pub fn word(self) -> &'static str {
        match self {
            Harm::Fault => "fault",
            Harm::Executor => "executor",
            Harm::Mps => "mps",
            Harm::Hang => "hang",
            Harm::Memory => "memory",
            Harm::Batch => "batch",
        }
    }

    /// The model that does it.
    fn model(self) -> Option<&'static str> {
        match self {
            Harm::Fault => Some(Builtin::Fault.word()),
            Harm::Hang => Some(Builtin::Hang.word()),
            Harm::Batch => Some(HUNGRY),
            Harm::Executor | Harm::Mps | Harm::Memory => None,
        }
    }
}

/// What is there to do harm with.
pub struct Means {
    held: Held,
    models: Vec<&'static str>,
    pid_file: PathBuf,
}

impl Means {
    /// Adds what is needed to a scene that has not started.
    ///
    /// # Errors
    /// Harm that cannot be done there.
    pub fn prepare(
        scene: &mut Scene,
        harms: &[Harm],
        hungry: Option<&Path>,
    ) -> Result<Means, Error> {
        let held = scene.settings.gpulets[0].held;
        let device = scene.settings.gpulets[0].device;
        let models: Vec<&'static str> = harms.iter().filter_map(|harm| harm.model()).collect();
        for &harm in harms {
            let refuse = |why: &str| Err(Error::failed(format!("--harm {}", harm.word()), why));
            let breaks = held.on_gpu() || held.replays();
            match harm {
                Harm::Fault | Harm::Hang | Harm::Memory if !breaks => {
                    return refuse("needs a GPU, or something that plays one");
                }
                Harm::Mps if !held.under_mps() => {
                    return refuse("needs --mechanism mps or green-mps");
                }
                Harm::Batch if hungry.is_none() || !held.on_gpu() => {
                    return refuse("needs a GPU and --hungry DIR");
                }
                Harm::Fault => scene.place.add_builtin("fault", Builtin::Fault, 1_000_000)?,
                Harm::Hang => scene.place.add_builtin("hang", Builtin::Hang, 1_000_000)?,
                Harm::Batch => {
                    scene.place.add_as(HUNGRY, hungry.unwrap_or(Path::new("")), Some(1))?;
                }
                Harm::Executor | Harm::Mps | Harm::Memory => {}
            }
        }
        let first = scene.settings.gpulets[0].models.get_or_insert_default();
        first.extend(models.iter().map(|model| (*model).to_owned()));
        let pipes = scene.place.folder().join(format!("mps/gpu{device}/pipe"));
        Ok(Means { held, models, pid_file: pipes.join("nvidia-cuda-mps-control.pid") })
    }

    /// Waits until all models are loaded.
    ///
    /// # Errors
    /// With the end of the daemon's log.
    pub fn await_models(&self, daemon: &Daemon) -> Result<(), Error> {
        let mut session = daemon.session(Options::default())?;
        self.models.iter().try_for_each(|model| daemon.model(&mut session, model).map(drop))
    }

    /// Does it, while the load goes on, and returns when what did it is out of the way.
    ///
    /// # Errors
    /// When it does no harm, or too much.
    pub fn inflict(
        &self,
        harm: Harm,
        scene: &Scene,
        daemon: &Daemon,
        steady: &mut Steady,
    ) -> Result<(), Error> {
        match harm {
            Harm::Fault | Harm::Hang => self.ask(harm, 0, &[Status::ExecutorLost], daemon, steady),
            Harm::Batch => {
                let said = [Status::ExecutorMemory, Status::ModelError];
                self.ask(harm, MIB_TOO_MUCH, &said, daemon, steady)
            }
            Harm::Executor => {
                let first = &scene.settings.gpulets[0].name;
                let pid = daemon.executor_of(first)?;
                let pid = pid.ok_or_else(|| daemon.complaint("the first gpulet has no process"))?;
                kill(pid)?;
                self.until(steady, daemon, "its process is not replaced", || {
                    Ok(daemon.executor_of(first)?.is_some_and(|new| new != pid))
                })
            }
            Harm::Mps => {
                let before = self.mps_pid()?;
                kill(before)?;
                self.until(steady, daemon, "MPS does not come back", || {
                    Ok(self.mps_pid().is_ok_and(|pid| pid != before))
                })
            }
            Harm::Memory => self.overload(scene, daemon, steady),
        }
    }

    fn mps_pid(&self) -> Result<u32, Error> {
        let text = fs::read_to_string(&self.pid_file).doing("finding the MPS control daemon")?;
        text.trim().parse().map_err(|why| Error::failed("the MPS control daemon's file", why))
    }

    /// Sends the request that does it; its answer must say one of `said`.
    fn ask(
        &self,
        harm: Harm,
        input: i64,
        said: &[Status],
        daemon: &Daemon,
        steady: &mut Steady,
    ) -> Result<(), Error> {
        let model = harm.model().unwrap_or_default();
        let mut session = daemon.session(Options { wait: Wait::Spin, ..Options::default() })?;
        let spec = daemon.model(&mut session, model)?;
        let request = session.claim(spec.model, 1)?;
        let bytes = session.input_bytes_mut(request, 0)?;
        let count = bytes.len().min(8);
        bytes[..count].copy_from_slice(&input.to_ne_bytes()[..count]);
        // Due after whatever else was under way: what is lost with it runs again before it does.
        let deadline_ns = now_ns() + 2 * ANSWER_NS_MAX;
        session.submit(request, Submit { deadline_ns, ..Submit::default() })?;
        let mut answer = None;
        steady.until(PATIENCE, |_| {
            answer = one_of(&mut session)?;
            Ok(answer.is_some())
        })?;
        let Some(answer) = answer else {
            return Err(daemon.complaint(&format!("the request to {model} has no answer")));
        };
        match Status::from_number(answer.status) {
            Some(status) if said.contains(&status) => Ok(()),
            status => Err(daemon.complaint(&format!("the request to {model} did: {status:?}"))),
        }
    }

    /// Has a model come that does not fit, and go again.
    fn overload(
        &self,
        Scene { place, settings, .. }: &Scene,
        daemon: &Daemon,
        steady: &mut Steady,
    ) -> Result<(), Error> {
        if self.held.replays() {
            // There is no memory to fill; one without a profile cannot be loaded either.
            place.add_builtin(GIANT, Builtin::Hang, 1_000_000)?;
            fs::remove_file(place.profiles().join(format!("{GIANT}.json"))).doing("removing it")?;
        } else {
            place.add_giant(GIANT)?;
        }
        let mut with = settings.clone();
        with.gpulets[0].models.get_or_insert_default().push(GIANT.to_owned());
        with.write(place)?;
        daemon.reload()?;
        let mut session = daemon.session(Options::default())?;
        let mut becomes = |wanted: Status, what: &str| {
            self.until(steady, daemon, what, || match session.model_open(GIANT) {
                Ok(_) => Err(daemon.complaint("what does not fit was loaded")),
                Err(why) => match why.status() {
                    status if status == wanted => Ok(true),
                    Status::ModelLoading | Status::NoSuchModel | Status::ModelFailed => Ok(false),
                    _ => Err(why.into()),
                },
            })
        };
        becomes(Status::ModelFailed, "it is not said that the model does not fit")?;
        place.remove(GIANT)?;
        settings.write(place)?;
        daemon.reload()?;
        becomes(Status::NoSuchModel, "the model does not go")
    }

    /// Keeps the load up until something is so.
    fn until(
        &self,
        steady: &mut Steady,
        daemon: &Daemon,
        what: &str,
        mut so: impl FnMut() -> Result<bool, Error>,
    ) -> Result<(), Error> {
        let mut look_ns = 0;
        let done = steady.until(PATIENCE, |_| {
            if now_ns() < look_ns {
                return Ok(false);
            }
            look_ns = now_ns() + LOOK_NS;
            so()
        })?;
        if done { Ok(()) } else { Err(daemon.complaint(what)) }
    }
}

fn one_of(session: &mut Session) -> Result<Option<Completion>, Error> {
    let mut answers = [Completion::zeroed(); 1];
    Ok((session.reap(&mut answers)? > 0).then_some(answers[0]))
}

fn kill(pid: u32) -> Result<(), Error> {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::failed("kill", "that is no process"))?;
    kill_process(pid, Signal::KILL).doing("killing a process")
}
