//! Leader-only: removes aged rows.
//!
//! Apply has no clock, so it removes nothing on its own. Every [`PERIOD`] this worker asks the state whether rows are
//! due and proposes sweeps of bounded work until none are.

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

/// Interval of the rounds: a row may outlive its time by this much.
pub const PERIOD: Duration = Duration::from_secs(10);

/// Removes aged rows of one shard.
#[derive(Clone)]
pub struct Sweeper {
    pub leader: LeaderHandles,
    /// The clock for calendar dates.
    pub wall_time: WallTime,
}

impl Sweeper {
    /// Sweeps while this node leads.
    pub fn worker(self) -> Worker {
        super::periodic("sweeper", PERIOD, move || {
            let sweeper = self.clone();
            async move { sweeper.round().await }
        })
    }

    async fn round(&self) {
        loop {
            let op = match self.next() {
                Ok(Some(op)) => op,
                Ok(None) => return,
                Err(error) => {
                    return tracing::error!(%error, "looking for aged rows failed; the next round tries again");
                }
            };
            if let Err(error) = self.propose(op).await {
                // The next round tries again; if leadership is lost, the new leader does.
                return tracing::debug!(%error, "a sweep was not proposed; the next round tries again");
            }
        }
    }

    /// The next sweep of a round, if rows are due.
    fn next(&self) -> Result<Option<operation::Op>, Fatal> {
        let (epoch, cluster_ms) = self.leader.cluster_time.now();
        if epoch == 0 {
            return Ok(None);
        }
        // The time that the sweep will be stamped with. Asking with a later time would find rows that the sweep then
        // does not remove, again and again.
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
