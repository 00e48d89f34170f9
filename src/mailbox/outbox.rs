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
    collections::{BTreeMap, VecDeque},
    future::{Future, poll_fn},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
    time::Duration,
};

use actix::prelude::SendError;
use bytes::Bytes;
use tokio::{sync::Notify, time::Instant};
use tracing::{debug, warn};

use super::rotation;
use crate::{
    delivery::{Deadline, Delivery, Reply, Request, Timekeeper, Waiter, far},
    error::DeliveryError,
    inbox::{Arrived, Channel, Origin},
    link::{Feedback, Link, Links, Target, Verdict},
    message::{Body, RemoteMessage, encode},
    status::Counters,
    view::{NodeId, View},
};

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
    pub(crate) counters: Arc<Counters>,
}

pub(crate) struct Outbox<M: RemoteMessage> {
    place: Place<M>,
    this: Weak<Self>,
    /// How the local recipients answer.
    local_origin: Arc<LocalOrigin<M>>,
    state: Mutex<State<M>>,
    /// The earliest deadline has become an earlier one.
    sooner: Notify,
}

struct State<M: RemoteMessage> {
    /// In the order in which they were sent.
    waiting: VecDeque<Parcel<M>>,
    waiting_bytes: usize,
    lanes: Vec<Lane<M>>,
    /// The lane whose turn it is.
    turn: usize,
    /// The number of the next message.
    order: u64,
    /// What the local recipients grant.
    local_window: u32,
    /// The label of the type that the cluster receives, if it is another one.
    other_label: Option<Arc<str>>,
    /// No deadline passes before this instant.
    earliest: Option<Instant>,
    /// Who waits for room, or for all to be handed over or settled.
    wakers: Vec<Waker>,
    /// The node shuts down and takes no new messages.
    closed: bool,
}

/// A message, and what is known of it.
struct Parcel<M: RemoteMessage> {
    /// `None` while a local recipient has it.
    body: Option<Body<M>>,
    size: usize,
    order: u64,
    sent: Instant,
    /// Where the sender can move it.
    deadline: Option<Deadline>,
    waiter: Waiter<M>,
    /// The sender has been told that the outcome is unknown, so it must not be
    /// offered again.
    given_up: bool,
}

/// The messages that are under way to one receiver.
struct Lane<M: RemoteMessage> {
    node: NodeId,
    route: Route,
    /// Whether the node is a receiver in the view.
    agreed: bool,
    /// How many may be under way. Nought while the link is down.
    window: u32,
    /// The number of the next message on this lane.
    next: u64,
    under_way: BTreeMap<u64, Parcel<M>>,
    under_way_bytes: usize,
    /// Accepted, and not yet answered.
    asking: BTreeMap<u64, Parcel<M>>,
}

enum Route {
    Local,
    Remote { link: Arc<Link>, channel: u32 },
}

impl<M: RemoteMessage> Parcel<M> {
    fn timeout(&self, default: Duration) -> Duration {
        self.deadline.as_ref().map_or(default, Deadline::timeout)
    }

    fn expires(&self, default: Duration) -> Instant {
        far(self.sent, self.timeout(default))
    }

    fn is_encoded(&self) -> bool {
        matches!(self.body, Some(Body::Encoded(_)))
    }
}

impl<M: RemoteMessage> Lane<M> {
    fn is_ready(&self, window_bytes: usize) -> bool {
        self.agreed
            && self.under_way.len() < self.window as usize
            && self.under_way_bytes < window_bytes
    }

    fn is_local(&self) -> bool {
        matches!(self.route, Route::Local)
    }

    fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.asking.is_empty()
    }

    fn settle(&mut self, sequence: u64) -> Option<Parcel<M>> {
        let parcel = self.under_way.remove(&sequence)?;
        self.under_way_bytes -= parcel.size;
        Some(parcel)
    }
}

/// A message that was not taken in.
struct Unsent<M: RemoteMessage> {
    parcel: Parcel<M>,
    refused: Refused,
}

/// Why a message was not taken in.
enum Refused {
    Full,
    Failed(DeliveryError),
}

impl<M: RemoteMessage> Parcel<M> {
    fn refused(self, refused: Refused) -> Box<Unsent<M>> {
        Box::new(Unsent {
            parcel: self,
            refused,
        })
    }

    fn failed(self, error: DeliveryError) -> Box<Unsent<M>> {
        self.refused(Refused::Failed(error))
    }
}

