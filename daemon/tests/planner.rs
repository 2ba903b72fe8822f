//! `gpuletctl schedule` and `plan-check` as a user meets them, on files made here.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

const FLAGS: &str = r#"{ "GPUs": [{"Type": "card", "Num": 4}], "Max Model": 3, "Part": 1,
    "Latency Ratio": 1.1, "Interference": 1, "Incremental": 1 }"#;
const DEVICES: &str = r#"{ "device_specs": [{ "type": "card", "mem_mb": 11000,
    "latency_prof_file": "latency.csv", "interference_const_file": "constants.csv",
    "interference_util_file": "use.csv" }] }"#;
const MEMORY: &str = r#"{ "models": [{"name": "resnet50", "mem": 1820},
    {"name": "vgg16", "mem": 2920}, {"name": "mine", "mem": 500}] }"#;

/// A directory with everything that the scheduler reads.
fn files() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let mut latency = String::new();
    for (model, fixed, row) in [("resnet50", 4.0, 1.2), ("vgg16", 6.0, 2.0), ("mine", 1.0, 0.3)] {
        for share in [20, 40, 50, 60, 80, 100] {
            for batch in 1..=32 {
                let ms = fixed + row * f64::from(batch) / (f64::from(share) / 100.0_f64).min(0.6);
                writeln!(latency, "{model},{share},{batch},{ms:.6}").unwrap();
            }
        }
    }
    put("latency.csv", &latency);
    put("constants.csv", "a,b,c,d,e\n0.1,0.7,0.3,0.1,0.9\n");
    let mut used = "model,batch,ms,SM,L2,DRAM,achieved,theoretical\n".to_owned();
    for model in ["resnet50", "vgg16", "mine"] {
        writeln!(used, "{model},1,5,10,10,20,5,5,\n{model},32,9,50,30,60,5,5,").unwrap();
    }
    put("use.csv", &used);
    let times: String =
        (1..=32).map(|batch| format!("{batch},{:.3},\n", 0.2 * f64::from(batch))).collect();
    put("3_224_224.txt", &times);
    put("3_300_300.txt", &times);
    put("flags.json", FLAGS);
    put("devices.json", DEVICES);
    put("memory.json", MEMORY);
    put("tasks.csv", "3\n7,100,108,\n9,50,142,\nmine,30,40,\n");
    dir
}

fn ctl(dir: &Path, command: &str, more: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gpuletctl"))
        .current_dir(dir)
        .args([command, "--task-config", "tasks.csv", "--sched-config", "flags.json"])
        .args(["--device-config", "devices.json", "--mem-config", "memory.json"])
        .args(["--resource-dir", "."])
        .args(more)
        .output()
        .unwrap()
}

fn complaint(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(text.lines().count(), 1, "one line: {text}");
    text.trim().to_owned()
}

#[test]
fn a_plan_is_written_and_holds() {
    let dir = files();
    for policy in ["packed", "temporal", "elastic", "elastic-no-interference", "greedy"] {
        let more = ["--policy", policy, "--json", "plan.json", "--explain"];
        let planned = ctl(dir.path(), "schedule", &more);
        let said = String::from_utf8(planned.stdout).unwrap();
        assert!(planned.status.success(), "{policy}: {}", String::from_utf8_lossy(&planned.stderr));
        assert!(said.contains("computation time(ms): "), "{said}");
        let text = fs::read_to_string(dir.path().join("ModelList.txt")).unwrap();
        assert!(text.lines().all(|line| line.split(',').count() == 6), "{text}");
        assert!(text.contains(",reserved,32,0.000000"), "{text}");
        for file in ["ModelList.txt", "plan.json"] {
            let checked = ctl(dir.path(), "plan-check", &[file]);
            assert!(checked.status.success(), "{policy}: {}", complaint(&checked));
        }
    }
}

#[test]
fn a_plan_for_less_is_found_out() {
    let dir = files();
    assert!(ctl(dir.path(), "schedule", &[]).status.success());
    fs::write(dir.path().join("tasks.csv"), "3\n7,400,108,\n9,50,142,\nmine,30,40,\n").unwrap();
    let checked = ctl(dir.path(), "plan-check", &["ModelList.txt"]);
    assert_eq!(checked.status.code(), Some(4));
    let text = String::from_utf8(checked.stderr).unwrap();
    assert!(text.contains("ModelList.txt: resnet50: must get 448.000 requests/s"), "{text}");
}

#[test]
fn what_cannot_be_leaves_an_empty_placement() {
    let dir = files();
    fs::write(dir.path().join("tasks.csv"), "1\n7,200000,108,\n").unwrap();
    let planned = ctl(dir.path(), "schedule", &[]);
    assert_eq!(planned.status.code(), Some(1));
    assert!(complaint(&planned).contains("devices: must be more than 4"));
    assert_eq!(fs::read_to_string(dir.path().join("ModelList.txt")).unwrap(), "EMPTY");
}

