//! Every rule of gpuletd.toml, by the message that a broken one gives.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};

use gpulet_daemon::config::{
    Config, ConfigError, Cuda, DeviceName, Gpulet, Mechanism, ModelSet, Mps, Spin,
};
use gpulet_daemon::limits::Limits;
use gpulet_daemon::model;
use proptest::prelude::*;

const PATH: &str = "/etc/gpulet/gpuletd.toml";

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new(PATH), text)
}

/// The message of a text with exactly one thing wrong.
fn refusal(text: &str) -> String {
    let message = parse(text).expect_err(text).to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    message
}

/// Asserts that the text is refused, naming the line, the field and the rule.
fn refused(text: &str, line: usize, field: &str, rule: &str) {
    let message = refusal(text);
    assert_eq!(message, format!("{PATH}:{line}: {field}: {rule}"), "for {text}");
}

fn configs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../resource/configs")
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = parse("").unwrap();
    assert_eq!(config.socket, Path::new("/run/gpulet/gpuletd.sock"));
    assert_eq!(config.models, [Path::new("/var/lib/gpulet/models")]);
    assert_eq!((config.libtorch_dir, config.torch_shim), (None, None));
    assert_eq!(config.drain_timeout_ns, 10_000_000_000);
    assert_eq!(config.hang_timeout_ns, 30_000_000_000);
    assert_eq!(config.spin, Spin::For { ns: 20_000 });
    assert!(!config.defer);
    assert!(config.access.uids.contains(&0));
    assert!(config.access.gids.is_empty());
    assert_eq!(config.limits, Limits::default());
    let cuda = Cuda { shim: None, kernel_cache: "/var/cache/gpulet".into(), nvrtc: None };
    assert_eq!(config.cuda, cuda);
    let (control, directory) = ("nvidia-cuda-mps-control".into(), "/run/gpulet/mps".into());
    assert_eq!(config.mps, Mps { control, directory, adopt: false, green: false });
    let gpulet = Gpulet {
        name: "cpu0".to_owned(),
        mechanism: Mechanism::Cpu,
        share_pct: 100,
        memory_bytes: None,
        models: ModelSet::All,
        guests: Vec::new(),
    };
    assert_eq!(config.gpulets, [gpulet]);
}

#[test]
fn everything_can_be_said() {
    let config = parse(
        r#"
        socket = "run/my.sock"
        models = ["models", "/srv/models"]
        libtorch_dir = "/opt/libtorch"
        torch_shim = "libshim.so"
        drain_timeout_ms = 0
        hang_timeout_ms = 100
        spin_us = "always"
        defer = true
        [access]
        users = ["root", 1000, "1001", 1000]
        groups = [7]
        [limits]
        sessions_max = 8
        slot_count_max = 16
        region_bytes_max = 1048576
        [[gpulet]]
        name = "left"
        mechanism = "cpu"
        share_pct = 60
        models = ["digits", "crepe"]
        guests = ["lenet"]
        [[gpulet]]
        name = "right"
        mechanism = "cpu"
        share_pct = 40
        [[gpulet]]
        name = "played"
        mechanism = "replay"
        share_pct = 100
        profiles = "profiles"
        "#,
    )
    .unwrap();
    assert_eq!(config.socket, Path::new("/etc/gpulet/run/my.sock"));
    assert_eq!(config.models, [Path::new("/etc/gpulet/models"), Path::new("/srv/models")]);
    assert_eq!(config.torch_shim.as_deref(), Some(Path::new("/etc/gpulet/libshim.so")));
    assert_eq!((config.drain_timeout_ns, config.hang_timeout_ns), (0, 100_000_000));
    assert_eq!(config.spin, Spin::Always);
    assert!(config.defer);
    assert_eq!(config.access.uids, [0, 1000, 1001]);
    assert_eq!(config.access.gids, [7]);
    assert_eq!(config.gpulets[0].models, ModelSet::Named(vec!["digits".into(), "crepe".into()]));
    assert!(config.gpulets[0].models.contains("digits"));
    assert!(!config.gpulets[0].models.contains("lenet"));
    assert!(config.gpulets[0].hosts("lenet") && !config.gpulets[0].hosts("bert"));
    assert_eq!(config.gpulets[1].guests, Vec::<String>::new());
    assert!(config.gpulets[1].models.contains("lenet"));
    let profiles_dir = PathBuf::from("/etc/gpulet/profiles");
    assert_eq!(config.gpulets[2].mechanism, Mechanism::Replay { profiles_dir, device: None });
}

