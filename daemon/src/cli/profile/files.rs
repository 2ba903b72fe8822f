//! Where measurements lie, and how they get there whole.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use gpulet_plan::measured::Held;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::CtlError;
use crate::model::Precision;

/// The file of interference beside those of the models.
pub(super) const INTERFERENCE: &str = "interference.json";

/// The folder of a kind of device: its name in small letters, digits and dashes.
pub(super) fn folder(out: &Path, device: &str) -> PathBuf {
    let mut name = String::new();
    for letter in device.chars() {
        if letter.is_ascii_alphanumeric() {
            name.push(letter.to_ascii_lowercase());
        } else if !name.is_empty() && !name.ends_with('-') {
            name.push('-');
        }
    }
    let name = name.trim_end_matches('-');
    out.join(if name.is_empty() { "device" } else { name })
}

/// `<model>.json`; a precision other than fp32 and a mechanism other than green are named.
pub(super) fn file_name(model: &str, precision: Precision, held: Held) -> String {
    let precision = match precision {
        Precision::Fp32 => String::new(),
        other => format!(".{}", other.word()),
    };
    let held = match held {
        Held::Green => "",
        Held::Mps => ".mps",
    };
    format!("{model}{precision}{held}.json")
}

/// What a file holds, if it is there.
///
/// # Errors
/// [`CtlError::File`]: it cannot be read, or is something else. It is not overwritten then.
pub(super) fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, CtlError> {
    let failed = |source| CtlError::File { path: path.to_owned(), source };
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map(Some).map_err(|it| failed(it.into())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// Writes a file whole or not at all, and makes its folder.
///
/// # Errors
/// [`CtlError::File`].
pub(super) fn write<T: Serialize>(path: &Path, value: &T) -> Result<(), CtlError> {
    let fresh = path.with_extension("json.new");
    let put = || -> io::Result<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let mut text = serde_json::to_string_pretty(value)?;
        text.push('\n');
        let mut file = fs::File::create(&fresh)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    };
    put().map_err(|source| CtlError::File { path: path.to_owned(), source })
}

/// UTC, to the second.
pub(super) fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_named_by_what_is_in_them() {
        let device = folder(Path::new("out"), "NVIDIA H100 80GB HBM3");
        assert_eq!(device, Path::new("out/nvidia-h100-80gb-hbm3"));
        assert_eq!(folder(Path::new("out"), "../ (X)"), Path::new("out/x"));
        assert_eq!(folder(Path::new("out"), "//"), Path::new("out/device"));
        assert_eq!(file_name("bert", Precision::Fp32, Held::Green), "bert.json");
        assert_eq!(file_name("bert", Precision::Fp16, Held::Green), "bert.fp16.json");
        assert_eq!(file_name("bert", Precision::Tf32, Held::Mps), "bert.tf32.mps.json");
    }

    #[test]
    fn files_are_written_whole_and_never_guessed_at() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b.json");
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), None);
        write(&path, &[1, 2]).unwrap();
        write(&path, &[3]).unwrap();
        assert_eq!(read::<Vec<u32>>(&path).unwrap(), Some(vec![3]));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        fs::write(&path, "[1,").unwrap();
        let said = read::<Vec<u32>>(&path).unwrap_err().to_string();
        assert!(said.contains("b.json: "), "{said}");
        let blocked = path.join("c.json");
        assert!(write(&blocked, &[1]).is_err());
    }

    #[test]
    fn dates_have_seconds() {
        let now = now();
        assert!(now.len() == 20 && now.ends_with('Z'), "{now}");
    }
}
