//! Messages that have come in one piece.

use bytes::{Buf, Bytes};

use crate::proto::run::{size, split_first};

/// Encoded messages, one after the other, each behind its length.
#[derive(Clone, Debug, Default)]
pub(crate) struct Batch {
    bytes: Bytes,
    len: usize,
}

/// What is wrong with a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BatchError {
    #[error("a batch of nothing")]
    Empty,
    #[error("a batch that ends in the midst of a message")]
    Truncated,
    #[error("a message of {size} bytes that did not come in chunks")]
    NotInChunks { size: usize },
}

impl Batch {
    /// A batch as it comes from a peer, of messages of up to `limit` bytes.
    pub(crate) fn read(bytes: Bytes, limit: usize) -> Result<Self, BatchError> {
        if bytes.is_empty() {
            return Err(BatchError::Empty);
        }
        let (mut rest, mut len) = (&bytes[..], 0);
        while !rest.is_empty() {
            let (message, after) = split_first(rest).ok_or(BatchError::Truncated)?;
            if message.len() > limit {
                let size = message.len();
                return Err(BatchError::NotInChunks { size });
            }
            rest = after;
            len += 1;
        }
        Ok(Self { bytes, len })
    }

    /// How many messages there are.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Takes the first message out, and gives it to `read`.
    pub(crate) fn take_first<T>(&mut self, read: impl FnOnce(&[u8]) -> T) -> Option<T> {
        let (first, _) = split_first(&self.bytes)?;
        let (took, size) = (read(first), size(first.len()));
        self.bytes.advance(size);
        self.len -= 1;
        Some(took)
    }

    /// Takes the first messages out, so many at the most.
    pub(crate) fn split_to(&mut self, len: usize) -> Self {
        let len = len.min(self.len);
        let mut rest = &self.bytes[..];
        for _ in 0..len {
            rest = split_first(rest).map_or(&[], |(_, rest)| rest);
        }
        let bytes = self.bytes.split_to(self.bytes.len() - rest.len());
        self.len -= len;
        Self { bytes, len }
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::proto::run::push;

    fn batch(messages: &[&[u8]]) -> Bytes {
        let mut batch = BytesMut::new();
        for message in messages {
            push(&mut batch, message);
        }
        batch.freeze()
    }

    #[test]
    fn a_batch_is_taken_apart_as_it_was_made() {
        let mut all = Batch::read(batch(&[b"one", b"", b"three", b"four"]), 5).unwrap();
        assert_eq!(all.len(), 4);
        let mut first = all.split_to(2);
        assert_eq!((first.len(), all.len()), (2, 2));
        assert_eq!(first.take_first(<[u8]>::to_vec), Some(b"one".to_vec()));
        assert_eq!(first.take_first(<[u8]>::len), Some(0));
        assert_eq!((first.len(), first.take_first(<[u8]>::len)), (0, None));
        assert_eq!(all.split_to(9).len(), 2);
        assert_eq!((all.len(), all.take_first(<[u8]>::len)), (0, None));
    }

    #[test]
    fn a_batch_that_makes_no_sense_is_an_error() {
        let whole = batch(&[b"one", b"three"]);
        for end in [1, 5, whole.len() - 1] {
            let read = Batch::read(whole.slice(..end), 5);
            assert_eq!(read.err(), Some(BatchError::Truncated), "{end} bytes");
        }
        let read = Batch::read(Bytes::new(), 5);
        assert_eq!(read.err(), Some(BatchError::Empty));
        let read = Batch::read(whole, 4);
        assert_eq!(read.err(), Some(BatchError::NotInChunks { size: 5 }));
    }
}
