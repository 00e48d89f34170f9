//! The broadcasts of this node: which wait, and which are under way.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Weak},
    time::Duration,
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::Instant};
use tracing::debug;

use super::{
    errand::{Answer, Errand, Letter},
    hearing::{HandOver, Hearing, own_copies},
    relay::{Heard, Relay, State, Task},
    tree::{self, Addressee},
};
use crate::{
    delivery::{Broadcast, Reached, Ticket},
    error::DeliveryError,
    inbox::Channel,
    message::{RemoteMessage, encode},
    view::{NodeId, Receivers},
};

/// The sending side of a node's own broadcasts.
pub(super) struct Outflow {
    /// The number of the next one.
    next: u64,
    /// In the order in which they were sent.
    pub(super) waiting: VecDeque<Unsent>,
    /// By number.
    pub(super) under_way: BTreeMap<u64, UnderWay>,
    bytes: usize,
}

pub(super) struct UnderWay {
    pub(super) errand: u64,
    /// To whom.
    receivers: Arc<Receivers>,
    deadline: Arc<Ticket>,
    size: usize,
}

/// A broadcast that has no number yet.
pub(super) struct Unsent {
    /// Encoded, unless no other node receives.
    pub(super) message: Option<Bytes>,
    pub(super) size: usize,
    /// For the recipients of this node.
    pub(super) hand_over: HandOver,
    pub(super) lossy: bool,
    pub(super) deadline: Arc<Ticket>,
    pub(super) waiter: oneshot::Sender<Result<Reached, DeliveryError>>,
}

impl Outflow {
    pub(super) fn new() -> Self {
        Self {
            next: 1,
            waiting: VecDeque::new(),
            under_way: BTreeMap::new(),
            bytes: 0,
        }
    }

    /// The errands of those that are under way, in order.
    pub(super) fn errands(&self) -> Vec<u64> {
        let under_way = self.under_way.values();
        under_way.map(|under_way| under_way.errand).collect()
    }

    fn has_room(&self, window: usize, window_bytes: usize) -> bool {
        self.under_way.len() < window && self.bytes < window_bytes
    }

    /// The number of the last one that is under way to a receiver; nought if
    /// none is.
    fn previous(&self, node: NodeId, boot: u64) -> u64 {
        let mut under_way = self.under_way.iter().rev();
        let last = under_way.find(|(_, under_way)| {
            let receivers = &under_way.receivers.nodes;
            receivers.get(&node) == Some(&boot)
        });
        last.map_or(0, |(number, _)| *number)
    }
}

impl Relay {
    /// Sends a message to all receivers. Encoded on the caller's thread, without
    /// the lock.
    pub(crate) fn broadcast<M: RemoteMessage + Clone>(
        &self,
        channel: &Arc<Channel<M>>,
        message: M,
        lossy: bool,
    ) -> Broadcast {
        let deadline = Ticket::new(Instant::now(), self.place.send_timeout);
        let timekeeper = self.this.upgrade();
        let timekeeper = timekeeper.expect("a relay that is called exists");
        let (broadcast, mut waiter) = Broadcast::new(deadline.clone(), timekeeper);
        let mut encoded = None;
        let mut size = size_of::<M>();
        let limit = self.place.max_message;
        loop {
            if encoded.is_none() && self.has_to_be_encoded() {
                match encode(&message, limit) {
                    Ok(bytes) => {
                        size = bytes.len();
                        encoded = Some(bytes);
                    }
                    Err(error) => {
                        self.refuse(waiter, DeliveryError::unsent(error, limit));
                        return broadcast;
                    }
                }
            }
            // Each recipient gets its own, made where the message comes from.
            let recipients = channel.recipients().into_iter();
            let copies: HashMap<u64, M> = recipients
                .map(|recipient| (recipient, message.clone()))
                .collect();
            let hand_over = own_copies(channel.clone(), copies, encoded.clone());
            let unsent = Unsent {
                message: encoded.clone(),
                size,
                hand_over,
                lossy,
                deadline: deadline.clone(),
                waiter,
            };
            match self.take_in(unsent) {
                Ok(()) => return broadcast,
                Err(back) => waiter = back.waiter,
            }
        }
    }

