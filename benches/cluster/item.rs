//! The message that all subjects carry, and the account that receivers keep of
//! it.

use std::{
    fs, io,
    path::Path,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

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

/// What a receiver has received.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) received: u64,
    pub(crate) duplicated: u64,
    /// One bit an id.
    seen: Vec<u64>,
}

pub(crate) type SharedLedger = Arc<Mutex<Ledger>>;

pub(crate) fn open(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no panic while a message is noted")
}

impl Ledger {
    pub(crate) fn note(&mut self, item: &Item) {
        let (word, bit) = ((item.id / 64) as usize, 1 << (item.id % 64));
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        self.duplicated += u64::from(self.seen[word] & bit != 0);
        self.seen[word] |= bit;
        self.received += 1;
    }

    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        let bytes: Vec<u8> = self
            .seen
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .collect();
        fs::write(path, bytes)
    }
}

/// What became of all messages, as the ledgers of all receivers tell it.
#[derive(Default)]
pub(crate) struct Audit {
    seen: Vec<u8>,
    /// Messages that more than one receiver has.
    pub(crate) duplicated: u64,
}

impl Audit {
    pub(crate) fn read(&mut self, path: &Path) -> io::Result<()> {
        let ledger = fs::read(path)?;
        self.seen.resize(self.seen.len().max(ledger.len()), 0);
        for (all, one) in self.seen.iter_mut().zip(ledger) {
            self.duplicated += u64::from((*all & one).count_ones());
            *all |= one;
        }
        Ok(())
    }

    /// How many of the messages from the first one on nobody has.
    pub(crate) fn lost(&self, sent: u64) -> u64 {
        let seen: u64 = self
            .seen
            .iter()
            .map(|byte| u64::from(byte.count_ones()))
            .sum();
        sent - seen.min(sent)
    }
}
