//! The Raft log and the vote, on RocksDB.
//!
//! **The problem.** A write is acknowledged when a majority has it on disk. One flush of the disk per write
//! would cap the cluster at a few hundred writes a second, and waiting for the flush inside `append` would
//! stop the node meanwhile: a leader would miss heartbeats. So an append only hands its bytes to the
//! operating system, and one thread flushes for everybody who gathered in the meantime:
//!
//! ```text
//!  openraft ── append ──► WriteBatch ──► WAL (page cache) ─┐
//!     │                      └────────► memtable ──► files │
//!     │  ◄── returns: readable                             │ flush_wal(sync), once per group
//!     └───────── IOFlushed ──► waiters ──► sync thread ────┘
//!                                            └──► tells all of them, in order: durable
//!
//!  replication, apply ── read ──► tail in memory (newest entries) ──► RocksDB (older ones)
//! ```
//!
//! **The rules.**
//! - *One order.* Entries, vote, truncations and purges go through one WAL, so whatever prefix of it a power
//!   cut leaves is a state that this log once had. A vote in a file of its own would not have that property.
//! - *Readable on return, durable at the callback.* Readers see an entry as soon as `append` returns. Bounds
//!   (`first`, `next`) are kept in memory under one lock; a reader takes them, the cached entries and an
//!   iterator of the database together, and thus reads the log as it was at one moment.
//! - *A truncation is durable before `truncate_after` returns.* openraft applies entries without waiting for
//!   our flush, so the state may become durable before the log does. If then the power goes, the log must
//!   not reappear with entries of an older term above the applied one: such a node could never start
//!   again. openraft sends nothing to apply while it waits for a truncation, so returning late is enough.
//! - *No holes.* An append that does not follow the last entry is refused. A purge above the last entry
//!   moves the log there: openraft closes the gap behind an applied-ahead state that way.
//! - *Every record carries its CRC32C and the hash of the record before it*, verified when it is read from disk.
//!   RocksDB's own checksums do not cover what happened between our buffer and its block, and none of them
//!   sees that a whole record is missing or an old one is back.
//! - *The whole log is read before the node takes part*, from the purge point to the end. What is wrong with it shows
//!   then, and not when the entry is needed. The log is bounded, and reading is fast.
//! - *The log never falls below the durability floor* (`floor.rs`): the vote goes there behind RocksDB, a truncation
//!   before it, and a flush lifts it later, never in the way of an append.
//! - *A failure is final.* After a failed write or flush nobody knows which bytes the disk has, and a second
//!   flush may report success for pages that the kernel dropped. The error is kept, given to every
//!   waiter, and the node stops.
//! - *Recovery tolerates a torn tail only.* RocksDB's default recovery drops everything behind the first bad
//!   record, acknowledged entries included, and opens as if nothing were wrong. A bad record in the
//!   middle must refuse to open; only an incomplete last record is what a power cut leaves.
//! - *The purge point is stored and every seek begins behind it*, never at 0: purged entries leave range
//!   tombstones that a scan from 0 would walk.
//!
//! **What is left out.** A damaged log is not repaired: the node is quarantined and joins again empty. The log is one
//! RocksDB per shard; many shards will want one WAL. A segment file of our own would save one memtable insert per entry (1.15 times
//! the writes at 256 in flight); the interface leaves room for it.

mod bounds;
mod inner;
mod metrics;
mod open;
mod record;
mod sync;
mod tail;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use agentpost_proto::limits::APPEND_PAYLOAD_BYTES_MAX;
use agentpost_proto::peer;
use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use rocksdb::WriteBatch;

use self::bounds::check_follows;
use self::inner::Inner;
pub use self::metrics::LogMetrics;
use self::record::seal;
use self::sync::{SyncThread, Waiter};
use self::tail::Recent;
use crate::core::keys::log as keys;
use crate::core::mutant::{self, Mutant};
use crate::disk::damage::Damage;
use crate::disk::error::OpenError;
use crate::disk::floor::{Floor, FloorFile, Mark};
use crate::disk::options::Options;
use crate::disk::types::{Entry, LogId, TypeConfig, Vote, log_id_to_proto, vote_to_proto};

/// The log of a shard. openraft owns it; readers share it.
pub struct LogStore {
    inner: Arc<Inner>,
    /// Where entries are encoded; kept for its capacity.
    record: Vec<u8>,
    /// A committed hint that is not written yet.
    hint: Option<Option<LogId>>,
}

