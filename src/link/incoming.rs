//! The receiver's end of a link.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_core::Stream;
use futures_util::task::AtomicWaker;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::Status;

use super::{
    BroadcastInlet, FRAME_BYTES, INLINE_BYTES, OVERHEAD, Sending, Verdict,
    pace::{Content, Pace, UnknownMark},
};
use crate::{
    batch::Batch,
    proto::{self, LinkReply, Opened, opened::Answer, reply, verdict},
    view::NodeId,
};

/// While so many bytes of replies wait for the peer to read them, verdicts wait
/// as well, where they can, and with them the credit for more messages. As much as
/// a peer may have put together by default.
const WAITING_BYTES: usize = 128 << 20;

/// So many bytes of other answers may wait for the peer to read them. One that
/// sends on without reading breaks the protocol.
pub(super) const UNREAD_BYTES: usize = 64 << 20;

/// Where the messages of one namespace go on this node.
pub(crate) trait Inlet: Send + Sync {
    /// Starts to grant to a channel of a link.
    fn attach(&self, lane: Arc<Lane>);
    /// Takes messages with consecutive numbers from `first` on.
    fn deliver(&self, lane: &Arc<Lane>, first: u64, ask: bool, batch: Batch);
    /// Takes a message that has come in chunks.
    fn deliver_large(&self, lane: &Arc<Lane>, sequence: u64, ask: bool, message: Bytes);
}

/// Where all that comes in one namespace goes on this node.
pub(crate) struct Inlets {
    pub(crate) messages: Arc<dyn Inlet>,
    pub(crate) broadcasts: Arc<dyn BroadcastInlet>,
}

/// The receiving end of the stream from one peer.
pub(crate) struct Incoming {
    pub(crate) peer: NodeId,
    /// The largest reply, in bytes.
    max_reply: usize,
    shared: Mutex<Shared>,
    /// Wakes the stream of replies when there is something to say.
    replies: AtomicWaker,
    /// Nothing more is read or heard.
    over: CancellationToken,
    /// Counts the links whose peers have replies to read.
    replying: TaskTracker,
}