#[test]
fn a_default_never_breaks_a_smaller_maximum() {
    let config = parse("[limits]\nsessions_max = 8\nslot_count_max = 16").unwrap();
    assert_eq!(config.limits.sessions_per_user_max, 8);
    assert_eq!(config.limits.slot_count_default, 16);
    let config = parse("[limits]\nregion_bytes_max = 65536").unwrap();
    assert!(config.limits.slot_bytes_max < 65536);
    let largest = Limits::largest_slot_bytes(config.limits.region_bytes_max);
    assert!(config.limits.slot_bytes_max <= largest);
    let config = parse("[limits]\nregion_bytes_max = 68719476736").unwrap();
    assert_eq!(config.limits.region_bytes_total_max, 68719476736);
}

#[test]
fn limits_have_limits() {
    for (field, below, above, high) in [
        ("sessions_max", 0, 1025, "1 to 1024"),
        ("sessions_per_user_max", 0, 65, "1 to 64"),
        ("slot_count_max", 0, 65537, "1 to 65536"),
        ("slot_count_default", -1, 4097, "1 to 4096"),
        ("queue_max", 0, 65537, "1 to 65536"),
        ("models_max", 0, 1025, "1 to 1024"),
        ("entries_per_turn_max", 0, 4097, "1 to 4096"),
        ("region_bytes_max", 65535, 68719476737i64, "65536 to 68719476736"),
        ("region_bytes_total_max", 1073741823, 1099511627777, "1073741824 to 1099511627776"),
        ("slot_bytes_max", 255, 1073741824, "256 to 1073729536"),
    ] {
        for number in [below, above, i64::MIN, i64::MAX] {
            let text = format!("\n[limits]\n{field} = {number}");
            let rule = format!("must be {high}, is {number}");
            refused(&text, 3, &format!("limits.{field}"), &rule);
        }
    }
}

#[test]
fn durations_have_limits() {
    for (field, low, numbers) in
        [("drain_timeout_ms", 0, [-1, 3_600_001]), ("hang_timeout_ms", 100, [99, 3_600_001])]
    {
        for number in numbers {
            let rule = format!("must be {low} to 3600000, is {number}");
            refused(&format!("{field} = {number}"), 1, field, &rule);
        }
    }
    for (value, said) in [("-1", "-1"), ("1000001", "1000001"), ("'never'", "\"never\"")] {
        let rule = format!("must be 0 to 1000000 or \"always\", is {said}");
        refused(&format!("spin_us = {value}"), 1, "spin_us", &rule);
    }
}

#[test]
fn paths_have_rules() {
    let rule = "must be a path, is empty or has a NUL";
    refused("socket = ''", 1, "socket", rule);
    refused("\nlibtorch_dir = ''", 2, "libtorch_dir", rule);
    refused("torch_shim = \"a\\u0000b\"", 1, "torch_shim", rule);
    refused("models = ['a', '']", 1, "models[1]", rule);
    refused("models = []", 1, "models", "must have 1 to 64 directories, has 0");
    let rule = "must be named once, /etc/gpulet/a is there twice";
    refused("models = [\n'a',\n'/etc/gpulet/a']", 3, "models[1]", rule);
    let long = "x".repeat(100);
    let rule = format!("must have at most 107 bytes as an absolute path, is /etc/gpulet/{long}");
    refused(&format!("socket = '{long}'"), 1, "socket", &rule);
}

