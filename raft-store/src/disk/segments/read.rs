//! Reading the records of one segment in order, from any of them on.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use bytes::{Bytes, BytesMut};

use super::format::{self, HEAD, Record, Seed};
use super::{PREAMBLE, TRAILER, damaged, path};

/// Bytes that are read at once, unless a record is longer.
const PIECE: usize = 256 << 10;

/// A segment that is open for reading.
pub(crate) struct Segment {
    file: File,
    number: u64,
    base: u64,
    seed: Seed,
    /// The length when it was opened. A segment that is completed meanwhile becomes shorter.
    length: u64,
}

impl Segment {
    /// Opens a segment. Fails with `InvalidData` if its preamble is damaged.
    pub(crate) fn open(dir: &Path, number: u64) -> io::Result<Self> {
        let file = File::open(path(dir, number))?;
        let length = file.metadata()?.len();
        let mut bytes = [0; PREAMBLE];
        let whole = length >= PREAMBLE as u64;
        if whole {
            file.read_exact_at(&mut bytes, 0)?;
        }
        let (base, seed) = format::read_preamble(&bytes, number)
            .filter(|_| whole)
            .ok_or_else(|| damaged(format!("the beginning of segment {number} is damaged")))?;
        Ok(Segment {
            file,
            number,
            base,
            seed,
            length,
        })
    }

    /// The hash of the last record of the segment before.
    pub(super) fn base(&self) -> u64 {
        self.base
    }

    pub(super) fn seed(&self) -> Seed {
        self.seed
    }

    /// The offset of the last record of a complete segment.
    pub(super) fn end(&self) -> io::Result<u32> {
        let broken = || damaged(format!("the end of segment {} is damaged", self.number));
        let at = self.length.checked_sub(TRAILER as u64).ok_or_else(broken)?;
        let mut bytes = [0; TRAILER];
        self.file.read_exact_at(&mut bytes, at)?;
        format::read_trailer(&bytes, self.seed).ok_or_else(broken)
    }

    /// Whether every byte from `offset` on is zero.
    pub(super) fn is_zero_from(&self, mut offset: u64) -> io::Result<bool> {
        let (mut piece, zeros) = (vec![0; PIECE], vec![0; PIECE]);
        loop {
            match self.file.read_at(&mut piece, offset)? {
                0 => return Ok(true),
                n if piece[..n] != zeros[..n] => return Ok(false),
                n => offset += n as u64,
            }
        }
    }

    /// All bytes from `offset` on.
    pub(super) fn rest(&self, offset: u64) -> io::Result<Bytes> {
        let size = usize::try_from(self.length.saturating_sub(offset)).map_err(io::Error::other)?;
        let mut bytes = vec![0; size];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(Bytes::from(bytes))
    }

    /// Reads from the record at `offset` on.
    pub(crate) fn records(&self, offset: u32) -> Records<'_> {
        Records {
            segment: self,
            offset,
            read: u64::from(offset),
            buffer: BytesMut::new(),
            hash: None,
        }
    }

    /// Reads from the first record on.
    pub(super) fn all(&self) -> Records<'_> {
        let mut records = self.records(PREAMBLE as u32);
        records.hash = Some(self.base);
        records
    }
}

/// The records of a segment, in order.
pub(crate) struct Records<'a> {
    segment: &'a Segment,
    /// The offset of the next record.
    offset: u32,
    /// The offset of the next byte to read into `buffer`.
    read: u64,
    buffer: BytesMut,
    /// The hash of the record before the next one, or `None` after a jump.
    hash: Option<u64>,
}

impl Records<'_> {
    /// The offset of the next record.
    pub(crate) fn offset(&self) -> u32 {
        self.offset
    }

    /// The hash of the last record that was read.
    pub(super) fn hash(&self) -> Option<u64> {
        self.hash
    }

    /// Continues at another record.
    pub(crate) fn seek(&mut self, offset: u32) {
        match offset.checked_sub(self.offset).and_then(|n| usize::try_from(n).ok()) {
            Some(0) => return,
            Some(skipped) if skipped <= self.buffer.len() => drop(self.buffer.split_to(skipped)),
            _ => {
                self.buffer.clear();
                self.read = u64::from(offset);
            }
        }
        (self.offset, self.hash) = (offset, None);
    }

    /// The next record, or `None` if there is none or it is damaged.
    pub(crate) fn try_next(&mut self) -> io::Result<Option<Record>> {
        if !self.fill(HEAD)? {
            return Ok(None);
        }
        let Some(length) = format::length(&self.buffer) else {
            return Ok(None);
        };
        if !self.fill(length)? {
            return Ok(None);
        }
        // The length may be damaged, so the bytes are only taken when the checksum matches.
        let bytes = self.buffer.split_to(length).freeze();
        let Some(record) = format::decode(&bytes, self.offset, self.segment.seed) else {
            return Ok(None);
        };
        if self.hash.is_some_and(|hash| hash != record.previous) {
            return Ok(None);
        }
        self.offset = u32::try_from(u64::from(self.offset) + length as u64).map_err(io::Error::other)?;
        self.hash = Some(record.hash);
        Ok(Some(record))
    }

    /// The next record, which must be whole.
    pub(crate) fn next(&mut self) -> io::Result<Record> {
        let (number, offset) = (self.segment.number, self.offset);
        let record = self.try_next()?;
        record.ok_or_else(|| {
            damaged(format!(
                "the record at byte {offset} of segment {number} does not match its checksum or the record before it"
            ))
        })
    }

    /// Reads until `buffer` has `length` bytes. Returns `false` if the segment ends before.
    fn fill(&mut self, length: usize) -> io::Result<bool> {
        let missing = length.saturating_sub(self.buffer.len());
        if missing == 0 {
            return Ok(true);
        }
        let left = usize::try_from(self.segment.length.saturating_sub(self.read)).map_err(io::Error::other)?;
        if missing > left {
            return Ok(false);
        }
        let old = self.buffer.len();
        self.buffer.resize(old + missing.max(PIECE).min(left), 0);
        let taken = read_up_to(&self.segment.file, &mut self.buffer[old..], self.read)?;
        self.buffer.truncate(old + taken);
        self.read += taken as u64;
        Ok(taken >= missing)
    }
}

/// Fills `buffer` from `offset` on, or as far as the file goes: the writer cuts a segment that it completes, and the
/// space that it had allocated is gone then.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut taken = 0;
    while taken < buffer.len() {
        match file.read_at(&mut buffer[taken..], offset + taken as u64) {
            Ok(0) => break,
            Ok(n) => taken += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(taken)
}