impl<M: RemoteMessage> Outbox<M> {
    pub(crate) fn new(place: Place<M>) -> Arc<Self> {
        let outbox = Arc::new_cyclic(|this: &Weak<Self>| Self {
            place,
            this: this.clone(),
            local_origin: Arc::new(LocalOrigin(this.clone())),
            state: Mutex::new(State {
                waiting: VecDeque::new(),
                waiting_bytes: 0,
                lanes: Vec::new(),
                turn: rand::random_range(0..1 << 16),
                order: 0,
                local_window: 0,
                other_label: None,
                earliest: None,
                wakers: Vec::new(),
                closed: false,
            }),
            sooner: Notify::new(),
        });
        let origin = outbox.local_origin.clone();
        outbox.place.local.attach_origin(origin);
        outbox
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state
            .lock()
            .expect("no panic while messages are routed")
    }

    fn limits(&self) -> &Limits {
        &self.place.limits
    }

    // What senders call.

    pub(crate) fn do_send(&self, message: M) {
        let parcel = self.parcel(message, Waiter::None, None);
        if let Err(unsent) = self.take_in(parcel, true) {
            self.refuse(*unsent);
        }
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
        let parcel = self.parcel(message, Waiter::None, None);
        let Err(unsent) = self.take_in(parcel, bounded) else {
            return Ok(());
        };
        match (unsent.refused, unsent.parcel.body) {
            (Refused::Full, Some(Body::Value(message))) => Err(SendError::Full(message)),
            (Refused::Failed(DeliveryError::Closed), Some(Body::Value(message))) => {
                Err(SendError::Closed(message))
            }
            // `SendError` has no words for a message that cannot travel.
            (refused, body) => {
                let parcel = Parcel {
                    body,
                    ..unsent.parcel
                };
                self.refuse(Unsent { parcel, refused });
                Ok(())
            }
        }
    }

    pub(crate) fn deliver(&self, message: M) -> Delivery {
        let deadline = Deadline::new(Instant::now(), self.limits().send_timeout);
        let (delivery, waiter) = Delivery::new(deadline.clone(), self.timekeeper());
        self.send_awaited(message, Waiter::Accepted(waiter), deadline);
        delivery
    }

    pub(crate) fn send(&self, message: M) -> Request<M> {
        let deadline = Deadline::new(Instant::now(), self.limits().send_timeout);
        let (request, waiter) = Request::new(deadline.clone(), self.timekeeper());
        self.send_awaited(message, Waiter::Handled(waiter), deadline);
        request
    }