#[test]
fn bad_files_are_told_by_name_line_field_and_rule() {
    let cases = [
        ("tasks.csv", "1\n7,-1,108,\n", "tasks.csv:2: rate: must be a number 0 to"),
        ("tasks.csv", "1\n99,1,108,\n", "tasks.csv:2: model: must be a whole number 0 to 13"),
        ("tasks.csv", "2\n7,1,108,\n", "tasks.csv:1: count: says 2, but 1 lines follow"),
        ("tasks.csv", "2\nmine,30,40,\n7,9,1,\n", "tasks.csv:3: resnet50: SLO must be at least"),
        ("tasks.csv", "1\n7,200000,108,\n", "flags.json: devices: must be more than 4"),
        ("tasks.csv", "1\nother,9,1,\n", "memory.json: other: must have its memory given"),
        ("tasks.csv", "1\n6,9,90,\n", "memory.json: googlenet: must have its memory given"),
        ("latency.csv", "model,share,batch,ms\n", "latency.csv:1: share: must be a whole number"),
        ("latency.csv", "vgg16,20,1,5\n", "latency.csv: mine: must have latency lines"),
        ("use.csv", "h\nvgg16,1,1,1,1,1\n", "use.csv: mine: must have utilisation lines"),
        ("constants.csv", "h\n", "constants.csv: constants: must be on the line after"),
        ("3_224_224.txt", "", "3_224_224.txt: lines: must have at least one"),
        ("flags.json", "{}", "flags.json:1: document: missing field `GPUs`"),
    ];
    for (file, text, told) in cases {
        let dir = files();
        fs::write(dir.path().join(file), text).unwrap();
        let planned = ctl(dir.path(), "schedule", &[]);
        assert!(!planned.status.success(), "{file}: {text}");
        let said = complaint(&planned);
        assert!(said.contains(told), "{said:?} should have {told:?}");
    }
    for (good, bad, told) in [
        ("\"Num\": 4", "\"Num\": 0", "flags.json:1: GPUs: must be at least one device"),
        ("1.1", "0.9", "flags.json:2: Latency Ratio: must be 1 to 1000"),
        ("\"card\"", "\"other\"", "flags.json: GPUs: Type must be one that devices.json has"),
    ] {
        let dir = files();
        fs::write(dir.path().join("flags.json"), FLAGS.replace(good, bad)).unwrap();
        let said = complaint(&ctl(dir.path(), "schedule", &[]));
        assert!(said.contains(told), "{said:?} should have {told:?}");
    }
    let dir = files();
    fs::write(dir.path().join("tasks.csv"), b"1\n\xe9,1,1,\n").unwrap();
    let said = complaint(&ctl(dir.path(), "schedule", &[]));
    assert!(said.contains("tasks.csv:2: text: must be UTF-8, is not"), "{said}");
    let dir = files();
    fs::remove_file(dir.path().join("latency.csv")).unwrap();
    let said = complaint(&ctl(dir.path(), "schedule", &[]));
    assert!(said.contains("latency.csv: No such file"), "{said}");
}

#[test]
fn nobody_asks_and_asks_twice() {
    let dir = files();
    fs::write(dir.path().join("tasks.csv"), "2\n7,0,108,\n9,0,142,\n").unwrap();
    assert!(ctl(dir.path(), "schedule", &[]).status.success());
    let text = fs::read_to_string(dir.path().join("ModelList.txt")).unwrap();
    assert!(text.lines().all(|line| line.contains(",reserved,")), "{text}");
    fs::write(dir.path().join("tasks.csv"), "2\n7,50,108,\n7,50,120,\n").unwrap();
    assert!(ctl(dir.path(), "schedule", &["--json", "twice.json"]).status.success());
    fs::write(dir.path().join("tasks.csv"), "1\n7,100,108,\n").unwrap();
    assert!(ctl(dir.path(), "schedule", &["--json", "once.json"]).status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("once.json"), read("twice.json"));
}

