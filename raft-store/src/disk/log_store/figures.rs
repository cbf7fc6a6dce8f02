//! A measurement of the log.
#![allow(clippy::unwrap_used)]

use openraft::storage::RaftLogStorage;
use tempfile::TempDir;

use super::tests::{open, vote};
use crate::disk::testing::{append, normal};

/// `cargo test --release -p agentpost-raft-store -- --ignored --nocapture figures`
#[tokio::test]
#[ignore = "a measurement"]
async fn figures_of_append_and_of_opening() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path());
    log.save_vote(&vote(1)).await.unwrap();
    let (rounds, group, bytes) = (2_000u64, 64u64, 2_000usize);
    let began = tokio::time::Instant::now();
    for round in 0..rounds {
        let entries = (0..group).map(|i| normal(1, round * group + i, bytes)).collect();
        append(&mut log, entries).await.unwrap();
    }
    let appended = began.elapsed();
    let began = tokio::time::Instant::now();
    for term in 2..102 {
        log.save_vote(&vote(term)).await.unwrap();
    }
    println!(
        "{:?} a group of {group}, {:?} a vote",
        appended / 2_000,
        began.elapsed() / 100
    );
    let written = log.metrics().bytes();
    drop(log);
    let began = tokio::time::Instant::now();
    drop(open(dir.path()));
    println!("{} MB opened in {:?}", written / 1_000_000, began.elapsed());
}
