//! The processes of one measurement.

use std::{
    env,
    ops::Range,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::{
    WORKER,
    figures::Figures,
    ledger::Audit,
    options::Subject,
    process::{Process, free_addresses},
    tasks::{ANSWER, Kind, Load, Orders, Part, Report, Sent, Task},
};

/// What has not arrived when nothing has arrived for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);
/// How often memory is looked at.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

pub(crate) struct Crew {
    /// The sender first. It is the only one where all are in one process.
    processes: Vec<Process>,
    orders: Vec<Orders>,
    _directory: TempDir,
}

/// What loads have done, and what that took.
pub(crate) struct Loaded {
    /// One a load.
    pub(crate) sent: Vec<Sent>,
    /// The ids of all messages.
    pub(crate) ids: Range<u64>,
    /// Until the last one had arrived.
    pub(crate) elapsed: Duration,
    pub(crate) cpu: Duration,
    /// The most that each process had, in MiB.
    pub(crate) memory: Vec<f64>,
}

impl Crew {
    /// Starts processes with so many nodes each, the sender's first, and waits
    /// until they are ready.
    pub(crate) fn start(
        subject: Subject,
        size: usize,
        nodes: &[usize],
        change: impl Fn(&mut Orders),
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let addresses = free_addresses(nodes.iter().sum());
        let mut orders: Vec<Orders> = Vec::new();
        for (number, nodes) in nodes.iter().enumerate() {
            let first = orders.last().map_or(0, |orders| orders.mine.end);
            let mut these = Orders {
                subject,
                part: match (subject, number) {
                    (Subject::Actix, _) => Part::Both,
                    (_, 0) => Part::Sender,
                    _ => Part::Receiver,
                },
                size,
                kind: Kind::Flood,
                addresses: addresses.clone(),
                mine: first..first + nodes,
                outbox: None,
                pause: Duration::ZERO,
                data: None,
                at_once: false,
                ledger: directory.path().join(format!("ledger-{number}")),
            };
            change(&mut these);
            orders.push(these);
        }
        if subject == Subject::Actix {
            orders.truncate(1);
        }
        let start = |(number, orders): (usize, &Orders)| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.env(WORKER, serde_json::to_string(orders).unwrap());
            let log = directory.path().join(format!("log-{number}"));
            Process::spawn(&mut command, &log)
        };
        let crew = Self {
            processes: orders.iter().enumerate().map(start).collect(),
            orders,
            _directory: directory,
        };
        for process in &crew.processes {
            answer::<()>(process);
        }
        crew
    }

    /// How many processes there are.
    pub(crate) fn size(&self) -> usize {
        self.processes.len()
    }

    /// The processes of receivers.
    fn receivers(&self) -> Range<usize> {
        usize::from(self.size() > 1)..self.size()
    }

    /// Has a process do something, and waits until that is done.
    pub(crate) fn ask<A: DeserializeOwned>(&mut self, process: usize, task: &Task) -> A {
        self.tell(process, task);
        answer(&self.processes[process])
    }

    /// Has all processes do something at the same time.
    pub(crate) fn ask_all<A: DeserializeOwned>(&mut self, task: impl Fn(usize) -> Task) -> Vec<A> {
        for process in 0..self.size() {
            self.tell(process, &task(process));
        }
        self.processes.iter().map(answer).collect()
    }

    fn tell(&mut self, process: usize, task: &Task) {
        self.processes[process].tell(&serde_json::to_string(task).unwrap());
    }

    /// Has all nodes of the receivers receive a namespace, and waits until the
    /// sender knows. The baselines do so by themselves.
    pub(crate) fn receive(&mut self, namespace: &str) {
        for process in self.receivers() {
            let nodes = self.orders[process].mine.len();
            let namespace = namespace.to_owned();
            self.ask::<()>(process, &Task::Receive { namespace, nodes });
        }
        let receivers = self.orders[0].addresses.len() - 1;
        self.until_received(namespace, receivers);
    }

    /// Waits until the sender knows of so many nodes that receive.
    pub(crate) fn until_received(&mut self, namespace: &str, receivers: usize) {
        let namespace = namespace.to_owned();
        let until = Task::Until {
            namespace,
            receivers,
        };
        self.ask::<()>(0, &until);
    }

    fn reports(&mut self) -> Vec<Report> {
        self.ask_all(|_| Task::Report)
    }

    /// CPU time of all processes so far.
    pub(crate) fn cpu(&mut self) -> Duration {
        self.reports().iter().map(|report| report.cpu).sum()
    }

    /// The memory of each process now, in MiB.
    pub(crate) fn memory(&self) -> Vec<f64> {
        let mib = |process: &Process| process.resident_kib() as f64 / 1024.0;
        self.processes.iter().map(mib).collect()
    }

    /// Has the sender send, and waits until all has arrived.
    pub(crate) fn load(&mut self, loads: Vec<Load>) -> Loaded {
        let before = self.reports();
        let mut peak = self.memory();
        let mut look = |crew: &Self| {
            for (peak, now) in peak.iter_mut().zip(crew.memory()) {
                *peak = peak.max(now);
            }
        };
        let begin = Instant::now();
        self.tell(0, &Task::Send(loads));
        let sent: Vec<Sent> = loop {
            match self.processes[0].line(BETWEEN_LOOKS) {
                Some(line) => break serde_json::from_str(line.trim_start_matches(ANSWER)).unwrap(),
                None => look(self),
            }
        };
        let after = self.arrived(|crew| look(crew));
        let elapsed = begin.elapsed();
        let cpu = |reports: &[Report]| reports.iter().map(|report| report.cpu).sum::<Duration>();
        let failed: u64 = sent.iter().map(|sent| sent.failed).sum();
        if failed > 0 {
            eprintln!("{failed} messages failed, as their sender knows");
        }
        Loaded {
            sent,
            ids: before[0].sent..after[0].sent,
            elapsed,
            cpu: cpu(&after) - cpu(&before),
            memory: peak,
        }
    }

    /// Waits until all that was sent has arrived, or nothing more does.
    fn arrived(&mut self, mut meanwhile: impl FnMut(&Self)) -> Vec<Report> {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let reports = self.reports();
            meanwhile(self);
            let arrived: u64 = reports.iter().map(|report| report.received).sum();
            if arrived >= reports[0].sent || since.elapsed() > LOST_AFTER {
                return reports;
            }
            if arrived > last {
                (last, since) = (arrived, Instant::now());
            }
            // To ask all the time would take from what is measured.
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// Ends all processes and adds up what they have received.
    pub(crate) fn end(mut self) -> Audit {
        self.ask_all::<()>(|_| Task::End);
        for process in self.processes {
            process.ended();
        }
        let mut audit = Audit::default();
        for orders in &self.orders {
            audit.read(&orders.ledger).unwrap();
        }
        audit
    }
}

impl Loaded {
    /// Fills in the figures of one of the loads.
    pub(crate) fn figures(&self, load: usize, empty: Figures) -> Figures {
        let sent = self.sent[load];
        let of_all = self.ids.end - self.ids.start;
        // Where all are in one process, it is of the sender and the receivers.
        let receivers = &self.memory[usize::from(self.memory.len() > 1)..];
        let figures = Figures {
            messages: sent.messages,
            per_second: Some(sent.messages as f64 / self.elapsed.as_secs_f64()),
            rss_sender_mib: Some(self.memory[0]),
            rss_receiver_mib: receivers.iter().copied().reduce(f64::max),
            cpu_us_per_message: Some(self.cpu.as_secs_f64() * 1e6 / of_all as f64),
            ..empty
        };
        figures.with_latency(sent.latency)
    }
}

fn answer<A: DeserializeOwned>(process: &Process) -> A {
    serde_json::from_str(&process.until(ANSWER)).unwrap()
}