    fn send_awaited(&self, message: M, waiter: Waiter<M>, deadline: Deadline) {
        let parcel = self.parcel(message, waiter, Some(deadline));
        // Whoever awaits the outcome of each message is the bound on them.
        if let Err(unsent) = self.take_in(parcel, false) {
            self.refuse(*unsent);
        }
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
        state.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    /// Ready when nothing waits for a receiver any more.
    pub(crate) fn poll_handed_over(&self, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state();
        if state.waiting.is_empty() {
            return Poll::Ready(());
        }
        state.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn parcel(&self, message: M, waiter: Waiter<M>, deadline: Option<Deadline>) -> Parcel<M> {
        let body = Body::Value(message);
        Parcel {
            size: body.size(),
            body: Some(body),
            order: 0,
            sent: Instant::now(),
            deadline,
            waiter,
            given_up: false,
        }
    }

    /// Hands the message over, or lets it wait. A message that goes to another
    /// node is encoded first, without the lock; so is one that waits, unless
    /// this node itself may turn out to receive it.
    fn take_in(&self, mut parcel: Parcel<M>, bounded: bool) -> Result<(), Box<Unsent<M>>> {
        loop {
            let mut state = self.state();
            if state.closed {
                return Err(parcel.failed(DeliveryError::Closed));
            }
            if let Some(theirs) = &state.other_label {
                let error = self.other_type(theirs);
                return Err(parcel.failed(error));
            }
            let next = match state.waiting.is_empty() {
                true => state.next(self.limits()),
                // Nobody overtakes those who wait.
                false => None,
            };
            let encoded = parcel.is_encoded();
            match next {
                Some(lane) if encoded || state.lanes[lane].is_local() => {
                    parcel.order = state.next_order();
                    match self.hand_over(&mut state, lane, parcel) {
                        Ok(()) => return Ok(()),
                        // The lane is not ready after all: look again.
                        Err(back) => parcel = back,
                    }
                }
                None if !encoded && bounded && state.is_full(self.limits()) => {
                    return Err(parcel.refused(Refused::Full));
                }
                None if encoded || state.local_window > 0 => {
                    parcel.order = state.next_order();
                    self.note_deadline(&mut state, &parcel);
                    state.waiting_bytes += parcel.size;
                    state.waiting.push_back(parcel);
                    return Ok(());
                }
                _ => {
                    drop(state);
                    parcel = self.encode(parcel)?;
                }
            }
        }
    }

    fn encode(&self, mut parcel: Parcel<M>) -> Result<Parcel<M>, Box<Unsent<M>>> {
        let Some(Body::Value(message)) = &parcel.body else {
            return Ok(parcel);
        };
        let limit = self.limits().max_message;
        match encode(message) {
            Ok(bytes) if bytes.len() > limit => {
                let size = bytes.len();
                Err(parcel.failed(DeliveryError::TooLarge { size, limit }))
            }
            Ok(bytes) => {
                parcel.size = bytes.len();
                parcel.body = Some(Body::Encoded(bytes));
                Ok(parcel)
            }
            Err(reason) => Err(parcel.failed(DeliveryError::Encode { reason })),
        }
    }

    // What happens to messages under the lock.

    /// Gives a message to a receiver that is ready, or gives it back if that
    /// turns out not to be.
    fn hand_over(
        &self,
        state: &mut State<M>,
        index: usize,
        mut parcel: Parcel<M>,
    ) -> Result<(), Parcel<M>> {
        let lane = &mut state.lanes[index];
        let sequence = lane.next;
        let ask = parcel.waiter.asks();
        let handed = match (&lane.route, parcel.body.take()) {
            (Route::Local, Some(body)) => {
                let arrived = Arrived {
                    origin: self.local_origin.clone(),
                    sequence,
                    ask,
                    body,
                };
                self.place.local.offer(arrived).map_err(Some)
            }
            (Route::Remote { link, channel }, Some(Body::Encoded(bytes))) => {
                parcel.body = Some(Body::Encoded(bytes.clone()));
                link.push(*channel, sequence, ask, bytes)
                    .map_err(|bytes| Some(Body::Encoded(bytes)))
            }
            (_, other) => Err(other),
        };
        if let Err(body) = handed {
            lane.window = 0;
            parcel.body = body;
            return Err(parcel);
        }
        lane.next += 1;
        lane.under_way_bytes += parcel.size;
        if !matches!(parcel.waiter, Waiter::None) {
            self.note_deadline(state, &parcel);
        }
        let lane = &mut state.lanes[index];
        lane.under_way.insert(sequence, parcel);
        state.turn = index + 1;
        Ok(())
    }

    /// Hands over what waits as far as there are receivers for it, and wakes
    /// who waits for that.
    fn pump(&self, state: &mut State<M>) {
        while !state.waiting.is_empty() {
            let Some(lane) = state.next(self.limits()) else {
                break;
            };
            let Some(mut parcel) = state.pop_waiting() else {
                break;
            };
            if !state.lanes[lane].is_local() {
                match self.encode(parcel) {
                    Ok(encoded) => parcel = encoded,
                    Err(unsent) => {
                        self.refuse(*unsent);
                        continue;
                    }
                }
            }
            if let Err(parcel) = self.hand_over(state, lane, parcel) {
                state.wait_again(parcel);
            }
        }
        for waker in state.wakers.drain(..) {
            waker.wake();
        }
    }

    /// Lets a message wait again that no recipient has seen.
    fn offer_again(&self, state: &mut State<M>, parcel: Parcel<M>) {
        if parcel.given_up {
            return self.bury(&parcel, "returned after its deadline");
        }
        self.note_deadline(state, &parcel);
        state.wait_again(parcel);
    }

    fn note_deadline(&self, state: &mut State<M>, parcel: &Parcel<M>) {
        let expires = parcel.expires(self.limits().send_timeout);
        if state.earliest.is_none_or(|earliest| expires < earliest) {
            state.earliest = Some(expires);
            self.sooner.notify_one();
        }
    }

    fn refuse(&self, Unsent { parcel, refused }: Unsent<M>) {
        match refused {
            Refused::Full => self.bury(&parcel, "the outbox is full"),
            Refused::Failed(error) => self.fail(parcel, error),
        }
    }

    fn fail(&self, mut parcel: Parcel<M>, error: DeliveryError) {
        match std::mem::replace(&mut parcel.waiter, Waiter::None) {
            Waiter::None => self.bury(&parcel, &error.to_string()),
            waiter => {
                debug!(namespace = %self.place.namespace, %error, "a message was not delivered");
                waiter.fail(error);
            }
        }
    }

    /// Nobody waits for the outcome, so this is all that is heard of it.
    fn bury(&self, parcel: &Parcel<M>, reason: &str) {
        self.place.counters.dead_letter();
        warn!(
            node = %self.place.node,
            namespace = %self.place.namespace,
            reason,
            bytes = parcel.size,
            age = ?parcel.sent.elapsed(),
            "dead letter"
        );
    }

    fn other_type(&self, theirs: &str) -> DeliveryError {
        DeliveryError::Rejected {
            reason: format!(
                "the namespace {:?} carries {theirs} in this cluster and {} here",
                self.place.namespace, self.place.label
            ),
        }
    }

    // What the mailbox calls.

    /// The next deadline that has to be kept.
    pub(crate) fn earliest(&self) -> Option<Instant> {
        self.state().earliest
    }

    /// Resolves when `earliest` has become earlier.
    pub(crate) async fn sooner(&self) {
        self.sooner.notified().await;
    }

    /// Gives up what is past its deadline.
    pub(crate) fn expire(&self, now: Instant) {
        let default = self.limits().send_timeout;
        let mut state = self.state();
        let nobody = !state.lanes.iter().any(|lane| lane.agreed);
        let mut earliest: Option<Instant> = None;
        let mut keep = |parcel: &Parcel<M>| {
            let expires = parcel.expires(default);
            let kept = expires > now;
            if kept {
                earliest = Some(earliest.map_or(expires, |earliest| earliest.min(expires)));
            }
            kept
        };
        let (kept, late): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.waiting)
            .into_iter()
            .partition(&mut keep);
        state.waiting = kept;
        state.waiting_bytes -= late.iter().map(|parcel| parcel.size).sum::<usize>();
        for parcel in late {
            let waited = parcel.timeout(default);
            let error = match nobody {
                true => DeliveryError::NoReceiver { waited },
                false => DeliveryError::Timeout {
                    waited,
                    maybe_delivered: false,
                },
            };
            self.fail(parcel, error);
        }
        for lane in &mut state.lanes {
            for parcel in lane.under_way.values_mut() {
                if !matches!(parcel.waiter, Waiter::None) && !keep(parcel) {
                    parcel.give_up(default);
                }
            }
            lane.asking.retain(|_, parcel| {
                let kept = keep(parcel);
                if !kept {
                    parcel.give_up(default);
                }
                kept
            });
        }
        state.earliest = earliest;
        self.pump(&mut state);
    }
}

impl<M: RemoteMessage> Parcel<M> {
    /// Tells the sender that the outcome is unknown.
    fn give_up(&mut self, default: Duration) {
        let waited = self.timeout(default);
        self.given_up = true;
        std::mem::replace(&mut self.waiter, Waiter::None).fail(DeliveryError::Timeout {
            waited,
            maybe_delivered: true,
        });
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

    fn next_order(&mut self) -> u64 {
        self.order += 1;
        self.order
    }

    fn pop_waiting(&mut self) -> Option<Parcel<M>> {
        let parcel = self.waiting.pop_front()?;
        self.waiting_bytes -= parcel.size;
        Some(parcel)
    }

    /// Puts a message back among those that wait, where its turn is.
    fn wait_again(&mut self, parcel: Parcel<M>) {
        let place = self
            .waiting
            .partition_point(|waiting| waiting.order < parcel.order);
        self.waiting_bytes += parcel.size;
        self.waiting.insert(place, parcel);
    }

    fn lane(&mut self, node: NodeId) -> Option<&mut Lane<M>> {
        self.lanes.iter_mut().find(|lane| lane.node == node)
    }

    /// Forgets the lanes that nothing is on and nothing will be.
    fn tidy(&mut self) {
        self.lanes.retain(|lane| lane.agreed || !lane.is_idle());
    }
}

impl<M: RemoteMessage> Timekeeper for Outbox<M> {
    fn moved(&self, deadline: Instant) {
        let mut state = self.state();
        if state.earliest.is_none_or(|earliest| deadline < earliest) {
            state.earliest = Some(deadline);
            self.sooner.notify_one();
        }
    }
}

impl<M: RemoteMessage> Feedback for Outbox<M> {
    fn granted(&self, peer: NodeId, window: u32, refusal: Option<String>) {
        if let Some(reason) = refusal {
            warn!(namespace = %self.place.namespace, %peer, %reason, "a receiver refuses");
        }
        let mut state = self.state();
        if let Some(lane) = state.lane(peer) {
            lane.window = window;
        }
        self.pump(&mut state);
    }

