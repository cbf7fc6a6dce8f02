//! Opening the log: reading its files, and the check against the durability floor.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use agentpost_proto::peer::{self, SegmentEnd, SegmentStart, segment_start};

use super::bounds::Bounds;
use super::files::{LogFiles, encode_start, lock_path};
use super::index::{Index, Point};
use super::metrics::LogMetrics;
use super::record::{decode, decode_entry, decode_point};
use super::removal::Removal;
use super::shared::{Shared, Where};
use super::tail::Tail;
use crate::core::mutant::{self, Mutant};
use crate::disk::damage::Damage;
use crate::disk::error::OpenError;
use crate::disk::files;
use crate::disk::floor::FloorFile;
use crate::disk::options::{LogStart, Options};
use crate::disk::segments::format::{HEAD, Kind, Record};
use crate::disk::segments::recover::{Found, recover};
use crate::disk::segments::write::{self, Writer};
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
    let said = found.said.unwrap_or_default();
    let start = |buffer: &mut Vec<u8>| encode_start(&said, buffer);
    let writer = match end {
        None => Writer::create(dir, FIRST, NO_HASH, start),
        Some(end) => end.resume(dir, start),
    };
    let writer = writer.map_err(OpenError::io(dir))?;
    let oldest = segments::numbers(dir).map_err(OpenError::io(dir))?;
    let place = || Where {
        dir: dir.to_owned(),
        shard: options.shard,
        segment_bytes: options.log_segment_bytes,
    };
    let shared = Arc::new(Shared::new(place(), damage, bounds, writer.number()));
    check_floor(&shared, floor.flushed()).map_err(|reason| OpenError::quarantine(dir, reason))?;
    let oldest = oldest.first().copied().unwrap_or(writer.number());
    let metrics = Arc::new(LogMetrics::new());
    let purged = dir.to_owned();
    let removal = Removal::spawn(oldest, metrics.failure(), move |range| write::remove(&purged, range));
    let files = LogFiles {
        removal: removal.map_err(OpenError::io(dir))?,
        place: place(),
        writer,
        said,
        changes: Vec::new(),
        // A crash may have prevented the removal of files.
        purged: true,
        shared: shared.clone(),
        metrics,
        flush: Box::new(|file| match mutant::on(Mutant::NoFsync) {
            true => Ok(()),
            false => file.sync_data(),
        }),
    };
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
    /// `None` before the first record of the newest segment.
    said: Option<segment_start::Log>,
    index: Index,
}

impl Reading {
    fn new(options: &Options) -> Self {
        Reading {
            shard: options.shard,
            any: options.log_start == LogStart::Anywhere,
            said: None,
            index: Index::default(),
        }
    }

    fn take(&mut self, segment: u64, found: Found) -> io::Result<()> {
        match found {
            Found::End(record) => {
                let end: SegmentEnd = decode(record.payload)?;
                if let Some(end) = end.logs.iter().find(|log| log.shard == self.shard) {
                    self.index.take_segment(segment, end);
                }
                Ok(())
            }
            Found::Record(record, offset) => self.record(segment, record, offset),
        }
    }

    fn record(&mut self, segment: u64, record: Record, offset: u32) -> io::Result<()> {
        if record.kind == Kind::Start {
            let start: SegmentStart = decode(record.payload)?;
            let said = start.logs.into_iter().find(|log| log.shard == self.shard);
            self.said = Some(said.unwrap_or_default());
            return Ok(());
        }
        if record.shard != self.shard {
            return Ok(());
        }
        let said = self
            .said
            .as_mut()
            .ok_or_else(|| damaged("its first record is damaged"))?;
        match record.kind {
            Kind::Start | Kind::End => {}
            Kind::Entry => {
                let size = HEAD + record.payload.len();
                let id = decode_entry(record.payload)?.log_id;
                let next = said.last.as_ref().map_or(0, |last| last.index + 1);
                if id.index != next && !(self.any && said.last.is_none()) {
                    return Err(damaged(format!("entry {id} is in the place of entry {next}")));
                }
                said.last = Some(log_id_to_proto(&id));
                let at = Point {
                    index: id.index,
                    segment,
                    offset,
                };
                self.index.add(at, size);
            }
            Kind::Vote => said.vote = Some(decode::<peer::Vote>(record.payload)?),
            Kind::Committed => said.committed = decode_point(record.payload)?.as_ref().map(log_id_to_proto),
            Kind::Truncated => {
                said.last = decode_point(record.payload)?.as_ref().map(log_id_to_proto);
                self.index.truncate(said.last.as_ref().map_or(0, |last| last.index + 1));
            }
            Kind::Purged => {
                said.purged = decode_point(record.payload)?.as_ref().map(log_id_to_proto);
                if said.last.as_ref().map(|last| last.index) <= said.purged.as_ref().map(|purged| purged.index) {
                    said.last = said.purged;
                }
            }
        }
        Ok(())
    }

    /// The bounds of the log. The error text says what is wrong with the log.
    fn bounds(&mut self, floor: Option<Vote>, options: &Options) -> Result<Bounds, String> {
        let said = self.said.unwrap_or_default();
        let vote = said.vote.as_ref().map(vote_from_proto);
        if let Some(floor) = floor
            && !vote.is_some_and(|vote| vote >= floor)
        {
            return Err(format!("its vote is {vote:?}, but this node has voted {floor}"));
        }
        let id = |id: &Option<agentpost_proto::record::LogId>| id.as_ref().map(log_id_from_proto);
        let (purged, last) = (id(&said.purged), id(&said.last));
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
            committed: id(&said.committed),
            vote,
            tail: Tail::new(options.log_tail_bytes, self.index.next()),
            index: std::mem::take(&mut self.index),
        })
    }
}

/// Checks that the log has the entry of the durability floor, or purged it.
fn check_floor(shared: &Shared, floor: Option<LogId>) -> Result<(), String> {
    let Some(floor) = floor else { return Ok(()) };
    let last = shared.lock().last;
    if last.is_none_or(|last| last.index < floor.index) {
        return match mutant::on(Mutant::FloorIgnored) {
            true => Ok(()),
            false => Err(format!("it ends at {last:?}, but {floor} was on this disk once")),
        };
    }
    let entries = shared
        .read(floor.index, floor.index + 1, usize::MAX)
        .map_err(|error| error.to_string())?;
    match entries.first().map(|entry| entry.log_id) {
        Some(id) if id != floor => Err(format!(
            "entry {} is {id}, but {floor} was on this disk once",
            floor.index
        )),
        _ => Ok(()),
    }
}
