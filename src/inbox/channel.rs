//! What waits for the recipients of one namespace, and who takes it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{AnyChannel, Arrived, Content, Origin, ReplyTo, Wanted};
use crate::{
    batch::Batch,
    link::{Inlet, Lane},
    message::{Body, RemoteMessage},
};

/// The local recipients of one namespace, and the messages that wait for them.
///
/// Messages go to the recipients in turn, each as far as it has room; the rest
/// waits in the backlog, which the windows of the senders bound.
pub(crate) struct Channel<M: RemoteMessage> {
    namespace: Arc<str>,
    label: Arc<str>,
    window: u32,
    wanted: watch::Sender<Wanted>,
    /// Held while the origins are told of a window, so that the last one that
    /// they hear is the one that holds. Taken before `state`.
    granting: Mutex<()>,
    state: Mutex<State<M>>,
}

struct State<M: RemoteMessage> {
    backlog: VecDeque<Arrived<M>>,
    recipients: Vec<Slot<M>>,
    /// Where the next message goes, as an index that may be past the end.
    turn: usize,
    next_id: u64,
    /// What recipients that have been removed are still at.
    leaving: Vec<TaskTracker>,
    origins: Vec<Weak<dyn Origin<M>>>,
    /// The node shuts down: nobody registers any more.
    closed: bool,
}

/// One recipient, as the channel sees it.
struct Slot<M: RemoteMessage> {
    id: u64,
    capacity: usize,
    queue: VecDeque<Arrived<M>>,
    /// How many messages are in the queue, and how many the recipient has in hand.
    queued: usize,
    in_hand: usize,
    /// Set while the recipient waits for messages.
    waker: Option<Waker>,
    handling: TaskTracker,
}

impl<M: RemoteMessage> Slot<M> {
    /// How many more messages may be set aside for it.
    fn room(&self) -> usize {
        self.capacity.saturating_sub(self.queued + self.in_hand)
    }

    fn push(&mut self, arrived: Arrived<M>) {
        self.queued += arrived.len();
        self.queue.push_back(arrived);
    }

    /// Takes messages out, so many at the most, as they have come.
    fn take(&mut self, most: usize) -> Option<Arrived<M>> {
        let part = self.queue.front_mut()?.split_to(most);
        let taken = part.or_else(|| self.queue.pop_front())?;
        self.queued -= taken.len();
        Some(taken)
    }
}

impl<M: RemoteMessage> Channel<M> {
    /// A closed one has no recipients, ever.
    pub(super) fn new(
        namespace: Arc<str>,
        label: Arc<str>,
        window: u32,
        wanted: watch::Sender<Wanted>,
        closed: bool,
    ) -> Self {
        Self {
            namespace,
            label,
            window,
            wanted,
            granting: Mutex::new(()),
            state: Mutex::new(State {
                backlog: VecDeque::new(),
                recipients: Vec::new(),
                turn: 0,
                next_id: 0,
                leaving: Vec::new(),
                origins: Vec::new(),
                closed,
            }),
        }
    }

