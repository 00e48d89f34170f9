//! What a sender waits for: futures, and the outcomes that they resolve to.

use std::{
    future::Future,
    ops::Deref,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::stream::{BoxStream, unfold};
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};

use crate::{
    error::DeliveryError,
    message::{RemoteMessage, decode},
    view::NodeId,
};

/// What a handler returned, as it came.
pub(crate) enum Reply<M: RemoteMessage> {
    Value(M::Result),
    Encoded(NodeId, Bytes),
}

/// Who waits for the outcome of a message.
pub(crate) enum Waiter<M: RemoteMessage> {
    /// Nobody.
    None,
    Accepted(oneshot::Sender<Result<NodeId, DeliveryError>>),
    Handled(oneshot::Sender<Result<Reply<M>, DeliveryError>>),
}

impl<M: RemoteMessage> Waiter<M> {
    /// Whether the handler's result has to come back.
    pub(crate) fn asks(&self) -> bool {
        matches!(self, Self::Handled(_))
    }

    pub(crate) fn fail(self, error: DeliveryError) {
        // Where the send fails, the future was dropped: nobody waits any more.
        match self {
            Self::None => {}
            Self::Accepted(waiter) => drop(waiter.send(Err(error))),
            Self::Handled(waiter) => drop(waiter.send(Err(error))),
        }
    }
}

/// What a message on its way and who awaits it share.
pub(crate) struct Ticket {
    sent: Instant,
    /// When its time is up, in microseconds after `sent`.
    timeout: AtomicU64,
    transfer: Mutex<Transfer>,
}

#[derive(Default)]
struct Transfer {
    so_far: Transferred,
    /// Made when somebody wants to see it.
    watched: Option<watch::Sender<Transferred>>,
    /// The outcome is known.
    over: bool,
}

impl Ticket {
    pub(crate) fn new(sent: Instant, timeout: Duration) -> Arc<Self> {
        let ticket = Self {
            sent,
            timeout: AtomicU64::new(0),
            transfer: Mutex::default(),
        };
        ticket.set_timeout(timeout);
        Arc::new(ticket)
    }

    pub(crate) fn sent(&self) -> Instant {
        self.sent
    }

    fn set_timeout(&self, timeout: Duration) {
        let micros = u64::try_from(timeout.as_micros()).unwrap_or(u64::MAX);
        self.timeout.store(micros, Ordering::Relaxed);
    }

    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_micros(self.timeout.load(Ordering::Relaxed))
    }

    /// When its time is up.
    pub(crate) fn at(&self) -> Instant {
        far(self.sent, self.timeout())
    }

    fn transfer(&self) -> MutexGuard<'_, Transfer> {
        self.transfer
            .lock()
            .expect("no panic while progress is noted")
    }

    /// So much of the message has been sent.
    pub(crate) fn transferred(&self, bytes: usize, size: usize) {
        let mut transfer = self.transfer();
        transfer.so_far = Transferred { bytes, size };
        if let Some(watched) = &transfer.watched {
            watched.send_replace(transfer.so_far);
        }
    }

    /// The outcome is known: nothing more is to be seen.
    pub(crate) fn end(&self) {
        let mut transfer = self.transfer();
        transfer.over = true;
        transfer.watched = None;
    }

    fn progress(&self) -> watch::Receiver<Transferred> {
        let mut transfer = self.transfer();
        let so_far = transfer.so_far;
        if transfer.over {
            return watch::Sender::new(so_far).subscribe();
        }
        let watched = transfer
            .watched
            .get_or_insert_with(|| watch::Sender::new(so_far));
        watched.subscribe()
    }
}

/// The ticket in the hands of the message. Dropped with it, it ends what shows
/// its progress.
pub(crate) struct Held(pub(crate) Arc<Ticket>);

impl Deref for Held {
    type Target = Ticket;

    fn deref(&self) -> &Ticket {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.end();
    }
}

