//! The messages of one namespace that this node sends: which wait, which are
//! under way to whom, and where the next one goes.
//!
//! Senders call in from any thread; what the links and the local recipients
//! report comes in from theirs. All of it is state under one lock that is held
//! for a few instructions at a time: messages are encoded outside of it, by the
//! thread that sends them.
//!
//! **Invariant: a message is in one place.** It waits, or is under way to one
//! receiver, or is settled. It goes back to waiting only when the receiver has
//! returned it, or when the link broke before it had left this node.

use std::{
    collections::VecDeque,
    ops::{Deref, DerefMut},
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix::prelude::SendError;
use bytes::Bytes;
use tokio::time::Instant;

use super::{
    account::Account,
    feedback::LaneEnd,
    lane::{Lane, Route},
    parcel::{Offered, Parcel, Record},
    rotation,
};
use crate::{
    alarm::Alarm,
    broadcast::Relay,
    dead_letter::DeadLetterOffice,
    delivery::{Delivery, Held, Request, Ticket, Timekeeper, Waiter},
    error::DeliveryError,
    inbox::Channel,
    link::Links,
    message::{Body, RemoteMessage, encode},
    view::NodeId,
};

/// Deadlines that come so soon after another one are kept together.
const TOGETHER: Duration = Duration::from_millis(5);

/// How much one namespace may hold on the sending side.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    /// The outbox is full at this many messages that wait for a receiver.
    pub(crate) outbox_messages: usize,
    /// The outbox is full when what waits in it takes this many bytes.
    pub(crate) outbox_bytes: usize,
    /// What may be under way to one receiver, in bytes. The receiver's window
    /// says how many messages.
    pub(crate) window_bytes: usize,
    /// The largest encoded message.
    pub(crate) max_message: usize,
    /// How long a message is offered where its sender does not say.
    pub(crate) send_timeout: Duration,
}

/// What the outbox has to know of its node.
pub(crate) struct Place<M: RemoteMessage> {
    pub(crate) node: NodeId,
    pub(crate) namespace: Arc<str>,
    pub(crate) label: Arc<str>,
    pub(crate) limits: Limits,
    pub(crate) links: Arc<Links>,
    pub(crate) local: Arc<Channel<M>>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) dead_letters: Arc<DeadLetterOffice>,
}

pub(crate) struct Outbox<M: RemoteMessage> {
    pub(super) place: Place<M>,
    pub(super) this: Weak<Self>,
    state: Mutex<State<M>>,
    /// The next message will have to be encoded, by all that is known.
    encode_first: AtomicBool,
}

pub(super) struct State<M: RemoteMessage> {
    /// In the order in which they were sent.
    pub(super) waiting: VecDeque<Parcel<M>>,
    waiting_bytes: usize,
    pub(super) lanes: Vec<Lane<M>>,
    /// The lane whose turn it is.
    turn: usize,
    /// The number of the next message.
    order: u64,
    pub(super) account: Account<M>,
    /// The label of the type that the cluster receives, if it is another one.
    pub(super) other_label: Option<Arc<str>>,
    /// Set to the earliest deadline, or before it.
    pub(super) alarm: Alarm,
    /// Who waits for room, or for all to be handed over or settled.
    wakers: Vec<Waker>,
    /// The node shuts down and takes no new messages.
    pub(super) closed: bool,
}

