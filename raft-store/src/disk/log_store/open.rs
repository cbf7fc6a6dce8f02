//! Opening the log: reading its files, and the check against the durability floor.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use agentpost_proto::peer::{self, SegmentEnd, SegmentStart, segment_start};

use super::bounds::Bounds;
use super::files::{LogFiles, encode_start, lock_path};
use super::index::{Index, Point};
use super::record::{decode, decode_entry, decode_point};
use super::shared::{LogPlace, Shared};
use super::tail::Tail;
use crate::core::mutant::{self, Mutant};
use crate::disk::damage::Damage;
use crate::disk::error::OpenError;
use crate::disk::files;
use crate::disk::floor::FloorFile;
use crate::disk::options::{LogStart, Options};
use crate::disk::segments::format::{HEAD, Record, RecordKind};
use crate::disk::segments::recover::{Recovered, recover};
use crate::disk::segments::write::Writer;
use crate::disk::segments::{self, FIRST, NO_HASH, damaged};
use crate::disk::types::{LogId, Vote, log_id_from_proto, log_id_to_proto, vote_from_proto};

/// An open log: what its writer has, what its readers have, and the lock of its directory.
pub(super) struct Opened {
    pub(super) files: LogFiles,
    pub(super) shared: Arc<Shared>,
    pub(super) lock: File,
}

/// Opens the log in `dir`, or creates it if its floor is new.
pub(super) fn open(dir: &Path, floor: &FloorFile, options: &Options, damage: Damage) -> Result<Opened, OpenError> {
    let new = floor.is_new();
    if new {
        files::create_dir(dir).map_err(OpenError::io(dir))?;
    } else if !dir.is_dir() {
        return Err(OpenError::quarantine(dir, "it is missing"));
    }
    let lock = lock(dir)?;
    let read = |error: io::Error| match error.kind() {
        io::ErrorKind::InvalidData => OpenError::quarantine(dir, error),
        _ => OpenError::io(dir)(error),
    };
    let mut found = Reading::new(options);
    let take = |segment, record| found.take(segment, record);
    let end = recover(dir, new, &options.progress, take).map_err(read)?;
    let bounds = found
        .bounds(floor.vote(), options)
        .map_err(|reason| OpenError::quarantine(dir, reason))?;
    let summary = found.summary.unwrap_or_default();
    let start = |buffer: &mut Vec<u8>| encode_start(&summary, buffer);
    let writer = match end {
        None => Writer::create(dir, FIRST, NO_HASH, start),
        Some(end) => end.resume(dir, start),
    };
    let writer = writer.map_err(OpenError::io(dir))?;
    let oldest = segments::numbers(dir).map_err(OpenError::io(dir))?;
    let oldest = oldest.first().copied().unwrap_or(writer.number());
    let place = LogPlace {
        dir: dir.to_owned(),
        shard: options.shard,
        segment_bytes: options.log_segment_bytes,
    };
    let shared = Arc::new(Shared::new(place.clone(), damage, bounds, writer.number()));
    check_floor(&shared, floor.flushed()).map_err(read)?;
    let files = LogFiles::new(place, writer, oldest, summary, shared.clone()).map_err(OpenError::io(dir))?;
    Ok(Opened { files, shared, lock })
}

/// Locks the directory against other processes. The lock ends with the returned file.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let path = lock_path(dir);
    let file = File::create(&path).map_err(OpenError::io(&path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(OpenError::InUse {
            path: dir.to_owned(),
            reason: format!("{} is locked", path.display()),
        }),
        Err(std::fs::TryLockError::Error(error)) => Err(OpenError::io(&path)(error)),
    }
}

/// The state of reading the records of a log.
struct Reading {
    shard: u32,
    /// Whether the first entry may have any index.
    any: bool,
    /// The state of the log after the records that were read; `None` before the first one of the newest segment.
    summary: Option<segment_start::Log>,
    index: Index,
}

impl Reading {
    fn new(options: &Options) -> Self {
        Reading {
            shard: options.shard,
            any: options.log_start == LogStart::Anywhere,
            summary: None,
            index: Index::default(),
        }
    }

    fn take(&mut self, segment: u64, found: Recovered) -> io::Result<()> {
        match found {
            Recovered::End(record) => {
                let end: SegmentEnd = decode(record.payload)?;
                if let Some(end) = end.logs.iter().find(|log| log.shard == self.shard) {
                    self.index.take_segment(segment, end);
                }
                Ok(())
            }
            Recovered::Record(record, offset) => self.record(segment, record, offset),
        }
    }

