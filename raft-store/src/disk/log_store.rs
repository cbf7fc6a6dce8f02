//! The Raft log and the vote, on files of our own.
//!
//! **The problem.** A write is acknowledged when a majority has it on disk. One flush per write would limit the cluster
//! to a few hundred writes per second. Waiting for the disk inside `append` would block the node meanwhile, and a
//! leader would miss heartbeats. So an append puts the entries into memory and into a queue, and one thread writes and
//! flushes for all appends that arrived in the meantime:
//!
//! ```text
//!  openraft ── append ──► tail in memory (newest entries)          ◄── read ── replication, apply
//!     │  ◄── returns: readable   ▲                                       │ older entries
//!     │                          │ in the file: may leave the tail       ▼
//!     └────── IOFlushed ──► queue ──► sync thread ── write, flush ──► segments (`segments.rs`), found by `index.rs`
//!                                        └──► completes all of them, in order: durable
//! ```
//!
//! **The rules.**
//! - *One order.* Entries, vote, truncations and purges go through one queue into one stream of records, so a power cut
//!   leaves a prefix of it, which is a state that this log once had. A vote in a file of its own would not have that
//!   property.
//! - *Readable on return, durable at the callback.* Readers see an entry as soon as `append` returns. The bounds
//!   (`first`, `next`), the tail and the index are in memory under one lock. A reader takes all of them under that lock,
//!   and so reads the log as of one moment; bytes in a file never change.
//! - *openraft's threads never touch the disk.* An append encodes nothing; the sync thread copies each entry once, into
//!   the buffer that it writes. A purge is not waited for. A vote and a truncation are waited for, but not with the
//!   thread. Entries that are no longer in the tail are read by threads that may block.
//! - *A truncation is durable before `truncate_after` returns.* openraft applies entries without waiting for our flush,
//!   so the state may become durable before the log does. If the power fails then, the log must not come back with
//!   entries of an older term above the applied one: such a node could never start again. openraft sends nothing to
//!   apply while it waits for a truncation, so it is enough that the truncation returns late.
//! - *No holes.* An append that does not follow the last entry is refused. A purge above the last entry moves the log
//!   there: this is how openraft closes the gap to a state that is ahead of the log.
//! - *Every record carries its CRC32C and the hash of the previous record*, both verified when it is read from disk.
//!   Checksums alone do not detect that a whole record is missing or that an old one has come back.
//! - *A start reads the newest segment, and the ends of the others.* A segment begins only when all of the one before is
//!   durable. So a start takes the same time for a log of any length. A crash may come between any two steps of that: a
//!   start removes a segment without a whole first record, and completes a segment that has its last record but not its
//!   end. The scrubber reads the complete segments again (`scrub.rs`), and every read verifies.
//! - *The log never falls below the durability floor* (`floor.rs`). The floor gets a vote after the log has it, and a
//!   truncation before the log has it. A flush raises it later, so that an append never waits for it.
//! - *A failure is final.* After a failed write or flush nobody knows which bytes are on the disk, and a second flush
//!   may report success for pages that the kernel dropped. The error is kept and returned to every waiter, and the node
//!   stops.
//! - *Only an incomplete last group is tolerated*, because a power cut leaves one. Any other bad record refuses to open.
//!
//! **Why files of our own.** Measured beside each other in November 2026: two busy cores, one disk, an fsync for each
//! group, four groups under way, a purge every 32 MiB. Medians of three alternating rounds: CPU for a group in
//! microseconds; bytes written to the disk for each byte of log; how long an append of 1 MiB holds openraft's thread
//! (99 %, range of the rounds); and the time to open and read a log of 10^6 entries, 1.1 GiB.
//!
//! | | 25 entries of 1.1 KB | one entry | 8 of 128 KiB | written | an append holds | open |
//! |---|---|---|---|---|---|---|
//! | RocksDB 11, as it was used here | 197 | 97 | 5,100 | 2.0 | 31 to 97 ms | 1.9 s |
//! | RocksDB, vector memtable, FIFO | 225 | 168 | 4,200 | 1.9 | 56 to 115 ms | 5.5 s |
//! | `raft-log` 0.4.6 | 222 | 127 | 930 | 1.2 | 4 to 9 ms | over 200 s with the writing |
//! | `raft-engine` 0.4.2 | 81 | 120 | 720 | 1.06 | (behind our queue) | 7.4 s |
//! | files of our own | 74 | 123 | 760 | 1.05 | 0.04 ms | 3.9 s for all of it |
//!
//! The rates scattered with the disk, whose fsync took 0.1 to 4 ms; a single entry is all fsync, so its column shows no
//! difference. Space allocated ahead halved the CPU of large groups; reusing old files gained nothing more.
//!
//! `raft-log` loses more than a fifth. It refuses a log whose last group is only partly on disk, unless the rest is cut
//! or zero, so an honest power cut could cost a node its place; and it reads everything at a start. `raft-engine` is as
//! fast, but its last release is of April 2024. It needs `protobuf` 2 (RUSTSEC-2024-0437), entries as its messages,
//! `fs2` and `nix` 0.26. `Engine::sync` returns without a flush, a failed flush panics, it drops a bad tail without
//! knowing whether that was durable once, and no record is chained to the one before.
//!
//! **Limits.** A damaged log is not repaired: the node goes into quarantine and joins again empty. A node has one shard,
//! and so one log per stream of records.

