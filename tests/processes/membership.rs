//! Nodes that die, fall silent or are cut off from a majority.

use std::{
    env, fs,
    time::{Duration, Instant},
};

use crate::{
    node::{Node, Place, all_hear, start_all},
    process::PATIENCE,
};

#[test]
fn a_node_that_dies_is_evicted_and_may_come_back() {
    let places = Place::some(3);
    let mut nodes = start_all(&places);
    let dead = nodes[2].id.clone();
    nodes.remove(2).kill();
    for node in &mut nodes {
        let took = node.until("evicted", |picture| !picture.has(&dead));
        println!("gone from a view {took:?} after its death");
        assert!(node.status().quorum);
    }
    nodes.push(Node::start(&places[2]));
    assert_eq!(nodes[2].id, dead);
    all_hear(&mut nodes, 0);
}

#[test]
fn a_node_that_was_silent_for_too_long_comes_back_by_itself() {
    let places = Place::some(4);
    let mut nodes = start_all(&places);
    let leader = nodes[0].status().leader;
    let frozen = nodes.iter().position(|node| node.id != leader).unwrap();
    let frozen = nodes.remove(frozen);
    frozen.process.signal("-STOP");
    nodes[0].until("evicted", |picture| !picture.has(&frozen.id));
    frozen.process.signal("-CONT");
    nodes[0].until("back", |picture| picture.receives(&frozen.id, "lines"));
    nodes.push(frozen);
    all_hear(&mut nodes, 3);
}

#[test]
fn voters_that_die_are_replaced() {
    let places = Place::some(7);
    let mut nodes = start_all(&places);
    nodes[0].until("five vote", |picture| picture.voters() == 5);
    for _ in 0..2 {
        let leader = nodes[0].status().leader;
        let victim = nodes.iter().position(|node| node.id == leader).unwrap();
        let dead = nodes.remove(victim);
        let id = dead.id.clone();
        dead.kill();
        nodes[0].until("evicted", |picture| !picture.has(&id));
        nodes[0].until("five vote", |picture| picture.voters() == 5);
    }
    all_hear(&mut nodes, 0);
}

#[test]
fn without_a_majority_messages_flow_and_registrations_wait() {
    let places = Place::some(5);
    let mut nodes = start_all(&places);
    nodes.drain(2..).for_each(Node::kill);
    for node in &mut nodes {
        node.until("without a quorum", |picture| !picture.quorum);
    }
    all_hear(&mut nodes, 0);
    let term = nodes[0].status().term;
    nodes[0].process.tell("/receive more");
    let refusal = nodes[0].process.until("not receiving more: ");
    assert!(refusal.contains("too few of its voters"), "{refusal}");
    // As long as it lasts.
    let seconds = env::var("DCHAN_QUORUM_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    for round in 0.. {
        let told = Instant::now();
        all_hear(&mut nodes, round % 2);
        longest = longest.max(told.elapsed());
        if round > 0 && begin.elapsed() >= Duration::from_secs(seconds) {
            let rounds = round + 1;
            println!("heard {rounds} times without a quorum, within {longest:?} at most");
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    // Who cannot win does not stand.
    assert_eq!(nodes[0].status().term, term);

    // With the majority all the rest comes back.
    nodes.push(Node::start(&places[2]));
    nodes[0].process.until("receiving more");
    for node in &mut nodes {
        node.until("with a quorum", |picture| picture.quorum);
    }
    all_hear(&mut nodes, 2);
}

#[test]
fn a_leader_that_is_killed_has_a_successor() {
    let places = Place::some(3);
    let mut nodes = start_all(&places);
    let rounds = env::var("DCHAN_LEADER_KILLS").map_or(3, |rounds| rounds.parse().unwrap());
    for _ in 0..rounds {
        let leader = nodes[0].status().leader;
        let victim = nodes.iter().position(|node| node.id == leader).unwrap();
        nodes.remove(victim).kill();
        let took = nodes[0].until("led by another", |picture| {
            picture.leader != leader && picture.leader != "nobody"
        });
        println!("a new leader after {took:?}");
        nodes.insert(victim, Node::start(&places[victim]));
        all_hear(&mut nodes, 0);
    }
}

#[test]
fn a_cluster_whose_majority_is_gone_is_formed_anew_by_hand() {
    let mut places = Place::some(3);
    let mut old = start_all(&places);
    all_hear(&mut old, 0);
    old.into_iter().for_each(Node::kill);
    // The machine of one comes back later, with all that it had.
    for place in &places[..2] {
        fs::remove_dir_all(place.data_dir()).unwrap();
    }

    places[0].peers = places[0].address.clone();
    let mut nodes = vec![Node::start(&places[0])];
    nodes.push(Node::start(&places[1]));
    all_hear(&mut nodes, 0);

    let stranger = Node::launch(&places[2]);
    let log = stranger.failed();
    assert!(log.contains("formed apart"), "{log}");
    fs::remove_dir_all(places[2].data_dir()).unwrap();
    nodes.push(Node::start(&places[2]));
    all_hear(&mut nodes, 2);
}

#[test]
fn clusters_that_name_each_other_by_mistake_do_not_mix() {
    let mut places = Place::some(2);
    let both = places[0].peers.clone();
    for place in &mut places {
        place.peers = place.address.clone();
        Node::start(place).kill();
        place.peers = both.clone();
    }
    let mut nodes: Vec<Node> = places.iter().map(Node::start).collect();
    // The first one to come back had nobody to ask.
    nodes.remove(0).kill();
    nodes.insert(0, Node::start(&places[0]));
    let ids: Vec<String> = nodes.iter().map(|node| node.id.clone()).collect();
    for node in &mut nodes {
        node.until("settled", |picture| picture.quorum);
    }
    let warned = |node: &Node| node.log().contains("they are kept apart");
    let begin = Instant::now();
    while !warned(&nodes[0]) {
        assert!(begin.elapsed() < PATIENCE, "{}", nodes[0].log());
        std::thread::sleep(Duration::from_millis(20));
    }
    for (node, other) in nodes.iter_mut().zip(ids.iter().rev()) {
        let picture = node.status();
        assert!(!picture.has(other), "{picture:?}");
        assert!(picture.quorum);
    }
}
