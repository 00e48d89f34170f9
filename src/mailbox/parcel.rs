//! A message on the sending side, and what is known of it.

use std::{mem, time::Duration};

use tokio::time::Instant;

use crate::{
    delivery::{Held, Waiter, far},
    error::DeliveryError,
    message::{Body, Fresh, RemoteMessage, encode_here},
};

pub(super) struct Parcel<M: RemoteMessage> {
    /// `None` while a local recipient has it, and while its lane has it among
    /// others.
    pub(super) body: Option<Body<M>>,
    pub(super) size: usize,
    /// Where it is among these, or would be.
    pub(super) position: u64,
    /// Its place among all that were sent.
    pub(super) order: u64,
    /// When it was taken in.
    pub(super) sent: Option<Instant>,
    /// What it shares with whoever awaits it.
    pub(super) ticket: Option<Held>,
    pub(super) waiter: Waiter<M>,
    /// Its sender has been told that it failed, so it must not be offered again.
    pub(super) failed: bool,
}

impl<M: RemoteMessage> Parcel<M> {
    pub(super) fn new(message: M, waiter: Waiter<M>, ticket: Option<Held>) -> Self {
        let body = Body::Value(message);
        Self {
            size: body.size(),
            body: Some(body),
            position: 0,
            order: 0,
            sent: ticket.as_ref().map(|ticket| ticket.sent()),
            ticket,
            waiter,
            failed: false,
        }
    }

    pub(super) fn timeout(&self, default: Duration) -> Duration {
        self.ticket
            .as_ref()
            .map_or(default, |ticket| ticket.timeout())
    }

    pub(super) fn sent(&self) -> Instant {
        self.sent.unwrap_or_else(Instant::now)
    }

    pub(super) fn expires(&self, default: Duration) -> Instant {
        far(self.sent(), self.timeout(default))
    }

    /// Whether somebody waits for the outcome.
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(self.waiter, Waiter::None)
    }

    /// Makes it fit to travel. `limit` is the size of the largest message, in
    /// bytes.
    pub(super) fn encode(&mut self, limit: usize) -> Result<(), DeliveryError> {
        if let Some(fresh) = self.encoded(limit)? {
            *self = self.take(Some(fresh));
        }
        Ok(())
    }

    /// Its encoded form, if it is not in that already.
    pub(super) fn encoded(&self, limit: usize) -> Result<Option<Fresh>, DeliveryError> {
        let Some(Body::Value(message)) = &self.body else {
            return Ok(None);
        };
        let fresh = encode_here(message, limit);
        let fresh = fresh.map_err(|error| DeliveryError::unsent(error, limit))?;
        Ok(Some(fresh))
    }

    /// Takes all out of it, with the encoded form in place of the message where there
    /// is one, which leaves the message here.
    pub(super) fn take(&mut self, fresh: Option<Fresh>) -> Self {
        match fresh {
            Some(fresh) => {
                self.size = fresh.len();
                self.take_with(Some(Body::Encoded(fresh.into_bytes())))
            }
            None => {
                let body = self.body.take();
                self.take_with(body)
            }
        }
    }

    /// Takes all out of it but for the body, in place of which there is this one.
    pub(super) fn take_with(&mut self, body: Option<Body<M>>) -> Self {
        Self {
            body,
            ticket: self.ticket.take(),
            waiter: mem::replace(&mut self.waiter, Waiter::None),
            ..*self
        }
    }
}
