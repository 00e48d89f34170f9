//! The thread of a node, as seen from other threads.

use actix::{Actor, Addr, Context, dev::channel::channel};
use tokio::{runtime::Handle, sync::mpsc};
use tokio_util::sync::CancellationToken;

use crate::alarm::Alarm;

/// Starts what has to run where the node runs. It needs no arbiter, only a
/// `LocalSet`: so a node can run wherever there is one.
pub(super) struct Here {
    runtime: Handle,
    starts: mpsc::UnboundedSender<Start>,
}

type Start = Box<dyn FnOnce() + Send>;

impl Here {
    /// The current thread, until `stop`.
    pub(super) fn new(stop: CancellationToken) -> Self {
        let (starts, mut asked) = mpsc::unbounded_channel::<Start>();
        actix_rt::spawn(stop.run_until_cancelled_owned(async move {
            while let Some(start) = asked.recv().await {
                start();
            }
        }));
        Self {
            runtime: Handle::current(),
            starts,
        }
    }

    pub(super) fn runtime(&self) -> &Handle {
        &self.runtime
    }

    pub(super) fn alarm(&self) -> Alarm {
        Alarm::new(self.runtime.clone())
    }

    /// Starts an actor, in whose mailbox there is room for so many messages at
    /// once. After the node has stopped it gets none.
    pub(super) fn start<A>(&self, actor: A, capacity: usize) -> Addr<A>
    where
        A: Actor<Context = Context<A>> + Send,
    {
        let (sender, receiver) = channel(capacity);
        let start = move || {
            let context = Context::with_receiver(receiver);
            actix_rt::spawn(context.into_future(actor));
        };
        // Without the node the receiver is dropped, and the address is closed.
        let _ = self.starts.send(Box::new(start));
        Addr::new(sender)
    }
}
