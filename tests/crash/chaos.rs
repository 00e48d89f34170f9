//! What is done to the processes.

use std::{
    env,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    NODE,
    journal::now,
    node::{NODES, Orders},
    setting,
};

/// Longer than anything takes on a machine that is merely busy.
const PATIENCE: Duration = Duration::from_secs(120);

/// What has been done, for the checker.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) harms: Vec<Harm>,
    pub(crate) restarts: usize,
    /// What the processes said that ended in order.
    pub(crate) last_words: Vec<String>,
}

/// A process was killed, or stopped for a while. Only such a one may leave
/// outcomes unknown.
pub(crate) struct Harm {
    pub(crate) index: u64,
    pub(crate) node: String,
    pub(crate) killed: bool,
    /// From when to when it did not run, in microseconds.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

struct Process {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    node: String,
    leader: String,
}

/// Ends the process if the test has not.
impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start(orders: &Orders) -> Self {
        let log = orders
            .dir
            .join(format!("log-{}-{}", orders.index, orders.start));
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["--exact", "the_delivery_contract_holds_when_processes_die"])
            .arg("--nocapture")
            .env(NODE, orders.encode())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(log).unwrap())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in stdout.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Self {
            child,
            stdin,
            lines,
            node: String::new(),
            leader: String::new(),
        }
    }

    /// Waits until the process says something that starts with `wanted`.
    fn until(&mut self, wanted: &str) -> String {
        let start = Instant::now();
        loop {
            let line = self.lines.recv_timeout(PATIENCE);
            let line = line.unwrap_or_else(|error| panic!("{} and {wanted}: {error}", self.node));
            self.note(&line);
            if line.starts_with(wanted) {
                return line;
            }
            assert!(
                start.elapsed() < PATIENCE,
                "{} never said {wanted}",
                self.node
            );
        }
    }

    fn note(&mut self, line: &str) {
        if let Some(node) = line.strip_prefix("node ") {
            self.node = node.to_owned();
        }
        if let Some(leader) = line.strip_prefix("leader ") {
            self.leader = leader.to_owned();
        }
    }

    fn listen(&mut self) {
        while let Ok(line) = self.lines.try_recv() {
            self.note(&line);
        }
    }

    fn tell(&mut self, word: &str) {
        writeln!(self.stdin, "{word}").unwrap();
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Has the process leave in order, and returns its last words.
    fn end(mut self) -> String {
        self.tell("end");
        let words = self.until("ended");
        assert!(self.child.wait().unwrap().success());
        format!("{}: {words}", self.node)
    }
}

/// What can be done to a process.
enum Deed {
    Kill,
    FreezeAndKill,
    Pause,
    Freeze,
    Restart,
}

impl Deed {
    /// As often as they are done.
    const ALL: [Self; 10] = [
        Self::Kill,
        Self::Kill,
        Self::Kill,
        Self::Kill,
        Self::FreezeAndKill,
        Self::FreezeAndKill,
        Self::Pause,
        Self::Restart,
        Self::Restart,
        Self::Freeze,
    ];
}

/// Starts a process, for the first time or once more.
fn start(orders: &mut Orders) -> Process {
    orders.start += 1;
    Process::start(orders)
}

/// Lets the processes send while things are done to them, and ends them.
pub(crate) fn run(dir: &Path, rounds: u64, seed: u64) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let mut places = places(dir);
    let mut processes: Vec<Process> = places.iter_mut().map(start).collect();
    for process in &mut processes {
        process.until("node ");
    }
    let mut history = History::default();
    for round in 0..rounds {
        thread::sleep(Duration::from_millis(random.random_range(200..1_000)));
        processes.iter_mut().for_each(Process::listen);
        let leader = processes
            .iter()
            .position(|process| process.leader == process.node);
        let anybody = random.random_range(0..processes.len());
        let victim = match leader {
            Some(leader) if random.random_bool(0.3) => leader,
            _ => anybody,
        };
        // One of those that matter most is in every run.
        let deed = match round {
            0 => &Deed::Freeze,
            _ => Deed::ALL.choose(&mut random).unwrap(),
        };
        let from = now();
        let node = processes[victim].node.clone();
        let harmed = |killed, to| Harm {
            index: victim as u64,
            node,
            killed,
            from,
            to,
        };
        match deed {
            Deed::Kill | Deed::FreezeAndKill => {
                if let Deed::FreezeAndKill = deed {
                    processes[victim].signal("-STOP");
                    // What is sent to it in the meantime arrives nowhere.
                    thread::sleep(Duration::from_millis(random.random_range(10..500)));
                }
                processes.remove(victim).kill();
                // Three seconds are more than messages are offered for.
                let pause = [0, 50, 200, 500, 3_000].choose(&mut random).unwrap();
                thread::sleep(Duration::from_millis(*pause));
            }
            Deed::Pause | Deed::Freeze => {
                let pause = match deed {
                    Deed::Pause => random.random_range(50..3_000),
                    // More than a link bears: its messages are given up by
                    // their senders, and arrive all the same.
                    _ => 9_000,
                };
                processes[victim].signal("-STOP");
                thread::sleep(Duration::from_millis(pause));
                processes[victim].signal("-CONT");
                history.harms.push(harmed(false, now()));
                // What it has taken is written down before it may be killed.
                thread::sleep(Duration::from_secs(1));
                continue;
            }
            Deed::Restart => {
                history.restarts += 1;
                history.last_words.push(processes.remove(victim).end());
            }
        }
        let mut process = start(&mut places[victim]);
        process.until("node ");
        processes.insert(victim, process);
        if let Deed::Kill | Deed::FreezeAndKill = deed {
            history.harms.push(harmed(true, now()));
        }
    }
    for process in &mut processes {
        process.tell("stop");
    }
    for process in &mut processes {
        process.until("settled");
    }
    for process in processes {
        history.last_words.push(process.end());
    }
    history
}

fn places(dir: &Path) -> Vec<Orders> {
    let listeners: Vec<TcpListener> = (0..NODES)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let addresses: Vec<String> = listeners
        .iter()
        .map(|listener| listener.local_addr().unwrap().to_string())
        .collect();
    let place = |(index, address): (u64, &String)| Orders {
        index,
        start: 0,
        address: address.clone(),
        peers: addresses.clone(),
        dir: PathBuf::from(dir),
        rate: setting(
            "DCHAN_CRASH_RATE",
            if cfg!(debug_assertions) { 200 } else { 1_200 },
        ),
    };
    (0..).zip(&addresses).map(place).collect()
}
