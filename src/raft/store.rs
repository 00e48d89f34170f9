//! What a node must still know after a crash, in redb: its identity, the Raft
//! log, vote and committed index, and the last snapshot.
//!
//! A node without a data directory uses the same store over memory, or over a
//! [`Disk`] that it was given.
//!
//! **Invariant: whatever Raft has been told is stored, is synced.** Every write
//! is one transaction, committed with a sync before it is acknowledged; only
//! the committed index, which Raft can find again, rides on the next one.

use std::{
    fs, io,
    ops::{Range, RangeBounds},
    sync::Arc,
};

use openraft::{
    AnyError, ErrorSubject, ErrorVerb, LogState, OptionalSend, RaftLogId, RaftLogReader,
    storage::{LogFlushed, RaftLogStorage},
};
use redb::{
    Database, Durability, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition,
    WriteTransaction, backends::InMemoryBackend,
};
use serde::{Serialize, de::DeserializeOwned};
use tracing::trace;

use super::types::{Entry, LogId, SnapshotMeta, StorageError, StorageIOError, TypeConfig, Vote};
use crate::{builder::Data, disk::Disk, view::NodeId};

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const FACTS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("facts");

const FORMAT: &str = "format";
const CLUSTER: &str = "cluster";
const NODE: &str = "node";
const BOOT: &str = "boot";
const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";
const SNAPSHOT: &str = "snapshot";

/// What this version writes. An older version refuses a newer format.
const FORMAT_VERSION: u32 = 1;

/// What a follower is sent at a time, in bytes: it has `APPEND_TIMEOUT` to take it
/// and store it, and is sent the same again if it does not.
const SENT_BYTES: usize = 256 << 10;

/// redb's page cache. The log is short and read mostly at its end.
const CACHE_BYTES: usize = 4 << 20;

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Database(#[from] redb::Error),
    #[error("another process has it open")]
    InUse,
    #[error("the value of {key:?} cannot be read: {source}")]
    Damaged {
        key: String,
        source: rmp_serde::decode::Error,
    },
    #[error("a value cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    #[error("it was written in format {found}; this version reads up to {FORMAT_VERSION}")]
    NewerFormat { found: u32 },
    #[error("it is of a node of the cluster {found}, and this node's cluster_id is {cluster}")]
    OtherCluster { found: String, cluster: Arc<str> },
}

/// The redb errors that operations return all widen into `redb::Error`.
macro_rules! from_redb {
    ($($error:ty),*) => {$(
        impl From<$error> for StoreError {
            fn from(error: $error) -> Self {
                Self::Database(error.into())
            }
        }
    )*};
}
from_redb!(
    redb::TransactionError,
    redb::TableError,
    redb::StorageError,
    redb::CommitError,
    redb::SetDurabilityError
);

impl From<redb::DatabaseError> for StoreError {
    fn from(error: redb::DatabaseError) -> Self {
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::InUse,
            other => Self::Database(other.into()),
        }
    }
}

/// A handle to the store; clones share it.
#[derive(Clone)]
pub(crate) struct Store {
    database: Arc<Database>,
    /// Whether a write takes long, and so must not run on the node's thread.
    is_slow: bool,
}

/// Runs what may take long on a thread that may block.
async fn run<T: Send + 'static>(
    is_slow: bool,
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    if !is_slow {
        return work();
    }
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(StoreError::Io(io::Error::other(stopped))),
    }
}

/// Who the store says that the node is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StoredIdentity {
    pub(crate) node: NodeId,
    pub(crate) boot: u64,
}

impl Store {
    /// Opens the store of a node of this cluster, which is made where it is missing,
    /// and counts a new boot.
    pub(crate) async fn open(
        data: Data,
        cluster: Arc<str>,
    ) -> Result<(Self, StoredIdentity), StoreError> {
        let is_slow = matches!(data, Data::Directory(_));
        run(is_slow, move || {
            let mut builder = Database::builder();
            builder.set_cache_size(CACHE_BYTES);
            let database = match data {
                Data::Directory(dir) => {
                    fs::create_dir_all(&dir)?;
                    builder.create(dir.join("raft.redb"))?
                }
                Data::Disk(disk) => builder.create_with_backend(Backend(disk))?,
                Data::Memory => builder.create_with_backend(InMemoryBackend::new())?,
            };
            let database = Arc::new(database);
            let store = Self { database, is_slow };
            let identity = store.boot(cluster)?;
            store.check()?;
            Ok((store, identity))
        })
        .await
    }