    fn settled(&self, peer: NodeId, first: u64, count: u64, verdict: Verdict) {
        let mut state = self.state();
        let Some(lane) = state.lane(peer) else { return };
        let range = first..first.saturating_add(count);
        let settled: Vec<u64> = lane.under_way.range(range).map(|(key, _)| *key).collect();
        let mut returned = Vec::new();
        for sequence in settled {
            let Some(mut parcel) = lane.settle(sequence) else {
                continue;
            };
            match &verdict {
                Verdict::Accepted => match parcel.waiter {
                    Waiter::None => {}
                    Waiter::Accepted(waiter) => drop(waiter.send(Ok(peer))),
                    Waiter::Handled(_) => {
                        parcel.body = None;
                        lane.asking.insert(sequence, parcel);
                    }
                },
                Verdict::Returned => returned.push(parcel),
                Verdict::Rejected(reason) => {
                    let reason = reason.clone();
                    self.fail(parcel, DeliveryError::Rejected { reason });
                }
            }
        }
        for parcel in returned {
            self.offer_again(&mut state, parcel);
        }
        self.pump(&mut state);
    }

    fn replied(&self, peer: NodeId, sequence: u64, reply: Result<Bytes, String>) {
        self.answered(
            peer,
            sequence,
            reply.map(|bytes| Reply::Encoded(peer, bytes)),
        );
    }

