//! Messages that are too large for a frame, and travel in chunks.

// A test that cannot go on panics.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/peer.rs"]
mod peer;
#[path = "common/process.rs"]
mod process;

use std::{env, fs, pin::pin, time::Duration};

use bytes::Bytes;
use common::*;
use dchan::{Cluster, DeliveryError, Namespace, Transferred, prelude::*};
use futures_util::{FutureExt, SinkExt, StreamExt, join};
use peer::{
    link, open,
    proto::{Channel, Chunk, LinkReply, LinkRequest, verdict::Kind},
    run::{Part, Run},
};
use process::{Process, told};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::Streaming;

const MIB: usize = 1 << 20;

#[derive(Clone, Debug, PartialEq, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Blob(#[serde(with = "serde_bytes")] Vec<u8>);

fn blob(mib: usize) -> Blob {
    Blob((0..mib * MIB).map(|index| index as u8).collect())
}

fn blobs(node: &Cluster) -> Namespace<Blob> {
    node.namespace("blobs")
}

async fn beside(node: &Cluster, limit: usize) -> Cluster {
    let builder = builder().max_message(limit).peers([node.status().address]);
    builder.start().await.unwrap()
}

/// A made-up peer that has a link to a node, and the node's grant for blobs.
struct Peer {
    frames: mpsc::UnboundedSender<LinkRequest>,
    replies: Streaming<LinkReply>,
}

impl Peer {
    async fn of(node: &Cluster) -> Self {
        let (_, frames, mut replies) = link(node, open(node)).await;
        let declare = LinkRequest {
            channels: vec![Channel {
                id: 0,
                namespace: "blobs".to_owned(),
                label: "Blob".to_owned(),
            }],
            ..LinkRequest::default()
        };
        frames.send(declare).unwrap();
        let granted = replies.next().await.unwrap().unwrap();
        assert!(granted.grants[0].window > 0);
        Self { frames, replies }
    }

    fn says(&self, chunks: Vec<Chunk>) {
        let frame = LinkRequest {
            chunks,
            ..LinkRequest::default()
        };
        self.frames.send(frame).unwrap();
    }

    /// Resolves when the node lets a message go on.
    async fn let_on(&mut self) {
        while let Some(frame) = self.replies.next().await {
            if !frame.unwrap().proceeds.is_empty() {
                return;
            }
        }
        panic!("the link has ended");
    }

    /// Resolves when the node has ended the link.
    async fn cut_off(mut self) {
        while let Some(Ok(_)) = self.replies.next().await {}
    }
}

/// That a message of this size is to come.
fn announcement(size: usize) -> Chunk {
    Chunk {
        size: size as u64,
        ..Chunk::default()
    }
}

fn part(offset: usize, size: usize, of: usize) -> Chunk {
    Chunk {
        offset: offset as u64,
        data: Bytes::from(vec![7; size]),
        ..announcement(of)
    }
}

/// A node that receives blobs and has no room for a large one, as long as the
/// peer lives.
async fn without_room() -> (Cluster, dchan::Receiver<Blob>, Peer) {
    let builder = builder().max_message(4 * MIB).assembly(1, 1);
    let node = builder.start().await.unwrap();
    let receiver = blobs(&node).receiver(4);
    receiver.ready().await.unwrap();
    let mut peer = Peer::of(&node).await;
    peer.says(vec![announcement(4 * MIB)]);
    peer.let_on().await;
    (node, receiver, peer)
}

