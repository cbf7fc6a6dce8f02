#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use parking_lot::Mutex;
use proptest::prelude::*;
use tempfile::TempDir;

use super::files::Flush;
use super::removal::Removal;
use super::*;
use crate::disk::damage::{Damage, Failure};
use crate::disk::floor::FloorFile;
use crate::disk::testing::{self, append, blank, crash_copy, ids, log_id, membership, normal, options, start_append};
use crate::disk::types::LeaderId;

/// Opens only the log of a shard, with its floor.
pub(super) fn open(dir: &Path) -> LogStore {
    try_open(dir, &options()).unwrap()
}

pub(super) fn floor(dir: &Path) -> Result<FloorFile, OpenError> {
    fs::create_dir_all(dir).unwrap();
    FloorFile::open(&dir.join("FLOOR"), "test", None, !dir.join("log").exists())
}

pub(super) fn try_open(dir: &Path, options: &Options) -> Result<LogStore, OpenError> {
    LogStore::open(&dir.join("log"), floor(dir)?, options, Damage::default())
}

/// A log whose disk flushes once for each message to the sender. Declare the sender after the log: it is dropped before
/// the log then, which would otherwise wait for the disk when an assertion fails.
pub(super) fn open_gated(dir: &Path) -> (LogStore, mpsc::SyncSender<()>) {
    let (release, gate) = mpsc::sync_channel(100);
    let gate = Mutex::new(gate);
    let log = open_with(dir, move |file| {
        gate.lock().recv().map_err(io::Error::other)?;
        file.sync_data()
    });
    (log, release)
}

fn open_with(dir: &Path, flush: impl FnMut(&File) -> io::Result<()> + Send + 'static) -> LogStore {
    let floor = floor(dir).unwrap();
    let flush: Flush = Box::new(flush);
    LogStore::open_with(&dir.join("log"), floor, &options(), Damage::default(), Some(flush)).unwrap()
}

/// Options with which each file holds a few entries, and no entry stays in memory.
pub(super) fn small() -> Options {
    Options {
        log_tail_bytes: 0,
        log_segment_bytes: 8 << 10,
        ..options()
    }
}

pub(super) fn vote(term: u64) -> Vote {
    let leader_id = LeaderId { term, node_id: 1 };
    Vote {
        leader_id,
        committed: false,
    }
}

/// The paths of the log's files, oldest first.
pub(super) fn segments(dir: &Path) -> Vec<PathBuf> {
    let log = dir.join("log");
    let numbers = crate::disk::segments::numbers(&log).unwrap();
    numbers
        .into_iter()
        .map(|number| crate::disk::segments::path(&log, number))
        .collect()
}

fn used(path: &Path) -> usize {
    testing::used(&fs::read(path).unwrap())
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[tokio::test]
async fn entries_vote_and_hint_survive_a_restart() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    log.save_vote(&vote(3)).await.unwrap();
    append(
        &mut log,
        vec![blank(1, 0), normal(2, 1, 100), membership(2, 2, &[1, 2])],
    )
    .await
    .unwrap();
    log.save_committed(Some(log_id(2, 1))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 1)));
    let written = log.get_log_reader().await.try_get_log_entries(..).await.unwrap();
    drop(log);

    let mut log = open(dir.path());
    let mut reader = log.get_log_reader().await;
    assert_eq!(reader.read_vote().await.unwrap(), Some(vote(3)));
    assert_eq!(reader.try_get_log_entries(..).await.unwrap(), written);
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(2, 1)));
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id(2, 2)));
}

#[tokio::test]
async fn an_append_must_follow_the_log() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    assert!(
        append(&mut log, vec![blank(1, 7)]).await.is_err(),
        "a new log begins at 0"
    );
    append(&mut log, vec![blank(1, 0), blank(2, 1)]).await.unwrap();
    for wrong in [
        vec![blank(2, 3)],
        vec![blank(2, 1)],
        vec![blank(2, 2), blank(2, 4)],
        vec![blank(1, 2)],
    ] {
        let (flushed, told) = TypeConfig::oneshot();
        let refused = log.append(wrong, IOFlushed::<TypeConfig>::signal(flushed)).await;
        assert_eq!(refused.unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert!(told.await.unwrap().is_err(), "the callback reports the error as well");
    }
    append(&mut log, vec![blank(2, 2)]).await.unwrap();
    assert_eq!(ids(&mut log).await, [log_id(1, 0), log_id(2, 1), log_id(2, 2)]);
}

