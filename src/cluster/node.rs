//! The life of a node: how it starts, what it does while it runs, and how it
//! ends.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use actix::Addr;
use futures_util::future::join_all;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;
use tracing::{info, warn};

use super::{Node, Shutdown, here::Here};
use crate::{
    broadcast::{self, LARGEST, Relays},
    builder::{Data, Settings, config},
    connections::{Connections, MAX_FRAME, serve},
    dead_letter::DeadLetterOffice,
    delivery::far,
    error::{ShutdownError, StartError},
    inbox::Inbox,
    link::{Links, Room, Target},
    proto::peer_server::PeerServer,
    raft::{self, LeaveCluster, RaftActor, Standing, StopRaft, Storage, StoreError},
    server::Server,
    transport::Listener,
    view::{Identity, NodeId, View},
};

/// How long connections may take to close when the node ends. Their streams
/// have ended by then.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// How long the peers may take to end their links to a node that leaves.
const LINGER: Duration = Duration::from_secs(1);

/// What the handle of a node is made of.
pub(super) struct Parts {
    pub(super) node: Arc<Node>,
    pub(super) commands: mpsc::UnboundedSender<Shutdown>,
    pub(super) routes: Routes,
}

/// A node that has been started.
pub(super) struct Running {
    node: Arc<Node>,
    commands: mpsc::UnboundedReceiver<Shutdown>,
    raft: Addr<RaftActor>,
    connections: Connections,
    /// The links to other nodes.
    tasks: TaskTracker,
    /// The links from other nodes.
    incoming: TaskTracker,
    /// Those of them whose peers have replies to read.
    replying: TaskTracker,
    server: Option<JoinHandle<Result<(), tonic::transport::Error>>>,
}

/// Starts all the parts of a node on the current thread.
pub(super) async fn start(
    settings: Settings,
    with_server: bool,
) -> Result<(Running, Parts), StartError> {
    let listener = match with_server {
        true => Some(listen(&settings).await?),
        false => None,
    };
    let address = advertised(&settings, listener.as_deref())?;
    let storage = open(&settings).await?;
    let me = Identity {
        cluster: settings.cluster_id.as_str().into(),
        node: storage.node,
        boot: storage.boot,
        address: address.as_str().into(),
    };
    info!(node = %me.node, boot = me.boot, cluster = %me.cluster, %address, "node started");

    let connections = Connections::new(settings.transport.clone());
    let (wanted, wanted_receiver) = watch::channel(BTreeMap::new());
    let (standing, standing_receiver) = watch::channel(Standing::default());
    let agreed = storage.agreed();
    let raft_settings = raft::Settings {
        me: me.clone(),
        peers: settings.peer_addresses(),
        max_voters: settings.voters,
        founders: settings.founders,
        connections: connections.clone(),
        wanted: wanted_receiver,
        standing,
    };
    let raft = RaftActor::launch(storage, raft_settings)
        .await
        .map_err(|error| storage_error(&settings, error))?;

    let stop = CancellationToken::new();
    let (tasks, incoming) = (TaskTracker::new(), TaskTracker::new());
    let replying = TaskTracker::new();
    let here = Here::new(stop.clone());
    let inbox = Arc::new(Inbox::new(wanted));
    let relays = Arc::new(Relays::default());
    let links = Links::new(
        me.clone(),
        connections.clone(),
        settings.limits.max_message,
        here.runtime().clone(),
        tasks.clone(),
        stop.clone(),
        Arc::downgrade(&relays) as _,
    );
    let peer_server = PeerServer::new(Server {
        me: me.clone(),
        raft: raft.clone(),
        inbox: inbox.clone(),
        max_message: settings.limits.max_message,
        room: Room::new(settings.assembly, settings.limits.max_message),
        broadcast_room: Room::new(broadcast::ROOM, LARGEST),
        relays: relays.clone(),
        tasks: incoming.clone(),
        replying: replying.clone(),
        links: Mutex::default(),
        stop: stop.clone(),
    })
    .max_decoding_message_size(MAX_FRAME)
    .max_encoding_message_size(usize::MAX);
    let routes = Routes::new(peer_server);
    let server = listener.map(|listener| {
        let routes = routes.clone();
        tokio::spawn(serve(listener, routes, stop.clone().cancelled_owned()))
    });

    let node = Arc::new(Node {
        me,
        settings,
        here,
        inbox,
        relays,
        links: Arc::new(links),
        agreed,
        standing: standing_receiver,
        dead_letters: Arc::new(DeadLetterOffice::new()),
        namespaces: Mutex::default(),
        stop,
    });
    let (commands, receiver) = mpsc::unbounded_channel();
    let running = Running {
        node: node.clone(),
        commands: receiver,
        raft,
        connections,
        tasks,
        incoming,
        replying,
        server,
    };
    let parts = Parts {
        node,
        commands,
        routes,
    };
    Ok((running, parts))
}