#[actix::test]
async fn a_large_message_holds_up_no_small_one() {
    let (reading, mut receiver, peer) = without_room().await;
    let sending = beside(&reading, 4 * MIB).await;
    let (_recorder, _) = Recorder::start_on(&reading, "numbers").await;

    let mut large = blobs(&sending).deliver(blob(1));
    let numbers = sending.namespace::<Number>("numbers");
    for number in 0..100 {
        assert_eq!(numbers.send(Number(number)).await, Ok(2 * number));
    }
    assert!((&mut large).now_or_never().is_none(), "it has no room yet");

    drop(peer);
    assert_eq!(receiver.next().await, Some(blob(1)));
    assert_eq!(large.await, Ok(reading.status().node));
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_large_message_gets_on_beside_a_flood() {
    let reading = builder().max_message(8 * MIB).start().await.unwrap();
    let mut receiver = blobs(&reading).receiver(1);
    let mut flooded = reading.namespace::<Blob>("flood").receiver(64);
    receiver.ready().await.unwrap();
    flooded.ready().await.unwrap();
    let sending = beside(&reading, 8 * MIB).await;

    let mut sink = sending.namespace::<Blob>("flood").sink();
    let flood = async {
        loop {
            sink.send(Blob(vec![7; 32 << 10])).await.unwrap();
        }
    };
    let mut drain = pin!(async { while flooded.next().await.is_some() {} });
    // It begins when the link is full.
    let large = async {
        until("the flood has arrived in part", || {
            sending.status().traffic.accepted > 1_000
        })
        .await;
        let (delivered, received) = join!(blobs(&sending).deliver(blob(4)), receiver.next());
        assert_eq!(delivered, Ok(reading.status().node));
        assert_eq!(received, Some(blob(4)));
    };
    tokio::select! {
        () = flood => {}
        () = &mut drain => {}
        () = large => {}
    }
    tokio::select! {
        () = drain => {}
        done = sending.shutdown() => assert_eq!(done, Ok(())),
    }
    drop(receiver);
    shut_down(vec![reading]).await;
}

#[actix::test]
async fn what_is_sent_after_a_large_message_arrives_after_it() {
    let reading = builder().start().await.unwrap();
    let sending = beside(&reading, 64 * MIB).await;
    let mut receiver = blobs(&reading).receiver(4);
    receiver.ready().await.unwrap();
    for round in 0..20 {
        blobs(&sending).do_send(blob(round % 3));
        blobs(&sending).do_send(Blob(vec![round as u8]));
    }
    for round in 0..20 {
        assert_eq!(receiver.next().await, Some(blob(round % 3)));
        assert_eq!(receiver.next().await, Some(Blob(vec![round as u8])));
    }
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_message_whose_receiver_dies_in_the_midst_of_it_goes_to_the_next_one() {
    let (first, receiver, peer) = without_room().await;
    let second = beside(&first, 4 * MIB).await;
    let sending = beside(&first, 4 * MIB).await;
    let mut other = blobs(&second).receiver(4);
    other.ready().await.unwrap();
    until_received(std::slice::from_ref(&sending), "blobs", 2).await;

    // One each, in turn.
    let deliveries = [1, 2].map(|mib| blobs(&sending).deliver(blob(mib)));
    assert!(other.next().await.is_some());
    until("the other is under way", || {
        sending.status().traffic.under_way == 1
    })
    .await;
    drop((receiver, first, peer));
    assert!(other.next().await.is_some());
    for delivery in deliveries {
        assert_eq!(delivery.await, Ok(second.status().node));
    }
    // Two of three voters are left, and agree on what follows.
    drop(other);
    shut_down(vec![sending, second]).await;
}

#[actix::test]
async fn a_large_message_past_its_deadline_is_given_up_and_the_next_one_arrives() {
    let (reading, mut receiver, peer) = without_room().await;
    let sending = beside(&reading, 4 * MIB).await;
    until_received(std::slice::from_ref(&sending), "blobs", 1).await;
    let error = blobs(&sending)
        .deliver(blob(1))
        .timeout(Duration::from_millis(200))
        .await
        .unwrap_err();
    assert!(
        matches!(error, DeliveryError::Timeout { .. }) && !error.maybe_delivered(),
        "{error:?}"
    );
    blobs(&sending).do_send(Blob(vec![1]));
    assert_eq!(receiver.next().await, Some(Blob(vec![1])));
    drop(peer);
    blobs(&sending).do_send(blob(2));
    assert_eq!(receiver.next().await, Some(blob(2)));
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn a_message_over_the_receivers_own_limit_is_rejected_with_both_sizes() {
    let reading = builder().max_message(MIB).start().await.unwrap();
    let sending = beside(&reading, 4 * MIB).await;
    let mut receiver = blobs(&reading).receiver(4);
    receiver.ready().await.unwrap();
    let error = blobs(&sending).deliver(blob(2)).await.unwrap_err();
    let DeliveryError::Rejected { reason } = error else {
        panic!("{error:?}");
    };
    assert!(reason.contains(&MIB.to_string()), "{reason}");
    let next = blobs(&sending).deliver(Blob(vec![7; MIB / 2]));
    assert_eq!(receiver.next().await, Some(Blob(vec![7; MIB / 2])));
    assert_eq!(next.await, Ok(reading.status().node));
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn the_progress_of_a_large_message_can_be_watched_to_its_end() {
    let reading = builder().start().await.unwrap();
    let sending = beside(&reading, 64 * MIB).await;
    let mut receiver = blobs(&reading).receiver(4);
    receiver.ready().await.unwrap();
    let delivery = blobs(&sending).deliver(blob(8));
    let progress = delivery.progress();
    assert_eq!(receiver.next().await, Some(blob(8)));
    delivery.await.unwrap();
    let steps: Vec<Transferred> = progress.collect().await;
    assert!(steps.is_sorted_by_key(|step| step.bytes), "{steps:?}");
    let last = steps.last().unwrap();
    assert!(last.size > 8 * MIB && last.bytes == last.size, "{last:?}");
    drop(receiver);
    shut_down(vec![sending, reading]).await;
}

#[actix::test]
async fn progress_ends_with_the_outcome_whatever_that_is() {
    let (reading, receiver, peer) = without_room().await;
    let sending = beside(&reading, 4 * MIB).await;
    let too_large = blobs(&sending).deliver(blob(5));
    let steps: Vec<Transferred> = too_large.progress().collect().await;
    assert_eq!(steps, [Transferred::default()]);
    assert!(matches!(
        too_large.await,
        Err(DeliveryError::TooLarge { .. })
    ));

    let waiting = blobs(&sending).deliver(blob(2));
    let waiting = waiting.timeout(Duration::from_millis(300));
    let steps: Vec<Transferred> = waiting.progress().collect().await;
    assert!(steps.iter().all(|step| step.fraction() < 1.0), "{steps:?}");
    assert!(matches!(waiting.await, Err(DeliveryError::Timeout { .. })));

    drop((peer, receiver));
    shut_down(vec![sending, reading]).await;
}

/// Asks for a reply of so many bytes.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Filled")]
struct Fill(usize);

#[derive(Serialize, Deserialize)]
struct Filled(#[serde(with = "serde_bytes")] Vec<u8>);

struct Filler;

impl Actor for Filler {
    type Context = Context<Self>;
}

impl Handler<Fill> for Filler {
    type Result = MessageResult<Fill>;

    fn handle(&mut self, Fill(bytes): Fill, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Filled(vec![7; bytes]))
    }
}

#[actix::test]
async fn large_replies_travel_up_to_the_limit_of_who_asked() {
    let replying = builder().max_message(16 * MIB).start().await.unwrap();
    let asking = beside(&replying, 4 * MIB).await;
    let fill = replying.namespace::<Fill>("fill");
    let registration = fill.subscribe(Filler.start().recipient());
    registration.ready().await.unwrap();
    let fill = asking.namespace::<Fill>("fill");
    let sizes = [3 * MIB, 8 * MIB, 5, 2 * MIB];
    let replies = sizes.map(|size| (size, fill.send(Fill(size))));
    for (size, reply) in replies {
        match reply.await {
            Ok(Filled(bytes)) => assert_eq!(bytes, vec![7; size]),
            Err(error) => {
                assert_eq!(size, 8 * MIB, "{error}");
                assert!(error.maybe_delivered() && error.to_string().contains("limit"));
            }
        }
    }
    drop(registration);
    shut_down(vec![asking, replying]).await;
}

#[actix::test]
async fn a_peer_that_lies_about_a_large_message_loses_its_link_and_harms_nobody() {
    let node = builder().max_message(4 * MIB).start().await.unwrap();
    let mut receiver = blobs(&node).receiver(4);
    receiver.ready().await.unwrap();
    let whole = 2 * MIB;
    let announced = || announcement(whole);
    for nonsense in [
        // Nothing announced, before its time, out of order, past the end, too much
        // at once, another one in its midst, or not in chunks at all.
        vec![part(0, 1, whole)],
        vec![announced(), part(1, 1, whole)],
        vec![announced(), part(0, 1, whole), part(0, 1, whole)],
        vec![announcement(1), part(0, 2, 1)],
        vec![announced(), part(0, MIB, whole)],
        vec![
            announced(),
            Chunk {
                sequence: 1,
                ..announced()
            },
        ],
        vec![Chunk {
            channel: 5,
            ..announced()
        }],
    ] {
        let peer = Peer::of(&node).await;
        peer.says(nonsense);
        peer.cut_off().await;
    }
    let peer = Peer::of(&node).await;
    let run = Run {
        parts: vec![Part::Message(Bytes::from(vec![7; MIB]))],
        ..Run::default()
    };
    let frame = LinkRequest {
        runs: vec![run],
        ..LinkRequest::default()
    };
    peer.frames.send(frame).unwrap();
    peer.cut_off().await;

    // One that is over the limit is rejected, and its link goes on.
    let mut peer = Peer::of(&node).await;
    peer.says(vec![announcement(usize::MAX)]);
    let verdict = loop {
        let frame = peer.replies.next().await.unwrap().unwrap();
        if let Some(verdict) = frame.verdicts.first() {
            break verdict.clone();
        }
    };
    assert_eq!(verdict.kind(), Kind::Rejected);

    blobs(&node).do_send(Blob(vec![3]));
    assert_eq!(receiver.next().await, Some(Blob(vec![3])));
    drop((receiver, peer));
    shut_down(vec![node]).await;
}

/// What a process of the tests is told, in its environment.
const ROLE: &str = "DCHAN_LARGE_ROLE";
const SIZE: usize = 256;

/// Whether this process is one that a test has started. It then receives blobs
/// or sends one, until it is killed.
async fn played_a_part() -> bool {
    let Ok(role) = env::var(ROLE) else {
        return false;
    };
    let (role, peer) = role.split_once(' ').unwrap();
    let node = builder().max_message(512 * MIB).peers([peer]);
    let node = node.start().await.unwrap();
    let mut told = told();
    match role {
        "receive" => {
            let mut receiver = blobs(&node).receiver(4);
            receiver.ready().await.unwrap();
            println!("receiving");
            while receiver.next().await.is_some() {}
        }
        "send" => {
            let delivery = blobs(&node).deliver(blob(SIZE));
            under_way(&delivery).await;
            println!("under way");
            told.recv().await;
        }
        other => panic!("{other:?} is no part"),
    }
    true
}

/// Waits until some of a message has been sent.
async fn under_way(delivery: &dchan::Delivery) {
    let mut progress = delivery.progress();
    while progress.next().await.unwrap().bytes == 0 {}
}

fn resident_mib() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1));
    kib.unwrap().parse::<usize>().unwrap() >> 10
}

async fn until_memory_is_back_to(before: usize) {
    until("what it took is free again", || {
        resident_mib() < before + SIZE / 4
    })
    .await;
}

fn start(test: &str, part: &str, node: &Cluster) -> Process {
    let log = env::temp_dir().join(format!("dchan-{test}-{}", std::process::id()));
    let orders = format!("{part} {}", node.status().address);
    Process::same_program(test, ROLE, &orders, &log)
}

#[actix::test]
async fn a_message_whose_receiver_is_killed_in_the_midst_of_it_is_delivered_to_another() {
    if played_a_part().await {
        return;
    }
    let node = builder().max_message(512 * MIB).start().await.unwrap();
    let test = "a_message_whose_receiver_is_killed_in_the_midst_of_it_is_delivered_to_another";
    let process = start(test, "receive", &node);
    process.until("receiving");
    until_received(std::slice::from_ref(&node), "blobs", 1).await;
    let before = resident_mib();
    let delivery = blobs(&node).deliver(blob(SIZE));
    under_way(&delivery).await;
    process.kill();
    let waits = || node.status().traffic.waiting == 1;
    until("it waits for another receiver", waits).await;

    let mut receiver = blobs(&node).receiver(4);
    let received = receiver.next().await.unwrap();
    assert!(received == blob(SIZE), "it has arrived whole");
    assert_eq!(delivery.await, Ok(node.status().node));
    drop(received);
    until_memory_is_back_to(before).await;
    drop((receiver, node));
}

#[actix::test]
async fn a_sender_killed_in_the_midst_of_a_large_message_leaves_nothing_behind() {
    if played_a_part().await {
        return;
    }
    let builder = builder().max_message(512 * MIB).assembly(1, 1);
    let node = builder.start().await.unwrap();
    let mut receiver = blobs(&node).receiver(4);
    receiver.ready().await.unwrap();
    let before = resident_mib();
    let test = "a_sender_killed_in_the_midst_of_a_large_message_leaves_nothing_behind";
    let process = start(test, "send", &node);
    process.until("under way");
    process.kill();
    until_memory_is_back_to(before).await;

    // Its room is free again, and no message of it arrives.
    let other = beside(&node, 512 * MIB).await;
    until_received(std::slice::from_ref(&other), "blobs", 1).await;
    blobs(&other).do_send(blob(1));
    assert!(receiver.next().await == Some(blob(1)));
    drop((receiver, other, node));
}