impl<M: RemoteMessage> Outbox<M> {
    pub(crate) fn new(place: Place<M>, alarm: Alarm) -> Arc<Self> {
        let (node, recipients) = (place.node, place.local.clone());
        let outbox = Arc::new_cyclic(|this: &Weak<Self>| Self {
            place,
            this: this.clone(),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                // Of most namespaces a node has no other.
                lanes: Vec::with_capacity(1),
                turn: rand::random_range(0..1 << 16),
                order: 0,
                account: Account::new(),
                other_label: None,
                alarm,
                wakers: Vec::new(),
                closed: false,
            }),
            encode_first: AtomicBool::new(false),
        });
        let end = LaneEnd::new(outbox.this.clone());
        let local = Lane::new(node, Route::Local, end.clone(), 0);
        outbox.state().lanes.push(local);
        recipients.attach_origin(end);
        outbox
    }

    pub(super) fn state(&self) -> Locked<'_, M> {
        let state = self.state.lock();
        Locked {
            place: &self.place,
            state: Some(state.expect("no panic while messages are routed")),
        }
    }

    fn limits(&self) -> &Limits {
        &self.place.limits
    }

    // What senders call.

    pub(crate) fn do_send(&self, message: M) {
        self.send_or_bury(Offered::new(message, Waiter::None, None), true);
    }

    pub(crate) fn try_send(&self, message: M) -> Result<(), SendError<M>> {
        self.try_take_in(message, true)
    }

    /// Sends after `poll_room` was ready. Others may have taken the room in the
    /// meantime; a sink has promised to take this message all the same.
    pub(crate) fn send_when_ready(&self, message: M) -> Result<(), SendError<M>> {
        self.try_take_in(message, false)
    }

    fn try_take_in(&self, message: M, bounded: bool) -> Result<(), SendError<M>> {
        let mut offered = Offered::new(message, Waiter::None, None);
        let Err(error) = self.take_in(&mut offered, bounded) else {
            return Ok(());
        };
        match (error, offered.message.take()) {
            (DeliveryError::Full, Some(message)) => Err(SendError::Full(message)),
            (DeliveryError::Closed, Some(message)) => Err(SendError::Closed(message)),
            // `SendError` has no words for a message that cannot travel.
            (error, _) => {
                self.bury(offered, error);
                Ok(())
            }
        }
    }

    pub(crate) fn deliver(&self, message: M) -> Delivery {
        let ticket = Ticket::new(Instant::now(), self.limits().send_timeout);
        let (delivery, waiter) = Delivery::new(ticket.clone(), self.timekeeper());
        self.send_awaited(message, Waiter::Accepted(waiter), ticket);
        delivery
    }

    pub(crate) fn send(&self, message: M) -> Request<M> {
        let ticket = Ticket::new(Instant::now(), self.limits().send_timeout);
        let (request, waiter) = Request::new(ticket.clone(), self.timekeeper());
        self.send_awaited(message, Waiter::Handled(waiter), ticket);
        request
    }

    fn send_awaited(&self, message: M, waiter: Waiter<M>, ticket: Arc<Ticket>) {
        let offered = Offered::new(message, waiter, Some(Held(ticket)));
        // Whoever awaits the outcome of each message is the bound on them.
        self.send_or_bury(offered, false);
    }

    fn send_or_bury(&self, mut offered: Offered<M>, bounded: bool) {
        if let Err(error) = self.take_in(&mut offered, bounded) {
            self.bury(offered, error);
        }
    }

    /// Counts a message as sent that was not even taken in.
    fn bury(&self, mut offered: Offered<M>, error: DeliveryError) {
        let mut record = offered.record(size_of::<M>(), 0, Instant::now);
        let mut state = self.state();
        state.account.traffic.sent += 1;
        state.account.fail(&mut record, None, error);
    }

    /// What sends the broadcasts of the namespace.
    pub(crate) fn relay(&self) -> &Arc<Relay> {
        &self.place.relay
    }

    fn timekeeper(&self) -> Arc<dyn Timekeeper> {
        self.this
            .upgrade()
            .expect("an outbox that is called exists")
    }

    /// Ready when another message would be taken in.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.closed || !state.is_full(self.limits()) {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// Ready when nothing waits for a receiver any more.
    pub(crate) fn poll_handed_over(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.wait(cx);
        Poll::Pending
    }

    /// Hands the message over, or lets it wait. A message that goes to another
    /// node is encoded before, without the lock; so is one that waits, unless this
    /// node alone receives.
    ///
    /// After an error all is as it was. Else what is left of it is a message that has
    /// been encoded, so that this is dropped without the lock.
    fn take_in(&self, offered: &mut Offered<M>, bounded: bool) -> Result<(), DeliveryError> {
        let limit = self.limits().max_message;
        let first = self.encode_first.load(Ordering::Relaxed);
        let mut encoded = match first {
            true => offered.encoded(limit),
            false => None,
        };
        loop {
            let mut state = self.state();
            if state.closed {
                return Err(DeliveryError::Closed);
            }
            if let Some(theirs) = &state.other_label {
                return Err(self.other_type(theirs));
            }
            // While any wait nobody is ready, so this one overtakes nobody.
            let next = state.next(self.limits());
            if next.is_none() && bounded && state.is_full(self.limits()) {
                self.encode_first.store(false, Ordering::Relaxed);
                return Err(DeliveryError::Full);
            }
            let stays = match next {
                Some(lane) => state.lanes[lane].is_local(),
                None => state.may_stay(),
            };
            if stays != encoded.is_none() {
                // The hint was wrong.
                let first = !stays && !state.is_received_here();
                self.encode_first.store(first, Ordering::Relaxed);
            }
            let ready = match &mut encoded {
                _ if stays => None,
                Some(Ok(ready)) => Some(ready),
                Some(Err(error)) => return Err(error.clone()),
                None => {
                    drop(state);
                    encoded = offered.encoded(limit);
                    continue;
                }
            };
            let order = state.next_order();
            match (next, ready) {
                (Some(lane), Some(encoded)) => {
                    let now = || state.lanes[lane].now();
                    let record = offered.record(encoded.len(), order, now);
                    self.note_if_awaited(&mut state, &record);
                    state.lanes[lane].send_fresh(record, encoded);
                    state.turn = lane + 1;
                }
                (next, encoded) => {
                    let Some(parcel) = offered.parcel(encoded, order) else {
                        return Ok(());
                    };
                    if let Some(lane) = next {
                        if let Err(parcel) = self.hand_over(&mut state, lane, parcel) {
                            // The lane is not ready after all: look again.
                            offered.put_back(parcel);
                            continue;
                        }
                    } else {
                        self.note_deadline(&mut state, &parcel.record);
                        state.waiting_bytes += parcel.record.size;
                        state.waiting.push_back(parcel);
                    }
                }
            }
            state.account.traffic.sent += 1;
            return Ok(());
        }
    }

    // What happens to messages under the lock.

    /// Gives a message that has not just been encoded to a receiver that is ready,
    /// and back if that turns out not to be. One that cannot travel fails.
    fn hand_over(
        &self,
        state: &mut State<M>,
        lane: usize,
        parcel: Parcel<M>,
    ) -> Result<(), Parcel<M>> {
        let Parcel { body, mut record } = parcel;
        let to = &mut state.lanes[lane];
        let encoded = if to.is_local() {
            let (end, next, ask) = (to.end.clone(), to.next(), record.waiter.asks());
            if let Err(body) = self.place.local.offer(end, next, ask, body) {
                to.window = 0;
                return Err(Parcel { body, record });
            }
            None
        } else {
            match self.encoded(state, body) {
                Ok(bytes) => {
                    record.size = bytes.len();
                    Some(bytes)
                }
                Err(error) => {
                    state.account.fail(&mut record, None, error);
                    return Ok(());
                }
            }
        };
        self.note_if_awaited(state, &record);
        state.lanes[lane].send_off(record, encoded);
        state.turn = lane + 1;
        Ok(())
    }

    /// The encoded form of a message that has waited. Only one that waited while no
    /// other node received is encoded now, with the lock held.
    fn encoded(&self, state: &mut State<M>, body: Body<M>) -> Result<Bytes, DeliveryError> {
        let limit = self.limits().max_message;
        let message = match body {
            Body::Encoded(bytes) => return Ok(bytes),
            Body::Value(message) => message,
        };
        let encoded = encode(&message, limit);
        state.account.forget(Some(Body::Value(message)));
        encoded.map_err(|error| DeliveryError::unsent(error, limit))
    }

    /// Hands over what waits as far as there are receivers for it, and wakes
    /// who waits for that. Called after whatever may have made one ready.
    pub(super) fn pump(&self, state: &mut State<M>) {
        while !state.waiting.is_empty() {
            let Some(lane) = state.next(self.limits()) else {
                break;
            };
            let Some(parcel) = state.pop_waiting() else {
                break;
            };
            if let Err(parcel) = self.hand_over(state, lane, parcel) {
                state.wait_again(parcel);
            }
        }
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
    }

    /// Lets a message wait again that no recipient has seen, if there is time.
    pub(super) fn offer_again(&self, state: &mut State<M>, parcel: Parcel<M>) {
        let record = &parcel.record;
        if record.failed {
            return state.account.forget(Some(parcel.body));
        }
        let default = self.limits().send_timeout;
        if record.expires(default) <= Instant::now() {
            let error = DeliveryError::Timeout {
                waited: record.timeout(default),
                maybe_delivered: false,
            };
            return state.fail(parcel, error);
        }
        self.note_deadline(state, record);
        state.wait_again(parcel);
    }

    fn note_if_awaited(&self, state: &mut State<M>, record: &Record<M>) {
        if record.is_awaited() {
            self.note_deadline(state, record);
        }
    }

    fn note_deadline(&self, state: &mut State<M>, record: &Record<M>) {
        self.note(state, record.expires(self.limits().send_timeout));
    }

    fn note(&self, state: &mut State<M>, deadline: Instant) {
        state.alarm.set(deadline, &self.this, Self::expire);
    }

    pub(super) fn other_type(&self, theirs: &str) -> DeliveryError {
        DeliveryError::other_type(&self.place.namespace, theirs, &self.place.label)
    }

    /// Gives up what is past its deadline.
    fn expire(&self, now: Instant) {
        let default = self.limits().send_timeout;
        let mut guard = self.state();
        let state = &mut *guard;
        let nobody = !state.lanes.iter().any(|lane| lane.agreed);
        let mut earliest: Option<Instant> = None;
        let mut keep = |record: &Record<M>| {
            let expires = record.expires(default);
            let kept = expires > now;
            if kept {
                earliest = Some(earliest.map_or(expires, |earliest| earliest.min(expires)));
            }
            kept
        };
        let (kept, late): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(|parcel| keep(&parcel.record));
        state.waiting = kept;
        for parcel in late {
            state.waiting_bytes -= parcel.record.size;
            let waited = parcel.record.timeout(default);
            let error = match nobody {
                true => DeliveryError::NoReceiver { waited },
                false => DeliveryError::Timeout {
                    waited,
                    maybe_delivered: false,
                },
            };
            state.fail(parcel, error);
        }
        let late = |record: &Record<M>, maybe_delivered| DeliveryError::Timeout {
            waited: record.timeout(default),
            maybe_delivered,
        };
        for lane in &mut state.lanes {
            let is_late = |record: &Record<M>| record.is_awaited() && !keep(record);
            for mut record in lane.expire(is_late) {
                let error = late(&record, false);
                state.account.fail(&mut record, None, error);
            }
            for record in lane.sent_mut() {
                if record.is_awaited() && !keep(record) {
                    // Should it come back, it is not offered again.
                    let error = late(record, true);
                    state.account.fail(record, None, error);
                }
            }
            lane.asking.retain(|_, record| {
                let kept = keep(record);
                if !kept {
                    let error = late(record, true);
                    state.account.fail(record, None, error);
                }
                kept
            });
        }
        state.alarm.clear();
        if let Some(earliest) = earliest {
            // To look at all of them takes its time, so it is not done for each.
            self.note(state, earliest.max(now + TOGETHER));
        }
        self.pump(state);
    }
}

