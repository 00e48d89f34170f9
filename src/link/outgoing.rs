//! The sender's end of a link.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, Weak},
    time::Duration,
};

use futures_util::task::AtomicWaker;
use tokio::{
    runtime::Handle,
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Streaming;
use tracing::{debug, info, warn};

use super::{
    BroadcastFeedback, Feedback, OPEN_TIMEOUT, Verdict,
    pace::UnknownMark,
    transfer::{Assembly, ChunkError},
    writer::{Broadcast, Channel, Shared, Writer},
};
use crate::{
    connections::Connections,
    delivery::Ticket,
    proto::{self, LinkReply, opened::Answer, reply, verdict},
    view::{Identity, NodeId},
};

/// The pauses between two attempts to open a link: the first one, and the
/// longest.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    max_reply: usize,
    runtime: Handle,
    tasks: TaskTracker,
    stop: CancellationToken,
    broadcasts: Weak<dyn BroadcastFeedback>,
    links: Mutex<HashMap<NodeId, Arc<Link>>>,
}

impl Links {
    /// Links run as tasks on the runtime, counted by `tasks`, until `stop`.
    /// `max_reply` is the largest reply that is read, in bytes.
    pub(crate) fn new(
        me: Identity,
        connections: Connections,
        max_reply: usize,
        runtime: Handle,
        tasks: TaskTracker,
        stop: CancellationToken,
        broadcasts: Weak<dyn BroadcastFeedback>,
    ) -> Self {
        Self {
            me,
            connections,
            max_reply,
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
            let broadcasts = self.broadcasts.clone();
            let link = Arc::new(Link::new(peer, target, self.max_reply, stop, broadcasts));
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
    /// The largest reply, in bytes.
    max_reply: usize,
    broadcasts: Weak<dyn BroadcastFeedback>,
    shared: Mutex<Shared>,
    /// Wakes the writer when there is something to write.
    pub(super) writer: AtomicWaker,
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
    #[error("the peer broke the protocol: {0}")]
    Chunk(#[from] ChunkError),
    #[error("the peer broke the protocol: {0}")]
    Mark(#[from] UnknownMark),
    #[error("the peer is somewhere else now")]
    Moved,
}

impl Link {
    fn new(
        peer: NodeId,
        target: Target,
        max_reply: usize,
        stop: CancellationToken,
        broadcasts: Weak<dyn BroadcastFeedback>,
    ) -> Self {
        Self {
            peer,
            max_reply,
            target: watch::Sender::new(target),
            stop,
            finishing: CancellationToken::new(),
            broadcasts,
            shared: Mutex::default(),
            writer: AtomicWaker::new(),
        }
    }

    pub(super) fn shared(&self) -> MutexGuard<'_, Shared> {
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

    /// A channel has something to write: once it is written, its mailbox is
    /// asked again. While the link is down this does nothing.
    pub(crate) fn call(&self, channel: u32) {
        let mut shared = self.shared();
        if !shared.up {
            return;
        }
        shared.calling.push_back(channel);
        drop(shared);
        self.writer.wake();
    }

    /// Hands a copy of a broadcast over to be written, with the time that is
    /// left until its deadline, and its patience, then. `false` if the link is
    /// down.
    pub(crate) fn pass_on(
        &self,
        copy: proto::Broadcast,
        deadline: Arc<Ticket>,
        patience: Instant,
    ) -> bool {
        let mut shared = self.shared();
        if !shared.up {
            return false;
        }
        shared.broadcasts.push_back(Broadcast {
            copy,
            deadline,
            patience,
        });
        drop(shared);
        self.writer.wake();
        true
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
                let replies = peer.link(Writer::new(self.clone(), open)).await?;
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
            if let Some(broadcasts) = self.broadcasts.upgrade() {
                broadcasts.up(self);
            }
            self.read(replies).await
        };
        tokio::select! {
            ended = followed => ended.err().unwrap_or(Broken::Ended),
            _ = target.changed() => Broken::Moved,
        }
    }

    async fn read(&self, mut replies: Streaming<LinkReply>) -> Result<(), Broken> {
        let mut large_reply = None;
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
                if let Some(broadcasts) = self.broadcasts.upgrade() {
                    let confirmed = broadcasts.confirmed(self, &namespace, answer);
                    confirmed.map_err(Broken::Protocol)?;
                }
            }
            for proceed in frame.proceeds {
                if let Some(mailbox) = self.mailbox(proceed.channel)? {
                    mailbox.proceed(proceed.sequence);
                }
            }
            for chunk in frame.chunks {
                self.reply_chunk(&mut large_reply, chunk)?;
            }
            if (frame.mark, frame.read) != (0, 0) {
                self.shared().heard(frame.mark, frame.read)?;
                self.writer.wake();
            }
        }
        Ok(())
    }

    /// Puts a large reply together. Only one comes at a time.
    fn reply_chunk(
        &self,
        large_reply: &mut Option<(u32, u64, Assembly)>,
        chunk: proto::Chunk,
    ) -> Result<(), Broken> {
        let (channel, sequence) = (chunk.channel, chunk.sequence);
        if chunk.data.is_empty() {
            let size = usize::try_from(chunk.size).unwrap_or(usize::MAX);
            if size > self.max_reply {
                let (limit, reason) = (self.max_reply, "its reply is too large");
                let reason = format!("{reason}: it has {size} bytes, and the limit is {limit}");
                if let Some(mailbox) = self.mailbox(channel)? {
                    mailbox.replied(sequence, Err(reason));
                }
                self.answer(channel, sequence, true);
                return Ok(());
            }
            *large_reply = Some((channel, sequence, Assembly::of(size)));
            self.answer(channel, sequence, false);
            return Ok(());
        }
        let Some((_, _, assembly)) = large_reply
            .as_mut()
            .filter(|reply| (reply.0, reply.1) == (channel, sequence))
        else {
            return Err(ChunkError::NotAnnounced.into());
        };
        assembly.add(chunk.offset, &chunk.data)?;
        if !assembly.is_complete() {
            return Ok(());
        }
        let whole = large_reply.take().map(|(_, _, reply)| reply.into_bytes());
        if let Some((mailbox, whole)) = self.mailbox(channel)?.zip(whole) {
            mailbox.replied(sequence, Ok(whole));
        }
        Ok(())
    }

    /// Lets a large reply go on, or says that it is not wanted.
    fn answer(&self, channel: u32, sequence: u64, unwanted: bool) {
        self.shared().proceeds.push(proto::Proceed {
            channel,
            sequence,
            unwanted,
        });
        self.writer.wake();
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
        shared.end();
        let channels = shared.channels.iter();
        let told: Vec<_> = channels.map(|channel| channel.mailbox.clone()).collect();
        drop(shared);
        self.writer.wake();
        if was_up {
            for mailbox in told.iter().filter_map(Weak::upgrade) {
                mailbox.broken();
            }
            if let Some(broadcasts) = self.broadcasts.upgrade() {
                broadcasts.broken(self);
            }
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
