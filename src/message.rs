//! What can travel: the bound on messages, their labels and their encoding.

use std::{
    any::type_name,
    cell::Cell,
    fmt::Display,
    mem::{self, size_of},
    ops::Deref,
    panic::{AssertUnwindSafe, catch_unwind},
};

use actix::Message;
use bytes::{Bytes, BytesMut};
use serde::{Serialize, de::DeserializeOwned};

/// A message that can be sent to another node.
///
/// It is implemented for every type that fits: derive [`Message`],
/// [`Serialize`] and [`Deserialize`](serde::Deserialize). The result has to
/// travel back, so it needs `Serialize` and `Deserialize` too.
///
/// ```
/// use dchan::prelude::*;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Message, Serialize, Deserialize)]
/// #[rtype(result = "Result<u32, String>")]
/// struct Reserve { item: String, count: u32 }
///
/// fn travels<M: RemoteMessage>() {}
/// travels::<Reserve>();
/// ```
pub trait RemoteMessage:
    Message<Result: Serialize + DeserializeOwned + Send>
    + Serialize
    + DeserializeOwned
    + Send
    + Unpin
    + 'static
{
}

impl<M> RemoteMessage for M where
    M: Message<Result: Serialize + DeserializeOwned + Send>
        + Serialize
        + DeserializeOwned
        + Send
        + Unpin
        + 'static
{
}

/// A message on its way: as it is for a recipient on this node, encoded for all
/// others.
pub(crate) enum Body<M> {
    Value(M),
    Encoded(Bytes),
}

impl<M: RemoteMessage> Body<M> {
    /// What it takes in memory, in bytes. A message that has not been encoded
    /// counts with its size on the stack.
    pub(crate) fn size(&self) -> usize {
        match self {
            Self::Value(_) => size_of::<M>(),
            Self::Encoded(bytes) => bytes.len(),
        }
    }

    pub(crate) fn into_message(self) -> Result<M, String> {
        match self {
            Self::Value(message) => Ok(message),
            Self::Encoded(bytes) => read(&bytes),
        }
    }
}

/// Decodes a message that has come from another node. The error is for its sender.
pub(crate) fn read<M: RemoteMessage>(bytes: &[u8]) -> Result<M, String> {
    decode(bytes).map_err(|reason| unreadable(type_name::<M>(), &reason))
}

/// How much is told of why a message cannot be read or written.
const REASON_BYTES: usize = 256;

fn unreadable(expected: &str, reason: &str) -> String {
    format!("it does not decode to {expected}: {reason}")
}

/// Why a value cannot travel.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EncodeError {
    Failed(String),
    /// It would take so many bytes.
    TooLarge(usize),
}

/// Small messages have their encoded forms in blocks of this size. Each takes the
/// next piece of one, and it is freed with the last of them.
const BLOCK_BYTES: usize = 64 << 10;
/// What is larger has memory of its own.
const SMALL_BYTES: usize = BLOCK_BYTES / 4;

thread_local! {
    /// Where this thread encodes. Taken out while it is used, for a value's own
    /// code may encode another one.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    /// The rest of its block.
    static BLOCK: Cell<Option<BytesMut>> = const { Cell::new(None) };
}

/// MessagePack with field names, so that fields can be added while nodes of
/// both versions run. `limit` is in bytes.
pub(crate) fn encode<T: Serialize>(value: &T, limit: usize) -> Result<Bytes, EncodeError> {
    encode_here(value, limit).map(|mut fresh| fresh.take())
}

/// The same, for who copies it or lets it go.
///
/// A message is written in many small parts, which `rmp_serde` does in half the
/// time where it writes to a plain `Vec`. So the limit is looked at in the end.
pub(crate) fn encode_here<T: Serialize>(value: &T, limit: usize) -> Result<Fresh, EncodeError> {
    let mut fresh = Fresh(SCRATCH.try_with(Cell::take).unwrap_or_default());
    let encoded = unless_it_panics(|| rmp_serde::encode::write_named(&mut fresh.0, value));
    match encoded {
        Err(reason) => Err(EncodeError::Failed(reason)),
        Ok(()) if fresh.len() > limit => Err(EncodeError::TooLarge(fresh.len())),
        Ok(()) => Ok(fresh),
    }
}

/// What this thread has just encoded. Dropped, it leaves its memory to the next.
pub(crate) struct Fresh(Vec<u8>);

impl Fresh {
    /// Takes it out.
    pub(crate) fn take(&mut self) -> Bytes {
        if self.0.capacity() > BLOCK_BYTES {
            return mem::take(&mut self.0).into_boxed_slice().into();
        }
        if self.len() > SMALL_BYTES {
            return Bytes::copy_from_slice(self);
        }
        let block = BLOCK.try_with(Cell::take).ok().flatten();
        let block = block.filter(|block| block.capacity() >= self.len());
        let mut block = block.unwrap_or_else(|| BytesMut::with_capacity(BLOCK_BYTES));
        block.extend_from_slice(self);
        let bytes = block.split().freeze();
        let _ = BLOCK.try_with(|rest| rest.set(Some(block)));
        bytes
    }
}

impl Deref for Fresh {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        let mut scratch = mem::take(&mut self.0);
        if scratch.capacity() <= BLOCK_BYTES {
            scratch.clear();
            let _ = SCRATCH.try_with(|place| place.set(scratch));
        }
    }
}

pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    unless_it_panics(|| rmp_serde::from_slice(bytes))
}

/// A user's own `Serialize` or `Deserialize` runs in the midst of the node's
/// work, where a panic would end more than the one message. Of the value that
/// it was about, nothing is used afterwards.
fn unless_it_panics<T, E: Display>(code: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => result.map_err(|error| shortened(error.to_string())),
        Err(_) => Err("its own code panicked".to_owned()),
    }
}

/// What a (de)serializer says may quote all of the message, and travels.
fn shortened(mut reason: String) -> String {
    if reason.len() > REASON_BYTES {
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        reason.push('…');
    }
    reason
}

/// The name under which a type is compared between nodes: its own, with the
/// module paths stripped, for those may differ between programs.
pub(crate) fn label<M>() -> String {
    without_paths(type_name::<M>())
}

fn without_paths(name: &str) -> String {
    let mut label = String::with_capacity(name.len());
    let mut word = 0;
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            ':' if characters.peek() == Some(&':') => {
                characters.next();
                label.truncate(word);
            }
            character => {
                label.push(character);
                if !character.is_alphanumeric() && character != '_' {
                    word = label.len();
                }
            }
        }
    }
    label
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    /// How much this thread keeps to encode into.
    fn scratch() -> usize {
        let scratch = SCRATCH.take();
        let size = scratch.capacity();
        SCRATCH.set(scratch);
        size
    }

    #[test]
    fn a_label_has_no_paths() {
        for (name, label) in [
            ("u32", "u32"),
            ("a::b::Order", "Order"),
            ("a::Order<b::c::Widget>", "Order<Widget>"),
            ("a::Order<(b::X, &[c::Y; 3])>", "Order<(X, &[Y; 3])>"),
        ] {
            assert_eq!(without_paths(name), label);
        }
    }

    #[test]
    fn fields_can_be_added_while_both_versions_run() {
        #[derive(Serialize, Deserialize)]
        struct Old {
            id: u32,
        }
        #[derive(Serialize, Deserialize)]
        struct New {
            id: u32,
            #[serde(default)]
            note: String,
        }
        let new: New = decode(&encode(&Old { id: 7 }, 99).unwrap()).unwrap();
        assert_eq!((new.id, new.note.as_str()), (7, ""));
        let note = "x".to_owned();
        let old: Old = decode(&encode(&New { id: 8, note }, 99).unwrap()).unwrap();
        assert_eq!(old.id, 8);
    }

    #[test]
    fn a_reason_does_not_quote_a_whole_message() {
        let long = encode(&"é".repeat(100_000), 1 << 20).unwrap();
        let reason = decode::<u32>(&long).unwrap_err();
        assert!(reason.len() < 2 * REASON_BYTES, "{}", reason.len());
    }

    #[test]
    fn a_panic_while_encoding_concerns_only_that_message() {
        struct Trap;
        impl Serialize for Trap {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                panic!("sprung")
            }
        }
        let reason = "its own code panicked".to_owned();
        assert_eq!(encode(&Trap, 99), Err(EncodeError::Failed(reason)));
        assert!(encode(&7, 99).is_ok());
    }

    #[test]
    fn what_is_too_large_is_measured_and_not_kept() {
        let text = "x".repeat(BLOCK_BYTES);
        let size = encode(&text, 1 << 20).unwrap().len();
        assert_eq!(encode(&text, size - 1), Err(EncodeError::TooLarge(size)));
        assert_eq!(scratch(), 0);
        assert_eq!(encode(&text, size).unwrap().len(), size);
    }

    #[test]
    fn a_thread_keeps_the_memory_that_small_messages_need() {
        encode(&"x".repeat(SMALL_BYTES), 1 << 20).unwrap();
        let kept = scratch();
        assert!((SMALL_BYTES..=BLOCK_BYTES).contains(&kept), "{kept}");
        assert!(encode(&7, 0).is_err());
        assert_eq!(scratch(), kept);
        encode(&"x".repeat(BLOCK_BYTES), 1 << 20).unwrap();
        assert_eq!(scratch(), 0);
    }

    #[test]
    fn small_messages_share_a_block_whatever_is_encoded_between_them() {
        let small = |text: &str| encode(&text, 99).unwrap();
        let first = small("one");
        let large = encode(&"x".repeat(BLOCK_BYTES), 1 << 20).unwrap();
        let second = small("two");
        assert!(encode(&"x".repeat(BLOCK_BYTES), 99).is_err());
        assert!(encode(&"x".repeat(BLOCK_BYTES), BLOCK_BYTES).is_err());
        let third = small("three");
        let after = |bytes: &Bytes| bytes.as_ptr().addr() + bytes.len();
        assert_eq!(second.as_ptr().addr(), after(&first));
        assert_eq!(third.as_ptr().addr(), after(&second));
        assert_eq!(decode::<String>(&large).unwrap().len(), BLOCK_BYTES);
    }

    #[test]
    fn messages_that_are_encoded_one_after_the_other_are_each_their_own() {
        let encoded: Vec<Bytes> = (0..10_000u32)
            .map(|number| encode(&vec![number; 7], 1 << 10).unwrap())
            .collect();
        for (number, bytes) in (0..).zip(&encoded) {
            assert_eq!(decode::<Vec<u32>>(bytes).unwrap(), [number; 7]);
        }
    }
}
