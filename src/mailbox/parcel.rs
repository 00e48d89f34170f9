//! A message on the sending side, and what is known of it.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    delivery::{Deadline, Waiter, far},
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
    /// Where the sender can move it.
    pub(super) deadline: Option<Deadline>,
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
    pub(super) fn new(message: M, waiter: Waiter<M>, deadline: Option<Deadline>) -> Self {
        let body = Body::Value(message);
        Self {
            size: body.size(),
            body: Some(body),
            order: 0,
            sent: Instant::now(),
            deadline,
            waiter,
            failed: false,
        }
    }

    pub(super) fn timeout(&self, default: Duration) -> Duration {
        self.deadline.as_ref().map_or(default, Deadline::timeout)
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
    pub(super) fn encoded(mut self, limit: usize) -> Result<Self, Box<Unsent<M>>> {
        let Some(Body::Value(message)) = &self.body else {
            return Ok(self);
        };
        match encode(message) {
            Ok(bytes) if bytes.len() > limit => {
                let size = bytes.len();
                Err(self.failed(DeliveryError::TooLarge { size, limit }))
            }
            Ok(bytes) => {
                self.size = bytes.len();
                self.body = Some(Body::Encoded(bytes));
                Ok(self)
            }
            Err(reason) => Err(self.failed(DeliveryError::Encode { reason })),
        }
    }

    pub(super) fn failed(self, error: DeliveryError) -> Box<Unsent<M>> {
        let parcel = self;
        Box::new(Unsent { parcel, error })
    }
}
