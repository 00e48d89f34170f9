//! What comes in on a link: its channels, where they lead, and the large
//! messages that are being put together.

use std::{collections::HashMap, future::pending, sync::Arc};

use futures_util::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    INLINE_BYTES, Incoming, Inlets, Lane, Verdict,
    incoming::UNREAD_BYTES,
    pace::UnknownMark,
    room::{PeerRoom, Taken},
    transfer::{Assembly, ChunkError},
};
use crate::{
    batch::{Batch, BatchError},
    proto::{self, LinkRequest},
};

/// How many namespaces one peer may send to, and how long their names and labels
/// may be together, in bytes.
const MAX_CHANNELS: usize = 1 << 16;
const MAX_NAMES: usize = 512 * MAX_CHANNELS;

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
    #[error("more than {MAX_CHANNELS} channels, or {MAX_NAMES} bytes of names")]
    TooManyChannels,
    #[error("a large message of the channel {channel} in the midst of another one")]
    InTheMidst { channel: u32 },
    #[error("{0}")]
    Batch(#[from] BatchError),
    #[error("{0}")]
    Chunk(#[from] ChunkError),
    #[error("{UNREAD_BYTES} bytes of answers that it has not read")]
    Unread,
    #[error("{0}")]
    Mark(#[from] UnknownMark),
}

/// The channels of one incoming link, and where they lead.
pub(crate) struct Channels<Find> {
    incoming: Arc<Incoming>,
    find: Find,
    known: HashMap<u32, Option<Leads>>,
    /// The channel of each namespace.
    by_namespace: HashMap<String, u32>,
    /// What all names and labels take.
    names: usize,
    /// The largest message, in bytes.
    max_message: usize,
    /// By channel: the large message that is coming in.
    arriving: HashMap<u32, Arriving>,
    room: PeerRoom,
    /// For broadcasts.
    broadcast_room: PeerRoom,
    /// Those that wait for room.
    admissions: FuturesUnordered<BoxFuture<'static, Admission>>,
}

/// A large message that is coming in.
struct Arriving {
    sequence: u64,
    ask: bool,
    /// `None` until there is room for it.
    assembly: Option<(Assembly, Taken)>,
    /// Dropped with it, this ends the wait for room.
    _wait: DropGuard,
}

/// Room for the message with this number, of this size, on this channel.
struct Admission {
    channel: u32,
    sequence: u64,
    size: usize,
    taken: Option<Taken>,
}

/// Where a channel leads, and where the answers go.
type Leads = (Inlets, Arc<Lane>);

impl<Find: Fn(&str) -> Option<Inlets>> Channels<Find> {
    /// `find` looks up a namespace that is received on this node.
    /// `max_message` is the largest message, in bytes.
    pub(crate) fn new(
        incoming: Arc<Incoming>,
        find: Find,
        max_message: usize,
        room: PeerRoom,
        broadcast_room: PeerRoom,
    ) -> Self {
        Self {
            incoming,
            find,
            known: HashMap::new(),
            by_namespace: HashMap::new(),
            names: 0,
            max_message,
            arriving: HashMap::new(),
            room,
            broadcast_room,
            admissions: FuturesUnordered::new(),
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
            let (first, ask) = (run.first, run.ask);
            let batch = Batch::read(run.into_batch(), INLINE_BYTES)?;
            if first.checked_add(batch.len() as u64).is_none() {
                return Err(ProtocolError::NoSuchNumber { channel });
            }
            let (inlets, lane) = self.granted(channel, batch.len())?;
            inlets.messages.deliver(lane, first, ask, batch);
        }
        for broadcast in frame.broadcasts {
            let channel = broadcast.channel;
            match self.known.get(&channel) {
                None => return Err(ProtocolError::UnknownChannel { channel }),
                Some(None) => self.incoming.send_back(broadcast),
                Some(Some((inlets, lane))) => {
                    let inlet = &inlets.broadcasts;
                    inlet
                        .arrived(lane, broadcast, &self.broadcast_room)
                        .map_err(|problem| ProtocolError::Broadcast { channel, problem })?;
                }
            }
        }
        for chunk in frame.chunks {
            self.chunk(chunk)?;
        }
        for proceed in &frame.proceeds {
            self.incoming.go_on(proceed);
        }
        self.incoming.heard(frame.mark, frame.read)?;
        match self.incoming.is_read() {
            true => Ok(()),
            false => Err(ProtocolError::Unread),
        }
    }

    /// Where so many messages of a channel go, if that much was granted.
    fn granted(&self, channel: u32, messages: usize) -> Result<&Leads, ProtocolError> {
        let Some(target) = self.known.get(&channel) else {
            return Err(ProtocolError::UnknownChannel { channel });
        };
        let granted = self.incoming.count(channel, messages);
        match target {
            Some(leads) if granted => Ok(leads),
            _ => Err(ProtocolError::NotGranted { channel }),
        }
    }

    /// Takes in a part of a large message, or that one is to come or given up.
    fn chunk(&mut self, chunk: proto::Chunk) -> Result<(), ProtocolError> {
        let channel = chunk.channel;
        if chunk.data.is_empty() && chunk.size == 0 {
            if self.arriving.remove(&channel).is_some() {
                self.incoming.discount(channel);
            }
            return Ok(());
        }
        if chunk.data.is_empty() {
            return self.announced(&chunk);
        }
        let arriving = self.arriving.get_mut(&channel);
        let Some(arriving) = arriving.filter(|arriving| arriving.sequence == chunk.sequence) else {
            return Err(ChunkError::NotAnnounced.into());
        };
        let Some((assembly, _)) = &mut arriving.assembly else {
            return Err(ChunkError::NotAllowed.into());
        };
        assembly.add(chunk.offset, &chunk.data)?;
        if !assembly.is_complete() {
            return Ok(());
        }
        let (whole, leads) = (self.arriving.remove(&channel), self.known.get(&channel));
        if let (Some(whole), Some(Some((inlets, lane)))) = (whole, leads)
            && let Some((assembly, _)) = whole.assembly
        {
            let message = assembly.into_bytes();
            let inlet = &inlets.messages;
            inlet.deliver_large(lane, whole.sequence, whole.ask, message);
        }
        Ok(())
    }

    fn announced(&mut self, chunk: &proto::Chunk) -> Result<(), ProtocolError> {
        let &proto::Chunk {
            channel,
            sequence,
            ask,
            ..
        } = chunk;
        let (_, lane) = self.granted(channel, 1)?;
        if sequence == u64::MAX {
            return Err(ProtocolError::NoSuchNumber { channel });
        }
        let size = usize::try_from(chunk.size).unwrap_or(usize::MAX);
        if size > self.max_message {
            let limit = self.max_message;
            let reason = format!("it has {size} bytes; the receiver's limit is {limit}");
            lane.settle(sequence, Verdict::Rejected(reason));
            return Ok(());
        }
        let given_up = CancellationToken::new();
        let arriving = Arriving {
            sequence,
            ask,
            assembly: None,
            _wait: given_up.clone().drop_guard(),
        };
        if self.arriving.insert(channel, arriving).is_some() {
            return Err(ProtocolError::InTheMidst { channel });
        }
        let admission = move |taken| Admission {
            channel,
            sequence,
            size,
            taken,
        };
        match self.room.try_take(size) {
            Some(taken) => self.admit(admission(Some(taken))),
            None => {
                let taken = self.room.take(size);
                let taken = async move { given_up.run_until_cancelled(taken).await.flatten() };
                self.admissions.push(Box::pin(taken.map(admission)));
            }
        }
        Ok(())
    }

    /// Lets the large messages go on that there is room for now. Does not end.
    pub(crate) async fn admissions(&mut self) {
        loop {
            match self.admissions.next().await {
                Some(admission) => self.admit(admission),
                // The next one comes with a frame, after which this starts anew.
                None => pending().await,
            }
        }
    }

    fn admit(&mut self, admission: Admission) {
        let Admission {
            channel,
            sequence,
            size,
            taken,
        } = admission;
        // It may have been given up in the meantime.
        let arriving = self.arriving.get_mut(&channel);
        let arriving = arriving.filter(|arriving| arriving.sequence == sequence);
        if let Some((arriving, taken)) = arriving.zip(taken) {
            arriving.assembly = Some((Assembly::of(size), taken));
            self.incoming.let_go_on(channel, sequence);
        }
    }

    fn declare(&mut self, channel: proto::Channel) -> Result<(), ProtocolError> {
        let known = self.by_namespace.entry(channel.namespace.clone());
        let known = known.or_insert_with(|| {
            self.names += channel.namespace.len() + channel.label.len();
            channel.id
        });
        if *known != channel.id {
            let channel = channel.id;
            return Err(ProtocolError::SecondChannel { channel });
        }
        if self.by_namespace.len() > MAX_CHANNELS || self.names > MAX_NAMES {
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