    fn boot(&self, cluster: Arc<str>) -> Result<StoredIdentity, StoreError> {
        let transaction = self.database.begin_write()?;
        transaction.open_table(LOG)?;
        let format = get(&transaction, FORMAT)?.unwrap_or(FORMAT_VERSION);
        if format > FORMAT_VERSION {
            return Err(StoreError::NewerFormat { found: format });
        }
        // Before the first vote the node has not belonged to any.
        let found: Option<String> = get(&transaction, CLUSTER)?;
        let found = found.filter(|found| **found != *cluster);
        if let Some(found) = found
            && get::<Vote>(&transaction, VOTE)?.is_some()
        {
            return Err(StoreError::OtherCluster { found, cluster });
        }
        let node = match get(&transaction, NODE)? {
            Some(node) => node,
            // Nought is never drawn: on the wire it stands for "not set".
            None => NodeId(rand::random_range(1..=u64::MAX)),
        };
        let boot = get::<u64>(&transaction, BOOT)?.unwrap_or(0) + 1;
        put(&transaction, FORMAT, &FORMAT_VERSION)?;
        put(&transaction, CLUSTER, &*cluster)?;
        put(&transaction, NODE, &node)?;
        put(&transaction, BOOT, &boot)?;
        transaction.commit()?;
        Ok(StoredIdentity { node, boot })
    }

    /// Reads all that Raft will ask for, so that a damaged store is found at
    /// the start and not by a Raft that stops later.
    fn check(&self) -> Result<(), StoreError> {
        self.get::<Vote>(VOTE)?;
        self.get::<Option<LogId>>(COMMITTED)?;
        self.get::<LogId>(PURGED)?;
        self.snapshot()?;
        self.entries(..)?;
        Ok(())
    }

    fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, StoreError> {
        let facts = self.database.begin_read()?.open_table(FACTS)?;
        let value = facts.get(key)?;
        value.map(|bytes| decode(key, bytes.value())).transpose()
    }

    fn entries(&self, range: impl RangeBounds<u64>) -> Result<Vec<Entry>, StoreError> {
        let log = self.database.begin_read()?.open_table(LOG)?;
        log.range(range)?
            .map(|row| {
                let (index, bytes) = row?;
                decode(&format!("log entry {}", index.value()), bytes.value())
            })
            .collect()
    }

    /// The first entries of a range, in up to so many bytes, but one at least.
    fn first_entries(&self, range: Range<u64>, most: usize) -> Result<Vec<Entry>, StoreError> {
        let log = self.database.begin_read()?.open_table(LOG)?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for row in log.range(range)? {
            let (index, entry) = row?;
            let entry = entry.value();
            bytes += entry.len();
            if bytes > most && !entries.is_empty() {
                break;
            }
            entries.push(decode(&format!("log entry {}", index.value()), entry)?);
        }
        Ok(entries)
    }

    fn last_entry(&self) -> Result<Option<Entry>, StoreError> {
        let log = self.database.begin_read()?.open_table(LOG)?;
        let last = log.last()?;
        last.map(|(_, bytes)| decode("the last log entry", bytes.value()))
            .transpose()
    }

    /// Runs a transaction.
    async fn write(
        &self,
        durability: Durability,
        change: impl FnOnce(&WriteTransaction) -> Result<(), StoreError> + Send + 'static,
    ) -> Result<(), StoreError> {
        let database = self.database.clone();
        run(self.is_slow, move || {
            let mut transaction = database.begin_write()?;
            transaction.set_durability(durability)?;
            change(&transaction)?;
            transaction.commit()?;
            Ok(())
        })
        .await
    }

    /// The last entry that the log has, or had before it was purged.
    pub(crate) fn last_log_id(&self) -> Result<Option<LogId>, StoreError> {
        match self.last_entry()? {
            Some(entry) => Ok(Some(*entry.get_log_id())),
            None => self.get(PURGED),
        }
    }

    /// For those who check that whatever was stored is found again.
    pub(crate) fn tell(&self, node: NodeId) -> Result<(), StoreError> {
        let vote = self.get::<Vote>(VOTE)?.unwrap_or_default();
        let end = self.last_log_id()?.map_or(0, |last| last.index + 1);
        trace!(%node, %vote, end, "found in the store");
        Ok(())
    }

    /// The last snapshot: its description and what it holds.
    pub(crate) fn snapshot(&self) -> Result<Option<(SnapshotMeta, Vec<u8>)>, StoreError> {
        self.get(SNAPSHOT)
    }

    /// Keeps a snapshot, unless a later one is there: one that was being made
    /// may be overtaken by one from the leader, and the log is purged up to that.
    pub(crate) async fn save_snapshot(
        &self,
        meta: SnapshotMeta,
        content: Vec<u8>,
    ) -> Result<(), StoreError> {
        self.write(Durability::Immediate, move |transaction| {
            let stored = get::<(SnapshotMeta, Vec<u8>)>(transaction, SNAPSHOT)?;
            match stored {
                Some((stored, _)) if stored.last_log_id > meta.last_log_id => Ok(()),
                _ => put(transaction, SNAPSHOT, &(meta, content)),
            }
        })
        .await
    }
}

