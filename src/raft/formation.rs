//! How a node without a past finds its cluster, or forms it with others.
//!
//! A new node asks the peers that it was given, and those that they name. If
//! any belongs to a formed cluster, the node joins that one. If all of them
//! answer and none does, the one with the lowest id asks the others for leave
//! and forms the cluster; the others then find it formed.
//!
//! **Invariant: of nodes that can name each other, one forms a cluster.** A
//! founder needs the leave of every node that it knows, and nobody gives leave
//! who founds himself, is formed, or knows a node that the founder has not
//! asked. So that a wiped node can never form a second cluster beside the
//! first, silence counts as a refusal: all the peers have to answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::{
    proto::{FoundReply, FoundRequest, HelloReply, HelloRequest},
    transport::Connections,
    view::{Identity, Member, NodeId},
};

/// How long a peer may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// The pauses between two rounds: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// How often to tell what is being waited for.
const REPORT_INTERVAL: Duration = Duration::from_secs(5);

/// What a new node has to do to belong to a cluster.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Form it of these nodes: all of them have agreed.
    Form(BTreeMap<NodeId, Member>),
    /// Join the one that a known peer belongs to.
    Join,
}

/// A peer belongs to a cluster with another name.
#[derive(Clone, Debug)]
pub(crate) struct OtherCluster {
    pub(crate) peer: Arc<str>,
    pub(crate) cluster: String,
}

pub(crate) struct Formation {
    me: Identity,
    connections: Connections,
    state: Mutex<State>,
}

struct State {
    /// Addresses of other nodes: those that were configured, and those that
    /// they named.
    known: BTreeSet<Arc<str>>,
    /// The addresses under which this node itself has been found to be known.
    own: BTreeSet<Arc<str>>,
    standing: Standing,
}

/// How far the node has come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    /// It belongs to no cluster.
    New,
    /// It is asking for leave to form one, and so gives none.
    Founding,
    /// It has found one, and asks to be taken in.
    Joining,
    /// It belongs to one.
    Formed,
}

