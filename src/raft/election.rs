//! When a node stands for election.
//!
//! openraft 0.9 draws an election timeout once a start, and stands whenever it
//! has passed. Nodes that drew alike then collide each time, and one that is cut
//! off counts its term up and unseats the leader when it comes back. So its own
//! elections are switched off. Here the patience is drawn anew before each
//! attempt, and a node first asks the others whether they would vote for it:
//! the pre-vote of Ongaro's thesis on Raft, section 9.6.

use std::{collections::BTreeSet, ops::Range, time::Duration};

use actix::prelude::*;
use futures_util::future::join_all;
use openraft::{ServerState, network::RPCOption};
use rand::RngExt;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{HEARTBEAT, RaftActor, types::LogId};
use crate::view::NodeId;

/// After so long a silence a voter stands for election: drawn anew from this
/// range each time.
const PATIENCE: Range<Duration> = Duration::from_millis(750)..Duration::from_millis(1500);
/// Who has heard from a leader within this time gives nobody its vote. It is
/// also openraft's lease, after which votes are given.
pub(super) const LEASE: Duration = Duration::from_millis(500);
const PRE_VOTE_TIMEOUT: Duration = Duration::from_millis(300);

/// Asks whether the receiver would vote for the sender.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PreVote {
    pub(super) last_log: Option<LogId>,
}

/// When to stand next.
pub(super) struct Election {
    /// Nothing before this was heard counts.
    since: Instant,
    patience: Duration,
    /// The others are being asked.
    asking: bool,
}

impl Election {
    pub(super) fn new() -> Self {
        Self {
            since: Instant::now(),
            patience: draw(),
            asking: false,
        }
    }

    /// How much longer the leader may be silent.
    fn left(&self, heard: Option<Instant>) -> Duration {
        let since = heard.map_or(self.since, |heard| heard.max(self.since));
        self.patience.saturating_sub(since.elapsed())
    }

    /// An attempt is over: the next one is due after a patience of its own.
    fn put_off(&mut self) {
        *self = Self::new();
    }
}

fn draw() -> Duration {
    rand::rng().random_range(PATIENCE)
}

/// Whether a node that heard of a leader then would give its vote.
pub(super) fn grants(heard: Option<Instant>, mine: Option<LogId>, theirs: Option<LogId>) -> bool {
    heard.is_none_or(|heard| heard.elapsed() > LEASE) && theirs >= mine
}

/// Whether these nodes are a majority of each set of voters; there are two while
/// the voters change.
pub(super) fn is_quorum(configs: &[BTreeSet<NodeId>], granted: &BTreeSet<NodeId>) -> bool {
    configs
        .iter()
        .all(|voters| 2 * voters.intersection(granted).count() > voters.len())
}

impl RaftActor {
    /// Stands for election, if that is due and can succeed.
    pub(super) fn stand(&mut self, ctx: &mut Context<Self>) {
        let metrics = self.metrics.borrow();
        let me = self.me.node;
        let membership = metrics.membership_config.membership();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let alone = voters.len() == 1;
        if metrics.state == ServerState::Leader || !voters.contains(&me) || self.election.asking {
            return;
        }
        let left = self.election.left(self.heard(&metrics));
        if !alone && !left.is_zero() {
            if left < HEARTBEAT {
                ctx.run_later(left, |actor, ctx| actor.turn(ctx));
            }
            return;
        }
        let configs = membership.get_joint_config().clone();
        let mut peers = Vec::new();
        for voter in voters.into_iter().filter(|voter| *voter != me) {
            if let Some(node) = membership.get_node(&voter) {
                peers.push(self.network.connection(voter, node));
            }
        }
        drop(metrics);
        // Where the log cannot be read, Raft has stopped or will.
        let Ok(last_log) = self.store.last_log_id() else {
            return;
        };
        self.election.asking = true;
        let raft = self.raft.clone();
        let asked = async move {
            let request = PreVote { last_log };
            let answers = peers.iter().map(|peer| async {
                let option = RPCOption::new(PRE_VOTE_TIMEOUT);
                let granted = peer.pre_vote(&request, option).await;
                granted.then_some(peer.target)
            });
            let granted = join_all(answers).await.into_iter().flatten();
            let granted: BTreeSet<NodeId> = granted.chain([me]).collect();
            if !is_quorum(&configs, &granted) {
                debug!(node = %me, ?granted, "too few would vote for this node");
                return None;
            }
            info!(node = %me, ?granted, "standing for election");
            raft.trigger().elect().await.ok()
        };
        ctx.spawn(
            asked
                .into_actor(self)
                .map(|_, actor, _| actor.election.put_off()),
        );
    }
}

#[cfg(test)]
mod tests {
    use openraft::CommittedLeaderId;

    use super::*;

    fn log(index: u64) -> Option<LogId> {
        Some(LogId::new(CommittedLeaderId::new(1, NodeId(1)), index))
    }

    fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
        ids.into_iter().map(NodeId).collect()
    }

    #[test]
    fn a_majority_of_both_sets_of_voters_elects() {
        let configs = [nodes([1, 2, 3]), nodes([3, 4, 5])];
        assert!(is_quorum(&configs, &nodes([1, 3, 4])));
        assert!(!is_quorum(&configs, &nodes([1, 2, 4])));
        assert!(!is_quorum(&configs[..1], &nodes([1, 4, 5])));
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_votes_against_a_leader_that_it_hears() {
        let heard = Some(Instant::now());
        assert!(!grants(heard, log(1), log(1)));
        tokio::time::advance(LEASE * 2).await;
        assert!(grants(heard, log(1), log(1)));
        assert!(grants(None, log(1), log(1)));
    }

    #[test]
    fn nobody_votes_for_a_node_that_lacks_entries() {
        assert!(!grants(None, log(2), log(1)));
        assert!(!grants(None, log(0), None));
        assert!(grants(None, None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn patience_is_drawn_anew_for_each_attempt() {
        let mut election = Election::new();
        let drawn: BTreeSet<Duration> = (0..8)
            .map(|_| {
                election.put_off();
                assert!(PATIENCE.contains(&election.patience));
                election.patience
            })
            .collect();
        assert!(drawn.len() > 1);
        assert_eq!(election.left(None), election.patience);
        tokio::time::advance(PATIENCE.end).await;
        assert_eq!(election.left(None), Duration::ZERO);
        assert_eq!(election.left(Some(Instant::now())), election.patience);
    }
}