#[derive(Default)]
struct Shared {
    answer: Option<Answer>,
    grants: Vec<proto::Grant>,
    verdicts: Vec<proto::Verdict>,
    replies: Vec<proto::Reply>,
    /// Replies that go in chunks, one after the other, with their channels and
    /// numbers.
    large: VecDeque<(u32, u64, Sending)>,
    /// What all of these have that is not sent, in bytes.
    waiting: usize,
    /// Held until the peer has read all replies, or ends the link.
    replying: Option<TaskTrackerToken>,
    /// For messages that come in chunks.
    proceeds: Vec<proto::Proceed>,
    confirmations: Vec<proto::Confirmation>,
    /// What these, the grants and the proceeds take, in bytes, about.
    unread: usize,
    pace: Pace,
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
    pub(crate) fn new(peer: NodeId, max_reply: usize, replying: TaskTracker) -> Arc<Self> {
        Arc::new(Self {
            peer,
            max_reply,
            shared: Mutex::default(),
            replies: AtomicWaker::new(),
            over: CancellationToken::new(),
            replying,
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
        shared.look_whether_read();
        drop(shared);
        if idle {
            self.replies.wake();
        }
    }

    /// Answers the first frame.
    pub(crate) fn answer(&self, answer: Answer) {
        self.say(|shared| shared.answer = Some(answer));
    }

    /// Ends the stream of replies once what was gathered has been said. All of
    /// them go on unasked, for the peer may have ended its own stream.
    pub(crate) fn end(&self) {
        let mut shared = self.shared();
        shared.pace.release();
        for (.., reply) in &mut shared.large {
            reply.proceed();
        }
        shared.replying = None;
        self.over.cancel();
        drop(shared);
        self.replies.wake();
    }

    /// Forgets what it has to say, for the peer has broken the protocol.
    pub(crate) fn forget(&self) {
        *self.shared() = Shared::default();
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.is_cancelled()
    }

    /// Resolves when the link has ended.
    pub(crate) async fn over(&self) {
        self.over.cancelled().await;
    }

    /// Whether the peer reads what it is told.
    pub(super) fn is_read(&self) -> bool {
        self.shared().unread < UNREAD_BYTES
    }

    /// Tells the peer that nobody receives a namespace here.
    pub(crate) fn refuse(&self, channel: u32) {
        self.say(|shared| {
            shared.grant(proto::Grant {
                channel,
                ..proto::Grant::default()
            });
        });
    }

    /// Hands a broadcast back that this node knows nothing to do with.
    pub(super) fn send_back(&self, broadcast: proto::Broadcast) {
        let addressees = broadcast.addressees.iter();
        let answer = proto::Confirmation {
            channel: broadcast.channel,
            copy: broadcast.copy,
            returned: addressees.map(|addressee| addressee.node).collect(),
            late: true,
            done: true,
            ..proto::Confirmation::default()
        };
        self.say(|shared| shared.confirm(answer));
    }

    /// Counts messages that have arrived. `false` if they are more than was
    /// ever granted: the peer would fill this node's memory.
    pub(crate) fn count(&self, channel: u32, messages: usize) -> bool {
        let mut shared = self.shared();
        let under_way = shared.under_way.entry(channel).or_default();
        under_way.messages += messages as u64;
        under_way.messages <= under_way.granted
    }

    /// One that was counted has been given up by the peer.
    pub(super) fn discount(&self, channel: u32) {
        if let Some(under_way) = self.shared().under_way.get_mut(&channel) {
            under_way.messages = under_way.messages.saturating_sub(1);
        }
    }

    /// Lets a large message go on.
    pub(super) fn let_go_on(&self, channel: u32, sequence: u64) {
        self.say(|shared| {
            shared.unread += size_of::<proto::Proceed>();
            shared.proceeds.push(proto::Proceed {
                channel,
                sequence,
                unwanted: false,
            });
        });
    }

    /// A frame has been read, with its mark and the one that it sends back.
    pub(super) fn heard(&self, mark: u64, read: u64) -> Result<(), UnknownMark> {
        let mut known = Ok(());
        if (mark, read) != (0, 0) {
            self.say(|shared| known = shared.pace.heard(mark, read));
        }
        known
    }

    /// The peer lets a large reply go on, or does not want it.
    pub(super) fn go_on(&self, proceed: &proto::Proceed) {
        let of =
            |large: &(u32, u64, Sending)| (large.0, large.1) == (proceed.channel, proceed.sequence);
        self.say(|shared| match proceed.unwanted {
            true => {
                if let Some(place) = shared.large.iter().position(of)
                    && let Some((.., reply)) = shared.large.remove(place)
                {
                    shared.waiting -= reply.size() - reply.sent();
                }
            }
            false => {
                if let Some((.., reply)) = shared.large.iter_mut().find(|large| of(large)) {
                    reply.proceed();
                }
            }
        });
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

    /// The largest reply, in bytes.
    pub(crate) fn max_reply(&self) -> usize {
        self.incoming.max_reply
    }

    /// Whether nobody listens to verdicts any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.incoming.is_over()
    }

    pub(crate) fn grant(&self, window: u32, refusal: String) {
        self.incoming.say(|shared| {
            let under_way = shared.under_way.entry(self.channel).or_default();
            under_way.granted = under_way.granted.max(window.into());
            shared.grant(proto::Grant {
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
        let result = match result {
            Ok(value) => reply::Result::Value(value),
            Err(reason) => reply::Result::None(reason),
        };
        let channel = self.channel;
        self.incoming.say(|shared| {
            let over = self.incoming.is_over();
            if shared.replying.is_none() && !over {
                shared.replying = Some(self.incoming.replying.token());
            }
            match result {
                reply::Result::Value(value) if value.len() > INLINE_BYTES => {
                    shared.waiting += value.len();
                    let mut reply = Sending::new(value);
                    if over {
                        reply.proceed();
                    }
                    shared.large.push_back((channel, sequence, reply));
                }
                result => {
                    let reply = proto::Reply {
                        channel,
                        sequence,
                        result: Some(result),
                    };
                    shared.waiting += size_of_reply(&reply);
                    shared.replies.push(reply);
                }
            }
        });
    }

    /// Answers a copy of a broadcast.
    pub(crate) fn confirm(&self, answer: proto::Confirmation) {
        let answer = proto::Confirmation {
            channel: self.channel,
            ..answer
        };
        self.incoming.say(|shared| shared.confirm(answer));
    }
}

impl Shared {
    fn grant(&mut self, grant: proto::Grant) {
        self.unread += size_of_val(&grant) + grant.refusal.len();
        self.grants.push(grant);
    }

    fn confirm(&mut self, answer: proto::Confirmation) {
        self.unread += size_of_val(&answer) + size_of_val(&answer.returned[..]);
        self.confirmations.push(answer);
    }

    fn is_idle(&self) -> bool {
        let large = self.large.front().is_some_and(|(.., large)| !large.waits());
        self.answer.is_none()
            && self.grants.is_empty()
            && (self.verdicts.is_empty() || self.verdicts_wait())
            && self.proceeds.is_empty()
            && self.confirmations.is_empty()
            && !self.pace.owes()
            && (self.replies.is_empty() || !self.pace.is_open())
            && (!large || self.pace.chunk() == 0)
    }

    /// Nobody needs to wait for the peer once it has read all replies.
    fn look_whether_read(&mut self) {
        if self.replying.is_some() && self.waiting == 0 && self.pace.is_read() {
            self.replying = None;
        }
    }

    /// Whether the peer has been told the verdict on a message, which it has to
    /// hear before the reply.
    fn is_told(&self, channel: u32, sequence: u64) -> bool {
        !self.verdicts.iter().any(|verdict| {
            let range = verdict.first..verdict.first + verdict.count;
            verdict.channel == channel && range.contains(&sequence)
        })
    }

    /// Whether verdicts wait until fewer replies do: as long as these can go
    /// without them.
    fn verdicts_wait(&self) -> bool {
        let small = self.replies.first();
        let large = self.large.front();
        self.waiting > WAITING_BYTES
            && small.is_none_or(|reply| self.is_told(reply.channel, reply.sequence))
            && large.is_none_or(|(channel, sequence, _)| self.is_told(*channel, *sequence))
    }

    /// The next part of the large reply whose turn it is.
    fn chunk(&mut self) -> Option<proto::Chunk> {
        let room = self.pace.chunk();
        let (channel, sequence, reply) = self.large.front_mut().filter(|_| room > 0)?;
        let (offset, data) = reply.next(room)?;
        self.waiting -= data.len();
        let chunk = proto::Chunk {
            channel: *channel,
            sequence: *sequence,
            ask: false,
            size: reply.size() as u64,
            offset: offset as u64,
            data,
        };
        if reply.is_done() {
            self.large.pop_front();
        }
        Some(chunk)
    }

    /// Adds a verdict, to the last range where it goes on there. Only rejections
    /// have a reason; empty ones are not compared, for `memcmp` takes longer over
    /// nothing at no address than all else here.
    fn settle(&mut self, channel: u32, sequence: u64, kind: verdict::Kind, reason: String) {
        if let Some(last) = self.verdicts.last_mut()
            && last.channel == channel
            && last.kind() == kind
            && (reason.is_empty() || last.reason == reason)
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

    /// Takes out the replies that go into one frame, and says how much they take.
    fn take_replies(&mut self) -> (Vec<proto::Reply>, usize) {
        let (mut count, mut bytes) = (0, 0);
        for reply in &self.replies {
            let size = size_of_reply(reply);
            // One goes in any case.
            let full = count > 0 && bytes + size > FRAME_BYTES;
            if full || !self.is_told(reply.channel, reply.sequence) {
                break;
            }
            bytes += size;
            count += 1;
        }
        self.waiting -= bytes;
        (self.replies.drain(..count).collect(), bytes)
    }

    fn frame(&mut self) -> LinkReply {
        let verdicts = match self.verdicts_wait() {
            true => Vec::new(),
            false => std::mem::take(&mut self.verdicts),
        };
        // A peer that reads no verdicts gets no credit by them.
        for verdict in &verdicts {
            if let Some(under_way) = self.under_way.get_mut(&verdict.channel) {
                under_way.messages = under_way.messages.saturating_sub(verdict.count);
            }
        }
        self.unread = 0;
        let mut frame = LinkReply {
            opened: self.answer.take().map(|answer| Opened {
                answer: answer.into(),
            }),
            grants: std::mem::take(&mut self.grants),
            verdicts,
            proceeds: std::mem::take(&mut self.proceeds),
            confirmations: std::mem::take(&mut self.confirmations),
            read: self.pace.give_back(),
            ..LinkReply::default()
        };
        let mut bytes = 0;
        if self.pace.is_open() {
            (frame.replies, bytes) = self.take_replies();
        }
        frame.chunks.extend(self.chunk());
        let chunk = frame.chunks.iter().map(|chunk| chunk.data.len()).sum();
        bytes += chunk;
        let content = match frame.replies.is_empty() {
            true => Content::Chunk,
            false => Content::Mixed,
        };
        frame.mark = self.pace.wrote(bytes, chunk, content);
        self.look_whether_read();
        frame
    }
}

/// What a reply takes in a frame, at the most.
fn size_of_reply(reply: &proto::Reply) -> usize {
    OVERHEAD
        + match &reply.result {
            Some(reply::Result::Value(value)) => value.len(),
            Some(reply::Result::None(reason)) => reason.len(),
            None => 0,
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
        let mut shared = self.incoming.shared();
        shared.replying = None;
        self.incoming.over.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_wait_while_many_replies_do_and_come_before_their_own() {
        let incoming = Incoming::new(NodeId::from(1), usize::MAX, TaskTracker::new());
        let lane = Lane::new(incoming.clone(), 0, "T".into());
        let frame = || {
            let frame = incoming.shared().frame();
            incoming.heard(0, frame.mark).unwrap();
            frame
        };
        let value = Bytes::from(vec![0; INLINE_BYTES]);
        let many = 2 * (WAITING_BYTES / INLINE_BYTES) as u64;
        for sequence in 0..many {
            lane.settle(sequence, Verdict::Accepted);
        }
        assert_eq!(frame().verdicts[0].count, many);
        for sequence in 0..many {
            lane.reply(sequence, Ok(value.clone()));
        }
        lane.settle(many, Verdict::Accepted);
        lane.reply(many, Ok(value.clone()));

        let (mut replies, mut told) = (0, None);
        while !incoming.shared().is_idle() {
            let frame = frame();
            if !frame.verdicts.is_empty() {
                told = Some(replies);
            }
            replies += frame.replies.len() as u64;
        }
        assert_eq!(replies, many + 1);
        let told = told.unwrap();
        assert!((many / 3..=many).contains(&told), "after {told} replies");
        assert_eq!(incoming.shared().waiting, 0);
    }

    #[test]
    fn a_peer_is_waited_for_until_it_has_read_its_replies_or_ends_the_link() {
        let replying = TaskTracker::new();
        let incoming = Incoming::new(NodeId::from(1), usize::MAX, replying.clone());
        let lane = Lane::new(incoming.clone(), 0, "T".into());
        let reply = |size| lane.reply(0, Ok(Bytes::from(vec![0; size])));
        reply(1);
        assert_eq!(replying.len(), 1);
        assert_eq!(incoming.shared().frame().mark, 0, "it is too small for one");
        assert_eq!(replying.len(), 0);

        reply(INLINE_BYTES);
        let mark = incoming.shared().frame().mark;
        assert_eq!(replying.len(), 1, "it is sent and not read");
        incoming.heard(0, mark).unwrap();
        assert_eq!(replying.len(), 0);

        reply(2 * INLINE_BYTES);
        assert_eq!(replying.len(), 1);
        drop(incoming.into_replies());
        assert_eq!(replying.len(), 0);
        reply(1);
        assert_eq!(replying.len(), 0, "nobody will read it");
    }

    #[test]
    fn answers_that_the_peer_does_not_read_have_a_bound() {
        let incoming = Incoming::new(NodeId::from(1), usize::MAX, TaskTracker::new());
        let broadcast = proto::Broadcast {
            addressees: vec![proto::Addressee::default(); UNREAD_BYTES / 4 / size_of::<u64>()],
            ..proto::Broadcast::default()
        };
        for _ in 0..4 {
            assert!(incoming.is_read());
            incoming.send_back(broadcast.clone());
        }
        assert!(!incoming.is_read());
        assert_eq!(incoming.shared().frame().confirmations.len(), 4);
        assert!(incoming.is_read());
    }

    #[test]
    fn verdicts_wait_for_no_reply_of_their_own() {
        let incoming = Incoming::new(NodeId::from(1), usize::MAX, TaskTracker::new());
        let lane = Lane::new(incoming.clone(), 0, "T".into());
        lane.settle(0, Verdict::Accepted);
        lane.reply(0, Ok(Bytes::from(vec![0; 2 * WAITING_BYTES])));
        let frame = incoming.shared().frame();
        assert_eq!(frame.verdicts.len(), 1);
        assert_eq!(frame.chunks.len(), 1, "it is announced");
    }
}
