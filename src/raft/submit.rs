//! Bringing a proposal to the leader, and deciding on it there.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use futures_util::future::join_all;
use openraft::error::{ClientWriteError, RaftError};
use tokio::{sync::watch, time::timeout};

use super::{
    clocks::Clocks,
    types::{Metrics, Raft},
};
use crate::{
    connections::{Connections, check_address},
    proto::{SubmitReply, SubmitRequest, submit_reply::Outcome, submit_request},
    view::{Command, Identity, NodeId, View},
};

/// How long a proposal may take to be agreed. What is cut off then may still
/// be; every command is safe to propose again.
pub(super) const SUBMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long somebody may take who is to hand it to the leader, before the next
/// one is asked.
const CONTACT_TIMEOUT: Duration = Duration::from_secs(1);

/// Proposes a command on the leader and waits until it is applied there.
pub(super) async fn write(raft: &Raft, command: Command) -> SubmitReply {
    match timeout(SUBMIT_TIMEOUT, raft.client_write(command)).await {
        Ok(Ok(_)) => reply(Outcome::Done, ""),
        Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_)))) => {
            reply(Outcome::NoLeader, "")
        }
        Ok(Err(error)) => reply(Outcome::NoLeader, error.to_string()),
        Err(_) => reply(Outcome::TimedOut, "no quorum answered in time"),
    }
}

fn reply(outcome: Outcome, detail: impl Into<String>) -> SubmitReply {
    SubmitReply {
        outcome: outcome.into(),
        detail: detail.into(),
    }
}

/// Brings proposals to the leader.
pub(super) struct Submitter {
    pub(super) me: Identity,
    pub(super) raft: Raft,
    pub(super) metrics: watch::Receiver<Metrics>,
    pub(super) agreed: watch::Receiver<Arc<View>>,
    pub(super) connections: Connections,
    /// Names and addresses of nodes that may know who leads.
    pub(super) contacts: Vec<Arc<str>>,
    pub(super) clocks: Clocks,
    /// Whether this node, where it leads, can have something agreed.
    pub(super) quorum: bool,
}

impl Submitter {
    /// Brings a proposal of this node's own to the leader: by way of whoever
    /// answers, if this node does not know who leads, or only who once did.
    pub(super) async fn submit(self, request: SubmitRequest) -> SubmitReply {
        let answer = self.pass_on(request.clone()).await;
        let (mut no_leader, mut stranger) = match answer.outcome() {
            Outcome::NoLeader => (Some(answer), None),
            Outcome::WrongCluster => (None, Some(answer)),
            _ => return answer,
        };
        let mut belongs = false;
        for contact in self.all_contacts().await {
            let Ok(answer) = self.ask(&contact, request.clone(), CONTACT_TIMEOUT).await else {
                continue;
            };
            match answer.outcome() {
                Outcome::NoLeader => {
                    belongs = true;
                    no_leader = Some(answer);
                }
                // An address may have become another one's. The others have not.
                Outcome::WrongCluster => stranger = Some(answer),
                _ => return answer,
            }
        }
        stranger
            .filter(|_| !belongs)
            .or(no_leader)
            .unwrap_or_else(|| reply(Outcome::NoLeader, "nobody answers"))
    }

    /// Decides on a proposal if this node leads, and else hands it to the node
    /// that does, unless somebody else has already.
    pub(super) async fn pass_on(&self, mut request: SubmitRequest) -> SubmitReply {
        if *request.cluster != *self.me.cluster {
            return reply(Outcome::WrongCluster, &*self.me.cluster);
        }
        let leader = self.metrics.borrow().current_leader;
        match leader {
            Some(leader) if leader == self.me.node => self.lead(request).await,
            Some(leader) if !request.passed_on => match self.address_of(leader) {
                Some(address) => {
                    request.passed_on = true;
                    let answer = self.ask(&address, request, SUBMIT_TIMEOUT).await;
                    answer.unwrap_or_else(|reason| reply(Outcome::NoLeader, reason))
                }
                None => reply(Outcome::NoLeader, "the leader's address is not known"),
            },
            _ => reply(
                Outcome::NoLeader,
                "no node is known to lead the cluster, as without a quorum",
            ),
        }
    }

