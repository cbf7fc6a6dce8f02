//! Leader-only: carries cluster time forward while nobody writes.
//!
//! Cluster time is what commands say it is, so in a quiet cluster a retry, a lease or an idempotency key would
//! not age, and a new leader would begin where the last command stood. When a second has passed without a
//! command and anything in the state ages, one `Tick` is proposed.

use std::sync::Arc;
use std::time::Duration;

use agentpost_proto::command::{Tick, operation};
use agentpost_proto::limits::TICK_MS;
use agentpost_raft_store::db::StateHandle;
use agentpost_raft_store::kv::Fatal;
use agentpost_raft_store::query;
use futures::FutureExt as _;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::shard::cluster_time::ClusterTime;
use crate::shard::leadership::Worker;
use crate::shard::proposer::Proposer;

/// Ticks for one shard.
#[derive(Clone)]
pub struct Ticker {
    /// Tells what time its last command brought, and whether anything ages.
    pub state: StateHandle,
    /// Where ticks are proposed.
    pub proposer: Proposer,
    /// What the time is.
    pub cluster_time: ClusterTime,
}

impl Ticker {
    /// For the shard, which runs it while this node leads.
    pub fn worker(self) -> Worker {
        Arc::new(move |shutdown: CancellationToken| {
            let ticker = self.clone();
            async move { shutdown.run_until_cancelled(ticker.run()).await.unwrap_or(()) }.boxed()
        })
    }

    async fn run(self) {
        let (epoch, _) = self.cluster_time.now();
        loop {
            let wait_ms = match self.quiet_ms() {
                Ok(quiet_ms) if quiet_ms < TICK_MS => TICK_MS - quiet_ms,
                Ok(_) => {
                    self.tick(epoch).await;
                    TICK_MS
                }
                Err(error) => {
                    tracing::error!(%error, "reading cluster time failed");
                    TICK_MS
                }
            };
            sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// For how long no command has brought time.
    fn quiet_ms(&self) -> Result<u64, Fatal> {
        let applied = query::applied(&*self.state.current())?;
        Ok(self.cluster_time.now().1.saturating_sub(applied.cluster_ms))
    }

    async fn tick(&self, epoch: u64) {
        match query::ages(&*self.state.current()) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return tracing::error!(%error, "looking for what ages failed"),
        }
        let op = operation::Op::Tick(Tick {});
        if let Err(error) = self.proposer.propose_in(epoch, op).await {
            // The next second tries again; if leadership is lost, somebody else does.
            tracing::debug!(%error, "no tick");
        }
    }
}