    fn state(&self) -> MutexGuard<'_, State<M>> {
        self.state
            .lock()
            .expect("no panic while messages are queued")
    }

    /// Adds a recipient with room for `capacity` messages.
    pub(crate) fn add(self: &Arc<Self>, capacity: usize) -> Seat<M> {
        let mut state = self.state();
        let id = state.next_id;
        state.next_id += 1;
        let handling = TaskTracker::new();
        if state.closed {
            handling.close();
        } else {
            if state.recipients.is_empty() {
                // Most have one.
                state.recipients.reserve_exact(1);
            }
            state.recipients.push(Slot {
                id,
                capacity: capacity.max(1),
                queue: VecDeque::new(),
                queued: 0,
                in_hand: 0,
                waker: None,
                handling: handling.clone(),
            });
        }
        let first = state.recipients.len() == 1;
        // What the others have no room for.
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        if first {
            self.tell_origins();
        }
        Seat {
            channel: self.clone(),
            id,
            handling,
        }
    }

    /// Removes a recipient, if it is still there. What it has in hand comes back
    /// later.
    pub(crate) fn remove(&self, id: u64) {
        self.take_out(id, None);
    }

    /// Removes a recipient and gives what it has not taken to the others, or
    /// back to its senders if there are none; its copies of broadcasts are
    /// dropped. `left` is what it had in hand.
    fn take_out(&self, id: u64, left: Option<Arrived<M>>) {
        let mut guard = self.state();
        let state = &mut *guard;
        let position = state.recipients.iter().position(|slot| slot.id == id);
        let slot = position.map(|position| state.recipients.remove(position));
        let (queue, waker) = slot
            .map(|slot| {
                slot.handling.close();
                state.leaving.push(slot.handling);
                state.leaving.retain(|handling| !handling.is_empty());
                (slot.queue, slot.waker)
            })
            .unwrap_or_default();
        let left = left.into_iter().chain(queue);
        let (copies, messages): (Vec<_>, Vec<_>) = left.partition(|arrived| arrived.copy);
        for arrived in messages.into_iter().rev() {
            state.backlog.push_front(arrived);
        }
        let wakers = state.distribute();
        let nobody = state.recipients.is_empty();
        let returned = nobody.then(|| std::mem::take(&mut state.backlog));
        drop(guard);
        wakers.into_iter().chain(waker).for_each(Waker::wake);
        if nobody && position.is_some() {
            self.tell_origins();
        }
        drop(copies);
        let returned = returned.into_iter().flatten();
        returned.for_each(Arrived::hand_back);
    }

    /// Takes back what a recipient has in hand, for its own or for others.
    fn put_back(&self, id: u64, left: Arrived<M>) {
        let mut state = self.state();
        match state.slot(id) {
            Some(slot) => {
                slot.in_hand = 0;
                slot.queued += left.len();
                slot.queue.push_front(left);
            }
            None => {
                drop(state);
                self.take_out(id, Some(left));
            }
        }
    }

    /// Whether a recipient is still there.
    pub(crate) fn has(&self, id: u64) -> bool {
        self.state().recipients.iter().any(|slot| slot.id == id)
    }

    /// Whether there is any recipient.
    pub(crate) fn is_received(&self) -> bool {
        !self.state().recipients.is_empty()
    }

    /// Publishes whether the namespace is wanted, and grants accordingly.
    fn tell_origins(&self) {
        let _granting = self.granting.lock().expect("no panic while granting");
        let mut state = self.state();
        let open = !state.recipients.is_empty();
        state.forget_gone();
        let origins: Vec<_> = state.origins.iter().filter_map(Weak::upgrade).collect();
        drop(state);
        self.wanted.send_if_modified(|wanted| {
            if open {
                wanted
                    .insert(self.namespace.clone(), self.label.clone())
                    .is_none()
            } else {
                wanted.remove(&self.namespace).is_some()
            }
        });
        for origin in origins {
            origin.grant(if open { self.window } else { 0 });
        }
    }

    /// Starts to grant to an origin.
    pub(crate) fn attach_origin(&self, origin: Arc<dyn Origin<M>>) {
        let _granting = self.granting.lock().expect("no panic while granting");
        let mut state = self.state();
        let open = !state.recipients.is_empty();
        state.forget_gone();
        state.origins.push(Arc::downgrade(&origin));
        // What links that have ended left behind still arrives, but a window's
        // worth at most: a link that breaks time after time must not fill the
        // memory. Its sender counts all of that as unknown.
        let mut left = self.window as usize;
        state.backlog.retain(|arrived| {
            let gone = arrived.origin.is_gone();
            let keep = left > 0 || !gone;
            if gone {
                left = left.saturating_sub(arrived.len());
            }
            keep
        });
        drop(state);
        origin.grant(if open { self.window } else { 0 });
    }

    /// Takes messages in. Those that nobody here receives go straight back.
    fn take_in(&self, arrived: Arrived<M>) {
        let mut state = self.state();
        if state.recipients.is_empty() {
            drop(state);
            arrived.hand_back();
            return;
        }
        state.backlog.push_back(arrived);
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// The recipients, by their numbers.
    pub(crate) fn recipients(&self) -> Vec<u64> {
        let state = self.state();
        state.recipients.iter().map(|slot| slot.id).collect()
    }

    /// Gives every recipient its copy of a broadcast, even beyond its capacity;
    /// or, where there is a `limit`, only to those that have room and fewer than
    /// so many messages before them. Returns how many got none.
    pub(crate) fn give_to_all(
        &self,
        origin: Arc<dyn Origin<M>>,
        limit: Option<usize>,
        mut copy: impl FnMut(u64) -> Option<Body<M>>,
    ) -> usize {
        let mut state = self.state();
        let (mut missed, mut wakers) = (0, Vec::new());
        for slot in &mut state.recipients {
            let before = slot.queued + slot.in_hand;
            let full = |limit: usize| before >= limit.min(slot.capacity);
            if limit.is_some_and(full) {
                missed += 1;
            } else if let Some(body) = copy(slot.id) {
                slot.push(Arrived {
                    origin: origin.clone(),
                    sequence: 0,
                    ask: false,
                    copy: true,
                    content: Content::One(body),
                });
                wakers.extend(slot.waker.take());
            }
        }
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        missed
    }

    /// Takes back the copies of broadcasts that nobody waits for any more.
    pub(crate) fn retract(&self) {
        let mut state = self.state();
        let mut retracted = Vec::new();
        for slot in &mut state.recipients {
            let over = |arrived: &Arrived<M>| arrived.copy && arrived.origin.is_gone();
            let (gone, kept) = std::mem::take(&mut slot.queue).into_iter().partition(over);
            slot.queue = kept;
            slot.queued -= gone.len();
            retracted.push(gone);
        }
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        drop::<Vec<VecDeque<_>>>(retracted);
    }

    /// Takes in one message from this node, or gives its body back if nobody
    /// here receives.
    pub(crate) fn offer(
        &self,
        origin: Arc<dyn Origin<M>>,
        sequence: u64,
        ask: bool,
        body: Body<M>,
    ) -> Result<(), Body<M>> {
        let mut state = self.state();
        if state.recipients.is_empty() {
            return Err(body);
        }
        state.backlog.push_back(Arrived {
            origin,
            sequence,
            ask,
            copy: false,
            content: Content::One(body),
        });
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Ok(())
    }
}