    /// The addresses of all nodes that may know who leads. A name may stand for
    /// several, this node among them.
    async fn all_contacts(&self) -> BTreeSet<Arc<str>> {
        let view = self.agreed.borrow().clone();
        let members = view.nodes.values().map(|member| member.address.clone());
        let mut contacts: BTreeSet<_> = members.collect();
        let names = self.contacts.iter();
        let behind_names = join_all(names.map(|name| self.connections.look_up(name))).await;
        contacts.extend(behind_names.into_iter().flatten());
        contacts.remove(&self.me.address);
        contacts
    }

    fn address_of(&self, node: NodeId) -> Option<Arc<str>> {
        let view = self.agreed.borrow();
        if let Some(member) = view.nodes.get(&node) {
            return Some(member.address.clone());
        }
        let metrics = self.metrics.borrow();
        let membership = metrics.membership_config.membership();
        membership
            .get_node(&node)
            .map(|node| node.addr.as_str().into())
    }

    /// What somebody answers, or why there is no answer.
    async fn ask(
        &self,
        address: &Arc<str>,
        request: SubmitRequest,
        patience: Duration,
    ) -> Result<SubmitReply, String> {
        let peer = self.connections.peer(address);
        let mut peer = peer.map_err(|error| error.to_string())?;
        let answer = timeout(patience, peer.submit(request)).await;
        let answer = answer.map_err(|_| format!("{address} did not answer in time"))?;
        let answer = answer.map_err(|status| status.to_string())?;
        Ok(answer.into_inner())
    }

    async fn lead(&self, request: SubmitRequest) -> SubmitReply {
        if !self.quorum {
            return reply(Outcome::NoLeader, "too few voters answer the leader");
        }
        let formation = self.agreed.borrow().formation;
        if request.formation != 0 && formation == 0 {
            return reply(Outcome::NoLeader, "the leader is still reading its own log");
        }
        if request.formation != 0 && request.formation != formation {
            return reply(
                Outcome::WrongCluster,
                format!("{} (of the same name, formed apart)", self.me.cluster),
            );
        }
        let (node, boot) = (NodeId(request.node), request.boot);
        let command = match request.change {
            Some(submit_request::Change::Announce(announce)) => {
                if let Err(error) = check_address(&announce.address) {
                    return reply(Outcome::Invalid, error.to_string());
                }
                let address: Arc<str> = announce.address.into();
                let member = self.agreed.borrow().nodes.get(&node).cloned();
                if member.is_some_and(|member| member.boot == boot && member.address == address) {
                    return reply(Outcome::Done, "it is up already");
                }
                // From now on it is expected to answer. Not again before it is taken
                // out: it may be one that only it can reach.
                self.clocks.answered(node);
                Command::NodeUp {
                    node,
                    boot,
                    address,
                }
            }
            Some(submit_request::Change::Receive(receive)) => Command::Receive {
                node,
                boot,
                register: receive
                    .register
                    .into_iter()
                    .map(|registration| (registration.namespace.into(), registration.label.into()))
                    .collect(),
                unregister: receive.unregister.into_iter().map(Arc::from).collect(),
            },
            Some(submit_request::Change::Leave(_)) => {
                return self.let_go(node, boot).await;
            }
            None => return reply(Outcome::Invalid, "it asks for nothing that is known here"),
        };
        write(&self.raft, command).await
    }

    /// Takes a node out. It may go once the membership without it is committed:
    /// then the others can decide without its vote, and nobody calls on it any
    /// more. A leader may go without its vote, for it is the next one that will
    /// forget it. The last node of all just goes.
    async fn let_go(&self, node: NodeId, boot: u64) -> SubmitReply {
        let answer = write(&self.raft, Command::NodeDown { node, boot }).await;
        if answer.outcome() != Outcome::Done {
            return answer;
        }
        let (mut metrics, mut agreed) = (self.metrics.clone(), self.agreed.clone());
        let myself = node == self.me.node;
        let out = metrics.wait_for(|metrics| {
            let stored = &metrics.membership_config;
            let membership = stored.membership();
            let belongs = match myself {
                true => membership.voter_ids().any(|voter| voter == node),
                false => membership.get_node(&node).is_some(),
            };
            let settled = membership.get_joint_config().len() == 1;
            !belongs && settled && *stored.log_id() <= metrics.last_applied
        });
        let last = agreed.wait_for(|view| view.nodes.is_empty());
        let dispensable = async {
            tokio::select! {
                _ = out => {}
                _ = last => {}
            }
        };
        match timeout(SUBMIT_TIMEOUT, dispensable).await {
            Ok(()) => answer,
            Err(_) => reply(Outcome::TimedOut, "nobody has taken over the node's vote"),
        }
    }
}

