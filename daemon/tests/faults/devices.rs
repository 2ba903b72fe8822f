//! Devices that fault: everything on one goes down together, and nothing else does.

use std::fs;

use gpulet_client::clock::now_ns;
use gpulet_client::{Completion, Session, Status};
use rustix::process::Signal;

use crate::support::client::{collect, next, open, status, submit, submit_until};
use crate::support::daemon::{Daemon, Setup};
use crate::support::process::signal;
use crate::support::{MS_NS, PATIENCE_NS};

/// A gpulet that plays a part of a GPU. Those of the same profiles are in one process.
fn gpulet(name: &str, device: u32, profiles: &str, models: &str) -> String {
    format!(
        "[[gpulet]]\nname = '{name}'\nmechanism = 'replay'\ndevice = {device}\nshare_pct = 50\n\
         profiles = '{profiles}'\nmodels = [{models}]\n"
    )
}

/// Has several folders of profiles, all alike.
fn copy_profiles(setup: &Setup, copies: &[&str]) {
    let profiles = setup.path().join("profiles");
    for copy in copies {
        std::os::unix::fs::symlink(&profiles, setup.path().join(copy)).unwrap();
    }
}

fn restarts(daemon: &Daemon, gpulet: &str) -> u64 {
    daemon.state().executor(gpulet).unwrap()["restarts"].as_u64().unwrap()
}

fn wait_until_running(daemon: &Daemon, models: &[&str]) {
    daemon.wait_for("batches run", |state| {
        models.iter().all(|model| state.count(model, "running") > 0).then_some(())
    });
}

/// All answers, those to `model` apart.
fn sort(answers: Vec<Completion>, model: u32) -> (Vec<Status>, Vec<Status>) {
    let (of_model, others): (Vec<_>, Vec<_>) = answers.iter().partition(|it| it.model == model);
    let statuses = |answers: Vec<&Completion>| answers.into_iter().map(status).collect();
    (statuses(of_model), statuses(others))
}

fn assert_serves(daemon: &Daemon, models: &[&str]) {
    let mut session = daemon.session();
    for (seed, model) in models.iter().enumerate() {
        let id = crate::support::eventually("it is warm", || session.model_open(model).ok());
        submit(&mut session, id.model, 1, seed as u64);
        assert_eq!(status(&next(&mut session)), Status::Ok);
    }
}

#[test]
fn a_fault_ends_what_is_on_its_device_and_nothing_else() {
    let setup = Setup::builtin().breaking("poison", "fault").slow("beside", 300 * MS_NS, 1).slow(
        "elsewhere",
        300 * MS_NS,
        1,
    );
    copy_profiles(&setup, &["one", "two", "three"]);
    let gpulets = [
        gpulet("a", 0, "one", "'poison'"),
        gpulet("b", 0, "two", "'beside'"),
        gpulet("c", 1, "three", "'elsewhere'"),
    ];
    let daemon = setup.gpulets(&gpulets.concat()).start();
    let (a, b, c) = (daemon.executor_pid("a"), daemon.executor_pid("b"), daemon.executor_pid("c"));
    let mut session = daemon.session();
    let models = ["poison", "beside", "elsewhere"].map(|model| open(&mut session, model));
    for seed in 0..3 {
        submit(&mut session, models[1], 1, 10 + seed);
        submit(&mut session, models[2], 1, 20 + seed);
    }
    wait_until_running(&daemon, &["beside", "elsewhere"]);
    submit(&mut session, models[0], 1, 0);
    let (poison, others) = sort(collect(&mut session, 7), models[0]);
    // The culprit is found out, and those that were beside it lose nothing.
    assert_eq!(poison, [Status::ExecutorLost]);
    assert_eq!(others, [Status::Ok; 6]);
    assert_ne!(daemon.executor_pid("a"), a);
    assert_ne!(daemon.executor_pid("b"), b);
    assert_eq!((daemon.executor_pid("c"), restarts(&daemon, "c")), (c, 0));
    assert_eq!(restarts(&daemon, "a"), 2, "once for the fault, once for the proof");
    assert_serves(&daemon, &["beside", "elsewhere"]);
}

/// Of two executors that start together once `$FOLDER/armed` is there, the second waits for
/// `$FOLDER/go`.
const SECOND_HELD_BACK: &str = "cd \"$FOLDER\"\n\
    if [ -e armed ] && [ ! -e go ]; then\n\
        touch pid.$$\n\
        while [ -d \"$FOLDER\" -a $(ls | grep -c '^pid\\.') -lt 2 ]; do sleep 0.01; done\n\
        if [ $$ -eq $(ls | sed -n 's/^pid\\.//p' | sort -n | tail -1) ]; then\n\
            while [ -d \"$FOLDER\" -a ! -e go ]; do sleep 0.01; done\n\
        fi\n\
    fi\n\
    exec \"$EXECUTOR\"";

