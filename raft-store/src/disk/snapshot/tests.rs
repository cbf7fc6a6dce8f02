#![allow(clippy::unwrap_used)]

mod installing;

use std::fs;
use std::io::Write;

use futures::StreamExt;
use openraft::StorageHelper;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use tempfile::TempDir;

use super::*;
use crate::core::kv::{Kv, Order, Row};
use crate::disk::open::Stores;
use crate::disk::testing::{append, apply, blank, crash_copy, ids, log_id, membership, open};

/// All rows of the state.
fn rows(db: &StateDb) -> Vec<Row> {
    db.range(vec![]..vec![0xff; 8], Order::Ascending)
        .map(Result::unwrap)
        .collect()
}

/// A node with some rows, and the entries `0..=last` in its log and state.
async fn node(dir: &Path, mark: &str, last: u64) -> Stores {
    let mut stores = open(dir);
    let mut entries = vec![membership(1, 0, &[1, 2, 3])];
    entries.extend((1..=last).map(|index| blank(1, index)));
    append(&mut stores.log, entries.clone()).await.unwrap();
    apply(&mut stores.machine, entries).await.unwrap();
    write(&stores, mark, 300);
    stores
}

fn write(stores: &Stores, mark: &str, count: usize) {
    let row = |n| {
        let value = Bytes::from(format!("{mark} {n}").repeat(200));
        (Bytes::from(format!("zz{n:05}")), Some(value))
    };
    stores.state.current().write((0..count).map(row).collect()).unwrap();
}

async fn build(stores: &mut Stores) -> SnapshotData {
    let mut builder = stores.machine.try_create_snapshot_builder(true).await.unwrap();
    builder.build_snapshot().await.unwrap().snapshot
}

/// The manifest of a checkpoint, and the number of bytes that were read for it.
fn described(dir: &Path, known: Option<&SnapshotData>) -> (peer::SnapshotMeta, u64) {
    let going_on = AtomicBool::new(false);
    let mut pace = Pace::free(&going_on);
    let meta = manifest::describe(dir, known, &mut pace).unwrap();
    (meta, pace.bytes())
}

/// Sends a snapshot to another node, without installing it.
async fn send(data: &SnapshotData, to: &Stores) -> SnapshotData {
    let mut receiver = to.snapshots.receive(data.meta().clone(), &[]).unwrap();
    let mut chunks = data.chunks(&[]);
    while let Some(chunk) = chunks.next().await {
        let (number, bytes) = chunk.unwrap();
        assert!(bytes.len() <= CHUNK_BYTES);
        receiver.chunk(number, &bytes).unwrap();
    }
    receiver.finish().unwrap()
}

async fn install_on(stores: &mut Stores, data: SnapshotData) {
    let snapshot = data.into_snapshot().unwrap();
    stores
        .machine
        .install_snapshot(&snapshot.meta, snapshot.snapshot)
        .await
        .unwrap();
}

/// Starts the stores as openraft does.
async fn start(stores: &mut Stores) {
    let mut helper = StorageHelper::new(&mut stores.log, &mut stores.machine).with_id(1);
    helper.get_initial_state().await.unwrap();
}

fn names(dir: &Path, below: &str) -> Vec<String> {
    files::names(&dir.join("shards/0").join(below)).unwrap()
}

#[tokio::test]
async fn a_snapshot_travels_and_becomes_the_state() {
    let dir = TempDir::new().unwrap();
    let (here, there) = (dir.path().join("here"), dir.path().join("there"));
    let mut leader = node(&here, "leader", 40).await;
    let expected = rows(&leader.state.current());
    let built = build(&mut leader).await;
    assert!(built.bytes() > 2 << 10);
    assert!(built.meta().files.iter().all(|file| !file.name.starts_with("LOG")));
    write(&leader, "later", 10);

    let mut follower = node(&there, "follower", 3).await;
    let old = follower.state.current();
    let old_rows = rows(&old);
    let received = send(&built, &follower).await;
    install_on(&mut follower, received).await;

    assert_eq!(rows(&follower.state.current()), expected);
    assert_eq!(rows(&old), old_rows, "who read the old state reads it to the end");
    assert!(names(&there, "state").contains(&"db-1".to_owned()));
    drop(old);
    while names(&there, "state") != ["CURRENT", "db-2"] {
        tokio::task::yield_now().await; // it is removed on another thread
    }
    let (applied, members) = follower.machine.applied_state().await.unwrap();
    assert_eq!((applied, *members.log_id()), (Some(log_id(1, 40)), Some(log_id(1, 0))));

    let offered = follower.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(offered.meta, built.openraft_meta().unwrap());
    assert_eq!(names(&there, "snapshots"), ["snap-1-1-40"]);
    assert!(names(&there, "incoming").is_empty());
    // Later writes to the state do not change the snapshot, and both survive a restart.
    write(&follower, "afterwards", 50);
    drop((offered, follower));
    let mut follower = open(&there);
    manifest::verify(&there.join("shards/0/snapshots/snap-1-1-40"), built.meta(), |_| true).unwrap();
    let third = node(&dir.path().join("third"), "third", 0).await;
    let offered = follower.machine.get_current_snapshot().await.unwrap().unwrap().snapshot;
    send(&offered, &third).await;
}

