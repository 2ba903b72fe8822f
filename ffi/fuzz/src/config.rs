//! `gpuletd.toml`: a config that is accepted keeps every promise of its fields, one that is refused
//! says why.

use std::path::Path;

use gpulet_abi::region::Geometry;
use gpulet_daemon::config::{Config, ConfigError, Mechanism, ModelSet};

/// Parses the input as a config.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    match Config::parse(Path::new("/etc/gpulet/gpuletd.toml"), text) {
        Ok(config) => check(&config),
        Err(ConfigError::Invalid(problems)) => {
            assert!(!problems.is_empty(), "refused without a reason");
            let lines = 1 + text.matches('\n').count();
            for problem in problems {
                assert!(problem.line.is_none_or(|line| (1..=lines).contains(&line)));
                assert!(!problem.to_string().is_empty());
            }
        }
        Err(error) => panic!("{error}"),
    }
}

fn check(config: &Config) {
    let limits = &config.limits;
    assert!(limits.sessions_per_user_max <= limits.sessions_max);
    assert!(limits.slot_count_default <= limits.slot_count_max);
    assert!(limits.region_bytes_max <= limits.region_bytes_total_max);
    let largest = Geometry::new(limits.slot_bytes_max, 1);
    assert!(largest.is_some_and(|geometry| geometry.region_bytes <= limits.region_bytes_max));
    assert!(limits.queue_max > 0 && limits.entries_per_turn_max > 0);
    assert!(config.socket.is_absolute());
    assert!(!config.models.is_empty() && config.models.iter().all(|root| root.is_absolute()));
    assert!(!config.gpulets.is_empty());
    let mut cpu_pct = 0;
    for (index, gpulet) in config.gpulets.iter().enumerate() {
        assert!((1..=100).contains(&gpulet.share_pct));
        assert!(config.gpulets[..index].iter().all(|other| other.name != gpulet.name));
        if gpulet.mechanism == Mechanism::Cpu {
            cpu_pct += u32::from(gpulet.share_pct);
        }
        if let ModelSet::Named(names) = &gpulet.models {
            assert!(!names.is_empty());
        }
    }
    assert!(cpu_pct <= 100);
}
