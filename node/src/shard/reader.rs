//! Reads of the replicated state on this node.

use std::sync::Arc;

use agentpost_raft_store::db::StateDb;

/// No quorum, or this node is not serving.
#[derive(Debug, thiserror::Error)]
#[error("not ready: {0}")]
pub struct NotReady(pub String);

/// Cheap to clone.
#[derive(Clone)]
pub struct Reader {}

impl Reader {
    /// The state, containing at least every write acknowledged before this call. Barriers are batched.
    pub async fn linearizable(&self) -> Result<Arc<StateDb>, NotReady> {
        unimplemented!()
    }

    /// The state as it is here.
    pub fn local(&self) -> Arc<StateDb> {
        unimplemented!()
    }
}
