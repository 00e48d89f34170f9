//! A node and the handle to it: the one place that wires the parts together.

mod here;
mod node;

use std::{
    any::{Any, type_name},
    collections::HashMap,
    convert::Infallible,
    fmt,
    future::Future,
    ops::Add,
    sync::{Arc, Mutex, MutexGuard, OnceLock},
    thread,
};

use actix::Addr;
use actix_rt::System;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use self::here::Here;
use crate::{
    broadcast::{self, LARGEST, MOST_UNDER_WAY, Relays},
    builder::{Builder, Runtime, Settings, config},
    dead_letter::{DeadLetterOffice, DeadLetters},
    error::{NamespaceError, ShutdownError, StartError},
    inbox::{Inbox, Wanted},
    link::Links,
    mailbox::{AnyOutbox, Mailbox, Outbox, Place},
    message::{RemoteMessage, label},
    namespace::{Core, Namespace},
    raft::{QUORUM_TIMEOUT, Standing},
    status::{BroadcastCounts, Status, Traffic},
    view::{Identity, NodeId, View},
};

const LONGEST_NAME: usize = 255;

/// A node of a cluster.
///
/// It is cheap to clone. When the last clone and the last
/// [`Namespace`](crate::Namespace) are dropped, the node stops at once, as if it
/// had crashed; use [`shutdown`](Self::shutdown) to leave in order.
#[derive(Clone)]
pub struct Cluster {
    handle: Arc<Handle>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster")
            .field("node", &self.handle.node.me.node)
            .field("address", &self.handle.node.me.address)
            .finish_non_exhaustive()
    }
}

/// Keeps a node running. Dropping the last one stops it.
pub(crate) struct Handle {
    node: Arc<Node>,
    commands: mpsc::UnboundedSender<Shutdown>,
    /// Where the node has its own.
    thread: Mutex<Option<Ended>>,
}

/// Resolves when the thread of a node ends. It is not joined, for that would block
/// the caller's.
type Ended = oneshot::Receiver<Infallible>;

/// A request to stop. Answered when the node has stopped.
struct Shutdown {
    /// Whether to leave the cluster in order.
    in_order: bool,
    done: oneshot::Sender<Result<(), ShutdownError>>,
}

/// What the parts of a node share.
pub(crate) struct Node {
    me: Identity,
    settings: Settings,
    here: Here,
    inbox: Arc<Inbox>,
    relays: Arc<Relays>,
    links: Arc<Links>,
    agreed: watch::Receiver<Arc<View>>,
    standing: watch::Receiver<Standing>,
    dead_letters: Arc<DeadLetterOffice>,
    namespaces: Mutex<Namespaces>,
    /// Ends everything.
    stop: CancellationToken,
}

/// The namespaces that are in use on a node.
#[derive(Default)]
struct Namespaces {
    by_name: HashMap<Arc<str>, Entry>,
    /// The node shuts down: those that are asked for from now on are closed.
    closed: bool,
}

/// A namespace that is in use on this node.
struct Entry {
    type_name: &'static str,
    label: Arc<str>,
    /// The `Arc<Core<M>>`.
    core: Box<dyn Any + Send>,
    outbox: Arc<dyn AnyOutbox>,
}

impl Builder {
    /// Starts the node. Resolves when it belongs to a cluster, formed or joined.
    ///
    /// # Errors
    ///
    /// Every [`StartError`] says what to do about it. Nothing is left running.
    pub async fn start(self) -> Result<Cluster, StartError> {
        let cluster = Cluster::launch(self.checked()?, true).await?.0;
        match cluster.joined().await {
            Ok(()) => Ok(cluster),
            Err(error) => {
                // It gave nothing up: nobody has used it yet.
                let _ = cluster.stop(false).await;
                Err(error)
            }
        }
    }

    /// Starts the node without a server of its own: add the routes to a tonic
    /// server of yours, which has to be reachable at the
    /// [`advertise`](Self::advertise) address. The builder's own address is not
    /// listened on.
    ///
    /// Resolves before the node belongs to a cluster, which takes the server;
    /// wait for [`Cluster::joined`] when that is up. Say `tcp_nodelay` where the
    /// server accepts connections, or requests take 40 ms longer, and
    /// `http2_keepalive_interval`, or who has fallen silent is not noticed there.
    /// On a graceful stop, shut the cluster down first: its streams end with it.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub async fn build(self) -> Result<(Cluster, Routes), StartError> {
        let settings = self.checked()?;
        if settings.advertise.is_none() {
            return Err(config(
                "advertise",
                "a node without its own server needs it",
            ));
        }
        Cluster::launch(settings, false).await
    }
}

