//! Replication over three nodes: every node knows what one node accepted, whichever node leads and whichever is down.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use agentpost_node::shard::proposer::ProposeError;
use agentpost_node::shard::this_node::TransferError;
use agentpost_proto::command::{
    BodyKind, ErrorCode, Face, MarkRead, Operation, Principal, Reply, Send, SendReply, Tick, operation, reply,
};
use agentpost_raft_store::core::query;

use crate::common::{NodeHandles, TestCluster, TestTeam, eventually, read_state};

fn send(services: &NodeHandles, team: &TestTeam, to: &str, key: &str) -> Operation {
    let send = Send {
        message_id: services.ids.message_id().to_bytes(),
        face: Face::Kite as i32,
        from: "sender".to_owned(),
        to: to.to_owned(),
        r#type: "test".to_owned(),
        body_kind: BodyKind::Text as i32,
        body: "hello".into(),
        idempotency_key: key.to_owned(),
        ..Send::default()
    };
    Operation {
        principal: Some(team.principal()),
        op: Some(operation::Op::Send(send)),
    }
}

fn sent(reply: Reply) -> SendReply {
    match reply.reply {
        Some(reply::Reply::Send(sent)) => sent,
        other => panic!("not sent: {other:?}"),
    }
}

async fn deliver(services: &NodeHandles, team: &TestTeam, to: &str) -> u64 {
    sent(services.proposer.propose(send(services, team, to, "")).await.unwrap()).seq
}