#[test]
fn users_and_groups_must_be_known() {
    let rule = "must be a known user, there is no user \"no-such-user\"";
    refused("[access]\nusers = ['root', 'no-such-user']", 2, "access.users[1]", rule);
    let rule = "must be a known group, there is no group \"no-such-group\"";
    refused("[access]\ngroups = ['no-such-group']", 2, "access.groups[0]", rule);
    let rule = "must be 0 to 4294967294 as a user id, is 4294967295";
    refused("[access]\nusers = [4294967295]", 2, "access.users[0]", rule);
    let rule = "must be 0 to 4294967294 as a group id, is -1";
    refused("[access]\ngroups = ['-1']", 2, "access.groups[0]", rule);
    let rule = "must be a user's name or id, is boolean";
    refused("[access]\nusers = [true]", 2, "access.users[0]", rule);
    let many = format!("[access]\nusers = [{}]", "0,".repeat(1025));
    refused(&many, 2, "access.users", "must have at most 1024 entries");
    assert!(parse("[access]\nusers = []").unwrap().access.uids.is_empty());
}

fn gpulet(rest: &str) -> String {
    format!("[[gpulet]]\nname = 'a'\n{rest}")
}

#[test]
fn gpulets_have_rules() {
    let rule = "must be 1 to 63 of a-z, 0-9, '_', '.' and '-', the first a letter or digit, \
                is \"A/b\"";
    let text = "[[gpulet]]\nname = 'A/b'\nmechanism = 'cpu'\nshare_pct = 1";
    refused(text, 2, "gpulet[0].name", rule);
    for number in [0, 101, -5] {
        let text = gpulet(&format!("mechanism = 'cpu'\nshare_pct = {number}"));
        let rule = format!("must be 1 to 100, is {number}");
        refused(&text, 4, "gpulet[0].share_pct", &rule);
    }
    let rule = "must be \"cpu\", \"replay\", \"mps\" or \"green\", is \"gpu\"";
    refused(&gpulet("mechanism = 'gpu'\nshare_pct = 1"), 3, "gpulet[0].mechanism", rule);
    let rule = "must be given with mechanism = \"replay\": the directory of profiles";
    refused(&gpulet("mechanism = 'replay'\nshare_pct = 1"), 3, "gpulet[0].profiles", rule);
    let rule = "must be absent with mechanism = \"cpu\", which measures its profiles";
    let text = gpulet("mechanism = 'cpu'\nshare_pct = 1\nprofiles = 'x'");
    refused(&text, 5, "gpulet[0].profiles", rule);
    let text = gpulet("mechanism = 'cpu'\nshare_pct = 1\n").repeat(2);
    refused(&text, 6, "gpulet[1].name", "must be unique, \"a\" is taken");
}

#[test]
fn shares_of_the_cpu_do_not_overlap() {
    let three = |mechanism: &str| -> String {
        ["a", "b", "c"]
            .map(|name| format!("[[gpulet]]\nname='{name}'\nmechanism={mechanism}\nshare_pct=50\n"))
            .concat()
    };
    let rule = "must not add up to more than 100 on cpu, adds up to 150";
    refused(&three("'cpu'"), 12, "gpulet[2].share_pct", rule);
    assert_eq!(parse(&three("'replay'\nprofiles='p'")).unwrap().gpulets.len(), 3);
}

const UUID: &str = "GPU-8f0e3a21-77b4-4c1d-9e52-0123456789ab";

/// Gpulets of so many percent each, by mechanism and device as the file has them.
fn on_gpus(parts: &[(&str, &str, u8)]) -> String {
    let part = |(index, (mechanism, device, pct)): (usize, &(&str, &str, u8))| {
        format!(
            "[[gpulet]]\nname = 'g{index}'\nmechanism = '{mechanism}'\n\
             share_pct = {pct}\ndevice = {device}\n"
        )
    };
    parts.iter().enumerate().map(part).collect()
}

