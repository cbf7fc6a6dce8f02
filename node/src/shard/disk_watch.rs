//! What ends a node although Raft is not told of it: a flush of the log that hangs, the durability floor, and work that
//! RocksDB does behind the state's writes.
//!
//! A failed append, flush or apply is Raft's own end, which `ThisNode::failed` sees. But a flush that never returns fails
//! nothing: such a leader would send heartbeats for ever and decide nothing. The floor is written when nobody waits. And a file of the state that cannot be
//! written is known to RocksDB alone, which may go on as if nothing were until its memory is full, and often does not
//! recover. A node that starts again knows where it stands, so it ends.

use std::sync::Arc;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogMetrics;
use agentpost_raft_store::disk::state::StateHandle;
use tokio::time::sleep;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// A flush that takes longer does not come back.
const FLUSH_MAX: Duration = Duration::from_secs(10);

/// Watches the disk of one shard.
pub struct DiskWatch {
    /// Tells whether it failed, and how long its flush has been running.
    pub log: Arc<LogMetrics>,
    /// Tells what went wrong in the background.
    pub state: StateHandle,
}

impl DiskWatch {
    /// Waits until the disk cannot be relied on; tells why.
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