/// The one to blame does not have the innocent wait for another restart because its executor is back
/// before theirs.
#[test]
fn the_one_that_is_due_first_is_tried_first_on_a_whole_device() {
    let setup = Setup::builtin()
        .breaking("poison", "fault")
        .slow("beside", 300 * MS_NS, 1)
        .executor(SECOND_HELD_BACK);
    copy_profiles(&setup, &["one", "two"]);
    let gpulets = [gpulet("a", 0, "one", "'poison'"), gpulet("b", 0, "two", "'beside'")];
    let daemon = setup.gpulets(&gpulets.concat()).start();
    fs::write(daemon.folder().join("armed"), "").unwrap();
    let mut session = daemon.session();
    let [poison, beside] = ["poison", "beside"].map(|model| open(&mut session, model));
    submit(&mut session, beside, 1, 1);
    wait_until_running(&daemon, &["beside"]);
    submit_until(&mut session, poison, 1, 0, now_ns() + 2 * PATIENCE_NS);
    daemon.wait_for("its executor is back", |state| {
        let back = state.executor("a").is_some_and(|it| it["restarts"] == 1);
        (back && state.model("poison")?["state"] == "ready").then_some(())
    });
    fs::write(daemon.folder().join("go"), "").unwrap();
    let answers = [next(&mut session), next(&mut session)];
    let told = answers.map(|answer| (answer.model, status(&answer)));
    assert_eq!(told, [(beside, Status::Ok), (poison, Status::ExecutorLost)]);
    // The one to blame is answered for once its own process is gone.
    daemon.wait_for("both are back", |state| {
        let restarts =
            ["a", "b"].map(|name| state.executor(name).map(|it| it["restarts"].as_u64()));
        (restarts == [Some(Some(2)); 2]).then_some(())
    });
}

/// In one process all gpulets fault together. Full of work, each request is answered once.
#[test]
fn only_the_request_that_faults_is_lost_among_many() {
    let setup = Setup::builtin().breaking("poison", "fault").slow("left", 20 * MS_NS, 4).slow(
        "right",
        30 * MS_NS,
        4,
    );
    let gpulets =
        [gpulet("l", 0, "profiles", "'left', 'poison'"), gpulet("r", 0, "profiles", "'right'")];
    let daemon = setup.gpulets(&gpulets.concat()).start();
    let mut session = Session::open(&daemon.options().slots(64)).unwrap();
    let models = ["poison", "left", "right"].map(|model| open(&mut session, model));
    for round in 0..2 {
        for seed in 0..20 {
            submit(&mut session, models[1], 1, 100 * round + seed);
            submit(&mut session, models[2], 1, 100 * round + 50 + seed);
        }
        wait_until_running(&daemon, &["left", "right"]);
        submit(&mut session, models[0], 1, 100 * round + 99);
        let answers = collect(&mut session, 41);
        for answer in &answers {
            session.release(answer.into()).unwrap();
        }
        let (poison, others) = sort(answers, models[0]);
        assert_eq!(poison, [Status::ExecutorLost]);
        assert_eq!(others, [Status::Ok; 40]);
    }
    let state = daemon.state();
    assert_eq!(state.count("left", "queued") + state.count("right", "running"), 0);
}

/// An executor may have no time to tell: the code that it ends with says it too.
#[test]
fn an_exit_that_says_fault_is_one() {
    let setup = Setup::builtin().slow("slow", 300 * MS_NS, 1).executor(
        "exec 3<&0\n\"$EXECUTOR\" <&3 3<&- &\nexec 0</dev/null 3<&-\n\
         trap 'exit 70' USR1\nwait",
    );
    copy_profiles(&setup, &["one", "two"]);
    let gpulets = [gpulet("a", 0, "one", "'echo'"), gpulet("b", 0, "two", "'slow'")];
    let daemon = setup.gpulets(&gpulets.concat()).start();
    let (a, b) = (daemon.executor_pid("a"), daemon.executor_pid("b"));
    let mut session = daemon.session();
    let slow = open(&mut session, "slow");
    submit(&mut session, slow, 1, 1);
    wait_until_running(&daemon, &["slow"]);
    signal(a, Signal::USR1);
    assert_eq!(status(&next(&mut session)), Status::Ok);
    assert_ne!(daemon.executor_pid("b"), b);
    assert_eq!((restarts(&daemon, "a"), restarts(&daemon, "b")), (1, 1));
    // A plain death is nobody else's affair.
    let b = daemon.executor_pid("b");
    signal(daemon.executor_pid("a"), Signal::KILL);
    daemon.wait_for("it is replaced", |state| {
        (state.executor("a")?["restarts"] == 2 && state.is_ready()).then_some(())
    });
    assert_eq!((daemon.executor_pid("b"), restarts(&daemon, "b")), (b, 1));
}

#[test]
fn a_batch_that_hangs_is_given_up_and_its_neighbours_are_not() {
    let setup = Setup::builtin().top("hang_timeout_ms = 300").breaking("stuck", "hang").slow(
        "slow",
        10 * MS_NS,
        1,
    );
    let gpulets = [gpulet("l", 0, "profiles", "'stuck'"), gpulet("r", 0, "profiles", "'slow'")];
    let daemon = setup.gpulets(&gpulets.concat()).start();
    let mut session = daemon.session();
    let (stuck, slow) = (open(&mut session, "stuck"), open(&mut session, "slow"));
    submit(&mut session, stuck, 1, 0);
    for seed in 1..20 {
        submit(&mut session, slow, 1, seed);
    }
    let (stuck, others) = sort(collect(&mut session, 20), stuck);
    assert_eq!(stuck, [Status::ExecutorLost]);
    assert_eq!(others, [Status::Ok; 19]);
    assert_serves(&daemon, &["slow"]);
}
