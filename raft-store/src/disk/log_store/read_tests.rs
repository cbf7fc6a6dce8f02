//! Reads of replication and apply.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use futures::StreamExt;
use openraft::storage::{RaftLogReader, RaftLogStorage};
use tempfile::TempDir;

use super::tests::{floor, open, segments, several_files, small, try_open, vote};
use super::{APPEND_BYTES_MAX, LogStore};
use crate::disk::damage::{Damage, quarantined};
use crate::disk::testing::{append, log_id, normal};

/// Two reads of files hang; the only thread of the runtime still runs another task.
#[test]
fn reading_files_blocks_no_thread_of_the_runtime() {
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .build()
        .unwrap();
    runtime.block_on(several_files(dir.path()));
    let mut log = try_open(dir.path(), &small()).unwrap();
    // Opening a pipe for reading blocks until somebody opens it for writing.
    let pipe = segments(dir.path())[0].clone();
    fs::remove_file(&pipe).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let mut replication = runtime.block_on(log.get_log_reader());
    let mut replay = replication.clone();
    let reading = [
        runtime.spawn(async move { replication.limited_get_log_entries(0, 10).await.is_err() }),
        runtime.spawn(async move {
            Box::pin(replay.entries_stream(0..10).await)
                .next()
                .await
                .unwrap()
                .is_err()
        }),
    ];
    let (done, other) = mpsc::sync_channel(1);
    runtime.spawn(async move { done.send(()).unwrap() });
    let ran = other.recv_timeout(Duration::from_secs(30));
    assert!(reading.iter().all(|reading| !reading.is_finished()));
    // The reads go on, and find no segment.
    let open = fs::File::options().read(true).write(true).open(&pipe).unwrap();
    for reading in reading {
        assert!(runtime.block_on(reading).unwrap());
    }
    drop(open);
    ran.unwrap();
}

#[tokio::test]
async fn replication_reads_at_most_a_payload_and_at_least_an_entry() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    let big = APPEND_BYTES_MAX * 6 / 10;
    append(
        &mut log,
        vec![
            normal(1, 0, big),
            normal(1, 1, 10),
            normal(1, 2, big),
            normal(1, 3, big * 3),
        ],
    )
    .await
    .unwrap();
    for _restart in 0..2 {
        let mut reader = log.get_log_reader().await;
        for (start, expected) in [(0, 2), (1, 2), (2, 1), (3, 1), (4, 0)] {
            let read = reader.limited_get_log_entries(start, 10).await.unwrap();
            assert_eq!(read.len(), expected, "from {start}");
        }
        let all: Vec<_> = reader.entries_stream(1..4).await.collect().await;
        assert_eq!(
            all.into_iter().map(|e| e.unwrap().log_id.index).collect::<Vec<_>>(),
            [1, 2, 3]
        );
        drop((log, reader));
        log = open(dir.path()); // the cache in memory is empty now
    }
    log.purge(log_id(1, 1)).await.unwrap();
    let mut reader = log.get_log_reader().await;
    assert!(
        reader.limited_get_log_entries(0, 4).await.unwrap().is_empty(),
        "no entries beyond the range"
    );
}

/// Replication reads the newest entries from the files while appends fill one segment after another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_follow_the_writer_through_its_segments() {
    let dir = TempDir::new().unwrap();
    let mut log = try_open(dir.path(), &small()).unwrap();
    append(&mut log, vec![normal(1, 0, 500)]).await.unwrap();
    let mut reader = log.get_log_reader().await;
    let (upto, mut written) = tokio::sync::watch::channel(1);
    let reading = tokio::spawn(async move {
        let mut read = 0;
        while read < 300 {
            let next = *written.wait_for(|written| *written > read).await.unwrap();
            let entries = reader.limited_get_log_entries(read, next).await.unwrap();
            assert_eq!(entries.first().unwrap().log_id, log_id(1, read));
            read = entries.last().unwrap().log_id.index + 1;
        }
    });
    for i in 1..300 {
        append(&mut log, vec![normal(1, i, 500)]).await.unwrap();
        upto.send(i + 1).unwrap();
    }
    reading.await.unwrap();
    assert!(segments(dir.path()).len() > 10);
}

#[tokio::test]
async fn the_scrubber_reports_a_segment_that_is_gone_and_none_that_was_purged() {
    let dir = TempDir::new().unwrap();
    several_files(dir.path()).await;
    let damage = Damage::new(dir.path(), dir.path().join("REPAIR"));
    let floor = floor(dir.path()).unwrap();
    let mut log = LogStore::open(&dir.path().join("log"), floor, &small(), damage).unwrap();
    let files = segments(dir.path());
    log.purge(log_id(1, 30)).await.unwrap();
    log.save_vote(&vote(1)).await.unwrap();
    // As the removal of purged files does, some time.
    drop(fs::remove_file(&files[0]));
    log.scrub().run(|_| true).unwrap();
    assert_eq!(quarantined(dir.path()).unwrap(), None);
    fs::remove_file(&files[files.len() - 2]).unwrap();
    log.scrub().run(|_| true).unwrap();
    let reason = quarantined(dir.path()).unwrap().unwrap();
    assert!(reason.contains(&format!("segment {}", files.len() - 1)), "{reason}");
}
