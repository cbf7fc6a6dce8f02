//! The part of the log that its writer and its readers share.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use rocksdb::{ColumnFamily, DBRawIterator, ReadOptions, WriteBatch};

use super::PurgePoint;
use super::bounds::Bounds;
use super::metrics::LogMetrics;
use super::record::{damaged, decode, seal};
use super::sync::SyncThread;
use crate::core::keys::log as keys;
use crate::disk::damage::{Damage, is_damage};
use crate::disk::floor::Floor;
use crate::disk::in_use::InUse;
use crate::disk::options::LogStart;
use crate::disk::types::{Entry, LogId, log_id_to_proto};

pub(super) struct Inner {
    // Joined before the database closes.
    pub(super) sync: SyncThread,
    // Joined after the sync thread, which raises it.
    pub(super) floor: Floor,
    pub(super) damage: Damage,
    pub(super) db: Arc<rocksdb::DB>,
    pub(super) log_start: LogStart,
    pub(super) metrics: Arc<LogMetrics>,
    pub(super) purge_point: PurgePoint,
    pub(super) bounds: Mutex<Bounds>,
    pub(super) _used: InUse,
}

/// The position of a truncation.
pub(super) struct Cut {
    from: u64,
    /// The last entry that stays, which may be purged. `None` if there was never one.
    pub(super) last: Option<LogId>,
    hash: u64,
}

impl Inner {
    pub(super) fn lock(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock()
    }

    pub(super) fn entries(&self) -> &ColumnFamily {
        super::open::family(&self.db, keys::ENTRIES)
    }

    pub(super) fn meta(&self) -> &ColumnFamily {
        super::open::family(&self.db, keys::META)
    }

    /// Writes to the WAL and the memtable. A failure is final for the log.
    pub(super) fn write(&self, batch: WriteBatch) -> io::Result<()> {
        self.sync.check()?;
        self.db.write(batch).map_err(|error| {
            self.sync.fail(error.as_ref());
            if is_damage(&error) {
                self.damage.log(error.as_ref());
            }
            io::Error::other(error)
        })
    }

    pub(super) fn put_hint(&self, batch: &mut WriteBatch, committed: Option<LogId>) {
        match committed {
            Some(id) => batch.put_cf(self.meta(), keys::COMMITTED, seal(&log_id_to_proto(&id))),
            None => batch.delete_cf(self.meta(), keys::COMMITTED),
        }
    }

