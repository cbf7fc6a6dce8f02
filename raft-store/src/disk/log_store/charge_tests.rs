#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use openraft::EntryPayload;
use tempfile::TempDir;

use super::tests::open_gated;
use crate::disk::testing::{append, blank, ids, log_id, normal, open, start_append};
use crate::disk::types::{Charge, Proposal};

#[tokio::test]
async fn the_largest_append_is_measured() {
    let dir = TempDir::new().unwrap();
    let mut log = open(dir.path()).log;
    append(&mut log, vec![blank(1, 0), normal(1, 1, 50), normal(1, 2, 50)])
        .await
        .unwrap();
    let metrics = log.metrics();
    let largest = metrics.append_bytes_max();
    assert!((100..1_000).contains(&largest), "{largest}");
    append(&mut log, vec![normal(1, 3, 1)]).await.unwrap();
    assert_eq!(metrics.append_bytes_max(), largest);
}

/// Nobody waits for the entry, and the disk hangs: the charge stays. It ends with the flush, although the tail still has
/// the entry.
#[tokio::test]
async fn a_charge_ends_when_its_entry_is_durable() {
    let dir = TempDir::new().unwrap();
    let (mut log, release) = open_gated(dir.path());
    let charged = Arc::new(());
    let mut entry = normal(1, 0, 50);
    if let EntryPayload::Normal(proposal) = &mut entry.payload {
        *proposal = Proposal::charged(proposal.0.clone(), Charge::of(charged.clone()));
    }
    let durable = start_append(&mut log, vec![entry]).await.unwrap();
    assert_eq!(Arc::strong_count(&charged), 2, "the flush did not end");
    release.send(()).unwrap();
    durable.await.unwrap().unwrap();
    assert_eq!(Arc::strong_count(&charged), 1);
    assert_eq!(ids(&mut log).await, [log_id(1, 0)]);
    drop(release);
}
