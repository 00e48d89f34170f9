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
mod propose;
mod requests;
mod standing;
mod state_machine;
mod store;
mod submit;
mod types;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use actix::prelude::*;
use openraft::{Config, SnapshotPolicy};
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, timeout},
};
use tracing::warn;

use self::{
    clocks::Clocks,
    election::{Election, LEASE},
    formation::{Formation, Way},
    network::Network,
    state_machine::StateMachine,
    store::Store,
    submit::SUBMIT_TIMEOUT,
    types::{Metrics, Raft},
};
pub(crate) use self::{
    formation::OtherCluster,
    requests::{Found, Hello, Rpc, RpcError, Submit},
    standing::{QUORUM_TIMEOUT, Standing},
    store::StoreError,
};
use crate::{
    builder::Data,
    connections::Connections,
    proto::submit_request,
    view::{Identity, Member, NodeId, View},
};

/// Namespaces that a node wants to receive, with their types' labels.
pub(crate) type Wanted = BTreeMap<Arc<str>, Arc<str>>;

/// How often the followers hear from their leader, at the least; and how often the
/// actor looks whether something is left to do that no event tells of: a proposal
/// that failed, a learner that has caught up.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// What is sent to a follower has so long to be answered. What TCP has lost, it
/// sends again after 200 ms at the least, and all that follows has to wait: who
/// gives up sooner gains nothing.
const APPEND_TIMEOUT: Duration = Duration::from_millis(450);
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(10);
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
    /// Opens the storage of a node of this cluster, and counts a new boot.
    pub(crate) async fn open(data: Data, cluster: &str) -> Result<Self, StoreError> {
        let (store, identity) = Store::open(data, cluster.into()).await?;
        let (state_machine, agreed) = StateMachine::load(store.clone())?;
        store.tell(identity.node)?;
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
    /// What is agreed was found to be what is wanted. It stays so until one of
    /// them changes.
    content: bool,
    /// The last one that was agreed, until its echo is due.
    proposed: Option<(submit_request::Change, Instant)>,
    /// Why the last one was not agreed, if it was not.
    failure: Option<String>,
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
            content: false,
            proposed: None,
            failure: None,
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
                Err(other) => actor.refuse(other),
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
            if let Some(other) = stranger {
                actor.tell_of(&other);
            }
        }));
    }

    fn refuse(&self, other: OtherCluster) {
        if self.standing.borrow().refused.as_ref() != Some(&other) {
            self.tell_of(&other);
            let set = |standing: &mut Standing| standing.refused = Some(other);
            self.standing.send_modify(set);
        }
    }

    fn tell_of(&self, OtherCluster { peer, cluster }: &OtherCluster) {
        warn!(
            node = %self.me.node,
            cluster = %self.me.cluster,
            %peer,
            other = %cluster,
            "a peer belongs to another cluster: they are kept apart"
        );
    }

    fn send_heartbeat(&self, ctx: &mut Context<Self>) {
        if self.leads() {
            let raft = self.raft.clone();
            // Where Raft has stopped, that is told elsewhere.
            let sent = async move { drop(raft.trigger().heartbeat().await) };
            ctx.spawn(sent.into_actor(self));
        }
    }

    /// Does what is due. Called on every event, and with every heartbeat.
    fn turn(&mut self, ctx: &mut Context<Self>) {
        self.note_leadership();
        self.publish_standing();
        self.tell_of_failure();
        self.stand(ctx);
        self.propose(ctx);
        self.adjust_membership(ctx);
    }
}

fn config(me: &Identity) -> Config {
    let millis = |duration: Duration| duration.as_millis() as u64;
    Config {
        cluster_name: me.cluster.to_string(),
        enable_elect: false,
        // openraft would look whether one is due every one and a half intervals
        // alone, and takes what is called the interval for the timeout as well.
        enable_heartbeat: false,
        heartbeat_interval: millis(APPEND_TIMEOUT),
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
        ctx.run_interval(HEARTBEAT, |actor, ctx| {
            actor.send_heartbeat(ctx);
            actor.turn(ctx);
        });
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
