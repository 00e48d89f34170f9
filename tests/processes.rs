//! Real processes, really killed: the `node` example.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    env, fs,
    io::{BufRead, BufReader, Write},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

/// Longer than anything takes on a machine that is merely busy.
const PATIENCE: Duration = Duration::from_secs(60);

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

/// A process, and what it has printed.
struct Node {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<String>,
    id: String,
    boot: u64,
    /// Everything it has logged.
    log: PathBuf,
}

impl Node {
    /// Starts a process and waits until it is a member and receives.
    fn start(place: &Place) -> Self {
        Self::launch(place).up()
    }

    fn launch(place: &Place) -> Self {
        let log = place.dir.path().join("log");
        let mut child = Command::new(program())
            .args(["--addr", &place.address, "--peers", &place.peers])
            .args(["--receive", "lines", "--data-dir"])
            .arg(place.data_dir())
            .env("RUST_LOG", "dchan=info")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log).unwrap())
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
            id: String::new(),
            boot: 0,
            log,
        }
    }

    fn up(mut self) -> Self {
        let line = self.until(|line| line.starts_with("node "));
        let words: Vec<&str> = line.split([' ', ')']).collect();
        self.id = words[1].to_owned();
        self.boot = words[3].parse().unwrap();
        self.until(|line| line == "receiving lines");
        self
    }

    fn until(&self, wanted: impl Fn(&str) -> bool) -> String {
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) if wanted(&line) => return line,
                Ok(_) => {}
                Err(error) => panic!("{error}; its log:\n{}", self.log()),
            }
        }
    }

    fn say(&mut self, text: &str) {
        writeln!(self.stdin, "{text}").unwrap();
    }

    /// What it has received so far.
    fn received(&self) -> Vec<String> {
        let received = |line: String| line.split_once(": ").map(|(_, text)| text.to_owned());
        self.lines.try_iter().filter_map(received).collect()
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn terminate(mut self) {
        let id = self.child.id().to_string();
        assert!(Command::new("kill").arg(&id).status().unwrap().success());
        self.until(|line| line == "left the cluster");
        assert!(self.child.wait().unwrap().success());
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

/// Ends the process if the test has not.
impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
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
    let addresses: Vec<String> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .map(|listener| listener.local_addr().unwrap().to_string())
        .collect();
    let place = |address: &String| Place {
        address: address.clone(),
        peers: addresses.join(","),
        dir: tempfile::tempdir().unwrap(),
    };
    addresses.iter().map(place).collect()
}

fn start_all(places: &[Place]) -> Vec<Node> {
    let launched: Vec<Node> = places.iter().map(Node::launch).collect();
    launched.into_iter().map(Node::up).collect()
}

/// Has one node speak until all of them have heard something.
fn all_hear(nodes: &mut [Node], speaker: usize) {
    let start = Instant::now();
    let mut deaf: BTreeSet<usize> = (0..nodes.len()).collect();
    for number in 0.. {
        nodes[speaker].say(&format!("line {number}"));
        match nodes[speaker].lines.recv_timeout(Duration::from_millis(50)) {
            Ok(_) | Err(RecvTimeoutError::Timeout) => {}
            Err(error) => panic!("{error}; its log:\n{}", nodes[speaker].log()),
        }
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
