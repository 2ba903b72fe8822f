//! The profiles in the repository: each is what its name says, and a planner can take it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use gpulet_plan::measured::{Held, MeasuredModel};
use gpulet_plan::profile::LatencyProfile;

/// Beside the models of a device: what they do to each other.
const OTHERS: [&str; 2] = ["interference.json", "tempers.json"];

fn shipped() -> Vec<(PathBuf, MeasuredModel)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../resource/profiles");
    let folders = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.filter(|path| path.is_dir()).flat_map(|path| fs::read_dir(path).unwrap());
    let files = files.map(|entry| entry.unwrap().path());
    let of_models = files.filter(|path| !OTHERS.contains(&name_of(path)));
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let file = serde_json::from_str(&text).unwrap_or_else(|why| panic!("{path:?}: {why}"));
        (path, file)
    };
    of_models.map(read).collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

#[test]
fn files_hold_what_their_names_say() {
    let shipped = shipped();
    assert!(!shipped.is_empty());
    for (path, file) in &shipped {
        let precision = match file.precision.as_str() {
            "fp32" => String::new(),
            other => format!(".{other}"),
        };
        let held = match file.mechanism {
            Held::Green => "",
            Held::Mps => ".mps",
        };
        assert_eq!(name_of(path), format!("{}{precision}{held}.json", file.model));
        for share in &file.shares {
            assert!(share.form.starts_with(&file.precision), "{path:?}: {}", share.form);
        }
    }
}

#[test]
fn every_share_can_be_planned_with() {
    for (path, file) in shipped() {
        assert_eq!(file.check(), Ok(()), "{path:?}");
        assert!(!file.shares.is_empty(), "{path:?}");
        for share in &file.shares {
            let profile = file.profile(share.share_pct).unwrap();
            assert_eq!(profile.points.len(), share.points.len(), "{path:?}");
            assert_eq!(share.refused, [], "{path:?}");
            let planned = share.planned_points();
            assert_eq!(LatencyProfile::new(&file.model, &planned).err(), None, "{path:?}");
            for rows in 1..=file.settings.max_batch {
                let size = share.points.iter().find(|point| point.rows >= rows).unwrap();
                let planned = planned.iter().rfind(|point| point.rows <= rows).unwrap();
                assert!(!share.captured || planned.p99_ns == size.p99_ns, "{path:?}: {rows} rows");
            }
        }
    }
}
