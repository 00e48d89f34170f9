//! A whole cluster on one thread, in simulated time, on a simulated network and
//! simulated disks, through hundreds of faults that a seed decides.
//!
//! ```text
//! DCHAN_SIM_SEEDS=1000 cargo test --release --test simulation -- --nocapture
//! DCHAN_SIM_SEED=7 cargo test --release --test simulation
//! ```
//!
//! The first runs many seeds, each for `DCHAN_SIM_MINUTES` minutes of simulated
//! time, 10 by default; the second runs one again. Each seed has a process of
//! its own, in which even the operating system's randomness and clock are the
//! seed's: the same seed does the same things, to the last event.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

mod control;
mod disk;
mod faults;
mod ledger;
mod net;
mod node;
mod run;
mod watch;

use std::{
    env,
    process::{Command, ExitCode, Output},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::Duration,
};

use libtest_mimic::{Arguments, Failed, Trial};
use rand::{SeedableRng, rngs::StdRng};

const SEED: &str = "DCHAN_SIM_SEED";
const SEEDS: &str = "DCHAN_SIM_SEEDS";
const MINUTES: &str = "DCHAN_SIM_MINUTES";

fn main() -> ExitCode {
    if let Some(seed) = number(SEED) {
        return replay(seed);
    }
    let trials = vec![
        Trial::test(
            "a_cluster_keeps_its_promises_whatever_happens",
            a_cluster_keeps_its_promises_whatever_happens,
        ),
        Trial::test(
            "the_same_seed_does_the_same_things",
            the_same_seed_does_the_same_things,
        ),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit_code()
}

fn number(name: &str) -> Option<u64> {
    env::var(name).ok().map(|number| number.parse().unwrap())
}

/// Simulated minutes: the full length where somebody asks for it.
fn minutes() -> u64 {
    let asked = number(SEED).or_else(|| number(SEEDS)).is_some();
    number(MINUTES).unwrap_or(if asked { 10 } else { 1 })
}

/// Runs one seed in this process.
fn replay(seed: u64) -> ExitCode {
    mad_turmoil::rand::set_rng(StdRng::seed_from_u64(seed));
    let report = run::run(seed, Duration::from_secs(60 * minutes()));
    if !report.violations.is_empty() {
        println!("{}", report.events.join("\n"));
    }
    for violation in &report.violations {
        println!("violated: {violation}");
    }
    println!("{report}");
    match report.violations.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

/// Runs one seed in a process of its own.
fn child(seed: u64) -> Output {
    Command::new(env::current_exe().unwrap())
        .env(SEED, seed.to_string())
        .env(MINUTES, minutes().to_string())
        .output()
        .unwrap()
}

/// The last line of what a run says.
fn summary(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().last().unwrap_or("no word").to_owned()
}

fn a_cluster_keeps_its_promises_whatever_happens() -> Result<(), Failed> {
    let seeds = number(SEEDS).unwrap_or(3);
    let next = AtomicU64::new(1);
    let failed = thread::scope(|scope| {
        let work = || {
            let mut failed = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed > seeds {
                    return failed;
                }
                let output = child(seed);
                println!("{}", summary(&output));
                if !output.status.success() {
                    failed.push((seed, output));
                }
            }
        };
        let workers = thread::available_parallelism().map_or(1, usize::from);
        let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        let failed = workers.into_iter().map(|worker| worker.join().unwrap());
        failed.flatten().collect::<Vec<_>>()
    });
    if let Some((seed, first)) = failed.first() {
        println!("seed {seed}:\n{}", String::from_utf8_lossy(&first.stdout));
        println!("{}", String::from_utf8_lossy(&first.stderr));
    }
    let numbers: Vec<u64> = failed.iter().map(|(seed, _)| *seed).collect();
    println!("seeds={seeds} failed={}", numbers.len());
    match numbers.is_empty() {
        true => Ok(()),
        false => Err(format!("these seeds fail: {numbers:?}").into()),
    }
}

fn the_same_seed_does_the_same_things() -> Result<(), Failed> {
    let (one, other) = (child(2), child(2));
    assert!(one.status.success() && other.status.success());
    assert!(summary(&one).contains("trace="), "{}", summary(&one));
    assert_eq!(summary(&one), summary(&other));
    Ok(())
}
