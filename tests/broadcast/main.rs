//! Broadcasts: each receiver gets each once and in order, whatever breaks on
//! the way.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;
#[path = "../common/peer.rs"]
mod peer;
mod peers;
mod wires;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use common::*;
use dchan::{Builder, Cluster, DeliveryError, Receiver, prelude::*};
use futures_util::{StreamExt, future::join_all};
use serde::{Deserialize, Serialize};
use wires::Wires;

/// The largest number of copies that a sender passes on, while nothing breaks.
const FAN_OUT: u64 = 4;

/// Nodes that know each other.
async fn nodes(count: usize, builder: impl Fn(usize) -> Builder) -> Vec<Cluster> {
    let builder = |node| builder(node).register_timeout(PATIENCE);
    let mut nodes = vec![builder(0).start().await.unwrap()];
    let peer = [nodes[0].status().address];
    let starts = (1..count).map(|node| builder(node).peers(peer.clone()).start());
    let started = join_all(starts).await;
    nodes.extend(started.into_iter().map(Result::unwrap));
    until("everybody sees everybody", || {
        let mut all = nodes.iter().map(Cluster::status);
        all.all(|status| status.nodes.len() == count)
    })
    .await;
    nodes
}

/// Waits until each has a link to each of the others.
async fn until_linked(nodes: &[Cluster]) {
    until("all links are up", || {
        nodes.iter().all(|node| {
            let links = node.status().links;
            links.len() >= nodes.len() - 1 && links.values().all(|up| *up)
        })
    })
    .await;
}

/// Reads a stream and writes down what it yields.
fn collect(mut receiver: Receiver<Event>) -> Seen {
    let seen = Seen::default();
    let writing = seen.clone();
    actix_rt::spawn(async move {
        while let Some(Event(number)) = receiver.next().await {
            writing.lock().unwrap().push(number);
        }
    });
    seen
}

async fn collect_on(nodes: &[Cluster], namespace: &str) -> Vec<Seen> {
    let receivers = nodes.iter().map(|node| async {
        let receiver = node.namespace::<Event>(namespace).receiver(16);
        receiver.ready().await.unwrap();
        collect(receiver)
    });
    join_all(receivers).await
}

fn all_have(seen: &[Seen], count: usize) -> bool {
    seen.iter().all(|seen| received(seen).len() >= count)
}

#[actix::test]
async fn thirty_two_nodes_see_each_of_a_thousand_broadcasts_once_and_in_order() {
    const BROADCASTS: u64 = 1_000;
    let nodes = nodes(32, |_| builder()).await;
    let seen = collect_on(&nodes, "events").await;
    until_received(&nodes, "events", 32).await;
    until_linked(&nodes).await;
    let events = nodes[7].namespace::<Event>("events");
    let begin = Instant::now();
    let broadcasts = (0..BROADCASTS).map(|number| events.broadcast(Event(number)));
    for reached in join_all(broadcasts).await {
        let reached = reached.unwrap();
        assert_eq!((reached.receivers, reached.confirmed), (32, 32));
        assert_eq!(reached.missed, 0);
    }
    println!("{BROADCASTS} broadcasts to 32 nodes: {:?}", begin.elapsed());
    for seen in &seen {
        assert_eq!(received(seen), (0..BROADCASTS).collect::<Vec<_>>());
    }
    let counts = nodes[7].status().broadcasts;
    assert_eq!((counts.sent, counts.settled), (BROADCASTS, BROADCASTS));
    assert_eq!(counts.confirmed, 32 * BROADCASTS);
    assert!(counts.copies <= FAN_OUT * BROADCASTS, "{counts:?}");
    // Nobody got a second copy.
    let all = nodes.iter().map(|node| node.status().broadcasts);
    let copies: u64 = all.map(|counts| counts.copies + counts.relayed).sum();
    assert_eq!(copies, 31 * BROADCASTS);
    for receivers in [4, 8, 16, 32] {
        tell_times(&nodes, receivers).await;
    }
    join_all(nodes.into_iter().map(Cluster::shutdown)).await;
}

