//! Bounds what a restart has to do and how long the log grows.
//!
//! The state is written without a log of its own (the Raft log is it), so a restart applies again what was
//! not flushed: it is flushed every [`FLUSH_PERIOD`]. And the Raft log may shrink only behind a snapshot, so
//! one is taken when the log has grown enough or the last is old. The times are jittered: nodes that work at
//! the same moment would be slow at the same moment.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use agentpost_raft_store::disk::state::StateHandle;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::Raft;
use crate::base::clock::IdSource;

/// What a crash leaves to be applied again.
const FLUSH_PERIOD: Duration = Duration::from_secs(60);
/// How often the log is looked at.
const LOOK_MS: (u64, u64) = (4_000, 6_000);

/// When a snapshot is due.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// The log grew by this much since the last one.
    pub log_bytes: u64,
    /// Or this time has passed since, and anything was applied.
    pub interval: Duration,
}

/// Keeps one shard of this node.
pub struct Keeper {
    /// Told to take snapshots.
    pub raft: Raft,
    /// Flushed.
    pub state: StateHandle,
    /// Tells how the log grows.
    pub log: Arc<LogMetrics>,
    /// When a snapshot is due.
    pub policy: Policy,
    /// For jitter.
    pub ids: IdSource,
}

impl Keeper {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled_owned(self.keep()).await;
    }

    async fn keep(self) {
        let mut flushed = Instant::now();
        let mut snapped = Instant::now();
        let mut snapped_bytes = self.log.bytes();
        let mut interval = self.jittered_interval();
        loop {
            sleep(Duration::from_millis(self.ids.jitter_ms(LOOK_MS.0, LOOK_MS.1))).await;
            if flushed.elapsed() >= FLUSH_PERIOD {
                self.flush().await;
                flushed = Instant::now();
            }
            let grown = self.log.bytes() - snapped_bytes >= self.policy.log_bytes;
            let old = snapped.elapsed() >= interval;
            if !(grown || old) {
                continue;
            }
            let metrics = self.raft.metrics();
            let nothing_new = {
                let metrics = metrics.borrow_watched();
                metrics.last_applied <= metrics.snapshot
            };
            if !nothing_new && let Err(error) = self.raft.trigger().snapshot().await {
                return tracing::debug!(%error, "no more snapshots");
            }
            snapped = Instant::now();
            snapped_bytes = self.log.bytes();
            interval = self.jittered_interval();
        }
    }

    /// Up to a fifth longer than configured.
    fn jittered_interval(&self) -> Duration {
        let millis = self.policy.interval.as_millis() as u64;
        Duration::from_millis(self.ids.jitter_ms(millis, millis + millis / 5))
    }

    async fn flush(&self) {
        let state = self.state.clone();
        match tokio::task::spawn_blocking(move || state.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "flushing the state failed"),
            Err(error) => tracing::error!(%error, "flushing the state panicked"),
        }
    }
}