async fn listen(settings: &Settings) -> Result<Box<dyn Listener>, StartError> {
    let listening = settings.transport.listen(&settings.addr);
    listening.await.map_err(|source| StartError::Bind {
        address: settings.addr.clone(),
        source,
    })
}

fn advertised(settings: &Settings, listener: Option<&dyn Listener>) -> Result<String, StartError> {
    if let Some(address) = &settings.advertise {
        return Ok(address.clone());
    }
    let address = listener.and_then(|listener| listener.local_addr().ok());
    match address {
        Some(address) if !address.ip().is_unspecified() => Ok(address.to_string()),
        _ => Err(config(
            "advertise",
            format!(
                "{} listens on all addresses: say which one peers reach it at",
                settings.addr
            ),
        )),
    }
}

async fn open(settings: &Settings) -> Result<Storage, StartError> {
    Storage::open(settings.data.clone(), &settings.cluster_id)
        .await
        .map_err(|error| storage_error(settings, error))
}

fn storage_error(settings: &Settings, error: StoreError) -> StartError {
    let path = match &settings.data {
        Data::Directory(path) => path.clone(),
        Data::Memory | Data::Disk(_) => PathBuf::new(),
    };
    StartError::Storage {
        path,
        source: error.into(),
    }
}

impl Running {
    /// Runs until the node is told to stop.
    pub(super) async fn run(mut self) {
        let following = actix_rt::spawn(follow(self.node.clone(), self.connections.clone()));
        let shutdown = tokio::select! {
            shutdown = self.commands.recv() => shutdown,
            () = self.node.stop.cancelled() => None,
        };
        let result = match &shutdown {
            Some(Shutdown { in_order: true, .. }) => self.leave().await,
            _ => Ok(()),
        };
        self.end().await;
        let _ = following.await;
        info!(node = %self.node.me.node, "node stopped");
        if let Some(Shutdown { done, .. }) = shutdown {
            let _ = done.send(result);
        }
    }

    /// Leaves the cluster in order. Nothing is lost that there is time for.
    async fn leave(&self) -> Result<(), ShutdownError> {
        let node = &self.node;
        let begun = Instant::now();
        let deadline = far(begun, node.settings.drain_timeout);
        let outboxes = node.close_outboxes();
        let view = node.agreed.borrow().clone();
        for outbox in &outboxes {
            // Who receives by the latest view is still worth waiting for.
            outbox.follow(&view);
        }
        let drained = join_all(outboxes.iter().map(|outbox| outbox.drained()));
        // A receiver that stalls must not take the time that handlers need.
        let _ = timeout(node.settings.drain_timeout / 2, drained).await;

        // What was handed back to this node's own outboxes in the meantime has
        // nowhere to go but to others.
        let handling = node.inbox.close();
        let handled = join_all(handling.iter().map(|handling| handling.wait()));
        let _ = timeout_at(deadline, handled).await;
        let drained = join_all(outboxes.iter().map(|outbox| outbox.drained()));
        let _ = timeout_at(deadline, drained).await;
        // Once the peers know that it leaves they do not wait for long.
        self.replying.close();
        let _ = timeout_at(deadline, self.replying.wait()).await;

        let (mut undelivered, mut unanswered) = (0, 0);
        for outbox in &outboxes {
            let (waiting, under_way) = outbox.abandon();
            undelivered += waiting;
            unanswered += under_way;
        }
        let handling = handling.iter().map(TaskTracker::len).sum();
        let unread = self.replying.len();
        // However busy the node was, the cluster should know that it goes.
        if self.raft.clone().send(LeaveCluster).await.is_err() {
            warn!(node = %node.me.node, "Raft had stopped before the node left");
        }
        // The peers learn of it and end their links, when all that they had sent
        // is answered.
        self.incoming.close();
        let _ = timeout(LINGER, self.incoming.wait()).await;
        match (undelivered, unanswered, handling, unread) {
            (0, 0, 0, 0) => Ok(()),
            _ => Err(ShutdownError {
                undelivered,
                unanswered,
                handling,
                unread,
                waited: begun.elapsed(),
            }),
        }
    }

