//! How this node stands: who leads, whether a quorum is heard, whether this node
//! may have been given up.

use std::{collections::BTreeSet, sync::atomic::Ordering, time::Duration};

use openraft::ServerState;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::{RaftActor, formation::OtherCluster, types::Metrics};
use crate::view::NodeId;

/// Whoever has not heard from a leader for so long may have been evicted, and
/// asks to be taken in again.
const RETURN_AFTER: Duration = Duration::from_secs(3);
/// A leader that no quorum has answered for so long proposes nothing more:
/// openraft's would go on filling its log.
pub(crate) const QUORUM_TIMEOUT: Duration = Duration::from_secs(2);
/// What the control plane knows of itself, for `Status`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standing {
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    pub(crate) voters: BTreeSet<NodeId>,
    pub(crate) learners: BTreeSet<NodeId>,
    /// When a leader with a quorum was last heard of.
    pub(crate) heard: Option<Instant>,
    /// Whether that was just now.
    pub(crate) quorum: bool,
    /// What keeps the node from belonging to a cluster, as far as it knows.
    pub(crate) obstacle: Option<String>,
    /// Set where the node cannot come to belong to the cluster of its peers.
    pub(crate) refused: Option<OtherCluster>,
}

impl RaftActor {
    pub(super) fn note_leadership(&mut self) {
        match (self.leads(), self.led_since) {
            (true, None) => {
                self.led_since = Some(Instant::now());
                self.network.clocks.restart();
            }
            (false, Some(_)) => self.led_since = None,
            _ => {}
        }
        let without = self.leads() && !self.has_quorum();
        self.network
            .without_quorum
            .store(without, Ordering::Relaxed);
    }

    pub(super) fn publish_standing(&mut self) {
        let metrics = self.metrics.borrow().clone();
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        if !voters.is_empty() {
            self.formation.formed();
        }
        let learners: BTreeSet<NodeId> = membership.learner_ids().collect();
        let heard = self.heard(&metrics);
        let quorum = heard.is_some_and(|heard| heard.elapsed() < QUORUM_TIMEOUT);
        let node = self.me.node;
        let before = self.standing.borrow().clone();
        if before.leader != metrics.current_leader {
            // Whoever leads now may agree to what the last one could not.
            self.retry = None;
            match metrics.current_leader {
                Some(leader) => {
                    info!(%node, %leader, term = metrics.current_term, "leader changed")
                }
                None => info!(%node, "the cluster has no leader"),
            }
        }
        match (before.quorum, quorum) {
            (true, false) => warn!(
                %node,
                "the cluster has no quorum: messages flow, and nothing new can be agreed"
            ),
            (false, true) if before.heard.is_some() => info!(%node, "the cluster has a quorum"),
            _ => {}
        }
        self.standing.send_modify(|standing| {
            standing.leader = metrics.current_leader;
            standing.term = metrics.current_term;
            standing.voters = voters;
            standing.learners = learners;
            standing.heard = heard.or(standing.heard);
            standing.quorum = quorum;
            standing.obstacle = self.obstacle();
        });
    }

    fn obstacle(&self) -> Option<String> {
        if self.formation.is_settled() {
            return self.failure.clone();
        }
        let silent = self.formation.silent();
        (!silent.is_empty()).then(|| format!("no answer from {}", silent.join(", ")))
    }

    /// Whether this node, where it leads, can have something agreed.
    pub(super) fn has_quorum(&self) -> bool {
        let acknowledged = self.heard(&self.metrics.borrow());
        let last = acknowledged.max(self.led_since);
        last.is_some_and(|last| last.elapsed() < QUORUM_TIMEOUT)
    }

    /// Whether no leader has been heard of for so long that this node may have
    /// been evicted, and the log that would tell it passes it by.
    pub(super) fn may_be_evicted(&self) -> bool {
        let heard = self.heard(&self.metrics.borrow());
        heard.unwrap_or(self.started).elapsed() > RETURN_AFTER
    }

    /// Raft stops for good when its storage fails. The data plane goes on with
    /// the last view, so somebody has to be told.
    pub(super) fn tell_of_failure(&mut self) {
        if let Err(fatal) = &self.metrics.borrow().running_state
            && !self.failed
        {
            self.failed = true;
            error!(node = %self.me.node, error = %fatal, "Raft has stopped: restart the node");
        }
    }

    pub(super) fn leads(&self) -> bool {
        self.metrics.borrow().state == ServerState::Leader
    }

    /// When a leader with a quorum was last heard of, be it this node.
    pub(super) fn heard(&self, metrics: &Metrics) -> Option<Instant> {
        let acknowledged = metrics.millis_since_quorum_ack.map(Duration::from_millis);
        match acknowledged {
            // Once Raft has stopped, this does not grow any more.
            Some(ago) if metrics.running_state.is_ok() => Instant::now().checked_sub(ago),
            _ => *self.heard_leader.borrow(),
        }
    }
}
