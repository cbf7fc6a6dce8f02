//! Queues: index rows that wait for a time, ordered by it.
//!
//! RocksDB keeps a removed row as a tombstone until a compaction has carried it to the last level, and a scan steps over
//! every tombstone in its way. Rows are removed from the front of a queue, and scans begin there, so without care each
//! sweep would step over everything that earlier sweeps removed. Four rules keep the way of every scan free of tombstones:
//!
//! - **A queue has a floor**, a row with the key below which the queue has no row. Scans begin there.
//! - **Only a sweep removes rows, in the order of the queue**, and it raises the floor beyond the last one. A command
//!   that ends the reason of a row earlier (a login is fetched, a message is dropped by its full inbox, a lease is
//!   returned, a cursor is used again) leaves the row. When its time has come, the sweep compares it with the state and
//!   removes it, or puts it where it now belongs.
//! - **A new row lies above the floor**, because its time is later than that of any row that is due, and a sweep removes
//!   only rows that are due. [`super::retention`] raises the time of a message that has already expired.
//! - **A row never waits for longer than what it stands for may live**, so rows without a reason do not pile up.
//!
//! So a sweep costs the rows that it removes, however many were removed before, and the question whether anything is
//! due costs two reads for each queue. Sweeps need no agreement about who removes what: each begins where the one
//! before it in the log ended, so the leader may have several of them in the log at a time.
//!
//! Two other kinds of queues store their first row in a head: the entries of an inbox ([`super::inbox`]) and the due
//! deliveries of an endpoint ([`super::delivery`]).

use bytes::Bytes;

use super::Context;
use crate::core::keys::{self, Queue};
use crate::core::kv::{Fatal, Row};
use crate::core::query::queue::{self, Now};
use crate::core::view::View;

impl Context<'_> {
    /// The times of the command.
    pub(super) fn now(&self) -> Now {
        Now {
            cluster_ms: self.cluster_ms,
            wall_ms: self.wall_ms,
        }
    }
}

/// The first `rows` rows of a queue that are due.
pub(super) fn take(view: &View<'_>, queue: Queue, now: Now, rows: usize) -> Result<Vec<Row>, Fatal> {
    queue::due(view, queue, now)?.take(rows).collect()
}

/// Removes the first rows of a queue, whose keys are in order, and raises its floor.
pub(super) fn remove(view: &mut View<'_>, queue: Queue, first: impl IntoIterator<Item = Bytes>) {
    let mut last = None;
    for key in first {
        view.delete(key.clone());
        last = Some(key);
    }
    if let Some(last) = last {
        view.put(keys::queue_floor(queue), keys::after(&last));
    }
}
