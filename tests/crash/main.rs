//! The delivery contract under crashes.
//!
//! Five processes send to each other and receive from each other, while they
//! are killed, stopped for a while and restarted at random. Each writes down
//! what it sends, what becomes of it and what it receives; in the end a checker
//! reads it all.
//!
//! A short run is part of `cargo test`. A long one:
//!
//! ```text
//! DCHAN_CRASH_ROUNDS=200 cargo test --release --test crash -- --nocapture
//! ```
//!
//! `DCHAN_CRASH_ROLLS` is how often the rolling restart goes round.
//! `DCHAN_CRASH_SEED` chooses what happens to whom; the run prints it.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod chaos;
mod checker;
mod journal;
mod node;
#[path = "../common/process.rs"]
mod process;

use std::{env, fs::remove_dir_all};

/// What a process of the test is told, in its environment.
const NODE: &str = "DCHAN_CRASH_NODE";

fn setting(name: &str, default: u64) -> u64 {
    match env::var(name) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|_| panic!("{name} is a number")),
        Err(_) => default,
    }
}

/// Whether this process is one that the test has started. It then plays its
/// part to the end.
fn played_a_part() -> bool {
    let orders = env::var(NODE);
    if let Ok(orders) = &orders {
        node::live(orders);
    }
    orders.is_ok()
}

#[test]
fn the_delivery_contract_holds_when_processes_die() {
    if played_a_part() {
        return;
    }
    let rounds = setting("DCHAN_CRASH_ROUNDS", 6);
    let seed = setting("DCHAN_CRASH_SEED", rand::random_range(0..1_000_000));
    // It is kept where something goes wrong.
    let dir = tempfile::tempdir().unwrap().keep();
    println!("seed={seed} rounds={rounds} dir={}", dir.display());
    let history = chaos::run(&dir, rounds, seed);
    let report = checker::check(&dir, &history);
    println!("{report}");
    assert!(report.violations.is_empty(), "the contract was broken");
    remove_dir_all(dir).unwrap();
}

#[test]
fn a_rolling_restart_loses_and_duplicates_nothing() {
    let times = setting("DCHAN_CRASH_ROLLS", 1);
    let dir = tempfile::tempdir().unwrap().keep();
    println!("rolls={times} dir={}", dir.display());
    let history = chaos::roll(&dir, times);
    let report = checker::check(&dir, &history);
    println!("{report}");
    assert!(report.is_perfect(), "a message was lost, or came twice");
    remove_dir_all(dir).unwrap();
}
