//! Whether this node can be sure that it still leads.
//!
//! A leader learns late that it was replaced. But while a quorum has answered it within its lease, no other node can
//! have been elected, because a follower votes for no other node until the lease it answered has ended. There are two
//! exceptions: a transfer, which this node begins itself, and an election that a majority of the voters begins because
//! this node's peer port refuses their connections ([`leader_loss`](super::leader_loss)). Code that acts on the outside
//! world checks this first.

use std::time::Duration;

use agentpost_raft_store::disk::types::TypeConfig;
use openraft::Instant as _;
use openraft::async_runtime::watch::WatchReceiver as _;
use openraft::metrics::{RaftDataMetrics, RaftServerMetrics};
use openraft::type_config::alias::WatchReceiverOf;

use super::Raft;

/// Knows when a quorum last answered. Clones are cheap.
#[derive(Clone)]
pub struct Quorum {
    here: u64,
    lease: Duration,
    data: WatchReceiverOf<TypeConfig, RaftDataMetrics<TypeConfig>>,
    server: WatchReceiverOf<TypeConfig, RaftServerMetrics<TypeConfig>>,
}

impl Quorum {
    /// Reads `raft`'s metrics.
    pub fn new(raft: &Raft) -> Self {
        Quorum {
            here: *raft.node_id(),
            lease: Duration::from_millis(raft.config().election_timeout_max),
            data: raft.data_metrics(),
            server: raft.server_metrics(),
        }
    }

    /// Whether this node leads and a quorum has answered it within its lease.
    pub fn is_fresh(&self) -> bool {
        {
            let server = self.server.borrow_watched();
            if server.current_leader != Some(self.here) {
                return false;
            }
            let mut voters = server.membership_config.membership().voter_ids();
            if voters.all(|voter| voter == self.here) {
                return true;
            }
        }
        let data = self.data.borrow_watched();
        data.last_quorum_acked.is_some_and(|at| at.elapsed() < self.lease)
    }
}
