//! What one origin has broadcast, as a node that receives it sees it: each once,
//! and in order.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    MOST_ARRIVED,
    errand::Letter,
    hearing::{Hearing, Outcome},
    order::Order,
};
use crate::link::Taken;

/// How much longer than the last deadline it is remembered what has been handed
/// over. A copy that is on its way longer than this finds its link broken.
const SLACK: Duration = Duration::from_secs(30);

/// What it takes to remember so many numbers, about, and the origin itself.
const PAGE_NUMBERS: usize = 8;
const PAGE_BYTES: usize = 1 << 10;

pub(super) struct Inflow {
    order: Order<Arc<Letter>>,
    /// By number, from the lowest on that the origin has not settled.
    known: BTreeMap<u64, Known>,
    /// The room that these take.
    pages: Vec<Taken>,
    /// By then all that is known has expired.
    latest: Instant,
}

enum Known {
    /// The recipients have it before them, or it waits for one before it.
    Awaited {
        /// What has to be told of the outcome.
        errands: Vec<u64>,
        /// Empty until it has been handed over.
        hearing: Weak<Hearing>,
        expires: Instant,
    },
    Settled(Outcome),
}

impl Inflow {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            order: Order::new(),
            known: BTreeMap::new(),
            pages: Vec::new(),
            latest: now,
        }
    }

    /// Keeps as much of the room that a copy has taken as it takes to remember it.
    pub(super) fn keep(&mut self, room: &mut Taken) {
        if self.pages.len() <= self.known.len() / PAGE_NUMBERS {
            self.pages.extend(room.part(PAGE_BYTES));
        }
    }

    /// Takes in a copy for this node, on an errand. Returns the outcome if it is
    /// known, because it is not the first copy.
    pub(super) fn take_in(
        &mut self,
        letter: &Arc<Letter>,
        previous: u64,
        errand: u64,
    ) -> Option<Outcome> {
        let number = letter.sequence;
        self.order.settle(letter.settled);
        let unsettled = self.known.split_off(&letter.settled);
        let settled = std::mem::replace(&mut self.known, unsettled);
        let awaited = |(_, known): &(u64, Known)| matches!(known, Known::Awaited { .. });
        self.known.extend(settled.into_iter().filter(awaited));
        self.pages.truncate(1 + self.known.len() / PAGE_NUMBERS);
        let expires = letter.deadline.at();
        self.latest = self.latest.max(expires);
        match self.known.get_mut(&number) {
            Some(Known::Settled(outcome)) => return Some(*outcome),
            Some(Known::Awaited { errands, .. }) => errands.push(errand),
            None if self.order.is_past(number) => return Some(Outcome::Gone),
            None => {
                let awaited = Known::Awaited {
                    errands: vec![errand],
                    hearing: Weak::new(),
                    expires,
                };
                self.known.insert(number, awaited);
                self.forget_some();
                self.order.take_in(number, previous, letter.clone());
            }
        }
        None
    }

    /// Forgets an outcome if there are more than may be under way, which is so
    /// when the origin has not settled an old one for long. Should it ask again,
    /// it hears that nobody here has it; it is not handed over again.
    fn forget_some(&mut self) {
        if self.known.len() > MOST_ARRIVED {
            let mut known = self.known.iter();
            let outcome = known.find(|(_, known)| matches!(known, Known::Settled(_)));
            if let Some(number) = outcome.map(|(number, _)| *number) {
                self.known.remove(&number);
            }
        }
    }

    /// What is to be handed over now, if anything is. `hearing` makes what it is
    /// handed over with.
    pub(super) fn next(
        &mut self,
        hearing: impl FnOnce(u64) -> Arc<Hearing>,
    ) -> Option<(Arc<Letter>, Arc<Hearing>)> {
        let letter = self.order.next()?;
        let made = hearing(letter.sequence);
        if let Some(Known::Awaited { hearing, .. }) = self.known.get_mut(&letter.sequence) {
            *hearing = Arc::downgrade(&made);
        }
        Some((letter, made))
    }

    /// The recipients are done with it. Returns what has to be told of it.
    pub(super) fn heard(&mut self, number: u64, outcome: Outcome) -> Vec<u64> {
        let Some(known) = self.known.get_mut(&number) else {
            return Vec::new();
        };
        match known {
            Known::Awaited { errands, .. } => {
                let errands = std::mem::take(errands);
                *known = Known::Settled(outcome);
                errands
            }
            Known::Settled(_) => Vec::new(),
        }
    }

    /// Gives up what is past its deadline and waits no longer where the patience
    /// is over. Returns the errands that had waited for what was given up, and
    /// what of it recipients have before them, for letting go of that calls the
    /// relay.
    pub(super) fn expire(&mut self, now: Instant) -> (Vec<u64>, Vec<Arc<Hearing>>) {
        let (mut told, mut retract) = (Vec::new(), Vec::new());
        for (number, known) in &mut self.known {
            let Known::Awaited {
                errands,
                hearing,
                expires,
            } = known
            else {
                continue;
            };
            if *expires > now {
                continue;
            }
            match hearing.upgrade() {
                Some(hearing) => {
                    hearing.end();
                    retract.push(hearing);
                }
                None => self.order.give_up(*number),
            }
            told.append(errands);
            *known = Known::Settled(Outcome::Gone);
        }
        let impatient: Vec<u64> = self
            .order
            .early()
            .filter(|(_, letter)| letter.patience <= now)
            .map(|(number, _)| number)
            .collect();
        for number in impatient {
            self.order.wait_no_longer(number);
        }
        (told, retract)
    }

    /// Whether all that came from the origin may be forgotten: whatever else of
    /// it comes will have expired.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.latest + SLACK <= now
    }

    /// When there is something to do for `expire`, or `is_over` becomes true.
    pub(super) fn earliest(&self, now: Instant) -> Instant {
        let expiries = self.known.values().filter_map(|known| match known {
            Known::Awaited { expires, .. } => Some(*expires),
            Known::Settled(_) => None,
        });
        let patiences = self.order.early().map(|(_, letter)| letter.patience);
        // One whose patience is over waits for another one's.
        let patiences = patiences.filter(|patience| *patience > now);
        let over = self.latest + SLACK;
        expiries.chain(patiences).min().unwrap_or(over).min(over)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::relay::Heard, *};
    use crate::{broadcast::errand::Source, proto, view::NodeId};

    const ORIGIN: Source = Source {
        node: NodeId(1),
        boot: 1,
    };

    fn letter(sequence: u64) -> Arc<Letter> {
        let broadcast = proto::Broadcast {
            sequence,
            settled: 1,
            remaining: 60_000,
            patience: 60_000,
            addressees: vec![proto::Addressee::default()],
            ..proto::Broadcast::default()
        };
        let (letter, _) = Letter::read(broadcast, Instant::now()).unwrap();
        Arc::new(letter)
    }

    #[test]
    fn of_an_origin_that_has_not_settled_an_old_one_the_latest_are_remembered() {
        let mut inflow = Inflow::new(Instant::now());
        let hearing = |number| Hearing::new(Weak::new(), Heard::Of(ORIGIN, number));
        let last = 2 * MOST_ARRIVED as u64;
        for number in 1..=last {
            assert_eq!(inflow.take_in(&letter(number), number - 1, number), None);
            assert!(inflow.next(hearing).is_some());
            // The first one stays with its recipient.
            if number > 1 {
                inflow.heard(number, Outcome::Confirmed);
            }
        }
        assert_eq!(inflow.known.len(), MOST_ARRIVED);
        let confirmed = Some(Outcome::Confirmed);
        assert_eq!(inflow.take_in(&letter(last), last - 1, 0), confirmed);
        assert_eq!(inflow.take_in(&letter(2), 1, 0), Some(Outcome::Gone));
        assert!(
            inflow.next(hearing).is_none(),
            "it is not handed over again"
        );
        assert_eq!(inflow.heard(1, Outcome::Confirmed), [1]);
    }
}
