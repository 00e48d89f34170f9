//! What is done to the processes.

use std::{
    path::{Path, PathBuf},
    thread,
    time::Duration,
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use crate::{
    NODE,
    journal::now,
    node::{NODES, Orders},
    process::{Process, free_addresses},
    setting,
};

/// What has been done, for the checker.
#[derive(Default)]
pub(crate) struct History {
    pub(crate) absences: Vec<Absence>,
    /// What the processes said that ended in order.
    pub(crate) last_words: Vec<String>,
}

/// A process did not run for a while.
pub(crate) struct Absence {
    pub(crate) index: u64,
    pub(crate) node: String,
    pub(crate) harm: Harm,
    /// In microseconds.
    pub(crate) from: u64,
    pub(crate) to: u64,
}

/// Why a process did not run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    Kill,
    Stop,
    /// In order, which leaves no outcome unknown.
    Restart,
}

/// A process that plays a node.
struct Node {
    process: Process,
    id: String,
    leader: String,
}

impl Node {
    /// Starts a process, for the first time or once more.
    fn start(orders: &mut Orders) -> Self {
        orders.start += 1;
        let log = format!("log-{}-{}", orders.index, orders.start);
        let log = orders.dir.join(log);
        Self {
            process: Process::same_program(
                "the_delivery_contract_holds_when_processes_die",
                NODE,
                &orders.encode(),
                &log,
            ),
            id: String::new(),
            leader: String::new(),
        }
    }

    /// Waits until it belongs to the cluster.
    fn up(mut self) -> Self {
        self.id = self.process.until("node ");
        self
    }

    /// Whether it was the leader when it last said who is.
    fn leads(&mut self) -> bool {
        let lines = self.process.lines();
        let leaders = lines.filter_map(|line| line.strip_prefix("leader ").map(str::to_owned));
        if let Some(leader) = leaders.last() {
            self.leader = leader;
        }
        self.leader == self.id
    }

    /// Has the process leave in order, and returns its last words.
    fn end(mut self) -> String {
        self.process.tell("end");
        let words = self.process.until("ended ");
        self.process.ended();
        format!("{}: {words}", self.id)
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

impl Deed {
    fn harm(&self) -> Harm {
        match self {
            Self::Kill | Self::FreezeAndKill => Harm::Kill,
            Self::Pause | Self::Freeze => Harm::Stop,
            Self::Restart => Harm::Restart,
        }
    }
}

/// Lets the processes send while things are done to them, and ends them.
pub(crate) fn run(dir: &Path, rounds: u64, seed: u64) -> History {
    let mut random = StdRng::seed_from_u64(seed);
    let mut places = places(dir, 2);
    let mut nodes = start_all(&mut places);
    let mut history = History::default();
    for round in 0..rounds {
        // Messages flow until something happens.
        thread::sleep(Duration::from_millis(random.random_range(200..1_000)));
        let leader = nodes.iter_mut().position(Node::leads);
        let anybody = random.random_range(0..nodes.len());
        let victim = match leader {
            Some(leader) if random.random_bool(0.3) => leader,
            _ => anybody,
        };
        // One of those that matter most is in every run.
        let deed = match round {
            0 => &Deed::Freeze,
            _ => Deed::ALL.choose(&mut random).unwrap(),
        };
        let mut absence = Absence {
            index: victim as u64,
            node: nodes[victim].id.clone(),
            harm: deed.harm(),
            from: now(),
            to: 0,
        };
        match deed {
            Deed::Kill | Deed::FreezeAndKill => {
                if let Deed::FreezeAndKill = deed {
                    nodes[victim].process.signal("-STOP");
                    // What is sent to it in the meantime arrives nowhere.
                    thread::sleep(Duration::from_millis(random.random_range(10..500)));
                }
                nodes.remove(victim).process.kill();
                // Three seconds are more than messages are offered for.
                let pause = [0, 50, 200, 500, 3_000].choose(&mut random).unwrap();
                thread::sleep(Duration::from_millis(*pause));
                nodes.insert(victim, Node::start(&mut places[victim]).up());
            }
            Deed::Pause | Deed::Freeze => {
                let pause = match deed {
                    Deed::Pause => random.random_range(50..3_000),
                    // More than a link bears, and less than the leader does: its
                    // messages are given up by their senders, and arrive all the
                    // same.
                    _ => 8_000,
                };
                nodes[victim].process.signal("-STOP");
                // This is what is done to it.
                thread::sleep(Duration::from_millis(pause));
                nodes[victim].process.signal("-CONT");
            }
            Deed::Restart => {
                history.last_words.push(nodes.remove(victim).end());
                nodes.insert(victim, Node::start(&mut places[victim]).up());
            }
        }
        absence.to = now();
        if absence.harm == Harm::Stop {
            // What it has taken is written down before it may be killed. It cannot
            // say that it has: more comes all the time.
            thread::sleep(Duration::from_secs(1));
        }
        history.absences.push(absence);
    }
    end_all(nodes, &mut history);
    history
}

/// Lets the processes send while each of them in turn is restarted in order, so
/// many times over.
pub(crate) fn roll(dir: &Path, times: u64) -> History {
    let mut places = places(dir, 30);
    let mut nodes = start_all(&mut places);
    let mut history = History::default();
    for _ in 0..times {
        for place in &mut places {
            send_to_all(&mut nodes);
            let (index, from) = (place.index, now());
            let node = nodes[0].id.clone();
            history.last_words.push(nodes.remove(0).end());
            nodes.push(Node::start(place).up());
            history.absences.push(Absence {
                index,
                node,
                harm: Harm::Restart,
                from,
                to: now(),
            });
        }
    }
    send_to_all(&mut nodes);
    end_all(nodes, &mut history);
    history
}

/// Waits until all know that all receive, or one that leaves has messages for
/// another one and nobody to give them to. Then lets them send for a while.
fn send_to_all(nodes: &mut [Node]) {
    for node in &mut *nodes {
        node.process.tell("whole");
    }
    for node in nodes {
        node.process.until("whole");
    }
    // Who leaves next is to have messages on their way, to it and from it.
    thread::sleep(Duration::from_millis(300));
}

fn start_all(places: &mut [Orders]) -> Vec<Node> {
    let started: Vec<Node> = places.iter_mut().map(Node::start).collect();
    started.into_iter().map(Node::up).collect()
}

/// Has all of them stop sending, and when everything is settled, leave.
fn end_all(mut nodes: Vec<Node>, history: &mut History) {
    for node in &mut nodes {
        node.process.tell("stop");
    }
    for node in &nodes {
        node.process.until("settled");
    }
    history.last_words.extend(nodes.into_iter().map(Node::end));
}

/// Where the nodes live, and for how many seconds they offer a message.
fn places(dir: &Path, timeout: u64) -> Vec<Orders> {
    let addresses = free_addresses(NODES as usize);
    let place = |(index, address): (u64, &String)| Orders {
        index,
        start: 0,
        address: address.clone(),
        peers: addresses.clone(),
        timeout,
        dir: PathBuf::from(dir),
        rate: setting(
            "DCHAN_CRASH_RATE",
            if cfg!(debug_assertions) { 200 } else { 1_200 },
        ),
    };
    (0..).zip(&addresses).map(place).collect()
}
