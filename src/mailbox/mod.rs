//! The sending side of a namespace on one node.
//!
//! The [`Outbox`] holds the messages and decides where they go. The [`Mailbox`]
//! is its actor, on the node's own arbiter: what a plain `Recipient<M>` of the
//! namespace leads to.

mod account;
mod feedback;
mod gathering;
mod lane;
mod outbox;
mod parcel;
mod rotation;
mod upkeep;

use std::sync::Arc;

use actix::{
    Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, WrapFuture,
    dev::{MessageResponse, OneshotSender},
};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    outbox::{Limits, Outbox, Place},
    upkeep::AnyOutbox,
};
use crate::message::RemoteMessage;

/// Distributes the messages of a namespace that this node sends.
pub(crate) struct Mailbox<M: RemoteMessage> {
    outbox: Arc<Outbox<M>>,
    stop: CancellationToken,
}

impl<M: RemoteMessage> Mailbox<M> {
    /// Runs until `stop`.
    pub(crate) fn new(outbox: Arc<Outbox<M>>, stop: CancellationToken) -> Self {
        Self { outbox, stop }
    }
}

impl<M: RemoteMessage> Actor for Mailbox<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let stopped = self.stop.clone().cancelled_owned().into_actor(self);
        ctx.spawn(stopped.map(|(), _, ctx| ctx.stop()));
    }
}

impl<M: RemoteMessage> Handler<M> for Mailbox<M> {
    type Result = PassedOn<M>;

    fn handle(&mut self, message: M, _: &mut Self::Context) -> PassedOn<M> {
        PassedOn {
            outbox: self.outbox.clone(),
            message,
        }
    }
}

/// A message that a `Recipient` was given: sent, with or without a reply, once
/// it is known whether its sender wants one.
pub(crate) struct PassedOn<M: RemoteMessage> {
    outbox: Arc<Outbox<M>>,
    message: M,
}

impl<M: RemoteMessage> MessageResponse<Mailbox<M>, M> for PassedOn<M> {
    fn handle(self, _: &mut Context<Mailbox<M>>, waiter: Option<OneshotSender<M::Result>>) {
        let Some(waiter) = waiter else {
            return self.outbox.do_send(self.message);
        };
        let request = self.outbox.send(self.message);
        actix_rt::spawn(async move {
            // Without a reply the waiter is dropped, which its owner sees as
            // `MailboxError::Closed`: actix has no finer word.
            if let Ok(reply) = request.await {
                let _ = waiter.send(reply);
            }
        });
    }
}
