//! Networks that are cut in two, and networks that are slow. The first needs
//! network namespaces, and is skipped where the machine allows none.

use std::{
    env,
    io::{Read, Write},
    net::{Shutdown, TcpListener, TcpStream},
    process::{self, Command},
    sync::mpsc::{Receiver, channel},
    thread,
    time::{Duration, Instant},
};

use rand::RngExt;

use crate::node::{Node, Place, all_hear, start_all};

/// A network of its own for each node, joined by bridges that stand in a network
/// of their own.
struct Network {
    name: String,
    nodes: usize,
}

/// Runs `ip` with these words. What it says if it fails.
fn ip(words: &str) -> Result<(), String> {
    let output = Command::new("ip").args(words.split(' ')).output();
    let output = output.map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

impl Network {
    fn new(nodes: usize) -> Result<Self, String> {
        let name = format!("dchan{}", process::id());
        let network = Self { name, nodes };
        network.lay()?;
        Ok(network)
    }

    fn lay(&self) -> Result<(), String> {
        let Self { name, nodes } = self;
        ip(&format!("netns add {name}"))?;
        for node in 0..*nodes {
            ip(&format!("-n {name} link add bridge{node} type bridge"))?;
            ip(&format!("-n {name} link set bridge{node} up"))?;
        }
        for node in 0..*nodes {
            let (own, address) = (self.of(node), self.address(node));
            ip(&format!("netns add {own}"))?;
            ip(&format!(
                "link add out netns {own} type veth peer name port{node} netns {name}"
            ))?;
            ip(&format!("-n {name} link set port{node} master bridge0 up"))?;
            ip(&format!("-n {own} addr add {address}/24 dev out"))?;
            ip(&format!("-n {own} link set out up"))?;
            ip(&format!("-n {own} link set lo up"))?;
        }
        Ok(())
    }

    fn of(&self, node: usize) -> String {
        format!("{}n{node}", self.name)
    }

    fn address(&self, node: usize) -> String {
        format!("10.77.0.{}", node + 1)
    }

    /// Lets only those reach each other that are in one group.
    fn cut(&self, groups: &[&[usize]]) {
        for (bridge, group) in groups.iter().enumerate() {
            for node in *group {
                let name = &self.name;
                ip(&format!(
                    "-n {name} link set port{node} master bridge{bridge}"
                ))
                .unwrap();
            }
        }
    }

    fn places(&self) -> Vec<Place> {
        let mut places = Place::some(self.nodes);
        let addresses: Vec<String> = (0..self.nodes)
            .map(|node| format!("{}:7000", self.address(node)))
            .collect();
        for (node, place) in places.iter_mut().enumerate() {
            place.address = addresses[node].clone();
            place.peers = addresses.join(",");
            place.network = Some(self.of(node));
        }
        places
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            let _ = ip(&format!("netns del {}", self.of(node)));
        }
        let _ = ip(&format!("netns del {}", self.name));
    }
}

#[test]
fn a_cluster_that_is_cut_in_two_goes_on_and_is_whole_again() {
    let network = match Network::new(5) {
        Ok(network) => network,
        Err(error) => {
            println!("skipped: this machine allows no network namespaces: {error}");
            return;
        }
    };
    let places = network.places();
    let mut nodes = start_all(&places);
    all_hear(&mut nodes, 0);
    nodes[0].until("five vote", |picture| picture.voters() == 5);

    // Once with the leader among the many, and once among the few.
    for few_have_leader in [false, true] {
        let before = nodes[0].status();
        nodes.sort_by_key(|node| (node.id == before.leader) != few_have_leader);
        let at = |node: &Node| {
            places
                .iter()
                .position(|place| place.address == node.address)
        };
        let at: Vec<usize> = nodes.iter().map(|node| at(node).unwrap()).collect();
        network.cut(&[&at[..2], &at[2..]]);
        let (few, many) = nodes.split_at_mut(2);
        for node in few.iter_mut() {
            node.until("without a quorum", |picture| !picture.quorum);
        }
        for node in many.iter_mut() {
            let gone = |node: &Node| node.id.clone();
            let gone = [gone(&few[0]), gone(&few[1])];
            node.until("the others are evicted", |picture| {
                picture.quorum && !gone.iter().any(|gone| picture.has(gone))
            });
        }
        all_hear(few, 0);
        all_hear(many, 0);

        let of_many = nodes[2].status();
        if !few_have_leader {
            assert_eq!(of_many.term, before.term, "a needless election");
        }
        network.cut(&[&at]);
        for node in &mut nodes {
            node.until("led by the one of the many", |picture| {
                picture.quorum && picture.leader == of_many.leader
            });
        }
        for speaker in 0..5 {
            all_hear(&mut nodes, speaker);
        }
        // Those that come back unseat nobody.
        assert_eq!(nodes[0].status().term, of_many.term);
    }
}

/// Passes bytes on, late: between one address and the one that it stands for.
fn slow_down(listener: TcpListener, target: String) {
    thread::spawn(move || {
        for connection in listener.incoming() {
            let Ok(near) = connection else { return };
            let Ok(far) = TcpStream::connect(&target) else {
                continue;
            };
            pass(near.try_clone().unwrap(), far.try_clone().unwrap());
            pass(far, near);
        }
    });
}

fn pass(mut from: TcpStream, mut to: TcpStream) {
    let _ = to.set_nodelay(true);
    let (sender, late): (_, Receiver<(Instant, Vec<u8>)>) = channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let mut random = rand::rng();
            let mut delay = random.random_range(30..70);
            // What is lost is sent again, after at least that.
            if random.random_bool(0.02) {
                delay += 250;
            }
            let due = Instant::now() + Duration::from_millis(delay);
            if sender.send((due, buffer[..count].to_vec())).is_err() {
                break;
            }
        }
    });
    thread::spawn(move || {
        for (due, bytes) in late {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        let _ = to.shutdown(Shutdown::Both);
    });
}

#[test]
fn a_slow_network_that_loses_packets_costs_no_member_and_no_election() {
    let seconds = env::var("DCHAN_SLOW_SECONDS").map_or(5, |seconds| seconds.parse().unwrap());
    let mut places = Place::some(3);
    let fronts: Vec<TcpListener> = (0..3)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    let peers: Vec<String> = fronts
        .iter()
        .map(|front| front.local_addr().unwrap().to_string())
        .collect();
    for (place, front) in places.iter_mut().zip(fronts) {
        place.peers = peers.join(",");
        place.advertise = Some(front.local_addr().unwrap().to_string());
        slow_down(front, place.address.clone());
    }
    let mut nodes = start_all(&places);
    nodes[0].until("three vote", |picture| picture.voters() == 3);
    all_hear(&mut nodes, 0);
    let before = nodes[0].status();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for speaker in 0..3 {
            all_hear(&mut nodes, speaker);
        }
        for node in &mut nodes {
            let term = node.status().term;
            assert_eq!(term, before.term, "a needless election:\n{}", node.log());
        }
    }
    for node in &nodes {
        assert!(!node.log().contains("evicting"), "{}", node.log());
    }
}