#[test]
fn gpulets_on_gpus_can_be_said() {
    let text =
        on_gpus(&[("mps", "0", 60), ("mps", "0", 40), ("green", "1", 25), ("green", "1", 75)]);
    let text = text
        + "memory_mib = 4096\n[cuda]\nshim = 'shim.so'\nkernel_cache = '/c'\n\
                       nvrtc = '/n.so'\n[mps]\ncontrol = 'bin/control'\ndirectory = 'mps'\n\
                       adopt = true\ngreen = true\n";
    let config = parse(&text).unwrap();
    assert_eq!(config.gpulets[0].mechanism, Mechanism::Mps { device: DeviceName::Index(0) });
    assert_eq!(config.gpulets[2].mechanism, Mechanism::Green { device: DeviceName::Index(1) });
    assert_eq!(config.gpulets[2].memory_bytes, None);
    assert_eq!(config.gpulets[3].memory_bytes, Some(4 << 30));
    let (shim, nvrtc) = (Some("/etc/gpulet/shim.so".into()), Some("/n.so".into()));
    assert_eq!(config.cuda, Cuda { shim, kernel_cache: "/c".into(), nvrtc });
    let (control, directory) = ("/etc/gpulet/bin/control".into(), "/etc/gpulet/mps".into());
    assert_eq!(config.mps, Mps { control, directory, adopt: true, green: true });
    let named = parse("[mps]\ncontrol = 'control'").unwrap().mps.control;
    assert_eq!(named, Path::new("control"), "a name alone is looked up in PATH");
    let config = parse(&on_gpus(&[("mps", &format!("'{}'", UUID.to_uppercase()), 1)])).unwrap();
    let device = DeviceName::Uuid(UUID.to_owned());
    assert_eq!(config.gpulets[0].mechanism.device(), Some(&device));
}

#[test]
fn devices_have_rules() {
    for (value, said) in [
        ("-1", "-1"),
        ("64", "64"),
        ("1.5", "1.5"),
        ("'GPU-8f0e3a21'", "\"GPU-8f0e3a21\""),
        (
            "'MIG-8f0e3a21-77b4-4c1d-9e52-0123456789ab'",
            "\"MIG-8f0e3a21-77b4-4c1d-9e52-0123456789ab\"",
        ),
        ("''", "\"\""),
    ] {
        let rule = format!(
            "must be an index, 0 to 63, or a whole UUID as nvidia-smi -L shows it \
             (\"GPU-...\"), is {said}"
        );
        refused(&on_gpus(&[("mps", value, 1)]), 5, "gpulet[0].device", &rule);
    }
    let rule = "must be given with mechanism = \"green\": a GPU's index or UUID";
    refused(&gpulet("mechanism = 'green'\nshare_pct = 1"), 3, "gpulet[0].device", rule);
    for (mechanism, rest) in [("cpu", ""), ("replay", "profiles = 'p'\n")] {
        let rule = format!("must be absent with mechanism = {mechanism:?}, which uses no GPU");
        let text = on_gpus(&[(mechanism, "0", 1)]) + rest;
        if mechanism == "cpu" {
            refused(&text, 5, "gpulet[0].device", &rule);
        }
        let text = text.replace("device = 0", "memory_mib = 1");
        refused(&text, 5, "gpulet[0].memory_mib", &rule);
    }
    for number in [0, 1_048_577, -1] {
        let text = on_gpus(&[("mps", "0", 1)]) + &format!("memory_mib = {number}");
        let rule = format!("must be 1 to 1048576, is {number}");
        refused(&text, 6, "gpulet[0].memory_mib", &rule);
    }
    let rule = "must be absent with mechanism = \"mps\", which measures its profiles";
    let text = on_gpus(&[("mps", "0", 1)]) + "profiles = 'p'";
    refused(&text, 6, "gpulet[0].profiles", rule);
}

#[test]
fn shares_of_a_device_do_not_overlap() {
    for mechanism in ["mps", "green"] {
        let part = |device, pct| (mechanism, device, pct);
        let rule = "must not add up to more than 100 on device 1, adds up to 101";
        let text = on_gpus(&[part("1", 60), part("0", 100), part("1", 41)]);
        refused(&text, 14, "gpulet[2].share_pct", rule);
        parse(&on_gpus(&[part("1", 60), part("0", 100), part("1", 40)])).unwrap();
    }
    let rule = "must be \"mps\", by which gpulet \"g0\" cuts device 3";
    let text = on_gpus(&[("mps", "3", 10), ("green", "3", 10)]);
    refused(&text, 8, "gpulet[1].mechanism", rule);
    let uuid = format!("'{UUID}'");
    let rule = "must be an index as in gpulet \"g0\", is a UUID";
    refused(&on_gpus(&[("mps", "0", 10), ("green", &uuid, 10)]), 10, "gpulet[1].device", rule);
    let rule = format!("must not add up to more than 100 on device {UUID}, adds up to 110");
    let text = on_gpus(&[("mps", &uuid, 10), ("mps", &uuid.to_uppercase(), 100)]);
    refused(&text, 9, "gpulet[1].share_pct", &rule);
}

