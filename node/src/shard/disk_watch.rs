//! Disk failures that Raft does not report: a flush of the log that hangs, a failed write of the durability floor, and
//! errors of RocksDB's background work on the state.
//!
//! Raft itself ends after a failed append, flush or apply; `ThisNode::failed` sees that. But a flush that never returns
//! fails nothing: such a leader would send heartbeats forever and commit nothing. The floor is written in the
//! background. And only RocksDB knows that a file of the state cannot be written; it may continue until its memory is
//! full, and often does not recover. In each case the node ends, because a restart finds out what is on its disk.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use agentpost_raft_store::disk::state::StateHandle;
use tokio::time::sleep;

/// Interval between two checks.
const LOOK: Duration = Duration::from_millis(250);
/// A flush that takes longer counts as hanging.
const FLUSH_MAX: Duration = Duration::from_secs(10);

/// Watches the disk of one shard.
pub struct DiskWatch {
    /// Reports failures and the duration of the current flush.
    pub log: Arc<LogMetrics>,
    /// Reports errors of background work.
    pub state: StateHandle,
}

impl DiskWatch {
    /// Waits until the disk has failed; returns the reason.
    pub async fn failed(&self) -> String {
        loop {
            if let Some(error) = self.log.failed() {
                return format!("the log's disk fails: {error}");
            }
            if let Some(running) = self.log.running_for().filter(|running| *running > FLUSH_MAX) {
                return format!("the log's disk hangs: a flush has been running for {running:.1?}");
            }
            let errors = self.state.background_errors();
            if errors > 0 {
                return format!(
                    "the state's disk fails: RocksDB counts {errors} errors in the background; see its LOG"
                );
            }
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use agentpost_raft_store::disk::open;
    use agentpost_raft_store::disk::options::Options;
    use bytes::Bytes;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_state_that_cannot_be_flushed_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let stores = open::shard(dir.path(), Options::default()).unwrap();
        let disk = DiskWatch {
            log: stores.log.metrics(),
            state: stores.state.clone(),
        };
        let row = || vec![(Bytes::from_static(b"key"), Some(Bytes::from_static(b"value")))];
        stores.state.current().write(row()).unwrap();
        stores.state.flush().unwrap();
        assert!(tokio::time::timeout(LOOK * 8, disk.failed()).await.is_err());

        stores.state.current().write(row()).unwrap();
        std::fs::remove_dir_all(dir.path().join("shards/0/state")).unwrap();
        assert!(stores.state.flush().is_err());
        assert!(disk.failed().await.contains("the state's disk fails"));
    }
}
