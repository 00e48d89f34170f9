//! Peers that the test makes up, whose copies come twice, early or in nonsense.

use dchan::Cluster;
use futures_util::StreamExt;
use tokio::sync::mpsc;
use tonic::Streaming;

use crate::{
    collect, collect_on,
    common::*,
    peer::{
        link, open,
        proto::{
            Addressee, Broadcast, Channel, Confirmation, LinkReply, LinkRequest, Open,
            opened::Answer,
        },
    },
};

/// A peer that the test makes up, with a channel to the namespace `events`.
struct Peer {
    frames: mpsc::UnboundedSender<LinkRequest>,
    replies: Streaming<LinkReply>,
}

impl Peer {
    async fn open(node: &Cluster, label: &str) -> Self {
        Self::open_as(open(node), node, label).await
    }

    async fn open_as(open: Open, node: &Cluster, label: &str) -> Self {
        let (answer, frames, replies) = link(node, open).await;
        assert_eq!(answer, Answer::Welcome);
        let declared = LinkRequest {
            channels: vec![Channel {
                id: 0,
                namespace: "events".to_owned(),
                label: label.to_owned(),
            }],
            ..LinkRequest::default()
        };
        frames.send(declared).unwrap();
        Self { frames, replies }
    }

    fn pass_on(&self, broadcasts: Vec<Broadcast>) {
        let frame = LinkRequest {
            broadcasts,
            ..LinkRequest::default()
        };
        self.frames.send(frame).unwrap();
    }

    async fn answers(&mut self, count: usize) -> Vec<Confirmation> {
        let mut answers = Vec::new();
        while answers.len() < count {
            answers.extend(self.replies.next().await.unwrap().unwrap().confirmations);
        }
        answers
    }

    async fn ends(&mut self) {
        while let Some(Ok(_)) = self.replies.next().await {}
    }
}

/// The broadcast of that number, of an origin that the test makes up, for a node.
fn copy(node: &Cluster, sequence: u8, behind: u64) -> Broadcast {
    Broadcast {
        channel: 0,
        copy: sequence.into(),
        origin: 1,
        origin_boot: 1,
        sequence: sequence.into(),
        settled: 1,
        remaining: 60_000,
        patience: 60_000,
        hops: 1,
        lossy: false,
        addressees: vec![Addressee {
            node: node.status().node.get(),
            boot: node.status().boot,
            behind,
        }],
        // A small number, as MessagePack has it.
        message: vec![sequence].into(),
    }
}

/// A node that receives `events`, and what it has received.
async fn receiving() -> (Cluster, Seen) {
    let node = builder().start().await.unwrap();
    let mut seen = collect_on(std::slice::from_ref(&node), "events").await;
    (node, seen.remove(0))
}