#[cfg(test)]
mod tests {
    use openraft::{BasicNode, ServerState};

    use super::*;
    use crate::{
        builder::Data,
        proto::Announce,
        raft::{Storage, config, network::Network},
        transport::Tcp,
    };

    /// The submitter of a node that leads a cluster of its own.
    async fn leader() -> Submitter {
        let storage = Storage::open(Data::Memory, "c").await.unwrap();
        let me = Identity {
            cluster: "c".into(),
            node: storage.node,
            boot: storage.boot,
            address: "127.0.0.1:1".into(),
        };
        let connections = Connections::new(Arc::new(Tcp));
        let clocks = Clocks::new();
        let network = Network {
            cluster: me.cluster.clone(),
            connections: connections.clone(),
            agreed: storage.agreed(),
            clocks: clocks.clone(),
            without_quorum: Arc::default(),
        };
        let agreed = storage.agreed();
        let config = Arc::new(config(&me));
        let (store, machine) = (storage.store, storage.state_machine);
        let raft = Raft::new(me.node, config, network, store, machine).await;
        let raft = raft.unwrap();
        let members = [(me.node, BasicNode::new(&me.address))];
        raft.initialize(std::collections::BTreeMap::from(members))
            .await
            .unwrap();
        let mut metrics = raft.metrics();
        let leads = metrics.wait_for(|metrics| metrics.state == ServerState::Leader);
        leads.await.unwrap();
        Submitter {
            me,
            raft,
            metrics,
            agreed,
            connections,
            contacts: Vec::new(),
            clocks,
            quorum: true,
        }
    }

    fn announce(submitter: &Submitter) -> SubmitRequest {
        SubmitRequest {
            cluster: "c".to_owned(),
            node: submitter.me.node.get(),
            boot: submitter.me.boot,
            change: Some(submit_request::Change::Announce(Announce {
                address: "127.0.0.1:1".to_owned(),
            })),
            ..SubmitRequest::default()
        }
    }

    #[actix::test]
    async fn a_leader_without_a_quorum_writes_nothing() {
        let mut leader = leader().await;
        leader.quorum = false;
        let before = leader.metrics.borrow().last_log_index;
        let answer = leader.pass_on(announce(&leader)).await;
        assert_eq!(answer.outcome(), Outcome::NoLeader);
        assert_eq!(leader.metrics.borrow().last_log_index, before);
        leader.raft.shutdown().await.unwrap();
    }

    #[actix::test]
    async fn what_is_agreed_already_is_not_written_again() {
        let leader = leader().await;
        let answer = leader.pass_on(announce(&leader)).await;
        assert_eq!(answer.outcome(), Outcome::Done);
        let mut agreed = leader.agreed.clone();
        let up = agreed.wait_for(|view| view.is_up(leader.me.node, leader.me.boot));
        up.await.unwrap();
        let before = leader.metrics.borrow().last_log_index;
        let answer = leader.pass_on(announce(&leader)).await;
        assert_eq!(answer.outcome(), Outcome::Done);
        assert_eq!(leader.metrics.borrow().last_log_index, before);
        leader.raft.shutdown().await.unwrap();
    }

    #[actix::test]
    async fn who_is_up_is_not_heard_for_announcing_itself_again() {
        let leader = leader().await;
        let heard = || leader.clocks.heard([leader.me.node].into_iter()).len();
        let announced = || async {
            let answer = leader.pass_on(announce(&leader)).await;
            assert_eq!(answer.outcome(), Outcome::Done);
        };
        announced().await;
        assert_eq!(heard(), 1);
        let mut agreed = leader.agreed.clone();
        let up = agreed.wait_for(|view| view.is_up(leader.me.node, leader.me.boot));
        up.await.unwrap();
        leader.clocks.restart();
        announced().await;
        assert_eq!(heard(), 0);
        leader.raft.shutdown().await.unwrap();
    }

    #[actix::test]
    async fn a_leader_that_has_not_read_its_log_refuses_nobody_for_good() {
        let leader = leader().await;
        let mut request = announce(&leader);
        request.formation = 7;
        let answer = leader.pass_on(request).await;
        assert_eq!(answer.outcome(), Outcome::NoLeader);
        leader.raft.shutdown().await.unwrap();
    }
}