/// How much of a message has been sent to the receiver that it is offered to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transferred {
    /// The bytes that have been sent. They start again from nought when the
    /// message is offered to another receiver.
    pub bytes: usize,
    /// The size of the encoded message, in bytes. Nought until some has been
    /// sent, and for a message that stays on its node or travels whole.
    pub size: usize,
}

impl Transferred {
    /// How much of the message that is, from 0 to 1. Nought while its size is not
    /// known.
    pub fn fraction(&self) -> f64 {
        match self.size {
            0 => 0.0,
            size => self.bytes as f64 / size as f64,
        }
    }
}

/// How a large message gets on, from [`Delivery::progress`] or
/// [`Request::progress`]: a stream of what has been [`Transferred`].
///
/// It yields where the message stands, then whenever that changes (a reader that
/// is slow misses steps, not the latest), and ends when the outcome is known.
/// Dropping it changes nothing.
#[must_use = "a stream does nothing unless it is polled"]
pub struct Progress {
    steps: BoxStream<'static, Transferred>,
}

impl Progress {
    fn of(ticket: &Ticket) -> Self {
        let mut watched = ticket.progress();
        watched.mark_changed();
        let steps = unfold(watched, |mut watched| async move {
            watched.changed().await.ok()?;
            let step = *watched.borrow_and_update();
            Some((step, watched))
        });
        Self {
            steps: Box::pin(steps),
        }
    }
}

impl Stream for Progress {
    type Item = Transferred;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Transferred>> {
        self.steps.as_mut().poll_next(cx)
    }
}

/// An instant that is later, but not so late that it does not exist.
pub(crate) fn far(from: Instant, later: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    from + later.min(CENTURY)
}

/// Who sees to it that deadlines are kept.
pub(crate) trait Timekeeper: Send + Sync {
    /// A deadline has been moved to this instant.
    fn moved(&self, deadline: Instant);
}

/// The parts that all futures have.
struct Pending<T> {
    outcome: oneshot::Receiver<Result<T, DeliveryError>>,
    ticket: Arc<Ticket>,
    timekeeper: Arc<dyn Timekeeper>,
}

impl<T> Pending<T> {
    fn new(
        ticket: Arc<Ticket>,
        timekeeper: Arc<dyn Timekeeper>,
    ) -> (Self, oneshot::Sender<Result<T, DeliveryError>>) {
        let (waiter, outcome) = oneshot::channel();
        let pending = Self {
            outcome,
            ticket,
            timekeeper,
        };
        (pending, waiter)
    }

    fn set_timeout(&self, timeout: Duration) {
        self.ticket.set_timeout(timeout);
        self.timekeeper.moved(self.ticket.at());
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<T, DeliveryError>> {
        let outcome = ready!(Pin::new(&mut self.outcome).poll(cx));
        // The mailbox tells every waiter before it goes.
        Poll::Ready(outcome.unwrap_or(Err(DeliveryError::Closed)))
    }
}

/// The outcome of a message that was sent with
/// [`Namespace::deliver`](crate::Namespace::deliver).
///
/// Resolves to the node whose recipient has accepted the message: the message
/// is in an actor's hands or has left a stream. It is sent whether or not the
/// future is polled; dropping the future gives up the outcome and not the
/// message.
#[must_use = "the outcome is known only to who awaits it; `do_send` sends without one"]
pub struct Delivery {
    pending: Pending<NodeId>,
}

impl Delivery {
    pub(crate) fn new(
        ticket: Arc<Ticket>,
        timekeeper: Arc<dyn Timekeeper>,
    ) -> (Self, oneshot::Sender<Result<NodeId, DeliveryError>>) {
        let (pending, waiter) = Pending::new(ticket, timekeeper);
        (Self { pending }, waiter)
    }

    /// Sets the time, from the sending on, after which the message is no longer
    /// offered to anybody, in place of the builder's
    /// [`send_timeout`](crate::Builder::send_timeout).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.pending.set_timeout(timeout);
        self
    }