#[tokio::test]
async fn a_power_cut_keeps_what_was_synced_and_a_torn_tail_is_dropped() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let stalled = Arc::new(AtomicBool::new(false));
    let stall = stalled.clone();
    let written = Arc::new(Barrier::new(2));
    let reached = written.clone();
    let mut log = open_with(&live, move |file| {
        if stall.load(Ordering::Relaxed) {
            // Written to the operating system; the test looks at the file before the flush goes on.
            reached.wait();
            reached.wait();
        }
        file.sync_data()
    });
    append(&mut log, (0..20).map(|i| normal(1, i, 200)).collect())
        .await
        .unwrap();
    log.save_vote(&vote(9)).await.unwrap();
    let newest = segments(&live).pop().unwrap();
    let synced = used(&newest);
    stalled.store(true, Ordering::Relaxed);
    // One group of ten entries.
    let group = (20..30).map(|i| normal(1, i, 200)).collect();
    drop(start_append(&mut log, group).await.unwrap());
    written.wait();
    let record = (used(&newest) - synced) / 10;
    for (torn, kept) in [(record + 50, 21), (10 * record, 30), (7, 20)] {
        crash_copy(&live, &copy);
        let file = fs::File::options()
            .write(true)
            .open(segments(&copy).pop().unwrap())
            .unwrap();
        file.set_len((synced + torn) as u64).unwrap();
        let mut log = open(&copy);
        assert_eq!(ids(&mut log).await, (0..kept).map(|i| log_id(1, i)).collect::<Vec<_>>());
        assert_eq!(log.get_log_reader().await.read_vote().await.unwrap(), Some(vote(9)));
        append(&mut log, vec![normal(2, kept, 10)]).await.unwrap();
        drop(log);
        assert_eq!(ids(&mut open(&copy)).await.len() as u64, kept + 1);
        fs::remove_dir_all(&copy).unwrap();
    }
    // A block in the middle of the group did not reach the disk, and those after it did.
    crash_copy(&live, &copy);
    let path = segments(&copy).pop().unwrap();
    let mut bytes = fs::read(&path).unwrap();
    bytes[synced + 2 * record..synced + 4 * record].fill(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(ids(&mut open(&copy)).await.len(), 22);
    stalled.store(false, Ordering::Relaxed);
    written.wait();
    drop(log);
}

/// Wherever a bit flips in what was durable, the log does not open, or opens whole.
#[tokio::test]
async fn a_flipped_bit_in_the_newest_file_refuses_to_open() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut log = open(&live);
    for i in 0..50 {
        append(&mut log, vec![normal(1, i, 200)]).await.unwrap();
    }
    drop(log);
    let size = used(&segments(&live)[0]);
    for at in (0..size).step_by(97) {
        crash_copy(&live, &copy);
        flip(&segments(&copy)[0], at);
        let refused = try_open(&copy, &options()).err();
        assert!(
            matches!(refused, Some(OpenError::Quarantine { .. })),
            "byte {at} of {size}: {refused:?}"
        );
        fs::remove_dir_all(&copy).unwrap();
    }
}

/// A log of several files, all complete but the newest.
pub(super) async fn several_files(dir: &Path) -> usize {
    let mut log = try_open(dir, &small()).unwrap();
    for i in 0..100 {
        append(&mut log, vec![normal(1, i, 500)]).await.unwrap();
    }
    drop(log);
    segments(dir).len()
}

#[tokio::test]
async fn a_complete_file_is_verified_by_its_ends_at_a_start_and_by_every_read() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    assert!(several_files(&live).await > 4);
    let second = |dir: &Path| segments(dir)[1].clone();
    let length = fs::read(second(&live)).unwrap().len();
    for at in [0, 12, 20, length - 20, length - 3] {
        crash_copy(&live, &copy);
        flip(&second(&copy), at);
        let refused = try_open(&copy, &small()).err().unwrap();
        assert!(matches!(refused, OpenError::Quarantine { .. }), "{at}: {refused}");
        fs::remove_dir_all(&copy).unwrap();
    }
    for at in [length / 3, length / 2] {
        crash_copy(&live, &copy);
        flip(&second(&copy), at);
        let mut log = try_open(&copy, &small()).unwrap();
        let error = log.get_log_reader().await.try_get_log_entries(..).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        drop(log);
        fs::remove_dir_all(&copy).unwrap();
    }
}