impl Cluster {
    /// Sets up a node that listens on `addr`, as `host:port`. Port 0 has the
    /// system choose a free one.
    ///
    /// ```
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use dchan::Cluster;
    ///
    /// let first = Cluster::builder("127.0.0.1:0").start().await?;
    /// let second = Cluster::builder("127.0.0.1:0")
    ///     .peers([first.address()])
    ///     .start()
    ///     .await?;
    /// assert_eq!(second.status().nodes.len(), 2);
    ///
    /// second.shutdown().await?;
    /// first.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn builder(addr: impl Into<String>) -> Builder {
        Builder::new(addr.into())
    }

    /// The channel with this name, for messages of this type.
    ///
    /// # Panics
    ///
    /// If the name is empty or longer than 255 bytes, or if it is in use on this
    /// node with another type. [`try_namespace`](Self::try_namespace) returns an
    /// error instead.
    pub fn namespace<M: RemoteMessage>(&self, name: &str) -> Namespace<M> {
        match self.try_namespace(name) {
            Ok(namespace) => namespace,
            Err(error) => panic!("{error}"),
        }
    }

    /// The channel with this name, for messages of this type.
    ///
    /// # Errors
    ///
    /// If the name is empty or longer than 255 bytes, or if it is in use on this
    /// node with another type.
    pub fn try_namespace<M: RemoteMessage>(
        &self,
        name: &str,
    ) -> Result<Namespace<M>, NamespaceError> {
        self.try_namespace_labelled(name, &label::<M>())
    }

    /// The same, with a label of your choice for the type.
    ///
    /// Nodes compare the labels of their types, so that no message reaches a
    /// handler that means something else by it. By default it is the name of
    /// the type without its module paths; say another one where a type was
    /// renamed and nodes of both versions run.
    ///
    /// # Errors
    ///
    /// As [`try_namespace`](Self::try_namespace); also if the name is in use on
    /// this node with another label.
    pub fn try_namespace_labelled<M: RemoteMessage>(
        &self,
        name: &str,
        label: &str,
    ) -> Result<Namespace<M>, NamespaceError> {
        if name.is_empty() || name.len() > LONGEST_NAME {
            let name = name.to_owned();
            return Err(NamespaceError::InvalidName { name });
        }
        let core = self.handle.node.core(name, label)?;
        Ok(Namespace::new(core, self.handle.clone()))
    }

    /// This node, as others see it: in [`status`](Self::status), and in what
    /// [`deliver`](Namespace::deliver) yields.
    pub fn node(&self) -> NodeId {
        self.handle.node.me.node
    }

    /// Where its peers reach this node, as `host:port`: the address that it
    /// [advertises](Builder::advertise), or else the one that it listens on.
    pub fn address(&self) -> &str {
        &self.handle.node.me.address
    }

    /// What the node knows of itself and its cluster.
    pub fn status(&self) -> Status {
        self.handle.node.status()
    }

    /// What this node has sent and that turns out, from now on, to have reached nobody,
    /// or maybe nobody. Take the stream before you send, to miss none.
    ///
    /// ```
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// use dchan::{Cluster, prelude::*};
    /// use futures_util::StreamExt;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Message, Serialize, Deserialize)]
    /// #[rtype(result = "()")]
    /// struct Tick(u32);
    ///
    /// let cluster = Cluster::builder("127.0.0.1:0").outbox(1, 1 << 20).start().await?;
    /// let mut dead_letters = cluster.dead_letters();
    /// let ticks = cluster.namespace::<Tick>("ticks");
    /// ticks.do_send(Tick(1)); // Nobody receives: it waits.
    /// ticks.do_send(Tick(2)); // The outbox is full.
    ///
    /// let letter = dead_letters.next().await.unwrap();
    /// assert_eq!(letter.reason, dchan::DeliveryError::Full);
    /// assert_eq!(cluster.status().traffic.dead_letters.full, 1);
    /// # Ok(())
    /// # }
    /// ```
    pub fn dead_letters(&self) -> DeadLetters {
        self.handle.node.dead_letters.subscribe()
    }

    /// Resolves when the node belongs to a cluster. [`Builder::start`] has
    /// waited for that already.
    ///
    /// # Errors
    ///
    /// [`StartError::NotJoined`] after the builder's
    /// [`join_timeout`](Builder::join_timeout), after which the node goes on
    /// trying, and [`StartError::OtherCluster`].
    pub async fn joined(&self) -> Result<(), StartError> {
        let node = &self.handle.node;
        let (mut agreed, mut standing) = (node.agreed.clone(), node.standing.clone());
        let up = agreed.wait_for(|view| view.is_up(node.me.node, node.me.boot));
        let refused = standing.wait_for(|standing| standing.refused.is_some());
        let joined = async {
            tokio::select! {
                up = up => up.is_ok().then_some(None),
                refused = refused => refused.ok().map(|standing| standing.refused.clone()),
            }
        };
        let waited = node.settings.join_timeout;
        match timeout(waited, joined).await {
            Ok(Some(None)) => Ok(()),
            Ok(Some(Some(refusal))) => Err(StartError::OtherCluster {
                peer: refusal.peer.to_string(),
                theirs: refusal.cluster,
                ours: node.settings.cluster_id.clone(),
            }),
            Ok(None) | Err(_) => Err(StartError::NotJoined {
                peers: node.settings.peers.clone(),
                reason: node.standing.borrow().obstacle.clone(),
                waited,
            }),
        }
    }

    /// Leaves the cluster in order and stops the node, for all clones of this
    /// handle.
    ///
    /// New sends fail with `Closed`; what has been sent is delivered, as far as
    /// anybody receives it; recipients finish what they have begun, and the nodes
    /// that asked read the replies; what they have not begun is handed back to
    /// be delivered elsewhere; the cluster is told; everything ends. A node alone
    /// just stops.
    ///
    /// # Errors
    ///
    /// [`ShutdownError`] if not all messages were seen to within the builder's
    /// [`drain_timeout`](Builder::drain_timeout). The node has stopped all the
    /// same. That the others could not agree within five seconds that it leaves is
    /// traced and no error: they take it out as one that has died.
    pub async fn shutdown(self) -> Result<(), ShutdownError> {
        self.stop(true).await
    }

    /// Stops the node and waits until nothing of it runs.
    pub(crate) async fn stop(self, in_order: bool) -> Result<(), ShutdownError> {
        let (done, stopped) = oneshot::channel();
        let asked = self.handle.commands.send(Shutdown { in_order, done });
        let result = match asked {
            Ok(()) => stopped.await.unwrap_or(Ok(())),
            // Somebody else has stopped it.
            Err(_) => Ok(()),
        };
        if let Some(ended) = self.handle.thread() {
            // Nothing is ever sent: it ends with the thread.
            let _ = ended.await;
        }
        result
    }

    /// Starts a node on the runtime that the settings choose.
    pub(crate) async fn launch(
        settings: Settings,
        serve: bool,
    ) -> Result<(Self, Routes), StartError> {
        match settings.runtime {
            Runtime::OwnThread => {
                let (started, start) = oneshot::channel();
                let (running, ended) = oneshot::channel();
                thread::Builder::new()
                    .name("dchan".to_owned())
                    .spawn(move || {
                        let _running = running;
                        System::new().block_on(async {
                            match node::start(settings, serve).await {
                                Err(error) => drop(started.send(Err(error))),
                                Ok((running, parts)) => {
                                    if started.send(Ok(parts)).is_ok() {
                                        running.run().await;
                                    }
                                }
                            }
                        });
                    })
                    .map_err(StartError::Thread)?;
                match start.await {
                    Ok(Ok(parts)) => Ok(Self::of(parts, Some(ended))),
                    Ok(Err(error)) => {
                        let _ = ended.await;
                        Err(error)
                    }
                    Err(_) => Err(StartError::Thread(std::io::Error::other(
                        "it ended before the node had started",
                    ))),
                }
            }
            Runtime::CurrentArbiter => {
                if System::try_current().is_none() {
                    let problem = "Runtime::CurrentArbiter needs a running actix system";
                    return Err(config("runtime", problem));
                }
                let (running, parts) = node::start(settings, serve).await?;
                actix_rt::spawn(running.run());
                Ok(Self::of(parts, None))
            }
        }
    }

    fn of(parts: node::Parts, thread: Option<Ended>) -> (Self, Routes) {
        let handle = Arc::new(Handle {
            node: parts.node,
            commands: parts.commands,
            thread: Mutex::new(thread),
        });
        (Self { handle }, parts.routes)
    }
}