impl<M: RemoteMessage> State<M> {
    /// Forgets the origins that nobody listens at any more.
    fn forget_gone(&mut self) {
        let listens = |origin: Arc<dyn Origin<M>>| !origin.is_gone();
        self.origins
            .retain(|origin| origin.upgrade().is_some_and(listens));
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot<M>> {
        self.recipients.iter_mut().find(|slot| slot.id == id)
    }

    /// Gives the backlog out in turn, as far as the recipients have room. Those
    /// that the wakers belong to have got something.
    fn distribute(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let count = self.recipients.len();
        while count > 0
            && let Some(first) = self.backlog.front_mut()
        {
            let mut turns = (self.turn..self.turn + count).map(|turn| turn % count);
            let Some(index) = turns.find(|index| self.recipients[*index].room() > 0) else {
                break;
            };
            self.turn = (index + 1) % count;
            let slot = &mut self.recipients[index];
            // One whose turn it is always takes all that it has room for.
            let most = if count == 1 { slot.room() } else { 1 };
            let part = first.split_to(most);
            if let Some(part) = part.or_else(|| self.backlog.pop_front()) {
                slot.push(part);
            }
            wakers.extend(slot.waker.take());
        }
        wakers
    }
}

impl<M: RemoteMessage> Inlet for Channel<M> {
    fn attach(&self, lane: Arc<Lane>) {
        if lane.label != self.label {
            let refusal = format!(
                "the namespace {:?} carries {} there and {} here",
                self.namespace, self.label, lane.label
            );
            Lane::grant(&lane, 0, refusal);
            return;
        }
        self.attach_origin(lane);
    }

