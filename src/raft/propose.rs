//! What this node wants agreed: it proposes until what is agreed is what it
//! wants.

use std::time::Duration;

use actix::prelude::*;
use tokio::time::Instant;
use tracing::debug;

use super::{RaftActor, formation::OtherCluster, submit::Submitter};
use crate::{
    proto::{self, SubmitRequest, submit_reply::Outcome, submit_request},
    view::{Command, Identity},
};

/// After a proposal has been agreed, how long to wait for the node's own log to
/// bring it before it is proposed again.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// The pauses after proposals that fail: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
pub(super) const LEAVE: submit_request::Change = submit_request::Change::Leave(proto::Leave {});
impl RaftActor {
    /// What this node has to have agreed next, if anything.
    fn missing(&self) -> Option<submit_request::Change> {
        let Identity { node, boot, .. } = self.me;
        let view = self.agreed.borrow().clone();
        if self.leaving {
            return self.left.is_some().then_some(LEAVE);
        }
        if self.failed {
            // It would not hear what is agreed.
            return None;
        }
        let up = view.nodes.get(&node);
        let is_up = up.is_some_and(|up| up.boot == boot && up.address == self.me.address);
        if !is_up || self.may_be_evicted() {
            let address = self.me.address.to_string();
            return Some(submit_request::Change::Announce(proto::Announce {
                address,
            }));
        }
        match view.missing(node, boot, &self.wanted.borrow()) {
            Some(Command::Receive {
                register,
                unregister,
                ..
            }) => Some(submit_request::Change::Receive(proto::Receive {
                register: register
                    .into_iter()
                    .map(|(namespace, label)| proto::Registration {
                        namespace: namespace.to_string(),
                        label: label.to_string(),
                    })
                    .collect(),
                unregister: unregister.iter().map(|name| name.to_string()).collect(),
            })),
            _ => None,
        }
    }

    pub(super) fn propose(&mut self, ctx: &mut Context<Self>) {
        if self.proposing || !self.formation.is_settled() {
            return;
        }
        if self.content && !self.leaving && !self.may_be_evicted() && !self.has_changed() {
            return;
        }
        self.wanted.mark_unchanged();
        self.agreed.mark_unchanged();
        let missing = self.missing();
        self.content = missing.is_none();
        let Some(change) = missing else {
            self.proposed = None;
            return;
        };
        if self.retry.is_some_and(|(at, _)| Instant::now() < at) {
            return;
        }
        if let Some((proposed, at)) = &self.proposed
            && *proposed == change
            && at.elapsed() < ECHO_TIMEOUT
        {
            return;
        }
        self.proposing = true;
        let request = self.request(change.clone());
        let reply = self.submitter().submit(request);
        ctx.spawn(reply.into_actor(self).map(move |reply, actor, ctx| {
            actor.proposing = false;
            match reply.outcome() {
                Outcome::Done => {
                    actor.retry = None;
                    actor.failure = None;
                    actor
                        .standing
                        .send_if_modified(|standing| standing.refused.take().is_some());
                    if change == LEAVE {
                        actor.left = None;
                    } else {
                        actor.proposed = Some((change, Instant::now()));
                        actor.turn(ctx);
                    }
                }
                outcome => {
                    debug!(?outcome, detail = reply.detail, "a proposal failed");
                    if outcome == Outcome::WrongCluster {
                        actor.refuse(OtherCluster {
                            peer: "the leader".into(),
                            cluster: reply.detail.clone(),
                        });
                    }
                    actor.failure = Some(reply.detail);
                    let pause = actor.retry.map_or(FIRST_PAUSE, |(_, pause)| pause * 2);
                    let pause = pause.min(LONGEST_PAUSE);
                    actor.retry = Some((Instant::now() + pause, pause));
                    if pause == LONGEST_PAUSE && actor.formation.start_over() {
                        actor.find_cluster(ctx);
                    }
                }
            }
        }));
    }

    /// Whether what is wanted or agreed has changed since it was last compared.
    fn has_changed(&self) -> bool {
        let changed = |changed: Result<bool, _>| changed.unwrap_or(true);
        changed(self.wanted.has_changed()) || changed(self.agreed.has_changed())
    }

    fn request(&self, change: submit_request::Change) -> SubmitRequest {
        SubmitRequest {
            cluster: self.me.cluster.to_string(),
            node: self.me.node.get(),
            boot: self.me.boot,
            passed_on: false,
            formation: self.agreed.borrow().formation,
            change: Some(change),
        }
    }

    pub(super) fn submitter(&self) -> Submitter {
        Submitter {
            me: self.me.clone(),
            raft: self.raft.clone(),
            metrics: self.metrics.clone(),
            agreed: self.agreed.clone(),
            connections: self.connections.clone(),
            contacts: self.formation.known(),
            clocks: self.network.clocks.clone(),
            quorum: self.has_quorum(),
        }
    }
}
