//! Reads this node's whole state again, right after a start and then every so often: `raft-store/src/disk/scrub.rs` says how.
//! Damage that it finds ends the node through `RunningNode::failed`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost_raft_store::disk::scrub::Scrub;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Reads one shard of this node again.
pub struct Scrubber {
    /// Reads.
    pub scrub: Scrub,
    /// From the end of one reading to the next.
    pub interval: Duration,
}

impl Scrubber {
    /// Runs until `shutdown`; a reading that is under way then ends at once.
    pub async fn run(self, shutdown: CancellationToken) {
        while !shutdown.is_cancelled() {
            self.once(&shutdown).await;
            let slept = shutdown.run_until_cancelled(sleep(self.interval)).await;
            if slept.is_none() {
                return;
            }
        }
    }

    async fn once(&self, shutdown: &CancellationToken) {
        let stop = Arc::new(AtomicBool::new(false));
        let (scrub, stopping) = (self.scrub.clone(), stop.clone());
        let mut reading = tokio::task::spawn_blocking(move || scrub.run(&stopping));
        let read = tokio::select! {
            read = &mut reading => read,
            () = shutdown.cancelled() => {
                stop.store(true, Ordering::Relaxed);
                reading.await
            }
        };
        match read {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "everything was read again"),
            Ok(Err(error)) => tracing::warn!(%error, "reading everything again failed; tried again later"),
            Err(error) => tracing::error!(%error, "reading everything again panicked"),
        }
    }
}
