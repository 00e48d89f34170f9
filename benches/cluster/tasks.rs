//! What the processes of the bench tell each other, one line of JSON each.

use std::{ops::Range, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::options::Subject;

/// The namespace that receivers receive.
pub(crate) const ITEMS: &str = "items";

/// What a process is to be. It says [`ANSWER`] when it is that.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) subject: Subject,
    pub(crate) part: Part,
    /// Bytes of a message's body.
    pub(crate) size: usize,
    /// How messages will be sent: bare receivers have to know.
    pub(crate) kind: Kind,
    /// Where all nodes listen, the sender first.
    pub(crate) addresses: Vec<String>,
    /// Which of them are this process's.
    pub(crate) mine: Range<usize>,
    /// How many messages the outbox takes, if not as many as by default.
    pub(crate) outbox: Option<usize>,
    /// How long each message keeps a receiver's thread busy.
    pub(crate) pause: Duration,
    /// Where a node keeps its state, if it does.
    pub(crate) data: Option<PathBuf>,
    /// Whether it sends or receives [`ITEMS`] before it says that it is ready,
    /// and a sender waits for the first message's delivery.
    pub(crate) at_once: bool,
    /// Where it leaves its ledger when it ends.
    pub(crate) ledger: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    Sender,
    Receiver,
    /// Sender and receivers in one process.
    Both,
}

/// How messages are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Kind {
    /// Nobody waits for anything.
    Flood,
    /// Until a recipient has them.
    Deliver,
    /// Until the reply is there.
    Ask,
}

/// What a process is told to do. Each task has one answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Task {
    /// The first of its nodes, so many, receive a namespace. `()`
    Receive { namespace: String, nodes: usize },
    /// Waits until it knows of so many receivers of a namespace. `()`
    Until { namespace: String, receivers: usize },
    /// Opens namespaces by number, and keeps them. `()`
    Open(Range<usize>),
    /// Registers an actor in each of these namespaces, at once. How long each
    /// registration took, as a `Vec<Duration>`.
    RegisterAll(Range<usize>),
    /// The same one after the other, from this number on, for some time.
    RegisterFor { first: usize, lasts: Duration },
    /// Sends, in several ways at once. `Vec<Sent>`, one a load.
    Send(Vec<Load>),
    /// [`Report`]
    Report,
    /// Writes its ledger and ends. `()`
    End,
}

/// Before each answer.
pub(crate) const ANSWER: &str = "answer";

/// The name of a namespace that has a number.
pub(crate) fn numbered(number: usize) -> String {
    format!("namespace-{number}")
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) kind: Kind,
    pub(crate) to: To,
    pub(crate) in_flight: usize,
    pub(crate) lasts: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum To {
    Namespace(String),
    /// So many namespaces that have numbers, in turn.
    Numbered(usize),
}

/// How a process is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    /// All messages so far.
    pub(crate) received: u64,
    pub(crate) sent: u64,
    /// CPU time so far, of all its threads.
    pub(crate) cpu: Duration,
}

/// What a load has sent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sent {
    pub(crate) messages: u64,
    /// Messages that failed, as their sender knows.
    pub(crate) failed: u64,
    pub(crate) latency: Option<Percentiles>,
}

/// In microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Percentiles {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}
