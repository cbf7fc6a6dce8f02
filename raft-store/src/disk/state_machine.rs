//! openraft's state machine. Batches of committed entries go through [`apply`](crate::core::apply) and reach the
//! database in one write. There is no domain logic here.
//!
//! Each batch has one [`View`](crate::core::view::View) and one write: the rows, `last_applied` and the membership become visible together, and
//! durable together with a later flush. Replies are sent after the write, so that a caller who has its reply can read
//! what it wrote. Effects are sent after the replies.
//!
//! The work is done on a thread of its own (`applier.rs`), so that neither apply nor a database that makes it wait holds
//! up a thread of Raft.
//!
//! An error is final. openraft stops, the process ends, and the next start applies the entries since the last flush
//! again.

mod applier;

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::RaftStateMachine;
use openraft::type_config::alias::SnapshotMetaOf;

pub use self::applier::EffectSink;
use self::applier::{ApplyThread, BATCH_BYTES_MAX, Item};
use crate::core::keys;
use crate::core::view::load;
use crate::disk::snapshot::install::install;
use crate::disk::snapshot::{Snapshot, SnapshotBuilder, SnapshotData, Snapshots, stored_membership};
use crate::disk::state::StateHandle;
use crate::disk::types::{LogId, StoredMembership, TypeConfig, log_id_from_proto};

/// The maximal number of entries in one write. It bounds how long the first caller of a batch waits for the others.
const BATCH_ENTRIES_MAX: usize = 1_024;
/// Called when a snapshot has replaced the state. The effects of the entries that it covers are not sent.
pub type InstallHook = Arc<dyn Fn() + Send + Sync>;

/// Applies entries to the state of a shard. openraft owns it.
pub struct StateMachine {
    state: StateHandle,
    snapshots: Arc<Snapshots>,
    thread: ApplyThread,
    installed: Option<InstallHook>,
}

impl StateMachine {
    /// Starts the thread that applies entries.
    pub(crate) fn new(state: StateHandle, snapshots: Arc<Snapshots>) -> io::Result<Self> {
        Ok(StateMachine {
            thread: ApplyThread::spawn(state.clone())?,
            state,
            snapshots,
            installed: None,
        })
    }

    /// Calls `sink` with the effects of each batch, after its writes are visible. It must not block.
    pub fn set_effects(&mut self, sink: EffectSink) {
        self.thread.set_effects(sink);
    }

    /// Calls `hook` when a snapshot has replaced the state. It must not block.
    pub fn set_installed(&mut self, hook: InstallHook) {
        self.installed = Some(hook);
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let db = self.state.current();
        let applied = db.applied().map_err(io::Error::other)?;
        let membership = load(&*db, &keys::membership()).map_err(io::Error::other)?;
        let membership = stored_membership(&membership.unwrap_or_default()).map_err(io::Error::other)?;
        Ok((applied.last.as_ref().map(log_id_from_proto), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<Item, io::Error>> + Unpin + Send,
    {
        let mut waiting = Vec::new();
        let mut bytes = 0;
        while let Some(item) = entries.next().await {
            let item = item?;
            if let EntryPayload::Normal(proposal) = &item.0.payload {
                bytes += proposal.0.len();
            }
            waiting.push(item);
            if waiting.len() >= BATCH_ENTRIES_MAX || bytes >= BATCH_BYTES_MAX {
                bytes = 0;
                self.thread.apply(std::mem::take(&mut waiting)).await?;
            }
        }
        match waiting.is_empty() {
            true => Ok(()),
            false => self.thread.apply(waiting).await,
        }
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<SnapshotBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    /// Does nothing yet: openraft applies no entry until this returns, and the builder works beside apply.
    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder::new(self.snapshots.clone(), self.state.clone())
    }

    /// Blocks apply only as long as a few small files take, if this process received the snapshot.
    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        if snapshot.openraft_meta().map_err(io::Error::other)? != *meta {
            return Err(io::Error::other(
                "the snapshot does not match the metadata from openraft",
            ));
        }
        let (state, snapshots) = (self.state.clone(), self.snapshots.clone());
        tokio::task::spawn_blocking(move || install(&state, &snapshots, snapshot))
            .await
            .map_err(io::Error::other)??;
        self.thread.forget();
        if let Some(hook) = &self.installed {
            hook();
        }
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let newest = self.snapshots.newest();
        newest
            .map(SnapshotData::into_snapshot)
            .transpose()
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use crate::core::query;
    use crate::disk::testing::{apply, blank, membership, open};

    #[tokio::test]
    async fn the_ids_of_former_members_are_remembered_and_hashed() {
        let dir = tempfile::tempdir().unwrap();
        let mut stores = open(dir.path());
        let entries = vec![membership(1, 0, &[1, 2, 3]), blank(1, 1)];
        apply(&mut stores.machine, entries).await.unwrap();
        let hash = |stores: &crate::disk::open::Stores| query::applied(&*stores.state.current()).unwrap().state_hash;
        let before = hash(&stores);
        // Two changes in one batch, then a change without a new node.
        let entries = vec![membership(1, 2, &[2, 3, 7]), membership(1, 3, &[3, 4, 7])];
        apply(&mut stores.machine, entries).await.unwrap();
        let after = hash(&stores);
        assert_eq!(query::node_ids(&*stores.state.current()).unwrap(), [1, 2, 3, 4, 7]);
        assert_ne!(before, after);
        assert_eq!(stores.state.steps(), 2, "one for each batch");
        apply(&mut stores.machine, vec![membership(1, 4, &[3, 4])])
            .await
            .unwrap();
        assert_eq!(query::node_ids(&*stores.state.current()).unwrap(), [1, 2, 3, 4, 7]);
        assert_eq!(hash(&stores), after);
    }
}
