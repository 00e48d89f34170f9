//! What of the protocol is not generated: a run, whose messages are put one after
//! the other only when it is written, and are not taken apart when it is read.

use bytes::{Buf, BufMut, Bytes};
use prost::{
    DecodeError, Message,
    encoding::{self, DecodeContext, WireType},
};

/// Messages of one channel with consecutive sequence numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Run {
    pub(crate) channel: u32,
    pub(crate) first: u64,
    /// Whether the sender waits for what the handlers return.
    pub(crate) ask: bool,
    /// What the batch is put together of. One that has been read is in one part.
    pub(crate) parts: Vec<Part>,
}

/// A part of a batch.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Part {
    Message(Bytes),
    /// Messages, each behind its length.
    Batch(Bytes),
}

impl Part {
    /// What it takes in a batch.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Message(message) => size(message.len()),
            Self::Batch(batch) => batch.len(),
        }
    }
}

const CHANNEL: u32 = 1;
const FIRST: u32 = 2;
const ASK: u32 = 3;
const BATCH: u32 = 4;

impl Run {
    /// What the batch takes.
    pub(crate) fn size(&self) -> usize {
        self.parts.iter().map(Part::size).sum()
    }

    /// The batch of a run that has been read.
    pub(crate) fn into_batch(self) -> Bytes {
        match self.parts.into_iter().next() {
            Some(Part::Message(bytes) | Part::Batch(bytes)) => bytes,
            None => Bytes::new(),
        }
    }
}

impl Message for Run {
    fn encode_raw(&self, buffer: &mut impl BufMut) {
        if self.channel != 0 {
            encoding::uint32::encode(CHANNEL, &self.channel, buffer);
        }
        if self.first != 0 {
            encoding::uint64::encode(FIRST, &self.first, buffer);
        }
        if self.ask {
            encoding::bool::encode(ASK, &self.ask, buffer);
        }
        if !self.parts.is_empty() {
            encoding::encode_key(BATCH, WireType::LengthDelimited, buffer);
            encoding::encode_varint(self.size() as u64, buffer);
        }
        for part in &self.parts {
            match part {
                Part::Message(message) => push(buffer, message),
                Part::Batch(batch) => buffer.put_slice(batch),
            }
        }
    }

    fn merge_field(
        &mut self,
        tag: u32,
        wire_type: WireType,
        buffer: &mut impl Buf,
        context: DecodeContext,
    ) -> Result<(), DecodeError> {
        match tag {
            CHANNEL => encoding::uint32::merge(wire_type, &mut self.channel, buffer, context),
            FIRST => encoding::uint64::merge(wire_type, &mut self.first, buffer, context),
            ASK => encoding::bool::merge(wire_type, &mut self.ask, buffer, context),
            BATCH => {
                let mut batch = Bytes::new();
                encoding::bytes::merge(wire_type, &mut batch, buffer, context)?;
                self.parts = vec![Part::Batch(batch)];
                Ok(())
            }
            _ => encoding::skip_field(wire_type, tag, buffer, context),
        }
    }

    fn encoded_len(&self) -> usize {
        let mut len = 0;
        if self.channel != 0 {
            len += encoding::uint32::encoded_len(CHANNEL, &self.channel);
        }
        if self.first != 0 {
            len += encoding::uint64::encoded_len(FIRST, &self.first);
        }
        if self.ask {
            len += encoding::bool::encoded_len(ASK, &self.ask);
        }
        if !self.parts.is_empty() {
            let size = self.size();
            len += encoding::key_len(BATCH) + encoding::encoded_len_varint(size as u64) + size;
        }
        len
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// What stands before each message of a batch: its length, as a big-endian number.
const LENGTH_BYTES: usize = size_of::<u32>();

/// What a message of so many bytes takes in a batch.
pub(crate) const fn size(message: usize) -> usize {
    LENGTH_BYTES + message
}

/// Adds a message to a batch that is being made.
pub(crate) fn push(batch: &mut impl BufMut, message: &[u8]) {
    batch.put_u32(message.len() as u32);
    batch.put_slice(message);
}

/// The first message of a batch, and what comes after it. `None` where it ends in
/// the midst of it.
pub(crate) fn split_first(batch: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = batch.split_first_chunk::<LENGTH_BYTES>()?;
    rest.split_at_checked(u32::from_be_bytes(*length) as usize)
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;

    /// What would be generated.
    #[derive(Clone, PartialEq, Message)]
    struct Generated {
        #[prost(uint32, tag = "1")]
        channel: u32,
        #[prost(uint64, tag = "2")]
        first: u64,
        #[prost(bool, tag = "3")]
        ask: bool,
        #[prost(bytes = "bytes", tag = "4")]
        batch: Bytes,
    }

    fn batch() -> Bytes {
        let mut batch = BytesMut::new();
        for message in [&b"one"[..], b"", b"three"] {
            push(&mut batch, message);
        }
        batch.freeze()
    }

    #[test]
    fn a_run_is_on_the_wire_what_the_protocol_says() {
        let message = Bytes::from_static(b"one");
        let rest = batch().slice(size(message.len())..);
        let run = Run {
            channel: 3,
            first: 1 << 40,
            ask: true,
            parts: vec![Part::Message(message), Part::Batch(rest)],
        };
        let generated = Generated {
            channel: run.channel,
            first: run.first,
            ask: run.ask,
            batch: batch(),
        };
        let bytes = run.encode_to_vec();
        assert_eq!(bytes, generated.encode_to_vec());
        let read = Run {
            parts: vec![Part::Batch(batch())],
            ..run
        };
        assert_eq!(Run::decode(&bytes[..]), Ok(read));
        assert_eq!(Run::decode(&[][..]), Ok(Run::default()));
        assert!(Run::default().encode_to_vec().is_empty());
    }

    #[test]
    fn a_run_with_fields_of_a_later_version_is_read() {
        #[derive(Clone, PartialEq, Message)]
        struct Later {
            #[prost(uint64, tag = "2")]
            first: u64,
            #[prost(string, tag = "9")]
            note: String,
        }
        let note = "new".to_owned();
        let bytes = Later { first: 7, note }.encode_to_vec();
        let run = Run {
            first: 7,
            ..Run::default()
        };
        assert_eq!(Run::decode(&bytes[..]), Ok(run));
    }
}
