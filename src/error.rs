//! The errors that users see, one type an operation.

use std::{error::Error, fmt, io, path::PathBuf, time::Duration};

use crate::{message::EncodeError, view::NodeId};

/// An error from below, kept for its text and its own source.
type Source = Box<dyn Error + Send + Sync>;

/// Why a node could not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting makes no sense.
    #[error("{setting}: {problem}")]
    Config {
        /// The name of the builder's method.
        setting: &'static str,
        /// What is wrong with it, and what it has to be.
        problem: String,
    },
    /// The address cannot be listened on: it is in use, or is not this
    /// machine's.
    #[error(
        "cannot listen on {address}: {source}; it has to be a \"host:port\" of this machine, \
         with port 0 for a free one"
    )]
    Bind {
        /// The address as it was given.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// The data directory cannot be written, is damaged, is in use by another
    /// process, or is that of a node of another cluster.
    #[error(
        "cannot use the data directory {}: {source}; it has to be a directory that this \
         process can write to and no other one uses: with another one the node joins the \
         cluster as a new node",
        path.display()
    )]
    Storage {
        /// The data directory.
        path: PathBuf,
        /// What is wrong with it.
        source: Source,
    },
    /// A peer belongs to a cluster with another name.
    #[error(
        "the peer {peer} belongs to the cluster {theirs}, and this node to {ours}; set the same \
         cluster_id on all nodes, or leave that peer out. Of two clusters that were formed \
         apart stop one, delete its data directories, and start it with the other as its peers"
    )]
    OtherCluster {
        /// The peer's address.
        peer: String,
        /// The cluster that it belongs to.
        theirs: String,
        /// The cluster that this node was told to belong to.
        ours: String,
    },
    /// No cluster could be formed or joined in time.
    #[error(
        "neither joined nor formed a cluster within {waited:?}{}; start the peers \
         ({}), check that they can be reached, or leave out those that are gone for good",
        reason.as_ref().map_or(String::new(), |reason| format!(": {reason}")),
        peers.join(", ")
    )]
    NotJoined {
        /// The peers as they were given.
        peers: Vec<String>,
        /// What was in the way last, as far as the node knows: who does not answer,
        /// or that the cluster has no quorum.
        reason: Option<String>,
        /// The join timeout.
        waited: Duration,
    },
    /// The node's own thread could not be started.
    #[error("cannot start the node's thread: {0}")]
    Thread(#[source] io::Error),
}

/// Why a namespace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// The name is empty or longer than 255 bytes.
    #[error("{name:?} cannot name a namespace: a name has 1 to 255 bytes")]
    InvalidName {
        /// The name as it was given.
        name: String,
    },
    /// The namespace is in use on this node with another type of message.
    #[error(
        "the namespace {namespace:?} carries {existing} on this node and cannot carry \
         {requested} as well; give one of them another name"
    )]
    OtherType {
        /// The name of the namespace.
        namespace: String,
        /// The type that it was first used with.
        existing: &'static str,
        /// The type that was asked for now.
        requested: &'static str,
    },
}

/// What kept a registration from being agreed, or from being ended in time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The cluster could not agree on it in time: no quorum of its voters can
    /// be reached. The node goes on trying.
    #[error("the cluster did not agree within {waited:?}: too few of its voters can be reached")]
    NoQuorum {
        /// The register timeout.
        waited: Duration,
    },
    /// Others receive the namespace with another type of message. The node goes
    /// on trying: it is registered once they are gone.
    #[error(
        "the namespace {namespace:?} carries {theirs} in this cluster, and this node would \
         receive {ours}; give one of them another name, or the same label"
    )]
    OtherType {
        /// The name of the namespace.
        namespace: String,
        /// The label of the type that is received here.
        ours: String,
        /// The label of the type that the others receive.
        theirs: String,
    },
    /// What the recipient had begun to handle was not done in time.
    #[error("what the recipient had begun to handle was not done within {waited:?}")]
    StillHandling {
        /// The drain timeout.
        waited: Duration,
    },
    /// The node has shut down, or the recipient is gone.
    #[error("the registration has ended")]
    Closed,
}

