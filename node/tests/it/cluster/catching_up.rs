//! A node that was away for longer than the log reaches back becomes current while the others go on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use agentpost_proto::command::{BodyKind, Face, Operation, Send, operation};
use agentpost_raft_store::core::query;
use futures::future::join_all;

use crate::common::upload::metric;
use crate::common::{NodeHandles, TestCluster, TestTeam, eventually};

/// Snapshots are due at every look of the keeper, the log up to a snapshot is not kept, and a snapshot of the state below
/// travels longer than the interval between two looks.
const SLOW: &str = "[raft]\nelection_min_ms = 500\nelection_max_ms = 1000\nlog_bytes_kept = 0\n\
                    snapshot_log_bytes = 50_000\nsnapshot_send_bytes_per_s = 200_000\n";
/// Bytes of a body, which do not compress.
const BODY: usize = 10_000;
/// Messages before the node comes back: 2 MB, so that a transfer takes ten seconds.
const MESSAGES: usize = 200;

async fn deliver(services: &NodeHandles, team: &TestTeam, number: u64) {
    let mut word = number;
    let body: String = std::iter::from_fn(|| {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        Some(char::from(b'!' + (word >> 57) as u8 % 90))
    })
    .take(BODY)
    .collect();
    let send = Send {
        message_id: services.ids.message_id().to_bytes(),
        face: Face::Kite as i32,
        from: "sender".to_owned(),
        to: "box".to_owned(),
        r#type: "test".to_owned(),
        body_kind: BodyKind::Text as i32,
        body: body.into(),
        ..Send::default()
    };
    let operation = Operation {
        principal: Some(team.principal()),
        op: Some(operation::Op::Send(send)),
    };
    services.proposer.propose(operation).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purge_does_not_overtake_a_snapshot_on_its_way() {
    let cluster = TestCluster::start_with(3, SLOW).await;
    let team = cluster.team("a").await;
    let away = cluster.follower().await;
    cluster.kill(away).await;
    let services = cluster.services(cluster.leader().await);
    join_all((0..MESSAGES as u64).map(|number| deliver(&services, &team, number))).await;
    for i in cluster.running() {
        // Refused while another snapshot is taken.
        let _ = cluster.services(i).cluster.snapshot().await;
    }
    eventually("a purged log", async || {
        (metric(&services, "purged_index") > MESSAGES as u64).then_some(())
    })
    .await;

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let sending = tokio::spawn({
        let (stop, sent, services) = (stop.clone(), sent.clone(), cluster.services(cluster.leader().await));
        async move {
            while !stop.load(Ordering::Relaxed) {
                let number = sent.fetch_add(1, Ordering::Relaxed);
                deliver(&services, &team, MESSAGES as u64 + number).await;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    });
    cluster.restart_unready(away).await;
    let behind = || {
        let applied = |i: usize| {
            query::applied(&*cluster.services(i).state.current())
                .unwrap()
                .last
                .map_or(0, |id| id.index)
        };
        applied(cluster.running()[0])
            .max(applied(cluster.running()[1]))
            .saturating_sub(applied(away))
    };
    // Snapshots go on meanwhile, so without a hold the log is purged beyond each of them before it arrives.
    let mut held = 0;
    let held_bytes = "log_held_bytes{reason=\"Snapshot\"}";
    eventually("the node is current while others send", async || {
        held = held.max(metric(&cluster.services(cluster.leader().await), held_bytes));
        (behind() < 5).then_some(())
    })
    .await;
    assert!(held >= BODY as u64, "{held} bytes were held for the snapshot");
    stop.store(true, Ordering::Relaxed);
    sending.await.unwrap();
    cluster.caught_up().await;
    let leader = cluster.services(cluster.leader().await);
    eventually("a log within its bounds", async || {
        (metric(&leader, held_bytes) == 0).then_some(())
    })
    .await;
    assert_eq!(metric(&leader, "log_holds_given_up_total"), 0);
    let received = metric(&cluster.services(away), "snapshots_received_total");
    assert!(received <= 2, "{received} snapshots for one node");
}
