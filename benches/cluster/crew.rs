//! The processes of one measurement.

use std::{
    env,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use tempfile::TempDir;

use crate::{
    WORKER,
    figures::Figures,
    item::Audit,
    options::{Options, Subject},
    orders::{Orders, Part, Report, Sent},
    process::{Process, free_addresses},
};

/// Connections are made and buffers have grown before anything is measured.
const WARM_UP: Duration = Duration::from_millis(300);
/// What has not arrived when nothing has arrived for so long is lost.
const LOST_AFTER: Duration = Duration::from_secs(5);

struct Crew {
    /// The sender first. It is the only one where all are in one process.
    processes: Vec<Process>,
    orders: Vec<Orders>,
    _directory: TempDir,
}

/// Measures one subject once.
pub(crate) fn measure(options: &Options, subject: Subject) -> Figures {
    let mut crew = Crew::start(options, subject);
    let warm_up = crew.send(WARM_UP);
    crew.until_arrived(warm_up.sent);

    let before = crew.reports();
    let begin = Instant::now();
    let sent = crew.send(options.lasts);
    crew.until_arrived(sent.sent);
    let elapsed = begin.elapsed();
    let after = crew.reports();

    let cpu: Duration = after.iter().map(|report| report.cpu).sum();
    let cpu = cpu - before.iter().map(|report| report.cpu).sum();
    let twice: u64 = after.iter().map(|report| report.duplicated).sum();
    let receivers = crew.receivers(&after).iter();
    let memory = |report: &Report| report.memory_kib as f64 / 1024.0;
    let messages = sent.sent - warm_up.sent;
    let latency = sent.latency;
    let rss_receiver_mib = receivers.map(memory).fold(0.0, f64::max);
    let audit = crew.end();
    if sent.failed + warm_up.failed > 0 {
        eprintln!("{}: {} messages failed", subject.name(), sent.failed);
    }
    Figures {
        subject: subject.name(),
        mode: options.mode.name(),
        size: options.size,
        receivers: options.receivers,
        messages,
        per_second: messages as f64 / elapsed.as_secs_f64(),
        p50_us: latency.map(|latency| latency.p50),
        p99_us: latency.map(|latency| latency.p99),
        p999_us: latency.map(|latency| latency.p999),
        rss_sender_mib: memory(&after[0]),
        rss_receiver_mib,
        cpu_us_per_message: cpu.as_secs_f64() * 1e6 / messages as f64,
        lost: audit.lost(sent.sent),
        duplicated: twice + audit.duplicated,
    }
}

impl Crew {
    fn start(options: &Options, subject: Subject) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let addresses = free_addresses(1 + options.receivers);
        let orders = |(number, address): (usize, &String)| Orders {
            subject,
            mode: options.mode,
            part: match (subject, number) {
                (Subject::Actix, _) => Part::Both,
                (_, 0) => Part::Sender,
                _ => Part::Receiver,
            },
            size: options.size,
            in_flight: options.in_flight(subject),
            address: address.clone(),
            addresses: addresses.clone(),
            ledger: directory.path().join(format!("ledger-{number}")),
        };
        let mut orders: Vec<Orders> = addresses.iter().enumerate().map(orders).collect();
        if subject == Subject::Actix {
            orders.truncate(1);
        }
        let start = |(number, orders): (usize, &Orders)| {
            let mut command = Command::new(env::current_exe().unwrap());
            command.env(WORKER, serde_json::to_string(orders).unwrap());
            let log = directory.path().join(format!("log-{number}"));
            Process::spawn(&mut command, &log)
        };
        let processes: Vec<Process> = orders.iter().enumerate().map(start).collect();
        for process in &processes {
            process.until("ready");
        }
        Self {
            processes,
            orders,
            _directory: directory,
        }
    }

    /// What is of the receivers.
    fn receivers<'a, T>(&self, all: &'a [T]) -> &'a [T] {
        &all[usize::from(all.len() > 1)..]
    }

    fn send(&mut self, lasts: Duration) -> Sent {
        self.processes[0].tell(&format!("send {}", lasts.as_millis()));
        heard(&self.processes[0], "sent")
    }

    fn reports(&mut self) -> Vec<Report> {
        for process in &mut self.processes {
            process.tell("report");
        }
        let report = |process| heard(process, "report");
        self.processes.iter().map(report).collect()
    }

    /// Waits until so many messages have arrived since the processes began, or
    /// no more do.
    fn until_arrived(&mut self, messages: u64) {
        let (mut last, mut since) = (0, Instant::now());
        loop {
            let arrived: u64 = self.reports().iter().map(|report| report.received).sum();
            if arrived >= messages || since.elapsed() > LOST_AFTER {
                return;
            }
            if arrived > last {
                (last, since) = (arrived, Instant::now());
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn end(mut self) -> Audit {
        for process in &mut self.processes {
            process.tell("end");
        }
        for process in self.processes.drain(..) {
            process.until("ended");
            process.ended();
        }
        let mut audit = Audit::default();
        for orders in self.receivers(&self.orders) {
            audit.read(&orders.ledger).unwrap();
        }
        audit
    }
}

fn heard<A: DeserializeOwned>(process: &Process, answer: &str) -> A {
    serde_json::from_str(&process.until(answer)).unwrap()
}