mod bounds;
#[cfg(test)]
mod charge_tests;
#[cfg(test)]
mod crash_tests;
#[cfg(test)]
mod figures;
mod files;
mod index;
mod metrics;
mod open;
#[cfg(test)]
mod read_tests;
mod record;
mod removal;
mod shared;
mod sync;
mod tail;
#[cfg(test)]
mod tests;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::Path;
use std::sync::Arc;

use futures::{Stream, StreamExt, stream};
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;

use self::bounds::check_follows;
use self::files::Flush;
pub use self::metrics::LogMetrics;
use self::record::size_of;
use self::shared::Shared;
use self::sync::{Append, Job, SyncThread};
use self::tail::Recent;
use crate::core::mutant::{self, Mutant};
use crate::disk::damage::Damage;
use crate::disk::error::OpenError;
use crate::disk::floor::{Floor, FloorFile};
use crate::disk::options::{LogStart, Options};
use crate::disk::types::{Entry, LogId, TypeConfig, Vote, take_charges};

/// Upper bound on the entries of one append, in bytes, small enough that taking or sending them takes much less than an
/// election timeout. Only a single larger entry exceeds it. Requests to followers obey it here, and the proposer hands
/// Raft no more than this before the log has taken it.
pub const APPEND_BYTES_MAX: usize = 1024 * 1024;

/// The log of a shard. openraft owns it and writes to it; [`LogReader`]s read it.
pub struct LogStore {
    // Joined first, because it raises the floor.
    sync: SyncThread,
    floor: Floor,
    shared: Arc<Shared>,
    metrics: Arc<LogMetrics>,
    log_start: LogStart,
    /// A new committed hint that is not written yet.
    hint: Option<Option<LogId>>,
    /// Unlocks the directory when it is dropped, after the threads have ended.
    _lock: File,
}

/// Reads the log while it is being written. Cheap to clone.
#[derive(Clone)]
pub struct LogReader {
    shared: Arc<Shared>,
}

/// Says where in its bytes the entries of the log are, for deciding what to purge. Cheap to clone.
#[derive(Clone)]
pub struct LogSpan(Arc<Shared>);

impl LogSpan {
    /// The index at which the last `bytes` of the log begin, or `None` if the log is not longer.
    pub fn begin_of_last(&self, bytes: u64) -> Option<u64> {
        self.0.begin_of_last(bytes)
    }