impl Formation {
    pub(crate) fn new(me: Identity, peers: &[Arc<str>], connections: Connections) -> Self {
        let own = BTreeSet::from([me.address.clone()]);
        let known = peers.iter().filter(|peer| !own.contains(*peer));
        let known = known.cloned().collect();
        Self {
            me,
            connections,
            state: Mutex::new(State {
                known,
                own,
                standing: Standing::New,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while peers are counted")
    }

    /// The node belongs to a cluster from now on.
    pub(crate) fn formed(&self) {
        self.state().standing = Standing::Formed;
    }

    /// Whether the node knows where it belongs.
    pub(crate) fn is_settled(&self) -> bool {
        matches!(self.state().standing, Standing::Joining | Standing::Formed)
    }

    /// A member of a cluster has been found.
    fn joining(&self) {
        let mut state = self.state();
        if state.standing == Standing::New {
            state.standing = Standing::Joining;
        }
    }

    pub(crate) fn known(&self) -> Vec<Arc<str>> {
        self.state().known.iter().cloned().collect()
    }

    /// Answers a peer that looks for its cluster.
    pub(crate) fn hello(&self, formation: u64) -> HelloReply {
        let state = self.state();
        HelloReply {
            cluster: self.me.cluster.to_string(),
            node: self.me.node.get(),
            address: self.me.address.to_string(),
            formed: state.standing == Standing::Formed,
            known: state.known.iter().map(|peer| peer.to_string()).collect(),
            formation,
            boot: self.me.boot,
        }
    }

    /// Answers a peer that asks for leave to form the cluster.
    pub(crate) fn found(&self, request: &FoundRequest) -> FoundReply {
        let mut state = self.state();
        let asked = |address: &Arc<str>| request.asked.iter().any(|asked| **asked == **address);
        let granted = request.cluster == *self.me.cluster
            && state.standing == Standing::New
            && state.known.iter().all(asked);
        if granted {
            // Whoever asks for leave later has to have asked this one too.
            state.known.insert(request.address.as_str().into());
        }
        FoundReply { granted }
    }

    /// Looks until there is a way. On `Way::Form`, nobody else is given leave
    /// any more.
    pub(crate) async fn find(&self) -> Result<Way, OtherCluster> {
        let mut pause = FIRST_PAUSE;
        let mut reported = Instant::now();
        while !self.is_settled() {
            let asked = self.known();
            let answers = join_all(asked.iter().map(|peer| self.ask(peer))).await;
            let mut silent = Vec::new();
            let mut others = Vec::new();
            for (peer, answer) in asked.iter().zip(answers) {
                match answer {
                    None => silent.push(peer.clone()),
                    // One of the addresses is this node's own.
                    Some(reply) if reply.node == self.me.node.get() => {
                        let mut state = self.state();
                        state.known.remove(peer);
                        state.own.insert(peer.clone());
                    }
                    Some(reply) if reply.cluster != *self.me.cluster => {
                        let (peer, cluster) = (peer.clone(), reply.cluster);
                        return Err(OtherCluster { peer, cluster });
                    }
                    Some(reply) if reply.formed => {
                        self.joining();
                        return Ok(Way::Join);
                    }
                    Some(reply) => others.push((peer.clone(), reply)),
                }
            }
            let news = self.learn(&others);
            let first = others
                .iter()
                .all(|(_, reply)| self.me.node.get() < reply.node);
            if silent.is_empty() && !news && first && self.ask_for_leave(&others).await {
                let members = others.into_iter().map(|(_, reply)| {
                    let (address, boot) = (reply.address.into(), reply.boot);
                    (NodeId::from(reply.node), Member { address, boot })
                });
                let (address, boot) = (self.me.address.clone(), self.me.boot);
                let myself = (self.me.node, Member { address, boot });
                return Ok(Way::Form(members.chain([myself]).collect()));
            }
            if reported.elapsed() > REPORT_INTERVAL {
                reported = Instant::now();
                info!(
                    node = %self.me.node,
                    unreachable = ?silent,
                    "waiting for all peers, to form the cluster or to join it"
                );
            }
            sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        Ok(Way::Join)
    }

    async fn ask(&self, peer: &Arc<str>) -> Option<HelloReply> {
        let request = HelloRequest {
            cluster: self.me.cluster.to_string(),
            node: self.me.node.get(),
            address: self.me.address.to_string(),
        };
        let mut client = self.connections.peer(peer).ok()?;
        match timeout(ANSWER_TIMEOUT, client.hello(request)).await {
            Ok(Ok(reply)) => Some(reply.into_inner()),
            Ok(Err(status)) => {
                debug!(%peer, %status, "a peer does not answer");
                None
            }
            Err(_) => None,
        }
    }

    /// Takes in the peers that others have named. Whether any is new.
    fn learn(&self, others: &[(Arc<str>, HelloReply)]) -> bool {
        let mut state = self.state();
        let before = state.known.len();
        for name in others.iter().flat_map(|(_, reply)| &reply.known) {
            if !state.own.contains(name.as_str()) {
                state.known.insert(name.as_str().into());
            }
        }
        state.known.len() > before
    }

    async fn ask_for_leave(&self, others: &[(Arc<str>, HelloReply)]) -> bool {
        let asked: Vec<String> = {
            let mut state = self.state();
            let answered = others.iter().map(|(peer, _)| peer);
            // Not if leave was given to another one in the meantime.
            if state.standing != Standing::New || !state.known.iter().eq(answered) {
                return false;
            }
            state.standing = Standing::Founding;
            // By every name that they may have for each other and for this one.
            let names = state.known.iter().chain(&state.own).map(|name| &**name);
            let addresses = others.iter().map(|(_, reply)| reply.address.as_str());
            names.chain(addresses).map(str::to_owned).collect()
        };
        let requests = others.iter().map(|(peer, _)| {
            let request = FoundRequest {
                cluster: self.me.cluster.to_string(),
                node: self.me.node.get(),
                address: self.me.address.to_string(),
                asked: asked.clone(),
            };
            async move {
                let mut client = self.connections.peer(peer).ok()?;
                let reply = timeout(ANSWER_TIMEOUT, client.found(request)).await;
                Some(reply.ok()?.ok()?.into_inner().granted)
            }
        });
        let granted = join_all(requests)
            .await
            .into_iter()
            .all(|granted| granted == Some(true));
        let mut state = self.state();
        // Another one's cluster may have taken this node in in the meantime.
        let founding = state.standing == Standing::Founding;
        if founding && !granted {
            state.standing = Standing::New;
        }
        founding && granted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formation(node: u64, peers: &[&str]) -> Formation {
        let me = Identity {
            cluster: "c".into(),
            node: NodeId(node),
            boot: 1,
            address: format!("n{node}:1").into(),
        };
        let peers: Vec<Arc<str>> = peers.iter().map(|peer| (*peer).into()).collect();
        Formation::new(me, &peers, Connections::new(0))
    }

    fn request(node: u64, asked: &[&str]) -> FoundRequest {
        FoundRequest {
            cluster: "c".to_owned(),
            node,
            address: format!("n{node}:1"),
            asked: asked.iter().map(|peer| (*peer).to_owned()).collect(),
        }
    }

    #[actix::test]
    async fn a_node_without_peers_forms_a_cluster_at_once() {
        let alone = formation(1, &["n1:1"]);
        let (address, boot) = ("n1:1".into(), 1);
        let myself = BTreeMap::from([(NodeId(1), Member { address, boot })]);
        assert_eq!(alone.find().await.unwrap(), Way::Form(myself));
    }

    #[test]
    fn leave_is_given_only_by_who_is_new() {
        let node = formation(2, &["n1:1"]);
        assert!(node.found(&request(1, &["n1:1", "n2:1"])).granted);
        node.formed();
        assert!(!node.found(&request(1, &["n1:1", "n2:1"])).granted);
    }

    #[test]
    fn leave_is_refused_where_somebody_was_not_asked() {
        let node = formation(2, &["n1:1", "n3:1"]);
        assert!(!node.found(&request(1, &["n1:1", "n2:1"])).granted);
    }

    #[test]
    fn after_leave_was_given_another_founder_has_to_ask_the_first() {
        let node = formation(2, &[]);
        assert!(node.found(&request(1, &["n1:1", "n2:1"])).granted);
        assert!(!node.found(&request(3, &["n2:1", "n3:1"])).granted);
        assert!(node.found(&request(3, &["n1:1", "n2:1", "n3:1"])).granted);
    }

    #[test]
    fn another_cluster_is_given_no_leave() {
        let node = formation(2, &[]);
        let mut other = request(1, &["n1:1", "n2:1"]);
        other.cluster = "d".to_owned();
        assert!(!node.found(&other).granted);
    }
}