/// The state under the lock. What has to be done without it is done when it is
/// let go.
pub(super) struct Locked<'a, M: RemoteMessage> {
    place: &'a Place<M>,
    /// Until it is dropped.
    state: Option<MutexGuard<'a, State<M>>>,
}

impl<M: RemoteMessage> Deref for Locked<'_, M> {
    type Target = State<M>;

    fn deref(&self) -> &State<M> {
        self.state.as_deref().expect("it is not dropped yet")
    }
}

impl<M: RemoteMessage> DerefMut for Locked<'_, M> {
    fn deref_mut(&mut self) -> &mut State<M> {
        self.state.as_deref_mut().expect("it is not dropped yet")
    }
}

impl<M: RemoteMessage> Drop for Locked<'_, M> {
    fn drop(&mut self) {
        if self.account.later.is_empty() {
            return;
        }
        let later = std::mem::take(&mut self.account.later);
        self.state = None;
        for later in later {
            later.run(self.place);
        }
    }
}

impl<M: RemoteMessage> State<M> {
    fn next(&self, limits: &Limits) -> Option<usize> {
        rotation::next(self.turn, self.lanes.len(), |lane| {
            self.lanes[lane].is_ready(limits.window_bytes)
        })
    }

    fn is_full(&self, limits: &Limits) -> bool {
        self.waiting.len() >= limits.outbox_messages || self.waiting_bytes >= limits.outbox_bytes
    }

