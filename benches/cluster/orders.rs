//! What the processes of the bench tell each other, one line of JSON each.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::options::{Mode, Subject};

/// What a process is to be.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    pub(crate) subject: Subject,
    pub(crate) mode: Mode,
    pub(crate) part: Part,
    /// Bytes of a message's body.
    pub(crate) size: usize,
    pub(crate) in_flight: usize,
    /// Where it listens.
    pub(crate) address: String,
    /// Where all listen, the sender first.
    pub(crate) addresses: Vec<String>,
    /// Where a receiver leaves its ledger when it ends.
    pub(crate) ledger: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Part {
    Sender,
    Receiver,
    /// Sender and receivers in one process.
    Both,
}

/// How a process is.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) received: u64,
    /// Of the messages that it has received itself.
    pub(crate) duplicated: u64,
    /// CPU time so far, of all its threads.
    pub(crate) cpu: Duration,
    /// The most memory it has had.
    pub(crate) memory_kib: u64,
}

/// What a sender has sent.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Sent {
    /// All messages since the process began.
    pub(crate) sent: u64,
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
