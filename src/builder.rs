//! The settings of a node, with their defaults.

use std::{path::PathBuf, sync::Arc, time::Duration};

use crate::{
    connections::check_address,
    disk::Disk,
    error::StartError,
    link::Bounds,
    mailbox::Limits,
    transport::{Tcp, Transport},
};

/// Where a node does its work: links, Raft and timers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Runtime {
    /// On a thread of its own. A handler that blocks its arbiter then costs the
    /// node nothing.
    #[default]
    OwnThread,
    /// On the arbiter that starts the node. A message crosses no threads, which
    /// on one or two cores is twice as fast; but a handler that blocks this
    /// arbiter for seconds costs the node its links and its leadership.
    CurrentArbiter,
}

/// Sets up a node. From [`Cluster::builder`](crate::Cluster::builder).
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it is started"]
pub struct Builder {
    settings: Settings,
}

/// What the builder was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) addr: String,
    pub(crate) advertise: Option<String>,
    pub(crate) cluster_id: String,
    pub(crate) peers: Vec<String>,
    pub(crate) data: Data,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) runtime: Runtime,
    pub(crate) voters: usize,
    pub(crate) founders: usize,
    pub(crate) window: u32,
    pub(crate) limits: Limits,
    pub(crate) assembly: Bounds,
    pub(crate) join_timeout: Duration,
    pub(crate) register_timeout: Duration,
    pub(crate) drain_timeout: Duration,
}

/// Where a node keeps what it must still know after a crash.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    /// Nowhere: it is a new node at each start.
    Memory,
    Directory(PathBuf),
    Disk(Arc<dyn Disk>),
}

impl Builder {
    pub(crate) fn new(addr: String) -> Self {
        Self {
            settings: Settings {
                addr,
                advertise: None,
                cluster_id: "dchan".to_owned(),
                peers: Vec::new(),
                data: Data::Memory,
                transport: Arc::new(Tcp),
                runtime: Runtime::default(),
                voters: 5,
                founders: 1,
                window: 8192,
                limits: Limits {
                    outbox_messages: 65_536,
                    outbox_bytes: 64 << 20,
                    window_bytes: 8 << 20,
                    max_message: 64 << 20,
                    send_timeout: Duration::from_secs(120),
                },
                assembly: Bounds {
                    per_peer: 128 << 20,
                    per_node: 512 << 20,
                },
                join_timeout: Duration::from_secs(30),
                register_timeout: Duration::from_secs(10),
                drain_timeout: Duration::from_secs(10),
            },
        }
    }

    /// The name of the cluster. Nodes with different names refuse each other.
    /// Default: `dchan`.
    pub fn cluster_id(mut self, cluster_id: impl Into<String>) -> Self {
        self.settings.cluster_id = cluster_id.into();
        self
    }

    /// Addresses of other nodes, as `host:port`. Default: none, and the node is
    /// a cluster by itself unless others join it.
    ///
    /// A host name is looked up again at each attempt, and may stand for several
    /// nodes, as that of a headless Kubernetes service does: see
    /// [`founders`](Self::founders).
    ///
    /// It takes one peer that is up to join a cluster. To form one, all the
    /// peers have to be up at some time; which of them starts first does not
    /// matter. The node's own address may be among them, so that all nodes can
    /// be given the same list.
    pub fn peers<P: Into<String>>(mut self, peers: impl IntoIterator<Item = P>) -> Self {
        self.settings.peers = peers.into_iter().map(Into::into).collect();
        self
    }

    /// How many nodes it takes to form a cluster, this one included. Default: 1,
    /// and all that [`peers`](Self::peers) names.
    ///
    /// Needed where a name stands for nodes of which some may not be known yet:
    /// set it to more than half of the nodes that start together, so that they
    /// cannot form two clusters.
    pub fn founders(mut self, nodes: usize) -> Self {
        self.settings.founders = nodes;
        self
    }

    /// A directory, for this node alone, in which it keeps its identity and the
    /// Raft log. It is made if it is missing. Default: none; the node then keeps
    /// both in memory and is a new node at each start.
    pub fn data_dir(mut self, data_dir: impl Into<PathBuf>) -> Self {
        self.settings.data = Data::Directory(data_dir.into());
        self
    }

    /// Where the node keeps its identity and the Raft log instead of in a
    /// directory. Default: none.
    pub fn disk(mut self, disk: impl Disk) -> Self {
        self.settings.data = Data::Disk(Arc::new(disk));
        self
    }

    /// How nodes reach each other. Use the same on all nodes. Default: [`Tcp`].
    pub fn transport(mut self, transport: impl Transport) -> Self {
        self.settings.transport = Arc::new(transport);
        self
    }