/// Shows a disk to redb.
#[derive(Debug)]
struct Backend(Arc<dyn Disk>);

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

fn get<T: DeserializeOwned>(
    transaction: &WriteTransaction,
    key: &str,
) -> Result<Option<T>, StoreError> {
    let facts = transaction.open_table(FACTS)?;
    let value = facts.get(key)?;
    value.map(|bytes| decode(key, bytes.value())).transpose()
}

fn put<T: Serialize + ?Sized>(
    transaction: &WriteTransaction,
    key: &str,
    value: &T,
) -> Result<(), StoreError> {
    let bytes = rmp_serde::to_vec_named(value)?;
    transaction
        .open_table(FACTS)?
        .insert(key, bytes.as_slice())?;
    Ok(())
}

fn decode<T: DeserializeOwned>(key: &str, bytes: &[u8]) -> Result<T, StoreError> {
    rmp_serde::from_slice(bytes).map_err(|source| StoreError::Damaged {
        key: key.to_owned(),
        source,
    })
}

/// Tells openraft what failed. It stops the Raft of the node: one that cannot
/// keep its promises must not go on making them.
fn failed(subject: ErrorSubject<NodeId>, verb: ErrorVerb) -> impl Fn(StoreError) -> StorageError {
    move |error| StorageIOError::new(subject.clone(), verb, AnyError::new(&error)).into()
}

pub(crate) fn snapshot_failed(verb: ErrorVerb) -> impl Fn(StoreError) -> StorageError {
    failed(ErrorSubject::Snapshot(None), verb)
}

impl RaftLogReader<TypeConfig> for Store {
    async fn try_get_log_entries<R>(&mut self, range: R) -> Result<Vec<Entry>, StorageError>
    where
        R: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        self.entries(range)
            .map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }

    /// What is sent to a follower at a time.
    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<Entry>, StorageError> {
        self.first_entries(start..end, SENT_BYTES)
            .map_err(failed(ErrorSubject::Logs, ErrorVerb::Read))
    }
}

