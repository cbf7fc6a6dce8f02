//! Writes the changes of the log to its files. Only the sync thread does this.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use agentpost_proto::peer::{SegmentEnd, SegmentStart, segment_start};

use super::index::Point;
use super::metrics::LogMetrics;
use super::record::{encode, encode_entry, encode_point, size_of};
use super::removal::Removal;
use super::shared::{LogPlace, Shared};
use super::sync::{Job, Sink};
use crate::core::mutant::{self, Mutant};
use crate::disk::segments;
use crate::disk::segments::format::RecordKind;
use crate::disk::segments::write::{self, Writer};
use crate::disk::types::{Entry, log_id_to_proto, vote_to_proto};

/// A flush of the newest file, which tests make slow or let fail.
pub(super) type Flush = Box<dyn FnMut(&File) -> io::Result<()> + Send>;

/// The newest file of a log, which is written, and what is needed to begin and remove others.
pub(super) struct LogFiles {
    place: LogPlace,
    pub(super) writer: Writer,
    pub(super) removal: Removal,
    /// The state of the log after all jobs that were written, for the first record of the next segment.
    summary: segment_start::Log,
    /// What the index must learn when the buffer of the writer is in the file.
    changes: Vec<Change>,
    pub(super) shared: Arc<Shared>,
    pub(super) metrics: Arc<LogMetrics>,
    pub(super) flush: Flush,
    /// Whether a purge was written after which nothing was handed to `removal` yet.
    purged: bool,
}

enum Change {
    Add(Point, usize),
    Truncate(u64),
    Forget(u64),
}

/// Encodes the payload of the first record of a segment.
pub(super) fn encode_start(log: &segment_start::Log, buffer: &mut Vec<u8>) -> io::Result<()> {
    let logs = vec![*log];
    encode(&SegmentStart { logs }, buffer)
}

impl LogFiles {
    /// The files of the log at `place`, of which `oldest` is the first that is there.
    pub(super) fn new(
        place: LogPlace,
        writer: Writer,
        oldest: u64,
        summary: segment_start::Log,
        shared: Arc<Shared>,
    ) -> io::Result<Self> {
        let metrics = Arc::new(LogMetrics::new());
        let dir = place.dir.clone();
        let removal = Removal::spawn(oldest, metrics.failure(), move |range| write::remove(&dir, range))?;
        Ok(LogFiles {
            place,
            writer,
            removal,
            summary,
            changes: Vec::new(),
            shared,
            metrics,
            flush: Box::new(|file| match mutant::on(Mutant::NoFsync) {
                true => Ok(()),
                false => file.sync_data(),
            }),
            // A crash may have prevented the removal of files.
            purged: true,
        })
    }

    fn encode_job(&mut self, job: &Job) -> io::Result<()> {
        let shard = self.place.shard;
        match job {
            Job::Append(append) => return append.entries.iter().try_for_each(|entry| self.encode_entry(entry)),
            Job::Vote(vote, _) => {
                let vote = vote_to_proto(vote);
                self.summary.vote = Some(vote);
                self.writer
                    .push(RecordKind::Vote, shard, |buffer| encode(&vote, buffer))?;
            }
            Job::Truncate(from, last, _) => {
                self.summary.last = last.as_ref().map(log_id_to_proto);
                self.writer.push(RecordKind::Truncated, shard, |buffer| {
                    encode_point(last.as_ref(), buffer)
                })?;
                self.changes.push(Change::Truncate(*from));
            }
            Job::Purge(id) => {
                let purged = log_id_to_proto(id);
                if self.summary.last.as_ref().is_none_or(|last| last.index <= id.index) {
                    self.summary.last = Some(purged);
                }
                self.summary.purged = Some(purged);
                self.writer
                    .push(RecordKind::Purged, shard, |buffer| encode_point(Some(id), buffer))?;
                self.changes.push(Change::Forget(id.index + 1));
                self.purged = true;
            }
            Job::Committed(id) => {
                self.summary.committed = id.as_ref().map(log_id_to_proto);
                self.writer
                    .push(RecordKind::Committed, shard, |buffer| encode_point(id.as_ref(), buffer))?;
            }
        }
        Ok(())
    }

    fn encode_entry(&mut self, entry: &Entry) -> io::Result<()> {
        let end = u64::from(self.writer.offset()) + size_of(entry) as u64;
        if end > self.place.segment_bytes && !self.writer.is_young() {
            self.next_segment()?;
        }
        let at = Point {
            index: entry.log_id.index,
            segment: self.writer.number(),
            offset: self.writer.offset(),
        };
        let size = self.writer.push(RecordKind::Entry, self.place.shard, |buffer| {
            encode_entry(entry, buffer)
        })?;
        self.summary.last = Some(log_id_to_proto(&entry.log_id));
        self.changes.push(Change::Add(at, size));
        self.metrics.appended(1, size as u64);
        Ok(())
    }

    fn next_segment(&mut self) -> io::Result<()> {
        self.writer.write()?;
        self.publish();
        let end = SegmentEnd {
            logs: vec![
                self.shared
                    .lock()
                    .index
                    .segment_end(self.place.shard, self.writer.number()),
            ],
        };
        let summary = &self.summary;
        self.writer
            .next_segment(|buffer| encode(&end, buffer), |buffer| encode_start(summary, buffer))?;
        self.shared.set_newest(self.writer.number());
        Ok(())
    }

    /// Tells the index and the cache what is in the files now.
    fn publish(&mut self) {
        let mut bounds = self.shared.lock();
        for change in self.changes.drain(..) {
            match change {
                Change::Add(at, size) => bounds.index.add(at, size),
                Change::Truncate(from) => bounds.index.truncate(from),
                Change::Forget(first) => {
                    bounds.index.forget(first);
                }
            }
        }
        let next = bounds.index.next();
        bounds.tail.written(next);
    }
}

impl Sink for LogFiles {
    fn write(&mut self, jobs: &[Job]) -> io::Result<()> {
        let written = jobs.iter().try_for_each(|job| self.encode_job(job));
        written
            .and_then(|()| self.writer.write())
            .map_err(|e| self.named("writing", &e))?;
        self.publish();
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        (self.flush)(self.writer.file()).map_err(|e| self.named("flushing", &e))?;
        self.writer.begin_group();
        Ok(())
    }

    /// Files are removed only now that the purge is durable, because their entries cannot come back.
    fn tidy(&mut self) {
        if std::mem::take(&mut self.purged) {
            let needed = self.shared.lock().index.first_segment();
            self.removal.of_all_before(needed.unwrap_or(self.writer.number()));
        }
    }
}

impl LogFiles {
    /// An error with what failed and where, because the process logs it when it ends.
    fn named(&self, what: &str, error: &io::Error) -> io::Error {
        let path = segments::path(&self.place.dir, self.writer.number());
        io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()))
    }
}

/// The path of the lock of a log.
pub(super) fn lock_path(dir: &Path) -> PathBuf {
    dir.join("LOCK")
}