    fn broken(&self, peer: NodeId, unsent: u64) {
        let mut state = self.state();
        let Some(lane) = state.lane(peer) else { return };
        lane.window = 0;
        let kept = lane.under_way.split_off(&unsent);
        let mut lost = std::mem::take(&mut lane.under_way);
        lost.append(&mut lane.asking);
        lane.under_way_bytes = 0;
        for parcel in lost.into_values() {
            self.fail(
                parcel,
                DeliveryError::Lost {
                    node: peer,
                    reason: "the link broke".to_owned(),
                },
            );
        }
        for parcel in kept.into_values() {
            self.offer_again(&mut state, parcel);
        }
        state.tidy();
        self.pump(&mut state);
    }
}

impl<M: RemoteMessage> Outbox<M> {
    fn answered(&self, node: NodeId, sequence: u64, reply: Result<Reply<M>, String>) {
        let mut state = self.state();
        let Some(lane) = state.lane(node) else { return };
        let Some(parcel) = lane.asking.remove(&sequence) else {
            return;
        };
        if let Waiter::Handled(waiter) = parcel.waiter {
            let outcome = reply.map_err(|reason| DeliveryError::Lost { node, reason });
            drop(waiter.send(outcome));
        }
        self.pump(&mut state);
    }
}

/// How the recipients of this node answer.
struct LocalOrigin<M: RemoteMessage>(Weak<Outbox<M>>);

impl<M: RemoteMessage> LocalOrigin<M> {
    fn settled(&self, sequence: u64, verdict: Verdict) {
        if let Some(outbox) = self.0.upgrade() {
            outbox.settled(outbox.place.node, sequence, 1, verdict);
        }
    }
}

impl<M: RemoteMessage> Origin<M> for LocalOrigin<M> {
    fn grant(&self, window: u32) {
        if let Some(outbox) = self.0.upgrade() {
            outbox.state().local_window = window;
            outbox.granted(outbox.place.node, window, None);
        }
    }

    fn accepted(&self, sequence: u64) {
        self.settled(sequence, Verdict::Accepted);
    }

    fn returned(&self, sequence: u64, body: Body<M>) {
        let Some(outbox) = self.0.upgrade() else {
            return;
        };
        let mut state = outbox.state();
        let lane = state.lane(outbox.place.node);
        if let Some(mut parcel) = lane.and_then(|lane| lane.settle(sequence)) {
            parcel.body = Some(body);
            outbox.offer_again(&mut state, parcel);
        }
        outbox.pump(&mut state);
    }

