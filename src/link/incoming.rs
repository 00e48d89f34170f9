//! The receiver's end of a link.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::{BroadcastInlet, FRAME_BYTES, MESSAGE_OVERHEAD, Verdict};
use crate::{
    proto::{self, LinkReply, LinkRequest, Opened, opened::Answer, reply, verdict},
    view::NodeId,
};

/// How many namespaces one peer may send to.
const MAX_CHANNELS: usize = 1 << 16;

/// Where the messages of one namespace go on this node.
pub(crate) trait Inlet: Send + Sync {
    /// Starts to grant to a channel of a link.
    fn attach(&self, lane: Arc<Lane>);
    /// Takes messages with consecutive numbers from `first` on.
    fn deliver(&self, lane: &Arc<Lane>, first: u64, ask: bool, messages: Vec<Bytes>);
}

/// Where all that comes in one namespace goes on this node.
pub(crate) struct Inlets {
    pub(crate) messages: Arc<dyn Inlet>,
    pub(crate) broadcasts: Arc<dyn BroadcastInlet>,
}

/// The receiving end of the stream from one peer.
pub(crate) struct Incoming {
    pub(crate) peer: NodeId,
    /// The largest reply, in bytes, that the peer reads.
    max_reply: usize,
    shared: Mutex<Shared>,
    /// Wakes the stream of replies when there is something to say.
    replies: AtomicWaker,
    /// Nothing more is read or heard.
    over: CancellationToken,
}

#[derive(Default)]
struct Shared {
    answer: Option<Answer>,
    grants: Vec<proto::Grant>,
    verdicts: Vec<proto::Verdict>,
    replies: Vec<proto::Reply>,
    confirmations: Vec<proto::Confirmation>,
    /// By channel: what the peer may have under way, and has.
    under_way: HashMap<u32, UnderWay>,
}

#[derive(Default)]
struct UnderWay {
    /// The largest window ever granted.
    granted: u64,
    messages: u64,
}

impl Incoming {
    pub(crate) fn new(peer: NodeId, max_reply: usize) -> Arc<Self> {
        Arc::new(Self {
            peer,
            max_reply,
            shared: Mutex::default(),
            replies: AtomicWaker::new(),
            over: CancellationToken::new(),
        })
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared
            .lock()
            .expect("no panic while replies are gathered")
    }

    fn say(&self, what: impl FnOnce(&mut Shared)) {
        let mut shared = self.shared();
        let idle = shared.is_idle();
        what(&mut shared);
        drop(shared);
        if idle {
            self.replies.wake();
        }
    }

    /// Answers the first frame.
    pub(crate) fn answer(&self, answer: Answer) {
        self.say(|shared| shared.answer = Some(answer));
    }

