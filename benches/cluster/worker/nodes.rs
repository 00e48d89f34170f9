//! Nodes of the crate, in one process.

use std::{
    cell::RefCell,
    ops::Range,
    time::{Duration, Instant},
};

use dchan::{Cluster, Namespace, Runtime};
use futures_util::future::join_all;
use tokio::time::sleep;

use super::{recipient::Recipient, sending::send};
use crate::{
    item::{Item, Stock},
    ledger::SharedLedger,
    options::Subject,
    tasks::{ITEMS, Load, Orders, Part, Sent, To, numbered},
};

/// All that start at once have so many of them as their peers.
const PEERS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Nodes {
    nodes: Vec<Cluster>,
    ledger: SharedLedger,
    pause: Duration,
    /// What is kept without being used.
    opened: RefCell<Vec<Namespace<Item>>>,
}

impl Nodes {
    pub(super) async fn start(orders: &Orders, ledger: SharedLedger) -> Self {
        let peers = &orders.addresses[..PEERS.min(orders.addresses.len())];
        let starts = orders.addresses[orders.mine.clone()].iter().map(|address| {
            let mut builder = Cluster::builder(address)
                .peers(peers)
                .join_timeout(PATIENCE)
                .register_timeout(PATIENCE)
                .runtime(match orders.subject {
                    Subject::DchanArbiter => Runtime::CurrentArbiter,
                    _ => Runtime::OwnThread,
                });
            if let Some(messages) = orders.outbox {
                builder = builder.outbox(messages, 64 << 20);
            }
            if let Some(data) = &orders.data {
                builder = builder.data_dir(data);
            }
            builder.start()
        });
        let nodes = join_all(starts).await;
        let nodes = Self {
            nodes: nodes.into_iter().map(Result::unwrap).collect(),
            ledger,
            pause: orders.pause,
            opened: RefCell::default(),
        };
        if orders.at_once {
            nodes.begin(orders).await;
        }
        nodes
    }

    /// Receives at once, or waits until the first message is delivered.
    async fn begin(&self, orders: &Orders) {
        match orders.part {
            Part::Receiver => self.receive(ITEMS, self.nodes.len()).await,
            _ => {
                let first = Stock::new(orders.size).item();
                self.namespace(ITEMS).deliver(first).await.unwrap();
            }
        }
    }

    fn namespace(&self, name: &str) -> Namespace<Item> {
        self.nodes[0].namespace(name)
    }

    pub(super) async fn receive(&self, namespace: &str, nodes: usize) {
        let receive = |node: &Cluster| {
            let items = node.namespace(namespace);
            Recipient::of(items, self.ledger.clone(), self.pause)
        };
        join_all(self.nodes[..nodes].iter().map(receive)).await;
    }

    pub(super) async fn until(&self, namespace: &str, count: usize) {
        let known = || {
            let receivers = self.nodes[0].status().receivers;
            receivers.get(namespace).map_or(0, |nodes| nodes.len())
        };
        while known() != count {
            sleep(Duration::from_millis(10)).await;
        }
    }

    pub(super) fn open(&self, numbers: Range<usize>) {
        let namespaces = numbers.map(|number| self.namespace(&numbered(number)));
        self.opened.borrow_mut().extend(namespaces);
    }

    pub(super) async fn register_all(&self, numbers: Range<usize>) -> Vec<Duration> {
        join_all(numbers.map(|number| self.register(number))).await
    }

    pub(super) async fn register_for(&self, first: usize, lasts: Duration) -> Vec<Duration> {
        let until = Instant::now() + lasts;
        let mut latencies = Vec::new();
        while Instant::now() < until {
            latencies.push(self.register(first + latencies.len()).await);
        }
        latencies
    }

    /// How long it took until it was agreed.
    async fn register(&self, number: usize) -> Duration {
        let begin = Instant::now();
        let items = self.namespace(&numbered(number));
        Recipient::of(items, self.ledger.clone(), self.pause).await;
        begin.elapsed()
    }

    pub(super) async fn send(&self, load: Load, stock: &Stock) -> Sent {
        let namespaces: Vec<_> = match &load.to {
            To::Namespace(name) => vec![self.namespace(name)],
            To::Numbered(count) => (0..*count)
                .map(|number| self.namespace(&numbered(number)))
                .collect(),
        };
        send(&namespaces, &load, stock).await
    }

    pub(super) async fn end(self) {
        drop(self.opened);
        // All at once, for there may be no quorum for the last ones.
        join_all(self.nodes.into_iter().map(Cluster::shutdown)).await;
    }
}
