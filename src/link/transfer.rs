//! A message that is too large for a frame: its two ends.
//!
//! It travels in chunks, between which anything else may go. The first chunk is
//! empty and says how large it is; the receiver lets it go on when there is room
//! for all of it, and never further than a window ahead of what has arrived. So
//! what a small message may have to wait behind is bounded, and so is what a peer
//! can make this node hold.

use bytes::Bytes;

/// Messages up to this size travel whole. Up to about here that is faster.
pub(crate) const INLINE_BYTES: usize = 128 << 10;
/// What a large message travels in.
const CHUNK_BYTES: usize = 64 << 10;
/// How far a transfer may be ahead of what has arrived. A small message that
/// comes behind it waits this much longer, which on a fast network is about as
/// long as a round trip.
const WINDOW_BYTES: usize = 256 << 10;

/// The sending end.
pub(crate) struct Sending {
    body: Bytes,
    announced: bool,
    sent: usize,
    /// How far the receiver lets it go.
    until: usize,
}

impl Sending {
    pub(crate) fn new(body: Bytes) -> Self {
        Self {
            body,
            announced: false,
            sent: 0,
            until: 0,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// The next chunk, and the offset that it starts at. `None` until the
    /// receiver lets it go on.
    pub(crate) fn next(&mut self) -> Option<(usize, Bytes)> {
        let offset = self.sent;
        let end = self.until.min(offset + CHUNK_BYTES).min(self.body.len());
        if end <= offset && self.announced {
            return None;
        }
        self.announced = true;
        self.sent = end;
        Some((offset, self.body.slice(offset..end)))
    }

    /// Whether nothing more goes until the receiver says so.
    pub(crate) fn waits(&self) -> bool {
        self.announced && self.sent >= self.until
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.body.len()
    }

    /// The receiver lets it go on up to this offset.
    pub(crate) fn proceed(&mut self, until: u64) {
        let until = usize::try_from(until).unwrap_or(usize::MAX);
        self.until = self.until.max(until);
    }
}

/// What is wrong with a chunk, so that its link has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk of nothing that has been announced")]
    NotAnnounced,
    #[error("a chunk out of order")]
    OutOfOrder,
    #[error("a chunk further than it was allowed")]
    NotAllowed,
    #[error("a chunk past the end of its message")]
    PastTheEnd,
}

/// The receiving end.
pub(crate) struct Assembly {
    size: usize,
    bytes: Vec<u8>,
    /// How far the sender may go.
    until: usize,
}

impl Assembly {
    /// Of a message of `size` bytes, for which there is room. The system gives
    /// the memory only as it is filled.
    pub(crate) fn of(size: usize) -> Self {
        Self {
            size,
            bytes: Vec::with_capacity(size),
            until: 0,
        }
    }

    /// Puts a chunk to the others.
    pub(crate) fn add(&mut self, offset: u64, chunk: &Bytes) -> Result<(), ChunkError> {
        let end = self.bytes.len() + chunk.len();
        if usize::try_from(offset) != Ok(self.bytes.len()) || chunk.is_empty() {
            return Err(ChunkError::OutOfOrder);
        }
        if end > self.size {
            return Err(ChunkError::PastTheEnd);
        }
        if end > self.until {
            return Err(ChunkError::NotAllowed);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
    }

    /// How far the sender may go now, if that is worth telling.
    pub(crate) fn proceed(&mut self) -> Option<u64> {
        let until = self.size.min(self.bytes.len() + WINDOW_BYTES);
        let worth_it = until >= self.until + WINDOW_BYTES / 4 || until == self.size;
        if until == self.until || !worth_it {
            return None;
        }
        self.until = until;
        Some(until as u64)
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.bytes.len() == self.size
    }

    pub(crate) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(size: usize) -> Bytes {
        (0..size)
            .map(|index| index as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    #[test]
    fn what_is_sent_in_chunks_is_put_together() {
        let whole = body(3 * WINDOW_BYTES + 5);
        let mut sending = Sending::new(whole.clone());
        assert_eq!(sending.next(), Some((0, Bytes::new())), "it is announced");
        assert_eq!(sending.next(), None, "no more goes unasked");
        let mut assembly = Assembly::of(sending.size());
        while !sending.is_done() {
            if let Some(until) = assembly.proceed() {
                sending.proceed(until);
            }
            let (offset, chunk) = sending.next().expect("it is let on in time");
            assert!(chunk.len() <= CHUNK_BYTES);
            assembly.add(offset as u64, &chunk).unwrap();
        }
        assert!(assembly.is_complete());
        assert_eq!(assembly.into_bytes(), whole);
    }

    #[test]
    fn chunks_that_make_no_sense_are_errors() {
        let chunk = body(CHUNK_BYTES);
        let add = |assembly: &mut Assembly, offset| assembly.add(offset, &chunk).err();
        let mut small = Assembly::of(10);
        assert_eq!(add(&mut small, 0), Some(ChunkError::PastTheEnd));
        let mut large = Assembly::of(1 << 20);
        assert_eq!(add(&mut large, 0), Some(ChunkError::NotAllowed));
        large.proceed();
        assert_eq!(add(&mut large, 1), Some(ChunkError::OutOfOrder));
        assert_eq!(
            large.add(0, &Bytes::new()),
            Err(ChunkError::OutOfOrder),
            "only the announcement is empty"
        );
        assert_eq!(add(&mut large, 0), None);
        assert_eq!(add(&mut large, 0), Some(ChunkError::OutOfOrder));
    }
}
