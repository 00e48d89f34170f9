//! How a broadcast gets to the recipients of this node, and what they make of
//! it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use tracing::warn;

use super::relay::{Heard, Relay};
use crate::{
    inbox::{Channel, Origin},
    message::{Body, RemoteMessage},
};

/// What became of a broadcast on one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Every recipient that it was given to, and that is still there, has it.
    Confirmed,
    /// A recipient had no room for it.
    Missed,
    /// Nobody has it: there is no recipient left, or one cannot read it.
    Gone,
}

/// Counts what the recipients of this node do with one broadcast. Each copy
/// holds on to it; when the last one has gone, the relay is told.
pub(crate) struct Hearing {
    relay: Weak<Relay>,
    what: Heard,
    /// Its time is over: recipients need not take it any more.
    over: AtomicBool,
    accepted: AtomicUsize,
    missed: AtomicUsize,
    rejected: AtomicUsize,
}

impl Hearing {
    pub(super) fn new(relay: Weak<Relay>, what: Heard) -> Arc<Self> {
        Arc::new(Self {
            relay,
            what,
            over: AtomicBool::new(false),
            accepted: AtomicUsize::new(0),
            missed: AtomicUsize::new(0),
            rejected: AtomicUsize::new(0),
        })
    }

    pub(super) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        let outcome = if *self.missed.get_mut() > 0 {
            Outcome::Missed
        } else if *self.accepted.get_mut() > 0 && *self.rejected.get_mut() == 0 {
            Outcome::Confirmed
        } else {
            Outcome::Gone
        };
        if let Some(relay) = self.relay.upgrade() {
            relay.heard(self.what, outcome);
        }
    }
}

impl<M: RemoteMessage> Origin<M> for Hearing {
    fn grant(&self, _: u32) {}

    fn accepted(&self, _: u64) {
        self.accepted.fetch_add(1, Ordering::Relaxed);
    }

    fn returned(&self, _: u64, _: Option<Body<M>>) {}

    fn rejected(&self, _: u64, reason: String) {
        warn!(%reason, "rejected a broadcast");
        self.rejected.fetch_add(1, Ordering::Relaxed);
    }

    fn replied(&self, _: u64, _: Result<M::Result, String>) {}

    fn is_gone(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

/// The recipients of a namespace on this node, whatever its type of message.
pub(crate) trait Audience: Send + Sync {
    /// Gives an encoded message to all of them; where there is a `limit`, to
    /// those that have room and fewer messages before them.
    fn hand_over(&self, message: &Bytes, limit: Option<usize>, hearing: Arc<Hearing>);
    /// Takes back what they have not taken of broadcasts whose time is over.
    fn retract(&self);
}

impl<M: RemoteMessage> Audience for Channel<M> {
    fn hand_over(&self, message: &Bytes, limit: Option<usize>, hearing: Arc<Hearing>) {
        let copy = |_| Some(Body::Encoded(message.clone()));
        let missed = self.give_to_all(hearing.clone(), limit, copy);
        hearing.missed.fetch_add(missed, Ordering::Relaxed);
    }

    fn retract(&self) {
        Channel::retract(self);
    }
}

/// Hands a broadcast of this node over to its own recipients.
pub(super) type HandOver = Box<dyn FnOnce(Option<usize>, Arc<Hearing>) + Send>;

/// Each recipient gets a clone that was made for it, and one that has come
/// since decodes its own.
pub(super) fn own_copies<M: RemoteMessage>(
    channel: Arc<Channel<M>>,
    mut copies: HashMap<u64, M>,
    encoded: Option<Bytes>,
) -> HandOver {
    Box::new(move |limit, hearing| {
        let copy = |recipient| match copies.remove(&recipient) {
            Some(message) => Some(Body::Value(message)),
            None => encoded.clone().map(Body::Encoded),
        };
        let missed = channel.give_to_all(hearing.clone(), limit, copy);
        hearing.missed.fetch_add(missed, Ordering::Relaxed);
    })
}
