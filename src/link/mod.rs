//! The link to a peer: one long-lived bidirectional stream.
//!
//! The node that sends messages opens it. Its own frames carry messages; the
//! peer's carry grants (how many messages of a channel may be under way),
//! verdicts (what became of them, in ranges) and replies. A frame takes
//! whatever has gathered when the stream is ready for it: a message alone goes
//! at once, and under load a frame is full.
//!
//! A node that both sends to a peer and receives from it has two links with it,
//! one each way, over two connections.

mod channels;
mod incoming;
mod outgoing;
mod pace;
mod room;
mod transfer;
mod writer;

use bytes::Bytes;

use std::{sync::Arc, time::Duration};

pub(crate) use self::{
    channels::Channels,
    incoming::{Incoming, Inlet, Inlets, Lane, Replies},
    outgoing::{Link, Links, Target},
    room::{Bounds, PeerRoom, Room, Taken},
    transfer::{INLINE_BYTES, Sending},
};

use crate::proto;

/// How long either side waits for the other's first frame.
pub(crate) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// A frame holds this much, or one larger message. With half of that a peer that
/// waits for more is woken twice as often, which takes a fifth of the time at 1 KiB.
/// Larger ones were no faster.
const FRAME_BYTES: usize = 128 << 10;
/// What a run of messages, a chunk or a reply takes in a frame beside its own bytes,
/// at the most.
pub(crate) const OVERHEAD: usize = 32;
/// What an addressee of a broadcast takes in a frame, at the most, as long as
/// boots and broadcasts are counted with eight digits.
const ADDRESSEE_BYTES: usize = 24;

/// What became of a message that was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A recipient has it.
    Accepted,
    /// No recipient has seen it.
    Returned,
    /// No recipient can read it, and why.
    Rejected(String),
}

/// What a mailbox has for a link to write.
pub(crate) enum Load {
    Messages {
        /// For a channel that they do not name.
        runs: Vec<proto::Run>,
        /// The number behind the last of them.
        unsent: u64,
        /// There are more, for which there is no room.
        full: bool,
    },
    /// A part of a large message.
    Chunk {
        sequence: u64,
        ask: bool,
        size: usize,
        offset: usize,
        data: Bytes,
    },
    /// A large message of which some has been written is given up.
    GivenUp { sequence: u64 },
    /// A part of a large message, when there is room for it.
    Later,
}

/// A mailbox, as a link sees it.
///
/// The link holds none of its locks while it calls.
pub(crate) trait Feedback: Send + Sync {
    /// What is to be written next: messages of up to `room` bytes, or one; or of
    /// a large one, up to `chunk` bytes. After `None` the mailbox
    /// [calls](Link::call) when there is more.
    fn take(&self, room: usize, chunk: usize) -> Option<Load>;
    /// The peer takes up to `window` messages without a verdict.
    fn granted(&self, window: u32);
    /// The peer lets a large message go on.
    fn proceed(&self, sequence: u64);
    /// What became of `count` messages from `first` on.
    fn settled(&self, first: u64, count: u64, verdict: Verdict);
    /// What the handler returned, encoded; or why it returned nothing.
    fn replied(&self, sequence: u64, reply: Result<Bytes, String>);
    /// The link broke. What has not been taken, or not wholly, has not left this
    /// node; of what has been and has no verdict, nothing is known.
    fn broken(&self);
}

/// How the links of a node tell what happens to the broadcasts that it passes
/// on. They hold none of their locks while they call.
pub(crate) trait BroadcastFeedback: Send + Sync {
    /// Broadcasts can be handed over to the link.
    fn up(&self, link: &Link);
    /// The link broke. What the peer has not answered it answers no more.
    fn broken(&self, link: &Link);
    /// What the peer answers. The error says what is wrong with it.
    fn confirmed(
        &self,
        link: &Link,
        namespace: &str,
        answer: proto::Confirmation,
    ) -> Result<(), &'static str>;
}

/// Where the broadcasts of one namespace go on this node.
pub(crate) trait BroadcastInlet: Send + Sync {
    /// A peer has opened a link on which it may pass some on.
    fn attached(&self);
    /// Takes one in, or hands it back where there is no room for it. The error says
    /// what is wrong with it.
    fn arrived(
        &self,
        lane: &Arc<Lane>,
        broadcast: proto::Broadcast,
        room: &PeerRoom,
    ) -> Result<(), &'static str>;
}
