//! Leader-only: lets what has aged be removed.
//!
//! apply removes nothing on its own, because it has no clock. Every [`PERIOD`] this worker asks the state
//! whether something is due and proposes sweeps, each of bounded work, until nothing is.

use std::time::Duration;

use agentpost_proto::command::{Operation, operation};
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::query;
use bytes::Bytes;
use prost::Message as _;

use super::LeaderHandles;
use crate::shard::leadership::Worker;
use crate::shard::proposer::ProposeError;
use crate::shard::wall_time::WallTime;

/// How far behind its time something may be removed.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Removes aged rows of one shard.
#[derive(Clone)]
pub struct Sweeper {
    /// What every worker of the leader uses.
    pub leader: LeaderHandles,
    /// What calendar dates are compared with.
    pub wall_time: WallTime,
}

impl Sweeper {
    /// Sweeps while this node leads.
    pub fn worker(self) -> Worker {
        super::periodic(PERIOD, move || {
            let sweeper = self.clone();
            async move { sweeper.round().await }
        })
    }

    async fn round(&self) {
        loop {
            let op = match self.next() {
                Ok(Some(op)) => op,
                Ok(None) => return,
                Err(error) => return tracing::error!(%error, "looking for aged rows failed"),
            };
            if let Err(error) = self.propose(op).await {
                // The next round tries again; if leadership is lost, somebody else does.
                return tracing::debug!(%error, "a sweep was not proposed");
            }
        }
    }

    /// What to propose next in a round.
    fn next(&self) -> Result<Option<operation::Op>, Fatal> {
        let (epoch, cluster_ms) = self.leader.cluster_time.now();
        if epoch == 0 {
            return Ok(None);
        }
        // What the sweep will be stamped with: by a later time nothing would be removed, again and again.
        let wall_ms = self.wall_time.stamp().unwrap_or(0);
        let due = query::due::sweep(&*self.leader.state.current(), cluster_ms, wall_ms)?;
        Ok(due.map(operation::Op::Sweep))
    }

    async fn propose(&self, op: operation::Op) -> Result<(), ProposeError> {
        let operation = Operation::internal(op);
        self.leader
            .proposer
            .propose_here(Bytes::from(operation.encode_to_vec()))
            .await
            .map(|_| ())
    }
}
