//! Messages that reached nobody, for whoever wants to see them.

use std::{
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use actix::Message;
use futures_core::Stream;
use tokio::sync::mpsc;

use crate::error::DeliveryError;

/// How many dead letters wait for a reader that is slow.
const CAPACITY: usize = 1024;

/// A message that this node sent and that was neither handled nor accepted, as
/// far as is known.
///
/// It is a [`Message`], so that an actor can have it from a stream, as in
/// `ctx.add_message_stream(cluster.dead_letters())`.
#[derive(Clone, Debug, Message)]
#[rtype(result = "()")]
#[non_exhaustive]
pub struct DeadLetter {
    /// The namespace that it was sent to.
    pub namespace: Arc<str>,
    /// What happened to it. After some errors it
    /// [may have been delivered](DeliveryError::maybe_delivered) all the same.
    pub reason: DeliveryError,
    /// Its size in bytes: encoded, or what it takes on the stack if it was not.
    pub size: usize,
    /// How long ago it was sent.
    pub age: Duration,
    /// Whether somebody was waiting for the outcome, and has been told.
    pub awaited: bool,
}

/// What it is, in a line.
impl fmt::Display for DeadLetter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            namespace,
            reason,
            size,
            age,
            ..
        } = self;
        write!(
            f,
            "a message to {namespace}, {size} bytes, {age:.1?} old: {reason}"
        )
    }
}

/// The dead letters of a node as a stream, from
/// [`Cluster::dead_letters`](crate::Cluster::dead_letters).
///
/// It holds up nobody: whoever falls more than 1,024 letters behind misses the
/// next ones. [`Traffic`](crate::Traffic) counts them all. The stream ends with
/// the node.
#[derive(Debug)]
pub struct DeadLetters {
    letters: mpsc::Receiver<DeadLetter>,
}

impl Stream for DeadLetters {
    type Item = DeadLetter;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<DeadLetter>> {
        self.letters.poll_recv(cx)
    }
}

/// Hands dead letters to those who read them.
pub(crate) struct DeadLetterOffice {
    /// `None` once the node has stopped.
    readers: Mutex<Option<Vec<mpsc::Sender<DeadLetter>>>>,
}

impl DeadLetterOffice {
    pub(crate) fn new() -> Self {
        Self {
            readers: Mutex::new(Some(Vec::new())),
        }
    }

    pub(crate) fn subscribe(&self) -> DeadLetters {
        let (sender, letters) = mpsc::channel(CAPACITY);
        if let Some(readers) = self.readers().as_mut() {
            readers.push(sender);
        }
        DeadLetters { letters }
    }

    /// Calls `letter` only if somebody reads.
    pub(crate) fn publish(&self, letter: impl FnOnce() -> DeadLetter) {
        let mut readers = self.readers();
        let Some(readers) = readers.as_mut() else {
            return;
        };
        readers.retain(|reader| !reader.is_closed());
        if readers.is_empty() {
            return;
        }
        let letter = letter();
        for reader in readers {
            // One that is full misses it.
            let _ = reader.try_send(letter.clone());
        }
    }

    /// Ends the streams, once they have been read.
    pub(crate) fn close(&self) {
        *self.readers() = None;
    }

    fn readers(&self) -> MutexGuard<'_, Option<Vec<mpsc::Sender<DeadLetter>>>> {
        self.readers
            .lock()
            .expect("no panic while dead letters are handed out")
    }
}
