//! Sockets whose key is revoked or expires: they are closed on every node, also when nobody reads them.

use std::time::{Duration, Instant};

use agentpost_node::base::clock::Clock;
use agentpost_node::server::ws;
use agentpost_proto::time::rfc3339;
use agentpost_testkit::socket::{Socket, refused};
use futures::future::join_all;
use serde_json::json;

use crate::common::eventually;
use crate::common::office::{Office, connect, office};
use crate::common::web::{Call, Team};

const REVOCATIONS: usize = 100;
const HOUR_MS: u64 = 3_600_000;

impl Office {
    /// Creates a read key; returns its id, and the team with that key.
    async fn doomed(&self, team: &Team, expires_at: Option<String>) -> (String, Team) {
        let wanted = json!({ "name": "doomed", "permissions": ["read"], "expires_at": expires_at });
        self.key(team, wanted).await
    }

    async fn revoke(&self, node: usize, id: &str) {
        let call = Call::delete(format!("/admin/v1/keys/{id}")).bearer(&self.admin);
        call.to(&self.urls[node]).await.ok();
    }

    /// Asserts that no node accepts this key.
    async fn is_refused(&self, key: &Team) {
        for url in &self.urls {
            let mut socket = Socket::open(url).await;
            socket.say(&connect(key, &["*"], None).frame()).await;
            assert_eq!(socket.ending().await, refused(4001));
        }
    }

    async fn has_sessions(&self, node: usize, count: usize) {
        let what = format!("{count} sessions on node {node}");
        eventually(what, async || (self.sessions(node) == count).then_some(())).await;
    }
}

/// Prints the time until the last socket of each key, on three nodes, had its close frame.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_closes_its_sockets_on_every_node() {
    let office = office().await;
    let team = office.new_team("keys").await;
    let keys = join_all((0..REVOCATIONS).map(|_| office.doomed(&team, None))).await;
    let (mut other, _) = office.listen(0, &team, &["*"], None).await;
    let mut took = Vec::new();
    for (turn, (id, key)) in keys.iter().enumerate() {
        let scopes = [["*"], ["agent_to:a"]][turn % 2];
        let mut sockets = join_all((0..3).map(|node| office.listen(node, key, &scopes, None))).await;
        let started = Instant::now();
        office.revoke(turn % 3, id).await;
        let endings = join_all(sockets.iter_mut().map(|(socket, _)| socket.ending())).await;
        took.push(started.elapsed());
        assert!(endings.iter().all(|ending| *ending == refused(4001)), "{endings:?}");
    }
    other.silent().await;
    for (_, key) in &keys[..3] {
        office.is_refused(key).await;
    }
    took.sort_unstable();
    let (median, longest) = (took[REVOCATIONS / 2], took[REVOCATIONS - 1]);
    eprintln!("from the request to the last of three sockets: median {median:?}, longest {longest:?}");
}

/// Without the revocation the socket of a stalled reader would stay open until the write times out.
#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_closes_the_socket_of_a_stalled_reader() {
    let office = office().await;
    let team = office.new_team("keys").await;
    let options = ws::ws_state::SessionOptions {
        stalled_max: Duration::from_secs(3_600),
        ..ws::ws_state::SessionOptions::default()
    };
    let url = office.cluster.serve_ws(1, options).await;
    let large = "x".repeat(200 * 1024);
    for at in 0..40 {
        office.send(at % 3, &team, "a", &large).await;
    }
    let (id, key) = office.doomed(&team, None).await;
    let (_, spared) = office.doomed(&team, None).await;
    let mut sockets = Vec::new();
    for key in [&key, &spared] {
        let mut socket = Socket::open_narrow(&url).await;
        socket.greet(connect(key, &["agent_to:a"], None)).await;
        assert_eq!(socket.event().await.0, 1);
        sockets.push(socket);
    }
    office.has_sessions(1, 2).await;
    office.revoke(0, &id).await;
    office.has_sessions(1, 1).await;
    // The session of the other key was woken too and continues.
    let mut spared = sockets.pop().unwrap();
    for seq in 2..=40 {
        assert_eq!(spared.event().await.0, seq);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_key_closes_its_sockets_on_every_node() {
    let office = office().await;
    let team = office.new_team("keys").await;
    let in_an_hour = rfc3339(Clock::system().wall_ms() + HOUR_MS);
    let (_, key) = office.doomed(&team, Some(in_an_hour)).await;
    let mut sockets = Vec::new();
    for node in 0..3 {
        let options = ws::ws_state::SessionOptions {
            look_every: Duration::from_millis(200),
            ..ws::ws_state::SessionOptions::default()
        };
        let url = office.cluster.serve_ws(node, options).await;
        for scopes in [["*"], ["agent_to:a"]] {
            sockets.push(Socket::connect(&url, connect(&key, &scopes, None)).await.0);
        }
    }
    let (mut other, _) = office.listen(1, &team, &["*"], None).await;
    for socket in &mut sockets {
        socket.silent().await;
    }
    // Two hours pass on all clocks. A node knows it when it has asked the others again.
    for node in 0..3 {
        office.cluster.services(node).clock.shift(2 * HOUR_MS as i64);
    }
    for socket in &mut sockets {
        assert_eq!(socket.ending().await, refused(4001));
    }
    office.is_refused(&key).await;
    other.silent().await;
    office.send(2, &team, "a", "still here").await;
    assert_eq!(other.event().await.1, "still here");
}
