//! `model.toml`: a model that is accepted can be served, described to clients, told to executors.

use std::path::Path;

use gpulet_daemon::limits::Limits;
use gpulet_daemon::model::{Model, ModelError, parse};
use gpulet_daemon::models::Models;

/// A directory with a `model.pt`, so that archives are found.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../resource/models/digits/model.toml");

/// Parses the input as a model.
pub fn run(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let limits = Limits::default();
    match parse("name", Path::new(FILE), text, &limits) {
        Ok(model) => check(model, &limits),
        Err(ModelError::Invalid(problems)) => {
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

fn check(model: Model, limits: &Limits) {
    assert!(model.max_batch > 0 && model.warmup_count > 0 && model.slo_ns > 0);
    let json = serde_json::to_vec(&model).expect("a model can be told to an executor");
    assert_eq!(serde_json::from_slice::<Model>(&json).ok().as_ref(), Some(&model));
    let mut models = Models::default();
    let id = models.add(model, 1, 1);
    let hosted = models.get(id).expect("it was just added");
    assert!(hosted.spec.is_consistent(), "what clients are told contradicts itself");
    assert!(hosted.slot_bytes(1).is_some_and(|bytes| bytes <= limits.slot_bytes_max));
    assert!(hosted.slot_bytes(hosted.model.max_batch).is_some());
    gpulet_client::fuzz_packet(bytemuck::bytes_of(&*hosted.spec));
}
