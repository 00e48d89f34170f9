//! That no message is forgotten: what became of each is counted, and what
//! reached nobody can be seen.

mod common;

use std::time::Duration;

use common::*;
use dchan::{Cluster, DeadLetter, DeliveryError, NodeId, Traffic, prelude::*};
use futures_util::{StreamExt, future::join_all};
use serde::{Deserialize, Serialize};

/// Every message that was sent is in exactly one place.
fn assert_balanced(traffic: &Traffic) {
    let outcomes = traffic.handled + traffic.accepted + traffic.unknown;
    let dead = traffic.dead_letters.total();
    let here = traffic.waiting + traffic.under_way;
    assert_eq!(traffic.sent, outcomes + dead + here, "{traffic:?}");
}

#[derive(Debug, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

/// Stops at the first message.
struct Fragile;

impl Actor for Fragile {
    type Context = Context<Self>;
}

impl Handler<Event> for Fragile {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Event, ctx: &mut Context<Self>) -> Self::Result {
        ctx.stop();
        Box::pin(std::future::pending::<()>().into_actor(self))
    }
}

async fn two_nodes() -> (Cluster, Cluster) {
    let sending = builder().outbox(4, 1 << 20).max_message(1 << 10);
    let sending = sending.start().await.expect("a node alone");
    let receiving = builder().max_message(1 << 10);
    let receiving = receiving.peers([sending.status().address]).start().await;
    (sending, receiving.expect("a node beside another one"))
}

#[actix::test]
async fn every_outcome_is_counted_and_they_add_up() {
    let (sending, receiving) = two_nodes().await;
    let traffic = || sending.status().traffic;
    let short = Duration::from_millis(20);

    // Two handled, three accepted.
    let (recorder, _) = Recorder::start_on(&receiving, "numbers").await;
    let numbers = sending.namespace::<Number>("numbers");
    assert!(numbers.send(Number(1)).await.is_ok());
    assert!(numbers.send(Number(2)).await.is_ok());
    assert!(numbers.deliver(Number(3)).await.is_ok());
    numbers.do_send(Number(4));
    numbers.try_send(Number(5)).unwrap();
    until("all have been accepted", || traffic().accepted == 3).await;
    assert_eq!((traffic().sent, traffic().handled), (5, 2));
    assert_balanced(&traffic());

    // Nobody receives: one fails at its deadline, four wait, and one finds no
    // room.
    let nobody = sending.namespace::<Event>("nobody");
    assert!(nobody.deliver(Event(0)).timeout(short).await.is_err());
    for number in 0..5 {
        nobody.do_send(Event(number));
    }
    assert_eq!((traffic().waiting, traffic().under_way), (4, 0));
    assert_eq!(traffic().dead_letters.no_receiver, 1);
    assert_eq!(traffic().dead_letters.full, 1);
    // This one was given back, and not sent.
    assert!(nobody.try_send(Event(9)).is_err());
    assert_balanced(&traffic());

    // Too large.
    let blobs = sending.namespace::<Blob>("blobs");
    assert!(blobs.deliver(Blob(vec![0; 2 << 10])).await.is_err());
    assert_eq!(traffic().dead_letters.too_large, 1);

    // Another type.
    let (holding, _) = Recorder::start_on(&receiving, "contested").await;
    let contested = sending.namespace::<Event>("contested");
    until_received(std::slice::from_ref(&sending), "contested", 1).await;
    assert!(contested.deliver(Event(0)).await.is_err());
    assert_eq!(traffic().dead_letters.rejected, 1);
    drop(holding);

    // Unknown: the handler's actor stops before it replies.
    let fragile = receiving.namespace::<Event>("fragile");
    let registration = fragile.subscribe(Fragile.start().recipient());
    registration.ready().await.unwrap();
    let lost = sending.namespace::<Event>("fragile").send(Event(0)).await;
    assert!(lost.is_err_and(|error| error.maybe_delivered()));
    assert_eq!(traffic().unknown, 1);
    assert_balanced(&traffic());

    // The four that wait are given up.
    let before = traffic();
    assert!(sending.clone().shutdown().await.is_err());
    let after = traffic();
    assert_eq!((after.waiting, after.under_way), (0, 0));
    assert_eq!(after.dead_letters.closed, 4);
    assert_eq!(after.sent, before.sent);
    numbers.do_send(Number(6));
    assert_eq!(traffic().dead_letters.closed, 5);
    assert_balanced(&traffic());
    drop((recorder, registration));
    shut_down(vec![receiving]).await;
}

#[actix::test]
async fn what_reached_nobody_can_be_read_with_its_reason() {
    let (sending, receiving) = two_nodes().await;
    let mut letters = sending.dead_letters();
    let nobody = sending.namespace::<Event>("nobody");
    let patience = Duration::from_millis(20);
    let error = nobody.deliver(Event(0)).timeout(patience).await;
    for number in 0..5 {
        nobody.do_send(Event(number));
    }

    let DeadLetter {
        namespace,
        reason,
        age,
        awaited,
        ..
    } = letters.next().await.unwrap();
    assert_eq!((&*namespace, awaited), ("nobody", true));
    assert_eq!(Err::<NodeId, _>(reason), error);
    assert!(age >= patience);
    let full = letters.next().await.unwrap();
    assert_eq!((full.reason, full.awaited), (DeliveryError::Full, false));
    assert_eq!(full.size, size_of::<Event>());

    // What is left at the end is seen too, and then the stream ends.
    assert!(sending.shutdown().await.is_err());
    let rest: Vec<DeadLetter> = letters.collect().await;
    assert_eq!(rest.len(), 4);
    assert!(
        rest.iter()
            .all(|letter| letter.reason == DeliveryError::Closed)
    );
    shut_down(vec![receiving]).await;
}

#[actix::test]
async fn a_reader_of_dead_letters_that_is_slow_holds_up_nobody() {
    let node = builder().outbox(1, 1 << 20).start().await.unwrap();
    let letters = node.dead_letters();
    let nobody = node.namespace::<Event>("nobody");
    for number in 0..=5_000 {
        nobody.do_send(Event(number));
    }
    assert_eq!(node.status().traffic.dead_letters.full, 5_000);
    assert!(node.shutdown().await.is_err());
    assert_eq!(letters.count().await, 1_024);
}

#[actix::test]
async fn the_counters_add_up_in_the_midst_of_everything() {
    let nodes = cluster_of(3).await;
    let recorders = join_all(nodes.iter().map(|node| Recorder::start_on(node, "numbers"))).await;
    until_received(&nodes, "numbers", 3).await;
    let numbers = nodes[0].namespace::<Number>("numbers");
    let mut requests = Vec::new();
    for number in 0..5_000 {
        requests.push(numbers.send(Number(number)));
        numbers.do_send(Number(number));
        if number % 100 == 0 {
            assert_balanced(&nodes[0].status().traffic);
            actix_rt::task::yield_now().await;
        }
    }
    recorders[1].0.send(Close).await.unwrap();
    assert_balanced(&nodes[0].status().traffic);
    let replies = join_all(requests).await;
    assert!(replies.iter().all(Result::is_ok));
    until("all is settled", || {
        let traffic = nodes[0].status().traffic;
        traffic.under_way + traffic.waiting == 0
    })
    .await;
    let traffic = nodes[0].status().traffic;
    assert_eq!((traffic.handled, traffic.accepted), (5_000, 5_000));
    assert_balanced(&traffic);
    shut_down(nodes).await;
}
