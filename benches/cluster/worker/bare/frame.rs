//! Messages in a gRPC message, each behind its length.

use bytes::{Buf, BufMut, Bytes};
use serde::{Serialize, de::DeserializeOwned};

use super::Frame;

const LENGTH: usize = size_of::<u32>();

/// A gRPC message that is being filled.
#[derive(Default)]
pub(super) struct Batch {
    messages: Vec<u8>,
}

impl Batch {
    /// For so many bytes.
    pub(super) fn with_capacity(bytes: usize) -> Self {
        Self {
            messages: Vec::with_capacity(bytes),
        }
    }

    pub(super) fn push(&mut self, message: &impl Serialize) {
        let start = self.messages.len();
        self.messages.put_u32(0);
        rmp_serde::encode::write_named(&mut self.messages, message).unwrap();
        let length = (self.messages.len() - start - LENGTH) as u32;
        self.messages[start..start + LENGTH].copy_from_slice(&length.to_be_bytes());
    }

    pub(super) fn len(&self) -> usize {
        self.messages.len()
    }

    pub(super) fn frame(self) -> Frame {
        Frame {
            messages: self.messages.into(),
        }
    }
}

/// The messages in a frame.
pub(super) fn messages<M: DeserializeOwned>(mut frame: Bytes) -> impl Iterator<Item = M> {
    std::iter::from_fn(move || {
        if frame.is_empty() {
            return None;
        }
        let length = frame.get_u32() as usize;
        let message = rmp_serde::from_slice(&frame[..length]).unwrap();
        frame.advance(length);
        Some(message)
    })
}