/// openraft waits for the builder with the next entries, and not for the snapshot.
#[tokio::test]
async fn a_snapshot_is_taken_beside_apply() {
    let dir = TempDir::new().unwrap();
    let mut stores = node(dir.path(), "a", 5).await;
    let mut builder = stores.machine.try_create_snapshot_builder(true).await.unwrap();
    assert!(names(dir.path(), "snapshots").is_empty(), "no checkpoint yet");
    apply(&mut stores.machine, vec![blank(1, 6)]).await.unwrap();
    let built = builder.build_snapshot().await.unwrap();
    assert_eq!(built.meta.last_log_id, Some(log_id(1, 6)), "read from the checkpoint");
    let copy = dir.path().join("other");
    let mut other = node(&copy, "other", 3).await;
    let received = send(&built.snapshot, &other).await;
    install_on(&mut other, received).await;
    assert_eq!(rows(&other.state.current()), rows(&stores.state.current()));
}

#[tokio::test]
async fn the_files_of_the_last_snapshot_are_not_read_again() {
    let dir = TempDir::new().unwrap();
    let mut stores = node(dir.path(), "a", 5).await;
    let first = build(&mut stores).await;
    apply(&mut stores.machine, vec![blank(1, 6)]).await.unwrap();
    let begun = stores.snapshots.begin(&stores.state.current()).unwrap();
    let (meta, read) = described(begun.0.path(), Some(&first));
    assert!(first.meta().files.iter().any(|file| file.name.ends_with(".blob")));
    let is_new = |file: &&peer::snapshot_meta::File| {
        !manifest::is_table(Path::new(&file.name)) || !first.meta().files.contains(file)
    };
    let new = meta.files.iter().filter(is_new);
    assert_eq!(read, new.map(|file| file.size).sum::<u64>());
    assert!(read < first.bytes(), "{read} of {}", first.bytes());
}

#[tokio::test]
async fn a_replaced_snapshot_stays_until_nobody_streams_it() {
    let dir = TempDir::new().unwrap();
    let mut stores = node(dir.path(), "a", 5).await;
    let first = build(&mut stores).await;
    let again = build(&mut stores).await;
    assert_eq!(again.dir(), first.dir(), "nothing happened in between");
    apply(&mut stores.machine, vec![blank(1, 6)]).await.unwrap();
    let second = build(&mut stores).await;
    manifest::verify(second.dir(), second.meta(), |_| true).unwrap();
    assert_eq!(names(dir.path(), "snapshots"), ["snap-1-1-5", "snap-1-1-6"]);
    assert_eq!(
        first
            .chunks(&[])
            .filter(|chunk| std::future::ready(chunk.is_err()))
            .count()
            .await,
        0
    );
    drop((first, second, again));
    while names(dir.path(), "snapshots") != ["snap-1-1-6"] {
        tokio::task::yield_now().await; // the thread that reads for the stream drops the snapshot a moment later
    }
}

#[tokio::test]
async fn a_file_that_went_bad_between_two_snapshots_shows_at_the_receiver() {
    let dir = TempDir::new().unwrap();
    let mut stores = node(&dir.path().join("here"), "a", 5).await;
    let other = node(&dir.path().join("there"), "b", 1).await;
    let first = build(&mut stores).await;
    let table = first
        .meta()
        .files
        .iter()
        .find(|file| file.name.ends_with(".blob"))
        .unwrap();
    let path = first.dir().join(&table.name);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // Changed in place, because the live state and the snapshots share the file.
    fs::File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .write_all(&bytes)
        .unwrap();
    apply(&mut stores.machine, vec![blank(1, 6)]).await.unwrap();
    let second = build(&mut stores).await;
    let mut receiver = other.snapshots.receive(second.meta().clone(), &[]).unwrap();
    let mut chunks = second.chunks(&[]);
    let mut received = Ok(());
    while let (Ok(()), Some(chunk)) = (&received, chunks.next().await) {
        let (number, bytes) = chunk.unwrap();
        received = receiver.chunk(number, &bytes);
    }
    assert!(received.unwrap_err().to_string().contains("checksum"));
}