#[tokio::test]
async fn a_missing_file_or_one_of_an_older_log_refuses_to_open() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let count = several_files(&live).await;
    for gone in 0..count {
        crash_copy(&live, &copy);
        fs::remove_file(&segments(&copy)[gone]).unwrap();
        let refused = try_open(&copy, &small()).err().unwrap();
        assert!(matches!(refused, OpenError::Quarantine { .. }), "{gone}: {refused}");
        fs::remove_dir_all(&copy).unwrap();
    }
    // The same entries, but another log.
    let other = dir.path().join("other");
    let mut log = try_open(&other, &small()).unwrap();
    append(&mut log, vec![normal(1, 0, 400)]).await.unwrap();
    for i in 1..100 {
        append(&mut log, vec![normal(1, i, 500)]).await.unwrap();
    }
    drop(log);
    crash_copy(&live, &copy);
    fs::copy(&segments(&other)[2], &segments(&copy)[2]).unwrap();
    let refused = try_open(&copy, &small()).err().unwrap();
    assert!(matches!(refused, OpenError::Quarantine { .. }), "{refused}");
}

#[tokio::test]
async fn a_truncation_returns_when_it_is_durable() {
    let dir = TempDir::new().unwrap();
    let (mut log, release) = open_gated(dir.path());
    release.send(()).unwrap();
    append(&mut log, vec![blank(1, 0), blank(1, 1), blank(1, 2)])
        .await
        .unwrap();
    let mut truncation = Box::pin(log.truncate_after(Some(log_id(1, 0))));
    let early = tokio::time::timeout(Duration::from_millis(50), &mut truncation).await;
    assert!(early.is_err(), "the disk has not answered yet");
    release.send(()).unwrap();
    truncation.await.unwrap();
    assert_eq!(ids(&mut log).await, [log_id(1, 0)]);
    drop(release);
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_accepted() {
    let dir = TempDir::new().unwrap();
    let mut syncs = 0;
    let mut log = open_with(dir.path(), move |_| {
        syncs += 1;
        if syncs == 1 {
            Ok(())
        } else {
            Err(io::Error::other("the disk is gone"))
        }
    });
    append(&mut log, vec![blank(1, 0)]).await.unwrap();
    let error = append(&mut log, vec![blank(1, 1)]).await.unwrap_err();
    assert!(error.to_string().contains("the disk is gone"));
    assert!(append(&mut log, vec![blank(1, 2)]).await.is_err());
    assert!(log.save_vote(&vote(2)).await.is_err());
    assert!(log.save_committed(None).await.is_err());
    assert!(log.truncate_after(None).await.is_err());
    assert_eq!(log.metrics().syncs(), 2, "a failed flush is not tried again");
}

#[tokio::test]
async fn a_vote_is_on_disk_before_it_counts() {
    let dir = TempDir::new().unwrap();
    let (mut log, release) = open_gated(dir.path());
    let mut reader = log.get_log_reader().await;
    for term in 1..=3 {
        let wanted = vote(term);
        let mut voting = Box::pin(log.save_vote(&wanted));
        let early = tokio::time::timeout(Duration::from_millis(200), &mut voting).await;
        assert!(early.is_err(), "the disk has not answered yet");
        let before = reader.read_vote().await.unwrap();
        assert!(before < Some(vote(term)), "nobody reads the vote before it is durable");
        release.send(()).unwrap();
        voting.await.unwrap();
        assert_eq!(reader.read_vote().await.unwrap(), Some(vote(term)));
    }
    drop(release);
}

#[tokio::test]
async fn a_purge_above_the_last_entry_moves_the_log_there() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![blank(1, 0), blank(1, 1)]).await.unwrap();
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    log.purge(log_id(3, 10)).await.unwrap();
    for _restart in 0..2 {
        let state = log.get_log_state().await.unwrap();
        assert_eq!(state.last_purged_log_id, Some(log_id(3, 10)));
        assert_eq!(state.last_log_id, Some(log_id(3, 10)));
        assert!(ids(&mut log).await.is_empty());
        drop(log);
        log = open(dir.path());
    }
    assert!(append(&mut log, vec![blank(3, 2)]).await.is_err());
    append(&mut log, vec![blank(3, 11)]).await.unwrap();
    log.purge(log_id(1, 1)).await.unwrap();
    assert_eq!(log.purge_point().get(), Some(log_id(3, 10)), "a purge never goes back");
}

