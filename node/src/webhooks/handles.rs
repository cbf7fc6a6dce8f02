//! What the workers of webhooks share.

use std::sync::Arc;

use agentpost_raft_store::db::StateHandle;

use super::calls::Calls;
use crate::base::metrics::Metrics;
use crate::base::secrets::Secrets;
use crate::shard::cluster_time::ClusterTime;
use crate::shard::proposer::Proposer;
use crate::shard::wakeups::Wakeups;

/// What the leader's workers of this folder share. Cheap to clone.
#[derive(Clone)]
pub struct Handles {
    /// What is to be done.
    pub state: StateHandle,
    /// Where it is claimed and recorded.
    pub proposer: Proposer,
    /// The epoch, and what is due when.
    pub cluster_time: ClusterTime,
    /// Hints.
    pub wakeups: Wakeups,
    /// The calls of this node.
    pub calls: Calls,
    /// What calls are signed with.
    pub secrets: Arc<Secrets>,
    /// Counts.
    pub metrics: Metrics,
}
