//! A message that is too large for a frame: its two ends.
//!
//! It travels in chunks, between which anything else may go. The first chunk is
//! empty and says how large it is; the receiver lets the others follow when there
//! is room for all of it. So what a peer can make this node hold is bounded. How
//! far the chunks may be ahead of the receiver, and with it what a small message
//! has to wait behind, is for the link's [pace](super::pace).

use bytes::Bytes;

/// Messages up to this size travel whole. Up to about here that is faster.
pub(crate) const INLINE_BYTES: usize = 128 << 10;

/// The sending end.
pub(crate) struct Sending {
    body: Bytes,
    announced: bool,
    /// The receiver lets it go on.
    let_on: bool,
    sent: usize,
}

impl Sending {
    pub(crate) fn new(body: Bytes) -> Self {
        Self {
            body,
            announced: false,
            let_on: false,
            sent: 0,
        }
    }

    pub(crate) fn size(&self) -> usize {
        self.body.len()
    }

    pub(crate) fn sent(&self) -> usize {
        self.sent
    }

    /// The next chunk, of up to `room` bytes, and the offset that it starts at.
    /// `None` until the receiver lets it go on.
    pub(crate) fn next(&mut self, room: usize) -> Option<(usize, Bytes)> {
        if self.waits() {
            return None;
        }
        let offset = self.sent;
        if self.announced {
            self.sent = self.body.len().min(offset + room);
        }
        self.announced = true;
        Some((offset, self.body.slice(offset..self.sent)))
    }

    /// Whether nothing more goes until the receiver says so.
    pub(crate) fn waits(&self) -> bool {
        self.announced && !self.let_on
    }

    pub(crate) fn is_done(&self) -> bool {
        self.sent == self.body.len()
    }

    /// The receiver lets it go on.
    pub(crate) fn proceed(&mut self) {
        self.let_on = true;
    }
}

/// What is wrong with a chunk, so that its link has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ChunkError {
    #[error("a chunk of nothing that has been announced")]
    NotAnnounced,
    #[error("a chunk out of order")]
    OutOfOrder,
    #[error("a chunk before it was allowed")]
    NotAllowed,
    #[error("a chunk past the end of its message")]
    PastTheEnd,
    #[error("a chunk that others would have to wait for")]
    TooLong,
}

/// The receiving end.
pub(crate) struct Assembly {
    size: usize,
    bytes: Vec<u8>,
}

impl Assembly {
    /// Of a message of `size` bytes, for which there is room. The system gives
    /// the memory only as it is filled.
    pub(crate) fn of(size: usize) -> Self {
        Self {
            size,
            bytes: Vec::with_capacity(size),
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
        if chunk.len() > INLINE_BYTES {
            return Err(ChunkError::TooLong);
        }
        self.bytes.extend_from_slice(chunk);
        Ok(())
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

    const CHUNK: usize = 1000;

    fn body(size: usize) -> Bytes {
        (0..size)
            .map(|index| index as u8)
            .collect::<Vec<u8>>()
            .into()
    }

    #[test]
    fn what_is_sent_in_chunks_is_put_together() {
        let whole = body(7 * CHUNK + 5);
        let mut sending = Sending::new(whole.clone());
        assert_eq!(
            sending.next(CHUNK),
            Some((0, Bytes::new())),
            "it is announced"
        );
        assert_eq!(sending.next(CHUNK), None, "no more goes unasked");
        sending.proceed();
        let mut assembly = Assembly::of(sending.size());
        while !sending.is_done() {
            let (offset, chunk) = sending.next(CHUNK).expect("it is let on");
            assert!(chunk.len() <= CHUNK);
            assembly.add(offset as u64, &chunk).unwrap();
        }
        assert!(assembly.is_complete());
        assert_eq!(assembly.into_bytes(), whole);
    }

    #[test]
    fn chunks_that_make_no_sense_are_errors() {
        let chunk = body(CHUNK);
        let add = |assembly: &mut Assembly, offset| assembly.add(offset, &chunk).err();
        let mut small = Assembly::of(10);
        assert_eq!(add(&mut small, 0), Some(ChunkError::PastTheEnd));
        let mut large = Assembly::of(1 << 20);
        assert_eq!(add(&mut large, 1), Some(ChunkError::OutOfOrder));
        assert_eq!(
            large.add(0, &body(INLINE_BYTES + 1)),
            Err(ChunkError::TooLong)
        );
        assert_eq!(
            large.add(0, &Bytes::new()),
            Err(ChunkError::OutOfOrder),
            "only the announcement is empty"
        );
        assert_eq!(add(&mut large, 0), None);
        assert_eq!(add(&mut large, 0), Some(ChunkError::OutOfOrder));
    }
}
