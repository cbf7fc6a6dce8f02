//! `kill -9` of the leader under load, again and again: nothing acknowledged is lost, nothing is there
//! twice, and every node shows the same.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use jepsen_like_tests::checker;
use jepsen_like_tests::cluster::Cluster;
use jepsen_like_tests::workload::Workload;

const SEED: u64 = 7;
const KILLS: usize = 3;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killing_leaders_under_load_loses_nothing() {
    let mut cluster = Cluster::start(3).await.unwrap();
    let team = cluster.team("leader-kill").await.unwrap();
    let workload = Workload::start(&cluster, &team, 16, SEED).unwrap();
    for _ in 0..KILLS {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let leader = cluster.leader().await.unwrap();
        cluster.kill(leader).unwrap();
        let next = cluster.leader().await.unwrap();
        assert_ne!(next, leader);
        tokio::time::sleep(Duration::from_secs(1)).await;
        cluster.restart(leader).await.unwrap();
    }
    let history = workload.finish(&cluster, &team).await.unwrap();
    assert_eq!(history.reads.len(), 3, "all three nodes were read");
    assert!(
        history.acknowledged() > 100,
        "only {} sends were acknowledged",
        history.acknowledged()
    );
    let violations = checker::check(&history);
    assert!(
        violations.is_empty(),
        "{} violations, first: {:#?}",
        violations.len(),
        &violations[..violations.len().min(5)]
    );
    cluster.same_state().await.unwrap();
}
