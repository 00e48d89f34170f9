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
//! `DCHAN_CRASH_SEED` chooses what happens to whom; the run prints it.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod chaos;
mod checker;
mod journal;
mod node;

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

#[test]
fn the_delivery_contract_holds_when_processes_die() {
    if let Ok(orders) = env::var(NODE) {
        return node::live(&orders);
    }
    let rounds = setting("DCHAN_CRASH_ROUNDS", 6);
    let seed = setting("DCHAN_CRASH_SEED", rand::random_range(0..1_000_000));
    let dir = tempfile::tempdir().unwrap().keep();
    println!("seed={seed} rounds={rounds} dir={}", dir.display());
    let history = chaos::run(&dir, rounds, seed);
    let report = checker::check(&dir, &history);
    println!("{report}");
    assert!(report.violations.is_empty(), "the contract was broken");
    // What was written is kept where something went wrong.
    remove_dir_all(dir).unwrap();
}