    /// The address that peers reach this node at, as `host:port`. Default: the
    /// one that it listens on.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.settings.advertise = Some(address.into());
        self
    }

    /// Where the node does its work. Default: [`Runtime::OwnThread`].
    pub fn runtime(mut self, runtime: Runtime) -> Self {
        self.settings.runtime = runtime;
        self
    }

    /// How many nodes may vote, at most. Use the same odd number on all nodes.
    /// Default: 5, which outlives any two of them.
    pub fn voters(mut self, voters: usize) -> Self {
        self.settings.voters = voters;
        self
    }

    /// How long a message is offered to receivers, where its sender does not
    /// say otherwise. Default: 2 minutes.
    pub fn send_timeout(mut self, timeout: Duration) -> Self {
        self.settings.limits.send_timeout = timeout;
        self
    }

    /// How much may wait in the outbox of one namespace: a number of messages,
    /// and of bytes. It is full when either is reached. A message that waits
    /// for a recipient on this same node is not encoded and counts with its
    /// size on the stack. Default: 65,536 messages and 64 MiB.
    pub fn outbox(mut self, messages: usize, bytes: usize) -> Self {
        self.settings.limits.outbox_messages = messages;
        self.settings.limits.outbox_bytes = bytes;
        self
    }

    /// How many messages of one namespace another node may have sent to this
    /// one, and this one to itself, before recipients have taken them. Default:
    /// 8,192, with which a receiver that is fast is always busy. With fewer, less
    /// waits before one that is slow.
    pub fn window(mut self, messages: u32) -> Self {
        self.settings.window = messages;
        self
    }

    /// How many bytes of one namespace this node sends to another one before
    /// recipients there have taken them. At least one message goes. Default:
    /// 8 MiB.
    pub fn window_bytes(mut self, bytes: usize) -> Self {
        self.settings.limits.window_bytes = bytes;
        self
    }

    /// The largest message or reply, encoded, in bytes. Use the same on all
    /// nodes. A larger message fails with
    /// [`TooLarge`](crate::DeliveryError::TooLarge) when it has been encoded, all
    /// of it, in memory. Default: 64 MiB.
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.settings.limits.max_message = bytes;
        self
    }

    /// How many bytes of large messages this node puts together at a time: of one
    /// peer, and of all. Messages of more than 128 KiB travel in chunks; one for
    /// which there is no room yet waits at its sender. There is always room for
    /// the largest message. Default: 128 MiB and 512 MiB.
    pub fn assembly(mut self, bytes_per_peer: usize, bytes_per_node: usize) -> Self {
        self.settings.assembly = Bounds {
            per_peer: bytes_per_peer,
            per_node: bytes_per_node,
        };
        self
    }

    /// How long [`start`](Self::start) tries to form or join a cluster. Default:
    /// 30 seconds.
    pub fn join_timeout(mut self, timeout: Duration) -> Self {
        self.settings.join_timeout = timeout;
        self
    }

    /// How long a registration waits for the cluster's agreement before it says
    /// that there is no quorum. Default: 10 seconds.
    pub fn register_timeout(mut self, timeout: Duration) -> Self {
        self.settings.register_timeout = timeout;
        self
    }

    /// How long closing a registration waits for handlers, and a shutdown for
    /// all that is under way. Default: 10 seconds.
    pub fn drain_timeout(mut self, timeout: Duration) -> Self {
        self.settings.drain_timeout = timeout;
        self
    }

    /// The settings, if they make sense.
    pub(crate) fn checked(self) -> Result<Settings, StartError> {
        let settings = self.settings;
        if settings.cluster_id.is_empty() {
            return Err(config("cluster_id", "it has to be a name, not empty"));
        }
        if settings.voters.is_multiple_of(2) {
            return Err(config("voters", "it has to be an odd number"));
        }
        if settings.window == 0 {
            return Err(config("window", "it has to be at least 1"));
        }
        for (setting, limit) in [
            ("outbox", settings.limits.outbox_messages),
            ("outbox", settings.limits.outbox_bytes),
            ("window_bytes", settings.limits.window_bytes),
            ("max_message", settings.limits.max_message),
        ] {
            if limit == 0 {
                return Err(config(setting, "it has to be at least 1"));
            }
        }
        if settings.limits.max_message > u32::MAX as usize - (1 << 20) {
            return Err(config("max_message", "it has to be less than 4 GiB"));
        }
        for (setting, addresses) in [
            ("peers", settings.peers.as_slice()),
            ("advertise", settings.advertise.as_slice()),
        ] {
            for address in addresses {
                check_address(address).map_err(|error| config(setting, error.to_string()))?;
            }
        }
        Ok(settings)
    }
}

pub(crate) fn config(setting: &'static str, problem: impl Into<String>) -> StartError {
    StartError::Config {
        setting,
        problem: problem.into(),
    }
}

impl Settings {
    pub(crate) fn peer_addresses(&self) -> Vec<Arc<str>> {
        self.peers.iter().map(|peer| peer.as_str().into()).collect()
    }
}