    fn record(&mut self, segment: u64, record: Record, offset: u32) -> io::Result<()> {
        if record.kind == RecordKind::Start {
            let start: SegmentStart = decode(record.payload)?;
            let summary = start.logs.into_iter().find(|log| log.shard == self.shard);
            self.summary = Some(summary.unwrap_or_default());
            return Ok(());
        }
        if record.shard != self.shard {
            return Ok(());
        }
        let summary = self
            .summary
            .as_mut()
            .ok_or_else(|| damaged("its first record is damaged"))?;
        match record.kind {
            RecordKind::Start | RecordKind::End => {}
            RecordKind::Entry => {
                let size = HEAD + record.payload.len();
                let id = decode_entry(record.payload)?.log_id;
                let next = summary.last.as_ref().map_or(0, |last| last.index + 1);
                if id.index != next && !(self.any && summary.last.is_none()) {
                    return Err(damaged(format!("entry {id} is in the place of entry {next}")));
                }
                summary.last = Some(log_id_to_proto(&id));
                let at = Point {
                    index: id.index,
                    segment,
                    offset,
                };
                self.index.add(at, size);
            }
            RecordKind::Vote => summary.vote = Some(decode::<peer::Vote>(record.payload)?),
            RecordKind::Committed => summary.committed = decode_point(record.payload)?.as_ref().map(log_id_to_proto),
            RecordKind::Truncated => {
                summary.last = decode_point(record.payload)?.as_ref().map(log_id_to_proto);
                self.index
                    .truncate(summary.last.as_ref().map_or(0, |last| last.index + 1));
            }
            RecordKind::Purged => {
                summary.purged = decode_point(record.payload)?.as_ref().map(log_id_to_proto);
                if summary.last.as_ref().map(|last| last.index) <= summary.purged.as_ref().map(|purged| purged.index) {
                    summary.last = summary.purged;
                }
            }
        }
        Ok(())
    }

    /// The bounds of the log. The error text says what is wrong with the log.
    fn bounds(&mut self, floor: Option<Vote>, options: &Options) -> Result<Bounds, String> {
        let summary = self.summary.unwrap_or_default();
        let vote = summary.vote.as_ref().map(vote_from_proto);
        if let Some(floor) = floor
            && !vote.is_some_and(|vote| vote >= floor)
        {
            return Err(format!("its vote is {vote:?}, but this node has voted {floor}"));
        }
        let id = |id: &Option<agentpost_proto::record::LogId>| id.as_ref().map(log_id_from_proto);
        let (purged, last) = (id(&summary.purged), id(&summary.last));
        let mut first = purged.map_or(0, |purged| purged.index + 1);
        let next = last.map_or(first, |last| last.index + 1);
        self.index.forget(first);
        if first < next {
            let begin = self.index.first();
            if purged.is_none() && self.any {
                first = begin.unwrap_or(first);
            }
            if self.index.next() != next || begin.is_none_or(|begin| begin > first) {
                return Err(format!(
                    "its files have the entries from {begin:?} to {}, but it had those from {first} to {next}",
                    self.index.next()
                ));
            }
        }
        Ok(Bounds {
            first,
            next,
            last,
            purged,
            committed: id(&summary.committed),
            vote,
            tail: Tail::new(options.log_tail_bytes, self.index.next()),
            index: std::mem::take(&mut self.index),
        })
    }
}

/// Checks that the log has the entry of the durability floor, or purged it. The error is `InvalidData` if it has not.
fn check_floor(shared: &Shared, floor: Option<LogId>) -> io::Result<()> {
    let Some(floor) = floor else { return Ok(()) };
    let last = shared.lock().last;
    if last.is_none_or(|last| last.index < floor.index) {
        return match mutant::on(Mutant::FloorIgnored) {
            true => Ok(()),
            false => Err(damaged(format!(
                "it ends at {last:?}, but {floor} was on this disk once"
            ))),
        };
    }
    let entries = shared.read(floor.index, floor.index + 1, usize::MAX)?;
    match entries.first().map(|entry| entry.log_id) {
        Some(id) if id != floor => Err(damaged(format!(
            "entry {} is {id}, but {floor} was on this disk once",
            floor.index
        ))),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tempfile::TempDir;

    use super::super::tests::{self as log, several_files, small};
    use super::*;
    use crate::disk::testing::log_id;

    /// An entry that cannot be read is not one that is lost: the next start may read it.
    #[tokio::test]
    async fn a_disk_error_is_no_damage_when_the_floor_is_checked() {
        let dir = TempDir::new().unwrap();
        several_files(dir.path()).await;
        let path = dir.path().join("log");
        let opened = open(&path, &log::floor(dir.path()).unwrap(), &small(), Damage::default()).unwrap();
        check_floor(&opened.shared, Some(log_id(1, 0))).unwrap();
        let other = check_floor(&opened.shared, Some(log_id(2, 0))).unwrap_err();
        assert_eq!(other.kind(), io::ErrorKind::InvalidData);
        // A directory opens as a file does, and cannot be read.
        let first = segments::path(&path, FIRST);
        std::fs::remove_file(&first).unwrap();
        std::fs::create_dir(&first).unwrap();
        let error = check_floor(&opened.shared, Some(log_id(1, 0))).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
