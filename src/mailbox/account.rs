//! What has become of messages, and who is told of it.

use tokio::time::Instant;
use tracing::{debug, warn};

use super::{outbox::Place, parcel::Record};
use crate::{
    dead_letter::DeadLetter,
    delivery::{Reply, Waiter},
    error::DeliveryError,
    message::{Body, RemoteMessage},
    status::Traffic,
};

pub(super) struct Account<M: RemoteMessage> {
    /// What has become of the messages, but for those that are here.
    pub(super) traffic: Traffic,
    /// What is left to do.
    pub(super) later: Vec<Later<M>>,
}

/// What runs code that is not this crate's: what listens to traces, and the drop
/// of messages. It may send in its turn, so it runs without the lock.
pub(super) enum Later<M: RemoteMessage> {
    Tell(Failed<M>),
    Drop(Result<Reply<M>, DeliveryError>),
    Forget(Body<M>),
}

pub(super) struct Failed<M: RemoteMessage> {
    error: DeliveryError,
    size: usize,
    sent: Instant,
    waiter: Waiter<M>,
}

impl<M: RemoteMessage> Account<M> {
    pub(super) fn new() -> Self {
        Self {
            traffic: Traffic::default(),
            later: Vec::new(),
        }
    }

    /// Counts that a message was neither handled nor accepted, unless that has
    /// been done. `body` is what is left of it.
    pub(super) fn fail(
        &mut self,
        record: &mut Record<M>,
        body: Option<Body<M>>,
        error: DeliveryError,
    ) {
        if !std::mem::replace(&mut record.failed, true) {
            if let Some(ticket) = &record.ticket {
                ticket.end();
            }
            self.traffic.count(&error);
            self.later.push(Later::Tell(Failed {
                error,
                size: record.size,
                sent: record.sent,
                waiter: std::mem::replace(&mut record.waiter, Waiter::None),
            }));
        }
        self.forget(body);
    }

    /// Has what is left of a message dropped.
    pub(super) fn forget(&mut self, body: Option<Body<M>>) {
        self.later.extend(body.map(Later::Forget));
    }

    /// Has a reply dropped that nobody waits for any more.
    pub(super) fn unwanted(&mut self, reply: Result<Reply<M>, String>) {
        self.later
            .extend(reply.ok().map(|reply| Later::Drop(Ok(reply))));
    }

    /// Counts a reply, and gives it to who asked.
    pub(super) fn handled(&mut self, waiter: Waiter<M>, reply: Reply<M>) {
        self.traffic.handled += 1;
        if let Waiter::Handled(waiter) = waiter
            && let Err(unwanted) = waiter.send(Ok(reply))
        {
            self.later.push(Later::Drop(unwanted));
        }
    }
}

impl<M: RemoteMessage> Later<M> {
    pub(super) fn run(self, place: &Place<M>) {
        match self {
            Self::Tell(failed) => failed.tell(place),
            Self::Drop(unwanted) => drop(unwanted),
            Self::Forget(body) => drop(body),
        }
    }
}

impl<M: RemoteMessage> Failed<M> {
    fn tell(self, place: &Place<M>) {
        let Self {
            error,
            size: bytes,
            waiter,
            ..
        } = self;
        let (node, namespace) = (place.node, &place.namespace);
        let (age, awaited) = (self.sent.elapsed(), !matches!(waiter, Waiter::None));
        match awaited {
            true => debug!(%node, %namespace, %error, bytes, ?age, "a message failed"),
            // This is all that is heard of it.
            false => warn!(%node, %namespace, reason = %error, bytes, ?age, "dead letter"),
        }
        place.dead_letters.publish(|| DeadLetter {
            namespace: namespace.clone(),
            reason: error.clone(),
            size: bytes,
            age,
            awaited,
        });
        waiter.fail(error);
    }
}