#[test]
fn mps_and_cuda_have_rules() {
    let rule = "must be a path, is empty or has a NUL";
    for (section, keys) in
        [("mps", &["control", "directory"][..]), ("cuda", &["shim", "kernel_cache", "nvrtc"])]
    {
        for key in keys {
            refused(&format!("[{section}]\n{key} = ''"), 2, &format!("{section}.{key}"), rule);
        }
    }
    let long = format!("/{}", "x".repeat(77));
    let rule = format!(
        "must have at most 77 bytes as an absolute path, for MPS has sockets in it, is {long}"
    );
    refused(&format!("[mps]\ndirectory = '{long}'"), 2, "mps.directory", &rule);
    parse(&format!("[mps]\ndirectory = '{}'", &long[..77])).unwrap();
    assert!(refusal("[mps]\nadopt = 1").contains(":2: mps.adopt: invalid type"));
    assert!(refusal("[cuda]\nnvcc = 'x'").contains(":2: cuda.nvcc: unknown field `nvcc`"));
}

#[test]
fn sets_of_models_have_rules() {
    let with = |models: &str| gpulet(&format!("mechanism='cpu'\nshare_pct=1\nmodels={models}"));
    let rule = "must have 1 to 1024 names, or be absent for all models";
    refused(&with("[]"), 5, "gpulet[0].models", rule);
    refused(&with("['x', 'x']"), 5, "gpulet[0].models[1]", "names \"x\" twice");
    let guests = |list: &str| with(&format!("['x']\nguests = {list}"));
    let rule = "must have 1 to 1024 names, or be absent for none";
    refused(&guests("[]"), 6, "gpulet[0].guests", rule);
    refused(&guests("['y', 'y']"), 6, "gpulet[0].guests[1]", "names \"y\" twice");
    refused(&guests("['y', 'x']"), 6, "gpulet[0].guests[1]", "must not be in models, \"x\" is");
    let rule = "must be absent without models: then every model is at home there";
    let text = gpulet("mechanism = 'cpu'\nshare_pct = 1\nguests = ['x']");
    refused(&text, 5, "gpulet[0].guests", rule);
    assert!(refusal(&with("['../x']")).contains("gpulet[0].models[0]: must be 1 to 63 of a-z"));
    let many: String = (0..65)
        .map(|i| format!("[[gpulet]]\nname='g{i}'\nmechanism='cpu'\nshare_pct=1\n"))
        .collect();
    refused(&many, 257, "gpulet", "must be at most 64, are 65");
}

#[test]
fn toml_itself_has_rules() {
    assert!(refusal("sokcet = 'x'").contains(":1: sokcet: unknown field `sokcet`, expected one"));
    assert!(refusal("[limits]\nqueue = 1").contains(":2: limits.queue: unknown field `queue`"));
    assert!(refusal("[[gpulet]]\nname='a'\nmechanism='cpu'").contains("missing field `share_pct`"));
    assert!(refusal("drain_timeout_ms = 'x'").contains(":1: drain_timeout_ms: invalid type"));
    assert!(refusal("drain_timeout_ms = 1.5").contains(":1: drain_timeout_ms: invalid type"));
    assert!(refusal("drain_timeout_ms = 1\ndrain_timeout_ms = 2").contains(":2: is no TOML: "));
    assert!(refusal("= 3").contains(":1: is no TOML: "));
}

#[test]
fn everything_wrong_is_said_at_once() {
    let text = "spin_us = -1\n[limits]\nqueue_max = 0\n[access]\nusers = ['no-such-user']";
    let message = parse(text).unwrap_err().to_string();
    let fields: Vec<_> = message.lines().map(|line| line.split(": ").nth(1).unwrap()).collect();
    assert_eq!(fields, ["spin_us", "access.users[0]", "limits.queue_max"]);
}