/// What becomes of an input.
enum Becomes {
    /// A plan that holds.
    Planned,
    /// No plan, and one line that says this.
    Told(&'static str),
}

/// Inputs that once made a scheduler hang, crash, or promise what it did not keep: of each the
/// file, what it holds instead (nothing: it is not there), and what becomes of it.
const ODD: [(&str, Option<&str>, Becomes); 26] = {
    use Becomes::{Planned, Told};
    const WHOLE: &str = "must be a whole number";
    [
        ("tasks.csv", Some("1\n7,0,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,1,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,4,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,5,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,6,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,12,108,\n"), Planned),
        ("tasks.csv", Some("1\n7,1e8,108,\n"), Told("tasks.csv:2: rate: must be a number 0 to")),
        ("tasks.csv", Some("1\n7,nan,108,\n"), Told("tasks.csv:2: rate: must be a number 0 to")),
        ("tasks.csv", Some("1\n14,1,108,\n"), Told(WHOLE)),
        ("tasks.csv", Some("1\n-1,1,108,\n"), Told(WHOLE)),
        ("tasks.csv", Some("2\n7,100,108\n9,50,142\n"), Planned),
        ("tasks.csv", Some("1\n7,100,5,\n"), Told("resnet50: SLO must be at least")),
        ("tasks.csv", Some("1\n7,100,0,\n"), Told("tasks.csv:2: SLO: must be")),
        ("tasks.csv", Some(""), Told("tasks.csv: count: must be")),
        ("tasks.csv", Some("0\n"), Planned),
        ("tasks.csv", Some("3\n\n7,100,108,\nmine,30,40,\n\n9,50,142,\n"), Planned),
        ("tasks.csv", None, Told("tasks.csv: No such file")),
        ("use.csv", None, Told("use.csv: No such file")),
        ("constants.csv", None, Told("constants.csv: No such file")),
        ("memory.json", None, Told("memory.json: No such file")),
        ("3_224_224.txt", None, Told("3_224_224.txt: No such file")),
        ("latency.csv", Some("resnet50,20,1\n"), Told("latency.csv:1: ")),
        ("latency.csv", Some("resnet50,20,1,5\nresnet50,20,1,6\n"), Told("latency.csv:2: ")),
        ("devices.json", Some("{\"device_specs\": []}"), Told("Type must be one that devices")),
        ("devices.json", Some("[1"), Told("devices.json:1: ")),
        (
            "memory.json",
            Some(
                "{\"models\": [{\"name\": \"resnet50\", \"mem\": 50000}, {\"name\": \"vgg16\", \
                 \"mem\": 1}, {\"name\": \"mine\", \"mem\": 1}]}",
            ),
            Told("resnet50: memory must be at most 9900 MB"),
        ),
    ]
};

#[test]
fn odd_inputs_have_a_plan_that_holds_or_are_told() {
    for (at, (file, text, becomes)) in ODD.iter().enumerate() {
        let dir = files();
        match text {
            Some(text) => fs::write(dir.path().join(file), text).unwrap(),
            None => fs::remove_file(dir.path().join(file)).unwrap(),
        }
        let planned = ctl(dir.path(), "schedule", &[]);
        match becomes {
            Becomes::Planned => {
                let said = String::from_utf8_lossy(&planned.stderr);
                assert!(planned.status.success(), "{at}: {file}: {text:?}: {said}");
                let checked = ctl(dir.path(), "plan-check", &["ModelList.txt"]);
                assert!(checked.status.success(), "{at}: {}", complaint(&checked));
            }
            Becomes::Told(told) => {
                assert!(!planned.status.success(), "{at}: {file}: {text:?}");
                let said = complaint(&planned);
                assert!(said.contains(told), "{at}: {said:?} should have {told:?}");
            }
        }
    }
}

/// Lines of the tables that are not there, and switches that were not known, change nothing
/// silently: a share without lines is not used, and interference stays on.
#[test]
fn what_is_left_out_is_not_taken_for_nothing() {
    let dir = files();
    let latency = fs::read_to_string(dir.path().join("latency.csv")).unwrap();
    let without: Vec<&str> = latency.lines().filter(|line| !line.contains(",60,")).collect();
    fs::write(dir.path().join("latency.csv"), without.join("\n\n")).unwrap();
    assert!(ctl(dir.path(), "schedule", &["--json", "without.json"]).status.success());
    let plan = fs::read_to_string(dir.path().join("without.json")).unwrap();
    assert!(!plan.contains("\"share_pct\": 60"), "{plan}");
    assert!(ctl(dir.path(), "plan-check", &["without.json"]).status.success());
    let dir = files();
    assert!(ctl(dir.path(), "schedule", &["--json", "one.json"]).status.success());
    let tuned = FLAGS.replace("\"Part\": 1", "\"Part\": 1, \"Self Tuning\": 0");
    fs::write(dir.path().join("flags.json"), tuned).unwrap();
    fs::write(dir.path().join("tasks.csv"), "3\nmine,30,40,\n9,50,142,\n7,100,108,\n").unwrap();
    assert!(ctl(dir.path(), "schedule", &["--json", "two.json"]).status.success());
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    assert_eq!(read("one.json"), read("two.json"));
}
