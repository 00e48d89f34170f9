//! The control plane: the one module that knows openraft.
//!
//! [`RaftActor`] owns the Raft of a node. It is told what the node's inbox
//! *wants* to receive through one watch and publishes what the cluster has
//! *agreed* through another; in between it proposes until the two are equal.
//! On the leader it also keeps the membership as `policy` wants it.

mod clocks;
mod election;
mod formation;
mod membership;
mod network;
mod policy;
mod requests;
mod state_machine;
mod store;
mod submit;
mod types;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use actix::prelude::*;
use openraft::{Config, ServerState, SnapshotPolicy};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};
use tracing::{debug, error, info, warn};

use self::{
    clocks::Clocks,
    election::{Election, LEASE},
    formation::{Formation, Way},
    network::Network,
    state_machine::StateMachine,
    store::Store,
    submit::{SUBMIT_TIMEOUT, Submitter},
    types::{Metrics, Raft},
};
pub(crate) use self::{
    formation::OtherCluster,
    requests::{Found, Hello, Rpc, RpcError, Submit},
    store::StoreError,
};
use crate::{
    proto::{self, SubmitRequest, submit_reply::Outcome, submit_request},
    transport::Connections,
    view::{Command, Identity, Member, NodeId, View},
};

/// Namespaces that a node wants to receive, with their types' labels.
pub(crate) type Wanted = BTreeMap<Arc<str>, Arc<str>>;

const HEARTBEAT: Duration = Duration::from_millis(250);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the actor looks whether something is left to do that no event
/// tells of: a proposal that failed, a learner that has caught up.
const TICK: Duration = Duration::from_millis(100);
/// After a proposal has been agreed, how long to wait for the node's own log to
/// bring it before it is proposed again.
const ECHO_TIMEOUT: Duration = Duration::from_secs(1);
/// The pauses after proposals that fail: the first one, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Whoever has not heard from a leader for so long may have been evicted, and
/// asks to be taken in again.
const RETURN_AFTER: Duration = Duration::from_secs(3);
/// A leader that no quorum has answered for so long proposes nothing more:
/// openraft's would go on filling its log.
pub(crate) const QUORUM_TIMEOUT: Duration = Duration::from_secs(2);
const LEAVE: submit_request::Change = submit_request::Change::Leave(proto::Leave {});
/// Entries between two snapshots, and kept after one for those who lag.
const SNAPSHOT_EVERY: u64 = 2_000;
const KEPT_AFTER_SNAPSHOT: u64 = 500;

/// What a Raft is started from.
pub(crate) struct Storage {
    store: Store,
    state_machine: StateMachine,
    agreed: watch::Receiver<Arc<View>>,
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
}

impl Storage {
    /// Opens the storage and counts a new boot. Blocks on the disk.
    pub(crate) fn open(data_dir: Option<&Path>) -> Result<Self, StoreError> {
        let (store, identity) = Store::open(data_dir)?;
        let (state_machine, agreed) = StateMachine::load(store.clone())?;
        Ok(Self {
            store,
            state_machine,
            agreed,
            node: identity.node,
            boot: identity.boot,
        })
    }

    pub(crate) fn agreed(&self) -> watch::Receiver<Arc<View>> {
        self.agreed.clone()
    }
}

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
    /// Set where the node cannot come to belong to the cluster of its peers.
    pub(crate) refused: Option<Refusal>,
}

/// Why a node cannot belong to the cluster of its peers.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    pub(crate) peer: Arc<str>,
    pub(crate) cluster: String,
}

/// The settings of the control plane.
pub(crate) struct Settings {
    pub(crate) me: Identity,
    pub(crate) peers: Vec<Arc<str>>,
    pub(crate) max_voters: usize,
    pub(crate) founders: usize,
    pub(crate) connections: Connections,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) standing: watch::Sender<Standing>,
}

pub(crate) struct RaftActor {
    me: Identity,
    raft: Raft,
    store: Store,
    formation: Arc<Formation>,
    max_voters: usize,
    network: Network,
    election: Election,
    connections: Connections,
    wanted: watch::Receiver<Wanted>,
    agreed: watch::Receiver<Arc<View>>,
    metrics: watch::Receiver<Metrics>,
    standing: watch::Sender<Standing>,
    /// When a leader's entries were last taken.
    heard_leader: watch::Sender<Option<Instant>>,
    /// Whom this node has formed the cluster with, if it has.
    founders: Vec<(NodeId, Member)>,
    /// A proposal of this node's own is under way.
    proposing: bool,
    /// The last one that was agreed, until its echo is due.
    proposed: Option<(submit_request::Change, Instant)>,
    /// After one that failed: when to try again, and how long to wait then.
    retry: Option<(Instant, Duration)>,
    started: Instant,
    /// Since when this node leads, if it does.
    led_since: Option<Instant>,
    /// A change of the membership is under way.
    changing: bool,
    /// The node is on its way out, and registers nothing any more.
    leaving: bool,
    /// Dropped when it is out.
    left: Option<oneshot::Sender<()>>,
    /// Raft has stopped by itself, and that has been told.
    failed: bool,
}

