//! The sending side of a namespace on one node.
//!
//! The [`Outbox`] holds the messages and decides where they go. The [`Mailbox`]
//! is its actor, on the node's own arbiter: it keeps the deadlines, and it is
//! what a plain `Recipient<M>` of the namespace leads to.

mod account;
mod feedback;
mod gathering;
mod lane;
mod outbox;
mod parcel;
mod rotation;
mod upkeep;

use std::{future::pending, sync::Arc};

use actix::{
    Actor, AsyncContext, Context, Handler, Message, WrapFuture,
    dev::{MessageResponse, OneshotSender},
};
use tokio::time::{Instant, sleep_until};

pub(crate) use self::{
    outbox::{Limits, Outbox, Place},
    upkeep::AnyOutbox,
};
use crate::message::RemoteMessage;

/// Distributes the messages of a namespace that this node sends.
pub(crate) struct Mailbox<M: RemoteMessage> {
    outbox: Arc<Outbox<M>>,
    capacity: usize,
}

impl<M: RemoteMessage> Mailbox<M> {
    /// `capacity` is the mailbox's, in messages. It is never full for long: the
    /// actor passes everything on to the outbox at once.
    pub(crate) fn new(outbox: Arc<Outbox<M>>, capacity: usize) -> Self {
        Self { outbox, capacity }
    }
}

impl<M: RemoteMessage> Actor for Mailbox<M> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(self.capacity);
        let outbox = self.outbox.clone();
        let keep_deadlines = async move {
            let relay = outbox.relay();
            loop {
                let (messages, broadcasts) = (outbox.earliest(), relay.earliest());
                tokio::select! {
                    () = reached(messages.into_iter().chain(broadcasts).min()) => {}
                    () = outbox.sooner() => {}
                    () = relay.sooner() => {}
                }
                let now = Instant::now();
                let is_due = |deadline: &Instant| *deadline <= now;
                if messages.as_ref().is_some_and(is_due) {
                    outbox.expire(now);
                }
                if broadcasts.as_ref().is_some_and(is_due) {
                    relay.expire(now);
                }
            }
        };
        ctx.spawn(keep_deadlines.into_actor(self));
    }
}

/// Resolves at a deadline, if there is one.
async fn reached(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
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

/// Ends the mailbox with its node.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Stop;

impl<M: RemoteMessage> Handler<Stop> for Mailbox<M> {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        actix::ActorContext::stop(ctx);
    }
}
