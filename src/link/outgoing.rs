//! The sender's end of a link.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, Weak},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::{ADDRESSEE_BYTES, BroadcastFeedback, FRAME_BYTES, Feedback, MESSAGE_OVERHEAD, Verdict};
use crate::{
    connections::Connections,
    delivery::Deadline,
    proto::{self, LinkReply, LinkRequest, opened::Answer, reply, verdict},
    view::{Identity, NodeId},
};

/// The pauses between two attempts to open a link: the first one, and the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long the peer may take to answer the first frame.
const OPEN_TIMEOUT: Duration = Duration::from_secs(5);

/// How long a peer that leaves may take to answer what it was sent.
const FINISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Where a peer is, and in which boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) address: Arc<str>,
    pub(crate) boot: u64,
}

/// The links of a node, one a peer, each opened when it is first needed.
pub(crate) struct Links {
    me: Identity,
    connections: Connections,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    broadcasts: Arc<dyn BroadcastFeedback>,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
}

impl Links {
    /// Links run as tasks on the runtime, counted by `tasks`, until `stop`.
    pub(crate) fn new(
        me: Identity,
        connections: Connections,
        runtime: Handle,
        tasks: TaskTracker,
        stop: CancellationToken,
        broadcasts: Arc<dyn BroadcastFeedback>,
    ) -> Self {
        Self {
            me,
            connections,
            runtime,
            tasks,
            stop,
            broadcasts,
            links: Mutex::default(),
        }
    }

    fn links(&self) -> MutexGuard<'_, HashMap<NodeId, Arc<Link>>> {
        self.links.lock().expect("no panic while links are counted")
    }

    /// The link to a peer. `target` says where the peer is, if there is none
    /// yet.
    pub(crate) fn to(&self, peer: NodeId, target: Target) -> Arc<Link> {
        let mut links = self.links();
        let link = links.entry(peer).or_insert_with(|| {
            let stop = self.stop.child_token();
            let link = Arc::new(Link::new(peer, target, stop, self.broadcasts.clone()));
            let run = link.clone().run(self.me.clone(), self.connections.clone());
            self.tasks.spawn_on(run, &self.runtime);
            link
        });
        link.clone()
    }

    /// Follows the view: a link whose peer is somewhere else now, or in another
    /// boot, is opened again; that of a peer which is gone ends.
    pub(crate) fn follow(&self, target: impl Fn(NodeId) -> Option<Target>) {
        self.links().retain(|peer, link| match target(*peer) {
            Some(target) => {
                link.target.send_if_modified(|current| {
                    let moved = *current != target;
                    *current = target;
                    moved
                });
                true
            }
            None => {
                link.finish();
                false
            }
        });
    }

    /// The peers that a link exists to, and whether it is up.
    pub(crate) fn status(&self) -> Vec<(NodeId, bool)> {
        let links = self.links();
        links
            .values()
            .map(|link| (link.peer, link.shared().up))
            .collect()
    }
}

/// The sending end of the stream to one peer.
pub(crate) struct Link {
    peer: NodeId,
    target: watch::Sender<Target>,
    stop: CancellationToken,
    finishing: CancellationToken,
    broadcasts: Arc<dyn BroadcastFeedback>,
    shared: Mutex<Shared>,
    /// Wakes the writer when there is something to write.
    writer: AtomicWaker,
}

struct Shared {
    /// The peer has welcomed this node: messages can be handed over.
    up: bool,
    /// Counts the streams, so that the writer of an old one ends.
    stream: u64,
    /// By their numbers on the wire, which stay the same from one stream to
    /// the next.
    channels: Vec<Channel>,
    /// How many of them the peer has been told of on this stream.
    declared: usize,
    queue: VecDeque<Queued>,
    /// The peer has left: nothing more is written than is here.
    finishing: bool,
}

struct Channel {
    namespace: Arc<str>,
    label: Arc<str>,
    mailbox: Weak<dyn Feedback>,
    /// The number of the first message that has not been taken by the writer.
    unsent: u64,
}

enum Queued {
    Message(Message),
    Broadcast(Box<Broadcast>),
}

struct Message {
    channel: u32,
    sequence: u64,
    ask: bool,
    body: Bytes,
}

struct Broadcast {
    copy: proto::Broadcast,
    deadline: Deadline,
    patience: Instant,
}

impl Queued {
    fn channel(&self) -> u32 {
        match self {
            Self::Message(message) => message.channel,
            Self::Broadcast(broadcast) => broadcast.copy.channel,
        }
    }

