//! The ways into an actor: through its own context, or through a `Recipient`.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    task::{Context, Poll, ready},
};

use actix::{Actor, ActorFuture, AsyncContext, Handler, Recipient, dev::MessageResponse};
use futures_util::{StreamExt, stream::FuturesUnordered};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Hand, ReplyTo, Seat};
use crate::message::RemoteMessage;

/// After this many messages in one go, an actor lets the rest of its arbiter
/// run.
const MESSAGES_A_POLL: usize = 128;

/// An actor takes so many at a time. While its handler blocks those behind wait in
/// the hand, whatever becomes of the registration.
const MESSAGES_IN_HAND: usize = 16;

/// How many messages a `Recipient` may have that its actor has not handled. A
/// recipient does not tell how large its mailbox is, and wakes nobody who found
/// it full; what it has handled is known for certain.
const UNHANDLED: usize = 64;

/// Feeds an actor from within its own context. It ends with the actor, or when
/// the place is given up.
pub(crate) struct ActorFeed<M: RemoteMessage> {
    seat: Seat<M>,
}

impl<M: RemoteMessage> ActorFeed<M> {
    pub(crate) fn new(seat: Seat<M>) -> Self {
        Self { seat }
    }
}

impl<M, A> ActorFuture<A> for ActorFeed<M>
where
    M: RemoteMessage,
    A: Actor + Handler<M>,
    A::Context: AsyncContext<A>,
{
    type Output = ();

    fn poll(
        self: Pin<&mut Self>,
        actor: &mut A,
        ctx: &mut A::Context,
        task: &mut Context<'_>,
    ) -> Poll<()> {
        let mut left = MESSAGES_A_POLL;
        while left > 0 {
            let most = left.min(MESSAGES_IN_HAND);
            let Some(mut hand) = ready!(self.seat.poll_take(task, most)) else {
                return Poll::Ready(());
            };
            left -= hand.len();
            loop {
                // The context polls again once what it waits for is done, and not
                // while it stops.
                if ctx.waiting() {
                    return Poll::Pending;
                }
                let Some((message, reply_to)) = hand.accept() else {
                    break;
                };
                // A result is asked for in any case: it tells when the message
                // has been handled.
                let (sender, result) = oneshot::channel();
                actor.handle(message, ctx).handle(ctx, Some(sender));
                pass_on(result, reply_to, &hand);
            }
        }
        task.waker().wake_by_ref();
        Poll::Pending
    }
}

/// Passes a handler's result on: now if it is there, and else when it comes.
fn pass_on<M: RemoteMessage>(
    mut result: oneshot::Receiver<M::Result>,
    reply_to: ReplyTo<M>,
    hand: &Hand<'_, M>,
) {
    match result.try_recv() {
        Ok(result) => reply_to.send(result),
        Err(TryRecvError::Closed) => drop(reply_to),
        Err(TryRecvError::Empty) => {
            let handling = hand.token();
            actix_rt::spawn(async move {
                if let Ok(result) = result.await {
                    reply_to.send(result);
                }
                drop(handling);
            });
        }
    }
}

/// Feeds a recipient until its actor stops or the place is given up. The future
/// runs wherever it is spawned.
pub(crate) async fn feed_recipient<M: RemoteMessage>(seat: Seat<M>, recipient: Recipient<M>) {
    let mut unhandled = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = unhandled.next() => {}
            hand = poll_fn(|cx| seat.poll_take(cx, 1)), if unhandled.len() < UNHANDLED => {
                let Some(mut hand) = hand else { break };
                if !recipient.connected() {
                    break;
                }
                if let Some((message, reply_to)) = hand.accept() {
                    unhandled.push(hand_over(&recipient, message, reply_to, hand.token()));
                }
            }
        }
    }
    drop(seat);
    while unhandled.next().await.is_some() {}
}

/// Puts a message into the recipient's mailbox and waits until it is handled.
fn hand_over<M: RemoteMessage>(
    recipient: &Recipient<M>,
    message: M,
    reply_to: ReplyTo<M>,
    handling: TaskTrackerToken,
) -> impl Future<Output = ()> + use<M> {
    // A sender that is new finds room in any mailbox: actix keeps a place for
    // each. The request is in the mailbox when `send` returns.
    let request = recipient.clone().send(message);
    async move {
        if let Ok(result) = request.await {
            reply_to.send(result);
        }
        drop(handling);
    }
}
