//! A user's hold on a recipient.

use std::{sync::Arc, time::Duration};

use tokio::{sync::watch, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    error::RegisterError,
    inbox::{Channel, Wanted},
    message::RemoteMessage,
    view::{NodeId, View},
};

/// A recipient of a namespace on this node.
///
/// The cluster is told in the background; [`ready`](Self::ready) waits for its
/// agreement, and messages arrive as soon as senders have heard of it.
///
/// Dropping the registration ends it: what the recipient has not taken goes to
/// the next one. A registration also ends when its actor stops, or when the
/// node shuts down. To leave it to these, [`detach`](Self::detach) it.
#[must_use = "dropping a registration ends it; `detach` it to keep it while its actor lives"]
pub struct Registration {
    hold: Hold,
    /// Set once there is nothing left to do on drop.
    released: bool,
}

/// The parts of a registration that do not depend on how it ends.
pub(crate) struct Hold {
    pub(crate) channel: Arc<dyn AnyRecipient>,
    pub(crate) id: u64,
    pub(crate) handling: TaskTracker,
    pub(crate) namespace: Arc<str>,
    pub(crate) label: Arc<str>,
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
    pub(crate) agreed: watch::Receiver<Arc<View>>,
    pub(crate) wanted: watch::Receiver<Wanted>,
    pub(crate) register_timeout: Duration,
    pub(crate) drain_timeout: Duration,
    pub(crate) stop: CancellationToken,
}

/// A channel whatever its type of message.
pub(crate) trait AnyRecipient: Send + Sync {
    fn remove(&self, id: u64);
    /// Whether the recipient is still there.
    fn has(&self, id: u64) -> bool;
    /// Whether there is any recipient.
    fn is_received(&self) -> bool;
}

impl<M: RemoteMessage> AnyRecipient for Channel<M> {
    fn remove(&self, id: u64) {
        Channel::remove(self, id);
    }

    fn has(&self, id: u64) -> bool {
        Channel::has(self, id)
    }

    fn is_received(&self) -> bool {
        Channel::is_received(self)
    }
}

impl Registration {
    pub(crate) fn new(hold: Hold) -> Self {
        Self {
            hold,
            released: false,
        }
    }

    /// Resolves when the cluster has agreed that this node receives the
    /// namespace.
    ///
    /// # Errors
    ///
    /// [`RegisterError::NoQuorum`] after the builder's
    /// [`register_timeout`](crate::Builder::register_timeout),
    /// [`RegisterError::OtherType`] where others receive the namespace with
    /// another type, as far as this node has heard, and
    /// [`RegisterError::Closed`] if the registration has ended. In the first two
    /// cases the node goes on trying.
    pub async fn ready(&self) -> Result<(), RegisterError> {
        let Hold {
            namespace,
            label,
            node,
            boot,
            register_timeout,
            ..
        } = &self.hold;
        if !self.hold.channel.has(self.hold.id) {
            return Err(RegisterError::Closed);
        }
        let mut agreed = self.hold.agreed.clone();
        let known = agreed.wait_for(|view| {
            let other = view.receivers.get(namespace);
            other.is_some_and(|other| other.label != *label)
                || view.received(namespace, *node, *boot).is_some()
        });
        let view = tokio::select! {
            () = self.hold.stop.cancelled() => return Err(RegisterError::Closed),
            known = timeout(*register_timeout, known) => match known {
                Err(_) => return Err(RegisterError::NoQuorum { waited: *register_timeout }),
                Ok(Err(_)) => return Err(RegisterError::Closed),
                Ok(Ok(view)) => view,
            },
        };
        match view.receivers.get(namespace) {
            Some(other) if other.label != *label => Err(RegisterError::OtherType {
                namespace: namespace.to_string(),
                ours: label.to_string(),
                theirs: other.label.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Ends the registration. When this resolves nothing more arrives, what the
    /// recipient had accepted has been handled, what it had not taken has gone
    /// elsewhere, and, if it was the node's last one, the cluster has agreed
    /// that the node receives the namespace no more.
    ///
    /// # Errors
    ///
    /// [`RegisterError::StillHandling`] after the builder's
    /// [`drain_timeout`](crate::Builder::drain_timeout), and
    /// [`RegisterError::NoQuorum`] after its
    /// [`register_timeout`](crate::Builder::register_timeout). The registration
    /// has ended all the same.
    pub async fn close(mut self) -> Result<(), RegisterError> {
        self.released = true;
        let hold = &self.hold;
        hold.channel.remove(hold.id);
        if timeout(hold.drain_timeout, hold.handling.wait())
            .await
            .is_err()
        {
            let waited = hold.drain_timeout;
            return Err(RegisterError::StillHandling { waited });
        }
        let (mut agreed, mut wanted) = (hold.agreed.clone(), hold.wanted.clone());
        let gone = agreed.wait_for(|view| {
            let received = view.received(&hold.namespace, hold.node, hold.boot);
            received.is_none()
        });
        let received = async {
            while !hold.channel.is_received() {
                if wanted.changed().await.is_err() {
                    break;
                }
            }
        };
        tokio::select! {
            () = hold.stop.cancelled() => Ok(()),
            // It was not the last one, or another one has come.
            () = received => Ok(()),
            gone = timeout(hold.register_timeout, gone) => match gone {
                Ok(_) => Ok(()),
                Err(_) => Err(RegisterError::NoQuorum { waited: hold.register_timeout }),
            },
        }
    }

    /// Leaves the recipient registered until its actor stops or the node shuts
    /// down.
    pub fn detach(mut self) {
        self.released = true;
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if !self.released {
            self.hold.channel.remove(self.hold.id);
        }
    }
}