    /// Shows how a large message gets on, for a bar say.
    pub fn progress(&self) -> Progress {
        Progress::of(&self.pending.ticket)
    }
}

impl Future for Delivery {
    type Output = Result<NodeId, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.pending.poll(cx)
    }
}

/// The reply to a message that was sent with
/// [`Namespace::send`](crate::Namespace::send).
///
/// Resolves to what the handler returned. The message is sent whether or not
/// the future is polled; dropping the future gives up the reply and not the
/// message.
#[must_use = "the reply is known only to who awaits it; `do_send` sends without one"]
pub struct Request<M: RemoteMessage> {
    pending: Pending<Reply<M>>,
}

impl<M: RemoteMessage> Request<M> {
    pub(crate) fn new(
        ticket: Arc<Ticket>,
        timekeeper: Arc<dyn Timekeeper>,
    ) -> (Self, oneshot::Sender<Result<Reply<M>, DeliveryError>>) {
        let (pending, waiter) = Pending::new(ticket, timekeeper);
        (Self { pending }, waiter)
    }

    /// Sets the time, from the sending on, after which the reply is no longer
    /// waited for, in place of the builder's
    /// [`send_timeout`](crate::Builder::send_timeout).
    pub fn timeout(self, timeout: Duration) -> Self {
        self.pending.set_timeout(timeout);
        self
    }

    /// Shows how a large message gets on, for a bar say.
    pub fn progress(&self) -> Progress {
        Progress::of(&self.pending.ticket)
    }
}

impl<M: RemoteMessage> Future for Request<M> {
    type Output = Result<M::Result, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(match ready!(self.pending.poll(cx))? {
            Reply::Value(result) => Ok(result),
            Reply::Encoded(node, bytes) => {
                decode(&bytes).map_err(|reason| DeliveryError::Reply { node, reason })
            }
        })
    }
}

/// Whom a broadcast has reached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reached {
    /// How many nodes received the namespace when it was sent, as far as its
    /// sender knew.
    pub receivers: usize,
    /// How many of them have it: every recipient that the node had when it
    /// arrived, and that is still there, has accepted it.
    pub confirmed: usize,
    /// How many have a recipient that missed it, since it was slow and the
    /// broadcast lossy.
    pub missed: usize,
}

/// The outcome of a message that was sent with
/// [`Namespace::broadcast`](crate::Namespace::broadcast).
///
/// Resolves when every receiver has confirmed or missed it, or is gone, and at
/// the deadline at the latest; then those that are not counted may have it, or
/// not, or get it yet. The message is sent whether or not the future is polled;
/// dropping the future gives up the outcome and not the message.
///
/// # Errors
///
/// Nobody has got the message: it could not be encoded or was
/// [too large](DeliveryError::TooLarge), others use the namespace
/// [with another type](DeliveryError::Rejected), the node
/// [has shut down](DeliveryError::Closed), or it had to wait until
/// [its time was over](DeliveryError::Timeout) since earlier broadcasts had not
/// got through. That nobody receives is no error.
#[must_use = "whom it reaches is known only to who awaits it"]
pub struct Broadcast {
    pending: Pending<Reached>,
}

impl Broadcast {
    pub(crate) fn new(
        ticket: Arc<Ticket>,
        timekeeper: Arc<dyn Timekeeper>,
    ) -> (Self, oneshot::Sender<Result<Reached, DeliveryError>>) {
        let (pending, waiter) = Pending::new(ticket, timekeeper);
        (Self { pending }, waiter)
    }

    /// Sets the time, from the sending on, after which no receiver is waited
    /// for, in place of the builder's
    /// [`send_timeout`](crate::Builder::send_timeout). What has been passed on by
    /// then was given the builder's time: for a longer one, set that.
    pub fn timeout(self, timeout: Duration) -> Self {
        self.pending.set_timeout(timeout);
        self
    }
}

impl Future for Broadcast {
    type Output = Result<Reached, DeliveryError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.pending.poll(cx)
    }
}
