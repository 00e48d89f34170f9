//! What waits for the recipients of one namespace, and who takes it.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use tokio::sync::watch;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{AnyChannel, Arrived, Origin, Wanted};
use crate::{
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
    origins: Vec<Weak<dyn Origin<M>>>,
    /// The node shuts down: nobody registers any more.
    closed: bool,
}

/// One recipient, as the channel sees it.
struct Slot<M: RemoteMessage> {
    id: u64,
    capacity: usize,
    queue: VecDeque<Arrived<M>>,
    /// Set while the recipient waits for messages.
    waker: Option<Waker>,
    handling: TaskTracker,
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
        if !state.closed {
            if state.recipients.is_empty() {
                // Most have one.
                state.recipients.reserve_exact(1);
            }
            state.recipients.push(Slot {
                id,
                capacity: capacity.max(1),
                queue: VecDeque::new(),
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

    /// Removes a recipient and gives what it has not taken to the others, or
    /// back to its senders if there are none; its copies of broadcasts are
    /// dropped. `unread` is what it had taken and could not use.
    pub(crate) fn remove(&self, id: u64, unread: Option<Arrived<M>>) {
        let mut state = self.state();
        let position = state.recipients.iter().position(|slot| slot.id == id);
        let slot = position.map(|position| state.recipients.remove(position));
        let (queue, waker) = slot
            .map(|slot| (slot.queue, slot.waker))
            .unwrap_or_default();
        let left = unread.into_iter().chain(queue);
        let (copies, messages): (Vec<_>, Vec<_>) = left.partition(|arrived| arrived.copy);
        for arrived in messages.into_iter().rev() {
            state.backlog.push_front(arrived);
        }
        let wakers = state.distribute();
        let nobody = state.recipients.is_empty();
        let returned = nobody.then(|| std::mem::take(&mut state.backlog));
        drop(state);
        wakers.into_iter().chain(waker).for_each(Waker::wake);
        if nobody && position.is_some() {
            self.tell_origins();
        }
        drop(copies);
        let returned = returned.into_iter().flatten();
        returned.for_each(Arrived::hand_back);
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
        let mut left = self.window;
        state.backlog.retain(|arrived| {
            let keep = left > 0 || !arrived.origin.is_gone();
            left = left.saturating_sub(u32::from(arrived.origin.is_gone()));
            keep
        });
        drop(state);
        origin.grant(if open { self.window } else { 0 });
    }

    /// Takes messages in. Those that nobody here receives go straight back.
    fn take_in(&self, messages: impl Iterator<Item = Arrived<M>>) {
        let mut state = self.state();
        if state.recipients.is_empty() {
            drop(state);
            messages.for_each(Arrived::hand_back);
            return;
        }
        state.backlog.extend(messages);
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
            let full = |limit: usize| slot.queue.len() >= limit.min(slot.capacity);
            if limit.is_some_and(full) {
                missed += 1;
            } else if let Some(body) = copy(slot.id) {
                slot.queue.push_back(Arrived {
                    origin: origin.clone(),
                    sequence: 0,
                    ask: false,
                    copy: true,
                    body,
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
            retracted.push(gone);
        }
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        drop::<Vec<VecDeque<_>>>(retracted);
    }

    /// Takes in one message from this node, or gives its body back if nobody
    /// here receives.
    pub(crate) fn offer(&self, arrived: Arrived<M>) -> Result<(), Body<M>> {
        let mut state = self.state();
        if state.recipients.is_empty() {
            return Err(arrived.body);
        }
        state.backlog.push_back(arrived);
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

    /// Gives the backlog out in turn, as far as the recipients have room. Those
    /// that the wakers belong to have got something.
    fn distribute(&mut self) -> Vec<Waker> {
        let mut wakers = Vec::new();
        let count = self.recipients.len();
        while count > 0 && !self.backlog.is_empty() {
            let ready = (self.turn..self.turn + count)
                .map(|turn| turn % count)
                .find(|index| {
                    let slot = &self.recipients[*index];
                    slot.queue.len() < slot.capacity
                });
            let Some(index) = ready else { break };
            self.turn = (index + 1) % count;
            let slot = &mut self.recipients[index];
            slot.queue.extend(self.backlog.pop_front());
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

    fn deliver(&self, lane: &Arc<Lane>, first: u64, ask: bool, messages: Vec<Bytes>) {
        let origin: Arc<dyn Origin<M>> = lane.clone();
        self.take_in((first..).zip(messages).map(|(sequence, body)| Arrived {
            origin: origin.clone(),
            sequence,
            ask,
            copy: false,
            body: Body::Encoded(body),
        }));
    }
}

impl<M: RemoteMessage> AnyChannel for Channel<M> {
    fn close(&self) -> Vec<TaskTracker> {
        let mut state = self.state();
        state.closed = true;
        let recipients: Vec<_> = state
            .recipients
            .iter()
            .map(|slot| (slot.id, slot.handling.clone()))
            .collect();
        drop(state);
        recipients
            .into_iter()
            .map(|(id, handling)| {
                self.remove(id, None);
                handling.close();
                handling
            })
            .collect()
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

    /// The next message, and the token that counts it as being handled. `None`
    /// once the place is gone.
    pub(crate) fn poll_next(&self, cx: &Context<'_>) -> Poll<Option<Taken<M>>> {
        let mut state = self.channel.state();
        let Some(slot) = state.recipients.iter_mut().find(|slot| slot.id == self.id) else {
            return Poll::Ready(None);
        };
        let Some(arrived) = slot.queue.pop_front() else {
            slot.waker = Some(cx.waker().clone());
            return Poll::Pending;
        };
        // Under the lock: whoever closes the place from now on waits for it.
        let token = self.handling.token();
        let wakers = state.distribute();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        Poll::Ready(Some((arrived, token)))
    }
}

/// A message that a recipient has taken, and the token that counts it.
pub(crate) type Taken<M> = (Arrived<M>, TaskTrackerToken);

impl<M: RemoteMessage> Drop for Seat<M> {
    fn drop(&mut self) {
        self.channel.remove(self.id, None);
    }
}