impl RaftActor {
    /// Starts Raft on what is stored, and the actor on the current arbiter.
    pub(crate) async fn launch(
        storage: Storage,
        settings: Settings,
    ) -> Result<Addr<Self>, StoreError> {
        let agreed = storage.agreed.clone();
        let network = Network {
            cluster: settings.me.cluster.clone(),
            connections: settings.connections.clone(),
            agreed: agreed.clone(),
            clocks: Clocks::new(),
            without_quorum: Arc::default(),
        };
        let raft = Raft::new(
            settings.me.node,
            Arc::new(config(&settings.me)),
            network.clone(),
            storage.store.clone(),
            storage.state_machine,
        )
        .await
        .map_err(|fatal| StoreError::Io(std::io::Error::other(fatal)))?;
        let formed = raft.is_initialized().await;
        let formed = formed.map_err(|fatal| StoreError::Io(std::io::Error::other(fatal)))?;

        let formation = Formation::new(
            settings.me.clone(),
            &settings.peers,
            settings.founders,
            settings.connections.clone(),
        );
        if formed {
            formation.formed();
        }
        let actor = Self {
            formation: Arc::new(formation),
            me: settings.me,
            max_voters: settings.max_voters,
            network,
            election: Election::new(),
            connections: settings.connections,
            wanted: settings.wanted,
            metrics: raft.metrics(),
            standing: settings.standing,
            heard_leader: watch::Sender::new(None),
            agreed,
            raft,
            store: storage.store,
            founders: Vec::new(),
            proposing: false,
            proposed: None,
            retry: None,
            started: Instant::now(),
            led_since: None,
            changing: false,
            leaving: false,
            left: None,
            failed: false,
        };
        Ok(actor.start())
    }

    /// Looks for a cluster, where the node has none yet.
    fn find_cluster(&self, ctx: &mut Context<Self>) {
        let formation = self.formation.clone();
        let (raft, me, max_voters) = (self.raft.clone(), self.me.clone(), self.max_voters);
        let found = async move {
            let way = formation.find().await?;
            if let Way::Form(members) = &way {
                membership::form(&raft, &me, members, max_voters).await;
                formation.formed();
            }
            Ok(way)
        };
        ctx.spawn(found.into_actor(self).map(
            |way: Result<Way, OtherCluster>, actor, ctx| match way {
                Ok(Way::Form(founders)) => actor.founders = founders.into_iter().collect(),
                Ok(Way::Join) => actor.turn(ctx),
                Err(OtherCluster { peer, cluster }) => actor.refuse(peer, cluster),
            },
        ));
    }

    /// Tells a person if peers of this node, which belongs to a cluster, belong
    /// to another one.
    fn look_for_strangers(&self, ctx: &mut Context<Self>) {
        let (formation, mut agreed) = (self.formation.clone(), self.agreed.clone());
        let asked = async move {
            let formed = agreed.wait_for(|view| view.formation != 0).await;
            let number = formed.ok().map(|view| view.formation)?;
            formation.strangers(number).await.err()
        };
        ctx.spawn(asked.into_actor(self).map(|stranger, actor, _| {
            if let Some(OtherCluster { peer, cluster }) = stranger {
                warn!(
                    node = %actor.me.node,
                    cluster = %actor.me.cluster,
                    %peer,
                    other = %cluster,
                    "a peer belongs to another cluster: they are kept apart"
                );
            }
        }));
    }

    fn refuse(&self, peer: Arc<str>, cluster: String) {
        warn!(
            node = %self.me.node,
            cluster = %self.me.cluster,
            %peer,
            other = %cluster,
            "a peer belongs to another cluster"
        );
        self.standing
            .send_modify(|standing| standing.refused = Some(Refusal { peer, cluster }));
    }

