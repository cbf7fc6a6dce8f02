//! The part of the log that its writers and its readers share.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, MutexGuard};

use super::PurgePoint;
use super::bounds::Bounds;
use super::index::Point;
use super::record::decode_entry;
use super::tail::Tail;
use crate::disk::damage::Damage;
use crate::disk::segments::format::RecordKind;
use crate::disk::segments::read::Segment;
use crate::disk::segments::{damaged, recover};
use crate::disk::types::Entry;

pub(super) struct Shared {
    place: LogPlace,
    damage: Damage,
    purge_point: PurgePoint,
    bounds: Mutex<Bounds>,
    /// The number of the segment that is being written.
    newest: AtomicU64,
}

/// The directory of a log, its shard, and the size of its segments.
#[derive(Clone)]
pub(super) struct LogPlace {
    pub(super) dir: PathBuf,
    pub(super) shard: u32,
    pub(super) segment_bytes: u64,
}

impl Shared {
    pub(super) fn new(place: LogPlace, damage: Damage, bounds: Bounds, newest: u64) -> Self {
        let purge_point = PurgePoint::default();
        purge_point.set(bounds.purged);
        Shared {
            place,
            damage,
            purge_point,
            bounds: Mutex::new(bounds),
            newest: AtomicU64::new(newest),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Bounds> {
        self.bounds.lock()
    }

    pub(super) fn purge_point(&self) -> &PurgePoint {
        &self.purge_point
    }

    pub(super) fn set_newest(&self, segment: u64) {
        self.newest.store(segment, Ordering::Relaxed);
    }

    /// The index at which the last `bytes` of the log begin, or `None` if the log is not longer.
    pub(super) fn begin_of_last(&self, bytes: u64) -> Option<u64> {
        self.lock().index.begin_of_last(bytes, self.place.segment_bytes)
    }

    /// The bytes of the entries from `index` on.
    pub(super) fn bytes_from(&self, index: u64) -> u64 {
        self.lock().index.bytes_from(index, self.place.segment_bytes)
    }

    /// The entries of `start..end` that the log has, oldest first, until they exceed `bytes_max`. It returns at least
    /// one entry if there is one. Blocks if files must be read.
    pub(super) fn read(&self, start: u64, end: u64, bytes_max: usize) -> io::Result<Vec<Entry>> {
        loop {
            match self.read_range(start, end, bytes_max) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // The entries were purged while they were being read.
                    if self.lock().first > start {
                        continue;
                    }
                    self.damage.log(&error.to_string());
                    return Err(error);
                }
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.damage.log(&error.to_string());
                    return Err(error);
                }
                other => return other,
            }
        }
    }

    /// The same as [`Shared::read`] if all of it is in memory, or `None` if files must be read.
    pub(super) fn read_memory(&self, start: u64, end: u64, bytes_max: usize) -> Option<Vec<Entry>> {
        let bounds = self.lock();
        let range = bounds.first.max(start)..bounds.next.min(end);
        if range.is_empty() {
            return Some(Vec::new());
        }
        let in_memory = bounds.tail.first().is_some_and(|first| first <= range.start);
        in_memory.then(|| Taken::of_tail(&bounds.tail, range, bytes_max).entries)
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
        let cached = Taken::of_tail(&bounds.tail, split..end, bytes_max);
        // What is in a file does not change, so the files can be read without the lock.
        let runs = bounds.index.runs(start..split);
        drop(bounds);
        if start < split && !self.read_files(start..split, &runs, &mut taken)? {
            return Ok(taken.entries);
        }
        for (entry, size) in cached.entries.into_iter().zip(cached.sizes) {
            if !taken.take(entry, size) {
                break;
            }
        }
        Ok(taken.entries)
    }

    /// Reads exactly the entries of `range`; says whether all of them were taken.
    fn read_files(&self, range: Range<u64>, runs: &[(Point, Range<u64>)], taken: &mut Taken) -> io::Result<bool> {
        let mut next = range.start;
        for same in runs.chunk_by(|a, b| a.0.segment == b.0.segment) {
            let segment = Segment::open(&self.place.dir, same[0].0.segment)?;
            let mut records = segment.records(same[0].0.offset);
            for (point, run) in same {
                records.seek(point.offset);
                let mut at = point.index;
                while at < run.end {
                    let record = records.next()?;
                    if record.kind != RecordKind::Entry || record.shard != self.place.shard {
                        continue;
                    }
                    if at >= next {
                        let size = record.payload.len();
                        let entry = decode_entry(record.payload)?;
                        if entry.log_id.index != at || at != next {
                            return Err(damaged(format!(
                                "entry {} is in the place of entry {next}",
                                entry.log_id
                            )));
                        }
                        if !taken.take(entry, size) {
                            return Ok(false);
                        }
                        next += 1;
                    }
                    at += 1;
                }
            }
        }
        match next == range.end {
            true => Ok(true),
            false => Err(damaged(format!("entry {next} is missing"))),
        }
    }

    /// Reads all complete segments again that the log needs. `on` is called with the length of each record, and ends the
    /// reading if it returns `false`. Damage is reported.
    pub(super) fn verify(&self, mut on: impl FnMut(usize) -> bool) -> io::Result<()> {
        let newest = self.newest.load(Ordering::Relaxed);
        for number in self.first_segment().unwrap_or(newest)..newest {
            let mut more = true;
            match recover::verify(&self.place.dir, number, |bytes| {
                more = on(bytes);
                more
            }) {
                Ok(()) => {}
                // It was purged meanwhile.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && self.first_segment().is_none_or(|first| first > number) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::NotFound) => {
                    self.damage.log(&format!("segment {number}: {error}"));
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
            if !more {
                break;
            }
        }
        Ok(())
    }

    /// The segment of the first entry, or `None` if no entry is in a file.
    fn first_segment(&self) -> Option<u64> {
        self.lock().index.first_segment()
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

    /// The entries of `range`, which the tail has.
    fn of_tail(tail: &Tail, range: Range<u64>, bytes_max: usize) -> Self {
        let mut taken = Taken::new(bytes_max);
        for recent in range.map_while(|index| tail.get(index)) {
            if !taken.take(recent.entry.clone(), recent.size) {
                break;
            }
        }
        taken
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