    /// The bytes of the entries from `index` on, give or take 16 KiB.
    pub fn bytes_from(&self, index: u64) -> u64 {
        self.0.bytes_from(index)
    }
}

/// Reads the complete files of the log again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogScrub(Arc<Shared>);

impl LogScrub {
    /// Reads all of them, or until `on`, which gets the length of each record, returns `false`. Damage is reported to
    /// [`Damage`].
    pub(crate) fn run(&self, on: impl FnMut(usize) -> bool) -> io::Result<()> {
        self.0.verify(on)
    }
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
    /// Opens the log in `dir`, or creates it if its floor is new. Blocks.
    pub(crate) fn open(dir: &Path, floor: FloorFile, options: &Options, damage: Damage) -> Result<Self, OpenError> {
        Self::open_with(dir, floor, options, damage, None)
    }

    /// Opens the log with another flush, which tests make slow or let fail.
    fn open_with(
        dir: &Path,
        floor: FloorFile,
        options: &Options,
        damage: Damage,
        flush: Option<Flush>,
    ) -> Result<Self, OpenError> {
        let mut opened = open::open(dir, &floor, options, damage)?;
        if let Some(flush) = flush {
            opened.files.flush = flush;
        }
        let metrics = opened.files.metrics.clone();
        let failure = metrics.failure();
        let floor = Floor::spawn(floor, failure.clone()).map_err(OpenError::io(dir))?;
        let lift = floor.lift();
        let sync = SyncThread::spawn(opened.files, move |mark| lift.to(mark), failure, metrics.clone())
            .map_err(OpenError::io(dir))?;
        Ok(LogStore {
            sync,
            floor,
            shared: opened.shared,
            metrics,
            log_start: options.log_start,
            hint: None,
            _lock: opened.lock,
        })
    }

    /// The counters of this log.
    pub fn metrics(&self) -> Arc<LogMetrics> {
        self.metrics.clone()
    }

    /// Says where the last bytes of this log begin.
    pub fn span(&self) -> LogSpan {
        LogSpan(self.shared.clone())
    }

    pub(crate) fn scrub(&self) -> LogScrub {
        LogScrub(self.shared.clone())
    }

    pub(crate) fn purge_point(&self) -> PurgePoint {
        self.shared.purge_point().clone()
    }

    /// Makes entries readable. They still must be written.
    fn take_entries(&self, entries: &[Entry]) -> io::Result<()> {
        self.sync.check()?;
        let mut bounds = self.shared.lock();
        bounds.first = check_follows(&bounds, self.log_start, entries)?;
        let mut bytes = 0;
        for entry in entries {
            let size = size_of(entry);
            bytes += size;
            bounds.next = entry.log_id.index + 1;
            bounds.last = Some(entry.log_id);
            bounds.tail.push(Recent {
                entry: entry.clone(),
                size,
            });
        }
        self.metrics.taken(bytes as u64);
        Ok(())
    }
}

impl Drop for LogStore {
    fn drop(&mut self) {
        if let Some(committed) = self.hint.take() {
            // Without the hint the next start waits until the leader tells what is committed.
            self.sync.push(Job::Committed(committed));
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogReader;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let bounds = self.shared.lock();
        Ok(LogState {
            last_purged_log_id: bounds.purged,
            last_log_id: bounds.last,
        })
    }

    async fn get_log_reader(&mut self) -> LogReader {
        LogReader {
            shared: self.shared.clone(),
        }
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        let durable = self.sync.durably(|done| Job::Vote(*vote, done));
        if !mutant::on(Mutant::VoteUnsynced) {
            durable.await?;
        }
        self.floor.vote(vote).await?;
        self.shared.lock().vote = Some(*vote);
        Ok(())
    }

    /// The hint is written with the next entries. A write of its own would delay every reply.
    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.sync.check()?;
        self.hint = Some(committed);
        self.shared.lock().committed = committed;
        Ok(())
    }

