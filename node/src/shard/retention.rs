//! Decides up to where the log is purged.
//!
//! A node that was away catches up from the log if it still has the entries, and needs a whole snapshot otherwise. So
//! the log is kept up to a size, which its space on disk is bounded by, and up to an age. Only entries that a snapshot
//! covers are purged, and none that a node with a snapshot on its way to it will need ([`Transfers`]), unless the disk
//! is nearly full.

use std::collections::VecDeque;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogSpan;
use tokio::time::Instant;

use crate::base::space::Space;
use crate::net::transfers::Transfers;

/// Into how many parts the age of the log is divided.
const PARTS: u32 = 64;

/// How much of the log up to a snapshot is kept. What exceeds either is purged.
#[derive(Debug, Clone, Copy)]
pub struct Kept {
    /// Bytes of the newest entries; 0 keeps none.
    pub bytes: u64,
    /// The age of an entry, counted from its arrival or from the start of this process.
    pub time: Duration,
}

/// What the log has.
#[derive(Debug, Clone, Copy, Default)]
pub struct LogState {
    /// The last entry that a snapshot covers.
    pub snapshot: Option<u64>,
    /// The last purged entry.
    pub purged: Option<u64>,
    /// The last entry.
    pub last: Option<u64>,
}

/// Decides what to purge of one log.
pub struct Retention {
    pub span: LogSpan,
    pub kept: Kept,
    pub transfers: Transfers,
    pub space: Space,
    pub ages: Ages,
}

impl Retention {
    /// The last entry to purge, or `None` if nothing is to be purged. `matched` says what another node has of this log.
    pub fn purge_upto(&mut self, log: LogState, now: Instant, matched: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.ages.note(log.last?, now, self.kept.time);
        let too_long = match self.kept.bytes {
            0 => log.last,
            bytes => self.span.begin_of_last(bytes).and_then(|begin| begin.checked_sub(1)),
        };
        let too_old = self.ages.older(now, self.kept.time);
        let wanted = too_long.max(too_old)?.min(log.snapshot?);
        let upto = match self.space.refusal() {
            None => self.transfers.purgeable(wanted, log.last?, now, matched),
            Some(_) => wanted,
        };
        (Some(upto) > log.purged).then_some(upto)
    }
}

/// When the log had which last entry.
#[derive(Default)]
pub struct Ages(VecDeque<(Instant, u64)>);

impl Ages {
    fn note(&mut self, last: u64, now: Instant, time: Duration) {
        let recent = |noted: &(Instant, u64)| now.duration_since(noted.0) < time / PARTS;
        if !self.0.back().is_some_and(recent) {
            self.0.push_back((now, last));
        }
    }

    /// The last entry that is older than `time`.
    fn older(&mut self, now: Instant, time: Duration) -> Option<u64> {
        let older = |noted: &(Instant, u64)| now.duration_since(noted.0) >= time;
        while self.0.get(1).is_some_and(older) {
            self.0.pop_front();
        }
        self.0.front().filter(|noted| older(noted)).map(|noted| noted.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_age_and_the_memory_of_it_is_bounded() {
        let (time, begin) = (Duration::from_secs(640), Instant::now());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let mut ages = Ages::default();
        for second in 0..10_000u64 {
            ages.note(second * 3, at(second), time);
            let older = ages.older(at(second), time);
            match second {
                0..640 => assert_eq!(older, None),
                _ => assert!(
                    (second.saturating_sub(660)..=second - 640).contains(&(older.unwrap_or(0) / 3)),
                    "{second}"
                ),
            }
            assert!(ages.0.len() <= PARTS as usize + 2);
        }
    }
}
