//! The state machine: a view, and how far the log has made it.
//!
//! It lives in memory and is made again from the last snapshot and the log.
//! Applying is pure; what has been applied is published through a watch.

use std::{io::Cursor, sync::Arc};

use openraft::{
    EntryPayload, ErrorVerb, OptionalSend, RaftSnapshotBuilder, storage::RaftStateMachine,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::trace;

use super::{
    store::{Store, StoreError, snapshot_failed},
    types::{
        Entry, LogId, Snapshot, SnapshotMeta, StorageError, StorageIOError, StoredMembership,
        TypeConfig,
    },
};
use crate::view::View;

/// The view that results from the log up to some entry.
#[derive(Clone, Default)]
struct Applied {
    last: Option<LogId>,
    membership: StoredMembership,
    view: Arc<View>,
}

impl Applied {
    /// For those who check that every node makes the same of the log, and the
    /// right thing.
    fn tell(&self) {
        let (Some(entry), View { nodes, .. }) = (&self.last, &*self.view) else {
            return;
        };
        trace!(
            %entry,
            voters = ?self.membership.membership().get_joint_config(),
            members = %self.membership,
            formation = self.view.formation,
            ?nodes,
            receivers = ?self.view.receivers,
            gone = ?self.view.gone,
            "applied"
        );
    }
}

/// What a snapshot holds beside what its description says.
#[derive(Serialize, Deserialize)]
struct Content {
    view: Arc<View>,
}

pub(crate) struct StateMachine {
    store: Store,
    applied: Applied,
    agreed: watch::Sender<Arc<View>>,
}

impl StateMachine {
    /// Starts from the last snapshot in the store. Every view that is applied
    /// from then on goes out through the watch.
    pub(crate) fn load(store: Store) -> Result<(Self, watch::Receiver<Arc<View>>), StoreError> {
        let applied = match store.snapshot()? {
            None => Applied::default(),
            Some((meta, content)) => {
                restore(&meta, &content).map_err(|source| StoreError::Damaged {
                    key: "snapshot".to_owned(),
                    source,
                })?
            }
        };
        let (agreed, receiver) = watch::channel(applied.view.clone());
        let state_machine = Self {
            store,
            applied,
            agreed,
        };
        Ok((state_machine, receiver))
    }
}

fn restore(meta: &SnapshotMeta, content: &[u8]) -> Result<Applied, rmp_serde::decode::Error> {
    let Content { view } = rmp_serde::from_slice(content)?;
    Ok(Applied {
        last: meta.last_log_id,
        membership: meta.last_membership.clone(),
        view,
    })
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StorageError> {
        Ok((self.applied.last, self.applied.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<()>, StorageError>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut results = Vec::new();
        let mut changed = false;
        for entry in entries {
            self.applied.last = Some(entry.log_id);
            match entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(command) => {
                    Arc::make_mut(&mut self.applied.view).apply(&command);
                    changed = true;
                }
                EntryPayload::Membership(membership) => {
                    self.applied.membership = StoredMembership::new(Some(entry.log_id), membership);
                }
            }
            self.applied.tell();
            results.push(());
        }
        if changed {
            self.agreed.send_replace(self.applied.view.clone());
        }
        Ok(results)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            store: self.store.clone(),
            applied: self.applied.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StorageError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StorageError> {
        let content = snapshot.into_inner();
        let applied = restore(meta, &content)
            .map_err(|error| StorageIOError::read_snapshot(Some(meta.signature()), &error))?;
        self.store
            .save_snapshot(meta.clone(), content)
            .await
            .map_err(snapshot_failed(ErrorVerb::Write))?;
        self.applied = applied;
        self.agreed.send_replace(self.applied.view.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, StorageError> {
        let stored = self
            .store
            .snapshot()
            .map_err(snapshot_failed(ErrorVerb::Read))?;
        Ok(stored.map(|(meta, content)| Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(content)),
        }))
    }
}

/// Writes down a view while the state machine goes on.
pub(crate) struct SnapshotBuilder {
    store: Store,
    applied: Applied,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    async fn build_snapshot(&mut self) -> Result<Snapshot, StorageError> {
        let Applied {
            last,
            membership,
            view,
        } = self.applied.clone();
        // Two snapshots up to the same entry are equal, whoever makes them.
        let snapshot_id = last.map(|id| id.to_string()).unwrap_or_default();
        let meta = SnapshotMeta {
            last_log_id: last,
            last_membership: membership,
            snapshot_id,
        };
        let content = rmp_serde::to_vec_named(&Content { view })
            .map_err(|error| StorageIOError::write_snapshot(Some(meta.signature()), &error))?;
        self.store
            .save_snapshot(meta.clone(), content.clone())
            .await
            .map_err(snapshot_failed(ErrorVerb::Write))?;
        Ok(Snapshot {
            meta,
            snapshot: Box::new(Cursor::new(content)),
        })
    }
}