/// Tells how long it takes until the last of so many receivers has a broadcast,
/// and until its sender knows.
async fn tell_times(nodes: &[Cluster], receivers: usize) {
    const ROUNDS: u64 = 100;
    let namespace = format!("of-{receivers}");
    let receiving = &nodes[nodes.len() - receivers..];
    let seen = collect_on(receiving, &namespace).await;
    until_received(nodes, &namespace, receivers).await;
    until_linked(receiving).await;
    let events = nodes[0].namespace::<Event>(&namespace);
    let (mut last, mut confirmed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let begin = Instant::now();
        let broadcast = events.broadcast(Event(round));
        while !all_have(&seen, round as usize + 1) {
            actix_rt::task::yield_now().await;
        }
        last.push(begin.elapsed());
        assert_eq!(broadcast.await.unwrap().confirmed, receivers);
        confirmed.push(begin.elapsed());
    }
    let middle = |mut times: Vec<Duration>| {
        times.sort();
        times[times.len() / 2]
    };
    println!(
        "{receivers:>2} receivers: the last one after {:?}, all confirmed after {:?}",
        middle(last),
        middle(confirmed)
    );
}

#[actix::test]
async fn who_lives_sees_each_once_while_nodes_are_killed_and_links_are_cut() {
    const BROADCASTS: u64 = 1_000;
    const NODES: usize = 30;
    let wires = Wires::default();
    let mut nodes = nodes(NODES, |_| builder().transport(wires.clone())).await;
    let seen = collect_on(&nodes, "events").await;
    until_received(&nodes, "events", NODES).await;
    until_linked(&nodes).await;
    let sender = nodes[0].clone();
    let events = sender.namespace::<Event>("events");
    let mut voters = sender.status().voters;
    voters.remove(&sender.status().node);
    let spared: BTreeSet<_> = voters.into_iter().take(3).collect();

    let mut lived = vec![true; NODES];
    let mut broadcasts = Vec::new();
    for number in 0..BROADCASTS {
        broadcasts.push(actix_rt::spawn(events.broadcast(Event(number))));
        actix_rt::task::yield_now().await;
        if number % 100 == 50 {
            wires.cut(7);
        }
        // A fifth of them, one after the other, in the midst of it.
        if number % 125 == 100 && lived.iter().filter(|lived| !**lived).count() < NODES / 5 {
            let victim = (1..NODES)
                .rev()
                .find(|node| lived[*node] && !spared.contains(&nodes[*node].status().node));
            let victim = victim.unwrap();
            lived[victim] = false;
            // Dropped, a node is gone without a word. Something has to be in its
            // place.
            nodes[victim] = sender.clone();
            until("some of it has arrived", || {
                all_have(&seen[..1], number as usize / 2)
            })
            .await;
        }
    }
    let begin = Instant::now();
    let mut confirmed = 0;
    for broadcast in broadcasts {
        let reached = broadcast.await.unwrap().unwrap();
        assert!(reached.confirmed >= NODES - NODES / 5, "{reached:?}");
        confirmed += reached.confirmed;
    }
    let died = lived.iter().filter(|lived| !**lived).count();
    println!(
        "{died} nodes died; settled after {:?}, {confirmed} confirmations",
        begin.elapsed()
    );
    assert_eq!(died, NODES / 5);
    for (seen, lived) in seen.iter().zip(&lived) {
        let seen = received(seen);
        match lived {
            true => assert_eq!(seen, (0..BROADCASTS).collect::<Vec<_>>()),
            // Until then it has had what it had once and in order as well.
            false => assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}"),
        }
    }
    let counts = sender.status().broadcasts;
    let relayed: u64 = nodes
        .iter()
        .map(|node| node.status().broadcasts.relayed)
        .sum();
    println!("{counts:?}, {relayed} passed on by others");
    assert_eq!((counts.settled, counts.under_way), (BROADCASTS, 0));
    drop((sender, events));
    let alive = nodes.into_iter().zip(lived).filter(|(_, lived)| *lived);
    join_all(alive.map(|(node, _)| node.shutdown())).await;
}