/// The seqs in an inbox, from a linearizable read.
async fn inbox(services: &NodeHandles, team: &TestTeam, agent: &str) -> Vec<u64> {
    let state = read_state(services).await;
    let items = query::inbox::after(&*state, team.id, agent, 0, 10_000).unwrap();
    items.into_iter().map(|item| item.seq).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_node_reads_an_accepted_write() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let mut seqs = Vec::new();
    for writer in 0..3 {
        seqs.push(deliver(&cluster.services(writer), &team, "box").await);
        for reader in 0..3 {
            assert_eq!(
                inbox(&cluster.services(reader), &team, "box").await,
                seqs,
                "written {writer}, read {reader}"
            );
        }
    }
    cluster.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writes_at_once_through_a_follower_all_land_once() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let services = cluster.services(cluster.follower().await);
    let writes = (0..500).map(|_| deliver(&services, &team, "box"));
    let mut seqs = futures::future::join_all(writes).await;
    seqs.sort_unstable();
    assert_eq!(inbox(&services, &team, "box").await, seqs);
    seqs.dedup();
    assert_eq!(seqs.len(), 500);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_by_apply_is_a_reply_on_every_node() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let stranger = Principal {
        key_id: vec![9; 16].into(),
        ..team.principal()
    };
    for i in 0..3 {
        let services = cluster.services(i);
        let op = operation::Op::MarkRead(MarkRead::default());
        let operation = Operation {
            principal: Some(stranger.clone()),
            op: Some(op),
        };
        match services.proposer.propose(operation).await.unwrap().reply {
            Some(reply::Reply::Rejection(rejection)) => assert_eq!(rejection.code(), ErrorCode::Unauthenticated),
            other => panic!("not refused: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_clusters_own_operations_are_not_taken_from_followers() {
    let cluster = TestCluster::start(3).await;
    let services = cluster.services(cluster.follower().await);
    let tick = Operation {
        principal: None,
        op: Some(operation::Op::Tick(Tick {})),
    };
    match services.proposer.propose(tick).await.unwrap().reply {
        Some(reply::Reply::Rejection(rejection)) => assert_eq!(rejection.code(), ErrorCode::Invalid),
        other => panic!("not refused: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_loses_nothing_and_catches_up() {
    let cluster = Arc::new(TestCluster::start(3).await);
    let team = cluster.team("a").await;
    let leader = cluster.leader().await;
    let follower = cluster.follower().await;
    let running = Arc::new(AtomicBool::new(true));
    let (services, going, writing_team) = (cluster.services(follower), Arc::clone(&running), team.clone());
    // As a client would, the writer repeats a message with an unknown outcome under the same idempotency key.
    let writer = tokio::spawn(async move {
        let mut acked = Vec::new();
        let mut number = 0;
        while going.load(Ordering::SeqCst) {
            number += 1;
            let operation = send(&services, &writing_team, "box", &format!("key-{number}"));
            loop {
                match services.proposer.propose(operation.clone()).await {
                    Ok(reply) => break acked.push(sent(reply).seq),
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        }
        acked
    });
    let reading = cluster.services(follower);
    eventually("mail", async || {
        (inbox(&reading, &team, "box").await.len() > 20).then_some(())
    })
    .await;
    cluster.kill(leader).await;
    let before = inbox(&reading, &team, "box").await.len();
    eventually("mail after the kill", async || {
        (inbox(&reading, &team, "box").await.len() > before + 20).then_some(())
    })
    .await;
    cluster.restart(leader).await;
    running.store(false, Ordering::SeqCst);
    let acked = writer.await.unwrap();
    for i in 0..3 {
        assert_eq!(inbox(&cluster.services(i), &team, "box").await, acked, "node {i}");
    }
    cluster.caught_up().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_nodes_killed_at_once_come_back_with_everything() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let mut seqs = Vec::new();
    for i in 0..30 {
        seqs.push(deliver(&cluster.services(i % 3), &team, "box").await);
    }
    futures::future::join_all((0..3).map(|i| cluster.kill(i))).await;
    for i in 0..3 {
        cluster.restart_unready(i).await;
    }
    for i in 0..3 {
        cluster.ready(i).await;
        assert_eq!(inbox(&cluster.services(i), &team, "box").await, seqs, "node {i}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn leadership_moves_on_request_and_an_impossible_transfer_is_refused() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    for _ in 0..3 {
        let leader = cluster.leader().await;
        let target = cluster.follower().await;
        // Any node may be asked: the leader, the target, or the third.
        for i in 0..3 {
            let handle = cluster.services(i).cluster;
            let nobody = handle.transfer(9).await;
            assert!(matches!(nobody, Err(TransferError::Invalid(_))), "{nobody:?}");
            let itself = handle.transfer(leader as u64 + 1).await;
            assert!(matches!(itself, Err(TransferError::Invalid(_))), "{itself:?}");
        }
        eventually("a transfer", async || {
            cluster.services(leader).cluster.transfer(target as u64 + 1).await.ok()
        })
        .await;
        eventually("the new leader", async || {
            (cluster.leader().await == target).then_some(())
        })
        .await;
        let seq = deliver(&cluster.services(leader), &team, "box").await;
        assert!(inbox(&cluster.services(target), &team, "box").await.contains(&seq));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_leader_hands_over() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let leader = cluster.leader().await;
    let term = cluster.services(leader).cluster.status().await.term;
    cluster.stop_node(leader).await;
    let next = cluster.leader().await;
    assert_ne!(next, leader);
    // The handover takes one election, because the leader prepared it.
    assert_eq!(cluster.services(next).cluster.status().await.term, term + 1);
    deliver(&cluster.services(next), &team, "box").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_quorum_nothing_is_ready_and_nothing_is_claimed() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("a").await;
    let alone = cluster.follower().await;
    let services = cluster.services(alone);
    deliver(&services, &team, "box").await;
    for i in cluster.running() {
        if i != alone {
            cluster.kill(i).await;
        }
    }
    let refused = eventually("a refusal", async || {
        services
            .proposer
            .propose(send(&services, &team, "box", "k"))
            .await
            .err()
    })
    .await;
    // The first request may have been on its way to the old leader. Later ones are refused before they leave.
    assert!(
        matches!(refused, ProposeError::NotReady(_) | ProposeError::OutcomeUnknown(_)),
        "{refused:?}"
    );
    let refused = services.proposer.propose(send(&services, &team, "box", "k")).await;
    assert!(matches!(refused, Err(ProposeError::NotReady(_))), "{refused:?}");
    assert!(services.reader.linearizable().await.is_err());
    assert!(!services.cluster.ready().await);
    assert_eq!(
        query::inbox::after(&*services.state.current(), team.id, "box", 0, 10)
            .unwrap()
            .len(),
        1
    );
    let status = services.cluster.status().await;
    assert_eq!(status.nodes.iter().filter(|node| node.role.is_none()).count(), 2);
    // A second node makes a majority.
    let other = (alone + 1) % 3;
    cluster.restart(other).await;
    cluster.ready(alone).await;
    deliver(&services, &team, "box").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_missed_a_purged_log_catches_up_by_snapshot() {
    let few = "[raft]\nelection_min_ms = 500\nelection_max_ms = 1000\nlog_bytes_kept = 0\n";
    let cluster = TestCluster::start_with(3, few).await;
    let team = cluster.team("a").await;
    let away = cluster.follower().await;
    deliver(&cluster.services(away), &team, "box").await;
    cluster.kill(away).await;
    let here = cluster.leader().await;
    let services = cluster.services(here);
    let writes = (0..300).map(|_| deliver(&services, &team, "box"));
    futures::future::join_all(writes).await;
    for i in cluster.running() {
        cluster.services(i).cluster.snapshot().await.unwrap();
    }
    // The keeper purges up to the snapshot when replication does not need the entries just now.
    let purged = async || (metric(&services, "agentpost_purged_index") > 300).then_some(());
    eventually("a purged log", purged).await;
    cluster.restart(away).await;
    assert_eq!(inbox(&cluster.services(away), &team, "box").await.len(), 301);
    cluster.caught_up().await;
    let received = metric(&cluster.services(away), "agentpost_snapshots_received_total");
    assert_eq!(received, 1, "it must catch up by one snapshot, not by the log");
    // The installed snapshot survives a restart, and replication continues with the log.
    cluster.kill(away).await;
    deliver(&services, &team, "box").await;
    cluster.restart(away).await;
    assert_eq!(inbox(&cluster.services(away), &team, "box").await.len(), 302);
}

/// All files of a node are replaced by an older copy. The node cannot notice that at its start, but its leader can.
#[tokio::test(flavor = "multi_thread")]
async fn a_follower_that_forgot_what_it_acknowledged_is_quarantined_and_its_leader_goes_on() {
    let cluster = TestCluster::start(3).await;
    let team = cluster.team("team").await;
    let leader = cluster.leader().await;
    let follower = (leader + 1) % 3;
    let (services, dir) = (cluster.services(leader), cluster.data_dir(follower));
    cluster.stop_node(follower).await;
    let earlier = dir.with_extension("earlier");
    copy(&dir, &earlier);
    cluster.restart(follower).await;
    for _ in 0..20 {
        deliver(&services, &team, "box").await;
    }
    cluster.caught_up().await;
    cluster.stop_node(follower).await;
    std::fs::remove_dir_all(&dir).unwrap();
    std::fs::rename(&earlier, &dir).unwrap();
    cluster.restart_unready(follower).await;
    let why = cluster.failed(follower).await;
    assert!(why.contains("which it had acknowledged"), "{why}");
    assert!(dir.join("QUARANTINE").exists());
    assert_eq!(cluster.leader().await, leader);
    deliver(&services, &team, "box").await;
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        match from.is_dir() {
            true => copy(&from, &to),
            false => drop(std::fs::copy(&from, &to).unwrap()),
        }
    }
}

fn metric(services: &NodeHandles, name: &str) -> u64 {
    let text = services.metrics_text();
    let line = text
        .lines()
        .find(|line| line.starts_with(name))
        .unwrap_or_else(|| panic!("no {name} in {text}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_directory_of_another_node_is_refused() {
    let cluster = TestCluster::start(1).await;
    let dir = cluster.data_dir(0);
    cluster.stop_node(0).await;
    let secret = dir.parent().unwrap().join("secret");
    let text = format!(
        "[node]\nid = 2\ndata_dir = {dir:?}\nclient_addr = \"127.0.0.1:0\"\npeer_addr = \"127.0.0.1:0\"\n[cluster]\nsecret_file = {secret:?}\n"
    );
    let config = agentpost_node::base::config::Config::from_parts("test", &text, []).unwrap();
    let error = agentpost_node::node::start(config)
        .await
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("belongs to node 1"), "{error}");
}
