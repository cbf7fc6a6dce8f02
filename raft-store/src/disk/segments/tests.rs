#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::format::{Record, RecordKind};
use super::read::Segment;
use super::recover::{Recovered, recover, verify};
use super::write::{Position, Writer};
use super::*;
use crate::disk::progress::{Progress, Step};

fn start(buffer: &mut Vec<u8>) -> io::Result<()> {
    buffer.extend_from_slice(b"start");
    Ok(())
}

fn create(dir: &Path) -> Writer {
    Writer::create(dir, 1, 0, start).unwrap()
}

fn push(writer: &mut Writer, payload: &[u8]) {
    writer
        .push(RecordKind::Entry, 3, |buffer| {
            buffer.extend_from_slice(payload);
            Ok(())
        })
        .unwrap();
}

/// Writes a group of records.
fn group(writer: &mut Writer, payloads: &[&[u8]]) {
    for payload in payloads {
        push(writer, payload);
    }
    writer.write().unwrap();
    writer.file().sync_data().unwrap();
    writer.begin_group();
}

fn next_segment(writer: &mut Writer) {
    writer.next_segment(start, start).unwrap();
}

/// The payloads of the entries of the newest segment, and where to go on.
fn read(dir: &Path) -> io::Result<(Vec<Vec<u8>>, Position)> {
    let mut payloads = Vec::new();
    let end = recover(dir, false, &Progress::default(), |_, found| {
        if let Recovered::Record(
            Record {
                kind: RecordKind::Entry,
                payload,
                ..
            },
            _,
        ) = found
        {
            payloads.push(payload.to_vec());
        }
        Ok(())
    })?;
    Ok((payloads, end.unwrap()))
}

fn is_damage<T>(read: io::Result<T>) -> bool {
    matches!(read, Err(error) if error.kind() == io::ErrorKind::InvalidData)
}

#[test]
fn the_last_group_may_be_cut_anywhere_and_any_other_may_not() {
    let dir = TempDir::new().unwrap();
    let mut writer = create(dir.path());
    group(&mut writer, &[b"one", b"two"]);
    let second = writer.offset() as usize;
    group(&mut writer, &[b"three", b"four"]);
    let end = writer.offset() as usize;
    drop(writer);
    let file = path(dir.path(), 1);
    let whole = fs::read(&file).unwrap();
    for cut in PREAMBLE + 30..end {
        let mut bytes = whole.clone();
        bytes[cut..].fill(0);
        fs::write(&file, &bytes).unwrap();
        let (payloads, end) = read(dir.path()).unwrap();
        assert!(payloads.len() < 4, "cut at {cut}");
        let mut writer = end.resume(dir.path(), start).unwrap();
        group(&mut writer, &[b"later"]);
        let (after, _) = read(dir.path()).unwrap();
        assert_eq!(after.len(), payloads.len() + 1);
    }
    for hole in PREAMBLE..second {
        let mut bytes = whole.clone();
        bytes[hole] ^= 4;
        fs::write(&file, &bytes).unwrap();
        assert!(is_damage(read(dir.path())), "byte {hole}");
    }
    for hole in second..end {
        let mut bytes = whole.clone();
        bytes[hole] ^= 4;
        fs::write(&file, &bytes).unwrap();
        let (payloads, _) = read(dir.path()).unwrap();
        assert!((2..4).contains(&payloads.len()), "byte {hole}");
    }
}

/// A tenant may send the bytes of records. They must not make an incomplete group look like damage.
#[test]
fn a_payload_that_contains_a_group_is_not_taken_for_one() {
    let dir = TempDir::new().unwrap();
    let mut writer = create(dir.path());
    group(&mut writer, &[b"one"]);
    group(&mut writer, &[b"two"]);
    let records = fs::read(path(dir.path(), 1)).unwrap()[PREAMBLE..writer.offset() as usize].to_vec();
    let torn = writer.offset() as usize;
    group(&mut writer, &[b"three", &records, b"four"]);
    drop(writer);
    let file = path(dir.path(), 1);
    let mut bytes = fs::read(&file).unwrap();
    bytes[torn + 3] ^= 1;
    fs::write(&file, bytes).unwrap();
    assert_eq!(read(dir.path()).unwrap().0, [b"one", b"two"]);
}

