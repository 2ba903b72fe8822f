//! Configs that are not what they should be.

use crate::support::daemon::{REPLAY, Setup};

/// The log of a daemon that must refuse its config.
fn refusal(setup: Setup) -> String {
    let mut daemon = setup.launch();
    assert_eq!(daemon.ended().code(), Some(78), "{}", daemon.log());
    assert!(!daemon.socket.exists(), "nothing was bound");
    daemon.log()
}

#[test]
fn a_bad_config_ends_the_daemon_with_a_code_of_its_own() {
    let unknown_model = REPLAY.to_owned() + "models = [\"nobody\"]\n";
    for (setup, field, rule) in [
        (Setup::builtin().top("spin_us = -1"), "gpuletd.toml:3: spin_us", "must be 0 to"),
        (Setup::builtin().top("sokcet = 1"), "gpuletd.toml:3: sokcet", "unknown field"),
        (Setup::builtin().top("= 1"), "gpuletd.toml:3", "no TOML"),
        (
            Setup::builtin().section("[limits]\nqueue_max = 0"),
            "gpuletd.toml:4: limits.queue_max",
            "must be 1 to 65536, is 0",
        ),
        (
            Setup::builtin().section("[access]\nusers = [\"no-such-user\"]"),
            "access.users[0]",
            "must be a known user",
        ),
        (Setup::builtin().gpulets(&unknown_model), "gpulet[0].models", "\"nobody\" is none"),
    ] {
        let log = refusal(setup);
        assert!(log.contains(field) && log.contains(rule), "{log}");
    }
}

#[test]
fn a_config_that_is_not_there_is_named_and_so_is_a_log_level() {
    let setup = Setup::builtin();
    let missing = setup.path().join("elsewhere.toml");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_gpuletd"))
        .arg("--config")
        .arg(&missing)
        .env("GPULET_LOG", "gpulet_daemon=loud")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(78));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("elsewhere.toml: cannot be read"), "{text}");
    assert!(text.contains("GPULET_LOG: error parsing level"), "{text}");
}