impl RaftLogStorage<TypeConfig> for Store {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, StorageError> {
        let failed = failed(ErrorSubject::Logs, ErrorVerb::Read);
        Ok(LogState {
            last_purged_log_id: self.get(PURGED).map_err(&failed)?,
            last_log_id: self.last_log_id().map_err(&failed)?,
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), StorageError> {
        let vote = *vote;
        self.write(Durability::Immediate, move |transaction| {
            put(transaction, VOTE, &vote)
        })
        .await
        .map_err(failed(ErrorSubject::Vote, ErrorVerb::Write))?;
        trace!(%vote, "stored a vote");
        Ok(())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, StorageError> {
        self.get(VOTE)
            .map_err(failed(ErrorSubject::Vote, ErrorVerb::Read))
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StorageError> {
        self.write(Durability::None, move |transaction| {
            put(transaction, COMMITTED, &committed)
        })
        .await
        .map_err(failed(ErrorSubject::Store, ErrorVerb::Write))
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StorageError> {
        self.get(COMMITTED)
            .map(Option::flatten)
            .map_err(failed(ErrorSubject::Store, ErrorVerb::Read))
    }

    async fn append<I>(
        &mut self,
        entries: I,
        callback: LogFlushed<TypeConfig>,
    ) -> Result<(), StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let failed = failed(ErrorSubject::Logs, ErrorVerb::Write);
        let rows = entries
            .into_iter()
            .map(|entry| Ok((entry.log_id.index, rmp_serde::to_vec_named(&entry)?)))
            .collect::<Result<Vec<_>, StoreError>>()
            .map_err(&failed)?;
        let end = rows.last().map_or(0, |(index, _)| index + 1);
        self.write(Durability::Immediate, move |transaction| {
            let mut log = transaction.open_table(LOG)?;
            for (index, bytes) in &rows {
                log.insert(index, bytes.as_slice())?;
            }
            Ok(())
        })
        .await
        .map_err(&failed)?;
        trace!(end, "stored entries");
        callback.log_io_completed(Ok(()));
        Ok(())
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Durability::Immediate, move |transaction| {
            let mut log = transaction.open_table(LOG)?;
            log.retain_in(log_id.index.., |_, _| false)?;
            Ok(())
        })
        .await
        .map_err(failed(ErrorSubject::Log(log_id), ErrorVerb::Delete))?;
        trace!(end = log_id.index, "cut entries off");
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StorageError> {
        self.write(Durability::Immediate, move |transaction| {
            put(transaction, PURGED, &log_id)?;
            let mut log = transaction.open_table(LOG)?;
            log.retain_in(..=log_id.index, |_, _| false)?;
            Ok(())
        })
        .await
        .map_err(failed(ErrorSubject::Log(log_id), ErrorVerb::Delete))?;
        trace!(end = log_id.index + 1, "purged entries");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use openraft::{
        CommittedLeaderId, EntryPayload,
        testing::{StoreBuilder, Suite},
    };
    use tempfile::TempDir;

    use super::{super::state_machine::StateMachine, *};
    use crate::view::Command;

    async fn open(data: Data) -> Result<(Store, StoredIdentity), StoreError> {
        Store::open(data, "shop".into()).await
    }

    fn in_directory(dir: &TempDir) -> Data {
        Data::Directory(dir.path().to_owned())
    }

    struct OnDisk;
    struct InMemory;

    impl StoreBuilder<TypeConfig, Store, StateMachine, TempDir> for OnDisk {
        async fn build(&self) -> Result<(TempDir, Store, StateMachine), StorageError> {
            let dir = tempfile::tempdir().unwrap();
            let (store, _) = open(in_directory(&dir)).await.unwrap();
            let (state_machine, _) = StateMachine::load(store.clone()).unwrap();
            Ok((dir, store, state_machine))
        }
    }

    impl StoreBuilder<TypeConfig, Store, StateMachine> for InMemory {
        async fn build(&self) -> Result<((), Store, StateMachine), StorageError> {
            let (store, _) = open(Data::Memory).await.unwrap();
            let (state_machine, _) = StateMachine::load(store.clone()).unwrap();
            Ok(((), store, state_machine))
        }
    }

    #[test]
    fn the_store_on_disk_passes_the_suite_of_openraft() {
        Suite::test_all(OnDisk).unwrap();
    }

    #[test]
    fn the_store_in_memory_passes_the_suite_of_openraft() {
        Suite::test_all(InMemory).unwrap();
    }

    #[tokio::test]
    async fn a_node_keeps_its_id_and_counts_its_boots() {
        let dir = tempfile::tempdir().unwrap();
        let (store, first) = open(in_directory(&dir)).await.unwrap();
        drop(store);
        let (_store, second) = open(in_directory(&dir)).await.unwrap();
        assert_eq!(second.node, first.node);
        assert_eq!(second.boot, first.boot + 1);
    }

    #[tokio::test]
    async fn a_store_that_is_open_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = open(in_directory(&dir)).await.unwrap();
        assert!(matches!(
            open(in_directory(&dir)).await,
            Err(StoreError::InUse)
        ));
    }

    #[tokio::test]
    async fn what_is_sent_at_a_time_is_bounded_and_is_never_nothing() {
        let (store, _) = open(Data::Memory).await.unwrap();
        let transaction = store.database.begin_write().unwrap();
        for index in 1..5 {
            let command = Command::NodeUp {
                node: NodeId(index),
                boot: 1,
                address: "x".repeat(1000).into(),
            };
            let entry = Entry {
                log_id: LogId::new(CommittedLeaderId::new(1, NodeId(1)), index),
                payload: EntryPayload::Normal(command),
            };
            let entry = rmp_serde::to_vec_named(&entry).unwrap();
            let mut log = transaction.open_table(LOG).unwrap();
            log.insert(index, &entry[..]).unwrap();
        }
        transaction.commit().unwrap();
        let count = |most| store.first_entries(1..5, most).unwrap().len();
        assert_eq!([0, 2500, 9999].map(count), [1, 2, 4]);
    }

    #[tokio::test]
    async fn an_earlier_snapshot_does_not_replace_a_later_one() {
        let (store, _) = open(Data::Memory).await.unwrap();
        let meta = |index| SnapshotMeta {
            last_log_id: Some(LogId::new(CommittedLeaderId::new(1, NodeId(1)), index)),
            ..SnapshotMeta::default()
        };
        store.save_snapshot(meta(7), vec![7]).await.unwrap();
        store.save_snapshot(meta(5), vec![5]).await.unwrap();
        assert_eq!(store.snapshot().unwrap().unwrap().1, [7]);
        store.save_snapshot(meta(9), vec![9]).await.unwrap();
        assert_eq!(store.snapshot().unwrap().unwrap().1, [9]);
    }

    #[tokio::test]
    async fn a_damaged_value_is_an_error_at_opening() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = open(in_directory(&dir)).await.unwrap();
        let transaction = store.database.begin_write().unwrap();
        let garbage: &[u8] = b"\xc1garbage";
        transaction
            .open_table(LOG)
            .unwrap()
            .insert(7, garbage)
            .unwrap();
        transaction.commit().unwrap();
        drop(store);
        assert!(matches!(
            open(in_directory(&dir)).await,
            Err(StoreError::Damaged { key, .. }) if key == "log entry 7"
        ));
    }
}
