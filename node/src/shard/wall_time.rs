//! Wall time as this node stamps it: the time that a majority of the voters' clocks has reached, read by
//! [`super::timekeeper`].
//!
//! A reading is stored as the value of the clock when this process started, and advances with monotonic time. Until a
//! majority of clocks is known, this node stamps no wall time and replicated wall time does not advance.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::time::Instant;

use crate::base::clock::Clock;

/// A clock that diverges further from those of the other voters is logged, and nothing is signed with its time.
pub const CLOCK_DIVERGENCE_MS_MAX: u64 = 5_000;

/// Calendar time on this node. Clones are cheap.
#[derive(Clone)]
pub struct WallTime {
    clock: Clock,
    began: Instant,
    /// Majority time at the start of this process, in Unix milliseconds.
    began_ms: Arc<RwLock<Option<i64>>>,
}

impl WallTime {
    /// Unknown yet; `clock` is this node's.
    pub fn new(clock: Clock) -> Self {
        WallTime {
            began: clock.now(),
            clock,
            began_ms: Arc::default(),
        }
    }

    /// Wall time for a command, in Unix milliseconds; `None` while it is unknown.
    pub fn stamp(&self) -> Option<u64> {
        let began_ms = *self.began_ms.read();
        began_ms.map(|began_ms| u64::try_from(began_ms.saturating_add(self.elapsed_ms())).unwrap_or(0))
    }

    /// Wall time in Unix milliseconds; this node's own clock while the voters' clocks are unknown.
    pub fn now_ms(&self) -> u64 {
        self.stamp().unwrap_or_else(|| self.clock.wall_ms())
    }

    /// This node's own clock, limited to [`CLOCK_DIVERGENCE_MS_MAX`] from majority time.
    pub fn near_ms(&self) -> u64 {
        let own_ms = self.clock.wall_ms();
        self.stamp().map_or(own_ms, |ms| {
            own_ms.clamp(
                ms.saturating_sub(CLOCK_DIVERGENCE_MS_MAX),
                ms.saturating_add(CLOCK_DIVERGENCE_MS_MAX),
            )
        })
    }

    /// This node's own clock, for monotonic time.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    pub(super) fn set(&self, began_ms: Option<i64>) {
        *self.began_ms.write() = began_ms;
    }

    pub(super) fn elapsed_ms(&self) -> i64 {
        signed(self.clock.now().duration_since(self.began).as_millis() as u64)
    }

    /// The value at the start of this process of a clock that showed `wall_ms` after `elapsed_ms`.
    pub(super) fn reading(wall_ms: u64, elapsed_ms: i64) -> i64 {
        signed(wall_ms).saturating_sub(elapsed_ms)
    }

    pub(super) fn own_reading(&self) -> i64 {
        Self::reading(self.clock.wall_ms(), self.elapsed_ms())
    }
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAYS: i64 = 2 * 86_400_000;

    #[tokio::test(start_paused = true)]
    async fn wall_time_goes_on_with_monotonic_time_whatever_the_own_clock_does() {
        let time = WallTime::new(Clock::starting_at(1_000_000));
        assert_eq!(
            (time.stamp(), time.now_ms(), time.near_ms()),
            (None, 1_000_000, 1_000_000)
        );
        tokio::time::advance(Duration::from_millis(500)).await;
        assert_eq!(time.own_reading(), 1_000_000);
        time.set(Some(1_000_100));
        assert_eq!(
            (time.stamp(), time.now_ms(), time.near_ms()),
            (Some(1_000_600), 1_000_600, 1_000_500)
        );
        time.clock().shift(DAYS);
        tokio::time::advance(Duration::from_millis(250)).await;
        assert_eq!(
            (time.stamp(), time.now_ms(), time.near_ms()),
            (Some(1_000_850), 1_000_850, 1_005_850)
        );
        time.clock().shift(-2 * DAYS);
        assert_eq!((time.stamp(), time.near_ms()), (Some(1_000_850), 995_850));
        time.set(Some(i64::MIN));
        assert_eq!(time.stamp(), Some(0));
        time.set(Some(i64::MAX));
        assert_eq!(time.stamp(), Some(i64::MAX as u64));
    }
}
