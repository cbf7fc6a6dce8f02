//! Reads this node's whole state again after a start and then periodically; `raft-store/src/disk/scrub.rs` has the
//! details. Damage ends the node through `RunningNode::failed`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost_raft_store::disk::scrub::Scrub;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Reads the state of one shard again.
pub struct Scrubber {
    pub scrub: Scrub,
    /// Pause between two readings.
    pub interval: Duration,
}

/// Ends a reading also when the task that waits for it is dropped.
#[derive(Default)]
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Scrubber {
    /// Runs until `shutdown`, which also ends a reading in progress.
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
        let stop = SetOnDrop::default();
        let (scrub, stopping) = (self.scrub.clone(), Arc::clone(&stop.0));
        let mut reading = tokio::task::spawn_blocking(move || scrub.run(&stopping));
        let read = tokio::select! {
            read = &mut reading => read,
            () = shutdown.cancelled() => {
                drop(stop);
                reading.await
            }
        };
        match read {
            Ok(Ok(bytes)) => tracing::debug!(bytes, "the state and the snapshot were read again; no damage"),
            Ok(Err(error)) => {
                tracing::warn!(%error, "reading the state again failed; it will be tried again later; check the disk")
            }
            Err(error) => tracing::error!(%error, "reading the state again panicked; please report this"),
        }
    }
}
