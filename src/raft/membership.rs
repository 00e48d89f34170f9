//! The leader's care for the membership: it forms the cluster, and makes the
//! changes that `policy` wants, one at a time.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix::prelude::*;
use openraft::{BasicNode, ChangeMembers};
use tokio::time::timeout;
use tracing::{debug, info, warn};

use super::{
    RaftActor,
    clocks::EVICT_AFTER,
    policy::{self, Change, Picture},
    submit,
    types::Raft,
};
use crate::{
    proto::submit_reply::Outcome,
    view::{Command, Identity, Member, NodeId, View},
};

/// A learner may vote once its log lacks at most this many entries.
const CAUGHT_UP: u64 = 16;
/// How long a change may take, with all that the leader has to send for it.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);

/// Starts Raft on a cluster of these nodes. The policy takes in as learners
/// those that do not vote.
pub(super) async fn form(
    raft: &Raft,
    me: &Identity,
    members: &BTreeMap<NodeId, Member>,
    max_voters: usize,
) {
    let voters: BTreeMap<NodeId, BasicNode> =
        policy::first_voters(me.node, members.keys().copied(), max_voters)
            .into_iter()
            .map(|node| (node, BasicNode::new(&members[&node].address)))
            .collect();
    let count = voters.len();
    match raft.initialize(voters).await {
        Ok(()) => {
            info!(node = %me.node, cluster = %me.cluster, voters = count, "formed the cluster");
        }
        Err(error) => warn!(node = %me.node, %error, "the cluster could not be formed"),
    }
}

impl RaftActor {
    /// On the leader: makes the next change that is due.
    pub(super) fn adjust_membership(&mut self, ctx: &mut Context<Self>) {
        if self.changing || !self.leads() || !self.has_quorum() {
            return;
        }
        let raft = self.raft.clone();
        let view = self.agreed.borrow().clone();
        if view.formation == 0 {
            let command = Command::Form {
                formation: rand::random_range(1..=u64::MAX),
                members: self.founders.clone(),
            };
            return self.change(ctx, async move { written(&raft, command).await });
        }
        let picture = self.picture(&view);
        let Some(change) = policy::next_change(&picture) else {
            return;
        };
        let Picture { voters, silent, .. } = &picture;
        debug!(?change, ?voters, ?silent, "changing the membership");
        let members = match change {
            Change::Evict(node) => {
                let boot = view.nodes[&node].boot;
                let me = self.me.node;
                warn!(node = %me, peer = %node, boot, silent = ?EVICT_AFTER, "evicting a node");
                let command = Command::NodeDown { node, boot };
                return self.change(ctx, async move { written(&raft, command).await });
            }
            Change::Add(node) => {
                let address = &*view.nodes[&node].address;
                ChangeMembers::AddNodes(BTreeMap::from([(node, BasicNode::new(address))]))
            }
            Change::SetVoters(voters) => ChangeMembers::ReplaceAllVoters(voters),
            Change::Remove(node) => ChangeMembers::RemoveNodes(BTreeSet::from([node])),
        };
        self.change(ctx, async move {
            // Who votes no more stays as a learner, until the policy forgets it.
            let change = raft.change_membership(members, true);
            let changed = timeout(CHANGE_TIMEOUT, change).await;
            match &changed {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => debug!(%error, "the membership was not changed"),
                Err(_) => debug!("a change of the membership was not agreed in time"),
            }
            matches!(changed, Ok(Ok(_)))
        });
    }

    /// Makes one change, and looks for the next if it was made. After one that
    /// failed, which may be at once and again, that is for the next heartbeat.
    fn change(&mut self, ctx: &mut Context<Self>, change: impl Future<Output = bool> + 'static) {
        self.changing = true;
        ctx.spawn(change.into_actor(self).map(|changed, actor, ctx| {
            actor.changing = false;
            if changed {
                actor.turn(ctx);
            }
        }));
    }

    fn picture(&self, view: &View) -> Picture {
        let metrics = self.metrics.borrow();
        let membership = metrics.membership_config.membership();
        let last = metrics.last_log_index.unwrap_or(0);
        let replicated = metrics.replication.iter().flatten();
        let voters: BTreeSet<NodeId> = membership.voter_ids().collect();
        let up: BTreeSet<NodeId> = view.nodes.keys().copied().collect();
        let configs = membership.get_joint_config();
        let clocks = &self.network.clocks;
        // It calls everybody but itself.
        let mut silent = clocks.silent(up.union(&voters).copied());
        silent.remove(&metrics.id);
        let mut heard = clocks.heard(voters.iter().copied());
        heard.insert(metrics.id);
        Picture {
            leader: metrics.id,
            begun: configs.last().filter(|_| configs.len() > 1).cloned(),
            learners: membership.learner_ids().collect(),
            caught_up: replicated
                .filter(|(_, matched)| matched.is_some_and(|id| id.index + CAUGHT_UP >= last))
                .map(|(node, _)| *node)
                .collect(),
            silent,
            heard,
            voters,
            up,
            cap: self.max_voters,
        }
    }
}

async fn written(raft: &Raft, command: Command) -> bool {
    submit::write(raft, command).await.outcome() == Outcome::Done
}