    /// Has the task polled again when anything has changed.
    pub(super) fn wait(&mut self, cx: &Context<'_>) {
        if !self.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
            self.wakers.push(cx.waker().clone());
        }
    }

    /// Whether a message that waits will go to a recipient of this node, which
    /// gets it unencoded. Where it may go to another node as well, its sender
    /// encodes it, for later that would hold up the namespace.
    fn may_stay(&self) -> bool {
        let mut lanes = self.lanes.iter();
        self.is_received_here() && !lanes.any(|lane| lane.agreed && !lane.is_local())
    }

    fn is_received_here(&self) -> bool {
        let mut lanes = self.lanes.iter();
        lanes.any(|lane| lane.is_local() && lane.window > 0)
    }

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    pub(super) fn pop_waiting(&mut self) -> Option<Parcel<M>> {
        let parcel = self.waiting.pop_front()?;
        self.waiting_bytes -= parcel.record.size;
        Some(parcel)
    }

    /// Counts that a message that waited has failed.
    pub(super) fn fail(&mut self, parcel: Parcel<M>, error: DeliveryError) {
        let Parcel { body, mut record } = parcel;
        self.account.fail(&mut record, Some(body), error);
    }

    /// Puts a message back among those that wait, where its turn is.
    fn wait_again(&mut self, parcel: Parcel<M>) {
        let place = self
            .waiting
            .partition_point(|waiting| waiting.record.order < parcel.record.order);
        self.waiting_bytes += parcel.record.size;
        self.waiting.insert(place, parcel);
    }

    /// Forgets the lanes that nothing is on and nothing will be.
    pub(super) fn tidy(&mut self) {
        self.lanes
            .retain(|lane| lane.is_local() || lane.agreed || !lane.is_idle());
    }
}

impl<M: RemoteMessage> Timekeeper for Outbox<M> {
    fn moved(&self, deadline: Instant) {
        let mut state = self.state();
        self.note(&mut state, deadline);
    }
}
