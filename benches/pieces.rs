//! The pieces of a message's way, one by one: what each costs a message.
//!
//! ```text
//! cargo bench --bench pieces
//! ```
//!
//! Encoding and the rotation are the crate's own files, compiled into this
//! bench. The other two are measured from outside, on one thread, so that
//! nothing else of the node runs in between:
//!
//! * mailbox to link: nothing but the calls of `try_send`, in bursts for which
//!   the receiver has granted room. Each call routes, encodes and puts the
//!   message into the link's queue. Writing it comes later, and is not timed.
//! * link to recipient: a peer that the bench makes up writes one frame of
//!   messages to a node, and waits until the node says that a recipient has
//!   them. So a frame's way through a socket on loopback is part of it.

// A bench that cannot go on panics.
#![allow(missing_docs, clippy::unwrap_used)]

// Pieces that the crate does not show, built once more; a bench uses some of
// each, and runs none of the tests in them, whose imports are here all the same.
// What the crate shows of the first one is shown to nobody here.
#[allow(dead_code, unreachable_pub, unused_imports)]
#[path = "../src/message.rs"]
mod message;
#[allow(dead_code)]
#[path = "../src/mailbox/rotation.rs"]
mod rotation;

/// The wire, as the crate has it.
#[path = "../src/proto/codec.rs"]
mod codec;
// The bench only writes runs.
#[allow(dead_code)]
#[path = "../src/proto/run.rs"]
mod run;
mod proto {
    #![allow(missing_docs, unreachable_pub, dead_code, clippy::all)]
    include!("../src/proto/dchan.v1.rs");
}

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use actix::{Actor, Context, Handler, Message, SystemRunner};
use bytes::Bytes;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use dchan::{Cluster, Namespace, Runtime};
use proto::{Channel, LinkReply, LinkRequest, Open, peer_client::PeerClient};
use run::{Part, Run};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use tonic::{Streaming, transport::Endpoint};

const SIZES: [usize; 3] = [16, 1 << 10, 64 << 10];
const NAMESPACE: &str = "items";
/// The largest message, in bytes.
const LIMIT: usize = 64 << 20;

#[derive(Clone, Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
struct Item {
    id: u64,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

impl Item {
    fn of(size: usize) -> Self {
        Self {
            id: 1 << 40,
            body: vec![7; size],
        }
    }
}

fn encoding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("message");
    for size in SIZES {
        let item = Item::of(size);
        let encoded = message::encode(&item, LIMIT).unwrap();
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::new("encode", size), |bencher| {
            bencher.iter(|| message::encode(black_box(&item), LIMIT));
        });
        group.bench_function(BenchmarkId::new("decode", size), |bencher| {
            bencher.iter(|| message::decode::<Item>(black_box(&encoded)));
        });
    }
    group.finish();
}

fn rotating(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("rotation");
    for receivers in [1, 3, 50] {
        let mut turn = 0;
        group.bench_function(BenchmarkId::new("all ready", receivers), |bencher| {
            bencher.iter(|| {
                let next = rotation::next(turn, receivers, |_| black_box(true));
                turn = next.map_or(0, |receiver| receiver + 1);
                next
            });
        });
        group.bench_function(BenchmarkId::new("last one ready", receivers), |bencher| {
            let last = receivers - 1;
            bencher.iter(|| rotation::next(0, receivers, |receiver| receiver == black_box(last)));
        });
    }
    group.finish();
}

/// A recipient that does nothing.
struct Recipient {
    items: Namespace<Item>,
}

impl Actor for Recipient {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.items.register::<Self>(ctx).detach();
    }
}

impl Handler<Item> for Recipient {
    type Result = u64;

    fn handle(&mut self, item: Item, _: &mut Self::Context) -> u64 {
        black_box(item).id
    }
}

/// A node on the thread of the bench, whose recipient receives.
async fn receiver() -> Cluster {
    let node = Cluster::builder("127.0.0.1:0").runtime(Runtime::CurrentArbiter);
    let node = node.start().await.unwrap();
    let items = node.namespace(NAMESPACE);
    Recipient { items }.start();
    until(|| node.status().receivers.contains_key(NAMESPACE)).await;
    node
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
}

/// As many messages as fit into a receiver's window of 1,024 and the 8 MiB that
/// may be under way.
fn burst(size: usize) -> u64 {
    ((4 << 20) / size as u64).min(512)
}