    /// Ends the stream of replies once what was gathered has been said.
    pub(crate) fn end(&self) {
        self.over.cancel();
        self.replies.wake();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Resolves when the link has ended.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Tells the peer that nobody receives a namespace here.
    pub(crate) fn refuse(&self, channel: u32) {
        self.say(|shared| {
            shared.grants.push(proto::Grant {
                channel,
                ..proto::Grant::default()
            })
        });
    }

    /// Hands a broadcast back that this node knows nothing to do with.
    fn send_back(&self, broadcast: proto::Broadcast) {
        let addressees = broadcast.addressees.iter();
        let answer = proto::Confirmation {
            channel: broadcast.channel,
            copy: broadcast.copy,
            returned: addressees.map(|addressee| addressee.node).collect(),
            late: true,
            done: true,
            ..proto::Confirmation::default()
        };
        self.say(|shared| shared.confirmations.push(answer));
    }

    /// Counts messages that have arrived. `false` if they are more than was
    /// ever granted: the peer would fill this node's memory.
    pub(crate) fn count(&self, channel: u32, messages: usize) -> bool {
        let mut shared = self.shared();
        let under_way = shared.under_way.entry(channel).or_default();
        under_way.messages += messages as u64;
        under_way.messages <= under_way.granted
    }

    /// The stream of replies. There is one.
    pub(crate) fn into_replies(self: Arc<Self>) -> Replies {
        Replies { incoming: self }
    }
}

/// One channel of a link, as the inbox sees it.
pub(crate) struct Lane {
    incoming: Arc<Incoming>,
    channel: u32,
    /// The label of the sender's type.
    pub(crate) label: Arc<str>,
}

impl Lane {
    pub(crate) fn new(incoming: Arc<Incoming>, channel: u32, label: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            incoming,
            channel,
            label,
        })
    }

    pub(crate) fn peer(&self) -> NodeId {
        self.incoming.peer
    }

    /// Whether nobody listens to verdicts any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.incoming.is_over()
    }

    pub(crate) fn grant(&self, window: u32, refusal: String) {
        self.incoming.say(|shared| {
            let under_way = shared.under_way.entry(self.channel).or_default();
            under_way.granted = under_way.granted.max(window.into());
            shared.grants.push(proto::Grant {
                channel: self.channel,
                window,
                refusal,
            });
        });
    }

    pub(crate) fn settle(&self, sequence: u64, verdict: Verdict) {
        let (kind, reason) = match verdict {
            Verdict::Accepted => (verdict::Kind::Accepted, String::new()),
            Verdict::Returned => (verdict::Kind::Returned, String::new()),
            Verdict::Rejected(reason) => (verdict::Kind::Rejected, reason),
        };
        self.incoming
            .say(|shared| shared.settle(self.channel, sequence, kind, reason));
    }

    pub(crate) fn reply(&self, sequence: u64, result: Result<Bytes, String>) {
        let limit = self.incoming.max_reply;
        let result = match result {
            Ok(value) if value.len() > limit => {
                let size = value.len();
                reply::Result::None(format!("its reply of {size} bytes is over {limit} bytes"))
            }
            Ok(value) => reply::Result::Value(value),
            Err(reason) => reply::Result::None(reason),
        };
        self.incoming.say(|shared| {
            shared.replies.push(proto::Reply {
                channel: self.channel,
                sequence,
                result: Some(result),
            });
        });
    }

    /// Answers a copy of a broadcast.
    pub(crate) fn confirm(&self, answer: proto::Confirmation) {
        let answer = proto::Confirmation {
            channel: self.channel,
            ..answer
        };
        self.incoming
            .say(|shared| shared.confirmations.push(answer));
    }
}

impl Shared {
    fn is_idle(&self) -> bool {
        self.answer.is_none()
            && self.grants.is_empty()
            && self.verdicts.is_empty()
            && self.replies.is_empty()
            && self.confirmations.is_empty()
    }

    /// Adds a verdict, to the last range where it goes on there.
    fn settle(&mut self, channel: u32, sequence: u64, kind: verdict::Kind, reason: String) {
        if let Some(last) = self.verdicts.last_mut()
            && last.channel == channel
            && last.kind() == kind
            && last.reason == reason
            && last.first + last.count == sequence
        {
            last.count += 1;
            return;
        }
        self.verdicts.push(proto::Verdict {
            channel,
            first: sequence,
            count: 1,
            kind: kind.into(),
            reason,
        });
    }

    fn frame(&mut self) -> LinkReply {
        let mut bytes = 0;
        let over = self.replies.iter().position(|reply| {
            bytes += MESSAGE_OVERHEAD
                + match &reply.result {
                    Some(reply::Result::Value(value)) => value.len(),
                    Some(reply::Result::None(reason)) => reason.len(),
                    None => 0,
                };
            bytes > FRAME_BYTES
        });
        // One goes in any case.
        let count = over.map_or(self.replies.len(), |over| over.max(1));
        // A peer that reads no verdicts gets no credit by them.
        for verdict in &self.verdicts {
            if let Some(under_way) = self.under_way.get_mut(&verdict.channel) {
                under_way.messages = under_way.messages.saturating_sub(verdict.count);
            }
        }
        LinkReply {
            opened: self.answer.take().map(|answer| Opened {
                answer: answer.into(),
            }),
            grants: std::mem::take(&mut self.grants),
            verdicts: std::mem::take(&mut self.verdicts),
            replies: self.replies.drain(..count).collect(),
            confirmations: std::mem::take(&mut self.confirmations),
        }
    }
}

/// The frames that go back on a link. Each takes what has gathered when it is
/// asked for.
pub(crate) struct Replies {
    incoming: Arc<Incoming>,
}