#[tokio::test]
async fn a_purge_removes_whole_files_but_not_the_entry_behind_it() {
    let dir = TempDir::new().unwrap();
    let before = several_files(dir.path()).await;
    let mut log = try_open(dir.path(), &small()).unwrap();
    let files = || segments(dir.path()).len();
    let mut last = before;
    for upto in [3, 30, 60, 98] {
        log.purge(log_id(1, upto)).await.unwrap();
        assert_eq!(log.purge_point().get(), Some(log_id(1, upto)));
        for _restart in 0..2 {
            let kept: Vec<_> = (upto + 1..100).map(|i| log_id(1, i)).collect();
            assert_eq!(ids(&mut log).await, kept);
            // Closing the log waits for the removal of files.
            drop(log);
            assert!(files() <= last);
            last = files();
            log = try_open(dir.path(), &small()).unwrap();
        }
    }
    assert!(last <= 2 && before > 6, "{before} files before, {last} after");
}

/// The removal of files hangs, and a vote is durable nevertheless.
#[tokio::test]
async fn the_removal_of_files_delays_no_flush() {
    let dir = TempDir::new().unwrap();
    several_files(dir.path()).await;
    let log = dir.path().join("log");
    let mut files = open::open(&log, &floor(dir.path()).unwrap(), &small(), Damage::default())
        .unwrap()
        .files;
    let (asked, asks) = mpsc::sync_channel(1);
    let (release, gate) = mpsc::sync_channel(1);
    let gate = Mutex::new(gate);
    files.removal = Removal::spawn(1, Failure::default(), move |range| {
        asked.send(range).unwrap();
        gate.lock().recv().map_err(io::Error::other)
    })
    .unwrap();
    let sync = SyncThread::spawn(files, |_| (), Failure::default(), Arc::new(LogMetrics::new())).unwrap();
    sync.push(Job::Purge(log_id(1, 50)));
    let first = sync.durably(|done| Job::Vote(vote(1), done));
    first.await.unwrap();
    let removed = asks.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(removed.start == 1 && removed.end > 2, "{removed:?}");
    let second = sync.durably(|done| Job::Vote(vote(2), done));
    tokio::time::timeout(Duration::from_secs(60), second)
        .await
        .unwrap()
        .unwrap();
    release.send(()).unwrap();
    drop(release);
}

/// openraft's thread waits for a purge, so the purge must not wait for the disk.
#[tokio::test]
async fn a_purge_and_an_append_return_while_the_disk_hangs() {
    let dir = TempDir::new().unwrap();
    let (mut log, release) = open_gated(dir.path());
    let first = start_append(&mut log, vec![blank(1, 0), blank(1, 1)]).await.unwrap();
    log.purge(log_id(1, 0)).await.unwrap();
    let second = start_append(&mut log, vec![blank(1, 2)]).await.unwrap();
    assert_eq!(ids(&mut log).await, [log_id(1, 1), log_id(1, 2)]);
    assert_eq!(log.purge_point().get(), Some(log_id(1, 0)));
    for _flush in 0..3 {
        release.send(()).unwrap();
    }
    first.await.unwrap().unwrap();
    second.await.unwrap().unwrap();
    drop(release);
}

#[tokio::test]
async fn the_last_bytes_of_the_log_begin_at_one_of_its_entries() {
    let dir = TempDir::new().unwrap();
    several_files(dir.path()).await;
    let log = try_open(dir.path(), &small()).unwrap();
    let begin = log.span().begin_of_last(20_000).unwrap();
    assert!((40..70).contains(&begin), "{begin}");
    assert_eq!(log.span().begin_of_last(1 << 30), None);
}

