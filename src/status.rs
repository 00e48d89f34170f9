//! What a node can tell of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Add,
    time::Duration,
};

use crate::{error::DeliveryError, view::NodeId};

/// A node's picture of itself and its cluster, from
/// [`Cluster::status`](crate::Cluster::status).
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// How many times it has been started on its data directory.
    pub boot: u64,
    /// Where its peers reach it.
    pub address: String,
    /// The name of its cluster.
    pub cluster_id: String,
    /// The leader, if one is known.
    pub leader: Option<NodeId>,
    /// The Raft term.
    pub term: u64,
    /// The nodes that decide.
    pub voters: BTreeSet<NodeId>,
    /// The nodes that follow what is decided.
    pub learners: BTreeSet<NodeId>,
    /// All nodes that are up as far as has been agreed, with their addresses.
    pub nodes: BTreeMap<NodeId, String>,
    /// The namespaces that are received, and by whom.
    pub receivers: BTreeMap<String, BTreeSet<NodeId>>,
    /// Whether a leader with a quorum has been heard of in the last two seconds.
    /// Without one messages go on to the receivers that are known, and nothing
    /// new can be agreed: registrations wait, and fail with
    /// [`NoQuorum`](crate::RegisterError::NoQuorum).
    pub has_quorum: bool,
    /// How long ago the view was last confirmed to be current. It grows beyond
    /// a second or so only while no leader with a quorum is heard of. `None`
    /// before the first time.
    pub view_age: Option<Duration>,
    /// The peers that this node has a link to, and whether it is up.
    pub links: BTreeMap<NodeId, bool>,
    /// What became of the messages that this node has sent.
    pub traffic: Traffic,
    /// What became of its broadcasts, which are counted apart.
    pub broadcasts: BroadcastCounts,
}

/// What became of the broadcasts that a node has sent since it started, and what
/// it has passed on.
///
/// ```text
/// sent = settled + failed + waiting + under_way
/// ```
///
/// The receivers of those that are settled add up as well: each has confirmed,
/// missed, or not confirmed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BroadcastCounts {
    /// Broadcasts that this node has sent.
    pub sent: u64,
    /// Broadcasts whose sender has been told whom they reached.
    pub settled: u64,
    /// Broadcasts that reached nobody: their sender has got an error.
    pub failed: u64,
    /// Broadcasts that wait until earlier ones are settled.
    pub waiting: u64,
    /// Broadcasts that were sent, and of which not all has been heard.
    pub under_way: u64,
    /// Receivers that have confirmed a broadcast.
    pub confirmed: u64,
    /// Receivers that were too slow for a lossy broadcast.
    pub missed: u64,
    /// Receivers of which nothing was heard in time, or that are gone.
    pub unconfirmed: u64,
    /// Copies of its own broadcasts that this node has passed to others.
    pub copies: u64,
    /// Copies of others' broadcasts that it has passed on.
    pub relayed: u64,
}

impl Add for BroadcastCounts {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            settled: self.settled + other.settled,
            failed: self.failed + other.failed,
            waiting: self.waiting + other.waiting,
            under_way: self.under_way + other.under_way,
            confirmed: self.confirmed + other.confirmed,
            missed: self.missed + other.missed,
            unconfirmed: self.unconfirmed + other.unconfirmed,
            copies: self.copies + other.copies,
            relayed: self.relayed + other.relayed,
        }
    }
}

/// What became of the messages that a node has sent since it started.
///
/// Every message is in exactly one of these at any time, so that
///
/// ```text
/// sent = handled + accepted + dead_letters.total() + unknown + waiting + under_way
/// ```
///
/// A message that `try_send` or a sink has given back was not sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Traffic {
    /// Messages that were sent, in whichever way.
    pub sent: u64,
    /// Messages whose handler has replied to their sender.
    pub handled: u64,
    /// Messages that a recipient has, and whose sender wants to know no more.
    pub accepted: u64,
    /// Messages that were not delivered.
    pub dead_letters: DeadLetterCounts,
    /// Messages that may have been delivered, or not.
    pub unknown: u64,
    /// Messages that wait for a receiver.
    pub waiting: u64,
    /// Messages that were handed over to a receiver, and have no outcome yet.
    pub under_way: u64,
}

/// How many messages were not delivered, by the reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadLetterCounts {
    /// [`DeliveryError::Full`]
    pub full: u64,
    /// [`DeliveryError::NoReceiver`]
    pub no_receiver: u64,
    /// [`DeliveryError::Timeout`]
    pub timeout: u64,
    /// [`DeliveryError::Rejected`]
    pub rejected: u64,
    /// [`DeliveryError::Encode`]
    pub encode: u64,
    /// [`DeliveryError::TooLarge`]
    pub too_large: u64,
    /// [`DeliveryError::Closed`]
    pub closed: u64,
}

impl DeadLetterCounts {
    /// All of them.
    pub fn total(&self) -> u64 {
        let Self {
            full,
            no_receiver,
            timeout,
            rejected,
            encode,
            too_large,
            closed,
        } = self;
        full + no_receiver + timeout + rejected + encode + too_large + closed
    }
}

impl Traffic {
    /// Counts a message by what kept it from being delivered.
    pub(crate) fn count(&mut self, error: &DeliveryError) {
        let dead = &mut self.dead_letters;
        let counter = match error {
            error if error.maybe_delivered() => &mut self.unknown,
            DeliveryError::Full => &mut dead.full,
            DeliveryError::NoReceiver { .. } => &mut dead.no_receiver,
            DeliveryError::Timeout { .. } => &mut dead.timeout,
            DeliveryError::Rejected { .. } => &mut dead.rejected,
            DeliveryError::Encode { .. } => &mut dead.encode,
            DeliveryError::TooLarge { .. } => &mut dead.too_large,
            DeliveryError::Closed => &mut dead.closed,
            DeliveryError::Lost { .. } | DeliveryError::Reply { .. } => &mut self.unknown,
        };
        *counter += 1;
    }
}

impl Add for Traffic {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (dead, others) = (self.dead_letters, other.dead_letters);
        Self {
            sent: self.sent + other.sent,
            handled: self.handled + other.handled,
            accepted: self.accepted + other.accepted,
            dead_letters: DeadLetterCounts {
                full: dead.full + others.full,
                no_receiver: dead.no_receiver + others.no_receiver,
                timeout: dead.timeout + others.timeout,
                rejected: dead.rejected + others.rejected,
                encode: dead.encode + others.encode,
                too_large: dead.too_large + others.too_large,
                closed: dead.closed + others.closed,
            },
            unknown: self.unknown + other.unknown,
            waiting: self.waiting + other.waiting,
            under_way: self.under_way + other.under_way,
        }
    }
}