/// Sends the files that the receiver does not have, up to a number of files, and returns the numbers of those.
async fn send_some(data: &SnapshotData, to: &Stores, limit: usize) -> (Vec<u32>, Option<SnapshotData>) {
    let held = to.snapshots.held(data.meta());
    let mut receiver = to.snapshots.receive(data.meta().clone(), &held).unwrap();
    let mut chunks = data.chunks(&held);
    let mut sent: Vec<u32> = Vec::new();
    while let Some(chunk) = chunks.next().await {
        let (number, bytes) = chunk.unwrap();
        if sent.last() != Some(&number) {
            if sent.len() == limit {
                // The connection breaks in the middle of a file.
                receiver.chunk(number, &bytes[..bytes.len() / 2]).unwrap();
                return (sent, None);
            }
            sent.push(number);
        }
        receiver.chunk(number, &bytes).unwrap();
    }
    (sent, Some(receiver.finish().unwrap()))
}

#[tokio::test]
async fn a_transfer_that_broke_off_goes_on_with_the_files_that_are_missing() {
    let dir = TempDir::new().unwrap();
    let mut leader = node(&dir.path().join("leader"), "a", 5).await;
    let mut other = open(&dir.path().join("other"));
    let first = build(&mut leader).await;
    let files = first.meta().files.iter().filter(|file| file.size > 0).count();
    assert!(files >= 3);
    let (sent, _) = send_some(&first, &other, 1).await;
    let (more, _) = send_some(&first, &other, 1).await;
    assert_eq!((sent.len(), more.len()), (1, 1));
    assert_ne!(sent, more);
    let held = other.snapshots.held(first.meta());
    assert_eq!(held.len(), 2, "the two complete files, and not the broken ones");
    // Another transfer took a file meanwhile.
    let gone = other
        .snapshots
        .receive(first.meta().clone(), &[held[0], held[1], held[0]]);
    assert!(gone.is_err());
    assert_eq!(other.snapshots.held(first.meta()), held, "the others are kept");
    assert_eq!(names(&dir.path().join("other"), "incoming"), ["kept"]);
    // A later snapshot shares its table with the first one, and none of the files that changed.
    apply(&mut leader.machine, vec![blank(1, 6)]).await.unwrap();
    let second = build(&mut leader).await;
    let shared = |file: &&peer::snapshot_meta::File| first.meta().files.contains(file);
    let expected = second.meta().files.iter().filter(shared).count();
    let kept = other.snapshots.held(second.meta());
    assert!(kept.len() <= expected);
    let (rest, whole) = send_some(&second, &other, usize::MAX).await;
    let all = second.meta().files.iter().filter(|file| file.size > 0).count();
    assert_eq!(rest.len() + kept.len(), all);
    install_on(&mut other, whole.unwrap()).await;
    assert_eq!(other.machine.applied_state().await.unwrap().0, Some(log_id(1, 6)));
    assert!(other.snapshots.held(second.meta()).is_empty());
}

#[tokio::test]
async fn the_files_of_a_transfer_that_broke_off_can_be_removed() {
    let dir = TempDir::new().unwrap();
    let there = dir.path().join("other");
    let mut leader = node(&dir.path().join("leader"), "a", 5).await;
    let other = open(&there);
    let built = build(&mut leader).await;
    assert_eq!(other.snapshots.files_kept(), 0);
    send_some(&built, &other, 1).await;
    assert_eq!(other.snapshots.files_kept(), 1);
    assert_eq!(other.snapshots.held(built.meta()).len(), 1);
    other.snapshots.forget_kept().unwrap();
    assert!(other.snapshots.held(built.meta()).is_empty());
    assert!(names(&there, "incoming").is_empty());
}

#[tokio::test]
async fn a_build_that_was_cut_off_leaves_the_last_snapshot() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut stores = node(&live, "a", 5).await;
    build(&mut stores).await;
    apply(&mut stores.machine, vec![blank(1, 6)]).await.unwrap();
    let snapshots = live.join("shards/0/snapshots");
    let begun = stores.snapshots.begin(&stores.state.current()).unwrap();
    let staged = snapshots.join("snap-1-1-6.tmp");
    for step in 0..2 {
        if step == 1 {
            manifest::write(&staged, &described(&staged, None).0).unwrap();
        }
        crash_copy(&live, &copy);
        let mut after = open(&copy);
        assert_eq!(names(&copy, "snapshots"), ["snap-1-1-5"]);
        let offered = after.machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(offered.meta.last_log_id, Some(log_id(1, 5)));
        drop((after, offered));
        fs::remove_dir_all(&copy).unwrap();
    }
    drop(begun);
    assert_eq!(
        names(&live, "snapshots"),
        ["snap-1-1-5"],
        "a checkpoint that is dropped leaves nothing"
    );
}

