#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use openraft::storage::{RaftLogReader, RaftLogStorage};
use tempfile::TempDir;

use super::*;
use crate::disk::open;
use crate::disk::options::Options;
use crate::disk::testing::{append, crash_copy, ids, log_id, normal, open, options, used};
use crate::disk::types::LeaderId;

const ME: Identity = Identity {
    cluster_id: [7; 16],
    node: 3,
};

fn vote_of(term: u64) -> Vote {
    let leader_id = LeaderId { term, node_id: 1 };
    Vote {
        leader_id,
        committed: true,
    }
}

fn open_floor(path: &Path) -> Result<FloorFile, OpenError> {
    FloorFile::open(path, "f", Some(ME), false)
}

fn quarantined<T>(opened: Result<T, OpenError>) -> bool {
    matches!(opened, Err(OpenError::Quarantine { .. }))
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).unwrap();
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

#[test]
fn a_torn_write_leaves_the_floor_before_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("FLOOR");
    let mut floor = FloorFile::open(&path, "f", Some(ME), true).unwrap();
    assert!(floor.is_new());
    for term in 1..=5 {
        let said = peer::Floor {
            vote: Some(vote_to_proto(&vote_of(term))),
            ..floor.said.clone()
        };
        floor.write(said).unwrap();
        assert_eq!(open_floor(&path).unwrap().vote(), Some(vote_of(term)));
    }
    let newest = usize::try_from(floor.said.number % 2).unwrap() * FLOOR_SLOT;
    let whole = fs::read(&path).unwrap();
    for at in newest..newest + HEAD + floor.said.encoded_len() {
        fs::write(&path, &whole).unwrap();
        flip(&path, at);
        assert_eq!(open_floor(&path).unwrap().vote(), Some(vote_of(4)), "byte {at}");
        // Opening the floor rewrote the slot.
        flip(&path, (newest + FLOOR_SLOT) % (2 * FLOOR_SLOT));
        assert_eq!(open_floor(&path).unwrap().vote(), Some(vote_of(4)), "byte {at}");
    }
    for cut in [0, 3, HEAD, HEAD + 10] {
        fs::write(&path, &whole[..cut]).unwrap();
        assert!(quarantined(open_floor(&path)), "{cut} bytes");
    }
    fs::remove_file(&path).unwrap();
    assert!(quarantined(open_floor(&path)));
}

#[test]
fn another_nodes_floor_and_another_format_are_refused() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("FLOOR");
    drop(FloorFile::open(&path, "f", Some(ME), true).unwrap());
    assert_eq!(identity(&path), Some(ME));
    for other in [
        Identity { node: 4, ..ME },
        Identity {
            cluster_id: [8; 16],
            ..ME
        },
    ] {
        assert!(quarantined(FloorFile::open(&path, "f", Some(other), false)));
    }
    assert!(FloorFile::open(&path, "f", None, false).is_ok());
    let other = FloorFile::open(&path, "g", Some(ME), false).err().unwrap();
    assert!(matches!(other, OpenError::ForeignFormat { .. }), "{other}");
}

fn spawn(write: impl FnMut(peer::Floor) -> io::Result<()> + Send + 'static) -> (Floor, Failure) {
    let failure = Failure::default();
    let said = new_floor(ME, "f");
    (Floor::spawn_with(said, failure.clone(), write).unwrap(), failure)
}

#[tokio::test]
async fn flushes_of_truncated_entries_do_not_raise_the_floor() {
    let written = Arc::new(Mutex::new(peer::Floor::default()));
    let kept = written.clone();
    let (floor, _) = spawn(move |said| {
        *kept.lock() = said;
        Ok(())
    });
    let lift = floor.lift();
    lift.to(floor.mark(log_id(1, 10)));
    let late = floor.mark(log_id(1, 20));
    floor.lower(Some(log_id(1, 5))).await.unwrap();
    assert_eq!(written.lock().flushed, Some(log_id_to_proto(&log_id(1, 5))));
    lift.to(late);
    lift.to(floor.mark(log_id(2, 6)));
    lift.to(floor.mark(log_id(2, 4)));
    floor.lower(Some(log_id(2, 9))).await.unwrap();
    drop(floor);
    assert_eq!(written.lock().flushed, Some(log_id_to_proto(&log_id(2, 6))));
}