#[actix::test]
async fn a_node_hands_back_the_copies_that_it_has_no_room_for() {
    let node = builder().start().await.unwrap();
    let stalled = node.namespace::<Event>("events").receiver(1);
    stalled.ready().await.unwrap();
    let mut peer = Peer::open(&node, "Event").await;
    // Held are 64 MiB of a peer; here are 100 with what there is beside them.
    for number in 1..=100 {
        peer.pass_on(vec![Broadcast {
            message: vec![0xc1; (1 << 20) - 1_000].into(),
            ..copy(&node, number, 0)
        }]);
    }
    for answer in peer.answers(36).await {
        assert_eq!((answer.late, answer.done), (true, true), "{answer:?}");
        assert_eq!(answer.returned, [node.node().get()]);
    }
    // What is settled makes room.
    drop(stalled);
    peer.answers(64).await;
    peer.pass_on(vec![copy(&node, 101, 0)]);
    assert!(!peer.answers(1).await[0].late);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn who_makes_up_origins_costs_its_bound_and_harms_nobody() {
    let (node, seen) = receiving().await;
    let of = |origin| Broadcast {
        copy: origin,
        origin,
        remaining: 3_600_000,
        ..copy(&node, 1, 0)
    };
    let mut peer = Peer::open(&node, "Event").await;
    let (mut confirmed, mut late) = (0, 0);
    for first in (1..=70_000).step_by(1_000) {
        peer.pass_on((first..first + 1_000).map(of).collect());
        for answer in peer.answers(1_000).await {
            confirmed += answer.confirmed;
            late += u64::from(answer.late);
        }
    }
    // Each takes 1 KiB as long as it is remembered, and a peer has 64 MiB.
    assert_eq!((confirmed, late), (65_536, 70_000 - 65_536));

    // Another link changes nothing for that peer, nor all of this for another peer.
    let mut again = Peer::open(&node, "Event").await;
    again.pass_on(vec![of(70_001)]);
    assert!(again.answers(1).await[0].late);
    let other = Open {
        node: 2,
        ..open(&node)
    };
    let mut another = Peer::open_as(other, &node, "Event").await;
    another.pass_on(vec![of(70_001)]);
    assert_eq!(another.answers(1).await[0].confirmed, 1);
    assert_eq!(received(&seen).len(), 65_537);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn copies_that_come_twice_or_early_are_handed_over_once_and_in_order() {
    let (node, seen) = receiving().await;
    let mut peer = Peer::open(&node, "Event").await;
    let late = copy(&node, 1, 0);
    let early: Vec<_> = (2..=4).rev().map(|number| copy(&node, number, 1)).collect();
    peer.pass_on(early.clone());
    peer.pass_on(early);
    peer.pass_on(vec![late.clone()]);
    for answer in peer.answers(7).await {
        assert_eq!((answer.confirmed, answer.done), (1, true), "{answer:?}");
    }
    assert_eq!(received(&seen), [1, 2, 3, 4]);
    // Once more, over another link.
    let mut peer = Peer::open(&node, "Event").await;
    peer.pass_on(vec![late, copy(&node, 5, 1)]);
    assert!(
        peer.answers(2)
            .await
            .iter()
            .all(|answer| answer.confirmed == 1)
    );
    assert_eq!(received(&seen), [1, 2, 3, 4, 5]);

    // What the origin has settled is not waited for, nor what takes too long.
    let settled = Broadcast {
        settled: 9,
        ..copy(&node, 9, 1)
    };
    let impatient = Broadcast {
        patience: 20,
        ..copy(&node, 12, 1)
    };
    peer.pass_on(vec![settled, impatient]);
    peer.answers(2).await;
    assert_eq!(received(&seen), [1, 2, 3, 4, 5, 9, 12]);
    // Nobody asks for those any more, and they do not come again.
    peer.pass_on(vec![copy(&node, 4, 0), copy(&node, 8, 0)]);
    assert!(peer.answers(2).await.iter().all(|answer| answer.done));
    assert_eq!(received(&seen), [1, 2, 3, 4, 5, 9, 12]);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn what_a_node_cannot_see_to_it_hands_back() {
    let (node, seen) = receiving().await;
    let mut peer = Peer::open(&node, "Event").await;
    let stranger = Addressee {
        node: 77,
        boot: 1,
        behind: 0,
    };
    let mut with_stranger = copy(&node, 1, 0);
    with_stranger.addressees.push(stranger);
    let mut other_boot = copy(&node, 2, 0);
    other_boot.addressees[0].boot += 1;
    let too_late = Broadcast {
        remaining: 0,
        ..copy(&node, 3, 0)
    };
    let unreadable = Broadcast {
        message: vec![0xc1].into(),
        ..copy(&node, 4, 0)
    };
    peer.pass_on(vec![with_stranger]);
    let answers = peer.answers(2).await;
    assert_eq!(
        (&answers[0].returned[..], answers[0].done),
        (&[77][..], false)
    );
    assert_eq!((answers[1].confirmed, answers[1].done), (1, true));
    let me = node.status().node.get();
    for (odd, returned) in [
        (other_boot, vec![me]),
        (too_late, vec![me]),
        (unreadable, vec![]),
    ] {
        peer.pass_on(vec![odd]);
        let answer = peer.answers(1).await.remove(0);
        assert_eq!(
            (answer.returned, answer.confirmed, answer.done),
            (returned, 0, true)
        );
    }
    let mut other_type = Peer::open(&node, "Number").await;
    other_type.pass_on(vec![copy(&node, 5, 0)]);
    assert_eq!(other_type.answers(1).await[0].returned, [me]);
    assert_eq!(received(&seen), [1]);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn who_breaks_the_protocol_with_broadcasts_loses_its_link_and_harms_nobody() {
    let node = builder().start().await.unwrap();
    let stalled = node.namespace::<Event>("events").receiver(1);
    stalled.ready().await.unwrap();
    let valid = copy(&node, 1, 0);
    let nobody = Broadcast {
        addressees: Vec::new(),
        ..valid.clone()
    };
    let no_number = Broadcast {
        sequence: 0,
        ..valid.clone()
    };
    let behind_the_first = copy(&node, 1, 2);
    let undeclared = Broadcast {
        channel: 1,
        ..valid
    };
    for nonsense in [nobody, no_number, behind_the_first, undeclared] {
        let mut peer = Peer::open(&node, "Event").await;
        peer.pass_on(vec![nonsense]);
        peer.ends().await;
    }
    // More than anybody has under way.
    let mut peer = Peer::open(&node, "Event").await;
    let flood = (0..8_193).map(|number| Broadcast {
        copy: number,
        sequence: 1 + number,
        ..copy(&node, 1, 0)
    });
    peer.pass_on(flood.collect());
    peer.ends().await;

    let seen = collect(stalled);
    let events = node.namespace::<Event>("events");
    assert_eq!(events.broadcast(Event(1)).await.unwrap().confirmed, 1);
    assert_eq!(received(&seen).last(), Some(&1));
    shut_down(vec![node]).await;
}