/// Reads the log beside the one who writes it. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    inner: Arc<Inner>,
}

/// Where the log begins, for those who decide what a snapshot is still worth.
#[derive(Clone, Default)]
pub(crate) struct PurgePoint(Arc<Mutex<Option<LogId>>>);

impl PurgePoint {
    /// The last entry that is gone.
    pub(crate) fn get(&self) -> Option<LogId> {
        *self.0.lock()
    }

    pub(crate) fn set(&self, purged: Option<LogId>) {
        *self.0.lock() = purged;
    }
}

impl LogStore {
    /// Opens the log in `dir`, or creates it if its floor is new, and reads all of it. Blocks.
    pub(crate) fn open(dir: &Path, floor: FloorFile, options: &Options, damage: Damage) -> Result<Self, OpenError> {
        Self::open_with(dir, floor, options, damage, |db| {
            if mutant::on(Mutant::NoFsync) {
                return Ok(());
            }
            db.flush_wal(true).map_err(|e| e.to_string())
        })
    }

    /// Opens the log with another way to make it durable; tests slow it down or let it fail.
    fn open_with(
        dir: &Path,
        floor: FloorFile,
        options: &Options,
        damage: Damage,
        mut sync: impl FnMut(&rocksdb::DB) -> Result<(), String> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let db = open::database(dir, floor.is_new()).map_err(OpenError::database(dir))?;
        let bounds = open::bounds(&db, options, &floor).map_err(|reason| OpenError::quarantine(dir, reason))?;
        let db = Arc::new(db);
        let metrics = Arc::new(LogMetrics::new());
        let failure = metrics.failure();
        let floor = Floor::spawn(floor, failure.clone()).map_err(OpenError::io(dir))?;
        let (synced, lift) = (db.clone(), floor.lift());
        let sync = SyncThread::spawn(
            move || sync(&synced),
            move |mark| lift.to(mark),
            failure,
            metrics.clone(),
        )
        .map_err(OpenError::io(dir))?;
        let purge_point = PurgePoint::default();
        purge_point.set(bounds.purged);
        let inner = Inner {
            sync,
            floor,
            damage,
            db,
            log_start: options.log_start,
            metrics,
            purge_point,
            bounds: Mutex::new(bounds),
        };
        Ok(LogStore {
            inner: Arc::new(inner),
            record: Vec::new(),
            hint: None,
        })
    }

    /// What the log counts.
    pub fn metrics(&self) -> Arc<LogMetrics> {
        self.inner.metrics.clone()
    }

    pub(crate) fn purge_point(&self) -> PurgePoint {
        self.inner.purge_point.clone()
    }