#[tokio::test]
async fn a_floor_that_cannot_be_written_ends_the_log() {
    let (floor, failure) = spawn(|_| Err(io::Error::other("EIO")));
    assert!(floor.vote(&vote_of(1)).await.is_err());
    assert!(failure.check().unwrap_err().to_string().contains("EIO"));
    assert!(floor.lower(None).await.is_ok(), "there is nothing to lower");
    assert!(floor.vote(&vote_of(2)).await.is_err());
}

#[tokio::test]
async fn a_panic_of_the_thread_is_a_failure_of_the_log() {
    let (floor, failure) = spawn(|_| panic!("a bug"));
    assert!(floor.vote(&vote_of(1)).await.is_err());
    // Joins the thread.
    drop(floor);
    assert!(failure.check().unwrap_err().to_string().contains("log-floor panicked"));
}

/// Waits until the file records that entries up to `index` were flushed.
async fn lifted(dir: &Path, index: u64) {
    loop {
        if let Ok(Found::Whole(floor, _)) = read(&dir.join("shards/0/FLOOR"))
            && floor.flushed.is_some_and(|flushed| flushed.index == index)
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn newest_segment(dir: &Path) -> PathBuf {
    let files = fs::read_dir(dir.join("shards/0/log")).unwrap();
    let files = files.map(|item| item.unwrap().path());
    let segments = files.filter(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.max().unwrap()
}

/// The entries and the vote after the damage, or `None` if the node goes into quarantine.
async fn after(dir: &Path) -> Option<Vec<LogId>> {
    match open::shard(dir, options()) {
        Ok(mut stores) => {
            assert!(stores.log.get_log_reader().await.read_vote().await.unwrap() >= Some(vote_of(1)));
            Some(ids(&mut stores.log).await)
        }
        Err(OpenError::Quarantine { .. }) => None,
        Err(other) => panic!("{other}"),
    }
}

/// RocksDB alone opens many damaged write-ahead logs with entries missing. With the floor no acknowledged entry is
/// missing.
#[tokio::test]
async fn a_damaged_segment_never_silently_loses_an_acknowledged_entry() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut stores = open(&live);
    stores.log.save_vote(&vote_of(1)).await.unwrap();
    for index in 0..100 {
        append(&mut stores.log, vec![normal(1, index, 200)]).await.unwrap();
    }
    lifted(&live, 99).await;
    let acknowledged = ids(&mut stores.log).await;
    crash_copy(&live, &copy);
    let newest = newest_segment(&copy);
    let mut whole = fs::read(&newest).unwrap();
    whole.truncate(used(&whole));
    fs::write(&newest, &whole).unwrap();
    let kept = dir.path().join("kept");
    crash_copy(&copy, &kept);
    let reset = || {
        fs::remove_dir_all(&copy).unwrap();
        crash_copy(&kept, &copy);
    };
    assert_eq!(after(&copy).await.as_ref(), Some(&acknowledged), "undamaged");

    let last = whole.len() - 20;
    let flips = (0..whole.len()).step_by(997).chain([whole.len() / 2, last]);
    for at in flips {
        reset();
        flip(&newest, at);
        let there = after(&copy).await;
        assert!(there.is_none_or(|there| there == acknowledged), "a bit at {at}");
    }
    for length in [0, 7, whole.len() / 2, last, whole.len() - 10, whole.len() - 1] {
        reset();
        File::options()
            .write(true)
            .open(&newest)
            .unwrap()
            .set_len(length as u64)
            .unwrap();
        assert_eq!(after(&copy).await, None, "cut to {length}");
    }
    for at in (0..whole.len()).step_by(4096) {
        reset();
        let mut bytes = whole.clone();
        let end = bytes.len().min(at + 4096);
        bytes[at..end].fill(0);
        fs::write(&newest, bytes).unwrap();
        assert_eq!(after(&copy).await, None, "a page of zeros at {at}");
    }
    reset();
    fs::remove_file(&newest).unwrap();
    assert_eq!(after(&copy).await, None, "no file");
    reset();
    fs::remove_dir_all(copy.join("shards/0/log")).unwrap();
    assert_eq!(after(&copy).await, None, "no log");
}

#[tokio::test]
async fn a_log_that_forgot_a_vote_is_quarantined() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut stores = open(&live);
    stores.log.save_vote(&vote_of(1)).await.unwrap();
    crash_copy(&live, &copy);
    stores.log.save_vote(&vote_of(2)).await.unwrap();
    assert!(open::shard(&copy, options()).is_ok());
    fs::copy(live.join("shards/0/FLOOR"), copy.join("shards/0/FLOOR")).unwrap();
    let refused = open::shard(&copy, options()).err().unwrap();
    assert!(refused.to_string().contains("voted"), "{refused}");
}

/// A former leader comes back with entries that the new leader replaces, and crashes at each step of the truncation.
#[tokio::test]
async fn a_former_leader_that_crashes_during_a_truncation_is_not_quarantined() {
    let dir = TempDir::new().unwrap();
    let live = dir.path().join("live");
    let mut stores = open(&live);
    stores.log.save_vote(&vote_of(1)).await.unwrap();
    append(&mut stores.log, (0..50).map(|i| normal(1, i, 100)).collect())
        .await
        .unwrap();
    append(&mut stores.log, (50..150).map(|i| normal(1, i, 100)).collect())
        .await
        .unwrap();
    lifted(&live, 149).await;
    let mut steps = 0;
    let mut crash = |what: &str| {
        let copy = dir.path().join(format!("{steps}"));
        steps += 1;
        crash_copy(&live, &copy);
        let opened = open::shard(&copy, options());
        assert!(opened.is_ok(), "{what}: {}", opened.err().unwrap());
        copy
    };
    crash("cut off");
    stores.log.save_vote(&vote_of(2)).await.unwrap();
    let before = crash("voted");
    // A power cut after the floor was lowered and before the log was truncated.
    stores.log.truncate_after(Some(log_id(1, 49))).await.unwrap();
    crash("cut");
    fs::copy(live.join("shards/0/FLOOR"), before.join("shards/0/FLOOR")).unwrap();
    assert!(open::shard(&before, options()).is_ok(), "lowered");
    append(&mut stores.log, (50..60).map(|i| normal(2, i, 100)).collect())
        .await
        .unwrap();
    crash("appended");
    lifted(&live, 59).await;
    let after = crash("lifted");
    // A log of at least the same length that still has the replaced entries has lost the new ones.
    fs::remove_dir_all(after.join("shards/0/log")).unwrap();
    crash_copy(&before.join("shards/0/log"), &after.join("shards/0/log"));
    let refused = open::shard(&after, options()).err().unwrap();
    assert!(refused.to_string().contains("was on this disk once"), "{refused}");
}

#[test]
fn a_data_directory_in_use_does_not_begin_again_empty() {
    let dir = TempDir::new().unwrap();
    let used = Options {
        used: true,
        identity: Some(ME),
        ..options()
    };
    assert!(quarantined(open::shard(dir.path(), used.clone())));
    let new = Options {
        used: false,
        ..used.clone()
    };
    drop(open::shard(dir.path(), new.clone()).unwrap());
    drop(open::shard(dir.path(), used.clone()).unwrap());
    fs::remove_file(dir.path().join("shards/0/FLOOR")).unwrap();
    assert!(quarantined(open::shard(dir.path(), used)));
    assert!(quarantined(open::shard(dir.path(), new)), "whoever asks");
}
