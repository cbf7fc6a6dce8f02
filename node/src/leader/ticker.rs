//! Leader-only: advances cluster time while nobody writes.
//!
//! Cluster time advances only by commands, so in a quiet cluster a retry, a lease or an idempotency key would not age,
//! and a new leader would continue where the last command stood. When a second has passed without a command and some
//! row in the state ages, this worker proposes one `Tick`.

use std::time::Duration;

use agentpost_proto::command::Tick;
use agentpost_raft_store::core::kv::Fatal;
use agentpost_raft_store::core::query;
use tokio::time::sleep;

use super::LeaderHandles;
use crate::shard::leadership::Worker;

/// The maximal interval between two commands while rows in the state age.
const TICK_MS: u64 = 1_000;

/// Ticks for one shard.
#[derive(Clone)]
pub struct Ticker(pub LeaderHandles);

impl Ticker {
    /// Ticks while this node leads.
    pub fn worker(self) -> Worker {
        super::worker("ticker", move || self.clone().run())
    }

    async fn run(self) {
        let (epoch, _) = self.0.cluster_time.now();
        loop {
            let wait_ms = match self.quiet_ms() {
                Ok(quiet_ms) if quiet_ms < TICK_MS => TICK_MS - quiet_ms,
                Ok(_) => {
                    self.tick(epoch).await;
                    TICK_MS
                }
                Err(error) => {
                    tracing::error!(%error, "reading cluster time failed; the next round tries again");
                    TICK_MS
                }
            };
            sleep(Duration::from_millis(wait_ms)).await;
        }
    }

    /// How long ago the last command advanced cluster time.
    fn quiet_ms(&self) -> Result<u64, Fatal> {
        let applied = query::applied(&self.0.reader.local())?;
        Ok(self.0.cluster_time.now().1.saturating_sub(applied.cluster_ms))
    }

    async fn tick(&self, epoch: u64) {
        match self.0.read(query::due::ages).await {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                return tracing::error!(%error, "looking for rows that age failed; the next round tries again");
            }
        }
        if let Err(error) = self.0.proposer.propose_in(epoch, Tick {}).await {
            // The next round tries again; if leadership is lost, the new leader does.
            tracing::debug!(%error, "a tick was not proposed; trying again");
        }
    }
}
