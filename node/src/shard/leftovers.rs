//! Decides when the files of a snapshot whose transfer broke off are removed: when no transfer goes on with them for
//! [`TIME`], or when the disk is nearly full.

use std::time::Duration;

use tokio::time::Instant;

/// A leader whose transfer broke off begins another within seconds, unless the network or a node is down.
const TIME: Duration = Duration::from_secs(3_600);

/// The files that were kept so far.
pub(super) struct Leftovers {
    count: u64,
    since: Instant,
    /// How many there were when they were removed last.
    removed: u64,
}

impl Leftovers {
    /// None yet.
    pub(super) fn new(now: Instant) -> Self {
        Leftovers {
            count: 0,
            since: now,
            removed: 0,
        }
    }

    /// Whether the files are to be removed now; it is then assumed that they are. `count` is how many were kept since the
    /// start.
    pub(super) fn are_due(&mut self, count: u64, is_full: bool, now: Instant) -> bool {
        if count != self.count {
            (self.count, self.since) = (count, now);
        }
        let due = count > self.removed && (is_full || now.duration_since(self.since) >= TIME);
        if due {
            self.removed = count;
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_removed_once_an_hour_after_the_last_of_them_or_when_the_disk_is_full() {
        let begin = Instant::now();
        let mut leftovers = Leftovers::new(begin);
        let mut are_due = |count, is_full, minutes: u32| {
            let now = begin + minutes * Duration::from_secs(60);
            leftovers.are_due(count, is_full, now)
        };
        assert!(!are_due(0, true, 100), "there are none");
        assert!(!are_due(3, false, 101));
        assert!(!are_due(4, false, 150), "another transfer broke off");
        assert!(!are_due(4, false, 209));
        assert!(are_due(4, false, 210));
        assert!(!are_due(4, true, 211), "they are gone");
        assert!(!are_due(5, false, 212));
        assert!(are_due(5, true, 213));
    }
}
