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

/// How long two loads that are compared take turns.
const SLICE_MILLIS: u64 = 250;

/// How long each load lasts.
fn duration() -> Duration {
    let seconds = env::var("DCHAN_LOAD_SECONDS").map_or(2, |seconds| seconds.parse().unwrap());
    Duration::from_secs(seconds)
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

    /// Waits until the sender knows of so many receivers of a namespace.
    fn until_received_by(&mut self, count: usize, namespace: &str) {
        let end = Instant::now() + process::PATIENCE;
        let question = format!("receivers {namespace}");
        while ask::<usize>(&mut self.sender, &question, "receivers") != count {
            assert!(
                Instant::now() < end,
                "the sender never saw {count} receivers of {namespace}"
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
    let duration = duration();
    let mut crew = Crew::start("a_receiver_that_stalls_costs_the_others_nothing", 3, 0);
    // The first two receive both: what they do alone and beside the one that
    // stalls is compared slice by slice, for no machine is equally fast for long.
    for receiver in &mut crew.receivers[..2] {
        ask::<String>(receiver, "receive two 0", "receiving");
        ask::<String>(receiver, "receive three 0", "receiving");
    }
    ask::<String>(&mut crew.receivers[2], "stall", "stalled");
    ask::<String>(&mut crew.receivers[2], "receive three 0", "receiving");
    crew.until_received_by(2, "two");
    crew.until_received_by(3, "three");
    let mut sent = |namespace: &str| -> u64 {
        let slice = format!("flood {namespace} {SLICE_MILLIS}");
        ask(&mut crew.sender, slice, "sent")
    };
    let (mut alone, mut beside, mut ratios) = (0, 0, Vec::new());
    let begin = Instant::now();
    while begin.elapsed() < duration {
        let one = (sent("two"), sent("three"));
        let other = (sent("three"), sent("two"));
        for (two, three) in [one, (other.1, other.0)] {
            alone += two;
            beside += three;
            ratios.push(three as f64 / two as f64);
        }
    }
    assert_eq!(crew.received()[2], 0, "it has not stalled");

    // What it was given is still there.
    ask::<String>(&mut crew.receivers[2], "wake", "awake");
    ask::<String>(&mut crew.sender, "idle", "idle");
    let received = crew.received();
    assert!(received[2] > 0, "nothing had been sent to it");
    assert_eq!(received.iter().sum::<u64>(), alone + beside);

    ratios.sort_by(f64::total_cmp);
    println!(
        "two receivers alone took {alone}, beside one that stalled for {:.0?} {beside}; median of \
         {} ratios {:.3}; the stalled one then got {}",
        begin.elapsed(),
        ratios.len(),
        ratios[ratios.len() / 2],
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
    let duration = duration();
    let mut crew = Crew::start("a_hundred_times_too_much_load_is_refused_and_counted", 2, 0);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive items 1000", "receiving");
    }
    crew.until_received_by(2, "items");
    let millis = duration.as_millis();
    crew.sender.tell(&format!("overload items {millis} {RATE}"));
    let begin = Instant::now();
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
    let duration = duration();
    let test = "a_receiver_killed_under_full_load_costs_only_what_was_on_its_way";
    let mut crew = Crew::start(test, 3, 0);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive items 0", "receiving");
    }
    crew.until_received_by(3, "items");
    let millis = duration.as_millis();
    crew.sender.tell(&format!("deliver items {millis}"));
    thread::sleep(duration / 2);
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
    let duration = duration();
    let test = "a_leader_killed_under_full_load_costs_no_message";
    let mut crew = Crew::start(test, 2, 3);
    for receiver in &mut crew.receivers {
        ask::<String>(receiver, "receive items 0", "receiving");
    }
    crew.until_received_by(2, "items");
    let leader: String = ask(&mut crew.sender, "leader", "leader");
    let leads = |(node, _): &(String, Process)| *node == leader;
    let leader = crew.bystanders.iter().position(leads).unwrap();
    let millis = duration.as_millis();
    crew.sender.tell(&format!("deliver items {millis}"));
    thread::sleep(duration / 3);
    crew.bystanders.remove(leader).1.kill();
    let outcomes: Outcomes = heard(&crew.sender, "outcomes");
    println!("{outcomes:?}, with the leader killed in the midst of it");
    assert!(outcomes.accepted > 0);
    assert_eq!(outcomes.not_delivered + outcomes.unknown, 0);
    crew.end();
}
