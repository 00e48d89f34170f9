//! A typed channel that spans the cluster, as users hold it.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use actix::{
    Actor, Addr, AsyncContext, Handler, Message, Recipient, dev::AsyncContextParts,
    prelude::SendError,
};

use crate::{
    bridge::{NamespaceSink, Receiver},
    cluster::Handle,
    delivery::{Broadcast, Delivery, Request},
    inbox::{ActorFeed, Channel, Seat, feed_recipient},
    mailbox::{Mailbox, Outbox},
    message::RemoteMessage,
    registration::{Hold, Registration},
};

/// A named channel for messages of one type, from
/// [`Cluster::namespace`](crate::Cluster::namespace).
///
/// Any node sends to it and any node receives from it. Each message goes to
/// one receiver: in turn to the nodes that receive the namespace and are ready
/// for more, this node included, and there to one recipient. While nobody
/// receives, messages wait in this node's outbox.
///
/// Messages from one node to one recipient are handed over in the order in
/// which they were sent, but for those that another one had before, or a link
/// that broke.
/// None is ever delivered twice.
///
/// It is cheap to clone. Clones send in the same turn.
///
/// # Example
///
/// ```
/// use dchan::{Cluster, prelude::*};
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Message, Serialize, Deserialize)]
/// #[rtype(result = "u32")]
/// struct Double(u32);
///
/// struct Doubler;
///
/// impl Actor for Doubler {
///     type Context = Context<Self>;
/// }
///
/// impl Handler<Double> for Doubler {
///     type Result = u32;
///
///     fn handle(&mut self, Double(number): Double, _: &mut Context<Self>) -> u32 {
///         2 * number
///     }
/// }
///
/// # #[actix::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::builder("127.0.0.1:0").start().await?;
/// let numbers = cluster.namespace::<Double>("numbers");
/// let registration = numbers.subscribe(Doubler.start().recipient());
/// registration.ready().await?;
///
/// assert_eq!(numbers.send(Double(21)).await?, 42);
/// cluster.shutdown().await?;
/// # Ok(())
/// # }
/// ```
pub struct Namespace<M: RemoteMessage> {
    core: Arc<Core<M>>,
    /// The node lives while anybody can send.
    handle: Arc<Handle>,
}

/// What all handles of a namespace on a node share.
pub(crate) struct Core<M: RemoteMessage> {
    pub(crate) name: Arc<str>,
    pub(crate) label: Arc<str>,
    pub(crate) outbox: Arc<Outbox<M>>,
    pub(crate) channel: Arc<Channel<M>>,
    /// Started when it is first asked for.
    pub(crate) mailbox: OnceLock<Addr<Mailbox<M>>>,
}

impl<M: RemoteMessage> Clone for Namespace<M> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
            handle: self.handle.clone(),
        }
    }
}

impl<M: RemoteMessage> fmt::Debug for Namespace<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Namespace")
            .field("name", &self.core.name)
            .field("label", &self.core.label)
            .finish_non_exhaustive()
    }
}

impl<M: RemoteMessage> Namespace<M> {
    pub(crate) fn new(core: Arc<Core<M>>, handle: Arc<Handle>) -> Self {
        Self { core, handle }
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.core.name
    }

    /// Sends without waiting for anything.
    ///
    /// A message that cannot be delivered (the outbox is full, nobody receives
    /// until the builder's [`send_timeout`](crate::Builder::send_timeout), it
    /// does not encode) becomes a dead letter: it is counted in
    /// [`Status`](crate::Status) and traced.
    pub fn do_send(&self, message: M) {
        self.core.outbox.do_send(message);
    }

    /// Sends unless the outbox is full. From then on the message fares as with
    /// [`do_send`](Self::do_send).
    ///
    /// # Errors
    ///
    /// Gives the message back: as [`SendError::Full`] while receivers take less
    /// than is sent, and as [`SendError::Closed`] when the node has shut down.
    pub fn try_send(&self, message: M) -> Result<(), SendError<M>> {
        self.core.outbox.try_send(message)
    }

    /// Sends and waits for what the handler returns.
    ///
    /// The message is on its way when this returns; the future only waits. The
    /// outbox takes it even when it is full, for it is bounded by who awaits.
    pub fn send(&self, message: M) -> Request<M> {
        self.core.outbox.send(message)
    }

