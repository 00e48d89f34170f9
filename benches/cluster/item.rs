//! The message that all subjects carry.

use std::sync::atomic::{AtomicU64, Ordering};

use actix::Message;
use serde::{Deserialize, Serialize};

/// Travels as MessagePack with field names, in all subjects.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
pub(crate) struct Item {
    pub(crate) id: u64,
    #[serde(with = "serde_bytes")]
    body: Vec<u8>,
}

/// Where messages come from: each has the next id and a copy of one body.
pub(crate) struct Stock {
    body: Vec<u8>,
    next: AtomicU64,
}

impl Stock {
    pub(crate) fn new(size: usize) -> Self {
        Self {
            body: vec![7; size],
            next: AtomicU64::new(0),
        }
    }

    pub(crate) fn item(&self) -> Item {
        Item {
            id: self.next.fetch_add(1, Ordering::Relaxed),
            body: self.body.clone(),
        }
    }

    /// How many there have been.
    pub(crate) fn taken(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }
}