#[actix::test]
async fn who_cannot_be_reached_from_the_sender_gets_it_through_others() {
    let wires: Vec<Wires> = (0..4).map(|_| Wires::default()).collect();
    let nodes = nodes(4, |node| builder().transport(wires[node].clone())).await;
    let seen = collect_on(&nodes, "events").await;
    until_received(&nodes, "events", 4).await;
    let (sender, far) = (nodes[1].status(), nodes[2].status());
    let events = nodes[1].namespace::<Event>("events");
    assert_eq!(events.broadcast(Event(0)).await.unwrap().confirmed, 4);

    wires[1].close(&far.address, true);
    wires[1].cut(1);
    until("the link is down", || !nodes[1].status().links[&far.node]).await;
    let begin = Instant::now();
    let reached = join_all((1..=500).map(|number| events.broadcast(Event(number)))).await;
    println!("500 broadcasts the other way: {:?}", begin.elapsed());
    for reached in reached {
        assert_eq!(reached.map(|reached| reached.confirmed), Ok(4));
    }
    assert!(!nodes[1].status().links[&far.node]);
    for seen in &seen {
        assert_eq!(received(seen), (0..=500).collect::<Vec<_>>());
    }
    wires[1].close(&far.address, false);
    assert_eq!(events.broadcast(Event(501)).await.unwrap().confirmed, 4);
    assert_eq!(sender.node, nodes[1].status().node);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_slow_receiver_throttles_the_sender_and_stalls_no_other() {
    let nodes = nodes(3, |_| builder().window(8)).await;
    let fast = collect_on(&nodes[1..2], "events").await.remove(0);
    let slow = nodes[2].namespace::<Event>("events").receiver(1);
    slow.ready().await.unwrap();
    until_received(&nodes, "events", 2).await;
    let events = nodes[0].namespace::<Event>("events");
    let broadcasts: Vec<_> = (0..20)
        .map(|number| events.broadcast(Event(number)))
        .collect();
    until("a window's worth has arrived", || {
        received(&fast).len() == 8
    })
    .await;
    let counts = nodes[0].status().broadcasts;
    assert_eq!((counts.under_way, counts.waiting), (8, 12));
    // Nothing else is held up by it.
    let others = collect_on(&nodes[1..], "others").await;
    until_received(&nodes, "others", 2).await;
    let others_reached = nodes[0].namespace("others").broadcast(Event(7)).await;
    assert_eq!(others_reached.unwrap().confirmed, 2);
    assert!(others.iter().all(|seen| received(seen) == [7]));
    assert_eq!(received(&fast).len(), 8);

    let slow = collect(slow);
    for reached in join_all(broadcasts).await {
        assert_eq!(reached.unwrap().confirmed, 2);
    }
    for seen in [fast, slow] {
        assert_eq!(received(&seen), (0..20).collect::<Vec<_>>());
    }
    shut_down(nodes).await;
}

#[actix::test]
async fn a_slow_receiver_misses_what_is_lossy_and_is_counted() {
    let nodes = nodes(3, |_| builder()).await;
    let fast = collect_on(&nodes[1..2], "events").await.remove(0);
    let slow = nodes[2].namespace::<Event>("events").receiver(2);
    slow.ready().await.unwrap();
    until_received(&nodes, "events", 2).await;
    let events = nodes[0].namespace::<Event>("events");
    // Two are in its queue, and not accepted before it takes them.
    let kept: Vec<_> = (0..2)
        .map(|number| events.broadcast_lossy(Event(number)))
        .collect();
    for number in 2..2_000 {
        let reached = events.broadcast_lossy(Event(number)).await.unwrap();
        assert_eq!(
            (reached.receivers, reached.confirmed, reached.missed),
            (2, 1, 1)
        );
    }
    let slow = collect(slow);
    for reached in join_all(kept).await {
        assert_eq!(reached.unwrap().confirmed, 2);
    }
    assert_eq!(received(&fast), (0..2_000).collect::<Vec<_>>());
    assert_eq!(received(&slow), [0, 1]);
    assert_eq!(nodes[0].status().broadcasts.missed, 1_998);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_receiver_with_much_room_does_not_stop_a_lossy_sender_either() {
    let node = builder().window(8).start().await.unwrap();
    let events = node.namespace::<Event>("events");
    let stalled = events.receiver(1_000);
    stalled.ready().await.unwrap();
    let mut broadcasts: Vec<_> = (0..4)
        .map(|number| events.broadcast_lossy(Event(number)))
        .collect();
    assert_eq!(events.broadcast_lossy(Event(4)).await.unwrap().missed, 1);
    drop(stalled);
    let reached = broadcasts.remove(0).await.unwrap();
    assert_eq!((reached.receivers, reached.confirmed), (1, 0));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn large_lossy_broadcasts_are_missed_by_who_is_slow_like_small_ones() {
    let nodes = nodes(2, |_| builder().window_bytes(300 << 10)).await;
    let stalled = nodes[1].namespace::<Blob>("blobs").receiver(100);
    stalled.ready().await.unwrap();
    until_received(&nodes, "blobs", 1).await;
    let blobs = nodes[0].namespace::<Blob>("blobs");
    let broadcast = |number| blobs.broadcast_lossy(Blob(vec![number; 64 << 10]));
    // Half of what may be under way, in bytes, waits before it.
    let kept = [broadcast(0), broadcast(1)];
    for number in 2..20 {
        assert_eq!(broadcast(number).await.unwrap().missed, 1);
    }
    drop(stalled);
    for reached in kept {
        assert_eq!(reached.await.unwrap().receivers, 1);
    }
    shut_down(nodes).await;
}

#[actix::test]
async fn large_broadcasts_and_messages_share_a_link() {
    let nodes = nodes(2, |_| builder()).await;
    let mut all = nodes[1].namespace::<Blob>("all").receiver(100);
    let mut one = nodes[1].namespace::<Event>("one").receiver(100);
    all.ready().await.unwrap();
    one.ready().await.unwrap();
    until_received(&nodes, "all", 1).await;
    until_received(&nodes, "one", 1).await;
    let broadcasts = nodes[0].namespace::<Blob>("all");
    let messages = nodes[0].namespace::<Event>("one");
    let mut reached = Vec::new();
    for number in 0..50 {
        messages.do_send(Event(2 * number));
        reached.push(broadcasts.broadcast(Blob(vec![number as u8; 200 << 10])));
        messages.do_send(Event(2 * number + 1));
    }
    for number in 0..50 {
        assert_eq!(all.next().await.unwrap().0[0], number);
    }
    for number in 0..100 {
        assert_eq!(one.next().await, Some(Event(number)));
    }
    for reached in reached {
        assert_eq!(reached.await.unwrap().confirmed, 1);
    }
    drop((all, one));
    shut_down(nodes).await;
}

#[actix::test]
async fn all_recipients_of_a_node_get_it_once_from_one_copy() {
    let nodes = nodes(2, |_| builder()).await;
    let events = nodes[1].namespace::<Event>("events");
    let mut recipients = Vec::new();
    for _ in 0..5 {
        let receiver = events.receiver(4);
        receiver.ready().await.unwrap();
        recipients.push(collect(receiver));
    }
    // Here as well, where nothing is encoded.
    recipients.extend(collect_on(&nodes[..1], "events").await);
    recipients.extend(collect_on(&nodes[..1], "events").await);
    until_received(&nodes, "events", 2).await;
    for number in 0..10 {
        let reached = nodes[0].namespace("events").broadcast(Event(number)).await;
        assert_eq!(reached.unwrap().confirmed, 2);
    }
    for seen in recipients {
        assert_eq!(received(&seen), (0..10).collect::<Vec<_>>());
    }
    assert_eq!(nodes[0].status().broadcasts.copies, 10);
    shut_down(nodes).await;
}

#[actix::test]
async fn handlers_of_actors_get_it_and_what_they_return_is_dropped() {
    let nodes = nodes(3, |_| builder()).await;
    let recorders = join_all(nodes.iter().map(|node| Recorder::start_on(node, "numbers"))).await;
    until_received(&nodes, "numbers", 3).await;
    let numbers = nodes[0].namespace::<Number>("numbers");
    for number in 0..100 {
        assert_eq!(
            numbers.broadcast(Number(number)).await.unwrap().confirmed,
            3
        );
    }
    for (_, seen) in &recorders {
        assert_eq!(received(seen), (0..100).collect::<Vec<_>>());
    }
    assert_eq!(nodes[0].status().traffic.sent, 0, "they are counted apart");
    shut_down(nodes).await;
}

#[actix::test]
async fn who_joins_in_the_midst_gets_the_later_ones_in_order() {
    let nodes = nodes(4, |_| builder()).await;
    let _first = collect_on(&nodes[..3], "events").await;
    until_received(&nodes, "events", 3).await;
    let events = nodes[0].namespace::<Event>("events");
    let mut broadcasts = Vec::new();
    let last = nodes[3].clone();
    let joining = async move { collect_on(&[last], "events").await };
    let mut joining = Box::pin(joining);
    let mut number = 0;
    let late = loop {
        broadcasts.push(events.broadcast(Event(number)));
        number += 1;
        tokio::select! {
            biased;
            late = &mut joining => break late.into_iter().next().unwrap(),
            () = actix_rt::task::yield_now() => {}
        }
    };
    until_received(&nodes, "events", 4).await;
    broadcasts.extend((number..number + 100).map(|number| events.broadcast(Event(number))));
    let reached = join_all(broadcasts).await;
    let reached: Vec<_> = reached.into_iter().map(Result::unwrap).collect();
    assert!(
        reached
            .iter()
            .all(|reached| reached.confirmed == reached.receivers)
    );
    let knew = reached
        .iter()
        .filter(|reached| reached.receivers == 4)
        .count();
    assert!(knew >= 100);
    let (count, all) = (reached.len() as u64, received(&late));
    assert_eq!(all, (count - knew as u64..count).collect::<Vec<_>>());
    shut_down(nodes).await;
}

#[actix::test]
async fn at_its_deadline_a_broadcast_tells_how_far_it_got_and_goes_no_further() {
    // The one that stalls is behind others.
    let nodes = nodes(8, |_| builder()).await;
    let seen = collect_on(&nodes[1..7], "events").await;
    let stalled = nodes[7].namespace::<Event>("events").receiver(16);
    stalled.ready().await.unwrap();
    until_received(&nodes, "events", 7).await;
    let events = nodes[0].namespace::<Event>("events");
    let begin = Instant::now();
    let timeout = Duration::from_millis(400);
    let reached = events.broadcast(Event(0)).timeout(timeout).await.unwrap();
    assert!(begin.elapsed() >= timeout);
    assert_eq!(
        (reached.receivers, reached.confirmed, reached.missed),
        (7, 6, 0)
    );
    assert_eq!(nodes[0].status().broadcasts.unconfirmed, 1);
    until("the others have it", || all_have(&seen, 1)).await;

    // One with more time comes through, and the first one does not any more.
    let broadcast = events.broadcast(Event(1));
    until("it has arrived", || all_have(&seen, 2)).await;
    actix_rt::time::sleep(timeout).await;
    let late = collect(stalled);
    assert_eq!(broadcast.await.unwrap().confirmed, 7);
    assert_eq!(received(&late), [1]);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_deadline_can_be_later_than_usual() {
    let nodes = nodes(2, |_| builder().send_timeout(Duration::from_millis(100))).await;
    let stalled = nodes[1].namespace::<Event>("events").receiver(16);
    stalled.ready().await.unwrap();
    until_received(&nodes, "events", 1).await;
    let events = nodes[0].namespace::<Event>("events");
    let broadcast = events.broadcast(Event(0)).timeout(PATIENCE);
    let early = events.broadcast(Event(1)).await.unwrap();
    assert_eq!(early.confirmed, 0);
    let seen = collect(stalled);
    assert_eq!(broadcast.await.unwrap().confirmed, 1);
    assert_eq!(received(&seen)[0], 0);
    shut_down(nodes).await;
}

#[actix::test]
async fn what_waits_behind_others_for_too_long_is_not_sent() {
    let node = builder().window(1).start().await.unwrap();
    let events = node.namespace::<Event>("events");
    let stalled = events.receiver(1);
    stalled.ready().await.unwrap();
    let first = events.broadcast(Event(0));
    let waited = Duration::from_millis(50);
    let error = events.broadcast(Event(1)).timeout(waited).await;
    let maybe_delivered = false;
    assert_eq!(
        error,
        Err(DeliveryError::Timeout {
            waited,
            maybe_delivered
        })
    );
    let seen = collect(stalled);
    assert_eq!(first.await.unwrap().confirmed, 1);
    assert_eq!(events.broadcast(Event(2)).await.unwrap().confirmed, 1);
    assert_eq!(received(&seen), [0, 2]);
    let counts = node.status().broadcasts;
    assert_eq!((counts.sent, counts.settled, counts.failed), (3, 2, 1));
    shut_down(vec![node]).await;
}

#[derive(Clone, Debug, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

#[actix::test]
async fn what_cannot_be_broadcast_is_an_error_at_once() {
    let nodes = nodes(2, |_| builder().max_message(1 << 10)).await;
    let nobody = nodes[0].namespace::<Event>("nobody").broadcast(Event(0));
    let nobody = nobody.await.unwrap();
    assert_eq!(
        (nobody.receivers, nobody.confirmed, nobody.missed),
        (0, 0, 0)
    );

    let blobs = nodes[1].namespace::<Blob>("blobs").receiver(1);
    blobs.ready().await.unwrap();
    until_received(&nodes, "blobs", 1).await;
    let blobs = nodes[0].namespace::<Blob>("blobs");
    let error = blobs.broadcast(Blob(vec![0; 2 << 10])).await.unwrap_err();
    let DeliveryError::TooLarge { size, limit } = error else {
        panic!("{error}")
    };
    assert!(size > limit && limit == 1 << 10);

    let other = nodes[0].namespace::<Event>("contested");
    let (_recorder, seen) = Recorder::start_on(&nodes[1], "contested").await;
    until_received(&nodes, "contested", 1).await;
    let error = other.broadcast(Event(0)).await.unwrap_err();
    assert!(matches!(&error, DeliveryError::Rejected { reason } if reason.contains("Number")));
    assert!(received(&seen).is_empty());

    let counts = nodes[0].status().broadcasts;
    assert_eq!((counts.sent, counts.settled, counts.failed), (3, 1, 2));
    nodes[0].clone().shutdown().await.unwrap();
    assert_eq!(
        blobs.broadcast(Blob(Vec::new())).await,
        Err(DeliveryError::Closed)
    );
    shut_down(nodes).await;
}

#[actix::test]
async fn a_recipient_that_ends_leaves_its_copies_to_nobody() {
    let nodes = nodes(2, |_| builder()).await;
    let events = nodes[1].namespace::<Event>("events");
    let (ends, stays) = (events.receiver(16), events.receiver(16));
    stays.ready().await.unwrap();
    until_received(&nodes, "events", 1).await;
    let broadcasts = (0..3).map(|number| nodes[0].namespace("events").broadcast(Event(number)));
    let broadcasts: Vec<_> = broadcasts.collect();
    let stays = collect(stays);
    until("it has arrived", || received(&stays).len() == 3).await;
    ends.close().await.unwrap();
    for reached in join_all(broadcasts).await {
        assert_eq!(reached.unwrap().confirmed, 1);
    }
    assert_eq!(received(&stays), [0, 1, 2]);
    shut_down(nodes).await;
}

#[actix::test]
async fn a_shutdown_waits_for_the_broadcasts_of_its_node() {
    let mut nodes = nodes(4, |_| builder()).await;
    let seen = collect_on(&nodes, "events").await;
    until_received(&nodes, "events", 4).await;
    let leaving = nodes.remove(0);
    let events = leaving.namespace::<Event>("events");
    let broadcasts: Vec<_> = (0..500)
        .map(|number| events.broadcast(Event(number)))
        .collect();
    leaving.shutdown().await.unwrap();
    for reached in join_all(broadcasts).await {
        assert_eq!(reached.unwrap().confirmed, 4);
    }
    for seen in &seen {
        assert_eq!(received(seen), (0..500).collect::<Vec<_>>());
    }
    shut_down(nodes).await;
}

#[actix::test]
async fn nodes_that_leave_while_others_broadcast_cost_nobody_else_anything() {
    let mut nodes = nodes(10, |_| builder()).await;
    let seen = collect_on(&nodes, "events").await;
    until_received(&nodes, "events", 10).await;
    let events = nodes[0].namespace::<Event>("events");
    let mut broadcasts = Vec::new();
    let leaving = nodes.split_off(6);
    let mut leaving = leaving.into_iter();
    for number in 0..1_000 {
        broadcasts.push(events.broadcast(Event(number)));
        actix_rt::task::yield_now().await;
        if number % 200 == 100
            && let Some(node) = leaving.next()
        {
            node.shutdown().await.unwrap();
        }
    }
    for reached in join_all(broadcasts).await {
        assert!(reached.unwrap().confirmed >= 6);
    }
    for seen in &seen[..6] {
        assert_eq!(received(seen), (0..1_000).collect::<Vec<_>>());
    }
    for seen in &seen[6..] {
        let seen = received(seen);
        assert!(seen.is_sorted_by(|one, next| one < next), "{seen:?}");
    }
    shut_down(nodes).await;
}