    fn refuse(
        &self,
        waiter: oneshot::Sender<Result<Reached, DeliveryError>>,
        error: DeliveryError,
    ) {
        let mut state = self.state();
        state.counts.sent += 1;
        state.fail(waiter, error);
        self.done(state);
    }

    /// Tells what became of a broadcast.
    pub(super) fn tell(
        &self,
        waiter: oneshot::Sender<Result<Reached, DeliveryError>>,
        outcome: Result<Reached, DeliveryError>,
    ) {
        let (node, namespace) = (self.place.node, &self.place.namespace);
        match &outcome {
            Err(error) => debug!(%node, %namespace, %error, "a broadcast failed"),
            Ok(reached) if reached.confirmed < reached.receivers => {
                debug!(%node, %namespace, ?reached, "a broadcast did not reach all");
            }
            Ok(_) => {}
        }
        let _ = waiter.send(outcome);
    }

    fn has_to_be_encoded(&self) -> bool {
        let mut state = self.state();
        self.look(&mut state);
        !self.may_go(&state) || self.others_receive(&state)
    }

    fn may_go(&self, state: &State) -> bool {
        let (window, bytes) = (self.place.window, self.place.window_bytes);
        state.own.waiting.is_empty() && state.own.has_room(window, bytes)
    }

    fn others_receive(&self, state: &State) -> bool {
        let receivers = state.receivers.as_deref();
        receivers.is_some_and(|receivers| {
            let mut nodes = receivers.nodes.keys();
            nodes.any(|node| *node != self.place.node)
        })
    }

    /// Sends, or lets wait. Gives it back if it has to be encoded first.
    fn take_in(&self, unsent: Unsent) -> Result<(), Box<Unsent>> {
        let mut state = self.state();
        self.look(&mut state);
        let refusal = match self.other_type(&state) {
            _ if state.closed => Some(DeliveryError::Closed),
            other => other,
        };
        let may_go = self.may_go(&state);
        if refusal.is_none() && unsent.message.is_none() && (!may_go || self.others_receive(&state))
        {
            return Err(Box::new(unsent));
        }
        state.counts.sent += 1;
        if let Some(error) = refusal {
            state.add(Task::Drop(unsent.hand_over));
            state.fail(unsent.waiter, error);
        } else {
            self.note(&mut state, unsent.deadline.at());
            state.own.waiting.push_back(unsent);
        }
        // Which sends it, if there is room.
        self.done(state);
        Ok(())
    }

    /// The error if the cluster receives the namespace with another type.
    pub(super) fn other_type(&self, state: &State) -> Option<DeliveryError> {
        let theirs = &state.receivers.as_ref()?.label;
        let (namespace, ours) = (&self.place.namespace, &self.place.label);
        (theirs != ours).then(|| DeliveryError::other_type(namespace, theirs, ours))
    }

    /// Sends what waits, as far as there is room.
    pub(super) fn pump(&self, state: &mut State) {
        let (window, bytes) = (self.place.window, self.place.window_bytes);
        while state.own.has_room(window, bytes)
            && let Some(unsent) = state.own.waiting.pop_front()
        {
            self.launch(state, unsent);
        }
    }