#[tokio::test]
async fn the_committed_hint_never_points_above_the_log() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    append(&mut log, vec![blank(1, 0), blank(1, 1)]).await.unwrap();
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    log.truncate_after(Some(log_id(1, 0))).await.unwrap();
    assert_eq!(log.read_committed().await.unwrap(), Some(log_id(1, 0)));
}

#[tokio::test]
async fn after_a_crash_the_committed_hint_is_at_most_one_append_old() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut log = open(&live);
    append(&mut log, vec![blank(1, 0), blank(1, 1)]).await.unwrap();
    log.save_committed(Some(log_id(1, 1))).await.unwrap();
    append(&mut log, vec![blank(1, 2)]).await.unwrap();
    log.save_committed(Some(log_id(1, 2))).await.unwrap();
    crash_copy(&live, &copy);
    assert_eq!(open(&copy).read_committed().await.unwrap(), Some(log_id(1, 1)));
    drop(log);
    assert_eq!(open(&live).read_committed().await.unwrap(), Some(log_id(1, 2)));
}

#[derive(Debug, Clone)]
enum Step {
    Append { count: u64, bytes: usize },
    Truncate { keep: u64 },
    Purge { upto: u64 },
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1..6u64, 0..400usize).prop_map(|(count, bytes)| Step::Append { count, bytes }),
        2 => (0..8u64).prop_map(|keep| Step::Truncate { keep }),
        2 => (0..6u64).prop_map(|upto| Step::Purge { upto }),
        1 => Just(Step::Restart),
    ]
}

/// A model of the log: the entries from `begin` on.
#[derive(Default)]
struct Model {
    begin: u64,
    purged: Option<LogId>,
    entries: Vec<Entry>,
}

impl Model {
    fn next(&self) -> u64 {
        self.begin + self.entries.len() as u64
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last().map(|entry| entry.log_id).or(self.purged)
    }

    /// Takes the step in the model and in the log.
    async fn step(&mut self, log: &mut LogStore, term: u64, step: &Step) {
        match step {
            Step::Append { count, bytes } => {
                let new: Vec<_> = (0..*count).map(|i| normal(term, self.next() + i, bytes + 1)).collect();
                self.entries.extend(new.iter().cloned());
                append(log, new).await.unwrap();
            }
            Step::Truncate { keep } => {
                self.entries.truncate(usize::try_from(*keep).unwrap());
                log.truncate_after(self.last()).await.unwrap();
            }
            Step::Purge { upto } => {
                let upto = log_id(self.last().map_or(term, |last| last.leader_id.term), self.begin + upto);
                self.entries.retain(|entry| entry.log_id.index > upto.index);
                (self.begin, self.purged) = (upto.index + 1, Some(upto));
                log.purge(upto).await.unwrap();
            }
            Step::Restart => {}
        }
    }

    async fn check(&self, log: &mut LogStore) {
        let state = log.get_log_state().await.unwrap();
        assert_eq!(
            (state.last_purged_log_id, state.last_log_id),
            (self.purged, self.last())
        );
        let mut reader = log.get_log_reader().await;
        assert_eq!(reader.try_get_log_entries(..).await.unwrap(), self.entries);
        let middle = self.begin + self.entries.len() as u64 / 2;
        let half = reader.try_get_log_entries(middle..).await.unwrap();
        assert_eq!(half, self.entries[self.entries.len() / 2..]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Runs the model with all, some and none of the entries in the cache, and with few and many files.
    #[test]
    fn memory_and_disk_hold_the_same_log(
        steps in proptest::collection::vec(step(), 1..25),
        log_tail_bytes in prop::sample::select(&[0, 1_500, 1 << 20][..]),
        log_segment_bytes in prop::sample::select(&[5_000, 20_000, 1 << 20][..]),
    ) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        runtime.block_on(async {
            let dir = TempDir::new().unwrap();
            let options = Options { log_tail_bytes, log_segment_bytes, ..options() };
            let mut log = try_open(dir.path(), &options).unwrap();
            let mut model = Model::default();
            for (term, step) in (1..).zip(&steps) {
                model.step(&mut log, term, step).await;
                if matches!(step, Step::Restart) {
                    drop(log);
                    log = try_open(dir.path(), &options).unwrap();
                }
                model.check(&mut log).await;
            }
            drop(log);
            model.check(&mut try_open(dir.path(), &options).unwrap()).await;
        });
    }
}
