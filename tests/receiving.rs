//! Who receives what.

mod common;

use common::*;
use futures_util::future::join_all;

#[actix::test]
async fn a_single_node_receives_what_it_sends() {
    let node = builder().start().await.unwrap();
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    let numbers = node.namespace::<Number>("numbers");

    assert_eq!(numbers.send(Number(21)).await, Ok(42));
    assert_eq!(numbers.deliver(Number(2)).await, Ok(node.status().node));
    assert_eq!(*seen.lock().unwrap(), [21, 2]);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn the_leader_receives_from_all_nodes() {
    let nodes = cluster_of(3).await;
    let (leader, _) = leader_and_follower(&nodes);
    receives_from_all(&nodes, &leader).await;
    shut_down(nodes).await;
}

#[actix::test]
async fn a_follower_receives_from_all_nodes() {
    let nodes = cluster_of(3).await;
    let (_, follower) = leader_and_follower(&nodes);
    receives_from_all(&nodes, &follower).await;
    shut_down(nodes).await;
}

async fn receives_from_all(nodes: &[dchan::Cluster], receiver: &dchan::Cluster) {
    let (_recorder, seen) = Recorder::start_on(receiver, "numbers").await;
    for (number, node) in (1..).zip(nodes) {
        let numbers = node.namespace::<Number>("numbers");
        assert_eq!(numbers.send(Number(number)).await, Ok(2 * number));
    }
    assert_eq!(*seen.lock().unwrap(), [1, 2, 3]);
}

#[actix::test]
async fn three_receivers_get_the_same_number_of_messages_in_order() {
    let nodes = cluster_of(3).await;
    let recorders = join_all(nodes.iter().map(|node| Recorder::start_on(node, "numbers"))).await;
    until_received(&nodes, "numbers", 3).await;

    // The sender receives too, and takes its turn.
    let numbers = nodes[0].namespace::<Number>("numbers");
    warm_up(&numbers, &recorders).await;
    let before: Vec<usize> = recorders
        .iter()
        .map(|r| r.1.lock().unwrap().len())
        .collect();
    let sent = join_all((0..3_000).map(|number| numbers.deliver(Number(number)))).await;
    assert!(sent.iter().all(Result::is_ok), "{sent:?}");

    let mut all = Vec::new();
    for ((_, seen), before) in recorders.iter().zip(before) {
        let seen = seen.lock().unwrap()[before..].to_vec();
        assert_eq!(seen.len(), 1_000);
        assert!(seen.is_sorted(), "out of order: {seen:?}");
        all.extend(seen);
    }
    all.sort_unstable();
    assert_eq!(all, (0..3_000).collect::<Vec<_>>());
    shut_down(nodes).await;
}

/// Sends until each receiver has got something: then all are ready.
async fn warm_up(numbers: &dchan::Namespace<Number>, recorders: &[(actix::Addr<Recorder>, Seen)]) {
    while recorders
        .iter()
        .any(|(_, seen)| seen.lock().unwrap().is_empty())
    {
        numbers.deliver(Number(0)).await.unwrap();
    }
}