    /// Never above the last entry, because a wrong hint must not prevent a start.
    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        let bounds = self.shared.lock();
        Ok(bounds.committed.min(bounds.last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut entries: Vec<Entry> = entries.into_iter().collect();
        let charges = take_charges(&mut entries);
        if let Err(error) = self.take_entries(&entries) {
            callback.io_completed(Err(io::Error::new(error.kind(), error.to_string())));
            return Err(error);
        }
        if let Some(committed) = self.hint.take() {
            self.sync.push(Job::Committed(committed));
        }
        let mark = entries.last().map(|last| self.floor.mark(last.log_id));
        let callback = match mutant::on(Mutant::AckBeforeFsync) {
            true => {
                callback.io_completed(Ok(()));
                None
            }
            false => Some(callback),
        };
        self.sync.push(Job::Append(Append {
            entries,
            charges,
            flushed: callback,
            mark,
        }));
        Ok(())
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        self.sync.check()?;
        let (from, last) = {
            let bounds = self.shared.lock();
            let from = last_log_id.map_or(0, |last| last.index + 1).max(bounds.first);
            if from >= bounds.next {
                return Ok(());
            }
            match from == bounds.first {
                true => (from, bounds.purged),
                false => (from, last_log_id),
            }
        };
        self.floor.lower(last).await?;
        {
            let mut bounds = self.shared.lock();
            bounds.tail.truncate(from);
            bounds.next = from;
            bounds.last = last;
        }
        self.sync.durably(|done| Job::Truncate(from, last, done)).await
    }

    /// Does not wait until the purge is durable: a log that comes back longer is a log that this node had.
    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.sync.check()?;
        let index = log_id.index + u64::from(mutant::on(Mutant::PurgeTooFar));
        let log_id = LogId { index, ..log_id };
        {
            let mut bounds = self.shared.lock();
            if bounds.purged.is_some_and(|purged| purged.index >= index) {
                return Ok(());
            }
            bounds.purged = Some(log_id);
            bounds.tail.purge(index);
            bounds.first = bounds.first.max(index + 1);
            if bounds.next <= index + 1 {
                bounds.next = bounds.first;
                bounds.last = Some(log_id);
            }
        }
        self.shared.purge_point().set(Some(log_id));
        self.sync.push(Job::Purge(log_id));
        Ok(())
    }
}

impl RaftLogReader<TypeConfig> for LogReader {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + Send>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (start, end) = bounds_of(&range);
        read(&self.shared, start, end, usize::MAX).await
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.lock().vote)
    }

    /// For replication. The result is bounded, so that one request does not outlast an election timeout. If the entry
    /// at `start` was purged, the result is empty: a result that begins later would be taken for the entries from
    /// `start`.
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        let entries = read(&self.shared, start, end, APPEND_BYTES_MAX).await?;
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
        let shared = self.shared.clone();
        let pieces = stream::unfold(Some(start), move |next| {
            let shared = shared.clone();
            async move {
                match read(&shared, next?, end, APPEND_BYTES_MAX).await {
                    Ok(entries) => {
                        let next = entries.last()?.log_id.index + 1;
                        Some((entries.into_iter().map(Ok).collect(), Some(next)))
                    }
                    Err(error) => Some((vec![Err(error)], None)),
                }
            }
        });
        pieces.flat_map(stream::iter::<Vec<_>>)
    }
}

/// Reads entries: at once if they are in memory, and on a thread that may block if they are in files.
async fn read(shared: &Arc<Shared>, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
    if let Some(entries) = shared.read_memory(start, end, bytes_max) {
        return Ok(entries);
    }
    let shared = shared.clone();
    let reading = tokio::task::spawn_blocking(move || shared.read(start, end, bytes_max));
    reading.await.unwrap_or_else(|error| Err(io::Error::other(error)))
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