#[test]
fn the_creation_of_a_segment_may_be_cut_anywhere() {
    let dir = TempDir::new().unwrap();
    let mut writer = create(dir.path());
    group(&mut writer, &[b"one"]);
    next_segment(&mut writer);
    let begun = fs::read(path(dir.path(), 2)).unwrap();
    let size = writer.offset() as usize;
    for cut in 0..size {
        fs::write(path(dir.path(), 2), &begun[..cut]).unwrap();
        let (before, end) = read(dir.path()).unwrap();
        assert_eq!(before, [b"one"], "the segment before is read whole");
        assert!(end.end.is_some());
        let mut writer = end.resume(dir.path(), start).unwrap();
        group(&mut writer, &[b"two"]);
        assert_eq!(writer.number(), 2);
        assert_eq!(read(dir.path()).unwrap().0, [b"two"], "cut at {cut}");
    }
    let whole = fs::read(path(dir.path(), 2)).unwrap();
    for hole in 0..size {
        let mut bytes = whole.clone();
        bytes[hole] ^= 4;
        fs::write(path(dir.path(), 2), bytes).unwrap();
        assert!(is_damage(read(dir.path())), "byte {hole}, with a group behind it");
    }
}

/// Entries at the end of the newest segment are read while it is completed: its file becomes shorter then.
#[test]
fn a_segment_is_read_on_while_it_is_cut() {
    let dir = TempDir::new().unwrap();
    let mut writer = create(dir.path());
    let begin = writer.offset();
    group(&mut writer, &[b"one", b"two"]);
    let file = path(dir.path(), 1);
    let allocated = fs::metadata(&file).unwrap().len();
    let segment = Segment::open(dir.path(), 1).unwrap();
    next_segment(&mut writer);
    assert!(fs::metadata(&file).unwrap().len() < allocated);
    let mut records = segment.records(begin);
    for expected in [b"one", b"two"] {
        assert_eq!(records.next().unwrap().payload[..], expected[..]);
    }
    assert_eq!(records.next().unwrap().kind, RecordKind::End);
    assert!(records.try_next().unwrap().is_none());
}

#[test]
fn verifying_a_complete_segment_finds_every_flipped_bit() {
    let dir = TempDir::new().unwrap();
    let mut writer = create(dir.path());
    group(&mut writer, &[b"one", b"two"]);
    group(&mut writer, &[&[7; 300]]);
    next_segment(&mut writer);
    let file = path(dir.path(), 1);
    let whole = fs::read(&file).unwrap();
    let mut read = 0;
    verify(dir.path(), 1, |bytes| {
        read += bytes;
        true
    })
    .unwrap();
    assert_eq!(read, whole.len() - PREAMBLE - TRAILER);
    for hole in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[hole] ^= 32;
        fs::write(&file, bytes).unwrap();
        assert!(is_damage(verify(dir.path(), 1, |_| true)), "byte {hole}");
    }
}

#[test]
fn a_log_without_files_is_new_or_lost() {
    let dir = TempDir::new().unwrap();
    assert!(is_damage(read(dir.path())));
    let end = recover(dir.path(), true, &Progress::default(), |_, _| Ok(())).unwrap();
    assert!(end.is_none());
    fs::write(path(dir.path(), 1), b"agent").unwrap();
    assert!(is_damage(read(dir.path())), "its only file has no beginning");
    assert!(
        recover(dir.path(), true, &Progress::default(), |_, _| Ok(()))
            .unwrap()
            .is_none()
    );
    assert_eq!(numbers(dir.path()).unwrap(), [0; 0]);
}

#[test]
fn the_segments_are_counted_as_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = create(dir.path());
    for _ in 0..2 {
        group(&mut writer, &[b"one"]);
        next_segment(&mut writer);
    }
    let steps = Arc::new(Mutex::new(Vec::new()));
    let seen = steps.clone();
    let progress = Progress::new(move |step| seen.lock().unwrap().push(step));
    recover(dir.path(), false, &progress, |_, _| Ok(())).unwrap();
    let expected: Vec<Step> = (1..=3).map(|segment| Step::Log { segment, of: 3 }).collect();
    assert_eq!(*steps.lock().unwrap(), expected);
    assert_eq!(expected[1].to_string(), "the log is being read: segment 2 of 3");
}
