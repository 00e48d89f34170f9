//! A message on the sending side, and what is known of it.

use std::{mem, time::Duration};

use bytes::Bytes;
use tokio::time::Instant;

use super::gathering::GATHERED_BYTES;
use crate::{
    delivery::{Held, Waiter, far},
    error::DeliveryError,
    message::{Body, Fresh, RemoteMessage, encode_here},
};

/// A message that has not been taken in.
pub(super) struct Offered<M: RemoteMessage> {
    /// `None` once it has gone on as it is.
    pub(super) message: Option<M>,
    ticket: Option<Held>,
    waiter: Waiter<M>,
}

/// The encoded form of a message.
pub(super) enum Encoded {
    /// To be gathered with others, or kept if it has to wait.
    Small(Fresh),
    Large(Bytes),
}

/// A message that waits.
pub(super) struct Parcel<M: RemoteMessage> {
    pub(super) body: Body<M>,
    pub(super) record: Record<M>,
}

/// What is known of a message.
pub(super) struct Record<M: RemoteMessage> {
    pub(super) size: usize,
    /// Its place among all that were sent.
    pub(super) order: u64,
    /// When it was taken in.
    pub(super) sent: Instant,
    /// What it shares with whoever awaits it.
    pub(super) ticket: Option<Held>,
    pub(super) waiter: Waiter<M>,
    /// Its sender has been told that it failed, so it must not be offered again.
    pub(super) failed: bool,
}

impl<M: RemoteMessage> Offered<M> {
    pub(super) fn new(message: M, waiter: Waiter<M>, ticket: Option<Held>) -> Self {
        Self {
            message: Some(message),
            ticket,
            waiter,
        }
    }

    /// Its encoded form. `limit` is the size of the largest message, in bytes.
    pub(super) fn encoded(&self, limit: usize) -> Option<Result<Encoded, DeliveryError>> {
        let message = self.message.as_ref()?;
        let encoded = encode_here(message, limit).map(|mut fresh| match fresh.len() {
            ..=GATHERED_BYTES => Encoded::Small(fresh),
            _ => Encoded::Large(fresh.take()),
        });
        Some(encoded.map_err(|error| DeliveryError::unsent(error, limit)))
    }

    /// Takes out who awaits it, for what is known of it from now on.
    #[inline(always)]
    pub(super) fn record(
        &mut self,
        size: usize,
        order: u64,
        now: impl FnOnce() -> Instant,
    ) -> Record<M> {
        let ticket = self.ticket.take();
        Record {
            size,
            order,
            sent: ticket.as_ref().map_or_else(now, |ticket| ticket.sent()),
            ticket,
            waiter: mem::replace(&mut self.waiter, Waiter::None),
            failed: false,
        }
    }

    /// Takes all of it out: the encoded form, where there is one, or the message.
    pub(super) fn parcel(
        &mut self,
        encoded: Option<&mut Encoded>,
        order: u64,
    ) -> Option<Parcel<M>> {
        let body = match encoded {
            Some(Encoded::Small(fresh)) => Body::Encoded(fresh.take()),
            Some(Encoded::Large(bytes)) => Body::Encoded(mem::take(bytes)),
            None => Body::Value(self.message.take()?),
        };
        let record = self.record(body.size(), order, Instant::now);
        Some(Parcel { body, record })
    }

    /// Puts back what was taken out of it.
    pub(super) fn put_back(&mut self, parcel: Parcel<M>) {
        let Parcel { body, record } = parcel;
        if let Body::Value(message) = body {
            self.message = Some(message);
        }
        self.ticket = record.ticket;
        self.waiter = record.waiter;
    }
}

impl Encoded {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Small(fresh) => fresh.len(),
            Self::Large(bytes) => bytes.len(),
        }
    }
}

impl<M: RemoteMessage> Record<M> {
    pub(super) fn timeout(&self, default: Duration) -> Duration {
        self.ticket
            .as_ref()
            .map_or(default, |ticket| ticket.timeout())
    }

    pub(super) fn expires(&self, default: Duration) -> Instant {
        far(self.sent, self.timeout(default))
    }

    /// Whether somebody waits for the outcome.
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(self.waiter, Waiter::None)
    }
}
