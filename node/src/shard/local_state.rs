//! The replicated state as this node has it, for everything above this room.
//!
//! A caller looks single rows up at once. Such a row is nearly always in memory, or the filters say that it is nowhere;
//! that takes a few microseconds, and the way to another thread and back takes fifteen. Everything else (ranges, and
//! messages with their bodies) it can only hand to the [`ReadPool`], as a closure. The types see to that: a
//! [`LocalState`] has no ranges.

use std::sync::Arc;

use agentpost_raft_store::core::kv::{Fatal, Kv, Lookup};
use agentpost_raft_store::disk::state::StateDb;
use bytes::Bytes;

use super::read_pool::{ReadPool, ReadRefused, Share};

/// A state. Clones are cheap. Hold it only for one request, because an installed snapshot replaces it.
#[derive(Clone)]
pub struct LocalState {
    db: Arc<StateDb>,
    pool: ReadPool,
}

impl LocalState {
    pub(super) fn new(db: Arc<StateDb>, pool: ReadPool) -> Self {
        LocalState { db, pool }
    }

    /// Runs `read` on the pool, on behalf of `share`. It is refused if too many reads wait.
    pub async fn read<T, E>(
        &self,
        share: Share,
        read: impl FnOnce(&StateDb) -> Result<T, E> + Send + 'static,
    ) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<ReadRefused> + Send + 'static,
    {
        let db = Arc::clone(&self.db);
        self.pool.run(share, move || read(&db)).await?
    }

    /// Runs `read` on the pool if it need not wait; `None` if it would.
    pub(super) async fn read_now<T: Send + 'static>(
        &self,
        share: Share,
        read: impl FnOnce(&StateDb) -> T + Send + 'static,
    ) -> Option<T> {
        let db = Arc::clone(&self.db);
        self.pool.run_now(share, move || read(&db)).await
    }

    /// The state at this moment, unchanged by later writes, for several looks that must agree. It must be short-lived.
    pub fn frozen(&self) -> impl Lookup + '_ {
        Frozen(self.db.frozen())
    }
}

/// A state at one moment, row by row.
struct Frozen<'a>(Box<dyn Kv + 'a>);

impl Lookup for Frozen<'_> {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.0.get(key)
    }
}

impl Lookup for LocalState {
    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Fatal> {
        self.db.get(key)
    }
}