impl Handle {
    fn thread(&self) -> Option<Ended> {
        let mut thread = self
            .thread
            .lock()
            .expect("no panic while a thread is taken");
        thread.take()
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.node.settings
    }

    pub(crate) fn me(&self) -> &Identity {
        &self.node.me
    }

    pub(crate) fn agreed(&self) -> watch::Receiver<Arc<View>> {
        self.node.agreed.clone()
    }

    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.node.inbox.wanted()
    }

    /// Starts the actor of a namespace on the node's own thread.
    pub(crate) fn start_mailbox<M: RemoteMessage>(
        &self,
        outbox: &Arc<Outbox<M>>,
    ) -> Addr<Mailbox<M>> {
        let mailbox = Mailbox::new(outbox.clone(), self.node.stop.clone());
        // Never full for long: everything is passed on to the outbox at once.
        let most = u32::MAX as usize;
        let capacity = self.node.settings.limits.outbox_messages.min(most);
        self.node.here.start(mailbox, capacity)
    }

    pub(crate) fn stopped(&self) -> CancellationToken {
        self.node.stop.clone()
    }

    /// Runs a future on the node's own thread.
    pub(crate) fn spawn(&self, future: impl Future<Output = ()> + Send + 'static) {
        self.node.here.runtime().spawn(future);
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.node.stop.cancel();
    }
}

