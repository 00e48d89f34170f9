//! Real processes, really killed: the `node` example.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod membership;
mod node;
mod partition;
#[path = "../common/process.rs"]
mod process;

use std::fs;

use self::node::{Node, Place, all_hear, start_all};

#[test]
fn a_killed_node_comes_back_as_itself_and_receives() {
    let places = Place::some(3);
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
    let places = Place::some(3);
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
    let places = Place::some(3);
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
        // Until then the next to die is one of two that can vote.
        let new = nodes[wiped].id.clone();
        nodes[wiped].until("it votes in place of the other", |picture| {
            picture.votes(&new) && !picture.has(&id)
        });
    }
}
