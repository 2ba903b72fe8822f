//! Runs nothing: its answers are zeros, and its profiles are files. For tests and for trying plans
//! without the hardware they are made for. That batches take the time that the profile says is the
//! executor's affair ([`crate::execute::replay`]), which runs those of several gpulets side by side.

use std::path::{Path, PathBuf};

use gpulet_plan::profile::{LatencyProfile, ProfilePoint, RawProfile};

use super::{Backend, Copied, Instance, LoadError, OpenError, RunError, View, check_views};
use crate::model::{Model, Tensor};
use crate::store;

/// A profile has at most 64 points of some hundred bytes.
const PROFILE_BYTES_MAX: u64 = 1 << 20;

/// The profiles of a directory, one `<model>.json` each.
#[derive(Debug)]
pub struct Replay {
    profiles_dir: PathBuf,
}

impl Replay {
    /// The profiles in `profiles_dir`.
    ///
    /// # Errors
    /// [`OpenError::ProfilesDir`] if there is no such directory.
    pub fn open(profiles_dir: &Path) -> Result<Replay, OpenError> {
        let profiles_dir = profiles_dir.to_owned();
        if profiles_dir.is_dir() {
            Ok(Replay { profiles_dir })
        } else {
            Err(OpenError::ProfilesDir { path: profiles_dir })
        }
    }

    fn profile(&self, model: &Model) -> Result<LatencyProfile, LoadError> {
        let path = self.profiles_dir.join(format!("{}.json", model.name));
        let contents = store::read(&path, PROFILE_BYTES_MAX)?;
        let file = |rule: String| LoadError::File { path: path.clone(), rule };
        let raw: RawProfile =
            serde_json::from_slice(&contents).map_err(|error| file(error.to_string()))?;
        if raw.model != model.name {
            return Err(file(format!("model: must be {:?}, is {:?}", model.name, raw.model)));
        }
        LatencyProfile::try_from(raw).map_err(|source| LoadError::Profile { path, source })
    }
}

impl Backend for Replay {
    fn describe(&self) -> String {
        format!("replay of {}", self.profiles_dir.display())
    }

    fn load_file(&self, model: &Model) -> Result<Box<dyn Instance>, LoadError> {
        Ok(Box::new(Replayed {
            profile: self.profile(model)?,
            inputs: model.inputs.clone(),
            outputs: model.outputs.clone(),
        }))
    }
}

#[derive(Debug)]
struct Replayed {
    profile: LatencyProfile,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

impl Instance for Replayed {
    fn run(
        &mut self,
        rows: u32,
        inputs: &[View<'_>],
        outputs: &[View<'_>],
    ) -> Result<Copied, RunError> {
        check_views(&self.inputs, rows, inputs);
        check_views(&self.outputs, rows, outputs);
        for output in outputs {
            // SAFETY: a view is writable for its length.
            unsafe { output.data().write_bytes(0, output.bytes()) };
        }
        Ok(Copied::default())
    }

    fn form(&self) -> String {
        "replayed from a profile".to_owned()
    }

    fn profile(&self) -> Option<Vec<ProfilePoint>> {
        Some(self.profile.points().to_vec())
    }
}
