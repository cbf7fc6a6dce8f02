//! The log after a crash between any two changes of its files, and after a second crash while it opens.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::ops::Range;
use std::path::Path;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::files::LogFiles;
use super::sync::Sink;
use super::tests::{floor, try_open, vote};
use super::*;
use crate::disk::damage::Failure;
use crate::disk::segments;
use crate::disk::segments::file::changes::{self, Change};
use crate::disk::testing::{append, blank, ids, log_id, normal, options};

/// A change of the segment with this number.
type Changes = [(u64, Change)];

/// What a crash makes of the changes that are not synced.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Crash {
    /// The process was killed: the operating system has all of them.
    Killed,
    /// The power failed, and none of them is on the disk.
    Lost,
    /// The power failed; only the bytes are on the disk, and not the lengths that were set.
    Bytes,
    /// The power failed; only the lengths are on the disk, and the blocks are zeros.
    Lengths,
    /// The last change is a write of which only so many bytes were written.
    Torn(usize),
    /// The last change is a write whose first half did not reach the disk.
    Hole,
}

/// The files of a directory. A file is its bytes without the zeros at the end, and its length.
type Image = BTreeMap<u64, (Vec<u8>, u64)>;

/// The files after a crash behind `done`. `names` says whether the creations and removals that are not synced are
/// durable.
fn crash(base: &Image, done: &Changes, crash: Crash, names: bool) -> Image {
    let mut files = base.clone();
    for (at, (number, change)) in done.iter().enumerate() {
        let later = &done[at + 1..];
        let named = names || later.iter().any(|(_, later)| matches!(later, Change::SyncDir));
        let synced = |(n, later): &(u64, Change)| n == number && matches!(later, Change::Sync);
        let crash = match later.iter().any(synced) {
            true => Crash::Killed,
            false => crash,
        };
        match change {
            Change::Create if named => drop(files.insert(*number, (Vec::new(), 0))),
            Change::Remove if named => drop(files.remove(number)),
            Change::Write(offset, bytes) if crash != Crash::Lost => {
                let mut bytes = bytes.clone();
                match crash {
                    Crash::Torn(kept) if later.is_empty() => bytes.truncate(kept),
                    Crash::Hole if later.is_empty() => {
                        let half = bytes.len() / 2;
                        bytes[..half].fill(0);
                    }
                    Crash::Lengths => bytes.fill(0),
                    _ => {}
                }
                if let Some(file) = files.get_mut(number) {
                    write(file, usize::try_from(*offset).unwrap(), &bytes);
                }
            }
            Change::Length(length) if !matches!(crash, Crash::Lost | Crash::Bytes) => {
                if let Some(file) = files.get_mut(number) {
                    file.0.truncate(usize::try_from(*length).unwrap());
                    file.1 = *length;
                }
            }
            _ => {}
        }
    }
    for (bytes, _) in files.values_mut() {
        bytes.truncate(crate::disk::testing::used(bytes));
    }
    files
}

fn write(file: &mut (Vec<u8>, u64), offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    file.0.resize(file.0.len().max(end), 0);
    file.0[offset..end].copy_from_slice(bytes);
    file.1 = file.1.max(end as u64);
}

/// Every crash that is possible behind `done`.
fn crashes(done: &Changes) -> Vec<(Crash, bool)> {
    let mut kinds = vec![Crash::Killed, Crash::Lost, Crash::Bytes, Crash::Lengths];
    if let Some((number, Change::Write(_, bytes))) = done.last() {
        // The writes that begin and complete a segment are short. Those of the first segments are cut at every byte.
        let step = match *number <= 2 && bytes.len() < 300 {
            true => 1,
            false => 1 + bytes.len() / 10,
        };
        kinds.extend((0..bytes.len()).step_by(step).map(Crash::Torn));
        kinds.push(Crash::Hole);
    }
    let both = kinds.into_iter().flat_map(|kind| [(kind, true), (kind, false)]);
    // A killed process leaves all names as well.
    both.filter(|(kind, names)| *names || *kind != Crash::Killed).collect()
}

/// What the log contains.
#[derive(Debug, Clone, Default, PartialEq)]
struct Content {
    vote: Option<Vote>,
    purged: Option<LogId>,
    entries: Vec<LogId>,
}

impl Content {
    fn last(&self) -> Option<LogId> {
        self.entries.last().copied().or(self.purged)
    }

    fn next(&self) -> u64 {
        self.last().map_or(0, |last| last.index + 1)
    }
}

/// The contents between which a crash may fall: one for each record, from the last durable one on.
struct Stage {
    /// The changes of the files before this stage.
    changes: usize,
    contents: Range<usize>,
    /// The highest floor that the node may have.
    floor: (Option<Vote>, Option<LogId>),
}

