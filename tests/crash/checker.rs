//! Whether what the processes wrote down agrees with the contract.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    fs::{self, read_dir},
    path::Path,
    time::Duration,
};

use crate::{
    chaos::{Absence, Harm, History},
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
    /// Neither received nor known to be undelivered.
    lost: usize,
    /// The longest time that a message took until its sender knew its outcome,
    /// and the longest that a sender heard of none.
    slowest: Duration,
    longest_pause: Duration,
    kills: usize,
    stops: usize,
    restarts: usize,
    pub(crate) violations: Vec<String>,
}

impl Report {
    /// Whether each message was received once, and its sender knows.
    pub(crate) fn is_perfect(&self) -> bool {
        let failed = self.lost + self.duplicated + self.unknown + self.not_delivered;
        failed == 0 && self.violations.is_empty()
    }
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
            lost,
            slowest,
            longest_pause,
            ..
        } = self;
        writeln!(
            f,
            "kills={kills} stops={stops} restarts={restarts} \
             died_with_receiver={died_with_receiver} lost={lost} \
             slowest={slowest:?} longest_pause={longest_pause:?}"
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
    let count = |harm| {
        history
            .absences
            .iter()
            .filter(|absence| absence.harm == harm)
            .count()
    };
    let mut report = Report {
        kills: count(Harm::Kill),
        stops: count(Harm::Stop),
        restarts: count(Harm::Restart),
        ..Report::default()
    };
    let mut received = Received::default();
    for (name, text) in journals(dir, "received-") {
        for line in whole_lines(&text) {
            received.note(&name, line.parse().unwrap(), &mut report);
        }
    }
    for (_, text) in journals(dir, "sent-") {
        let mut missing = HashSet::new();
        let mut last = None;
        for line in whole_lines(&text) {
            let sent = Sent::from(line);
            sent.judge(&received, history, &mut report);
            match sent.times {
                None if !received.times.contains_key(&sent.packed) => {
                    missing.insert(sent.packed);
                }
                None => {}
                Some((begin, end)) => {
                    report.slowest = report.slowest.max(micros(end - begin));
                    let pause = end.saturating_sub(last.replace(end).unwrap_or(end));
                    report.longest_pause = report.longest_pause.max(micros(pause));
                }
            }
            if sent.outcome == "not_delivered" {
                missing.remove(&sent.packed);
            }
        }
        report.lost += missing.len();
    }
    for words in &history.last_words {
        if !words.contains(": true") {
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

fn micros(micros: u64) -> Duration {
    Duration::from_micros(micros)
}

/// What a sender has written down of a message: that it sends it, or what has
/// become of it.
struct Sent<'a> {
    line: &'a str,
    packed: u64,
    outcome: &'a str,
    /// The node that has it, or had it when it was lost.
    node: Option<&'a str>,
    /// With the outcome: when it was sent, and when the outcome was known.
    times: Option<(u64, u64)>,
}

impl<'a> From<&'a str> for Sent<'a> {
    fn from(line: &'a str) -> Self {
        let words: Vec<&str> = line.splitn(6, ' ').collect();
        let number = |word: &&str| word.parse::<u64>().unwrap();
        Self {
            line,
            packed: number(&words[0]),
            outcome: words[1],
            node: words.get(2).copied().filter(|node| *node != "-"),
            times: words.get(3).map(number).zip(words.get(4).map(number)),
        }
    }
}

impl Sent<'_> {
    fn judge(&self, received: &Received, history: &History, report: &mut Report) {
        let id = Id::unpack(self.packed);
        let seen = received.times.contains_key(&self.packed);
        let wrong = match self.outcome {
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
                let killed = self
                    .meanwhile(history)
                    .any(|absence| absence.harm == Harm::Kill && self.node == Some(&absence.node));
                report.died_with_receiver += usize::from(!seen && killed);
                !seen && !killed
            }
            "not_delivered" => {
                report.not_delivered += 1;
                seen
            }
            // Only what was under way to or from a process that was harmed, or
            // found its receiver back as its time was over.
            "unknown" => {
                report.unknown += 1;
                !self.meanwhile(history).any(|absence| match self.node {
                    Some(node) => {
                        absence.harm != Harm::Restart
                            && (*node == absence.node || absence.index == id.sender)
                    }
                    None => true,
                })
            }
            other => panic!("{other} is no outcome"),
        };
        if wrong {
            let (line, times) = (self.line, usize::from(seen));
            report
                .violations
                .push(format!("{line}, and received {times} times: {id:?}"));
        }
    }

    /// Who was away between a message's sending and its outcome.
    fn meanwhile<'h>(&self, history: &'h History) -> impl Iterator<Item = &'h Absence> + use<'h> {
        let (sent, heard) = self.times.unwrap();
        let absences = history.absences.iter();
        absences.filter(move |absence| sent <= absence.to + GRACE && absence.from <= heard + GRACE)
    }
}
