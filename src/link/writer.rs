//! What a link writes: frames, each of whatever has gathered.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Weak},
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::time::Instant;

use super::{
    ADDRESSEE_BYTES, FRAME_BYTES, Feedback, Link, Load, OVERHEAD,
    pace::{Content, Pace, UnknownMark},
};
use crate::{
    delivery::Ticket,
    proto::{self, LinkRequest},
};

/// What is to be written to the peer.
#[derive(Default)]
pub(super) struct Shared {
    /// The peer has welcomed this node: messages can be handed over.
    pub(super) up: bool,
    /// Counts the streams, so that the writer of an old one ends.
    stream: u64,
    /// By their numbers on the wire, which stay the same from one stream to
    /// the next.
    pub(super) channels: Vec<Channel>,
    /// How many of them the peer has been told of on this stream.
    pub(super) declared: usize,
    /// The channels that have something to write, in turn.
    pub(super) calling: VecDeque<u32>,
    /// Those of them whose next is a chunk, until that may be written.
    pub(super) waiting: Vec<u32>,
    /// Copies of broadcasts that are to be written.
    pub(super) broadcasts: VecDeque<Broadcast>,
    /// For replies that come in chunks.
    pub(super) proceeds: Vec<proto::Proceed>,
    pace: Pace,
    /// The peer has left: nothing more is written than is here.
    pub(super) finishing: bool,
}

pub(super) struct Channel {
    pub(super) namespace: Arc<str>,
    pub(super) label: Arc<str>,
    pub(super) mailbox: Weak<dyn Feedback>,
    /// A number above those of all messages that have been written, for the next
    /// mailbox to start from.
    pub(super) unsent: u64,
}

pub(super) struct Broadcast {
    pub(super) copy: proto::Broadcast,
    pub(super) deadline: Arc<Ticket>,
    pub(super) patience: Instant,
}