/// What became of a message that was not handled, or not accepted.
///
/// [`maybe_delivered`](Self::maybe_delivered) tells the errors after which it
/// is safe to send the message again from those after which it is not.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeliveryError {
    /// Nobody received the namespace until the deadline.
    #[error("nobody received the namespace within {waited:?}")]
    NoReceiver {
        /// The message's timeout.
        waited: Duration,
    },
    /// The deadline passed.
    #[error("{waited:?} passed, and the message {}", match maybe_delivered {
        true => "may have been delivered",
        false => "was not delivered",
    })]
    Timeout {
        /// The message's timeout.
        waited: Duration,
        /// Whether the message had been handed over by then.
        maybe_delivered: bool,
    },
    /// The receivers cannot read the message: their type is another one, or
    /// what they got does not decode to theirs.
    #[error("rejected: {reason}")]
    Rejected {
        /// What does not fit: it names both types, or the receiver's and what its decoder
        /// says.
        reason: String,
    },
    /// The message was handed over and then nothing more was heard: the link
    /// broke, the receiving process died, or the actor stopped before it
    /// replied.
    #[error("lost at node {node}: {reason}")]
    Lost {
        /// The node that it was handed over to.
        node: NodeId,
        /// What happened.
        reason: String,
    },
    /// The message was handled, but the reply cannot be read.
    #[error("the reply of node {node} cannot be read: {reason}")]
    Reply {
        /// The node that handled it.
        node: NodeId,
        /// What is wrong with the reply.
        reason: String,
    },
    /// The message does not serialize.
    #[error("the message cannot be encoded: {reason}")]
    Encode {
        /// What the serializer says.
        reason: String,
    },
    /// The encoded message is larger than messages may be.
    #[error("the message has {size} bytes encoded; the limit is {limit}")]
    TooLarge {
        /// Its size in bytes.
        size: usize,
        /// The limit in bytes.
        limit: usize,
    },
    /// The outbox was full. Only a message that nobody awaits fails with this:
    /// see [`DeadLetter`](crate::DeadLetter).
    #[error("the outbox is full")]
    Full,
    /// The node has shut down, or is shutting down.
    #[error("the node has shut down")]
    Closed,
}

impl DeliveryError {
    /// Why a message of up to `limit` bytes cannot travel.
    pub(crate) fn unsent(error: EncodeError, limit: usize) -> Self {
        match error {
            EncodeError::TooLarge(size) => Self::TooLarge { size, limit },
            EncodeError::Failed(reason) => Self::Encode { reason },
        }
    }

    /// What the sender gets whose type is not that of the receivers.
    pub(crate) fn other_type(namespace: &str, theirs: &str, ours: &str) -> Self {
        let reason =
            format!("the namespace {namespace:?} carries {theirs} in this cluster and {ours} here");
        Self::Rejected { reason }
    }

    /// Whether a receiver may have seen the message. Where this is `false` it
    /// has provably not been delivered, and it is safe to send it again.
    pub fn maybe_delivered(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Reply { .. } => true,
            Self::Timeout {
                maybe_delivered, ..
            } => *maybe_delivered,
            Self::NoReceiver { .. }
            | Self::Rejected { .. }
            | Self::Encode { .. }
            | Self::TooLarge { .. }
            | Self::Full
            | Self::Closed => false,
        }
    }
}

/// What a graceful shutdown had to give up when its time was over. The node is
/// gone all the same.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ShutdownError {
    /// Messages that were still waiting for a receiver.
    pub undelivered: usize,
    /// Messages that were handed over and not yet answered.
    pub unanswered: usize,
    /// Messages from other nodes that recipients here were still handling.
    pub handling: usize,
    /// Nodes that had not read all replies to what they had asked. One whose
    /// connection broke meanwhile is not counted.
    pub unread: usize,
    /// How long it was tried.
    pub waited: Duration,
}

impl fmt::Display for ShutdownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "gave up after {:?}: messages without a receiver: {}, without an answer: {}, \
             and still being handled: {}; nodes that had not read their replies: {}",
            self.waited, self.undelivered, self.unanswered, self.handling, self.unread
        )
    }
}

impl Error for ShutdownError {}