    fn launch(&self, state: &mut State, unsent: Unsent) {
        let Unsent {
            message,
            size,
            hand_over,
            lossy,
            deadline,
            waiter,
        } = unsent;
        let Some(receivers) = state.receivers.clone() else {
            state.counts.settled += 1;
            state.add(Task::Drop(hand_over));
            state.add(Task::Tell(waiter, Ok(Reached::default())));
            return;
        };
        let own = &mut state.own;
        let sequence = own.next;
        own.next += 1;
        let mut others = addressees(own, &receivers);
        tree::rotate(&mut others, self.place.node);
        let all = others.len();
        others.retain(|addressee| !self.is_me(addressee));
        let here = others.len() < all;
        let settled = own.under_way.keys().next().copied();
        let deadlines = own.under_way.values().map(|sent| sent.deadline.at());
        let patience = deadlines.max().unwrap_or_else(|| deadline.at());
        let letter = Letter {
            origin: self.me(),
            sequence,
            settled: settled.unwrap_or(sequence),
            lossy,
            hops: 0,
            deadline: deadline.clone(),
            patience,
            message: message.unwrap_or_default(),
            room: None,
        };
        let answer = Answer::Sender {
            waiter,
            receivers: all,
            hearing: Weak::new(),
            waiting: Vec::new(),
        };
        let errand = state.begin(Errand::new(Arc::new(letter), answer));
        state.own.bytes += size;
        state.own.under_way.insert(
            sequence,
            UnderWay {
                errand,
                receivers,
                deadline,
                size,
            },
        );
        match here {
            true => {
                let made = Hearing::new(self.this.clone(), Heard::Own(errand));
                if let Some(errand) = state.errands.get_mut(&errand) {
                    errand.here = true;
                    if let Answer::Sender { hearing, .. } = &mut errand.answer {
                        *hearing = Arc::downgrade(&made);
                    }
                }
                let limit = self.limit(lossy, size);
                state.add(Task::HandOverOwn(hand_over, limit, made));
            }
            false => state.add(Task::Drop(hand_over)),
        }
        self.plan(state, errand, others);
        self.settle(state, errand);
    }

    /// Tells the sender what became of a broadcast, as far as is known.
    pub(super) fn conclude(&self, state: &mut State, id: u64) {
        let Some(errand) = state.errands.remove(&id) else {
            return;
        };
        if let Some(sent) = state.own.under_way.remove(&errand.letter.sequence) {
            state.own.bytes -= sent.size;
        }
        let Answer::Sender {
            waiter,
            receivers,
            hearing,
            ..
        } = errand.answer
        else {
            return;
        };
        if let Some(hearing) = hearing.upgrade() {
            hearing.end();
            state.add(Task::Retract(vec![hearing]));
        }
        let reached = Reached {
            receivers,
            confirmed: errand.tally.confirmed as usize,
            missed: errand.tally.missed as usize,
        };
        let counts = &mut state.counts;
        counts.settled += 1;
        counts.confirmed += errand.tally.confirmed;
        counts.missed += errand.tally.missed;
        let rest = receivers.saturating_sub(reached.confirmed + reached.missed);
        counts.unconfirmed += rest as u64;
        state.add(Task::Tell(waiter, Ok(reached)));
    }

    /// Gives up what has waited for longer than it may.
    pub(super) fn expire_waiting(&self, state: &mut State, now: Instant) {
        let waiting = std::mem::take(&mut state.own.waiting);
        for unsent in waiting {
            if unsent.deadline.at() > now {
                state.own.waiting.push_back(unsent);
                continue;
            }
            let waited: Duration = unsent.deadline.timeout();
            let error = DeliveryError::Timeout {
                waited,
                maybe_delivered: false,
            };
            state.add(Task::Drop(unsent.hand_over));
            state.fail(unsent.waiter, error);
        }
    }
}

impl State {
    /// Counts that a broadcast was not sent.
    pub(super) fn fail(
        &mut self,
        waiter: oneshot::Sender<Result<Reached, DeliveryError>>,
        error: DeliveryError,
    ) {
        self.counts.failed += 1;
        self.add(Task::Tell(waiter, Err(error)));
    }
}

/// All receivers, with what each gets before.
fn addressees(own: &Outflow, receivers: &Arc<Receivers>) -> Vec<Addressee> {
    // Mostly they are the same as the last time.
    let last = own.under_way.last_key_value();
    let same = last.filter(|(_, last)| Arc::ptr_eq(&last.receivers, receivers));
    let nodes = receivers.nodes.iter();
    nodes
        .map(|(node, boot)| Addressee {
            node: *node,
            boot: *boot,
            previous: match same {
                Some((number, _)) => *number,
                None => own.previous(*node, *boot),
            },
        })
        .collect()
}
