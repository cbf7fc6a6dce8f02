//! Reading the segments at a start.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::format::{self, HEAD, Kind, Record, Seed};
use super::read::Segment;
use super::write::Position;
use super::{PREAMBLE, damaged, numbers, path};
use crate::core::mutant::{self, Mutant};
use crate::disk::files;
use crate::disk::progress::{Progress, Step};

/// What the segments of a directory came to.
pub(crate) struct Recovered {
    /// The end of the newest segment, or `None` if there is no segment.
    pub(crate) at: Option<Position>,
    /// Whether the newest segment has its last record: the next record belongs into a new segment.
    pub(crate) complete: bool,
}

/// What is read of a segment.
pub(crate) enum Found {
    /// The last record of a complete segment.
    End(Record),
    /// A record of the newest segment, and its offset.
    Record(Record, u32),
}

/// Reads the last record of each complete segment, and every record of the newest one. `on` gets them in order, with
/// the number of their segment. `may_be_empty` says whether a log without any segment is acceptable. `progress` is told
/// which segment is read.
///
/// Fails with `InvalidData` if a record that was durable is damaged or missing. The end of the newest segment may be
/// incomplete: that is what a power cut leaves.
pub(crate) fn recover(
    dir: &Path,
    may_be_empty: bool,
    progress: &Progress,
    mut on: impl FnMut(u64, Found) -> io::Result<()>,
) -> io::Result<Recovered> {
    let numbers = numbers(dir)?;
    let Some((newest, complete)) = numbers.split_last() else {
        return empty(may_be_empty);
    };
    let mut hash = None;
    let mut last = None;
    let of = numbers.len();
    for (segment, number) in (1..).zip(complete) {
        progress.begin(Step::Log { segment, of });
        let segment = Segment::open(dir, *number)?;
        continues(&segment, *number, hash)?;
        let end = segment.records(segment.end()?).next()?;
        if end.kind != Kind::End {
            return Err(damaged(format!("segment {number} does not end with its index")));
        }
        hash = Some(end.hash);
        last = Some(Position {
            number: *number,
            seed: segment.seed(),
            offset: u32::try_from(segment.length()).map_err(io::Error::other)?,
            hash: end.hash,
        });
        on(*number, Found::End(end))?;
    }
    progress.begin(Step::Log { segment: of, of });
    if !begins(dir, *newest)? {
        // A segment gets its first record in the write that creates it. If that never became durable, nothing of it
        // counts. Records behind it say that it was durable once.
        let bytes = Bytes::from(fs::read(path(dir, *newest))?);
        let seed = format::preamble(*newest, hash.unwrap_or(0)).1;
        if group_after(seed, 0, &bytes).is_some() || (last.is_none() && !may_be_empty) {
            return Err(damaged(format!("the beginning of segment {newest} is damaged")));
        }
        fs::remove_file(path(dir, *newest))?;
        files::sync_dir(dir)?;
        return match last {
            None => empty(may_be_empty),
            Some(at) => Ok(Recovered {
                at: Some(at),
                complete: true,
            }),
        };
    }
    let segment = Segment::open(dir, *newest)?;
    continues(&segment, *newest, hash)?;
    scan(&segment, *newest, on)
}

fn empty(acceptable: bool) -> io::Result<Recovered> {
    match acceptable {
        true => Ok(Recovered {
            at: None,
            complete: false,
        }),
        false => Err(damaged("it has no files")),
    }
}

/// Whether a segment has its first record.
fn begins(dir: &Path, number: u64) -> io::Result<bool> {
    let segment = match Segment::open(dir, number) {
        Ok(segment) => segment,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
        Err(error) => return Err(error),
    };
    let first = segment.all().try_next()?;
    Ok(first.is_some_and(|first| first.kind == Kind::Start))
}

fn continues(segment: &Segment, number: u64, hash: Option<u64>) -> io::Result<()> {
    match hash {
        Some(hash) if hash != segment.base() => {
            Err(damaged(format!("segment {number} does not continue the one before it")))
        }
        _ => Ok(()),
    }
}

/// Reads the newest segment.
fn scan(segment: &Segment, number: u64, mut on: impl FnMut(u64, Found) -> io::Result<()>) -> io::Result<Recovered> {
    let mut records = segment.all();
    let mut complete = false;
    loop {
        let offset = records.offset();
        let Some(record) = records.try_next()? else {
            break;
        };
        complete = record.kind == Kind::End;
        on(number, Found::Record(record, offset))?;
        if complete {
            break;
        }
    }
    let offset = records.offset();
    let hash = records.hash().ok_or_else(|| damaged("a segment without records"))?;
    if !complete && !segment.is_zero_from(u64::from(offset))? {
        let rest = segment.rest(u64::from(offset))?;
        if let Some(later) = group_after(segment.seed(), offset, &rest)
            && !mutant::on(Mutant::DefaultRecovery)
        {
            return Err(damaged(format!(
                "the record at byte {offset} of segment {number} is damaged: another one was written after it was \
                 durable, at byte {later}"
            )));
        }
        tracing::warn!(
            segment = number,
            offset,
            "the log ends with an incomplete record, as after a power cut; removing it"
        );
    }
    Ok(Recovered {
        at: Some(Position {
            number,
            seed: segment.seed(),
            offset,
            hash,
        }),
        complete,
    })
}

/// The offset of a group that begins after `offset`, not counting the first record of the segment; `rest` is what the
/// segment has there.
fn group_after(seed: Seed, offset: u32, rest: &Bytes) -> Option<u32> {
    (1..rest.len().saturating_sub(HEAD)).find_map(|skipped| {
        let head = &rest[skipped..];
        if !format::may_begin_group(head) {
            return None;
        }
        let length = format::length(head)?;
        let bytes = (head.len() >= length).then(|| rest.slice(skipped..skipped + length))?;
        let at = offset.checked_add(u32::try_from(skipped).ok()?)?;
        let record = format::decode(&bytes, at, seed)?;
        (record.first_of_group && at as usize != PREAMBLE).then_some(at)
    })
}

/// Reads a complete segment and compares every record with its checksum and with the record before it. `on` is called
/// with the length of each record; if it returns `false`, the reading stops without an error.
pub(crate) fn verify(dir: &Path, number: u64, mut on: impl FnMut(usize) -> bool) -> io::Result<()> {
    let segment = Segment::open(dir, number)?;
    let end = segment.end()?;
    let mut records = segment.all();
    debug_assert!(end as usize >= PREAMBLE);
    loop {
        let record = records.next()?;
        let last = record.kind == Kind::End;
        if !on(HEAD + record.payload.len()) || last {
            return Ok(());
        }
    }
}
