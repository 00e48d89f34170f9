//! Distributed actor mailboxes for [actix]: typed channels across a cluster of
//! equal peers.
//!
//! A *namespace* is a named channel for messages of one type that spans a
//! cluster. Any actor on any node registers as a recipient of it, and anybody
//! on any node sends to it; each message goes to exactly one of them or to
//! none. There is no broker: every process that starts a [`Cluster`] is a peer.
//!
//! ```
//! use dchan::{Cluster, Namespace, prelude::*};
//! use serde::{Deserialize, Serialize};
//!
//! #[derive(Message, Serialize, Deserialize)]
//! #[rtype(result = "String")]
//! struct Order { item: String }
//!
//! struct Warehouse {
//!     orders: Namespace<Order>,
//! }
//!
//! impl Actor for Warehouse {
//!     type Context = Context<Self>;
//!
//!     fn started(&mut self, ctx: &mut Context<Self>) {
//!         // For as long as this actor lives.
//!         self.orders.register::<Self>(ctx).detach();
//!     }
//! }
//!
//! impl Handler<Order> for Warehouse {
//!     type Result = String;
//!
//!     fn handle(&mut self, order: Order, _: &mut Context<Self>) -> String {
//!         format!("{} is on its way", order.item)
//!     }
//! }
//!
//! #[actix::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let cluster = Cluster::builder("127.0.0.1:0").start().await?;
//!     let orders = cluster.namespace::<Order>("orders");
//!     Warehouse { orders: orders.clone() }.start();
//!
//!     let reply = orders.send(Order { item: "a lamp".into() }).await?;
//!     assert_eq!(reply, "a lamp is on its way");
//!     cluster.shutdown().await?;
//!     Ok(())
//! }
//! ```
//!
//! # Delivery
//!
//! A message is delivered at most once. Its outcome is one of four: *handled*
//! (with the reply), *accepted* (a recipient has it), *not delivered*, or
//! *unknown*, where a link or a process died after the message had been handed
//! over. [`DeliveryError::maybe_delivered`] tells the last two apart. A message
//! that was returned, or that provably never left this node, is offered to the
//! next receiver until its deadline.
//!
//! A [broadcast](Namespace::broadcast) goes to every receiver instead, each
//! exactly once.
//!
//! # Layout
//!
//! In a message's order of travel:
//!
//! * `namespace`, `delivery`, `bridge`: what users hold: the namespace, the
//!   futures and their outcomes, stream and sink.
//! * `mailbox`: the outbox of a namespace, the rotation of its receivers, and
//!   the actor behind a plain `Recipient`.
//! * `broadcast`: the way of a message that every receiver gets, over a tree of
//!   nodes.
//! * `link`: the stream to a peer: frames, grants, verdicts, reconnecting.
//! * `server`: what other nodes ask of this one.
//! * `inbox`: the local recipients of a namespace, and what waits for them.
//! * `registration`: a user's hold on a recipient.
//!
//! Beside them, who receives what:
//!
//! * `raft`: the control plane, from a wish to the agreed view.
//! * `view`: that view, as plain data.
//!
//! And around them: `builder` and `cluster` (settings, the handle, and the
//! wiring), `transport` and `connections` (how peers are reached), `disk` (where
//! else than in a directory a node keeps its state), `message` (labels and encoding),
//! `status`, `error`, and `proto` (generated).
//!
//! [actix]: https://docs.rs/actix

mod alarm;
mod batch;
mod bridge;
mod broadcast;
mod builder;
mod cluster;
mod connections;
mod dead_letter;
mod delivery;
mod disk;
mod error;
mod inbox;
mod link;
mod mailbox;
mod message;
mod namespace;
mod proto;
mod raft;
mod registration;
mod server;
mod status;
pub mod transport;
mod view;

pub use crate::{
    bridge::{NamespaceSink, Receiver},
    builder::{Builder, Runtime},
    cluster::Cluster,
    dead_letter::{DeadLetter, DeadLetters},
    delivery::{Broadcast, Delivery, Progress, Reached, Request, Transferred},
    disk::Disk,
    error::{DeliveryError, NamespaceError, RegisterError, ShutdownError, StartError},
    message::RemoteMessage,
    namespace::Namespace,
    registration::Registration,
    status::{BroadcastCounts, DeadLetterCounts, Status, Traffic},
    view::NodeId,
};

/// actix's own error of [`Namespace::try_send`] and [`NamespaceSink`].
#[doc(no_inline)]
pub use actix::prelude::SendError;

/// What most programs need, with actix's own prelude.
///
/// ```
/// use dchan::prelude::*;
/// ```
pub mod prelude {
    pub use actix::prelude::*;

    pub use crate::RemoteMessage;
}

/// Keeps the README's code true.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
