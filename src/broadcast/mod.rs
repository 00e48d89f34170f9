//! Broadcasts: one message to every receiver of a namespace, over a tree of
//! nodes.
//!
//! The sender splits the receivers in its view into a few parts and passes one
//! copy to the first of each, with the list of the others, which that one splits
//! again. Each node answers once for all that it was told to see to, when it has
//! heard of all of them: so neither copies nor answers of a sender grow with the
//! cluster.
//!
//! It is modelled on Plumtree (Leitao, Pereira, Rodrigues: Epidemic Broadcast
//! Trees, 2007). From there is the eager push along a tree that is repaired only
//! when it breaks, over links that show by themselves who is there. Left out is
//! what makes up for not knowing the members: the view tells them, so the tree
//! is computed and not learned from duplicates, and there are neither lazy
//! announcements (IHAVE) nor timers for what they announce (GRAFT). In their
//! place is the answer: what a peer has not answered when its link breaks is
//! seen to by the node that had passed it on; what a node does not reach it hands
//! back to where it came from; and the sender, which alone waits, tries again
//! when a link is up, and through others.
//!
//! Copies may so arrive twice. Each receiver tells them by their origin and
//! number, and hands over each once, in the order of its origin.
//!
//! **Invariant: an addressee is in one place.** Of the nodes that see to a
//! broadcast, each has either answered for an addressee, or passed it on to one
//! peer, or has it wait.

mod errand;
mod hearing;
mod inflow;
mod order;
mod origin;
mod passing;
mod relay;
mod tree;
mod upkeep;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard},
};

pub(crate) use self::relay::{Place, Relay, Route};
use crate::{
    alarm::Alarm,
    link::{Bounds, BroadcastFeedback, BroadcastInlet, Lane, Link, PeerRoom},
    proto,
};

/// How many broadcasts of a namespace a node has under way, at the most,
/// whatever its window is.
pub(crate) const MOST_UNDER_WAY: usize = 1024;

/// The largest message that is broadcast, encoded, in bytes: it travels whole,
/// and is not to hold up the others on its links for long.
pub(crate) const LARGEST: usize = 1 << 20;

/// What a node holds of others' broadcasts until they are settled, and remembers of
/// them. It hands back what it has no room for, and their origins try again.
pub(crate) const ROOM: Bounds = Bounds {
    per_peer: 64 << 20,
    per_node: 256 << 20,
};

/// How many copies from one origin a node passes to one peer before they are
/// answered. More than are under way, for when something breaks a peer may be
/// given several for one broadcast.
const MOST_PASSED: usize = 4 * MOST_UNDER_WAY;

/// At so many a peer breaks the protocol. It may give up what this node has not.
const MOST_ARRIVED: usize = 2 * MOST_PASSED;

/// The relays of a node, by namespace.
#[derive(Default)]
pub(crate) struct Relays {
    by_namespace: Mutex<HashMap<Arc<str>, Arc<Relay>>>,
}

impl Relays {
    fn by_namespace(&self) -> MutexGuard<'_, HashMap<Arc<str>, Arc<Relay>>> {
        self.by_namespace
            .lock()
            .expect("no panic while relays are looked up")
    }

    /// Makes the relay of a namespace.
    pub(crate) fn open(&self, place: Place, alarm: Alarm) -> Arc<Relay> {
        let namespace = place.namespace.clone();
        let relay = Relay::new(place, alarm);
        self.by_namespace().insert(namespace, relay.clone());
        relay
    }

    /// Where the broadcasts of a namespace go, if it is known here.
    pub(crate) fn inlet(&self, namespace: &str) -> Option<Arc<dyn BroadcastInlet>> {
        let relay = self.by_namespace().get(namespace)?.clone();
        Some(relay)
    }

    fn all(&self) -> Vec<Arc<Relay>> {
        self.by_namespace().values().cloned().collect()
    }
}

impl BroadcastFeedback for Relays {
    fn up(&self, link: &Link) {
        for relay in self.all() {
            relay.up(link);
        }
    }

    fn broken(&self, link: &Link) {
        for relay in self.all() {
            relay.broken(link);
        }
    }

    fn confirmed(
        &self,
        link: &Link,
        namespace: &str,
        answer: proto::Confirmation,
    ) -> Result<(), &'static str> {
        let relay = self.by_namespace().get(namespace).cloned();
        relay.map_or(Ok(()), |relay| relay.confirmed(link, answer))
    }
}

impl BroadcastInlet for Relay {
    fn attached(&self) {
        Relay::attached(self);
    }

    fn arrived(
        &self,
        lane: &Arc<Lane>,
        broadcast: proto::Broadcast,
        room: &PeerRoom,
    ) -> Result<(), &'static str> {
        Relay::arrived(self, lane, broadcast, room)
    }
}
