//! Bounds the time of a restart and the size of the log.
//!
//! The state database has no WAL; the Raft log serves as one. A restart applies again whatever was not flushed, so the
//! state is flushed every [`FLUSH_PERIOD`]. The Raft log can be purged only up to a snapshot, so a snapshot is taken
//! when the log has grown enough or the last snapshot is old. The times have jitter, so that the nodes of a cluster do
//! not slow down at the same moment. `retention.rs` decides what is purged; openraft purges nothing on its own, except
//! what an installed snapshot replaces.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use agentpost_raft_store::disk::snapshot::Snapshots;
use agentpost_raft_store::disk::state::StateHandle;
use openraft::async_runtime::watch::WatchReceiver as _;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::leftovers::Leftovers;
use super::retention::{LogState, Retention};
use super::{Ended, Raft};
use crate::base::clock::IdSource;

/// Interval of flushes: a crash leaves at most this much to apply again.
const FLUSH_PERIOD: Duration = Duration::from_secs(60);
/// How often the size of the log is checked.
const LOOK_MS: (u64, u64) = (4_000, 6_000);
/// How soon the log is purged after a snapshot.
const PURGE_PERIOD: Duration = Duration::from_millis(500);

/// When a snapshot is due.
#[derive(Debug, Clone, Copy)]
pub struct Policy {
    /// Take one when the log has grown by this many bytes since the last one.
    pub log_bytes: u64,
    /// Take one after this time, if anything was applied since the last one.
    pub interval: Duration,
}

/// Flushes and takes snapshots of one shard.
pub struct Keeper {
    pub raft: Raft,
    pub state: StateHandle,
    pub snapshots: Arc<Snapshots>,
    pub log: Arc<LogMetrics>,
    /// When a snapshot is due.
    pub policy: Policy,
    pub retention: Retention,
    pub ids: IdSource,
}

impl Keeper {
    /// Runs until `shutdown`.
    pub async fn run(self, shutdown: CancellationToken) {
        shutdown.run_until_cancelled_owned(self.keep()).await;
    }

    async fn keep(mut self) {
        let mut flushed = Instant::now();
        let mut snapped = Instant::now();
        let mut snapped_bytes = self.log.bytes();
        let mut interval = self.jittered_interval();
        let mut leftovers = Leftovers::new(Instant::now());
        loop {
            let pause = Duration::from_millis(self.ids.jitter_ms(LOOK_MS.0, LOOK_MS.1));
            if self.purge_for(pause).await.is_err() {
                return tracing::debug!("Raft has ended; nothing is purged any more");
            }
            self.remove(&mut leftovers).await;
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
                return tracing::debug!(%error, "Raft has ended; no more snapshots are taken");
            }
            snapped = Instant::now();
            snapped_bytes = self.log.bytes();
            interval = self.jittered_interval();
        }
    }

    /// Purges the log whenever there is something to purge, for a while.
    async fn purge_for(&mut self, time: Duration) -> Result<(), Ended> {
        let begin = Instant::now();
        while begin.elapsed() < time {
            sleep(PURGE_PERIOD).await;
            if let Some(upto) = self.purge_upto() {
                self.raft.trigger().purge_log(upto).await.map_err(|_| Ended)?;
            }
        }
        Ok(())
    }

    fn purge_upto(&mut self) -> Option<u64> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let log = LogState {
            snapshot: metrics.snapshot.map(|id| id.index),
            purged: metrics.purged.map(|id| id.index),
            last: metrics.last_log_index,
        };
        let replication = metrics.replication.as_ref();
        if replication.is_none() {
            self.retention.transfers.forget();
        }
        let matched = |node: u64| (*replication?.get(&node)?).map(|id| id.index);
        self.retention.purge_upto(log, Instant::now(), matched)
    }

    /// Removes the files of a snapshot whose transfer broke off, if no transfer is likely to go on with them.
    async fn remove(&self, leftovers: &mut Leftovers) {
        let is_full = self.retention.space.refusal().is_some();
        if !leftovers.are_due(self.snapshots.files_kept(), is_full, Instant::now()) {
            return;
        }
        let snapshots = self.snapshots.clone();
        match tokio::task::spawn_blocking(move || snapshots.forget_kept()).await {
            Ok(Ok(())) => tracing::info!(
                is_full,
                "the files of a snapshot whose transfer broke off were removed; the next transfer sends all of them"
            ),
            Ok(Err(error)) => tracing::warn!(%error, "removing received files failed; the next start removes them"),
            Err(error) => tracing::error!(%error, "removing received files panicked; please report this"),
        }
    }

    /// The configured time plus a random part of up to a fifth.
    fn jittered_interval(&self) -> Duration {
        let millis = self.policy.interval.as_millis() as u64;
        Duration::from_millis(self.ids.jitter_ms(millis, millis + millis / 5))
    }

    async fn flush(&self) {
        let state = self.state.clone();
        match tokio::task::spawn_blocking(move || state.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "flushing the state failed; trying again; check the disk"),
            Err(error) => tracing::error!(%error, "flushing the state panicked; trying again; please report this"),
        }
    }
}