impl Node {
    fn namespaces(&self) -> MutexGuard<'_, Namespaces> {
        self.namespaces
            .lock()
            .expect("no panic while namespaces are looked up")
    }

    /// The parts of a namespace on this node, made when they are first asked
    /// for.
    fn core<M: RemoteMessage>(
        &self,
        name: &str,
        label: &str,
    ) -> Result<Arc<Core<M>>, NamespaceError> {
        let mut namespaces = self.namespaces();
        if let Some(entry) = namespaces.by_name.get(name) {
            let core = entry.core.downcast_ref::<Arc<Core<M>>>();
            return match core {
                Some(core) if *entry.label == *label => Ok(core.clone()),
                _ => Err(NamespaceError::OtherType {
                    namespace: name.to_owned(),
                    existing: entry.type_name,
                    requested: type_name::<M>(),
                }),
            };
        }
        let (name, label): (Arc<str>, Arc<str>) = (name.into(), label.into());
        let settings = &self.settings;
        let channel = self
            .inbox
            .open::<M>(name.clone(), label.clone(), settings.window);
        let place = broadcast::Place {
            node: self.me.node,
            boot: self.me.boot,
            namespace: name.clone(),
            label: label.clone(),
            audience: channel.clone(),
            agreed: self.agreed.clone(),
            window: MOST_UNDER_WAY.min(settings.window as usize),
            window_bytes: settings.limits.window_bytes,
            send_timeout: settings.limits.send_timeout,
            max_message: settings.limits.max_message.min(LARGEST),
        };
        let relay = self.relays.open(place, self.here.alarm());
        let place = Place {
            node: self.me.node,
            namespace: name.clone(),
            label: label.clone(),
            limits: settings.limits.clone(),
            links: self.links.clone(),
            local: channel.clone(),
            relay,
            dead_letters: self.dead_letters.clone(),
        };
        let outbox = Outbox::new(place, self.here.alarm());
        let core = Arc::new(Core {
            name: name.clone(),
            label: label.clone(),
            outbox: outbox.clone(),
            channel,
            mailbox: OnceLock::new(),
        });
        if namespaces.closed {
            outbox.close();
        }
        // Cloned: who follows looks at the latest view for itself, and to read a
        // watch twice at once is a deadlock when a writer comes in between.
        let view = self.agreed.borrow().clone();
        outbox.follow(&view);
        namespaces.by_name.insert(
            name,
            Entry {
                type_name: type_name::<M>(),
                label,
                core: Box::new(core.clone()),
                outbox,
            },
        );
        Ok(core)
    }

    fn outboxes(&self) -> Vec<Arc<dyn AnyOutbox>> {
        let namespaces = self.namespaces();
        let entries = namespaces.by_name.values();
        entries.map(|entry| entry.outbox.clone()).collect()
    }

    /// Takes no new messages from now on.
    fn close_outboxes(&self) -> Vec<Arc<dyn AnyOutbox>> {
        self.namespaces().closed = true;
        let outboxes = self.outboxes();
        for outbox in &outboxes {
            outbox.close();
        }
        outboxes
    }

    fn status(&self) -> Status {
        let view = self.agreed.borrow().clone();
        let standing = self.standing.borrow().clone();
        let outboxes = self.outboxes();
        let traffic = outboxes.iter().map(|outbox| outbox.traffic());
        let broadcasts = outboxes.iter().map(|outbox| outbox.broadcasts());
        let heard = standing.heard.map(|heard| heard.elapsed());
        Status {
            node: self.me.node,
            boot: self.me.boot,
            address: self.me.address.to_string(),
            cluster_id: self.me.cluster.to_string(),
            leader: standing.leader,
            term: standing.term,
            voters: standing.voters,
            learners: standing.learners,
            nodes: view
                .nodes
                .iter()
                .map(|(node, member)| (*node, member.address.to_string()))
                .collect(),
            receivers: view
                .receivers
                .iter()
                .map(|(name, receivers)| {
                    (name.to_string(), receivers.nodes.keys().copied().collect())
                })
                .collect(),
            has_quorum: heard.is_some_and(|heard| heard < QUORUM_TIMEOUT),
            view_age: heard,
            links: self.links.status().into_iter().collect(),
            traffic: traffic.fold(Traffic::default(), Traffic::add),
            broadcasts: broadcasts.fold(BroadcastCounts::default(), BroadcastCounts::add),
        }
    }
}
