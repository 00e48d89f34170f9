//! What a node answers to peers that are mistaken, or that break the protocol.

mod common;

#[path = "common/peer.rs"]
mod peer;

use bytes::Bytes;
use common::*;
use futures_util::StreamExt;
use peer::{
    client, link, open, proto,
    run::{Part, Run},
};
use proto::{
    Channel, LinkRequest, Open, RaftRequest, SubmitRequest, opened::Answer, submit_reply::Outcome,
};
use tonic::Code;

#[actix::test]
async fn a_link_to_another_cluster_node_or_boot_is_refused() {
    let node = builder().start().await.unwrap();
    let right = open(&node);
    let cases = [
        (right.clone(), Answer::Welcome),
        (
            Open {
                cluster: "another".to_owned(),
                ..right.clone()
            },
            Answer::WrongCluster,
        ),
        (
            Open {
                target: right.target ^ 1,
                ..right.clone()
            },
            Answer::WrongNode,
        ),
        (
            Open {
                target_boot: right.target_boot + 1,
                ..right
            },
            Answer::WrongBoot,
        ),
    ];
    for (open, expected) in cases {
        let (answer, _frames, mut replies) = link(&node, open).await;
        assert_eq!(answer, expected);
        if answer != Answer::Welcome {
            assert!(replies.next().await.is_none(), "the stream ends");
        }
    }
    shut_down(vec![node]).await;
}

fn channel(namespace: &str) -> Channel {
    Channel {
        id: 0,
        namespace: namespace.to_owned(),
        label: "Number".to_owned(),
    }
}

fn run(messages: usize) -> Run {
    // The number 7, as MessagePack has it.
    let message = Part::Message(Bytes::from_static(&[7]));
    Run {
        parts: vec![message; messages],
        ..Run::default()
    }
}

#[actix::test]
async fn who_sends_more_than_was_granted_loses_its_link_and_harms_nobody() {
    let node = builder().window(8).start().await.unwrap();
    let mut stalled = node.namespace::<Event>("numbers").receiver(1);
    stalled.ready().await.unwrap();
    let (_, frames, mut replies) = link(&node, open(&node)).await;
    let declared = Channel {
        label: "Event".to_owned(),
        ..channel("numbers")
    };
    let declare = LinkRequest {
        channels: vec![declared],
        ..LinkRequest::default()
    };
    frames.send(declare).unwrap();
    let granted = replies.next().await.unwrap().unwrap();
    assert_eq!(granted.grants[0].window, 8);

    let runs = vec![run(9)];
    let too_many = LinkRequest {
        runs,
        ..LinkRequest::default()
    };
    frames.send(too_many).unwrap();
    while let Some(Ok(_)) = replies.next().await {}

    // Everybody else is served as before.
    node.namespace("numbers").do_send(Event(3));
    assert_eq!(stalled.next().await, Some(Event(3)));
    drop(stalled);
    shut_down(vec![node]).await;
}

#[actix::test]
async fn frames_that_make_no_sense_end_their_link_alone() {
    let node = builder().start().await.unwrap();
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    let opened_again = LinkRequest {
        open: Some(open(&node)),
        ..LinkRequest::default()
    };
    let undeclared = LinkRequest {
        runs: vec![run(1)],
        ..LinkRequest::default()
    };
    let nobody_receives = LinkRequest {
        channels: vec![channel("nobody")],
        runs: vec![run(1)],
        ..LinkRequest::default()
    };
    let read_what_was_not_marked = LinkRequest {
        read: 7,
        ..LinkRequest::default()
    };
    let empty = LinkRequest {
        channels: vec![channel("numbers")],
        runs: vec![run(0)],
        ..LinkRequest::default()
    };
    // A message of two bytes, of which one is there.
    let batch = Bytes::from_static(&[0, 0, 0, 2, 7]);
    let truncated = LinkRequest {
        channels: vec![channel("numbers")],
        runs: vec![Run {
            parts: vec![Part::Batch(batch)],
            ..run(0)
        }],
        ..LinkRequest::default()
    };
    for nonsense in [
        opened_again,
        undeclared,
        nobody_receives,
        read_what_was_not_marked,
        truncated,
        empty,
    ] {
        let (_, frames, mut replies) = link(&node, open(&node)).await;
        frames.send(nonsense).unwrap();
        while let Some(Ok(_)) = replies.next().await {}
    }
    assert!(received(&seen).is_empty());
    let answer = node.namespace::<Number>("numbers").send(Number(1)).await;
    assert_eq!(answer, Ok(2));
    shut_down(vec![node]).await;
}

