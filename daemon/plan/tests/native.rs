//! Problems in files of our own: several device types, additive interference.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use gpulet_plan::check::check;
use gpulet_plan::interference::{Temper, Tempers};
use gpulet_plan::native::{Asked, Device, Document, Profile, problem};
use gpulet_plan::profile::ProfilePoint;
use gpulet_plan::search::Policy;

/// Two device types, the second twice as fast; shares in steps of an eighth.
fn document() -> Document {
    let mut profiles = Vec::new();
    for (device, speed) in [("old", 1.0), ("new", 2.0)] {
        for (model, row_ns) in [("small", 200_000.0), ("large", 1_500_000.0)] {
            for share_pct in [12, 25, 37, 50, 62, 75, 87, 100] {
                let points = [1_u32, 2, 4, 8, 16, 32].map(|rows| {
                    let share = (f64::from(share_pct) / 100.0_f64).min(0.7);
                    let ns = (1e6 + row_ns * f64::from(rows) / share) / speed;
                    ProfilePoint { rows, p50_ns: ns as u64, p99_ns: (1.03 * ns) as u64 }
                });
                let (device, model) = (device.to_owned(), model.to_owned());
                profiles.push(Profile { device, model, share_pct, points: points.to_vec() });
            }
        }
    }
    let device = |name: &str, count: u32| Device {
        name: name.into(),
        count,
        memory_mb: 70_000,
        context_mb: 500,
        gpulets_max: 8,
        profiles: None,
    };
    let asked = |name: &str, rate: f64, slo_ms: f64| Asked {
        name: name.into(),
        rate,
        slo_ms,
        memory_mb: 900,
    };
    let temper = |pressure: f64| Temper { pressure, sensitivity_one: 0.4, sensitivity_many: 0.25 };
    Document {
        latency_ratio: 1.0,
        models_per_gpulet_max: 8,
        batch_max: 32,
        head_room: true,
        device: vec![device("old", 20), device("new", 2)],
        model: vec![asked("small", 3000.0, 40.0), asked("large", 900.0, 100.0)],
        profile: profiles,
        interference: Some(Tempers {
            share_power: 0.8,
            models: [("small".into(), temper(0.3)), ("large".into(), temper(1.0))].into(),
        }),
        tempers: None,
    }
}

#[test]
fn faster_devices_are_used_first_and_plans_hold() {
    let posed = problem("p.json", &document()).unwrap();
    let plan = Policy::Packed.plan(&posed).unwrap();
    assert_eq!(check(&posed, &plan), []);
    assert!(plan.devices.iter().any(|device| device.kind == "new"), "{plan:?}");
    assert!(plan.devices.len() as f64 >= plan.bound);
    let mut slow = document();
    slow.device[1].count = 0;
    slow.device[0].count = 40;
    let slow = Policy::Packed.plan(&problem("p.json", &slow).unwrap()).unwrap();
    assert!(slow.devices.len() > plan.devices.len());
}

#[test]
fn documents_round_trip() {
    let text = serde_json::to_string(&document()).unwrap();
    assert_eq!(serde_json::from_str::<Document>(&text).unwrap(), document());
    let error = serde_json::from_str::<Document>(&text.replacen("batch_max", "batches", 1));
    assert!(error.unwrap_err().to_string().contains("unknown field `batches`"));
}

#[test]
fn bad_documents_are_told() {
    let told = |change: &dyn Fn(&mut Document)| -> String {
        let mut wrong = document();
        change(&mut wrong);
        problem("p.json", &wrong).unwrap_err().to_string()
    };
    assert!(told(&|it| it.latency_ratio = 0.5).starts_with("p.json: latency_ratio: must be 1"));
    assert!(told(&|it| it.device.clear()).starts_with("p.json: device.count: must be 1 to"));
    assert!(told(&|it| it.profile.clear()).starts_with("p.json: large: must have a profile on"));
    assert!(told(&|it| it.model[0].rate = f64::NAN).contains("small: rate must be 0 to"));
    assert!(told(&|it| it.model[0].memory_mb = 0).contains("small: memory_mb must be"));
    assert!(told(&|it| it.batch_max = 0).contains("batch_max: must be 1 to 1024"));
    assert!(told(&|it| it.profile[0].share_pct = 0).contains("share_pct must be 1 to 100"));
    assert!(told(&|it| it.device[1].name = "old".into()).contains("must be given once"));
    assert!(told(&|it| it.profile[0].points.clear()).contains("points: must hold 1 to"));
    let lone = |it: &mut Document| {
        it.interference.as_mut().unwrap().models.remove("small");
    };
    assert!(told(&lone).contains("small: must have its interference given"));
}