    fn deliver(&self, lane: &Arc<Lane>, first: u64, ask: bool, batch: Batch) {
        self.take_in(Arrived {
            origin: lane.clone(),
            sequence: first,
            ask,
            copy: false,
            content: Content::Batch(batch),
        });
    }

    fn deliver_large(&self, lane: &Arc<Lane>, sequence: u64, ask: bool, message: Bytes) {
        self.take_in(Arrived {
            origin: lane.clone(),
            sequence,
            ask,
            copy: false,
            content: Content::One(Body::Encoded(message)),
        });
    }
}

impl<M: RemoteMessage> AnyChannel for Channel<M> {
    fn close(&self) -> Vec<TaskTracker> {
        self.state().closed = true;
        for id in self.recipients() {
            self.remove(id);
        }
        std::mem::take(&mut self.state().leaving)
    }
}

/// A recipient's place in its channel, from which it takes messages. Dropped,
/// it gives the place up.
pub(crate) struct Seat<M: RemoteMessage> {
    channel: Arc<Channel<M>>,
    id: u64,
    handling: TaskTracker,
}

impl<M: RemoteMessage> Seat<M> {
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    pub(crate) fn channel(&self) -> &Arc<Channel<M>> {
        &self.channel
    }

    /// Counts what the recipient has begun to handle.
    pub(crate) fn handling(&self) -> &TaskTracker {
        &self.handling
    }

    /// Takes the next messages into the recipient's hand, in place of what was
    /// there: so many at the most, or fewer. `None` once the place is gone.
    pub(crate) fn poll_take(&self, cx: &Context<'_>, most: usize) -> Poll<Option<Hand<'_, M>>> {
        let mut state = self.channel.state();
        let Some(slot) = state.slot(self.id) else {
            return Poll::Ready(None);
        };
        slot.in_hand = 0;
        let wakers = state.distribute();
        let taken = state.slot(self.id).and_then(|slot| {
            let taken = slot.take(most);
            match &taken {
                // One alone is as good as handled.
                Some(taken) if taken.len() > 1 => slot.in_hand = taken.len(),
                Some(_) => {}
                None => slot.waker = Some(cx.waker().clone()),
            }
            taken
        });
        let hand = taken.map(|left| Hand {
            seat: self,
            left: Some(left),
            // Under the lock: whoever closes the place from now on waits for it.
            _token: self.handling.token(),
        });
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        match hand {
            Some(hand) => Poll::Ready(Some(hand)),
            None => Poll::Pending,
        }
    }
}

/// Messages that a recipient has in hand. Those that it has not taken out of it
/// when this is dropped go back.
pub(crate) struct Hand<'a, M: RemoteMessage> {
    seat: &'a Seat<M>,
    /// Until it is dropped.
    left: Option<Arrived<M>>,
    _token: TaskTrackerToken,
}

impl<M: RemoteMessage> Hand<'_, M> {
    /// Takes the next message. From here on the recipient has it. `None` also when
    /// the place has been given up in the meantime.
    pub(crate) fn accept(&mut self) -> Option<(M, ReplyTo<M>)> {
        match self.seat.handling.is_closed() {
            true => None,
            false => {
                let taken = self.left.as_mut()?.accept();
                // Its origin may wait for the last one to be taken.
                self.left.take_if(|left| left.len() == 0);
                taken
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.left.as_ref().map_or(0, Arrived::len)
    }

    /// Counts the message that was taken last as being handled beyond this.
    pub(crate) fn token(&self) -> TaskTrackerToken {
        self.seat.handling.token()
    }
}

impl<M: RemoteMessage> Drop for Hand<'_, M> {
    fn drop(&mut self) {
        if let Some(left) = self.left.take() {
            self.seat.channel.put_back(self.seat.id, left);
        }
    }
}

impl<M: RemoteMessage> Drop for Seat<M> {
    fn drop(&mut self) {
        self.channel.remove(self.id);
    }
}