#[actix::test]
async fn a_message_that_does_not_decode_is_rejected_and_its_link_goes_on() {
    let node = builder().start().await.unwrap();
    let (_recorder, seen) = Recorder::start_on(&node, "numbers").await;
    let (_, frames, mut replies) = link(&node, open(&node)).await;
    let messages = [&[0xc1][..], &[7]].map(Bytes::from_static);
    let parts = messages.map(Part::Message).to_vec();
    let frame = LinkRequest {
        channels: vec![channel("numbers")],
        runs: vec![Run { parts, ..run(0) }],
        ..LinkRequest::default()
    };
    // Not before it is granted.
    let declare = LinkRequest {
        runs: Vec::new(),
        ..frame.clone()
    };
    frames.send(declare).unwrap();
    replies.next().await.unwrap().unwrap();
    let frame = LinkRequest {
        channels: Vec::new(),
        ..frame
    };
    frames.send(frame).unwrap();

    let mut verdicts = Vec::new();
    while verdicts.len() < 2 {
        verdicts.extend(replies.next().await.unwrap().unwrap().verdicts);
    }
    let kinds: Vec<_> = verdicts.iter().map(|verdict| verdict.kind()).collect();
    use proto::verdict::Kind::{Accepted, Rejected};
    assert_eq!(kinds, [Rejected, Accepted]);
    assert!(verdicts[0].reason.contains("Number"), "{:?}", verdicts[0]);
    until("the other one has arrived", || received(&seen) == [7]).await;
    shut_down(vec![node]).await;
}

#[actix::test]
async fn control_requests_that_make_no_sense_are_errors() {
    let node = builder().start().await.unwrap();
    let mut client = client(&node).await;
    let raft = RaftRequest {
        cluster: node.status().cluster_id,
        target: node.status().node.get(),
        kind: proto::raft_request::Kind::Append.into(),
        body: Bytes::from_static(b"nonsense"),
        without_quorum: false,
    };
    let unknown_kind = RaftRequest {
        kind: 99,
        ..raft.clone()
    };
    let other_node = RaftRequest {
        target: 1,
        ..raft.clone()
    };
    let other_cluster = RaftRequest {
        cluster: "another".to_owned(),
        ..raft.clone()
    };
    for (request, code) in [
        (raft, Code::InvalidArgument),
        (unknown_kind, Code::Unimplemented),
        (other_node, Code::FailedPrecondition),
        (other_cluster, Code::FailedPrecondition),
    ] {
        assert_eq!(client.raft(request).await.unwrap_err().code(), code);
    }

    let nothing = SubmitRequest {
        cluster: node.status().cluster_id,
        node: 1,
        boot: 1,
        passed_on: false,
        formation: 0,
        change: None,
    };
    let other_formation = SubmitRequest {
        formation: 1,
        ..nothing.clone()
    };
    for (request, outcome) in [
        (nothing, Outcome::Invalid),
        (other_formation, Outcome::WrongCluster),
    ] {
        let reply = client.submit(request).await.unwrap().into_inner();
        assert_eq!(reply.outcome(), outcome);
    }
    assert_eq!(node.status().nodes.len(), 1);
    shut_down(vec![node]).await;
}
