//! The small messages of a lane, gathered as they will travel.
//!
//! Each is copied behind the one before it, so that the link takes many of them in
//! one piece.

use std::{collections::VecDeque, ops::Range};

use bytes::{Bytes, BytesMut};

use crate::proto::run::{push, size, split_first};

/// Messages up to this size are gathered. Larger ones take longer to copy than to
/// send one by one.
pub(super) const GATHERED_BYTES: usize = 256;

/// What is allocated at once, at the most.
const GROWTH_BYTES: usize = 64 << 10;

/// Messages are found by their positions: how many bytes have been gathered before
/// them.
#[derive(Default)]
pub(super) struct Gathering {
    /// What the link has taken, piece by piece, with the position of each. It may
    /// come back.
    taken: VecDeque<(u64, Bytes)>,
    /// What it has not taken, and the position of that.
    rest: BytesMut,
    position: u64,
}

impl Gathering {
    /// The position of the next message.
    pub(super) fn end(&self) -> u64 {
        self.position + self.rest.len() as u64
    }

    pub(super) fn push(&mut self, message: &[u8]) {
        let size = size(message.len());
        if self.rest.capacity() - self.rest.len() < size {
            self.grow(size);
        }
        push(&mut self.rest, message);
    }

    /// Makes room for so much more, and for as much again as there is.
    #[cold]
    fn grow(&mut self, more: usize) {
        let first = self
            .taken
            .front()
            .map_or(self.position, |(first, _)| *first);
        let all = (self.end() - first) as usize;
        let room = all.min(GROWTH_BYTES.max(self.rest.len())).max(more);
        let mut rest = BytesMut::with_capacity(self.rest.len() + room);
        rest.extend_from_slice(&self.rest);
        self.rest = rest;
    }

    /// Takes the messages between two positions for the link, and passes over those
    /// before them.
    pub(super) fn take(&mut self, range: Range<u64>) -> Bytes {
        let (skip, end) = (range.start - self.position, range.end - self.position);
        let piece = self.rest.split_to(end as usize).freeze();
        self.taken.push_back((self.position, piece.clone()));
        self.position = range.end;
        piece.slice(skip as usize..)
    }

    /// A copy of the message at a position, if it is there.
    pub(super) fn get(&self, position: u64) -> Option<Bytes> {
        let (start, piece) = match position.checked_sub(self.position) {
            Some(_) => (self.position, &self.rest[..]),
            None => {
                let after = self.taken.partition_point(|(start, _)| *start <= position);
                let (start, piece) = self.taken.get(after.checked_sub(1)?)?;
                (*start, &piece[..])
            }
        };
        let (message, _) = split_first(piece.get((position - start) as usize..)?)?;
        Some(Bytes::copy_from_slice(message))
    }

    /// Lets go of what is before a position.
    pub(super) fn forget(&mut self, before: u64) {
        while let Some((start, piece)) = self.taken.front()
            && start + piece.len() as u64 <= before
        {
            self.taken.pop_front();
        }
    }

    /// Lets go of everything.
    pub(super) fn clear(&mut self) {
        *self = Self {
            position: self.end(),
            ..Self::default()
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gathers these, and says where each is.
    fn gather<const N: usize>(gathering: &mut Gathering, messages: [&str; N]) -> [u64; N] {
        messages.map(|message| {
            let position = gathering.end();
            gathering.push(message.as_bytes());
            position
        })
    }

    #[test]
    fn what_is_taken_can_come_back_until_it_is_forgotten() {
        let mut gathering = Gathering::default();
        let at = gather(&mut gathering, ["one", "two", "three", "four"]);
        let piece = gathering.take(at[0]..at[2]);
        assert_eq!(&piece[..], b"\0\0\0\x03one\0\0\0\x03two");
        let piece = gathering.take(at[2]..at[3]);
        assert_eq!(&piece[..], b"\0\0\0\x05three");
        let get = |gathering: &Gathering| at.map(|position| gathering.get(position));
        let bytes = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
        let all = ["one", "two", "three", "four"].map(bytes);
        assert_eq!(get(&gathering), all);
        gathering.forget(at[1]);
        assert_eq!(get(&gathering), all, "the piece is still in use");
        gathering.forget(at[2]);
        assert_eq!(get(&gathering)[..2], [None, None]);
        assert_eq!(get(&gathering)[2..], all[2..]);
        gathering.clear();
        assert_eq!(get(&gathering), [None, None, None, None]);
    }

    #[test]
    fn what_was_given_up_is_passed_over() {
        let mut gathering = Gathering::default();
        let at = gather(&mut gathering, ["given up", "one"]);
        let end = gathering.end();
        assert_eq!(&gathering.take(at[1]..end)[..], b"\0\0\0\x03one");
        let next = gather(&mut gathering, ["two"])[0];
        assert_eq!(gathering.get(next).as_deref(), Some(&b"two"[..]));
    }

    #[test]
    fn a_lane_takes_little_more_memory_than_its_messages() {
        let mut gathering = Gathering::default();
        for count in 1..10_000 {
            gather(&mut gathering, ["a message"]);
            if count % 7 == 0 {
                gathering.take(gathering.position..gathering.end());
            }
            let used = gathering.end() as usize;
            assert!(gathering.rest.capacity() <= 2 * used.min(GROWTH_BYTES));
        }
    }
}
