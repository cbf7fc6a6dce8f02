//! The Raft log and the vote, on RocksDB.
//!
//! **The problem.** A write is acknowledged when a majority has it on disk. One flush per write would limit the cluster
//! to a few hundred writes per second. Waiting for the flush inside `append` would block the node meanwhile, and a
//! leader would miss heartbeats. So an append only writes to the operating system, and one thread flushes for all
//! appends that arrived in the meantime:
//!
//! ```text
//!  openraft ── append ──► WriteBatch ──► WAL (page cache) ─┐
//!     │                      └────────► memtable ──► files │
//!     │  ◄── returns: readable                             │ flush_wal(sync), once per group
//!     └───────── IOFlushed ──► waiters ──► sync thread ────┘
//!                                            └──► completes all of them, in order: durable
//!
//!  replication, apply ── read ──► tail in memory (newest entries) ──► RocksDB (older ones)
//! ```
//!
//! **The rules.**
//! - *One order.* Entries, vote, truncations and purges go through one WAL, so a power cut leaves a prefix of it, which
//!   is a state that this log once had. A vote in a file of its own would not have that property.
//! - *Readable on return, durable at the callback.* Readers see an entry as soon as `append` returns. The bounds
//!   (`first`, `next`) are in memory under one lock. A reader takes the bounds, the cached entries and an iterator of
//!   the database under that lock, and so reads the log as of one moment.
//! - *A truncation is durable before `truncate_after` returns.* openraft applies entries without waiting for our flush,
//!   so the state may become durable before the log does. If the power fails then, the log must not come back with
//!   entries of an older term above the applied one: such a node could never start again. openraft sends nothing to
//!   apply while it waits for a truncation, so it is enough that the truncation returns late.
//! - *No holes.* An append that does not follow the last entry is refused. A purge above the last entry moves the log
//!   there: this is how openraft closes the gap to a state that is ahead of the log.
//! - *Every record carries its CRC32C and the hash of the previous record*, both verified when it is read from disk.
//!   RocksDB's own checksums do not cover the path from our buffer to its block, and they do not detect that a whole
//!   record is missing or that an old one has come back.
//! - *The whole log is read before the node takes part*, from the purge point to the end, so damage is found at the
//!   start and not when an entry is needed. The log is bounded, and reading it is fast.
//! - *The log never falls below the durability floor* (`floor.rs`). The floor gets a vote after RocksDB has it, and a
//!   truncation before RocksDB has it. A flush raises it later, so that an append never waits for it.
//! - *A failure is final.* After a failed write or flush nobody knows which bytes are on the disk, and a second flush
//!   may report success for pages that the kernel dropped. The error is kept and returned to every waiter, and the node
//!   stops.
//! - *Recovery tolerates only a torn tail.* RocksDB's default recovery silently drops everything after the first bad
//!   record, including acknowledged entries. Here a bad record in the middle must refuse to open; only an incomplete
//!   last record is accepted, because a power cut leaves one.
//! - *The purge point is stored, and every seek begins after it*, never at 0. Purged entries leave range tombstones,
//!   which a scan from 0 would step over.
//!
//! **Limits.** A damaged log is not repaired: the node goes into quarantine and joins again empty. Each shard has one
//! RocksDB for its log; many shards will want one shared WAL. Segment files of our own instead of RocksDB would save
//! one memtable insert per entry (1.15 times the writes with 256 in flight); the interface leaves room for them.

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
use crate::disk::in_use::InUse;
use crate::disk::options::Options;
use crate::disk::types::{Entry, LogId, TypeConfig, Vote, log_id_to_proto, vote_to_proto};

/// Upper bound on the payload of one replication request, in bytes, small enough that sending it takes less than an
/// election timeout.
const APPEND_PAYLOAD_BYTES_MAX: usize = 1024 * 1024;

/// The log of a shard. openraft owns it and writes to it; [`LogReader`]s read it.
pub struct LogStore {
    inner: Arc<Inner>,
    /// The buffer in which entries are encoded, kept for its capacity.
    record: Vec<u8>,
    /// A new committed hint that is not written yet.
    hint: Option<Option<LogId>>,
}

/// Reads the log while it is being written. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    inner: Arc<Inner>,
}

/// The last purged entry, for deciding whether the log continues a snapshot.
#[derive(Clone, Default)]
pub(crate) struct PurgePoint(Arc<Mutex<Option<LogId>>>);

impl PurgePoint {
    /// The last purged entry, or `None` if none was ever purged.
    pub(crate) fn get(&self) -> Option<LogId> {
        *self.0.lock()
    }

    pub(crate) fn set(&self, purged: Option<LogId>) {
        *self.0.lock() = purged;
    }
}

impl LogStore {
    /// Opens the log in `dir`, or creates it if its floor is new, and reads it completely. Blocks.
    pub(crate) fn open(dir: &Path, floor: FloorFile, options: &Options, damage: Damage) -> Result<Self, OpenError> {
        Self::open_with(dir, floor, options, damage, |db| {
            if mutant::on(Mutant::NoFsync) {
                return Ok(());
            }
            db.flush_wal(true).map_err(|e| e.to_string())
        })
    }

    /// Opens the log with another flush, which tests make slow or let fail.
    fn open_with(
        dir: &Path,
        floor: FloorFile,
        options: &Options,
        damage: Damage,
        mut sync: impl FnMut(&rocksdb::DB) -> Result<(), String> + Send + 'static,
    ) -> Result<Self, OpenError> {
        let used = InUse::begin();
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
            _used: used,
        };
        Ok(LogStore {
            inner: Arc::new(inner),
            record: Vec::new(),
            hint: None,
        })
    }

    /// The counters of this log.
    pub fn metrics(&self) -> Arc<LogMetrics> {
        self.inner.metrics.clone()
    }

    pub(crate) fn purge_point(&self) -> PurgePoint {
        self.inner.purge_point.clone()
    }

    /// Writes entries to the WAL and makes them readable, but not durable yet. Returns a mark of the last one.
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
            // Without the hint the next start waits until the leader tells what is committed.
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

    /// The hint is written with the next entries. A write of its own would delay every reply.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.inner.sync.check()?;
        self.hint = Some(committed);
        self.inner.lock().committed = committed;
        Ok(())
    }

    /// Never above the last entry, because a wrong hint must not prevent a start.
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
        // Files are removed only when the purge point is durable, because their entries cannot come back.
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

    /// For replication. The result is bounded, so that one request does not outlast an election timeout. If the entry
    /// at `start` was purged, the result is empty: a result that begins later would be taken for the entries from
    /// `start`.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = self.inner.read(start, end, APPEND_PAYLOAD_BYTES_MAX)?;
        match entries.first() {
            Some(first) if first.log_id.index != start => Ok(Vec::new()),
            _ => Ok(entries),
        }
    }

    /// For apply. Entries are read in pieces, because there may be many to apply after a restart.
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
