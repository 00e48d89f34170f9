//! What a node receives: local recipients by namespace, and what they wait for.
//!
//! The inbox publishes which namespaces it *wants* to receive. A message that
//! arrives waits in its [`Channel`], and then with others in the [`Hand`] of a
//! recipient, until that takes it; only then is it accepted, so that what no
//! recipient has taken can always be handed back to be offered elsewhere.

mod channel;
mod recipient;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::warn;

pub(crate) use self::{
    channel::{Channel, Hand, Seat},
    recipient::{ActorFeed, feed_recipient},
};
use crate::{
    batch::Batch,
    link::{Inlet, Lane, Verdict},
    message::{Body, EncodeError, RemoteMessage, encode, read},
};

/// Namespaces with the labels of their types.
pub(crate) type Wanted = BTreeMap<Arc<str>, Arc<str>>;

/// The receiving side of a node.
pub(crate) struct Inbox {
    wanted: watch::Sender<Wanted>,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    by_namespace: HashMap<Arc<str>, Arc<dyn AnyChannel>>,
    /// The node shuts down: those that are opened from now on are closed.
    closed: bool,
}

/// A channel whatever its type of message.
trait AnyChannel: Inlet {
    fn close(&self) -> Vec<TaskTracker>;
}

impl Inbox {
    pub(crate) fn new(wanted: watch::Sender<Wanted>) -> Self {
        Self {
            wanted,
            channels: Mutex::default(),
        }
    }

    /// Which namespaces are to be received.
    pub(crate) fn wanted(&self) -> watch::Receiver<Wanted> {
        self.wanted.subscribe()
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels
            .lock()
            .expect("no panic while channels are looked up")
    }

    /// Makes the channel of a namespace.
    pub(crate) fn open<M: RemoteMessage>(
        &self,
        namespace: Arc<str>,
        label: Arc<str>,
        window: u32,
    ) -> Arc<Channel<M>> {
        let mut channels = self.channels();
        let wanted = self.wanted.clone();
        let channel = Channel::new(namespace.clone(), label, window, wanted, channels.closed);
        let channel = Arc::new(channel);
        channels.by_namespace.insert(namespace, channel.clone());
        channel
    }

    /// Where the messages of a namespace go, if it is known here.
    pub(crate) fn inlet(&self, namespace: &str) -> Option<Arc<dyn Inlet>> {
        let channel = self.channels().by_namespace.get(namespace)?.clone();
        Some(channel)
    }

    /// Ends all recipients for good and hands back what they have not taken.
    /// What they have begun to handle is done when the trackers are.
    pub(crate) fn close(&self) -> Vec<TaskTracker> {
        let mut channels = self.channels();
        channels.closed = true;
        let open: Vec<_> = channels.by_namespace.values().cloned().collect();
        drop(channels);
        open.iter().flat_map(|channel| channel.close()).collect()
    }
}

/// Why a handler returned nothing.
const STOPPED: &str = "the handler's actor stopped before it replied";

/// Where a message came from, and what it wants to know.
///
/// The channel holds none of its locks while it calls.
pub(crate) trait Origin<M: RemoteMessage>: Send + Sync {
    /// Up to `window` messages may be under way without a verdict.
    fn grant(&self, window: u32);
    /// A recipient has the message.
    fn accepted(&self, sequence: u64);
    /// No recipient has seen the message. An origin on this node gets its body back.
    fn returned(&self, sequence: u64, body: Option<Body<M>>);
    /// No recipient can read the message.
    fn rejected(&self, sequence: u64, reason: String);
    /// What the handler returned, or why it returned nothing.
    fn replied(&self, sequence: u64, reply: Result<M::Result, String>);
    /// Whether nobody listens any more.
    fn is_gone(&self) -> bool;
}

/// A message from another node.
impl<M: RemoteMessage> Origin<M> for Lane {
    fn grant(&self, window: u32) {
        Lane::grant(self, window, String::new());
    }

    fn accepted(&self, sequence: u64) {
        self.settle(sequence, Verdict::Accepted);
    }