    /// What it takes in a frame, at the most.
    fn size(&self) -> usize {
        match self {
            Self::Message(message) => MESSAGE_OVERHEAD + message.body.len(),
            Self::Broadcast(broadcast) => {
                let proto::Broadcast {
                    addressees,
                    message,
                    ..
                } = &broadcast.copy;
                3 * MESSAGE_OVERHEAD + ADDRESSEE_BYTES * addressees.len() + message.len()
            }
        }
    }
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Status(#[from] tonic::Status),
    #[error("{0}")]
    Address(#[from] crate::connections::InvalidAddress),
    #[error("the peer did not answer within {OPEN_TIMEOUT:?}")]
    Silent,
    #[error("the peer ended it")]
    Ended,
    #[error("the peer refused it: {0}")]
    Refused(&'static str),
    #[error("the peer broke the protocol: {0}")]
    Protocol(&'static str),
    #[error("the peer is somewhere else now")]
    Moved,
}

impl Link {
    fn new(
        peer: NodeId,
        target: Target,
        stop: CancellationToken,
        broadcasts: Arc<dyn BroadcastFeedback>,
    ) -> Self {
        Self {
            peer,
            target: watch::Sender::new(target),
            stop,
            finishing: CancellationToken::new(),
            broadcasts,
            shared: Mutex::new(Shared {
                up: false,
                stream: 0,
                channels: Vec::new(),
                declared: 0,
                queue: VecDeque::new(),
                finishing: false,
            }),
            writer: AtomicWaker::new(),
        }
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared
            .lock()
            .expect("no panic while messages are queued")
    }

    /// Makes a namespace known to the peer, which then grants to this mailbox in
    /// place of an earlier one. Returns its number on this link and that of its
    /// next message.
    pub(crate) fn attach(
        &self,
        namespace: &Arc<str>,
        label: &Arc<str>,
        mailbox: Weak<dyn Feedback>,
    ) -> (u32, u64) {
        let mut shared = self.shared();
        let known = shared
            .channels
            .iter()
            .position(|channel| channel.namespace == *namespace);
        let number = match known {
            Some(number) => {
                // Said again, so that the peer grants again.
                shared.declared = shared.declared.min(number);
                shared.channels[number].mailbox = mailbox;
                number
            }
            None => {
                shared.channels.push(Channel {
                    namespace: namespace.clone(),
                    label: label.clone(),
                    mailbox,
                    unsent: 0,
                });
                shared.channels.len() - 1
            }
        };
        let next = shared.channels[number].unsent;
        drop(shared);
        self.writer.wake();
        (number as u32, next)
    }

    /// Hands a message over to be written. Gives it back if the link is down.
    pub(crate) fn push(
        &self,
        channel: u32,
        sequence: u64,
        ask: bool,
        body: Bytes,
    ) -> Result<(), Bytes> {
        let shared = self.shared();
        if !shared.up {
            return Err(body);
        }
        let message = Message {
            channel,
            sequence,
            ask,
            body,
        };
        self.enqueue(shared, Queued::Message(message));
        Ok(())
    }

    /// Hands a copy of a broadcast over to be written, with the time that is
    /// left until its deadline, and its patience, then. `false` if the link is
    /// down.
    pub(crate) fn pass_on(
        &self,
        copy: proto::Broadcast,
        deadline: Deadline,
        patience: Instant,
    ) -> bool {
        let shared = self.shared();
        let up = shared.up;
        if up {
            let broadcast = Broadcast {
                copy,
                deadline,
                patience,
            };
            self.enqueue(shared, Queued::Broadcast(Box::new(broadcast)));
        }
        up
    }

    fn enqueue(&self, mut shared: MutexGuard<'_, Shared>, queued: Queued) {
        let idle = shared.queue.is_empty();
        shared.queue.push_back(queued);
        drop(shared);
        if idle {
            self.writer.wake();
        }
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.peer
    }

    /// Whether messages can be handed over.
    pub(crate) fn is_up(&self) -> bool {
        self.shared().up
    }

    /// Ends the link in order: no more is sent, and what the peer still has to
    /// say is heard, until it ends the stream or its time is over.
    fn finish(&self) {
        let mut shared = self.shared();
        shared.finishing = true;
        let up = shared.up;
        drop(shared);
        match up {
            true => self.finishing.cancel(),
            false => self.stop.cancel(),
        }
        self.writer.wake();
    }

    /// Keeps the stream open until the link is stopped.
    async fn run(self: Arc<Self>, me: Identity, connections: Connections) {
        let mut target = self.target.subscribe();
        let mut pause = FIRST_PAUSE;
        let mut reported = false;
        loop {
            let finished = async {
                self.finishing.cancelled().await;
                sleep(FINISH_TIMEOUT).await;
            };
            let broken = tokio::select! {
                () = self.stop.cancelled() => break,
                () = finished => break,
                broken = self.stream(&me, &connections, &mut target) => broken,
            };
            if self.finishing.is_cancelled() {
                break;
            }
            let was_up = self.lose();
            if was_up || !reported {
                warn!(node = %me.node, peer = %self.peer, reason = %broken, "link down");
                reported = true;
            }
            if was_up || matches!(broken, Broken::Moved) {
                pause = FIRST_PAUSE;
                reported = was_up;
            }
            tokio::select! {
                () = self.stop.cancelled() => break,
                () = sleep(pause.mul_f64(rand::random_range(0.5..1.5))) => {}
                _ = target.changed() => {}
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.lose();
        debug!(node = %me.node, peer = %self.peer, "link closed");
    }

    /// Opens a stream and follows it until it ends.
    async fn stream(
        self: &Arc<Self>,
        me: &Identity,
        connections: &Connections,
        target: &mut watch::Receiver<Target>,
    ) -> Broken {
        let Target { address, boot } = target.borrow_and_update().clone();
        let followed = async {
            let mut peer = connections.peer(&address)?;
            let open = proto::Open {
                cluster: me.cluster.to_string(),
                node: me.node.get(),
                boot: me.boot,
                target: self.peer.get(),
                target_boot: boot,
            };
            let opened = async {
                let replies = peer.link(self.writer(open)).await?;
                let mut replies = replies.into_inner();
                let first = replies.message().await?.ok_or(Broken::Ended)?;
                welcome(&first)?;
                Ok::<_, Broken>(replies)
            };
            let replies = timeout(OPEN_TIMEOUT, opened)
                .await
                .map_err(|_| Broken::Silent)??;
            self.shared().up = true;
            self.writer.wake();
            info!(node = %me.node, peer = %self.peer, %address, "link up");
            self.broadcasts.up(self);
            self.read(replies).await
        };
        tokio::select! {
            ended = followed => ended.err().unwrap_or(Broken::Ended),
            _ = target.changed() => Broken::Moved,
        }
    }

    fn writer(self: &Arc<Self>, open: proto::Open) -> Writer {
        let mut shared = self.shared();
        shared.stream += 1;
        Writer {
            link: self.clone(),
            stream: shared.stream,
            open: Some(open),
        }
    }

    async fn read(&self, mut replies: Streaming<LinkReply>) -> Result<(), Broken> {
        while let Some(frame) = replies.message().await? {
            for grant in frame.grants {
                if !grant.refusal.is_empty() {
                    warn!(peer = %self.peer, reason = %grant.refusal, "a receiver refuses");
                }
                if let Some(mailbox) = self.mailbox(grant.channel)? {
                    mailbox.granted(grant.window);
                }
            }
            for settled in frame.verdicts {
                let verdict = match settled.kind() {
                    verdict::Kind::Accepted => Verdict::Accepted,
                    verdict::Kind::Returned => Verdict::Returned,
                    verdict::Kind::Rejected => Verdict::Rejected(settled.reason),
                    verdict::Kind::Unspecified => {
                        return Err(Broken::Protocol("a verdict of no known kind"));
                    }
                };
                if let Some(mailbox) = self.mailbox(settled.channel)? {
                    mailbox.settled(settled.first, settled.count, verdict);
                }
            }
            for replied in frame.replies {
                let reply = match replied.result {
                    Some(reply::Result::Value(bytes)) => Ok(bytes),
                    Some(reply::Result::None(reason)) => Err(reason),
                    None => Err("the peer sent an empty reply".to_owned()),
                };
                if let Some(mailbox) = self.mailbox(replied.channel)? {
                    mailbox.replied(replied.sequence, reply);
                }
            }
            for answer in frame.confirmations {
                let namespace = self.namespace(answer.channel)?;
                let confirmed = self.broadcasts.confirmed(self, &namespace, answer);
                confirmed.map_err(Broken::Protocol)?;
            }
        }
        Ok(())
    }

    fn namespace(&self, channel: u32) -> Result<Arc<str>, Broken> {
        let shared = self.shared();
        let channel = shared.channels.get(channel as usize);
        let channel = channel.ok_or(Broken::Protocol("a channel that does not exist"))?;
        Ok(channel.namespace.clone())
    }

    /// The mailbox of a channel, unless that is gone.
    fn mailbox(&self, channel: u32) -> Result<Option<Arc<dyn Feedback>>, Broken> {
        let shared = self.shared();
        let channel = shared
            .channels
            .get(channel as usize)
            .ok_or(Broken::Protocol("a channel that does not exist"))?;
        Ok(channel.mailbox.upgrade())
    }

    /// Marks the link as down and tells the mailboxes. Whether it was up.
    fn lose(&self) -> bool {
        let mut shared = self.shared();
        let was_up = std::mem::replace(&mut shared.up, false);
        shared.stream += 1;
        shared.declared = 0;
        shared.queue.clear();
        let told: Vec<_> = shared
            .channels
            .iter()
            .map(|channel| (channel.mailbox.clone(), channel.unsent))
            .collect();
        drop(shared);
        self.writer.wake();
        if was_up {
            for (mailbox, unsent) in told {
                if let Some(mailbox) = mailbox.upgrade() {
                    mailbox.broken(unsent);
                }
            }
            self.broadcasts.broken(self);
        }
        was_up
    }
}

fn welcome(first: &LinkReply) -> Result<(), Broken> {
    let opened = first
        .opened
        .as_ref()
        .ok_or(Broken::Protocol("the first frame answers nothing"))?;
    match opened.answer() {
        Answer::Welcome => Ok(()),
        Answer::WrongCluster => Err(Broken::Refused("it belongs to another cluster")),
        Answer::WrongNode => Err(Broken::Refused("it is another node")),
        Answer::WrongBoot => Err(Broken::Refused("it has been restarted")),
        Answer::Closing => Err(Broken::Refused("it is shutting down")),
        Answer::Unspecified => Err(Broken::Protocol("an answer of no known kind")),
    }
}

/// The frames of one stream. Each takes what has gathered when it is asked for.
struct Writer {
    link: Arc<Link>,
    stream: u64,
    open: Option<proto::Open>,
}

impl Stream for Writer {
    type Item = LinkRequest;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<LinkRequest>> {
        if let Some(open) = self.open.take() {
            return Poll::Ready(Some(LinkRequest {
                open: Some(open),
                ..LinkRequest::default()
            }));
        }
        let mut shared = self.link.shared();
        if shared.stream != self.stream {
            return Poll::Ready(None);
        }
        match shared.up.then(|| shared.frame()).flatten() {
            Some(frame) => Poll::Ready(Some(frame)),
            None if shared.finishing => Poll::Ready(None),
            None => {
                // Under the lock: whatever is pushed from now on wakes it, and
                // no writer of an old stream comes in between.
                self.link.writer.register(cx.waker());
                Poll::Pending
            }
        }
    }
}

impl Shared {
    /// The next frame, if there is anything to say.
    fn frame(&mut self) -> Option<LinkRequest> {
        let mut frame = LinkRequest::default();
        let mut bytes = 0;
        let undeclared = self.channels.iter().enumerate().skip(self.declared);
        for (number, channel) in undeclared {
            if bytes >= FRAME_BYTES {
                break;
            }
            bytes += MESSAGE_OVERHEAD + channel.namespace.len() + channel.label.len();
            self.declared = number + 1;
            frame.channels.push(proto::Channel {
                id: number as u32,
                namespace: channel.namespace.to_string(),
                label: channel.label.to_string(),
            });
        }
        while let Some(next) = self.queue.front() {
            bytes += next.size();
            let fits = bytes <= FRAME_BYTES || frame == LinkRequest::default();
            let declared = (next.channel() as usize) < self.declared;
            // The peer reads a frame's broadcasts after its runs.
            let in_turn = matches!(next, Queued::Broadcast(_)) || frame.broadcasts.is_empty();
            let next = self.queue.pop_front_if(|_| fits && declared && in_turn);
            let Some(next) = next else {
                break;
            };
            match next {
                Queued::Message(message) => {
                    self.channels[message.channel as usize].unsent = message.sequence + 1;
                    append(&mut frame.runs, message);
                }
                Queued::Broadcast(broadcast) => frame.broadcasts.push(broadcast.now()),
            }
        }
        let empty = frame.channels.is_empty() && frame.runs.is_empty();
        (!empty || !frame.broadcasts.is_empty()).then_some(frame)
    }
}

impl Broadcast {
    /// The copy as it is written now.
    fn now(self) -> proto::Broadcast {
        let now = Instant::now();
        let left = |until: Instant| {
            let left = until.saturating_duration_since(now);
            u64::try_from(left.as_millis()).unwrap_or(u64::MAX)
        };
        proto::Broadcast {
            remaining: left(self.deadline.at()),
            patience: left(self.patience),
            ..self.copy
        }
    }
}

/// Puts a message into the last run if it goes on there.
fn append(runs: &mut Vec<proto::Run>, queued: Message) {
    if let Some(run) = runs.last_mut()
        && run.channel == queued.channel
        && run.ask == queued.ask
        && run.first + run.messages.len() as u64 == queued.sequence
    {
        run.messages.push(queued.body);
        return;
    }
    runs.push(proto::Run {
        channel: queued.channel,
        first: queued.sequence,
        ask: queued.ask,
        messages: vec![queued.body],
    });
}
