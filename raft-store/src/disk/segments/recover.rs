//! Reading the segments at a start.

use std::fs;
use std::io;
use std::path::Path;

use bytes::Bytes;

use super::format::{self, HEAD, Record, RecordKind, Seed};
use super::read::Segment;
use super::write::Position;
use super::{FIRST, NO_HASH, PREAMBLE, damaged, file, numbers, path};
use crate::core::mutant::{self, Mutant};
use crate::disk::progress::{Progress, Step};

/// A record that is read at a start.
pub(crate) enum Recovered {
    /// The last record of a complete segment.
    End(Record),
    /// A record of the newest segment, and its offset.
    Record(Record, u32),
}

/// Reads the last record of each complete segment, and every record of the newest one. `on` gets them in order, with
/// the number of their segment. `may_be_empty` says whether a log without any segment is acceptable. `progress` is told
/// which segment is read. Returns the end of the newest segment, or `None` if there is none.
///
/// A segment whose creation did not finish is removed, and the one before it is the newest.
///
/// Fails with `InvalidData` if a record that was durable is damaged or missing. The end of the newest segment may be
/// incomplete: that is what a power cut leaves.
pub(crate) fn recover(
    dir: &Path,
    may_be_empty: bool,
    progress: &Progress,
    mut on: impl FnMut(u64, Recovered) -> io::Result<()>,
) -> io::Result<Option<Position>> {
    let mut numbers = numbers(dir)?;
    let unfinished = match numbers.last() {
        Some(newest) if !begins(dir, *newest)? => numbers.pop(),
        _ => None,
    };
    let Some((newest, complete)) = numbers.split_last() else {
        return match unfinished {
            None if may_be_empty => Ok(None),
            None => Err(damaged("it has no files")),
            Some(FIRST) if may_be_empty => remove_unfinished(dir, FIRST, NO_HASH).map(|()| None),
            Some(number) => Err(no_beginning(number)),
        };
    };
    let mut hash = None;
    let of = numbers.len();
    for (segment, number) in (1..).zip(complete) {
        progress.begin(Step::Log { segment, of });
        let segment = Segment::open(dir, *number)?;
        continues(&segment, *number, hash)?;
        let end = segment.records(segment.end()?).next()?;
        if end.kind != RecordKind::End {
            return Err(damaged(format!("segment {number} does not end with its index")));
        }
        hash = Some(end.hash);
        on(*number, Recovered::End(end))?;
    }
    progress.begin(Step::Log { segment: of, of });
    let segment = Segment::open(dir, *newest)?;
    continues(&segment, *newest, hash)?;
    let at = scan(&segment, *newest, on)?;
    if let Some(number) = unfinished {
        // All of the segment before was durable when this one was created.
        if at.end != Some(segment.end()?) {
            return Err(damaged(format!("segment {newest} is damaged before its end")));
        }
        remove_unfinished(dir, number, at.hash)?;
    }
    Ok(Some(at))
}

/// Removes a segment that has no whole first record and that was to continue the record with the hash `base`. The write
/// that creates a segment contains that record; if it never became durable, nothing of the segment counts. Groups
/// behind it say that it was durable once.
fn remove_unfinished(dir: &Path, number: u64, base: u64) -> io::Result<()> {
    let bytes = Bytes::from(fs::read(path(dir, number))?);
    let seed = format::preamble(number, base).1;
    if group_after(seed, 0, &bytes).is_some() {
        return Err(no_beginning(number));
    }
    tracing::warn!(
        segment = number,
        "the newest file of the log has no whole first record, as after a crash; removing it"
    );
    file::remove(dir, number)?;
    file::sync_dir(dir)
}

fn no_beginning(number: u64) -> io::Error {
    damaged(format!("the beginning of segment {number} is damaged"))
}

/// Whether a segment has its first record.
fn begins(dir: &Path, number: u64) -> io::Result<bool> {
    let segment = match Segment::open(dir, number) {
        Ok(segment) => segment,
        Err(error) if error.kind() == io::ErrorKind::InvalidData => return Ok(false),
        Err(error) => return Err(error),
    };
    let first = segment.all().try_next()?;
    Ok(first.is_some_and(|first| first.kind == RecordKind::Start))
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
fn scan(segment: &Segment, number: u64, mut on: impl FnMut(u64, Recovered) -> io::Result<()>) -> io::Result<Position> {
    let mut records = segment.all();
    let mut end = None;
    while end.is_none() {
        let offset = records.offset();
        let Some(record) = records.try_next()? else {
            break;
        };
        if offset as usize == PREAMBLE && record.kind != RecordKind::Start {
            return Err(no_beginning(number));
        }
        end = (record.kind == RecordKind::End).then_some(offset);
        on(number, Recovered::Record(record, offset))?;
    }
    let offset = records.offset();
    let hash = records.hash().filter(|_| offset as usize > PREAMBLE);
    let hash = hash.ok_or_else(|| no_beginning(number))?;
    if end.is_none() && !segment.is_zero_from(u64::from(offset))? {
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
    Ok(Position {
        number,
        seed: segment.seed(),
        offset,
        hash,
        end,
    })
}

/// The offset of a group that begins after `offset`, not counting the first record of the segment; `rest` is what the
/// segment has there.
fn group_after(seed: Seed, offset: u32, rest: &Bytes) -> Option<u32> {
    // Behind the last byte that is not zero there is no head.
    let used = rest.iter().rposition(|byte| *byte != 0).unwrap_or(0);
    (1..rest.len().saturating_sub(HEAD).min(used)).find_map(|skipped| {
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
        let last = record.kind == RecordKind::End;
        if !on(HEAD + record.payload.len()) || last {
            return Ok(());
        }
    }
}
