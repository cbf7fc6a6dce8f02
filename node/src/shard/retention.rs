//! Decides up to where the log is purged.
//!
//! A node that was away catches up from the log if it still has the entries, and needs a whole snapshot otherwise. So
//! the log is kept up to a size, which its space on disk is bounded by, and up to an age. Only entries that a snapshot
//! covers are purged, and none that a node with a snapshot on its way to it will need ([`Transfers`]).
//!
//! What is kept for such a node beyond the bounds takes at most half of the space that the disk has for it: when it
//! exceeds what is still free, the rest is purged, and the node gets another snapshot. There is no bound in time, because
//! a large state on a slow network takes long; a node without any progress is given up by [`Transfers`].

use std::collections::VecDeque;
use std::time::Duration;

use agentpost_raft_store::disk::log_store::LogSpan;
use tokio::time::Instant;

use crate::base::metrics::gauge;
use crate::base::metrics::retention::{self, HeldFor};
use crate::base::space::Space;
use crate::net::transfers::{Hold, Transfers};

/// How often it is said that the log is kept beyond its bounds, and how long it is normal.
const REMIND: Duration = Duration::from_secs(600);

/// Into how many parts the age of the log is divided.
const PARTS: u32 = 64;

/// How much of the log up to a snapshot is kept. What exceeds either is purged.
#[derive(Debug, Clone, Copy)]
pub struct LogRetention {
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
    pub kept: LogRetention,
    pub transfers: Transfers,
    pub space: Space,
    pub metrics: retention::Retention,
    pub ages: Ages,
    pub held: Held,
}

impl Retention {
    /// The last entry to purge, or `None` if nothing is to be purged. `matched` says what another node has of this log.
    pub fn purge_upto(&mut self, log: LogState, now: Instant, matched: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.metrics.kept_bytes.set(gauge(self.span.bytes_from(0)));
        self.metrics.set_held(self.held.now(now));
        self.ages.note(log.last?, now, self.kept.time);
        let too_long = match self.kept.bytes {
            0 => log.last,
            bytes => self.span.begin_of_last(bytes).and_then(|begin| begin.checked_sub(1)),
        };
        let too_old = self.ages.older(now, self.kept.time);
        let Some(wanted) = too_long
            .max(too_old)
            .zip(log.snapshot)
            .map(|(old, covered)| old.min(covered))
        else {
            self.held = Held::default();
            return None;
        };
        let upto = self.unless_held(wanted, log.last?, now, matched);
        (Some(upto) > log.purged).then_some(upto)
    }

    /// The last entry, up to `wanted`, that no node needs, or that is not kept any longer for those who need it.
    fn unless_held(&mut self, wanted: u64, last: u64, now: Instant, matched: impl Fn(u64) -> Option<u64>) -> u64 {
        let Some(hold) = self.transfers.hold(wanted, last, now, matched) else {
            self.held = Held::default();
            return wanted;
        };
        let within = self.span.bytes_from(wanted + 1);
        let bytes = self.span.bytes_from(hold.reached + 1).saturating_sub(within);
        let bytes_max = match self.space.refusal() {
            None => self.space.spare(),
            Some(_) => 0,
        };
        if self.held.takes_too_much(hold, bytes, bytes_max, now) {
            self.metrics.given_up.inc();
            self.transfers.give_up(hold.node);
            self.held = Held::default();
            return wanted;
        }
        hold.reached
    }
}

/// For how long, and by how much, the log has been kept beyond its bounds.
#[derive(Default)]
pub struct Held {
    /// The node that it is kept for, since when, and the bytes.
    of: Option<(Hold, Instant, u64)>,
    said: Option<Instant>,
}

impl Held {
    /// Notes that `bytes` are kept beyond the bounds. Returns whether that takes too much of the disk.
    fn takes_too_much(&mut self, hold: Hold, bytes: u64, bytes_max: u64, now: Instant) -> bool {
        let same = self.of.filter(|(before, ..)| before.node == hold.node);
        let since = same.map_or(now, |(_, since, _)| since);
        self.of = Some((hold, since, bytes));
        let Hold { node, reason, .. } = hold;
        if bytes > bytes_max {
            tracing::warn!(
                node,
                ?reason,
                bytes,
                bytes_max,
                "the log is no longer kept for a node that has not caught up, because it takes too much of the disk, so \
                 the node gets another snapshot; free space here, raise raft.snapshot_send_bytes_per_s, or send less mail"
            );
            return true;
        }
        let quiet_since = self.said.unwrap_or(since);
        if now.duration_since(quiet_since) >= REMIND {
            self.said = Some(now);
            let held = now.duration_since(since);
            tracing::warn!(
                node,
                ?reason,
                bytes,
                bytes_max,
                ?held,
                "the log is kept beyond its bounds for a node that has not caught up; check that node's disk and network, \
                 raise raft.snapshot_send_bytes_per_s, or remove the node from the cluster"
            );
        }
        false
    }

    /// Why the log is kept beyond its bounds, by how many bytes, and for how many seconds.
    fn now(&self, now: Instant) -> Option<(HeldFor, u64, u64)> {
        let (hold, since, bytes) = self.of?;
        Some((hold.reason, bytes, now.duration_since(since).as_secs()))
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
    fn a_hold_lasts_as_long_as_the_node_needs_unless_it_takes_half_of_the_free_disk() {
        let (begin, mut held) = (Instant::now(), Held::default());
        let at = |seconds| begin + Duration::from_secs(seconds);
        let hold = |node, reason| Hold {
            node,
            reason,
            reached: 7,
        };
        assert_eq!(held.now(at(0)), None);
        // As the log grows, less is free.
        for (second, gib) in (0..5_000).zip(0..) {
            let (bytes, free) = (gib << 20, (9_000 - gib) << 20);
            let too_much = held.takes_too_much(hold(3, HeldFor::Snapshot), bytes, free, at(second));
            assert_eq!(too_much, gib > 4_500, "{gib}");
            assert_eq!(held.now(at(second)), Some((HeldFor::Snapshot, bytes, second)));
        }
        assert!(!held.takes_too_much(hold(3, HeldFor::CatchUp), 1, 1, at(5_001)));
        assert_eq!(held.now(at(5_001)), Some((HeldFor::CatchUp, 1, 5_001)), "the same node");
        assert!(!held.takes_too_much(hold(2, HeldFor::CatchUp), 1, 1, at(5_002)));
        assert_eq!(held.now(at(5_003)), Some((HeldFor::CatchUp, 1, 1)), "another node");
    }

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
