//! Real processes, really killed: the `node` example.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

#[path = "common/process.rs"]
mod process;

use std::{
    collections::BTreeSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use self::process::{PATIENCE, Process, free_addresses};

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
struct Node {
    process: Process,
    id: String,
    boot: u64,
}

impl Node {
    /// Starts a process and waits until it is a member and receives.
    fn start(place: &Place) -> Self {
        Self::up(Self::launch(place))
    }

    fn launch(place: &Place) -> Process {
        let mut command = Command::new(program());
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
        process.until("receiving lines");
        Self { process, id, boot }
    }

    /// What it has received so far.
    fn received(&self) -> Vec<String> {
        let received = |line: String| line.split_once(": ").map(|(_, text)| text.to_owned());
        self.process.lines().filter_map(received).collect()
    }

    fn kill(self) {
        self.process.kill();
    }

    fn terminate(self) {
        self.process.signal("-TERM");
        self.process.until("left the cluster");
        self.process.ended();
    }

    fn log(&self) -> String {
        self.process.log()
    }
}

/// Where a node lives, whichever process it is.
struct Place {
    address: String,
    peers: String,
    dir: TempDir,
}

impl Place {
    fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

fn three_places() -> Vec<Place> {
    let addresses = free_addresses(3);
    let place = |address: &String| Place {
        address: address.clone(),
        peers: addresses.join(","),
        dir: tempfile::tempdir().unwrap(),
    };
    addresses.iter().map(place).collect()
}

fn start_all(places: &[Place]) -> Vec<Node> {
    let launched: Vec<Process> = places.iter().map(Node::launch).collect();
    launched.into_iter().map(Node::up).collect()
}

/// Has one node speak until all of them have heard something.
fn all_hear(nodes: &mut [Node], speaker: usize) {
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

#[test]
fn a_killed_node_comes_back_as_itself_and_receives() {
    let places = three_places();
    let mut nodes = start_all(&places);
    all_hear(&mut nodes, 0);
    for killed in 0..3 {
        let node = nodes.remove(killed);
        let (id, boot) = (node.id.clone(), node.boot);
        node.kill();
        nodes.insert(killed, Node::start(&places[killed]));
        assert_eq!(nodes[killed].id, id);
        assert_eq!(nodes[killed].boot, boot + 1);
        all_hear(&mut nodes, (killed + 1) % 3);
    }
}

#[test]
fn a_cluster_that_was_killed_as_a_whole_comes_back() {
    let places = three_places();
    let nodes = start_all(&places);
    let formed = |node: &Node| node.log().contains("formed the cluster");
    assert_eq!(nodes.iter().filter(|node| formed(node)).count(), 1);
    let ids: Vec<String> = nodes.iter().map(|node| node.id.clone()).collect();
    nodes.into_iter().for_each(Node::kill);

    let mut nodes = start_all(&places);
    assert!(nodes.iter().map(|node| &node.id).eq(&ids));
    assert!(nodes.iter().all(|node| node.boot == 2));
    all_hear(&mut nodes, 0);
    assert!(!nodes.iter().any(formed), "the cluster was formed again");

    // And once more, stopped in order.
    nodes.into_iter().for_each(Node::terminate);
    let mut nodes = start_all(&places);
    assert!(nodes.iter().map(|node| &node.id).eq(&ids));
    all_hear(&mut nodes, 0);
    assert!(!nodes.iter().any(formed), "the cluster was formed again");
}

#[test]
fn a_wiped_node_joins_the_cluster_of_the_others() {
    let places = three_places();
    let mut nodes = start_all(&places);
    for wiped in 0..3 {
        let node = nodes.remove(wiped);
        let id = node.id.clone();
        node.kill();
        fs::remove_dir_all(places[wiped].data_dir()).unwrap();
        nodes.insert(wiped, Node::start(&places[wiped]));
        assert_ne!(nodes[wiped].id, id);
        assert_eq!(nodes[wiped].boot, 1);
        all_hear(&mut nodes, wiped);
        assert!(!nodes[wiped].log().contains("formed the cluster"));
    }
}
