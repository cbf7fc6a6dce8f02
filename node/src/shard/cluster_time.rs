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
            let elapsed_ms = epoch.began.elapsed().as_millis() as u64;
            (epoch.index, epoch.start_ms + elapsed_ms * speed())
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

/// How many times as fast as the machine's clock cluster time advances while this node leads.
#[cfg(not(feature = "failpoints"))]
#[inline(always)]
fn speed() -> u64 {
    1
}

/// How many times as fast as the machine's clock cluster time advances while this node leads: 1, unless
/// `AGENTPOST_CLUSTER_TIME_SPEED` in the environment says otherwise. A test sees a cluster age by days within minutes.
#[cfg(feature = "failpoints")]
fn speed() -> u64 {
    static SPEED: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *SPEED.get_or_init(|| std::env::var("AGENTPOST_CLUSTER_TIME_SPEED").map_or(1, |text| faster(&text)))
}

/// The factor that a test sets.
#[cfg(feature = "failpoints")]
fn faster(text: &str) -> u64 {
    let parsed = text.parse().ok().filter(|speed| *speed > 0);
    parsed.unwrap_or_else(|| panic!("AGENTPOST_CLUSTER_TIME_SPEED takes a whole number of at least 1, not '{text}'"))
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
    #[cfg(feature = "failpoints")]
    #[test]
    fn a_speed_is_a_whole_number_of_at_least_one() {
        assert_eq!(faster("1440"), 1440);
        for bad in ["", "0", "-1", "1.5", "fast"] {
            assert!(std::panic::catch_unwind(|| faster(bad)).is_err(), "{bad}");
        }
    }
}
