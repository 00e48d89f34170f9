//! Whether what the processes wrote down agrees with the contract.

use std::{
    collections::HashMap,
    fmt,
    fs::{self, read_dir},
    path::Path,
};

use crate::{
    chaos::{Harm, History},
    journal::Id,
    node::SHARED,
};

/// A process that accepted a message has written it down this long after its
/// sender heard of that, and an outcome is written down this long after what
/// made it unknown was over, in microseconds.
const GRACE: u64 = 1_000_000;

#[derive(Default)]
pub(crate) struct Report {
    messages: usize,
    handled: usize,
    accepted: usize,
    not_delivered: usize,
    unknown: usize,
    /// Accepted by a process that was killed before it had written it down.
    died_with_receiver: usize,
    duplicated: usize,
    kills: usize,
    stops: usize,
    restarts: usize,
    pub(crate) violations: Vec<String>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for violation in self.violations.iter().take(20) {
            writeln!(f, "violated: {violation}")?;
        }
        let Self {
            kills,
            stops,
            restarts,
            died_with_receiver,
            ..
        } = self;
        writeln!(
            f,
            "kills={kills} stops={stops} restarts={restarts} \
             died_with_receiver={died_with_receiver}"
        )?;
        let Self {
            messages,
            handled,
            accepted,
            not_delivered,
            unknown,
            duplicated,
            ..
        } = self;
        let violated = self.violations.len();
        write!(
            f,
            "messages={messages} handled={handled} accepted={accepted} \
             not_delivered={not_delivered} unknown={unknown} duplicated={duplicated} \
             violated={violated}"
        )
    }
}

/// What the receivers have written down.
#[derive(Default)]
struct Received {
    times: HashMap<u64, u32>,
    /// By receiver's start, sender's start and namespace: the last message.
    last: HashMap<(String, u64, u64, u64), u64>,
}

pub(crate) fn check(dir: &Path, history: &History) -> Report {
    let mut report = Report {
        kills: history.harms.iter().filter(|harm| harm.killed).count(),
        stops: history.harms.iter().filter(|harm| !harm.killed).count(),
        restarts: history.restarts,
        ..Report::default()
    };
    let mut received = Received::default();
    for (name, text) in journals(dir, "received-") {
        for line in whole_lines(&text) {
            received.note(&name, line.parse().unwrap(), &mut report);
        }
    }
    for (_, text) in journals(dir, "sent-") {
        for line in whole_lines(&text) {
            judge(line, &received, history, &mut report);
        }
    }
    for words in &history.last_words {
        if !words.contains("ended true Ok") {
            report
                .violations
                .push(format!("counters or shutdown: {words}"));
        }
    }
    report
}

fn journals(dir: &Path, prefix: &str) -> Vec<(String, String)> {
    read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            let name = entry.file_name().into_string().unwrap();
            let text = name
                .starts_with(prefix)
                .then(|| fs::read_to_string(entry.path()));
            Some((name, text?.unwrap()))
        })
        .collect()
}

/// The lines that were not cut off by a kill.
fn whole_lines(text: &str) -> impl Iterator<Item = &str> {
    let whole = text.rfind('\n').map_or(0, |end| end + 1);
    text[..whole].lines()
}

impl Received {
    fn note(&mut self, journal: &str, packed: u64, report: &mut Report) {
        let times = self.times.entry(packed).or_default();
        *times += 1;
        let id = Id::unpack(packed);
        if *times > 1 {
            report.duplicated += 1;
            report
                .violations
                .push(format!("delivered {times} times: {id:?}"));
        }
        // What is offered to another receiver may come late there, so order is
        // checked where there is one receiver.
        if id.namespace != SHARED {
            let key = (journal.to_owned(), id.sender, id.start, id.namespace);
            let last = self.last.entry(key).or_default();
            if *last >= id.number {
                report
                    .violations
                    .push(format!("out of order in {journal}: {id:?} after {last}"));
            }
            *last = id.number;
        }
    }
}

fn judge(line: &str, received: &Received, history: &History, report: &mut Report) {
    let words: Vec<&str> = line.splitn(6, ' ').collect();
    let packed: u64 = words[0].parse().unwrap();
    let id = Id::unpack(packed);
    let seen = received.times.contains_key(&packed);
    let wrong = match words[1] {
        "do_send" | "deliver" | "send" => {
            report.messages += 1;
            false
        }
        "handled" => {
            report.handled += 1;
            !seen
        }
        "accepted" => {
            report.accepted += 1;
            let killed =
                under_way(&words, history).any(|harm| harm.killed && harm.node == words[2]);
            report.died_with_receiver += usize::from(!seen && killed);
            !seen && !killed
        }
        "not_delivered" => {
            report.not_delivered += 1;
            seen
        }
        // Only what was under way to or from a process that was harmed just then.
        "unknown" => {
            report.unknown += 1;
            let node = words[2];
            !under_way(&words, history)
                .any(|harm| node == "-" || harm.node == node || harm.index == id.sender)
        }
        other => panic!("{other} is no outcome"),
    };
    if wrong {
        let times = usize::from(seen);
        report
            .violations
            .push(format!("{line}, and received {times} times: {id:?}"));
    }
}

/// What was done to processes between a message's sending and its outcome.
fn under_way<'h>(words: &[&str], history: &'h History) -> impl Iterator<Item = &'h Harm> {
    let sent: u64 = words[3].parse().unwrap();
    let heard: u64 = words[4].parse().unwrap();
    let harms = history.harms.iter();
    harms.filter(move |harm| sent <= harm.to + GRACE && harm.from <= heard + GRACE)
}
