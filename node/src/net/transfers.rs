//! The snapshots on their way to other nodes, and what those nodes still need of the log.
//!
//! A node that has installed a snapshot goes on with the entry after it. If the log was purged beyond that entry
//! meanwhile, the node gets the next snapshot, and a node whose transfer takes longer than the interval between two
//! snapshots never becomes current. So the leader's log is held from the snapshot on while it is sent, and then from what
//! the node has reached on, until it has caught up or makes no progress for [`GRACE`]. `shard/retention.rs` gives up
//! earlier when that takes too much of the disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::base::metrics::retention::HeldFor;

/// How long the log is held for a node that no snapshot is being sent to and that makes no progress.
const GRACE: Duration = Duration::from_secs(120);

/// The node that the log is kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hold {
    pub node: u64,
    pub reason: HeldFor,
    /// The last entry that the node does not need any more.
    pub reached: u64,
}

/// The transfers of this node. Cheap to clone.
#[derive(Clone, Default)]
pub struct Transfers(Arc<Mutex<BTreeMap<u64, Transfer>>>);

/// The transfers to one node.
struct Transfer {
    /// Each transfer under way has a clone. A leadership that ends forgets the transfers, so the end of one of them may come
    /// when the next leadership has begun others, and must not count as theirs.
    running: Arc<()>,
    /// The last entry that the snapshot covers.
    snapshot: u64,
    /// The last entry that the node does not need any more.
    reached: u64,
    /// When the node last made progress.
    progress: Instant,
    /// The last entry of the log at the last call of [`Transfers::purgeable`].
    end: Option<u64>,
}

/// A transfer under way. It ends when this is dropped.
pub struct Sending {
    transfers: Transfers,
    target: u64,
    running: Arc<()>,
}

impl Transfers {
    /// Begins a transfer of a snapshot that covers the entries up to `snapshot`.
    pub fn begin(&self, target: u64, snapshot: u64) -> Sending {
        let now = Instant::now();
        let mut all = self.0.lock();
        let transfer = all.entry(target).or_insert(Transfer {
            running: Arc::default(),
            snapshot,
            reached: snapshot,
            progress: now,
            end: None,
        });
        // A node that gets a snapshot needs nothing before it, and begins anew even if it had reached more.
        (transfer.snapshot, transfer.reached, transfer.progress) = (snapshot, snapshot, now);
        transfer.end = None;
        Sending {
            transfers: self.clone(),
            target,
            running: Arc::clone(&transfer.running),
        }
    }

    /// Forgets all transfers, because another node leads now and sends what is missing.
    pub fn forget(&self) {
        self.0.lock().clear();
    }

    /// The node that needs the earliest entries of those up to `wanted`, or `None` if no node needs them. `last` is the
    /// last entry of the log, and `matched` says what a node has of it. A node has caught up when it has what the log had
    /// at the call before.
    pub fn hold(&self, wanted: u64, last: u64, now: Instant, matched: impl Fn(u64) -> Option<u64>) -> Option<Hold> {
        let mut all = self.0.lock();
        all.retain(|target, transfer| transfer.keep(last, now, matched(*target)));
        let holds = all.iter().map(|(node, transfer)| Hold {
            node: *node,
            reason: match transfer.is_running() {
                true => HeldFor::Snapshot,
                false => HeldFor::CatchUp,
            },
            reached: transfer.reached,
        });
        holds
            .filter(|hold| hold.reached < wanted)
            .min_by_key(|hold| hold.reached)
    }

    /// Holds nothing for this node any more, until the next transfer to it begins.
    pub fn give_up(&self, node: u64) {
        self.0.lock().remove(&node);
    }
}

impl Transfer {
    fn is_running(&self) -> bool {
        Arc::strong_count(&self.running) > 1
    }

