//! Readers meet whatever a file may hold: an answer or an error with the file's name, no panic.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Debug;

use gpulet_plan::input::InputError;
use gpulet_plan::published;
use proptest::prelude::*;

fn told<T: Debug>(read: Result<T, InputError>) {
    if let Err(error) = read {
        let text = error.to_string();
        assert!(text.starts_with("file.x:"), "{text}");
        assert!(!text.contains('\n'), "one line: {text:?}");
    }
}

fn read_as_anything(text: &str) {
    told(published::rates("file.x", text));
    told(published::latencies("file.x", text));
    told(published::batching_costs("file.x", text));
    told(published::utilisations("file.x", text));
    told(published::constants("file.x", text));
    told(published::scheduling("file.x", text));
    told(published::devices("file.x", text));
    told(published::memory("file.x", text));
    told(published::input_shapes("file.x", text));
    let problem = support::problem(&[(0, 10.0)], 2, false);
    if let Ok(plan) = published::place("file.x", text, &problem) {
        let _ = gpulet_plan::check::check(&problem, &plan);
    }
}

proptest! {
    #[test]
    fn any_text(text in "\\PC{0,200}") {
        read_as_anything(&text);
    }

    #[test]
    fn any_lines(lines in proptest::collection::vec(
        proptest::collection::vec("-?[0-9]{1,12}(\\.[0-9]{0,4})?|[a-z]{0,6}|nan|inf|1e400| ", 0..8),
        0..8,
    )) {
        let text: Vec<String> = lines.iter().map(|fields| fields.join(",")).collect();
        read_as_anything(&text.join("\n"));
        read_as_anything(&format!("{}\n{}", lines.len(), text.join("\r\n")));
    }

    #[test]
    fn any_json(
        key in "GPUs|models|Models|device_specs",
        name in "\\PC{0,8}",
        number: f64,
        depth in 0..300_usize,
    ) {
        let inner = format!("{{\"name\": {name:?}, \"mem\": {number:?}}}");
        let nested = format!("{}{inner}{}", "[".repeat(depth), "]".repeat(depth));
        read_as_anything(&format!("{{\"{key}\": {nested}}}"));
    }

    #[test]
    fn latencies_that_are_read_stand_in_the_table(
        points in proptest::collection::btree_map((1..=100_u32, 1..=64_u32), 0.001..1e6_f64, 1..40),
    ) {
        let line = |(&(share, batch), ms): (&(u32, u32), &f64)| format!("m,{share},{batch},{ms}\n");
        let text: String = points.iter().map(line).collect();
        let table = published::latencies("file.x", &text).unwrap();
        for (&(share, batch), &ms) in &points {
            prop_assert_eq!(table.latency_ms("m", share, batch), Some(ms));
        }
    }
}
