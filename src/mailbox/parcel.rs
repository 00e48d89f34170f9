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
    /// The sender has been told that the outcome is unknown, so it must not be
    /// offered again.
    pub(super) given_up: bool,
}

/// A message that was not taken in.
pub(super) struct Unsent<M: RemoteMessage> {
    pub(super) parcel: Parcel<M>,
    pub(super) refused: Refused,
}

/// Why a message was not taken in.
pub(super) enum Refused {
    Full,
    Failed(DeliveryError),
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
            given_up: false,
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

    pub(super) fn refused(self, refused: Refused) -> Box<Unsent<M>> {
        Box::new(Unsent {
            parcel: self,
            refused,
        })
    }

    pub(super) fn failed(self, error: DeliveryError) -> Box<Unsent<M>> {
        self.refused(Refused::Failed(error))
    }

    /// Tells the sender that the outcome is unknown.
    pub(super) fn give_up(&mut self, default: Duration) {
        let waited = self.timeout(default);
        self.given_up = true;
        std::mem::replace(&mut self.waiter, Waiter::None).fail(DeliveryError::Timeout {
            waited,
            maybe_delivered: true,
        });
    }
}