/// Writes a log without threads, and notes what must be durable when.
struct Run<'a> {
    dir: &'a Path,
    files: LogFiles,
    contents: Vec<Content>,
    stages: Vec<Stage>,
}

impl<'a> Run<'a> {
    fn begin(dir: &'a Path) -> Self {
        changes::record(&dir.join("log"));
        let floor = floor(dir).unwrap();
        let mut files = open::open(&dir.join("log"), &floor, &small(), Damage::default())
            .unwrap()
            .files;
        files.flush = Box::new(|_| Ok(()));
        Run {
            dir,
            files,
            contents: vec![Content::default()],
            stages: vec![Stage {
                changes: 0,
                contents: 0..1,
                floor: (None, None),
            }],
        }
    }

    fn count(&self) -> usize {
        changes::count(&self.dir.join("log"))
    }

    fn content(&self) -> &Content {
        self.contents.last().unwrap()
    }

    /// Writes one group.
    fn group(&mut self, jobs: &[Job]) {
        let durable = self.contents.len() - 1;
        for job in jobs {
            self.note(job);
        }
        let (vote, mut flushed) = self.stages.last().unwrap().floor;
        for job in jobs {
            if let Job::Truncate(_, last, _) = job
                && last.map(|last| last.index) < flushed.map(|flushed| flushed.index)
            {
                flushed = *last;
            }
        }
        self.stage(durable, (vote, flushed));
        self.files.write(jobs).unwrap();
        self.files.sync().unwrap();
        changes::note(&self.dir.join("log"), self.files.writer.number(), Change::Sync);
        let last = self.content().last();
        self.stage(self.contents.len() - 1, (self.content().vote, last));
        let oldest = segments::numbers(&self.dir.join("log")).unwrap()[0];
        let newest = self.files.writer.number();
        let needed = self.files.shared.lock().index.first_segment().unwrap_or(newest);
        // Removing a segment takes two changes.
        let tidied = self.count() + 2 * usize::try_from(needed - oldest).unwrap();
        self.files.tidy();
        while self.count() < tidied {
            std::thread::yield_now();
        }
    }

    fn stage(&mut self, durable: usize, floor: (Option<Vote>, Option<LogId>)) {
        self.stages.push(Stage {
            changes: self.count(),
            contents: durable..self.contents.len(),
            floor,
        });
    }

    fn note(&mut self, job: &Job) {
        let mut content = self.content().clone();
        match job {
            Job::Append(append) => {
                for entry in &append.entries {
                    content.entries.push(entry.log_id);
                    self.contents.push(content.clone());
                }
                return;
            }
            Job::Vote(vote, _) => content.vote = Some(*vote),
            Job::Truncate(from, ..) => content.entries.retain(|id| id.index < *from),
            Job::Purge(upto) => {
                content.entries.retain(|id| id.index > upto.index);
                content.purged = Some(*upto);
            }
            Job::Committed(_) => {}
        }
        self.contents.push(content);
    }

    fn append(&self, term: u64, count: u64) -> Job {
        let next = self.content().next();
        Job::Append(Append {
            entries: (next..next + count).map(|i| normal(term, i, 400)).collect(),
            charges: Vec::new(),
            flushed: None,
            mark: None,
        })
    }

    fn truncate(&self, last: LogId) -> Job {
        Job::Truncate(last.index + 1, Some(last), oneshot::channel().0)
    }
}

fn small() -> Options {
    Options {
        log_tail_bytes: 0,
        log_segment_bytes: 5 << 10,
        ..options()
    }
}

/// Appends that fill a segment, alone and within a group; truncations into the segment before; purges.
fn run(dir: &Path) -> (Vec<(u64, Change)>, Vec<Content>, Vec<Stage>) {
    let mut run = Run::begin(dir);
    run.group(&[Job::Vote(vote(1), oneshot::channel().0)]);
    for _ in 0..4 {
        run.group(&[run.append(1, 3), Job::Committed(None)]);
    }
    run.group(&[run.append(1, 14)]);
    run.group(&[run.truncate(log_id(1, 20)), Job::Vote(vote(2), oneshot::channel().0)]);
    run.group(&[run.append(2, 2)]);
    run.group(&[run.truncate(log_id(1, 5))]);
    for _ in 0..3 {
        run.group(&[run.append(3, 4)]);
    }
    run.group(&[Job::Purge(log_id(3, 12))]);
    run.group(&[run.append(3, 8)]);
    run.group(&[Job::Purge(log_id(4, 40)), run.append(4, 0)]);
    run.group(&[run.append(4, 12)]);
    run.group(&[Job::Vote(vote(7), oneshot::channel().0)]);
    (changes::take(&dir.join("log")), run.contents, run.stages)
}

