//! What the tests share: clusters of real nodes on loopback.

// Each test program uses some of it, and none shows it to others. A test that cannot
// go on panics.
#![allow(dead_code, missing_docs, unreachable_pub, clippy::unwrap_used)]

mod address;

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

pub use address::free_address;
use dchan::{Builder, Cluster, Namespace, Registration, prelude::*};
use futures_util::future::join_all;
use serde::{Deserialize, Serialize};

/// Longer than anything takes on a machine that is merely busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Shows the node's log when `RUST_LOG` is set.
pub fn trace() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

pub fn builder() -> Builder {
    trace();
    Cluster::builder("127.0.0.1:0").join_timeout(PATIENCE)
}

/// Nodes that are started at once, each with the same list of peers.
pub async fn cluster_of(count: usize) -> Vec<Cluster> {
    trace();
    let addresses: Vec<String> = (0..count).map(|_| free_address()).collect();
    let starts = addresses.iter().map(|address| {
        Cluster::builder(address)
            .peers(addresses.clone())
            .join_timeout(PATIENCE)
            .start()
    });
    let nodes = join_all(starts).await;
    nodes.into_iter().map(Result::unwrap).collect()
}

/// Waits until a condition on the nodes' status holds.
pub async fn until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "never came true: {what}");
        actix_rt::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until every node's view has this many receivers of the namespace.
pub async fn until_received(nodes: &[Cluster], namespace: &str, count: usize) {
    until(&format!("{count} receivers of {namespace}"), || {
        nodes.iter().all(|node| {
            let receivers = node.status().receivers;
            receivers.get(namespace).map_or(0, |nodes| nodes.len()) == count
        })
    })
    .await;
}

/// Shuts all nodes down, one after the other.
pub async fn shut_down(nodes: Vec<Cluster>) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

/// A node of a cluster that leads it, and one that does not.
pub fn leader_and_follower(nodes: &[Cluster]) -> (Cluster, Cluster) {
    let leads = |node: &&Cluster| node.status().leader == Some(node.status().node);
    let leader = nodes.iter().find(leads).expect("a cluster has a leader");
    let follower = nodes.iter().find(|node| !leads(node)).unwrap();
    (leader.clone(), follower.clone())
}

#[derive(Clone, Debug, PartialEq, Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
pub struct Number(pub u64);

/// A message that asks for nothing.
#[derive(Clone, Debug, PartialEq, Message, Serialize, Deserialize)]
#[rtype(result = "()")]
pub struct Event(pub u64);

/// Writes down what it gets and answers with the double.
pub struct Recorder {
    pub numbers: Namespace<Number>,
    pub seen: Seen,
    pub registration: Option<Registration>,
}

pub type Seen = Arc<Mutex<Vec<u64>>>;

/// What a recorder has seen so far, in order.
pub fn received(seen: &Seen) -> Vec<u64> {
    seen.lock().unwrap().clone()
}

impl Recorder {
    /// Starts a recipient and waits until it is agreed.
    pub async fn start_on(node: &Cluster, namespace: &str) -> (Addr<Self>, Seen) {
        let seen = Seen::default();
        let actor = Self {
            numbers: node.namespace(namespace),
            seen: seen.clone(),
            registration: None,
        };
        let addr = actor.start();
        addr.send(Ready).await.unwrap();
        (addr, seen)
    }
}

impl Actor for Recorder {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.registration = Some(self.numbers.register::<Self>(ctx));
    }
}

impl Handler<Number> for Recorder {
    type Result = u64;

    fn handle(&mut self, Number(number): Number, _: &mut Self::Context) -> u64 {
        self.seen.lock().unwrap().push(number);
        2 * number
    }
}

/// Resolves when the recorder is registered.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Ready;

impl Handler<Ready> for Recorder {
    type Result = ResponseActFuture<Self, ()>;

    fn handle(&mut self, _: Ready, _: &mut Self::Context) -> Self::Result {
        let registration = self.registration.take().unwrap();
        Box::pin(
            async move {
                registration.ready().await.unwrap();
                registration
            }
            .into_actor(self)
            .map(|registration, actor, _| actor.registration = Some(registration)),
        )
    }
}

/// Ends the recorder's registration in order.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Close;

impl Handler<Close> for Recorder {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: Close, _: &mut Self::Context) -> Self::Result {
        let registration = self.registration.take().unwrap();
        Box::pin(async move { registration.close().await.unwrap() })
    }
}

/// Stops the recorder.
#[derive(Message)]
#[rtype(result = "()")]
pub struct Stop;

impl Handler<Stop> for Recorder {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}