    /// Notes the progress of the node. Returns whether the log must still be held for it.
    fn keep(&mut self, last: u64, now: Instant, matched: Option<u64>) -> bool {
        if let Some(matched) = matched
            && matched > self.reached
        {
            (self.reached, self.progress) = (matched, now);
        }
        let installed = matched.is_some_and(|matched| matched >= self.snapshot);
        let end = self.end.replace(last);
        let caught_up = installed && end.is_some_and(|end| self.reached >= end);
        self.is_running() || !(caught_up || now.duration_since(self.progress) > GRACE)
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if let Some(transfer) = self.transfers.0.lock().get_mut(&self.target)
            && Arc::ptr_eq(&transfer.running, &self.running)
        {
            transfer.progress = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Transfers {
        /// The last entry, up to `wanted`, that no node needs.
        fn purgeable(&self, wanted: u64, last: u64, now: Instant, matched: impl Fn(u64) -> Option<u64>) -> u64 {
            let hold = self.hold(wanted, last, now, matched);
            hold.map_or(wanted, |hold| hold.reached)
        }
    }

    #[test]
    fn the_log_is_held_while_a_snapshot_is_sent_and_until_the_node_caught_up() {
        let transfers = Transfers::default();
        let now = Instant::now();
        let sending = transfers.begin(2, 100);
        assert_eq!(transfers.purgeable(500, 600, now + 10 * GRACE, |_| None), 100);
        drop(sending);
        let now = Instant::now();
        assert_eq!(transfers.purgeable(500, 700, now, |_| Some(100)), 100);
        assert_eq!(transfers.purgeable(600, 800, now, |_| Some(300)), 300);
        assert_eq!(transfers.purgeable(90, 900, now, |_| Some(400)), 90);
        assert_eq!(transfers.purgeable(800, 1_000, now, |_| Some(650)), 650);
        assert_eq!(transfers.purgeable(990, 1_100, now, |_| Some(999)), 990);
        assert_eq!(transfers.purgeable(1_050, 1_200, now, |_| Some(1_090)), 1_050);
        assert_eq!(
            transfers.purgeable(1_150, 1_200, now, |_| Some(1_200)),
            1_150,
            "caught up"
        );
        assert_eq!(
            transfers.purgeable(1_300, 1_400, now, |_| None),
            1_300,
            "it was forgotten"
        );
    }

    #[test]
    fn the_log_is_not_held_for_ever_for_a_node_that_is_away() {
        let transfers = Transfers::default();
        drop(transfers.begin(2, 100));
        let _other = transfers.begin(3, 200);
        let now = Instant::now();
        assert_eq!(transfers.purgeable(500, 600, now + GRACE / 2, |_| None), 100);
        assert_eq!(transfers.purgeable(500, 600, now + 2 * GRACE, |_| None), 200);
    }

    #[test]
    fn a_former_leader_holds_nothing() {
        let transfers = Transfers::default();
        let sending = transfers.begin(2, 100);
        transfers.forget();
        assert_eq!(transfers.purgeable(500, 600, Instant::now(), |_| None), 500);
        drop(sending);
        let _again = transfers.begin(2, 300);
        assert_eq!(transfers.purgeable(500, 600, Instant::now(), |_| None), 300);
    }

    #[test]
    fn who_holds_the_log_and_why_is_known_and_it_can_be_given_up() {
        let (transfers, now) = (Transfers::default(), Instant::now());
        drop(transfers.begin(2, 200));
        let sending = transfers.begin(3, 100);
        let hold = || {
            transfers
                .hold(500, 600, now, |_| None)
                .map(|hold| (hold.node, hold.reason))
        };
        assert_eq!(hold(), Some((3, HeldFor::Snapshot)));
        transfers.give_up(3);
        assert_eq!(hold(), Some((2, HeldFor::CatchUp)));
        transfers.give_up(2);
        assert_eq!(hold(), None);
        drop(sending);
        let _again = transfers.begin(3, 300);
        assert_eq!(hold(), Some((3, HeldFor::Snapshot)));
    }

    #[test]
    fn the_end_of_a_forgotten_transfer_ends_no_other() {
        let transfers = Transfers::default();
        let forgotten = transfers.begin(2, 100);
        transfers.forget();
        let _again = transfers.begin(2, 300);
        drop(forgotten);
        assert_eq!(transfers.purgeable(500, 600, Instant::now() + 2 * GRACE, |_| None), 300);
    }

    #[test]
    fn a_second_snapshot_replaces_the_first() {
        let transfers = Transfers::default();
        drop(transfers.begin(2, 100));
        drop(transfers.begin(2, 300));
        assert_eq!(transfers.purgeable(500, 600, Instant::now(), |_| Some(100)), 300);
    }
}
