//! Keeps what repeats from filling the log: a peer with another secret knocks fifteen times a second, for days.
//!
//! The first line about something is written at once, the next one after a minute, and the gap doubles up to an hour.
//! Each says how many were left out before it. What was quiet for longer than the gap begins anew.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The first and the longest gap between two lines.
const GAP: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(3_600));
/// The most things that lines are about at a time, since strangers decide about some. Further ones are not logged.
const KEYS_MAX: usize = 1_024;

/// What was logged about each `K`.
pub struct Repeats<K>(Mutex<HashMap<K, Line>>);

struct Line {
    /// When it happened last.
    last: Instant,
    next: Instant,
    gap: Duration,
    left_out: u64,
}

impl<K> Default for Repeats<K> {
    fn default() -> Self {
        Repeats(Mutex::default())
    }
}

impl<K: Eq + Hash> Repeats<K> {
    /// Notes that it happened again. Returns how many lines were left out before this one, or `None` if this one is left
    /// out too.
    pub fn due(&self, key: K) -> Option<u64> {
        let now = Instant::now();
        let mut lines = self.0.lock();
        if let Some(line) = lines.get_mut(&key) {
            return line.due(now);
        }
        if lines.len() >= KEYS_MAX {
            lines.retain(|_, line| !line.is_quiet(now));
        }
        if lines.len() >= KEYS_MAX {
            return None;
        }
        let line = Line {
            last: now,
            next: now + GAP.0,
            gap: GAP.0,
            left_out: 0,
        };
        lines.insert(key, line);
        Some(0)
    }
}

impl Line {
    fn is_quiet(&self, now: Instant) -> bool {
        now.duration_since(self.last) > self.gap
    }

    fn due(&mut self, now: Instant) -> Option<u64> {
        let quiet = self.is_quiet(now);
        self.last = now;
        if now < self.next {
            self.left_out += 1;
            return None;
        }
        self.gap = match quiet {
            true => GAP.0,
            false => (self.gap * 2).min(GAP.1),
        };
        self.next = now + self.gap;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_day_of_knocking_is_some_thirty_lines_and_none_is_lost_in_the_count() {
        let repeats = Repeats::default();
        let (mut lines, mut counted) = (0, 0);
        for _ in 0..24 * 3_600 {
            for _ in 0..15 {
                if let Some(left_out) = repeats.due("knock") {
                    lines += 1;
                    counted += left_out + 1;
                }
            }
            advance(Duration::from_secs(1)).await;
        }
        assert!((24..=32).contains(&lines), "{lines}");
        assert!(counted > 23 * 3_600 * 15, "{counted}");
        assert_eq!(repeats.due("another"), Some(0), "at once");
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_quiet_is_said_at_once_again() {
        let repeats = Repeats::default();
        assert_eq!(repeats.due(1), Some(0));
        for second in 1..200 {
            advance(Duration::from_secs(1)).await;
            assert_eq!(repeats.due(1).is_some(), second == 60 || second == 180, "{second}");
        }
        advance(GAP.1 + Duration::from_secs(1)).await;
        assert_eq!(repeats.due(1), Some(19));
        advance(GAP.0).await;
        assert_eq!(repeats.due(1), Some(0), "the gap is short again");
    }

    #[tokio::test(start_paused = true)]
    async fn strangers_cannot_fill_the_memory() {
        let repeats = Repeats::default();
        for stranger in 0..KEYS_MAX {
            assert_eq!(repeats.due(stranger), Some(0));
        }
        assert_eq!(repeats.due(KEYS_MAX), None);
        advance(GAP.0 + Duration::from_secs(1)).await;
        assert_eq!(repeats.due(KEYS_MAX), Some(0));
        assert_eq!(repeats.0.lock().len(), 1);
    }
}
