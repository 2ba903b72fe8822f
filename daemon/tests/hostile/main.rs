//! Hostile clients write whatever they like over their regions, rings, doorbells and sockets, while
//! honest ones work: theirs is the only session that ends.
//!
//! HOSTILE_SECONDS says for how long (default 30), HOSTILE_SEED repeats a run's random numbers.
#![allow(clippy::unwrap_used, reason = "a test's helpers may unwrap as the test does")]

mod attack;
mod honest;
#[path = "../support/mod.rs"]
mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use attack::{ATTACKS, Attacker, Tally};
use support::daemon::{Daemon, Setup};
use support::{Random, process, say_loudly};

const SECONDS_VARIABLE: &str = "HOSTILE_SECONDS";
const SEED_VARIABLE: &str = "HOSTILE_SEED";
const SECONDS_DEFAULT: u64 = 30;
/// What the daemon warns of, a line for each session that it ends and each executor that it loses.
const LOG: &str = "hostile.log";
const ATTACKERS: u64 = 3;
/// What the daemon may have in RAM, whatever is done to it.
const RESIDENT_KIB_MAX: u64 = 25 << 10;

fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}: must be a number, is {text:?}")))
}

fn start() -> (Daemon, bool) {
    let daemon = Setup::with_digits().log_kept(LOG).start();
    if daemon.has_torch() {
        return (daemon, true);
    }
    // They would share the log.
    drop(daemon);
    (Setup::builtin().log_kept(LOG).start(), false)
}

/// Stops everybody, also when one of them fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn hostile_clients_disturb_nobody() {
    let seconds = number_from(SECONDS_VARIABLE).unwrap_or(SECONDS_DEFAULT);
    let seed = number_from(SEED_VARIABLE).unwrap_or(0x6770_756c_6574);
    say_loudly(&format!("hostile clients: {seconds} s, {SEED_VARIABLE}={seed}"));
    let (daemon, with_digits) = start();
    let (pid, executor) = (daemon.pid(), daemon.executor_pid("r0"));
    let at_rest =
        || [pid, executor].map(|pid| (process::descriptors_at_rest(pid), process::regions(pid)));
    let before = at_rest();

    let (stop, honest_stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let (tallies, answers) = std::thread::scope(|scope| {
        let (stop, honest_stop, daemon) = (&stop, &honest_stop, &daemon);
        let honest: Vec<_> = honest::roles(with_digits)
            .iter()
            .map(|role| {
                scope.spawn(move || {
                    let _others = StopOnDrop(stop);
                    role(daemon, honest_stop)
                })
            })
            .collect();
        let attackers: Vec<_> = (0..ATTACKERS)
            .map(|index| {
                let mut attacker = Attacker::new(&daemon.socket, Random(seed + index));
                scope.spawn(move || {
                    let _others = StopOnDrop(stop);
                    attacker.run(stop)
                })
            })
            .collect();
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(seconds) && !stop.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(20));
        }
        drop(StopOnDrop(stop));
        let tallies: Vec<Tally> = attackers.into_iter().map(|it| it.join().unwrap()).collect();
        drop(StopOnDrop(honest_stop));
        let answers: Vec<u64> = honest.into_iter().map(|it| it.join().unwrap()).collect();
        (tallies, answers)
    });

    let tally = tallies.into_iter().fold(Tally::default(), Tally::add);
    say_loudly(&format!("hostile clients: {tally:?}, right answers to honest ones: {answers:?}"));
    assert!(answers.iter().all(|count| *count > 10 * seconds), "{answers:?}");
    for (attack, count) in ATTACKS.iter().zip(tally.thrown_out) {
        assert!(count >= seconds.div_ceil(10), "{attack:?} ended {count} sessions only");
    }
    assert_eq!(tally.other_ends, 0, "sessions ended for something else than a violation");
    assert_nothing_is_left(&daemon, executor);
    assert_eq!(at_rest(), before, "descriptors and mapped regions of daemon and executor");
    assert!(process::resident_kib(pid) <= RESIDENT_KIB_MAX, "{}", process::resident_kib(pid));
}

/// Same processes, no session, nothing in flight.
fn assert_nothing_is_left(daemon: &Daemon, executor: u32) {
    daemon.wait_for("all sessions are gone", |state| (state.session_count() == 0).then_some(()));
    let state = daemon.state();
    assert_eq!(state.executor_pid("r0"), Some(executor));
    assert_eq!(state.executor("r0").unwrap()["restarts"], 0);
    for model in state.0["models"].as_array().unwrap() {
        assert_eq!((&model["queued"], &model["running"]), (&0.into(), &0.into()), "{model}");
    }
    assert_eq!(state.0["executors"].as_array().unwrap().len(), 1);
}