impl Stream for Replies {
    type Item = Result<LinkReply, Status>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        // Before the look: what is said after it wakes this task again.
        self.incoming.replies.register(cx.waker());
        let mut shared = self.incoming.shared();
        if !shared.is_idle() {
            return Poll::Ready(Some(Ok(shared.frame())));
        }
        match self.incoming.is_over() {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }
}

/// The peer has gone, or its stream was cut.
impl Drop for Replies {
    fn drop(&mut self) {
        self.incoming.over.cancel();
    }
}

/// What is wrong with a frame, so that the link has to end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProtocolError {
    #[error("only the first frame opens a link")]
    OpenedAgain,
    #[error("messages of the channel {channel}, which has no namespace")]
    UnknownChannel { channel: u32 },
    #[error("more messages of the channel {channel} than were granted")]
    NotGranted { channel: u32 },
    #[error("messages of the channel {channel} beyond the last number")]
    NoSuchNumber { channel: u32 },
    #[error("the channel {channel} for a namespace that has another one")]
    SecondChannel { channel: u32 },
    #[error("{problem} on the channel {channel}")]
    Broadcast { channel: u32, problem: &'static str },
    #[error("more than {MAX_CHANNELS} channels")]
    TooManyChannels,
}

/// The channels of one incoming link, and where they lead.
pub(crate) struct Channels<Find> {
    incoming: Arc<Incoming>,
    find: Find,
    known: HashMap<u32, Option<Leads>>,
    /// The channel of each namespace.
    by_namespace: HashMap<String, u32>,
}

/// Where a channel leads, and where the answers go.
type Leads = (Inlets, Arc<Lane>);

impl<Find: Fn(&str) -> Option<Inlets>> Channels<Find> {
    /// `find` looks up a namespace that is received on this node.
    pub(crate) fn new(incoming: Arc<Incoming>, find: Find) -> Self {
        Self {
            incoming,
            find,
            known: HashMap::new(),
            by_namespace: HashMap::new(),
        }
    }

    /// Takes in one frame.
    pub(crate) fn frame(&mut self, frame: LinkRequest) -> Result<(), ProtocolError> {
        if frame.open.is_some() {
            return Err(ProtocolError::OpenedAgain);
        }
        for channel in frame.channels {
            self.declare(channel)?;
        }
        for run in frame.runs {
            let channel = run.channel;
            if run.first.checked_add(run.messages.len() as u64).is_none() {
                return Err(ProtocolError::NoSuchNumber { channel });
            }
            match self.known.get(&channel) {
                None => return Err(ProtocolError::UnknownChannel { channel }),
                Some(target) => {
                    let granted = self.incoming.count(channel, run.messages.len());
                    let Some((inlets, lane)) = target.as_ref().filter(|_| granted) else {
                        return Err(ProtocolError::NotGranted { channel });
                    };
                    let inlet = &inlets.messages;
                    inlet.deliver(lane, run.first, run.ask, run.messages);
                }
            }
        }
        for broadcast in frame.broadcasts {
            let channel = broadcast.channel;
            match self.known.get(&channel) {
                None => return Err(ProtocolError::UnknownChannel { channel }),
                Some(None) => self.incoming.send_back(broadcast),
                Some(Some((inlets, lane))) => inlets
                    .broadcasts
                    .arrived(lane, broadcast)
                    .map_err(|problem| ProtocolError::Broadcast { channel, problem })?,
            }
        }
        Ok(())
    }

    fn declare(&mut self, channel: proto::Channel) -> Result<(), ProtocolError> {
        let known = self.by_namespace.entry(channel.namespace.clone());
        if *known.or_insert(channel.id) != channel.id {
            let channel = channel.id;
            return Err(ProtocolError::SecondChannel { channel });
        }
        if self.by_namespace.len() > MAX_CHANNELS {
            return Err(ProtocolError::TooManyChannels);
        }
        let target = (self.find)(&channel.namespace).map(|inlets| {
            let lane = Lane::new(self.incoming.clone(), channel.id, channel.label.into());
            (inlets, lane)
        });
        match &target {
            Some((inlets, lane)) => {
                inlets.broadcasts.attached();
                inlets.messages.attach(lane.clone());
            }
            None => self.incoming.refuse(channel.id),
        }
        self.known.insert(channel.id, target);
        Ok(())
    }
}
