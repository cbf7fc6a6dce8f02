//! The election that begins when the leader's process has ended.

use std::net::TcpListener as StdListener;

use agentpost_node::net::dial::Purpose;
use agentpost_proto::peer::{LeaderGoneRequest, Vote};

use crate::common::upload::until;
use crate::common::{TestCluster, eventually};

/// No election by timeout happens during a test.
const NO_TIMEOUT: &str = "[raft]\nelection_min_ms = 3_600_000\nelection_max_ms = 7_200_000\n";

/// Whether node `other` finds the leader of `term` gone.
async fn finds_gone(cluster: &TestCluster, asker: usize, other: usize, leader: usize, term: u64) -> bool {
    let dialer = cluster.services(asker).cluster.dialer;
    let mut client = dialer.client(
        other as u64 + 1,
        &cluster.peer_addr(other).to_string(),
        Purpose::Control,
    );
    let vote = Vote {
        term,
        node: leader as u64 + 1,
        committed: true,
    };
    let request = LeaderGoneRequest {
        shard: 0,
        leader: Some(vote),
    };
    client.leader_gone(request).await.unwrap().into_inner().gone
}

async fn term(cluster: &TestCluster, i: usize) -> u64 {
    cluster.services(i).cluster.this_node.lead().term()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_leaders_process_begins_an_election() {
    let cluster = TestCluster::start_with(3, NO_TIMEOUT).await;
    let old = cluster.leader().await;
    let term_before = term(&cluster, old).await;
    cluster.kill(old).await;
    let new = eventually("a new leader", async || {
        let leader = cluster.leader().await;
        (leader != old).then_some(leader)
    })
    .await;
    cluster.team("after").await;
    assert_eq!(
        term(&cluster, new).await,
        term_before + 1,
        "one election, one candidate"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_connection_deposes_no_leader_that_still_listens() {
    let cluster = TestCluster::start_with(3, NO_TIMEOUT).await;
    let leader = cluster.leader().await;
    let before = term(&cluster, leader).await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    // Each connection between the leader and the followers closes and is opened again.
    cluster.services(leader).cluster.dialer.close();
    for &other in &others {
        assert!(!finds_gone(&cluster, leader, other, leader, before).await);
    }
    cluster.team("during").await;
    assert_eq!(cluster.leader().await, leader);
    assert_eq!(term(&cluster, leader).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_voter_alone_deposes_nobody() {
    let cluster = TestCluster::start_with(3, NO_TIMEOUT).await;
    let leader = cluster.leader().await;
    let others: Vec<usize> = (0..3).filter(|i| *i != leader).collect();
    cluster.stop_node(others[1]).await;
    let before = term(&cluster, others[0]).await;
    cluster.kill(leader).await;
    // The port of the other follower answers nothing, so the last voter has no majority.
    let _silent = StdListener::bind(cluster.peer_addr(others[1])).unwrap();
    let voter = cluster.services(others[0]);
    until(&voter, "leader_losses_undecided_total", 1).await;
    assert_eq!(term(&cluster, others[0]).await, before);
}
