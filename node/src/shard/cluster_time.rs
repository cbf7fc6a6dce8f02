//! Cluster time: the clock for ages. The leader of an epoch stamps it on commands.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::time::Instant;

/// Cluster time as this node may stamp it. It advances evenly, independent of wall clocks, and does not advance between
/// two leaders. Clones are cheap.
#[derive(Clone, Default)]
pub struct ClusterTime {
    epoch: Arc<RwLock<Option<Epoch>>>,
}

/// One leadership of this node.
#[derive(Clone, Copy)]
pub(super) struct Epoch {
    /// The log index of its `BeginEpoch`.
    pub(super) index: u64,
    /// The term of that leadership.
    pub(super) term: u64,
    /// Cluster time at that entry, in milliseconds.
    pub(super) start_ms: u64,
    pub(super) began: Instant,
}

impl ClusterTime {
    /// The epoch and the cluster time in milliseconds for a command; zeros while this node has no epoch.
    pub fn now(&self) -> (u64, u64) {
        let epoch = *self.epoch.read();
        epoch.map_or((0, 0), |epoch| {
            (epoch.index, epoch.start_ms + epoch.began.elapsed().as_millis() as u64)
        })
    }

    /// The term of the leadership that began `epoch`; `None` once that leadership has ended.
    pub(super) fn term_of(&self, epoch: u64) -> Option<u64> {
        let current = *self.epoch.read();
        current
            .filter(|current| current.index == epoch)
            .map(|current| current.term)
    }

    pub(super) fn set(&self, epoch: Option<Epoch>) {
        *self.epoch.write() = epoch;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn cluster_time_rises_from_where_its_epoch_began() {
        let time = ClusterTime::default();
        assert_eq!(time.now(), (0, 0));
        time.set(Some(Epoch {
            index: 7,
            term: 3,
            start_ms: 1_000,
            began: Instant::now(),
        }));
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(time.now(), (7, 1_250));
        assert_eq!((time.term_of(7), time.term_of(6)), (Some(3), None));
        time.set(None);
        assert_eq!(time.term_of(7), None);
        assert_eq!(time.now(), (0, 0));
    }
}
