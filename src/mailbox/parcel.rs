//! A message on the sending side, and what is known of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::{Held, Waiter, far},
    error::DeliveryError,
    message::{Body, RemoteMessage, encode},
};

pub(super) struct Parcel<M: RemoteMessage> {
    /// `None` while a local recipient has it.
    pub(super) body: Option<Body<M>>,
    pub(super) size: usize,
    /// Its place among all that were sent.
    pub(super) order: u64,
    pub(super) sent: Instant,
    /// What it shares with whoever awaits it.
    pub(super) ticket: Option<Held>,
    pub(super) waiter: Waiter<M>,
    /// Its sender has been told that it failed, so it must not be offered again.
    pub(super) failed: bool,
}

/// A message that was not taken in, and why.
pub(super) struct Unsent<M: RemoteMessage> {
    pub(super) parcel: Parcel<M>,
    pub(super) error: DeliveryError,
}

impl<M: RemoteMessage> Parcel<M> {
    pub(super) fn new(message: M, waiter: Waiter<M>, ticket: Option<Held>) -> Self {
        let body = Body::Value(message);
        Self {
            size: body.size(),
            body: Some(body),
            order: 0,
            sent: Instant::now(),
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

    pub(super) fn expires(&self, default: Duration) -> Instant {
        far(self.sent, self.timeout(default))
    }

    /// Whether somebody waits for the outcome.
    pub(super) fn is_awaited(&self) -> bool {
        !matches!(self.waiter, Waiter::None)
    }

    pub(super) fn is_encoded(&self) -> bool {
        matches!(self.body, Some(Body::Encoded(_)))
    }

    /// Makes it fit to travel. `limit` is the size of the largest message, in
    /// bytes.
    pub(super) fn encode(&mut self, limit: usize) -> Result<(), DeliveryError> {
        if let Some(Body::Value(message)) = &self.body {
            let bytes = encode(message, limit);
            let bytes = bytes.map_err(|error| DeliveryError::unsent(error, limit))?;
            self.size = bytes.len();
            self.body = Some(Body::Encoded(bytes));
        }
        Ok(())
    }

    pub(super) fn failed(self, error: DeliveryError) -> Box<Unsent<M>> {
        let parcel = self;
        Box::new(Unsent { parcel, error })
    }
}