    /// Ends everything that the node has started.
    async fn end(self: &mut Running) {
        let node = &self.node;
        node.stop.cancel();
        for outbox in node.close_outboxes() {
            outbox.abandon();
        }
        node.inbox.close();
        node.dead_letters.close();
        if self.raft.clone().send(StopRaft).await.is_err() {
            warn!(node = %node.me.node, "Raft had stopped before the node");
        }
        for tasks in [&self.tasks, &self.incoming] {
            tasks.close();
            tasks.wait().await;
        }
        self.connections.keep(|_| false);
        if let Some(mut server) = self.server.take() {
            match timeout(CLOSE_TIMEOUT, &mut server).await {
                Ok(Ok(Ok(()))) => {}
                Ok(Ok(Err(error))) => warn!(node = %node.me.node, %error, "the server failed"),
                Ok(Err(error)) => warn!(node = %node.me.node, %error, "the server panicked"),
                Err(_) => server.abort(),
            }
        }
    }
}

/// However it ends, be it with its arbiter, nobody waits for it in vain.
impl Drop for Running {
    fn drop(&mut self) {
        self.node.stop.cancel();
        for outbox in self.node.close_outboxes() {
            outbox.abandon();
        }
        self.node.inbox.close();
        self.node.dead_letters.close();
    }
}

impl Node {
    /// Tells the links and the outboxes of a new view. The links while the namespaces
    /// are held, so that one which is opened meanwhile makes no link by the earlier
    /// view that is not told of this one; the outboxes when they are not, for what
    /// these drop is a user's.
    fn follow(&self, before: &View, view: &View) {
        let namespaces = self.namespaces();
        self.links.follow(|peer: NodeId| {
            let member = view.nodes.get(&peer)?;
            Some(Target {
                address: member.address.clone(),
                boot: member.boot,
            })
        });
        let has_changed = |name: &Arc<str>| {
            let (old, new) = (before.receivers.get(name), view.receivers.get(name));
            match (old, new) {
                (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
                (None, None) => false,
                _ => true,
            }
        };
        let of_changed = namespaces
            .by_name
            .iter()
            .filter(|(name, _)| has_changed(name));
        let outboxes: Vec<_> = of_changed.map(|(_, entry)| entry.outbox.clone()).collect();
        drop(namespaces);
        for outbox in outboxes {
            outbox.follow(view);
        }
    }
}

/// Follows the view: tells the links where their peers are and the outboxes who
/// receives, and a person what has changed.
async fn follow(node: Arc<Node>, connections: Connections) {
    let mut agreed = node.agreed.clone();
    let mut before = Arc::new(View::default());
    loop {
        let view = agreed.borrow_and_update().clone();
        report(&node.me, &before, &view);
        connections.keep(|address| {
            let of_member = view
                .nodes
                .values()
                .any(|member| *member.address == *address);
            of_member || node.settings.peers.iter().any(|peer| peer == address)
        });
        node.follow(&before, &view);
        before = view;
        tokio::select! {
            changed = agreed.changed() => if changed.is_err() { break },
            () = node.stop.cancelled() => break,
        }
    }
}

/// Tells what has changed from one view to the next.
fn report(me: &Identity, before: &View, view: &View) {
    if before.is_up(me.node, me.boot) && !view.is_up(me.node, me.boot) {
        info!(node = %me.node, "this node has left the cluster");
        return;
    }
    for (node, member) in &view.nodes {
        if before.nodes.get(node) != Some(member) {
            info!(node = %me.node, peer = %node, address = %member.address, boot = member.boot, "node up");
        }
    }
    for (node, member) in &before.nodes {
        if !view.nodes.contains_key(node) {
            info!(node = %me.node, peer = %node, address = %member.address, "node gone");
        }
    }
    let receivers = |view: &View, name: &Arc<str>| -> Vec<NodeId> {
        let receivers = view.receivers.get(name);
        receivers.map_or_else(Vec::new, |receivers| {
            receivers.nodes.keys().copied().collect()
        })
    };
    let names: std::collections::BTreeSet<_> = before
        .receivers
        .keys()
        .chain(view.receivers.keys())
        .collect();
    for name in names {
        let same = match (before.receivers.get(name), view.receivers.get(name)) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            _ => false,
        };
        if same {
            continue;
        }
        let (old, new) = (receivers(before, name), receivers(view, name));
        for receiver in new.iter().filter(|receiver| !old.contains(receiver)) {
            info!(node = %me.node, namespace = %name, %receiver, "receiver added");
        }
        for receiver in old.iter().filter(|receiver| !new.contains(receiver)) {
            info!(node = %me.node, namespace = %name, %receiver, "receiver gone");
        }
    }
}
