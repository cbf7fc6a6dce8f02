//! Writing records: into a buffer, from there to the newest segment, and to the disk.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::file::{self, SegmentFile};
use super::format::{self, Place, RecordKind, Seed};
use super::{PREAMBLE, TRAILER};

/// The least and the most space that is allocated ahead; between them it is half of what the segment has.
const AHEAD: (u64, u64) = (256 << 10, 8 << 20);
/// The buffer is written when it is longer than this, also within a group.
const BUFFER: usize = 1 << 20;

/// Writes to the newest segment. After an error nothing may be written any more.
pub(crate) struct Writer {
    dir: PathBuf,
    file: SegmentFile,
    number: u64,
    seed: Seed,
    /// The end of what is in the file.
    written: u32,
    /// The end of the space that is allocated.
    allocated: u64,
    /// Records that are not in the file yet.
    buffer: Vec<u8>,
    /// The hash of the last record.
    hash: u64,
    /// Whether nothing was pushed since the last fsync.
    group_begins: bool,
}

/// The end of the newest segment.
pub(crate) struct Position {
    pub(crate) number: u64,
    pub(super) seed: Seed,
    /// The offset behind the last record.
    pub(crate) offset: u32,
    /// The hash of the last record.
    pub(super) hash: u64,
    /// The offset of the last record if it completes the segment.
    pub(super) end: Option<u32>,
}

impl Position {
    /// Continues the log here: in the same segment, or in a new one with the first record `start` if the segment is
    /// complete. When this returns, everything before is durable, also what a process left that was killed before its
    /// fsync.
    pub(crate) fn resume(&self, dir: &Path, start: impl FnOnce(&mut Vec<u8>) -> io::Result<()>) -> io::Result<Writer> {
        let file = SegmentFile::open(dir, self.number)?;
        let Some(end) = self.end else {
            file.set_len(u64::from(self.offset))?;
            file.sync()?;
            file::sync_dir(dir)?;
            return Ok(Writer::at(self, file, dir));
        };
        // A crash may have come before the segment was cut behind its last record, and its trailer may be torn.
        file.write_at(&format::trailer(end, self.seed), u64::from(self.offset))?;
        file.set_len(u64::from(self.offset) + TRAILER as u64)?;
        file.sync()?;
        Writer::create(dir, self.number + 1, self.hash, start)
    }
}

impl Writer {
    /// Continues a segment whose file ends at `at`.
    fn at(at: &Position, file: SegmentFile, dir: &Path) -> Self {
        Writer {
            dir: dir.to_owned(),
            file,
            number: at.number,
            seed: at.seed,
            written: at.offset,
            allocated: u64::from(at.offset),
            buffer: Vec::new(),
            hash: at.hash,
            group_begins: true,
        }
    }

    /// Creates segment `number`, which continues the record with the hash `base`. `start` encodes its first record. The
    /// segment is durable when this returns.
    pub(crate) fn create(
        dir: &Path,
        number: u64,
        base: u64,
        start: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<Self> {
        let file = SegmentFile::create(dir, number)?;
        let (preamble, seed) = format::preamble(number, base);
        let mut writer = Writer {
            dir: dir.to_owned(),
            file,
            number,
            seed,
            written: 0,
            allocated: 0,
            buffer: preamble.to_vec(),
            hash: base,
            group_begins: true,
        };
        writer.push(RecordKind::Start, 0, start)?;
        writer.write()?;
        writer.file.sync()?;
        file::sync_dir(dir)?;
        writer.group_begins = true;
        Ok(writer)
    }

    /// The number of the segment.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// The offset of the next record.
    pub(crate) fn offset(&self) -> u32 {
        // `push` keeps the sum below the limit.
        self.written + u32::try_from(self.buffer.len()).unwrap_or(u32::MAX)
    }

    /// Whether the segment has nothing but its first records.
    pub(crate) fn is_young(&self) -> bool {
        self.offset() < PREAMBLE as u32 + 4_096
    }

    /// Adds a record whose payload `encode` appends. Returns the length of the record.
    pub(crate) fn push(
        &mut self,
        kind: RecordKind,
        shard: u32,
        encode: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<usize> {
        let offset = self.offset();
        let place = Place {
            offset,
            previous: self.hash,
            first_of_group: std::mem::take(&mut self.group_begins),
        };
        let begin = self.buffer.len();
        format::open(kind, shard, &place, &mut self.buffer);
        encode(&mut self.buffer)?;
        let length = self.buffer.len() - begin;
        let fits = u32::try_from(length).is_ok_and(|length| offset.checked_add(length).is_some());
        let hash = format::close(&mut self.buffer[begin..], place.offset, self.seed).filter(|_| fits);
        self.hash = hash.ok_or_else(|| io::Error::other("a record is too long for a segment"))?;
        if self.buffer.len() > BUFFER {
            self.write()?;
        }
        Ok(length)
    }

    /// Hands what was pushed to the operating system.
    pub(crate) fn write(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let end = u64::from(self.offset());
        if end > self.allocated {
            let wanted = end + (end / 2).clamp(AHEAD.0, AHEAD.1);
            // Without it the write extends the file. A full disk then fails the write.
            if self.file.allocate(wanted).is_ok() {
                self.allocated = wanted;
            }
        }
        self.file.write_at(&self.buffer, u64::from(self.written))?;
        self.written = self.offset();
        self.buffer.clear();
        self.buffer.shrink_to(2 * BUFFER);
        Ok(())
    }

    /// The file, for the fsync.
    pub(crate) fn file(&self) -> &File {
        self.file.get()
    }

    /// Begins a group. Everything written before must be durable.
    pub(crate) fn begin_group(&mut self) {
        self.group_begins = true;
    }

    /// Completes the segment with a last record, and begins the next one. Both are durable when this returns.
    pub(crate) fn next_segment(
        &mut self,
        end: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
        start: impl FnOnce(&mut Vec<u8>) -> io::Result<()>,
    ) -> io::Result<()> {
        let at = self.offset();
        self.push(RecordKind::End, 0, end)?;
        self.buffer.extend_from_slice(&format::trailer(at, self.seed));
        self.write()?;
        self.file.set_len(u64::from(self.written))?;
        self.file.sync()?;
        let buffer = std::mem::take(&mut self.buffer);
        *self = Writer::create(&self.dir, self.number + 1, self.hash, start)?;
        self.buffer = buffer;
        Ok(())
    }
}

/// Removes segments, oldest first, and each durably before the next, so that a crash leaves no gap.
pub(crate) fn remove(dir: &Path, numbers: Range<u64>) -> io::Result<()> {
    for number in numbers {
        file::remove(dir, number)?;
        file::sync_dir(dir)?;
    }
    Ok(())
}
