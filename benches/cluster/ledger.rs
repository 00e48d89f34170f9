//! Which messages have arrived, id by id.

use std::{
    fs, io,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
};

use crate::item::Item;

/// What one process has received.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) received: u64,
    once: Ids,
    more_than_once: Ids,
}

pub(crate) type SharedLedger = Arc<Mutex<Ledger>>;

pub(crate) fn open(ledger: &SharedLedger) -> MutexGuard<'_, Ledger> {
    ledger.lock().expect("no panic while a message is noted")
}

impl Ledger {
    pub(crate) fn note(&mut self, item: &Item) {
        if !self.once.insert(item.id) {
            self.more_than_once.insert(item.id);
        }
        self.received += 1;
    }

    /// Leaves it in two files, for [`Audit::read`].
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        self.once.write(&path.with_extension("once"))?;
        self.more_than_once.write(&path.with_extension("more"))
    }
}

/// What all processes have received.
#[derive(Default)]
pub(crate) struct Audit {
    once: Ids,
    more_than_once: Ids,
}

impl Audit {
    /// Adds what one process has received.
    pub(crate) fn read(&mut self, path: &Path) -> io::Result<()> {
        let theirs = Ids::read(&path.with_extension("once"))?;
        self.more_than_once.add(&self.once.common(&theirs));
        self.once.add(&theirs);
        let more = Ids::read(&path.with_extension("more"))?;
        self.more_than_once.add(&more);
        Ok(())
    }

    /// How many of these nobody has.
    pub(crate) fn lost(&self, sent: &Range<u64>) -> u64 {
        sent.end - sent.start - self.once.count(sent)
    }

    /// How many of these have arrived more than once.
    pub(crate) fn duplicated(&self, sent: &Range<u64>) -> u64 {
        self.more_than_once.count(sent)
    }
}

/// A set of ids, one bit each.
#[derive(Default)]
struct Ids(Vec<u64>);

impl Ids {
    /// Says whether it is new.
    fn insert(&mut self, id: u64) -> bool {
        let (word, bit) = ((id / 64) as usize, 1 << (id % 64));
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        new
    }

    fn common(&self, other: &Self) -> Self {
        let both = self.0.iter().zip(&other.0);
        Self(both.map(|(one, other)| one & other).collect())
    }

    fn add(&mut self, other: &Self) {
        self.0.resize(self.0.len().max(other.0.len()), 0);
        for (one, other) in self.0.iter_mut().zip(&other.0) {
            *one |= other;
        }
    }

    fn count(&self, ids: &Range<u64>) -> u64 {
        let has = |id: &u64| {
            let word = self.0.get((id / 64) as usize).unwrap_or(&0);
            word & 1 << (id % 64) != 0
        };
        ids.clone().filter(has).count() as u64
    }

    fn write(&self, path: &Path) -> io::Result<()> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|word| word.to_le_bytes()).collect();
        fs::write(path, bytes)
    }

    fn read(path: &Path) -> io::Result<Self> {
        let bytes = fs::read(path)?;
        let (words, _) = bytes.as_chunks();
        Ok(Self(
            words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
        ))
    }
}
