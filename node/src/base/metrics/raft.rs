//! The metrics of Raft.

use std::sync::atomic::AtomicU64;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::add;

/// How far Raft is on this node, and who leads.
#[derive(Clone)]
pub struct Raft {
    /// The last entry in this node's log.
    pub last_log_index: Gauge,
    /// The last entry that this node knows to be committed.
    pub committed_index: Gauge,
    /// The last entry applied on this node.
    pub applied_index: Gauge,
    /// How long committed entries have waited without any progress of apply, in seconds.
    pub apply_waiting: Gauge<f64, AtomicU64>,
    /// The last entry that a snapshot of this node covers.
    pub snapshot_index: Gauge,
    /// The last entry that was purged from this node's log.
    pub purged_index: Gauge,
    /// The current term.
    pub term: Gauge,
    /// 1 if this node is the leader, otherwise 0.
    pub is_leader: Gauge,
    /// The id of the leader that this node knows; 0 if it knows none.
    pub leader: Gauge,
    /// Times that the leader refused the connections of this node and no majority of the voters found the same.
    pub leader_losses_undecided: Counter,
    /// Bytes of the commands in the largest append request that this node sent to a follower.
    pub append_request_bytes_max: Gauge,
    /// Read barriers that this node ran; one barrier serves all reads that wait for it.
    pub read_barriers: Counter,
    /// Read barriers that found no quorum in time.
    pub read_barriers_failed: Counter,
}

impl Raft {
    pub(super) fn register(r: &mut Registry) -> Self {
        let g = Gauge::default;
        Raft {
            last_log_index: add(r, "last_log_index", "Index of the last entry of the log", g()),
            committed_index: add(
                r,
                "committed_index",
                "Index of the last entry known to be committed",
                g(),
            ),
            applied_index: add(r, "applied_index", "Index of the last applied entry", g()),
            apply_waiting: add(
                r,
                "apply_waiting_seconds",
                "Time for which committed entries have waited while none was applied",
                Gauge::default(),
            ),
            leader_losses_undecided: add(
                r,
                "leader_losses_undecided",
                "Times that the leader refused the connections of this node, and no majority of the voters found the same",
                Counter::default(),
            ),
            snapshot_index: add(r, "snapshot_index", "Index of the last entry in a snapshot", g()),
            purged_index: add(r, "purged_index", "Index of the last entry purged from the log", g()),
            term: add(r, "term", "Raft term", g()),
            is_leader: add(r, "is_leader", "1 on the leader", g()),
            leader: add(r, "leader", "Id of the leader that this node knows; 0 = none", g()),
            append_request_bytes_max: add(
                r,
                "append_request_bytes_max",
                "Bytes of the commands in the largest append request that this node sent to a follower",
                g(),
            ),
            read_barriers: add(
                r,
                "read_barriers",
                "Read barriers that this node ran; one barrier serves all reads that wait for it",
                Counter::default(),
            ),
            read_barriers_failed: add(
                r,
                "read_barriers_failed",
                "Read barriers that found no quorum in time",
                Counter::default(),
            ),
        }
    }
}