/// The bytes of the file of this floor.
async fn floor_bytes(dir: &Path, (vote, flushed): (Option<Vote>, Option<LogId>)) -> Vec<u8> {
    fs::create_dir_all(dir).unwrap();
    let floor = Floor::spawn(floor(dir).unwrap(), Failure::default()).unwrap();
    if let Some(vote) = vote {
        floor.vote(&vote).await.unwrap();
    }
    if let Some(flushed) = flushed {
        floor.lift().to(floor.mark(flushed));
    }
    drop(floor);
    let bytes = fs::read(dir.join("FLOOR")).unwrap();
    fs::remove_dir_all(dir).unwrap();
    bytes
}

fn lay_out(dir: &Path, image: &Image, floor: &[u8]) {
    let log = dir.join("log");
    fs::create_dir_all(&log).unwrap();
    fs::write(dir.join("FLOOR"), floor).unwrap();
    for (number, (bytes, length)) in image {
        let path = segments::path(&log, *number);
        fs::write(&path, bytes).unwrap();
        File::options()
            .write(true)
            .open(path)
            .unwrap()
            .set_len(*length)
            .unwrap();
    }
}

async fn content(log: &mut LogStore) -> Content {
    Content {
        vote: log.get_log_reader().await.read_vote().await.unwrap(),
        purged: log.get_log_state().await.unwrap().last_purged_log_id,
        entries: ids(log).await,
    }
}

/// Opens the log, which must have one of `contents`; goes on with it, and opens it again. Returns the changes of the
/// first opening.
async fn check(dir: &Path, contents: &[Content], what: &str) -> Vec<(u64, Change)> {
    changes::record(&dir.join("log"));
    let mut log = try_open(dir, &small()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let opening = changes::take(&dir.join("log"));
    let mut found = content(&mut log).await;
    assert!(contents.contains(&found), "{what}: {found:?}");
    append(&mut log, vec![blank(9, found.next())]).await.unwrap();
    log.save_vote(&vote(20)).await.unwrap();
    drop(log);
    found.entries.push(log_id(9, found.next()));
    found.vote = Some(vote(20));
    let mut log = try_open(dir, &small()).unwrap_or_else(|error| panic!("{what}, second start: {error}"));
    assert_eq!(content(&mut log).await, found, "{what}, second start");
    drop(log);
    let numbers = segments::numbers(&dir.join("log")).unwrap();
    let (_, complete) = numbers.split_last().unwrap();
    for number in complete {
        segments::recover::verify(&dir.join("log"), *number, |_| true)
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    opening
}

#[tokio::test]
async fn after_any_crash_the_log_opens_with_all_that_was_durable() {
    // A memory file system makes thousands of openings quick.
    let temp = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
    let dir = temp.path();
    let (done, contents, stages) = run(&dir.join("live"));
    let mut seen = BTreeSet::new();
    for (at, stage) in stages.iter().enumerate() {
        let until = stages.get(at + 1).map_or(done.len(), |next| next.changes);
        let floor = floor_bytes(&dir.join("floor"), stage.floor).await;
        let allowed = &contents[stage.contents.clone()];
        for cut in stage.changes..=until {
            for (kind, names) in crashes(&done[..cut]) {
                let image = crash(&Image::new(), &done[..cut], kind, names);
                if !seen.insert((at, image.clone())) {
                    continue;
                }
                let what = format!("{kind:?} behind change {cut}, names {names}");
                lay_out(&dir.join("copy"), &image, &floor);
                let opening = check(&dir.join("copy"), allowed, &what).await;
                fs::remove_dir_all(dir.join("copy")).unwrap();
                if matches!(kind, Crash::Torn(_)) {
                    continue;
                }
                // A killed process leaves changes that are still not synced when the next one opens the log.
                let (base, before) = match kind {
                    Crash::Killed => (Image::new(), &done[..cut]),
                    _ => (image, &done[..0]),
                };
                let all = [before, &opening].concat();
                for second in before.len() + 1..=all.len() {
                    let crashes = crashes(&all[..second]).into_iter();
                    for (kind, names) in crashes.filter(|(kind, _)| !matches!(kind, Crash::Torn(n) if n % 16 != 7)) {
                        let image = crash(&base, &all[..second], kind, names);
                        if !seen.insert((at, image.clone())) {
                            continue;
                        }
                        let what = format!("{what}; {kind:?} behind change {second}, names {names}");
                        lay_out(&dir.join("copy"), &image, &floor);
                        check(&dir.join("copy"), allowed, &what).await;
                        fs::remove_dir_all(dir.join("copy")).unwrap();
                    }
                }
            }
        }
    }
    assert!(seen.len() > 500, "{} crashes", seen.len());
}
