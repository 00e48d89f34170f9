//! A node that runs the `node` example in a process of its own.

use std::{
    collections::BTreeSet,
    env,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::process::{PATIENCE, Process, free_addresses};

/// The `node` example, built as these tests were.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let test = env::current_exe().unwrap();
        let profile = test.parent().and_then(Path::parent).unwrap();
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "node", "--target-dir"]);
        build.arg(profile.parent().unwrap());
        if profile.ends_with("release") {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success());
        profile.join("examples/node")
    })
}

/// A process that runs the example.
pub(crate) struct Node {
    pub(crate) process: Process,
    pub(crate) address: String,
    pub(crate) id: String,
    pub(crate) boot: u64,
}

impl Node {
    /// Starts a process and waits until it is a member and receives.
    pub(crate) fn start(place: &Place) -> Self {
        Self::up(Self::launch(place))
    }

    pub(crate) fn launch(place: &Place) -> Process {
        let mut command = match &place.network {
            Some(network) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", network]).arg(program());
                command
            }
            None => Command::new(program()),
        };
        if let Some(address) = &place.advertise {
            command.args(["--advertise", address]);
        }
        command
            .args(["--addr", &place.address, "--peers", &place.peers])
            .args(["--receive", "lines", "--data-dir"])
            .arg(place.data_dir())
            .env("RUST_LOG", "dchan=info");
        Process::spawn(&mut command, &place.dir.path().join("log"))
    }

    fn up(process: Process) -> Self {
        let line = process.until("node ");
        let words: Vec<&str> = line.split([' ', ')']).collect();
        let (id, boot) = (words[0].to_owned(), words[2].parse().unwrap());
        let address = words.last().unwrap().to_string();
        process.until("receiving lines");
        Self {
            process,
            address,
            id,
            boot,
        }
    }

    /// What it has received so far.
    pub(crate) fn received(&self) -> Vec<String> {
        let received = |line: String| line.split_once(": ").map(|(_, text)| text.to_owned());
        self.process.lines().filter_map(received).collect()
    }

    pub(crate) fn kill(self) {
        self.process.kill();
    }

    pub(crate) fn terminate(self) {
        self.process.signal("-TERM");
        self.process.until("left the cluster");
        self.process.ended();
    }

    /// Its picture of the cluster: who leads, and a line for each node.
    pub(crate) fn status(&mut self) -> Picture {
        self.process.tell("/status");
        let first = self.process.until("term ");
        let words: Vec<&str> = first.split([' ', ',']).collect();
        let leader = words[words.iter().position(|word| *word == "by").unwrap() + 1].to_owned();
        let count = words[words.len() - 2].parse().unwrap();
        let nodes = (0..count).map(|_| self.process.until("  ")).collect();
        Picture {
            term: words[0].parse().unwrap(),
            leader,
            quorum: first.contains("with a quorum"),
            nodes,
        }
    }

    /// Waits until its picture of the cluster is as wanted. Returns how long
    /// that took.
    pub(crate) fn until(&mut self, what: &str, wanted: impl Fn(&Picture) -> bool) -> Duration {
        let begin = Instant::now();
        loop {
            let picture = self.status();
            if wanted(&picture) {
                return begin.elapsed();
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "never {what}: {picture:?}\n{}",
                self.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn log(&self) -> String {
        self.process.log()
    }
}

/// Where a node lives, whichever process it is.
pub(crate) struct Place {
    pub(crate) address: String,
    pub(crate) peers: String,
    /// Where the others reach it, if not there.
    pub(crate) advertise: Option<String>,
    /// The network namespace that it runs in.
    pub(crate) network: Option<String>,
    dir: TempDir,
}

impl Place {
    /// Places for nodes that have the same list of peers.
    pub(crate) fn some(count: usize) -> Vec<Self> {
        let addresses = free_addresses(count);
        let place = |address: &String| Self {
            address: address.clone(),
            peers: addresses.join(","),
            advertise: None,
            network: None,
            dir: tempfile::tempdir().unwrap(),
        };
        addresses.iter().map(place).collect()
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

pub(crate) fn start_all(places: &[Place]) -> Vec<Node> {
    let launched: Vec<Process> = places.iter().map(Node::launch).collect();
    launched.into_iter().map(Node::up).collect()
}

/// Has one node speak until all of them have heard something.
pub(crate) fn all_hear(nodes: &mut [Node], speaker: usize) {
    let start = Instant::now();
    let mut deaf: BTreeSet<usize> = (0..nodes.len()).collect();
    for number in 0.. {
        nodes[speaker].process.tell(&format!("line {number}"));
        nodes[speaker].process.line(Duration::from_millis(50));
        deaf.retain(|node| *node != speaker && nodes[*node].received().is_empty());
        if deaf.is_empty() {
            return;
        }
        if start.elapsed() > PATIENCE {
            let logs: Vec<String> = nodes.iter().map(Node::log).collect();
            panic!("nodes {deaf:?} hear nothing:\n{}", logs.join("\n\n"));
        }
    }
}

/// What a node shows as its status.
#[derive(Debug)]
pub(crate) struct Picture {
    pub(crate) term: u64,
    pub(crate) leader: String,
    pub(crate) quorum: bool,
    nodes: Vec<String>,
}

impl Picture {
    pub(crate) fn has(&self, node: &str) -> bool {
        self.nodes.iter().any(|line| line.contains(node))
    }

    pub(crate) fn receives(&self, node: &str, namespace: &str) -> bool {
        let mut lines = self.nodes.iter();
        lines.any(|line| line.contains(node) && line.contains(namespace))
    }

    pub(crate) fn votes(&self, node: &str) -> bool {
        let mut lines = self.nodes.iter();
        lines.any(|line| line.contains(node) && line.contains(" votes,"))
    }

    pub(crate) fn voters(&self) -> usize {
        self.nodes
            .iter()
            .filter(|line| line.contains(" votes,"))
            .count()
    }
}