fn mailbox_to_link(criterion: &mut Criterion) {
    let system = actix::System::new();
    let (_receiver, sender, items) = system.block_on(async {
        let receiver = receiver().await;
        let sender = Cluster::builder("127.0.0.1:0")
            .peers([receiver.status().address])
            .runtime(Runtime::CurrentArbiter);
        let sender = sender.start().await.unwrap();
        let items = sender.namespace::<Item>(NAMESPACE);
        items.send(Item::of(1)).await.unwrap();
        (receiver, sender, items)
    });
    let mut group = criterion.benchmark_group("mailbox to link");
    for size in SIZES {
        let item = Item::of(size);
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|count| {
                in_bursts(&system, count, burst(size), async |burst| {
                    let messages: Vec<Item> = (0..burst).map(|_| item.clone()).collect();
                    let begin = Instant::now();
                    for message in messages {
                        items.try_send(message).unwrap_or_else(|_| panic!("full"));
                    }
                    let elapsed = begin.elapsed();
                    until(|| {
                        let traffic = sender.status().traffic;
                        traffic.waiting + traffic.under_way == 0
                    })
                    .await;
                    elapsed
                })
            });
        });
    }
    group.finish();
}

fn link_to_recipient(criterion: &mut Criterion) {
    let system = actix::System::new();
    let (_node, mut peer) = system.block_on(async {
        let node = receiver().await;
        let peer = Peer::of(&node).await;
        (node, peer)
    });
    let mut group = criterion.benchmark_group("link to recipient");
    for size in SIZES {
        let encoded = message::encode(&Item::of(size), LIMIT).unwrap();
        group.throughput(Throughput::Elements(1));
        group.bench_function(BenchmarkId::from_parameter(size), |bencher| {
            bencher.iter_custom(|count| {
                in_bursts(&system, count, burst(size), async |burst| {
                    let messages = vec![encoded.clone(); burst as usize];
                    let begin = Instant::now();
                    peer.send(messages).await;
                    begin.elapsed()
                })
            });
        });
    }
    group.finish();
}

/// Times so many messages, in bursts.
fn in_bursts(
    system: &SystemRunner,
    count: u64,
    most: u64,
    mut time: impl AsyncFnMut(u64) -> Duration,
) -> Duration {
    system.block_on(async {
        let (mut elapsed, mut left) = (Duration::ZERO, count);
        while left > 0 {
            let burst = left.min(most);
            elapsed += time(burst).await;
            left -= burst;
        }
        elapsed
    })
}

/// Another node, as far as a link can tell.
struct Peer {
    frames: mpsc::UnboundedSender<LinkRequest>,
    replies: Streaming<LinkReply>,
    sent: u64,
}

impl Peer {
    async fn of(node: &Cluster) -> Self {
        let status = node.status();
        let endpoint = Endpoint::from_shared(format!("http://{}", status.address)).unwrap();
        let mut client = PeerClient::connect(endpoint).await.unwrap();
        let (frames, mut taken) = mpsc::unbounded_channel();
        let open = Open {
            cluster: status.cluster_id,
            node: 1,
            boot: 1,
            target: status.node.get(),
            target_boot: status.boot,
        };
        let channel = Channel {
            id: 0,
            namespace: NAMESPACE.to_owned(),
            label: "Item".to_owned(),
        };
        for first in [
            LinkRequest {
                open: Some(open),
                ..LinkRequest::default()
            },
            LinkRequest {
                channels: vec![channel],
                ..LinkRequest::default()
            },
        ] {
            frames.send(first).unwrap();
        }
        let stream = futures_util::stream::poll_fn(move |cx| taken.poll_recv(cx));
        let mut replies = client.link(stream).await.unwrap().into_inner();
        while replies.message().await.unwrap().unwrap().grants.is_empty() {}
        Self {
            frames,
            replies,
            sent: 0,
        }
    }

    /// Sends a frame, and waits until all its messages are accepted.
    async fn send(&mut self, messages: Vec<Bytes>) {
        let mut left = messages.len() as u64;
        let run = Run {
            first: self.sent,
            parts: messages.into_iter().map(Part::Message).collect(),
            ..Run::default()
        };
        self.sent += left;
        let frame = LinkRequest {
            runs: vec![run],
            ..LinkRequest::default()
        };
        self.frames.send(frame).unwrap();
        while left > 0 {
            let reply = self.replies.message().await.unwrap().unwrap();
            left -= reply
                .verdicts
                .iter()
                .map(|verdict| verdict.count)
                .sum::<u64>();
        }
    }
}

criterion_group!(
    pieces,
    encoding,
    rotating,
    mailbox_to_link,
    link_to_recipient
);
criterion_main!(pieces);