    fn rejected(&self, sequence: u64, reason: String) {
        self.settled(sequence, Verdict::Rejected(reason));
    }

    fn replied(&self, sequence: u64, reply: Result<M::Result, String>) {
        if let Some(outbox) = self.0.upgrade() {
            outbox.answered(outbox.place.node, sequence, reply.map(Reply::Value));
        }
    }

    fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// An outbox whatever its type of message, for the node.
pub(crate) trait AnyOutbox: Send + Sync {
    /// Follows the view: who receives the namespace now.
    fn follow(&self, view: &View);
    /// Takes no new messages.
    fn close(&self);
    /// Resolves when all that was taken in is settled, or waits for nobody.
    fn drained(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
    /// Gives up what is left: messages that wait, and that are under way.
    fn abandon(&self) -> (usize, usize);
    /// Messages that wait, and that are under way.
    fn load(&self) -> (usize, usize);
}

impl<M: RemoteMessage> AnyOutbox for Outbox<M> {
    fn follow(&self, view: &View) {
        let place = &self.place;
        let receivers = view.receivers.get(&place.namespace);
        let mut state = self.state();
        for lane in &mut state.lanes {
            lane.agreed = false;
        }
        let other = receivers.filter(|receivers| receivers.label != place.label);
        state.other_label = other.map(|receivers| receivers.label.clone());
        let nodes = receivers
            .filter(|_| other.is_none())
            .into_iter()
            .flat_map(|receivers| receivers.nodes.keys().copied());
        for node in nodes {
            if let Some(lane) = state.lane(node) {
                lane.agreed = true;
                continue;
            }
            let local_window = state.local_window;
            let lane = if node == place.node {
                Lane::new(node, Route::Local, local_window, 0)
            } else {
                let Some(member) = view.nodes.get(&node) else {
                    continue;
                };
                let target = Target {
                    address: member.address.clone(),
                    boot: member.boot,
                };
                let link = place.links.to(node, target);
                let mailbox: Weak<Self> = self.this.clone();
                let (channel, next) = link.attach(&place.namespace, &place.label, mailbox);
                Lane::new(node, Route::Remote { link, channel }, 0, next)
            };
            state.lanes.push(lane);
        }
        state.tidy();
        if let Some(theirs) = state.other_label.clone() {
            while let Some(parcel) = state.pop_waiting() {
                self.fail(parcel, self.other_type(&theirs));
            }
        }
        self.pump(&mut state);
    }

    fn close(&self) {
        let mut state = self.state();
        state.closed = true;
        self.pump(&mut state);
    }

    fn drained(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(poll_fn(|cx| {
            let mut state = self.state();
            let hopeless = !state.lanes.iter().any(|lane| lane.agreed);
            let settled = state.lanes.iter().all(Lane::is_idle);
            if settled && (hopeless || state.waiting.is_empty()) {
                return Poll::Ready(());
            }
            state.wakers.push(cx.waker().clone());
            Poll::Pending
        }))
    }

    fn abandon(&self) -> (usize, usize) {
        let mut state = self.state();
        state.closed = true;
        let mut waiting = 0;
        while let Some(parcel) = state.pop_waiting() {
            waiting += 1;
            self.fail(parcel, DeliveryError::Closed);
        }
        let mut under_way = 0;
        for lane in std::mem::take(&mut state.lanes) {
            for parcel in lane
                .under_way
                .into_values()
                .chain(lane.asking.into_values())
            {
                under_way += 1;
                self.fail(
                    parcel,
                    DeliveryError::Lost {
                        node: lane.node,
                        reason: "this node shut down before it heard more".to_owned(),
                    },
                );
            }
        }
        self.pump(&mut state);
        (waiting, under_way)
    }

    fn load(&self) -> (usize, usize) {
        let state = self.state();
        let under_way = state.lanes.iter().map(|lane| lane.under_way.len());
        (state.waiting.len(), under_way.sum())
    }
}

impl<M: RemoteMessage> Lane<M> {
    fn new(node: NodeId, route: Route, window: u32, next: u64) -> Self {
        Self {
            node,
            route,
            agreed: true,
            window,
            next,
            under_way: BTreeMap::new(),
            under_way_bytes: 0,
            asking: BTreeMap::new(),
        }
    }
}
