//! Receivers that stall, are too slow or die under full load, each in a process
//! of its own.
//!
//! Short runs are part of `cargo test`, and look at what was delivered. Longer
//! ones also tell the figures, one test after the other:
//!
//! ```text
//! DCHAN_LOAD_SECONDS=30 cargo test --release --test load -- --nocapture --test-threads=1
//! ```

// A test that cannot go on panics. Memory is read from where Linux tells it.
#![allow(clippy::unwrap_used)]
#![cfg(target_os = "linux")]

#[path = "../common/process.rs"]
mod process;
mod worker;

use std::{
    env,
    fmt::Display,
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::{
    process::{Process, free_addresses},
    worker::{Orders, Outcomes, Report, now},
};

/// What a process of the tests is told, in its environment.
const WORKER: &str = "DCHAN_LOAD_WORKER";

/// How long each load lasts, in seconds.
fn seconds() -> u64 {
    env::var("DCHAN_LOAD_SECONDS").map_or(2, |seconds| seconds.parse().unwrap())
}

/// Whether this process is one that a test has started. It then plays its part
/// to the end.
fn played_a_part() -> bool {
    let orders = env::var(WORKER);
    if let Ok(orders) = &orders {
        worker::live(orders);
    }
    orders.is_ok()
}

/// A sender, receivers that do not receive yet, and nodes that do neither.
struct Crew {
    sender: Process,
    receivers: Vec<Process>,
    /// They were there first, so that one of them leads.
    bystanders: Vec<(String, Process)>,
    _logs: TempDir,
}

impl Crew {
    fn start(test: &str, receivers: usize, bystanders: usize) -> Self {
        let logs = tempfile::tempdir().unwrap();
        let addresses = free_addresses(bystanders + 1 + receivers);
        // Those that are there first know nothing of the others.
        let first = match bystanders {
            0 => addresses.len(),
            bystanders => bystanders,
        };
        let start = |number: usize| {
            let orders = Orders {
                address: addresses[number].clone(),
                peers: addresses[..first].to_vec(),
            };
            let log = logs.path().join(number.to_string());
            Process::same_program(test, WORKER, &orders.to_string(), &log)
        };
        let up = |process: Process| (process.until("node "), process);
        let started: Vec<Process> = (0..bystanders).map(start).collect();
        let bystanders: Vec<_> = started.into_iter().map(up).collect();
        let started: Vec<Process> = (bystanders.len()..addresses.len()).map(start).collect();
        let mut others = started.into_iter().map(|process| up(process).1);
        Self {
            sender: others.next().unwrap(),
            receivers: others.collect(),
            bystanders,
            _logs: logs,
        }
    }

    /// Waits until the sender knows of so many receivers.
    fn until_received_by(&mut self, count: usize) {
        let end = Instant::now() + process::PATIENCE;
        while ask::<usize>(&mut self.sender, "receivers", "receivers") != count {
            assert!(
                Instant::now() < end,
                "the sender never saw {count} receivers"
            );
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// How much each of the receivers has received.
    fn received(&mut self) -> Vec<u64> {
        let reports = self.receivers.iter_mut().map(report);
        reports.map(|report| report.received).collect()
    }

    fn end(self) {
        let bystanders = self.bystanders.into_iter().map(|(_, process)| process);
        let processes = self.receivers.into_iter().chain([self.sender]);
        processes.chain(bystanders).for_each(end_one);
    }
}

fn end_one(mut process: Process) {
    process.tell("end");
    process.until("ended");
    process.ended();
}

/// Tells a process something, and waits for the answer.
fn ask<A: FromStr>(process: &mut Process, what: impl Display, answer: &str) -> A {
    process.tell(&what.to_string());
    heard(process, answer)
}

fn heard<A: FromStr>(process: &Process, answer: &str) -> A {
    let answer = process.until(answer).parse();
    answer.unwrap_or_else(|_| panic!("it said something else"))
}

fn report(process: &mut Process) -> Report {
    ask(process, "report", "report")
}

#[test]
fn a_receiver_that_stalls_costs_the_others_nothing() {
    if played_a_part() {
        return;
    }
    let seconds = seconds();
    let mut crew = Crew::start("a_receiver_that_stalls_costs_the_others_nothing", 3, 0);
    for receiver in &mut crew.receivers[..2] {
        ask::<String>(receiver, "receive 0", "receiving");
    }
    crew.until_received_by(2);
    // Before and after it stalls, for a machine may be faster at one time than
    // at another.
    let mut sent: u64 = ask(&mut crew.sender, format!("flood {seconds}"), "sent");
    let before = crew.received();

    ask::<String>(&mut crew.receivers[2], "stall", "stalled");
    ask::<String>(&mut crew.receivers[2], "receive 0", "receiving");
    crew.until_received_by(3);
    let begin = crew.received();
    sent += ask::<u64>(&mut crew.sender, format!("flood {seconds}"), "sent");
    let end = crew.received();
    assert_eq!(end[2], 0, "it has not stalled");

    // What it was given is still there.
    ask::<String>(&mut crew.receivers[2], "wake", "awake");
    ask::<String>(&mut crew.sender, "idle", "idle");
    let received = crew.received();
    assert!(received[2] > 0, "nothing had been sent to it");
    assert_eq!(received.iter().sum::<u64>(), sent);

    end_one(crew.receivers.remove(2));
    crew.until_received_by(2);
    ask::<u64>(&mut crew.sender, format!("flood {seconds}"), "sent");
    let after = crew.received();

    let alone = (before[0] + before[1] + after[0] + after[1] - received[0] - received[1]) / 2;
    let beside = end[0] + end[1] - begin[0] - begin[1];
    println!(
        "two receivers alone: {} a second; beside one that stalls for {seconds} s: {} a second, \
         ratio {:.3}; it then got {}",
        alone / seconds,
        beside / seconds,
        beside as f64 / alone as f64,
        received[2],
    );
    crew.end();
}

#[test]
fn a_hundred_times_too_much_load_is_refused_and_counted() {
    /// Messages a second: each of two receivers takes one in a millisecond.
    const RATE: u64 = 200_000;
    if played_a_part() {
        return;
    }
    let seconds = seconds();
    let mut crew = Crew::start("a_hundred_times_too_much_load_is_refused_and_counted", 2, 0);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive 1000", "receiving");
    }
    crew.until_received_by(2);
    crew.sender.tell(&format!("overload {seconds} {RATE}"));
    let begin = Instant::now();
    let duration = Duration::from_secs(seconds);
    let (mut early, mut late) = ([0; 3], [0; 3]);
    while begin.elapsed() < duration {
        let nodes = [&crew.sender, &crew.receivers[0], &crew.receivers[1]];
        let highest = match begin.elapsed() < duration / 2 {
            true => &mut early,
            false => &mut late,
        };
        for (highest, node) in highest.iter_mut().zip(nodes) {
            *highest = node.resident_kib().max(*highest);
        }
        thread::sleep(Duration::from_millis(20));
    }
    let refused: u64 = heard(&crew.sender, "refused");
    ask::<String>(&mut crew.sender, "idle", "idle");
    let sender = report(&mut crew.sender);
    let received = crew.received();
    println!(
        "refused by try_send: {refused}; received: {received:?}; {sender:?}; highest memory of \
         sender and receivers in the first half {early:?} KiB, in the second {late:?} KiB"
    );
    assert!(refused > 0 && sender.full > 0, "there was no overload");
    assert_eq!(sender.unsettled, 0);
    let settled = sender.accepted + sender.unknown + sender.full + sender.other_dead_letters;
    assert_eq!(sender.sent, settled);
    assert_eq!(received.iter().sum::<u64>(), sender.accepted);
    assert_eq!(sender.unknown, 0);
    for (early, late) in early.into_iter().zip(late) {
        assert!(
            late < early + early / 4 + 4096,
            "memory has grown from {early} to {late} KiB"
        );
    }
    crew.end();
}

#[test]
fn a_receiver_killed_under_full_load_costs_only_what_was_on_its_way() {
    if played_a_part() {
        return;
    }
    let seconds = seconds();
    let test = "a_receiver_killed_under_full_load_costs_only_what_was_on_its_way";
    let mut crew = Crew::start(test, 3, 0);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive 0", "receiving");
    }
    crew.until_received_by(3);
    crew.sender.tell(&format!("deliver {seconds}"));
    thread::sleep(Duration::from_secs(seconds) / 2);
    let killed = now();
    crew.receivers.remove(1).kill();
    let outcomes: Outcomes = heard(&crew.sender, "outcomes");
    let last = outcomes.last_unknown.saturating_sub(killed);
    println!("{outcomes:?}; the last message to the killed one was sent {last} us after the kill");
    assert!(outcomes.accepted > 0);
    assert_eq!(outcomes.not_delivered, 0);
    assert!(last < 1_000_000, "messages were still sent to it");
    // The others have whatever is known to have been accepted, but for what the
    // killed one had.
    let received: u64 = crew.received().iter().sum();
    assert!(received <= outcomes.accepted + outcomes.unknown);
    crew.end();
}

#[test]
fn a_leader_killed_under_full_load_costs_no_message() {
    if played_a_part() {
        return;
    }
    let seconds = seconds();
    let test = "a_leader_killed_under_full_load_costs_no_message";
    let mut crew = Crew::start(test, 2, 3);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive 0", "receiving");
    }
    crew.until_received_by(2);
    let leader: String = ask(&mut crew.sender, "leader", "leader");
    let leads = |(node, _): &(String, Process)| *node == leader;
    let leader = crew.bystanders.iter().position(leads).unwrap();
    crew.sender.tell(&format!("deliver {seconds}"));
    thread::sleep(Duration::from_secs(seconds) / 3);
    crew.bystanders.remove(leader).1.kill();
    let outcomes: Outcomes = heard(&crew.sender, "outcomes");
    println!("{outcomes:?}, with the leader killed in the midst of it");
    assert!(outcomes.accepted > 0);
    assert_eq!(outcomes.not_delivered + outcomes.unknown, 0);
    crew.end();
}
