//! How a node without a past finds its cluster, or forms it with others.
//!
//! A new node asks the peers that it was given, and those that they name. If
//! any belongs to a formed cluster, the node joins that one. If all of them
//! answer and none does, the one with the lowest id asks the others for leave
//! and forms the cluster; the others then find it formed. A peer's name may stand
//! for several nodes, and is looked up again each time.
//!
//! **Invariant: of nodes that can name each other, one forms a cluster.** A
//! founder needs the leave of every node that it knows, and nobody gives leave
//! who founds himself, is formed, or knows a node that the founder has not
//! asked. So that a wiped node can never form a second cluster beside the
//! first, silence counts as a refusal: all the peers have to answer.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info};

use crate::{
    connections::Connections,
    proto::{FoundReply, FoundRequest, HelloReply, HelloRequest},
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

/// A peer belongs to another cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OtherCluster {
    pub(crate) peer: Arc<str>,
    pub(crate) cluster: String,
}

/// What came of asking everybody once.
#[derive(Default)]
struct Round {
    /// Names that stand for nobody, and addresses where nobody answers.
    silent: Vec<Arc<str>>,
    /// Members of a cluster that is formed, and which forming that was.
    formed: Vec<(Arc<str>, u64)>,
    others: Others,
}

/// Nodes that are new: where they were asked, and what they answered.
type Others = BTreeMap<NodeId, (Arc<str>, HelloReply)>;

/// Whether these are two clusters. Nought stands for one that is not known yet.
fn apart(one: u64, other: u64) -> bool {
    one != 0 && other != 0 && one != other
}

pub(crate) struct Formation {
    me: Identity,
    /// How many nodes it takes to form a cluster, this one included.
    founders: usize,
    connections: Connections,
    state: Mutex<State>,
}

