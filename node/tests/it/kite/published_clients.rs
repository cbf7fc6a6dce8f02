//! Clients that behave like each published version, on three nodes with faults.

mod clients;
mod storm;

use std::time::Duration;

use agentpost_node::server::ws;
use agentpost_raft_store::core::query;
use agentpost_testkit::socket::{Connect, Socket};

use crate::common::read_state;
use storm::Storm;

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_gets_its_mail_through_a_storm_1() {
    storm(1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_published_client_gets_its_mail_through_a_storm_2() {
    storm(2).await;
}

async fn storm(seed: u64) {
    let storm = Storm::start(seed).await;
    let running = clients::start_all(&storm).await;
    storm.rage().await;
    running.finish(&storm).await;
    storm.end().await;
}

/// A client does not read its socket while its handler runs for minutes. Here the times are shorter: the handler outlasts
/// many pings and the age at which an answered ping would count as an acknowledgement. A slow machine only makes the wait
/// longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_handler_keeps_its_session_and_its_mail() {
    const BLOCKED: Duration = Duration::from_secs(3);
    let storm = Storm::start(0).await;
    let options = ws::ws_state::SessionOptions {
        ping_every: BLOCKED / 30,
        implied_after: BLOCKED / 6,
        look_every: BLOCKED / 60,
        silent_max: BLOCKED * 20,
        ..ws::ws_state::SessionOptions::default()
    };
    let mut urls = Vec::new();
    for node in 0..2 {
        urls.push(storm.cluster.serve_ws(node, options.clone()).await);
    }
    let connect = Connect {
        key: &storm.team.key,
        team: &storm.team.id,
        scopes: &["agent_to:busy"],
        client_id: None,
    };
    for body in ["1", "2", "3", "4"] {
        storm.send(0, "busy", body).await.unwrap();
    }
    let (mut socket, _) = Socket::connect(&urls[0], connect.clone()).await;
    assert_eq!(socket.bodies(2).await, ["1", "2"]);
    tokio::time::sleep(BLOCKED).await;
    let place = async || {
        let team = storm.team.id.parse().unwrap();
        let state = read_state(&storm.cluster.services(0)).await;
        let cursor = query::inbox::cursor(&*state, team, "busy", "").unwrap();
        cursor.map_or(0, |cursor| cursor.seq)
    };
    assert!(place().await <= 2, "nothing that it did not read counts as received");
    storm.send(1, "busy", "5").await.unwrap();
    assert_eq!(socket.bodies(3).await, ["3", "4", "5"], "the session is still there");
    // The handler blocks again, and the client's process is killed.
    for body in ["6", "7"] {
        storm.send(0, "busy", body).await.unwrap();
    }
    assert_eq!(socket.event().await.1, "6");
    tokio::time::sleep(BLOCKED).await;
    assert!(place().await <= 6);
    socket.cut();
    let (mut again, last_seq) = Socket::connect(&urls[1], connect).await;
    assert!(last_seq <= 6);
    for at in last_seq + 1..=7 {
        assert_eq!(again.event().await, (at, at.to_string()));
    }
    storm.end().await;
}