    /// The entries of `start..end` that the log has, oldest first, until they exceed `bytes_max`. It returns at least
    /// one entry if there is one.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let read = self.read_range(start, end, bytes_max);
        read.inspect_err(|error| {
            if error.kind() == io::ErrorKind::InvalidData {
                self.damage.log(&error.to_string());
            }
        })
    }

    fn read_range(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let mut taken = Taken::new(bytes_max);
        let bounds = self.lock();
        let start = start.max(bounds.first);
        let end = end.min(bounds.next);
        if start >= end {
            return Ok(Vec::new());
        }
        let split = bounds.tail.first().unwrap_or(end).clamp(start, end);
        let mut cached = Taken::new(bytes_max);
        let from_tail = (split..end).map_while(|index| bounds.tail.get(index));
        for recent in from_tail {
            if !cached.take(recent.entry.clone(), recent.size) {
                break;
            }
        }
        // The iterator reads the database as of now, without later truncations and purges.
        let iterator = (start < split).then(|| self.iterator(start, split));
        drop(bounds);
        if let Some(iterator) = iterator
            && !read_records(iterator, start..split, &mut taken)?
        {
            return Ok(taken.entries);
        }
        for (entry, size) in cached.entries.into_iter().zip(cached.sizes) {
            if !taken.take(entry, size) {
                break;
            }
        }
        Ok(taken.entries)
    }

    /// Removes the files that contain only entries up to `index`. Unlike in a range deletion, RocksDB includes the end
    /// of the range here: with `index + 1` a purge could remove the first entry that must stay.
    pub(super) fn remove_files(&self, index: u64) -> io::Result<()> {
        let removed = self
            .db
            .delete_file_in_range_cf(self.entries(), keys::entry(0), keys::entry(index));
        removed.map_err(io::Error::other)
    }

    fn iterator(&self, start: u64, end: u64) -> DBRawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(keys::entry(start));
        options.set_iterate_upper_bound(keys::entry(end));
        self.db.raw_iterator_cf_opt(self.entries(), options)
    }

    /// The position of a truncation that removes the entries from `from` on, or `None` if there are no such entries.
    pub(super) fn find_cut(&self, from: u64) -> io::Result<Option<Cut>> {
        let (from, first) = {
            let bounds = self.lock();
            let from = from.max(bounds.first);
            if from >= bounds.next {
                return Ok(None);
            }
            if from == bounds.first {
                let (last, hash) = (bounds.purged, bounds.base);
                return Ok(Some(Cut { from, last, hash }));
            }
            (from, bounds.first)
        };
        debug_assert!(from > first);
        let (last, hash) = self.known(from - 1)?;
        let last = Some(last);
        Ok(Some(Cut { from, last, hash }))
    }

    /// Hides the entries after a cut from readers, and returns their indexes.
    pub(super) fn hide(&self, cut: &Cut) -> Range<u64> {
        let mut bounds = self.lock();
        let gone = cut.from..bounds.next;
        bounds.tail.truncate(cut.from);
        bounds.next = cut.from;
        bounds.last = cut.last;
        bounds.hash = cut.hash;
        gone
    }

    /// The previous hash of the entry after `index`, to be stored when everything up to `index` is purged. `None` if
    /// that is already purged.
    pub(super) fn hash_behind(&self, index: u64) -> io::Result<Option<u64>> {
        {
            let bounds = self.lock();
            if bounds.purged.is_some_and(|purged| purged.index >= index) {
                return Ok(None);
            }
            if index >= bounds.next || index < bounds.first {
                return Ok(Some(0));
            }
        }
        Ok(Some(self.known(index)?.1))
    }

    /// The id and hash of an entry that the log has.
    pub(super) fn known(&self, index: u64) -> io::Result<(LogId, u64)> {
        if let Some(recent) = self.lock().tail.get(index) {
            return Ok((recent.entry.log_id, recent.hash));
        }
        let value = self
            .db
            .get_pinned_cf(self.entries(), keys::entry(index))
            .map_err(disk)?;
        let value = value.ok_or_else(|| damaged(format!("entry {index} is missing")))?;
        let record = decode(index, &value)?;
        Ok((record.entry.log_id, record.hash))
    }
}

/// Converts an error of RocksDB. Damage becomes `InvalidData`.
fn disk(error: rocksdb::Error) -> io::Error {
    if is_damage(&error) {
        damaged(error.into_string())
    } else {
        io::Error::other(error)
    }
}

/// Entries, up to a number of bytes.
struct Taken {
    entries: Vec<Entry>,
    sizes: Vec<usize>,
    bytes: usize,
    bytes_max: usize,
}

impl Taken {
    fn new(bytes_max: usize) -> Self {
        Taken {
            entries: Vec::new(),
            sizes: Vec::new(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Takes an entry unless it would exceed the bound. Returns whether it did.
    fn take(&mut self, entry: Entry, size: usize) -> bool {
        if !self.entries.is_empty() && self.bytes + size > self.bytes_max {
            return false;
        }
        self.bytes += size;
        self.entries.push(entry);
        self.sizes.push(size);
        true
    }
}

/// Reads exactly the entries of `range`; says whether all of them were taken.
fn read_records(mut iterator: DBRawIterator<'_>, range: Range<u64>, taken: &mut Taken) -> io::Result<bool> {
    iterator.seek_to_first();
    let mut previous = None;
    for expected in range {
        let Some((key, value)) = iterator.item() else {
            iterator.status().map_err(disk)?;
            return Err(damaged(format!("entry {expected} is missing")));
        };
        if keys::index(key) != Some(expected) {
            return Err(damaged(format!("entry {expected} is missing")));
        }
        let record = decode(expected, value)?;
        if previous.is_some_and(|previous| previous != record.previous) {
            return Err(damaged(format!("entry {expected} does not continue the one before it")));
        }
        previous = Some(record.hash);
        if !taken.take(record.entry, value.len()) {
            return Ok(false);
        }
        iterator.next();
    }
    Ok(true)
}
