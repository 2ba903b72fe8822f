//! Opening: where the shim and libtorch are looked for, and what is said when they are not there.
//!
//! A process opens one libtorch for good, so what opens one runs in a process of its own: this
//! test program again, with the name of one of the scenes below in its environment.

#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::{env, fs};

use gpulet_torch::{OpenError, Options, SHIM_NAME, SHIM_VARIABLE, Torch, built_shim};
use support::torch;

const SCENE_VARIABLE: &str = "GPULET_TORCH_TEST_SCENE";

/// A folder with a copy of the shim, changed by `change`.
fn copied_shim(change: impl FnOnce(Vec<u8>) -> Vec<u8>) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join(SHIM_NAME);
    fs::write(&copy, change(fs::read(built_shim().unwrap()).unwrap())).unwrap();
    (folder, copy)
}

fn replaced(mut file: Vec<u8>, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = file.windows(from.len()).position(|window| window == from.as_bytes()).unwrap();
    file[at..at + to.len()].copy_from_slice(to.as_bytes());
    file
}

fn with_shim(shim: &Path) -> Options {
    Options { shim: Some(shim.to_owned()), ..Options::default() }
}

/// Runs `scene` in a fresh process of `program` (a copy of this one).
fn play(program: &Path, scene: &str, variables: &[(&str, &Path)]) -> Output {
    let mut command = Command::new(program);
    command.args(["--exact", "a_scene", "--nocapture"]).env_remove(SHIM_VARIABLE);
    command.env(SCENE_VARIABLE, scene).envs(variables.iter().copied());
    command.output().unwrap()
}

fn play_well(program: &Path, scene: &str, variables: &[(&str, &Path)]) -> String {
    let output = play(program, scene, variables);
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(output.status.success(), "{scene}: {text}");
    text
}

#[test]
fn a_scene() {
    // Not played by another test: nothing to do.
    let Ok(scene) = env::var(SCENE_VARIABLE) else { return };
    match scene.as_str() {
        "where" => {
            let torch = Torch::open(&Options::default()).unwrap();
            println!("shim={} libtorch={}", torch.shim().display(), torch.libtorch().display());
        }
        "other" => other_open(),
        "strange version" => {
            let error = Torch::open(&Options::default()).unwrap_err();
            assert!(matches!(error, OpenError::Version { .. }), "{error:?}");
            println!("error: {error}");
        }
        other => panic!("no scene {other}"),
    }
}

fn other_open() {
    let first = Torch::open(&Options::default()).unwrap();
    let again = Torch::open(&with_shim(first.shim())).unwrap();
    assert_eq!((again.shim(), again.libtorch()), (first.shim(), first.libtorch()));
    let (_folder, copy) = copied_shim(|file| file);
    let error = Torch::open(&with_shim(&copy)).unwrap_err();
    assert!(matches!(error, OpenError::OtherOpen { .. }), "{error:?}");
    assert!(error.to_string().contains(copy.to_str().unwrap()), "{error}");
}