    /// Does what is due. Called on every event, and on a tick.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        self.note_leadership();
        self.publish_standing();
        self.tell_of_failure();
        self.stand(ctx);
        self.propose(ctx);
        self.adjust_membership(ctx);
    }

    fn note_leadership(&mut self) {
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

    fn publish_standing(&mut self) {
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
        });
    }

    /// Whether this node, where it leads, can have something agreed.
    fn has_quorum(&self) -> bool {
        let acknowledged = self.heard(&self.metrics.borrow());
        let last = acknowledged.max(self.led_since);
        last.is_some_and(|last| last.elapsed() < QUORUM_TIMEOUT)
    }

    /// Whether no leader has been heard of for so long that this node may have
    /// been evicted, and the log that would tell it passes it by.
    fn may_be_evicted(&self) -> bool {
        let heard = self.heard(&self.metrics.borrow());
        heard.unwrap_or(self.started).elapsed() > RETURN_AFTER
    }

    /// Raft stops for good when its storage fails. The data plane goes on with
    /// the last view, so somebody has to be told.
    fn tell_of_failure(&mut self) {
        if let Err(fatal) = &self.metrics.borrow().running_state
            && !self.failed
        {
            self.failed = true;
            error!(node = %self.me.node, error = %fatal, "Raft has stopped: restart the node");
        }
    }

    fn leads(&self) -> bool {
        self.metrics.borrow().state == ServerState::Leader
    }

    /// What this node has to have agreed next, if anything.
    fn missing(&self) -> Option<submit_request::Change> {
        let Identity { node, boot, .. } = self.me;
        let view = self.agreed.borrow();
        if self.leaving {
            return self.left.is_some().then_some(LEAVE);
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

    fn propose(&mut self, ctx: &mut Context<Self>) {
        if self.proposing || !self.formation.is_settled() {
            return;
        }
        let Some(change) = self.missing() else {
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
                        actor.refuse("the leader".into(), reply.detail);
                    }
                    let pause = actor.retry.map_or(FIRST_PAUSE, |(_, pause)| pause * 2);
                    let pause = pause.min(LONGEST_PAUSE);
                    actor.retry = Some((Instant::now() + pause, pause));
                }
            }
        }));
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

    fn submitter(&self) -> Submitter {
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

fn config(me: &Identity) -> Config {
    let millis = |duration: Duration| duration.as_millis() as u64;
    Config {
        cluster_name: me.cluster.to_string(),
        heartbeat_interval: millis(HEARTBEAT),
        enable_elect: false,
        // How long a vote may take, and the lease.
        election_timeout_min: millis(LEASE) - 1,
        election_timeout_max: millis(LEASE),
        install_snapshot_timeout: millis(SNAPSHOT_TIMEOUT),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        replication_lag_threshold: SNAPSHOT_EVERY * 2,
        max_in_snapshot_log_to_keep: KEPT_AFTER_SNAPSHOT,
        ..Config::default()
    }
}

impl Actor for RaftActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        match self.formation.is_settled() {
            true => self.look_for_strangers(ctx),
            false => self.find_cluster(ctx),
        }
        ctx.add_stream(changes(self.wanted.clone()));
        ctx.add_stream(changes(self.agreed.clone()));
        ctx.add_stream(changes(self.metrics.clone()));
        ctx.run_interval(TICK, |actor, ctx| actor.turn(ctx));
    }
}

/// Something that the actor watches has changed.
struct Changed;

fn changes<T: Send + Sync + 'static>(receiver: watch::Receiver<T>) -> impl Stream<Item = Changed> {
    futures_util::stream::unfold(receiver, |mut receiver| async move {
        receiver.changed().await.ok()?;
        Some((Changed, receiver))
    })
}

impl StreamHandler<Changed> for RaftActor {
    fn handle(&mut self, _: Changed, ctx: &mut Self::Context) {
        self.turn(ctx);
    }

    /// The watches end with the node; the actor is stopped by message.
    fn finished(&mut self, _: &mut Self::Context) {}
}

/// Takes the node out of the cluster. Answers when the cluster can do without
/// it, or when it is clear that this cannot be agreed now.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct LeaveCluster;

impl Handler<LeaveCluster> for RaftActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, _: LeaveCluster, ctx: &mut Self::Context) -> Self::Result {
        self.leaving = true;
        let (left, out) = oneshot::channel();
        // Without a cluster there is nothing to leave.
        self.left = self.formation.is_settled().then_some(left);
        self.turn(ctx);
        let node = self.me.node;
        Box::pin(async move {
            if timeout(SUBMIT_TIMEOUT, out).await.is_err() {
                warn!(%node, "the cluster has not agreed in time that the node leaves");
            }
        })
    }
}

/// Stops Raft and the actor.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct StopRaft;

impl Handler<StopRaft> for RaftActor {
    type Result = AtomicResponse<Self, ()>;

    fn handle(&mut self, _: StopRaft, _: &mut Self::Context) -> Self::Result {
        let raft = self.raft.clone();
        let stopped = async move {
            if let Err(error) = raft.shutdown().await {
                warn!(%error, "Raft had failed before it was stopped");
            }
        };
        AtomicResponse::new(Box::pin(
            stopped.into_actor(self).map(|(), _, ctx| ctx.stop()),
        ))
    }
}
