//! What a node has to see to for one copy of a broadcast.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};

use super::{
    hearing::{Hearing, Outcome},
    tree::Addressee,
};
use crate::{
    delivery::{Reached, Ticket, far},
    error::DeliveryError,
    link::{Lane, Link, Taken},
    proto,
    view::NodeId,
};

/// By how much earlier than the node before it a node answers what it knows by
/// then, so that the sender still hears of it by the deadline.
const STEP: Duration = Duration::from_millis(250);

/// What an errand takes beside its message, and for each addressee, about.
const ERRAND_BYTES: usize = 512;
const ADDRESSEE_BYTES: usize = 64;

/// How much room a broadcast takes that a peer has passed on.
pub(super) fn size_of(broadcast: &proto::Broadcast) -> usize {
    ERRAND_BYTES + ADDRESSEE_BYTES * broadcast.addressees.len() + broadcast.message.len()
}

/// A process that broadcasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) boot: u64,
}

/// A broadcast, the same for all that get it.
pub(super) struct Letter {
    pub(super) origin: Source,
    pub(super) sequence: u64,
    /// The origin's other broadcasts with lower numbers than this are settled.
    pub(super) settled: u64,
    pub(super) lossy: bool,
    /// How many links it has come over.
    pub(super) hops: u32,
    pub(super) deadline: Arc<Ticket>,
    /// Until when it is held back for one before it that is missing.
    pub(super) patience: Instant,
    /// Empty where only the origin's own node receives.
    pub(super) message: Bytes,
    /// What one takes that comes from a peer, as long as it is seen to. The origin's
    /// part of it is remembered for longer.
    pub(super) room: Option<Taken>,
}

impl Letter {
    /// Reads what a peer sent. `None` if it makes no sense.
    pub(super) fn read(
        broadcast: proto::Broadcast,
        now: Instant,
    ) -> Option<(Self, Vec<Addressee>)> {
        let sequence = broadcast.sequence;
        let addressees: Option<Vec<_>> = broadcast
            .addressees
            .iter()
            .map(|addressee| {
                let previous = match addressee.behind {
                    0 => 0,
                    behind => sequence.checked_sub(behind)?,
                };
                Some(Addressee {
                    node: addressee.node.into(),
                    boot: addressee.boot,
                    previous,
                })
            })
            .collect();
        let addressees = addressees.filter(|all| !all.is_empty() && sequence > 0)?;
        let remaining = Duration::from_millis(broadcast.remaining);
        let patience = Duration::from_millis(broadcast.patience);
        let letter = Self {
            origin: Source {
                node: broadcast.origin.into(),
                boot: broadcast.origin_boot,
            },
            sequence,
            settled: broadcast.settled,
            lossy: broadcast.lossy,
            hops: broadcast.hops,
            deadline: Ticket::new(now, remaining),
            patience: far(now, patience),
            message: broadcast.message,
            room: None,
        };
        Some((letter, addressees))
    }

    /// What is sent to a node that sees to these. The link adds how much time
    /// is left.
    pub(super) fn copy(&self, channel: u32, copy: u64, part: &[Addressee]) -> proto::Broadcast {
        let addressees = part.iter().map(|addressee| proto::Addressee {
            node: addressee.node.get(),
            boot: addressee.boot,
            behind: match addressee.previous {
                0 => 0,
                previous => self.sequence - previous,
            },
        });
        proto::Broadcast {
            channel,
            copy,
            origin: self.origin.node.get(),
            origin_boot: self.origin.boot,
            sequence: self.sequence,
            settled: self.settled,
            remaining: 0,
            patience: 0,
            hops: self.hops.saturating_add(1),
            lossy: self.lossy,
            addressees: addressees.collect(),
            message: self.message.clone(),
        }
    }

    /// When a node that has got it answers at the latest.
    fn answer_by(&self, now: Instant) -> Instant {
        let deadline = self.deadline.at();
        let left = deadline.saturating_duration_since(now);
        let earlier = (left / 8).min(STEP).saturating_mul(self.hops);
        deadline - earlier.min(left / 2)
    }
}

/// What becomes of a broadcast's addressees, counted.
#[derive(Clone, Copy, Default)]
pub(super) struct Tally {
    pub(super) confirmed: u64,
    pub(super) missed: u64,
}

impl Tally {
    pub(super) fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Confirmed => self.confirmed += 1,
            Outcome::Missed => self.missed += 1,
            Outcome::Gone => {}
        }
    }
}

/// One broadcast that this node sees to: its own, or a copy that a peer has
/// passed on to it for some addressees. It is over when all of them have been
/// counted or handed back.
pub(super) struct Errand {
    pub(super) letter: Arc<Letter>,
    pub(super) tally: Tally,
    /// Whether the recipients of this node have not answered yet.
    pub(super) here: bool,
    /// How many copies have been passed on and not answered.
    pub(super) copies: usize,
    pub(super) answer: Answer,
}

/// Who is told what became of an errand.
pub(super) enum Answer {
    /// The sender, who is on this node.
    Sender {
        waiter: oneshot::Sender<Result<Reached, DeliveryError>>,
        receivers: usize,
        /// What the recipients of this node have before them.
        hearing: Weak<Hearing>,
        /// Addressees that are out of reach for now.
        waiting: Vec<Addressee>,
    },
    /// The node that has passed the copy on.
    Parent {
        lane: Arc<Lane>,
        copy: u64,
        by: Instant,
        /// Addressees that this node does not reach.
        out_of_reach: Vec<NodeId>,
        /// Addressees that there was no time for.
        late: Vec<NodeId>,
    },
}

impl Errand {
    pub(super) fn new(letter: Arc<Letter>, answer: Answer) -> Self {
        Self {
            letter,
            tally: Tally::default(),
            here: false,
            copies: 0,
            answer,
        }
    }

    /// The errand of a copy that has come.
    pub(super) fn of_copy(letter: Arc<Letter>, lane: Arc<Lane>, copy: u64, now: Instant) -> Self {
        let answer = Answer::Parent {
            lane,
            copy,
            by: letter.answer_by(now),
            out_of_reach: Vec::new(),
            late: Vec::new(),
        };
        Self::new(letter, answer)
    }

    /// Counts what the recipients of this node made of it.
    pub(super) fn heard(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.here, false) {
            self.tally.count(outcome);
        }
    }

    /// When it has to be answered, whatever is known by then.
    pub(super) fn due(&self) -> Instant {
        match &self.answer {
            Answer::Sender { .. } => self.letter.deadline.at(),
            Answer::Parent { by, .. } => *by,
        }
    }

    pub(super) fn is_own(&self) -> bool {
        matches!(self.answer, Answer::Sender { .. })
    }

    /// Whether all addressees are accounted for.
    pub(super) fn is_done(&self) -> bool {
        let waiting = match &self.answer {
            Answer::Sender { waiting, .. } => !waiting.is_empty(),
            Answer::Parent { .. } => false,
        };
        !self.here && self.copies == 0 && !waiting
    }
}

/// A copy that was passed on and has not been answered.
pub(super) struct Copy {
    /// Which may be over: then nobody minds, but the peer still has it.
    pub(super) errand: u64,
    /// Held, with its room, for as long as the link or the peer may have it.
    pub(super) letter: Arc<Letter>,
    pub(super) link: Arc<Link>,
    /// Whom the peer sees to.
    pub(super) part: Vec<Addressee>,
}
