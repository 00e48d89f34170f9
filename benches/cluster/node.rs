//! The crate itself.

use std::{
    future::poll_fn,
    pin::Pin,
    time::{Duration, Instant},
};

use actix::Actor;
use dchan::{Cluster, Namespace, Runtime, SendError};
use futures_util::Sink;

use crate::{
    in_flight,
    item::{Item, SharedLedger, Stock},
    options::{Mode, Subject},
    orders::{Orders, Sent},
    recipient::Recipient,
};

const NAMESPACE: &str = "items";
/// How many messages are sent between two looks at the clock.
const BETWEEN_LOOKS: usize = 64;

pub(crate) struct Node {
    cluster: Cluster,
    items: Namespace<Item>,
    mode: Mode,
    in_flight: usize,
    stock: Stock,
}

impl Node {
    pub(crate) async fn start(orders: &Orders) -> Self {
        let runtime = match orders.subject {
            Subject::DchanArbiter => Runtime::CurrentArbiter,
            _ => Runtime::OwnThread,
        };
        let cluster = Cluster::builder(&orders.address)
            .peers(&orders.addresses)
            .runtime(runtime)
            .join_timeout(Duration::from_secs(60))
            .start()
            .await
            .unwrap();
        Self {
            items: cluster.namespace(NAMESPACE),
            cluster,
            mode: orders.mode,
            in_flight: orders.in_flight,
            stock: Stock::new(orders.size),
        }
    }

    pub(crate) fn receive(&self, ledger: SharedLedger, pause: Duration) {
        let items = Some(self.items.clone());
        Recipient {
            items,
            ledger,
            pause,
        }
        .start();
    }

    /// Waits until so many nodes receive.
    pub(crate) async fn until_received(&self, nodes: usize) {
        while self.receiving() != nodes {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn receiving(&self) -> usize {
        let receivers = self.cluster.status().receivers;
        receivers.get(NAMESPACE).map_or(0, |nodes| nodes.len())
    }

    pub(crate) async fn send(&self, until: Instant) -> Sent {
        match self.mode {
            Mode::Flood => self.flood(until).await,
            Mode::Deliver => {
                let deliver = |item| {
                    let delivery = self.items.deliver(item);
                    async { delivery.await.is_ok() }
                };
                in_flight::keep(self.in_flight, until, &self.stock, deliver).await
            }
            Mode::Ask | Mode::Ping => {
                let ask = |item: Item| {
                    let (id, request) = (item.id, self.items.send(item));
                    async move { request.await == Ok(id) }
                };
                in_flight::keep(self.in_flight, until, &self.stock, ask).await
            }
        }
    }

    /// Sends as fast as the outbox takes it: `try_send`, which is `do_send` but
    /// that a message which finds it full comes back, and then waits until the
    /// sink is ready.
    async fn flood(&self, until: Instant) -> Sent {
        let mut sink = self.items.sink();
        while Instant::now() < until {
            for _ in 0..BETWEEN_LOOKS {
                let mut item = self.stock.item();
                while let Err(error) = self.items.try_send(item) {
                    let SendError::Full(back) = error else {
                        panic!("the node has ended");
                    };
                    item = back;
                    let _ = poll_fn(|cx| Pin::new(&mut sink).poll_ready(cx)).await;
                }
            }
        }
        Sent {
            sent: self.stock.taken(),
            ..Sent::default()
        }
    }

    pub(crate) async fn end(self) {
        drop(self.items);
        self.cluster.shutdown().await.unwrap();
    }
}