#[test]
fn files_that_cannot_be_read_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.toml");
    let message = Config::load(&missing).unwrap_err().to_string();
    assert!(message.starts_with(&format!("{}: cannot be read: ", missing.display())));
    let message = Config::load(folder.path()).unwrap_err().to_string();
    assert!(message.contains("is no regular file"), "{message}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe, 0]).unwrap();
    let message = Config::load(&binary).unwrap_err().to_string();
    assert!(message.contains("UTF-8"), "{message}");
}

#[test]
fn gpulets_name_models_there_are() {
    let roots = [configs().join("../models")];
    let models = model::scan(&roots, &Limits::default()).unwrap();
    let with = |names| gpulet(&format!("mechanism='cpu'\nshare_pct=1\nmodels={names}"));
    parse(&with("['digits', 'echo']")).unwrap().check_models(&models).unwrap();
    parse("").unwrap().check_models(&[]).unwrap();
    let error = parse(&with("['digits', 'none']")).unwrap().check_models(&models).unwrap_err();
    let rule = "gpulet[0].models: must name models there are, \"none\" is none";
    assert_eq!(error.to_string(), format!("{PATH}: {rule}"));
    let text = with("['digits']\nguests=['none']");
    let error = parse(&text).unwrap().check_models(&models).unwrap_err();
    let rule = "gpulet[0].guests: must name models there are, \"none\" is none";
    assert_eq!(error.to_string(), format!("{PATH}: {rule}"));
}

#[test]
fn the_examples_are_good() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(configs()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            // The group that an installation makes need not exist here.
            let text = std::fs::read_to_string(&path).unwrap().replace("\"gpulet\"", "0");
            Config::parse(&path, &text).unwrap_or_else(|error| panic!("{error}"));
            names.push(path.file_stem().unwrap().to_string_lossy().into_owned());
        }
    }
    names.sort();
    assert_eq!(names, ["demo", "gpu", "gpuletd", "replay"]);
}

/// The documented default configuration says what an empty one means.
#[test]
fn the_documented_defaults_are_the_defaults() {
    let path = configs().join("gpuletd.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace("groups = [\"gpulet\"]", "groups = []");
    let said = Config::parse(&path, &text).unwrap();
    // Every key that is only shown commented out is uncommented here.
    let shown: String = text
        .lines()
        .map(|line| match line.strip_prefix("#") {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase()) => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let shown = Config::parse(&path, &shown).unwrap();
    let empty = Config::parse(&path, "").unwrap();
    assert_eq!(said.limits, empty.limits);
    assert_eq!(shown.limits, empty.limits);
    assert_eq!(shown.gpulets, empty.gpulets);
    assert_eq!(shown.mps, empty.mps);
    assert_eq!((&shown.cuda, &said.cuda), (&empty.cuda, &empty.cuda));
    for config in [&said, &shown] {
        assert_eq!(config.socket, empty.socket);
        assert_eq!(config.models, empty.models);
        assert_eq!(config.drain_timeout_ns, empty.drain_timeout_ns);
        assert_eq!(config.hang_timeout_ns, empty.hang_timeout_ns);
        assert_eq!(config.spin, empty.spin);
    }
}

fn examples() -> Vec<String> {
    ["gpuletd.toml", "demo.toml", "replay.toml", "gpu.toml"]
        .map(|name| std::fs::read_to_string(configs().join(name)).unwrap())
        .to_vec()
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC*") {
        let _ = parse(&text);
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..512)) {
        let _ = parse(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn no_mutation_makes_it_panic(
        which in 0usize..4,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = examples()[which].clone().into_bytes();
        for (at, byte) in edits {
            let at = at.index(bytes.len());
            match byte % 3 {
                0 => bytes[at] = byte,
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, byte),
            }
        }
        if let Err(error) = parse(&String::from_utf8_lossy(&bytes)) {
            prop_assert!(error.to_string().starts_with(PATH));
        }
    }
}