#[test]
fn a_shim_that_is_not_there_is_named_with_what_to_do() {
    let error = Torch::open(&with_shim(Path::new("/nowhere/shim.so"))).unwrap_err();
    assert!(matches!(error, OpenError::NoShim { .. }), "{error:?}");
    let text = error.to_string();
    for words in ["/nowhere/shim.so", "libtorch-dev", "LIBTORCH_DIR"] {
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn a_file_that_is_no_shim_is_refused_before_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(SHIM_NAME);
    for bytes in [&b""[..], b"\x7fELF and more", b"gpulet-torch-shim\nno end"] {
        fs::write(&path, bytes).unwrap();
        let error = Torch::open(&with_shim(&path)).unwrap_err();
        assert!(matches!(error, OpenError::NotShim { .. }), "{error:?}");
    }
    let error = Torch::open(&with_shim(folder.path())).unwrap_err();
    assert!(matches!(error, OpenError::Read { .. }), "{error:?}");
}

#[test]
fn a_shim_of_another_abi_is_refused_before_it_is_opened() {
    let Some(_) = torch() else { return };
    let (_folder, copy) = copied_shim(|file| replaced(file, "\nabi=1\n", "\nabi=0\n"));
    let error = Torch::open(&with_shim(&copy)).unwrap_err();
    assert!(matches!(error, OpenError::Abi { .. }), "{error:?}");
    assert!(error.to_string().contains("ABI 0, this program needs ABI 1"), "{error}");
}

#[test]
fn a_folder_without_the_right_libtorch_is_refused() {
    let Some(torch) = torch() else { return };
    let folder = tempfile::tempdir().unwrap();
    let libtorch_dir = Some(folder.path().to_owned());
    let error = Torch::open(&Options { libtorch_dir, ..Options::default() }).unwrap_err();
    assert!(matches!(error, OpenError::NoLibtorch { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(torch.version()), "{text}");
    assert!(text.contains(folder.path().to_str().unwrap()), "{text}");
}

#[test]
fn one_process_opens_one_libtorch() {
    let Some(_) = torch() else { return };
    play_well(&env::current_exe().unwrap(), "other", &[]);
}

#[test]
fn a_libtorch_of_another_version_is_told() {
    let Some(torch) = torch() else { return };
    let (_folder, copy) = copied_shim(|file| {
        let version = format!("\nversion={}", torch.version());
        replaced(file, &version, &version.replace(['1', '2'], "7"))
    });
    let text =
        play_well(&env::current_exe().unwrap(), "strange version", &[(SHIM_VARIABLE, &copy)]);
    assert!(text.contains("was compiled against libtorch 7"), "{text}");
}

#[test]
fn the_environment_names_the_shim_and_the_libtorch_folder() {
    let Some(torch) = torch() else { return };
    let (folder, copy) = copied_shim(|file| file);
    let lib = folder.path().join("lib");
    fs::create_dir(&lib).unwrap();
    // Under every name it goes by: which of them the shim asks for is the distribution's choice.
    for entry in fs::read_dir(torch.libtorch().parent().unwrap()).unwrap() {
        let name = entry.unwrap().file_name();
        if name.to_string_lossy().starts_with("libtorch_cpu.so") {
            std::os::unix::fs::symlink(torch.libtorch(), lib.join(name)).unwrap();
        }
    }
    let variables = [(SHIM_VARIABLE, &*copy), ("LIBTORCH_DIR", folder.path())];
    let text = play_well(&env::current_exe().unwrap(), "where", &variables);
    let wanted = format!("shim={} libtorch={}", copy.display(), torch.libtorch().display());
    assert!(text.contains(&wanted), "{text}");

    let variables = [(SHIM_VARIABLE, Path::new("/nowhere/shim.so"))];
    let output = play(&env::current_exe().unwrap(), "where", &variables);
    assert!(!output.status.success(), "a named shim that is missing must not be replaced");
}

#[test]
fn an_installed_program_finds_the_shim_installed_with_it() {
    let Some(_) = torch() else { return };
    let prefix = tempfile::tempdir().unwrap();
    let prefix = fs::canonicalize(prefix.path()).unwrap();
    let (bin, lib) = (prefix.join("bin"), prefix.join("lib/gpulet"));
    fs::create_dir_all(&bin).unwrap();
    fs::create_dir_all(&lib).unwrap();
    let program = bin.join("program");
    fs::copy(env::current_exe().unwrap(), &program).unwrap();
    let shim = lib.join(SHIM_NAME);
    fs::copy(built_shim().unwrap(), &shim).unwrap();
    let text = play_well(&program, "where", &[]);
    assert!(text.contains(&format!("shim={} ", shim.display())), "{text}");

    let beside = bin.join(SHIM_NAME);
    fs::copy(&shim, &beside).unwrap();
    let text = play_well(&program, "where", &[]);
    assert!(text.contains(&format!("shim={} ", beside.display())), "{text}");
    fs::remove_dir_all(&prefix).unwrap();
}

#[test]
fn the_build_leaves_a_copy_beside_its_programs() {
    let Some(_) = torch() else { return };
    // A test program lies in target/<profile>/deps.
    let program = env::current_exe().unwrap();
    let published = program.parent().unwrap().parent().unwrap().join(SHIM_NAME);
    assert_eq!(fs::read(published).unwrap(), fs::read(built_shim().unwrap()).unwrap());
}