struct State {
    /// Addresses of other nodes: those that were configured, and those that
    /// they named.
    known: BTreeSet<Arc<str>>,
    /// The addresses under which this node itself has been found to be known.
    own: BTreeSet<Arc<str>>,
    /// Who did not answer when all were asked last.
    silent: Vec<Arc<str>>,
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
    pub(crate) fn new(
        me: Identity,
        peers: &[Arc<str>],
        founders: usize,
        connections: Connections,
    ) -> Self {
        let own = BTreeSet::from([me.address.clone()]);
        let known = peers.iter().filter(|peer| !own.contains(*peer));
        let known = known.cloned().collect();
        Self {
            me,
            founders,
            connections,
            state: Mutex::new(State {
                known,
                own,
                silent: Vec::new(),
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

    /// A member of a cluster has been found there.
    fn joining(&self, peer: &Arc<str>) {
        let mut state = self.state();
        state.known.insert(peer.clone());
        if state.standing == Standing::New {
            state.standing = Standing::Joining;
        }
    }

    /// Has the node look for its cluster anew, where it has found one and could not
    /// join it: that one may be gone.
    pub(crate) fn start_over(&self) -> bool {
        let mut state = self.state();
        let joining = state.standing == Standing::Joining;
        if joining {
            state.standing = Standing::New;
        }
        joining
    }

    /// The names and addresses where nobody answers.
    pub(crate) fn silent(&self) -> Vec<Arc<str>> {
        self.state().silent.clone()
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
            let names = self.known();
            let Round {
                silent,
                formed,
                others,
            } = self.ask_all(&names).await?;
            if let [(first, formation), rest @ ..] = &formed[..] {
                if let Some((peer, _)) = rest.iter().find(|(_, other)| apart(*other, *formation)) {
                    return Err(self.formed_apart(peer));
                }
                self.joining(first);
                return Ok(Way::Join);
            }
            self.state().silent.clone_from(&silent);
            let news = self.learn(&others);
            if silent.is_empty()
                && !news
                && self.is_first(&others)
                && others.len() + 1 >= self.founders
                && self.ask_for_leave(&names, &others).await
            {
                let members = others.into_iter().map(|(node, (_, reply))| {
                    let (address, boot) = (reply.address.into(), reply.boot);
                    (node, Member { address, boot })
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

    /// Asks all nodes behind these names once.
    async fn ask_all(&self, names: &[Arc<str>]) -> Result<Round, OtherCluster> {
        let mut round = Round::default();
        let answers = names.iter().map(|name| async {
            let addresses = self.connections.look_up(name).await;
            let answers = join_all(addresses.iter().map(|peer| self.ask(peer))).await;
            addresses.into_iter().zip(answers).collect::<Vec<_>>()
        });
        for (name, answers) in names.iter().zip(join_all(answers).await) {
            if answers.is_empty() {
                round.silent.push(name.clone());
                continue;
            }
            // Of those on this machine one that answers stands for all: `localhost` is
            // often two addresses, of which a node listens at one.
            let here = |peer: &str| {
                peer.parse()
                    .is_ok_and(|at: SocketAddr| at.ip().is_loopback())
            };
            let is_here = answers
                .iter()
                .any(|(peer, answer)| answer.is_some() && here(peer));
            let mut own = true;
            for (peer, answer) in answers {
                match answer {
                    None if is_here && here(&peer) => continue,
                    Some(reply) if reply.node == self.me.node.get() => {
                        self.state().own.insert(peer);
                        continue;
                    }
                    None => round.silent.push(peer),
                    Some(reply) if *reply.cluster != *self.me.cluster => {
                        let cluster = reply.cluster;
                        return Err(OtherCluster { peer, cluster });
                    }
                    Some(reply) if reply.formed => round.formed.push((peer, reply.formation)),
                    Some(reply) => {
                        round.others.insert(reply.node.into(), (peer, reply));
                    }
                }
                own = false;
            }
            if own {
                let mut state = self.state();
                state.known.remove(name);
                state.own.insert(name.clone());
            }
        }
        Ok(round)
    }

    fn formed_apart(&self, peer: &Arc<str>) -> OtherCluster {
        OtherCluster {
            peer: peer.clone(),
            cluster: format!("{} (of the same name, formed apart)", self.me.cluster),
        }
    }

    /// Whether any peer that was configured belongs to another cluster than
    /// this node, which has one.
    pub(crate) async fn strangers(&self, formation: u64) -> Result<(), OtherCluster> {
        let round = self.ask_all(&self.known()).await?;
        match round
            .formed
            .iter()
            .find(|(_, other)| apart(*other, formation))
        {
            Some((peer, _)) => Err(self.formed_apart(peer)),
            None => Ok(()),
        }
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
    fn learn(&self, others: &Others) -> bool {
        let mut state = self.state();
        let before = state.known.len();
        for name in others.values().flat_map(|(_, reply)| &reply.known) {
            if !state.own.contains(name.as_str()) {
                state.known.insert(name.as_str().into());
            }
        }
        state.known.len() > before
    }

    /// Whether it is for this node to form a cluster with the others, and not
    /// for one with a lower id, which would have to know this one.
    fn is_first(&self, others: &Others) -> bool {
        let state = self.state();
        others.iter().all(|(node, (_, reply))| {
            let mut names = reply.known.iter();
            self.me.node < *node || !names.any(|name| state.own.contains(name.as_str()))
        })
    }

    async fn ask_for_leave(&self, asked: &[Arc<str>], others: &Others) -> bool {
        let asked: Vec<String> = {
            let mut state = self.state();
            // Not if leave was given to another one in the meantime.
            let known = state.known.iter().all(|name| asked.contains(name));
            if state.standing != Standing::New || !known {
                return false;
            }
            state.standing = Standing::Founding;
            // By every name that they may have for each other and for this one.
            let names = state.known.iter().chain(&state.own).map(|name| &**name);
            let peers = others.values();
            let addresses = peers.flat_map(|(peer, reply)| [&**peer, &*reply.address]);
            names.chain(addresses).map(str::to_owned).collect()
        };
        let requests = others.values().map(|(peer, _)| {
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
    use crate::transport::Tcp;

    fn formation(node: u64, peers: &[&str]) -> Formation {
        let me = Identity {
            cluster: "c".into(),
            node: NodeId(node),
            boot: 1,
            address: format!("n{node}:1").into(),
        };
        let peers: Vec<Arc<str>> = peers.iter().map(|peer| (*peer).into()).collect();
        Formation::new(me, &peers, 1, Connections::new(Arc::new(Tcp)))
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
    fn leave_is_given_again_by_who_could_not_join() {
        let node = formation(2, &["n1:1"]);
        let request = request(1, &["n1:1", "n2:1"]);
        node.joining(&"n1:1".into());
        assert!(!node.found(&request).granted);
        assert!(node.start_over());
        assert!(node.found(&request).granted);
        node.formed();
        assert!(!node.start_over());
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