    fn returned(&self, sequence: u64, _: Option<Body<M>>) {
        self.settle(sequence, Verdict::Returned);
    }

    fn rejected(&self, sequence: u64, reason: String) {
        warn!(peer = %self.peer(), message = %self.label, %reason, "rejected a message");
        self.settle(sequence, Verdict::Rejected(reason));
    }

    fn replied(&self, sequence: u64, reply: Result<M::Result, String>) {
        let encoded = reply.and_then(|value| {
            encode(&value, self.max_reply()).map_err(|error| match error {
                EncodeError::Failed(reason) => format!("its reply cannot be encoded: {reason}"),
                EncodeError::TooLarge(size) => {
                    format!(
                        "its reply of {size} bytes is over {} bytes",
                        self.max_reply()
                    )
                }
            })
        });
        self.reply(sequence, encoded);
    }

    fn is_gone(&self) -> bool {
        self.is_closed()
    }
}

/// What no recipient has taken yet: a message, or a batch of them.
pub(crate) struct Arrived<M: RemoteMessage> {
    pub(crate) origin: Arc<dyn Origin<M>>,
    /// Of the first one, if there are more.
    pub(crate) sequence: u64,
    pub(crate) ask: bool,
    /// Whether it is a recipient's own copy of a broadcast, and goes to no other
    /// one.
    pub(crate) copy: bool,
    pub(crate) content: Content<M>,
}

pub(crate) enum Content<M> {
    One(Body<M>),
    Batch(Batch),
}

impl<M: RemoteMessage> Arrived<M> {
    /// How many messages there are.
    fn len(&self) -> usize {
        match &self.content {
            Content::One(_) => 1,
            Content::Batch(batch) => batch.len(),
        }
    }

    /// Takes the first messages out, so many at the most. `None` if these are all.
    fn split_to(&mut self, len: usize) -> Option<Self> {
        match &mut self.content {
            Content::Batch(batch) if batch.len() > len => {
                let first = Self {
                    origin: self.origin.clone(),
                    content: Content::Batch(batch.split_to(len)),
                    ..*self
                };
                self.sequence += len as u64;
                Some(first)
            }
            _ => None,
        }
    }

    /// Takes the first message. From here on the recipient has it. One that
    /// cannot be read is passed over: its sender is told so, and nobody else minds.
    fn accept(&mut self) -> Option<(M, ReplyTo<M>)> {
        loop {
            let message = match &mut self.content {
                Content::Batch(batch) => batch.take_first(read)?,
                one => match std::mem::replace(one, Content::Batch(Batch::default())) {
                    Content::One(body) => body.into_message(),
                    Content::Batch(_) => return None,
                },
            };
            let sequence = self.sequence;
            self.sequence += 1;
            match message {
                Ok(message) => {
                    self.origin.accepted(sequence);
                    let waiting = self.ask.then(|| (self.origin.clone(), sequence));
                    return Some((message, ReplyTo { waiting }));
                }
                Err(reason) => self.origin.rejected(sequence, reason),
            }
        }
    }

    fn hand_back(self) {
        let Self {
            origin, sequence, ..
        } = self;
        match self.content {
            Content::One(body) => origin.returned(sequence, Some(body)),
            Content::Batch(batch) => {
                let sequences = (sequence..).take(batch.len());
                sequences.for_each(|sequence| origin.returned(sequence, None));
            }
        }
    }
}

/// Whom to tell what the handler returned. Dropped without that, it tells that
/// there will be no reply.
pub(crate) struct ReplyTo<M: RemoteMessage> {
    waiting: Option<(Arc<dyn Origin<M>>, u64)>,
}

impl<M: RemoteMessage> ReplyTo<M> {
    pub(crate) fn send(mut self, result: M::Result) {
        if let Some((origin, sequence)) = self.waiting.take() {
            origin.replied(sequence, Ok(result));
        }
    }
}

impl<M: RemoteMessage> Drop for ReplyTo<M> {
    fn drop(&mut self) {
        if let Some((origin, sequence)) = self.waiting.take() {
            origin.replied(sequence, Err(STOPPED.to_owned()));
        }
    }
}