    /// Writes entries to the WAL and makes them readable; not durable yet. Names the last of them.
    fn write_entries(&mut self, entries: Vec<Entry>) -> io::Result<Option<Mark>> {
        let inner = &*self.inner;
        inner.sync.check()?;
        let mut batch = WriteBatch::default();
        let mut recents = Vec::with_capacity(entries.len());
        let (first, mut hash) = {
            let bounds = inner.lock();
            (check_follows(&bounds, inner.log_start, &entries)?, bounds.hash)
        };
        let mut bytes = 0;
        for entry in entries {
            hash = record::encode(&entry, hash, &mut self.record)?;
            batch.put_cf(inner.entries(), keys::entry(entry.log_id.index), &self.record);
            let size = self.record.len();
            bytes += size;
            recents.push(Recent { entry, size, hash });
        }
        if let Some(committed) = self.hint.take() {
            inner.put_hint(&mut batch, committed);
        }
        inner.write(batch)?;
        inner.metrics.appended(recents.len() as u64, bytes as u64);
        let mark = recents.last().map(|last| inner.floor.mark(last.entry.log_id));
        let mut bounds = inner.lock();
        bounds.first = first;
        bounds.hash = hash;
        for recent in recents {
            bounds.next = recent.entry.log_id.index + 1;
            bounds.last = Some(recent.entry.log_id);
            bounds.tail.push(recent);
        }
        Ok(mark)
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        if let Some(committed) = self.hint.take() {
            let mut batch = WriteBatch::default();
            self.inner.put_hint(&mut batch, committed);
            // Without it the next start only waits for its leader to say what is committed.
            drop(self.inner.write(batch));
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.inner.lock();
        Ok(LogState {
            last_purged_log_id: bounds.purged,
            last_log_id: bounds.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            inner: self.inner.clone(),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let mut batch = WriteBatch::default();
        batch.put_cf(self.inner.meta(), keys::VOTE, seal(&vote_to_proto(vote)));
        self.inner.write(batch)?;
        if !mutant::on(Mutant::VoteUnsynced) {
            self.inner.sync.barrier().await?;
        }
        self.inner.floor.vote(vote).await?;
        self.inner.lock().vote = Some(*vote);
        Ok(())
    }

    /// Written with the next entries: it is a hint, and a write of its own would make every reply wait for it.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.inner.sync.check()?;
        self.hint = Some(committed);
        self.inner.lock().committed = committed;
        Ok(())
    }

    /// Never above the last entry: a hint must not keep a node from starting.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let bounds = self.inner.lock();
        Ok(bounds.committed.min(bounds.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        match self.write_entries(entries.into_iter().collect()) {
            Ok(_) if mutant::on(Mutant::AckBeforeFsync) => {
                callback.io_completed(Ok(()));
                Ok(())
            }
            Ok(mark) => {
                self.inner.sync.wait(Waiter::Append(callback, mark));
                Ok(())
            }
            Err(error) => {
                callback.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
                Err(error)
            }
        }
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        let Some(cut) = self.inner.find_cut(from)? else {
            return Ok(());
        };
        self.inner.floor.lower(cut.last).await?;
        let gone = self.inner.hide(&cut);
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.inner.entries(), keys::entry(gone.start), keys::entry(gone.end));
        self.inner.write(batch)?;
        self.inner.sync.barrier().await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        let Some(hash) = self.inner.hash_behind(log_id.index)? else {
            return Ok(());
        };
        let begin = {
            let mut bounds = self.inner.lock();
            let begin = bounds.purged.map_or(0, |purged| purged.index + 1);
            bounds.purged = Some(log_id);
            bounds.base = hash;
            bounds.tail.purge(log_id.index);
            bounds.first = bounds.first.max(log_id.index + 1);
            if bounds.next <= log_id.index + 1 {
                bounds.next = bounds.first;
                bounds.last = Some(log_id);
                bounds.hash = hash;
            }
            begin
        };
        let end = log_id.index + 1 + u64::from(mutant::on(Mutant::PurgeTooFar));
        let mut batch = WriteBatch::default();
        batch.delete_range_cf(self.inner.entries(), keys::entry(begin), keys::entry(end));
        let purged = peer::Purged {
            id: Some(log_id_to_proto(&log_id)),
            hash,
        };
        batch.put_cf(self.inner.meta(), keys::PURGED, seal(&purged));
        self.inner.write(batch)?;
        // Files go only when the point behind them is durable: what a file held cannot come back.
        self.inner.sync.barrier().await?;
        self.inner.purge_point.set(Some(log_id));
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.remove_files(log_id.index))
            .await
            .map_err(io::Error::other)?
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds_of(&range);
        self.inner.read(start, end, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.inner.lock().vote)
    }

    /// For replication: one request must not outlast an election timeout. Entries that are gone make an
    /// empty answer, never one that begins later: a follower would take it for what it asked for.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.inner.read(start, end, APPEND_PAYLOAD_BYTES_MAX)?;
        match entries.first() {
            Some(first) if first.log_id.index != start => Ok(Vec::new()),
            _ => Ok(entries),
        }
    }

    /// For apply: read in pieces, since the entries to apply after a restart may be many.
    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + Send
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let (start, end) = bounds_of(&range);
        let inner = self.inner.clone();
        let pieces = stream::unfold(Some(start), move |next| {
            let piece = next.map(|start| inner.read(start, end, APPEND_PAYLOAD_BYTES_MAX));
            std::future::ready(match piece {
                None => None,
                Some(Ok(entries)) => entries
                    .last()
                    .map(|last| last.log_id.index + 1)
                    .map(|next| (entries.into_iter().map(Ok).collect(), Some(next))),
                Some(Err(error)) => Some((vec![Err(error)], None)),
            })
        });
        pieces.flat_map(stream::iter::<Vec<_>>)
    }
}

fn bounds_of(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(start) => start + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(end) => end + 1,
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}