/// A power cut when the state is durable and the log after a truncation is not.
#[tokio::test]
async fn a_state_ahead_of_the_log_starts_and_offers_a_snapshot_that_fits() {
    let dir = TempDir::new().unwrap();
    let (live, copy) = (dir.path().join("live"), dir.path().join("copy"));
    let mut stores = node(&live, "a", 5).await;
    build(&mut stores).await;
    append(&mut stores.log, vec![blank(1, 6), blank(1, 7), blank(1, 8)])
        .await
        .unwrap();
    stores.log.truncate_after(Some(log_id(1, 5))).await.unwrap();
    crash_copy(&live, &copy); // the log as it is on the disk
    let entries: Vec<_> = (6..=20).map(|index| blank(2, index)).collect();
    append(&mut stores.log, entries.clone()).await.unwrap();
    apply(&mut stores.machine, entries).await.unwrap();
    stores.state.flush().unwrap();
    fs::remove_dir_all(copy.join("shards/0/state")).unwrap();
    crash_copy(&live.join("shards/0/state"), &copy.join("shards/0/state"));

    let mut after = open(&copy);
    start(&mut after).await;
    let state = after.log.get_log_state().await.unwrap();
    assert_eq!(state.last_log_id, Some(log_id(2, 20)));
    assert_eq!(state.last_purged_log_id, Some(log_id(2, 20)));
    let offered = after.machine.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!(offered.meta.last_log_id, Some(log_id(2, 20)));
    append(&mut after.log, vec![blank(2, 21)]).await.unwrap();
    assert_eq!(ids(&mut after.log).await, [log_id(2, 21)]);
}

#[tokio::test]
async fn a_snapshot_that_differs_from_its_manifest_is_refused() {
    let dir = TempDir::new().unwrap();
    let mut leader = node(&dir.path().join("leader"), "a", 4).await;
    let built = build(&mut leader).await;
    let meta = built.meta();
    let receive = |change: &dyn Fn(&mut peer::SnapshotMeta)| {
        let mut meta = meta.clone();
        change(&mut meta);
        leader.snapshots.receive(meta, &[])
    };
    for name in ["../evil", "/etc/passwd", "", ".hidden", "SNAPSHOT", "a/b", "nul\0"] {
        assert!(
            receive(&|meta| meta.files[0].name = name.to_owned()).is_err(),
            "{name:?}"
        );
    }
    assert!(receive(&|meta| meta.files.clear()).is_err());
    assert!(receive(&|meta| meta.files.swap(0, 1)).is_err());
    assert!(receive(&|meta| meta.files[1] = meta.files[0].clone()).is_err());

    let mut chunks = Vec::new();
    let mut stream = built.chunks(&[]);
    while let Some(chunk) = stream.next().await {
        chunks.push(chunk.unwrap());
    }
    // Sends all chunks with one change, and returns the first error.
    type Chunks = Vec<(u32, Bytes)>;
    let transfer = |meta: &dyn Fn(&mut peer::SnapshotMeta), change: &dyn Fn(&mut Chunks)| {
        let mut receiver = receive(meta)?;
        let mut chunks = chunks.clone();
        change(&mut chunks);
        for (number, bytes) in chunks {
            receiver.chunk(number, &bytes)?;
        }
        receiver.finish().map(drop)
    };
    let flip = |chunks: &mut Chunks| {
        let mut bytes = chunks[1].1.to_vec();
        bytes[0] ^= 1;
        chunks[1].1 = Bytes::from(bytes);
    };
    let longer = |chunks: &mut Chunks| chunks.push(chunks[chunks.len() - 1].clone());
    assert!(transfer(&|_| {}, &|_| {}).is_ok());
    assert!(transfer(&|_| {}, &flip).unwrap_err().to_string().contains("checksum"));
    assert!(transfer(&|_| {}, &longer).is_err());
    assert!(transfer(&|_| {}, &|chunks| chunks.swap(0, 1)).is_err());
    assert!(transfer(&|_| {}, &|chunks| drop(chunks.pop())).is_err());
    let claim_more = |meta: &mut peer::SnapshotMeta| meta.last_log_id.as_mut().unwrap().index += 1;
    assert!(
        transfer(&claim_more, &|_| {})
            .unwrap_err()
            .to_string()
            .contains("claims")
    );
    assert!(
        names(&dir.path().join("leader"), "incoming").is_empty(),
        "a refused transfer leaves nothing"
    );
}
