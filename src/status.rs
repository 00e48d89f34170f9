//! What a node can tell of itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::view::NodeId;

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
    /// How long ago the view was last confirmed to be current. It grows beyond
    /// a second or so only while no leader with a quorum is heard of. `None`
    /// before the first time.
    pub view_age: Option<Duration>,
    /// The peers that this node has a link to, and whether it is up.
    pub links: BTreeMap<NodeId, bool>,
    /// Messages that this node sends and that wait for a receiver.
    pub waiting: usize,
    /// Messages that this node has handed over and that no recipient has
    /// accepted yet.
    pub under_way: usize,
    /// Messages that nobody awaits and that were not delivered, since the start.
    pub dead_letters: u64,
}

/// What a node counts.
#[derive(Default)]
pub(crate) struct Counters {
    dead_letters: AtomicU64,
}

impl Counters {
    pub(crate) fn dead_letter(&self) {
        self.dead_letters.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn dead_letters(&self) -> u64 {
        self.dead_letters.load(Ordering::Relaxed)
    }
}