    /// Sends and waits until a recipient has the message.
    ///
    /// The message is on its way when this returns; the future only waits. The
    /// outbox takes it even when it is full, for it is bounded by who awaits.
    pub fn deliver(&self, message: M) -> Delivery {
        self.core.outbox.deliver(message)
    }

    /// Sends to every receiver: each recipient on each node that receives the
    /// namespace, this one included, gets the message once.
    ///
    /// Nodes pass it on to each other, so that it costs its sender four copies
    /// at the most, however many receive it; a node with many recipients gets
    /// one copy. What has been lost with a node or a link is sent again: to all
    /// that are known to receive when it is sent and are there until the
    /// deadline. What a handler returns is dropped.
    ///
    /// Each recipient gets the broadcasts of one node in the order in which
    /// they were sent; there is no order between them and what is sent to one
    /// receiver. They enter its queue even where that is full. A recipient that
    /// is slow slows its senders down: a window's worth (the builder's
    /// [`window`](crate::Builder::window), 1,024 at the most) may be under way
    /// from this node, and the others wait their turn. Within that the other
    /// recipients are not held up.
    ///
    /// It may have up to 1 MiB encoded, or what the builder's
    /// [`max_message`](crate::Builder::max_message) says if that is less: a
    /// broadcast travels whole.
    ///
    /// The message is on its way when this returns; the future only waits. Await
    /// it, for those that wait their turn are bounded by nothing else.
    ///
    /// ```
    /// use dchan::{Cluster, prelude::*};
    /// use futures_util::StreamExt;
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Clone, Message, Serialize, Deserialize)]
    /// #[rtype(result = "()")]
    /// struct Price(u32);
    ///
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::builder("127.0.0.1:0").start().await?;
    /// let prices = cluster.namespace::<Price>("prices");
    /// let (mut here, mut there) = (prices.receiver(16), prices.receiver(16));
    /// here.ready().await?;
    ///
    /// let broadcast = prices.broadcast(Price(7));
    /// assert_eq!(here.next().await.map(|price| price.0), Some(7));
    /// assert_eq!(there.next().await.map(|price| price.0), Some(7));
    /// let reached = broadcast.await?;
    /// assert_eq!((reached.receivers, reached.confirmed), (1, 1)); // In nodes.
    /// cluster.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn broadcast(&self, message: M) -> Broadcast
    where
        M: Clone,
    {
        let Core {
            outbox, channel, ..
        } = &*self.core;
        outbox.relay().broadcast(channel, message, false)
    }

    /// Sends to every receiver, as [`broadcast`](Self::broadcast) does, but a
    /// recipient whose queue is full, or holds half of the builder's
    /// [`window`](crate::Builder::window), misses the message: so nobody who is slow
    /// slows the sender down. [`Reached`](crate::Reached) counts them. A node that
    /// is out of reach is waited for until the cluster takes it out, like any
    /// other.
    pub fn broadcast_lossy(&self, message: M) -> Broadcast
    where
        M: Clone,
    {
        let Core {
            outbox, channel, ..
        } = &*self.core;
        outbox.relay().broadcast(channel, message, true)
    }

    /// A plain actix recipient that sends to the namespace, for code that knows
    /// nothing of clusters.
    ///
    /// What it is given goes through an actor of this node and then fares as
    /// with [`do_send`](Self::do_send), or [`send`](Self::send) where a reply is
    /// awaited. Where the namespace would yield a
    /// [`DeliveryError`](crate::DeliveryError), whichever it is, the recipient
    /// yields [`MailboxError::Closed`](actix::MailboxError::Closed): actix has
    /// no other word. A timeout of its own gives up the reply and not the
    /// message, as with any recipient.
    pub fn recipient(&self) -> Recipient<M> {
        let Core {
            outbox, mailbox, ..
        } = &*self.core;
        let mailbox = mailbox.get_or_init(|| self.handle.start_mailbox(outbox));
        mailbox.clone().recipient()
    }

    /// A sink that sends to the namespace. `feed` waits for room in the outbox;
    /// `SinkExt::send` flushes as well, and so waits until receivers have taken all
    /// that is in it, whoever has sent it.
    pub fn sink(&self) -> NamespaceSink<M> {
        NamespaceSink::new(self.core.outbox.clone())
    }

    /// Registers an actor as a recipient, from its own context: call it in
    /// [`started`](Actor::started).
    ///
    /// The actor takes messages when its own mailbox is empty. As many as its
    /// mailbox has room for (actix's default is 16) are set aside for it; the
    /// rest goes to others or waits. The registration ends when the actor
    /// stops; until it ends the actor lives, even if nobody holds its address.
    /// A message counts as accepted when its handler is called, and as
    /// handled when the handler's response is there; if the actor stops in
    /// between and takes the response with it, its sender sees
    /// [`DeliveryError::Lost`](crate::DeliveryError::Lost).
    ///
    /// Say which actor it is, as in `register::<Self>(ctx)`: a context does not
    /// tell. Keep the registration to close it, or
    /// [`detach`](Registration::detach) it; `let _ = ` would end it at once.
    ///
    /// ```
    /// # use dchan::{Namespace, prelude::*};
    /// # use serde::{Deserialize, Serialize};
    /// # #[derive(Message, Serialize, Deserialize)]
    /// # #[rtype(result = "()")]
    /// # struct Order;
    /// struct Warehouse {
    ///     orders: Namespace<Order>,
    /// }
    ///
    /// impl Actor for Warehouse {
    ///     type Context = Context<Self>;
    ///
    ///     fn started(&mut self, ctx: &mut Context<Self>) {
    ///         self.orders.register::<Self>(ctx).detach();
    ///     }
    /// }
    /// # impl Handler<Order> for Warehouse {
    /// #     type Result = ();
    /// #     fn handle(&mut self, _: Order, _: &mut Context<Self>) {}
    /// # }
    /// ```
    pub fn register<A>(&self, ctx: &mut A::Context) -> Registration
    where
        A: Actor + Handler<M>,
        A::Context: AsyncContext<A> + AsyncContextParts<A>,
    {
        let capacity = match ctx.parts().capacity() {
            // What actix calls unbounded is bounded by the window here.
            0 => self.handle.settings().window as usize,
            capacity => capacity,
        };
        let seat = self.core.channel.add(capacity);
        let registration = self.registration(&seat);
        ctx.spawn(ActorFeed::new(seat));
        registration
    }

    /// Registers any actix recipient.
    ///
    /// Up to 64 messages are in its hands at a time, from when they are put into
    /// its mailbox until they have been handled. When its actor is found to be
    /// stopped the registration ends. Prefer [`register`](Self::register),
    /// which notices at once and is faster. What is in a mailbox when its actor
    /// stops is gone, as always in actix, though it counts as accepted.
    pub fn subscribe(&self, recipient: Recipient<M>) -> Registration {
        let seat = self.core.channel.add(1);
        let registration = self.registration(&seat);
        self.handle.spawn(feed_recipient(seat, recipient));
        registration
    }

    /// Registers a stream, for code that has no actor. `capacity` is how many
    /// messages are set aside for it.
    ///
    /// ```
    /// use dchan::{Cluster, prelude::*};
    /// use futures_util::{SinkExt, StreamExt};
    /// use serde::{Deserialize, Serialize};
    ///
    /// #[derive(Message, Serialize, Deserialize)]
    /// #[rtype(result = "()")]
    /// struct Tick(u32);
    ///
    /// # #[actix::main]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let cluster = Cluster::builder("127.0.0.1:0").start().await?;
    /// let ticks = cluster.namespace::<Tick>("ticks");
    /// let mut receiver = ticks.receiver(16);
    /// let mut sink = ticks.sink();
    /// sink.feed(Tick(1)).await?;
    /// sink.feed(Tick(2)).await?;
    ///
    /// assert_eq!(receiver.next().await.map(|tick| tick.0), Some(1));
    /// assert_eq!(receiver.next().await.map(|tick| tick.0), Some(2));
    /// receiver.close().await?;
    /// cluster.shutdown().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn receiver(&self, capacity: usize) -> Receiver<M>
    where
        M: Message<Result = ()>,
    {
        let seat = self.core.channel.add(capacity);
        let registration = self.registration(&seat);
        Receiver::new(seat, registration)
    }

    fn registration(&self, seat: &Seat<M>) -> Registration {
        let settings = self.handle.settings();
        let me = self.handle.me();
        Registration::new(Hold {
            channel: seat.channel().clone(),
            id: seat.id(),
            handling: seat.handling().clone(),
            namespace: self.core.name.clone(),
            label: self.core.label.clone(),
            node: me.node,
            boot: me.boot,
            agreed: self.handle.agreed(),
            wanted: self.handle.wanted(),
            register_timeout: settings.register_timeout,
            drain_timeout: settings.drain_timeout,
            stop: self.handle.stopped(),
        })
    }
}
