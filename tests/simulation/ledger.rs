//! The delivery contract, held against every message as soon as anything is
//! known of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

/// How long after the last fault an outcome may still be unknown for it: the
/// longest that a message is offered, and what it takes to notice a dead link.
const AFTERMATH: Duration = Duration::from_secs(30);

/// The namespace that all the even nodes receive. Those with a lower number are
/// received by the node of that number alone.
pub(crate) const SHARED: u64 = 15;
/// The one whose receivers come and go.
pub(crate) const CHANGING: u64 = 14;

/// Names a message: who sent it, since which start, to which namespace, and as
/// which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) sender: u64,
    pub(crate) start: u64,
    pub(crate) namespace: u64,
    pub(crate) number: u64,
}

impl Id {
    pub(crate) fn pack(self) -> u64 {
        self.sender << 60 | self.start << 44 | self.namespace << 40 | self.number
    }

    pub(crate) fn unpack(packed: u64) -> Self {
        Self {
            sender: packed >> 60,
            start: packed >> 44 & 0xffff,
            namespace: packed >> 40 & 0xf,
            number: packed & 0xff_ffff_ffff,
        }
    }
}

/// A node, and which of its starts.
pub(crate) type Life = (u64, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Handled,
    Accepted,
    NotDelivered,
    Unknown,
}

#[derive(Default)]
pub(crate) struct Ledger {
    /// Who has received a message.
    received: BTreeMap<Id, Life>,
    undelivered: BTreeSet<Id>,
    /// Accepted, and not yet received.
    promised: BTreeSet<Id>,
    /// By receiver, and sender: the last one in a namespace with one receiver.
    last: BTreeMap<(Life, Life), u64>,
    /// How many each sender has sent, and how many of them were received.
    counts: BTreeMap<Life, (u64, u64)>,
    totals: BTreeMap<&'static str, u64>,
}

impl Ledger {
    fn count(&mut self, what: &'static str) {
        *self.totals.entry(what).or_default() += 1;
    }

    pub(crate) fn sent(&mut self, id: Id) {
        self.counts.entry((id.sender, id.start)).or_default().0 += 1;
        self.count("messages");
    }

    /// A receiver has got a message.
    pub(crate) fn received(&mut self, id: Id, by: Life) -> Result<(), String> {
        if let Some(first) = self.received.insert(id, by) {
            return Err(format!("{id:?} was received by {first:?} and by {by:?}"));
        }
        self.counts.entry((id.sender, id.start)).or_default().1 += 1;
        self.promised.remove(&id);
        if self.undelivered.contains(&id) {
            return Err(format!(
                "{id:?} was received by {by:?}, after it had failed"
            ));
        }
        // Where there are several, one may be offered to the next one late.
        if id.namespace < CHANGING {
            let last = self.last.entry((by, (id.sender, id.start))).or_default();
            if *last >= id.number {
                return Err(format!("{id:?} was received by {by:?} after {last}"));
            }
            *last = id.number;
        }
        Ok(())
    }

    /// A sender has heard of an outcome. `sent` is when it had sent the message,
    /// and `harmed` when there was last a fault.
    pub(crate) fn settled(
        &mut self,
        id: Id,
        outcome: Outcome,
        sent: Duration,
        harmed: Duration,
    ) -> Result<(), String> {
        let received = self.received.contains_key(&id);
        let (name, holds) = match outcome {
            Outcome::Handled => ("handled", received),
            Outcome::Accepted => {
                if !received {
                    self.promised.insert(id);
                }
                ("accepted", true)
            }
            Outcome::NotDelivered => {
                self.undelivered.insert(id);
                ("not_delivered", !received)
            }
            Outcome::Unknown => ("unknown", sent < harmed + AFTERMATH),
        };
        self.count(name);
        match holds {
            true => Ok(()),
            false => Err(format!("{id:?} is {outcome:?}; received: {received}")),
        }
    }

    /// A message that is in some mailbox, where all actors have had their turn.
    pub(crate) fn broken_promise(&mut self) -> Option<Id> {
        self.promised.pop_first()
    }

    /// How many messages a sender has sent, and how many of them were received.
    pub(crate) fn counts(&self, sender: Life) -> (u64, u64) {
        self.counts.get(&sender).copied().unwrap_or_default()
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let totals: Vec<String> = self
            .totals
            .iter()
            .map(|(name, count)| format!("{name}={count}"))
            .collect();
        write!(f, "{}", totals.join(" "))
    }
}