impl Broadcast {
    /// What it takes in a frame, at the most.
    fn size(&self) -> usize {
        let proto::Broadcast {
            addressees,
            message,
            ..
        } = &self.copy;
        3 * OVERHEAD + ADDRESSEE_BYTES * addressees.len() + message.len()
    }

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

/// The frames of one stream. Each takes what has gathered when it is asked for.
pub(super) struct Writer {
    link: Arc<Link>,
    stream: u64,
    open: Option<proto::Open>,
    ended: bool,
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
        match self.frame(cx) {
            Some(frame) => Poll::Ready(Some(frame)),
            None if self.ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Writer {
    /// Begins a new stream. The writer of an earlier one ends.
    pub(super) fn new(link: Arc<Link>, open: proto::Open) -> Self {
        let stream = link.shared().begin();
        Self {
            link,
            stream,
            open: Some(open),
            ended: false,
        }
    }

    /// The next frame, if there is anything to say. Otherwise the task is woken
    /// when there is, or the stream has ended.
    fn frame(&mut self, cx: &Context<'_>) -> Option<LinkRequest> {
        let mut frame = LinkRequest::default();
        let (mut bytes, mut chunk_bytes) = (0, 0);
        while bytes < FRAME_BYTES {
            let mut shared = self.link.shared();
            if shared.stream != self.stream {
                self.ended = true;
                return None;
            }
            let next = shared.up.then(|| shared.next(&mut frame, &mut bytes));
            let Some((channel, mailbox)) = next.flatten() else {
                if frame != LinkRequest::default() {
                    break;
                }
                self.ended = shared.finishing && shared.has_written_all();
                // Under the lock: whoever calls from now on wakes it, and no
                // writer of an old stream comes in between.
                self.link.writer.register(cx.waker());
                return None;
            };
            let chunk = shared.pace.chunk();
            drop(shared);
            // A broadcast may have taken more than there was.
            let room = FRAME_BYTES.saturating_sub(bytes);
            let Some(load) = mailbox
                .upgrade()
                .and_then(|mailbox| mailbox.take(room, chunk))
            else {
                continue;
            };
            let full = matches!(load, Load::Messages { full: true, .. });
            let took = append(&mut frame, channel, load, &mut self.link.shared());
            bytes += took;
            // The peer reads a frame's chunks last, so nothing comes behind one.
            if !frame.chunks.is_empty() {
                chunk_bytes = took;
            }
            if full || chunk_bytes > 0 {
                break;
            }
        }
        let mut shared = self.link.shared();
        if shared.stream == self.stream {
            frame.mark = shared.pace.wrote(bytes, chunk_bytes, content(&frame));
        }
        Some(frame)
    }
}

impl Shared {
    /// Begins a new stream and returns its number.
    fn begin(&mut self) -> u64 {
        self.end();
        self.pace = Pace::default();
        self.stream
    }

    /// Ends the stream. What was to be written on it is not.
    pub(super) fn end(&mut self) {
        self.stream += 1;
        self.declared = 0;
        self.calling.clear();
        self.waiting.clear();
        self.broadcasts.clear();
        self.proceeds.clear();
    }

    /// Whether what calls could have been written.
    fn has_written_all(&self) -> bool {
        self.pace.is_open() && self.waiting.is_empty()
    }

    /// A frame has been read, with its mark and the one that it sends back.
    pub(super) fn heard(&mut self, mark: u64, read: u64) -> Result<(), UnknownMark> {
        self.pace.heard(mark, read)?;
        self.calling.extend(self.waiting.drain(..));
        Ok(())
    }

    /// Puts into the frame what has to stand before messages, and says whose
    /// turn it is then.
    fn next(
        &mut self,
        frame: &mut LinkRequest,
        bytes: &mut usize,
    ) -> Option<(u32, Weak<dyn Feedback>)> {
        frame.proceeds.append(&mut self.proceeds);
        frame.read = frame.read.max(self.pace.give_back());
        let undeclared = self.channels.iter().enumerate().skip(self.declared);
        for (number, channel) in undeclared {
            if *bytes >= FRAME_BYTES {
                return None;
            }
            *bytes += OVERHEAD + channel.namespace.len() + channel.label.len();
            self.declared = number + 1;
            frame.channels.push(proto::Channel {
                id: number as u32,
                namespace: channel.namespace.to_string(),
                label: channel.label.to_string(),
            });
        }
        if !self.pace.is_open() {
            return None;
        }
        // The peer reads a frame's broadcasts after its runs. They leave room for
        // messages, if there are any.
        let room = match self.calling.is_empty() {
            true => FRAME_BYTES,
            false => FRAME_BYTES / 2,
        };
        while *bytes < room
            && let Some(broadcast) = self.broadcasts.pop_front()
        {
            *bytes += broadcast.size();
            frame.broadcasts.push(broadcast.now());
        }
        let channel = self.calling.pop_front()?;
        let mailbox = self.channels[channel as usize].mailbox.clone();
        Some((channel, mailbox))
    }
}

fn content(frame: &LinkRequest) -> Content {
    let mut runs = frame.runs.iter().map(|run| run.channel);
    match (runs.next(), frame.chunks.is_empty()) {
        _ if !frame.broadcasts.is_empty() => Content::Mixed,
        (None, _) => Content::Chunk,
        (Some(first), true) if runs.all(|channel| channel == first) => Content::Channel(first),
        _ => Content::Mixed,
    }
}

/// Puts what a channel has to write into the frame, and the channel behind the
/// others that call. Returns how many bytes that took.
fn append(frame: &mut LinkRequest, channel: u32, load: Load, shared: &mut Shared) -> usize {
    let (bytes, unsent) = match load {
        Load::Messages { runs, unsent, .. } => {
            let bytes = runs.iter().map(|run| OVERHEAD + run.size()).sum();
            let runs = runs.into_iter().map(|run| proto::Run { channel, ..run });
            frame.runs.extend(runs);
            (bytes, unsent)
        }
        Load::Chunk {
            sequence,
            ask,
            size,
            offset,
            data,
        } => {
            let bytes = OVERHEAD + data.len();
            frame.chunks.push(proto::Chunk {
                channel,
                sequence,
                ask,
                size: size as u64,
                offset: offset as u64,
                data,
            });
            (bytes, sequence + 1)
        }
        Load::Later => {
            shared.waiting.push(channel);
            return 0;
        }
        Load::GivenUp { sequence } => {
            frame.chunks.push(proto::Chunk {
                channel,
                sequence,
                ..proto::Chunk::default()
            });
            (OVERHEAD, sequence + 1)
        }
    };
    shared.channels[channel as usize].unsent = unsent;
    shared.calling.push_back(channel);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_alone_with_one_channel_or_a_chunk_and_not_with_a_broadcast() {
        let of = |channels: &[u32], chunks, broadcasts| {
            let run = |channel: &u32| proto::Run {
                channel: *channel,
                ..proto::Run::default()
            };
            content(&LinkRequest {
                runs: channels.iter().map(run).collect(),
                chunks: vec![proto::Chunk::default(); chunks],
                broadcasts: vec![proto::Broadcast::default(); broadcasts],
                ..LinkRequest::default()
            })
        };
        assert_eq!(of(&[3, 3], 0, 0), Content::Channel(3));
        assert_eq!(of(&[3, 4], 0, 0), Content::Mixed);
        assert_eq!(of(&[3], 1, 0), Content::Mixed);
        assert_eq!(of(&[], 1, 0), Content::Chunk);
        assert_eq!(of(&[3], 0, 1), Content::Mixed);
        assert_eq!(of(&[], 0, 1), Content::Mixed);
    }
}
