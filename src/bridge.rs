//! Namespaces for code without actors: a stream of what arrives, and a sink
//! for what is sent.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use actix::{Message, prelude::SendError};
use futures_core::Stream;
use futures_sink::Sink;

use crate::{
    error::RegisterError, inbox::Seat, mailbox::Outbox, message::RemoteMessage,
    registration::Registration,
};

/// The messages of a namespace as a stream, from
/// [`Namespace::receiver`](crate::Namespace::receiver).
///
/// A message is accepted when the stream yields it. A reader that takes nothing
/// stops the senders once its capacity and the node's window are used up. The
/// stream ends when the node shuts down; dropping it ends the registration, and
/// what it has not yielded goes to the next receiver.
#[must_use = "dropping a receiver ends its registration"]
pub struct Receiver<M: RemoteMessage> {
    seat: Seat<M>,
    registration: Registration,
}

impl<M: RemoteMessage> Receiver<M> {
    pub(crate) fn new(seat: Seat<M>, registration: Registration) -> Self {
        Self { seat, registration }
    }

    /// Resolves when the cluster has agreed that this node receives the
    /// namespace.
    ///
    /// # Errors
    ///
    /// As [`Registration::ready`].
    pub async fn ready(&self) -> Result<(), RegisterError> {
        self.registration.ready().await
    }

    /// Ends the registration, as [`Registration::close`] does.
    ///
    /// # Errors
    ///
    /// As [`Registration::close`].
    pub async fn close(self) -> Result<(), RegisterError> {
        self.registration.close().await
    }
}

impl<M: RemoteMessage + Message<Result = ()>> Stream for Receiver<M> {
    type Item = M;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<M>> {
        loop {
            match self.seat.poll_take(cx, 1) {
                Poll::Ready(Some(mut hand)) => {
                    if let Some((message, reply_to)) = hand.accept() {
                        reply_to.send(());
                        return Poll::Ready(Some(message));
                    }
                }
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Sends to a namespace as a sink, from
/// [`Namespace::sink`](crate::Namespace::sink).
///
/// It is ready while the outbox has room. A flush resolves when nothing waits
/// in the outbox any more, and closing it flushes; the namespace goes on.
pub struct NamespaceSink<M: RemoteMessage> {
    outbox: Arc<Outbox<M>>,
}

impl<M: RemoteMessage> NamespaceSink<M> {
    pub(crate) fn new(outbox: Arc<Outbox<M>>) -> Self {
        Self { outbox }
    }
}

impl<M: RemoteMessage> Sink<M> for NamespaceSink<M> {
    type Error = SendError<M>;

    fn poll_ready(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        // On a node that has shut down, `start_send` says so.
        self.outbox.poll_room(cx).map(Ok)
    }

    fn start_send(self: Pin<&mut Self>, message: M) -> Result<(), SendError<M>> {
        self.outbox.send_when_ready(message)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        self.outbox.poll_handed_over(cx).map(Ok)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), SendError<M>>> {
        self.poll_flush(cx)
    }
}
